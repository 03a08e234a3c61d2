"""How the loss, and the outputs, depend on every state at every step: the adjoint, on a logarithmic scale."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar, Protocol

import numpy as np
from pydantic import Field

from rnnbench.arrays import NDArray
from rnnbench.backends.base import STORAGE, Program
from rnnbench.cells.network import Network, Scope, within
from rnnbench.errors import BadInput
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import ADJOINT
from rnnbench.probes.replay import SEGMENT, Gradients, forward_and_replay, log_norm, loss_cotangents
from rnnbench.signals import Signal, SignalKind
from rnnbench.streams import stream
from rnnbench.tasks.base import Batch
from rnnbench.xp import Arrays, Differentiable, Ops

SPREAD = 2**23
"""Numbers in the cotangents of a network's top that are followed side by side (64 MiB); of more, group after group."""


class Adjoint(Probe):
    """Total derivatives of the loss, and of the outputs, by every state and input at every step.

    The derivative by a state is that of the whole loss, through all later steps, layers and directions, the other
    states of its own step held: h and c of an LSTM as if they were independent. `adjoint.total_log_norm` follows c
    through the h of its own step as well. Gradients are replayed in segments that are renormalized one by one
    (`rnnbench.probes.replay`), and beside them stands what plain backpropagation sees in the run's own precision.

    What a precision still holds is a question of size, and in training a sequence's gradient is a share of its batch's
    loss. Plain backpropagation therefore starts from the probed sequences' loss times their number over the run's batch
    size, and `adjoint.censored` is about these numbers; for `adjoint.seen_log_norm` the factor is taken out again, so
    that it stands beside `adjoint.log_norm`.

    Where sequences end at different steps, or their loss is followed back from different steps, each sequence is moved
    along the time axis so that its own end lies at the last step; what then lies before its beginning is not a number.
    """

    name: ClassVar[str] = "adjoint"
    source: ClassVar[str] = "Werbos, Backpropagation through time, Proceedings of the IEEE 1990"
    equation: ClassVar[str] = "lambda_t = (ds_{t+1}/ds_t)^T lambda_{t+1} + (direct dL/ds_t)"
    signals: ClassVar[tuple[SignalKind, ...]] = ADJOINT
    wanted: ClassVar[tuple[str, ...]] = ("adjoint.log_norm", "adjoint.seen_log_norm", "adjoint.logit_log_norm")
    needs_cell: ClassVar[bool] = False

    sequences: Annotated[int, Field(ge=1, le=4096, description="sequences to probe with")] = 16
    loss_step: Annotated[int, Field(ge=0)] | None = Field(
        None, description="step of the loss that is followed back; by default the last one that counts"
    )
    logits: bool = Field(True, description="also the Jacobian of the outputs, normalized for each sequence")
    directions: Annotated[int, Field(ge=1, le=256)] = Field(
        16, description="most outputs that are followed one by one; of more, as many random directions"
    )
    seen: bool = Field(True, description="also plain backpropagation in the run's own precision")
    vectors: bool = Field(False, description="keep the derivatives themselves, not their norms alone")
    segment: Annotated[int, Field(ge=1, le=4096)] = Field(SEGMENT, description="steps between renormalizations")

    def measure(self, look: Look) -> Iterator[Signal]:
        network = look.program.network
        if not isinstance(network, Network):
            yield from self._inputs_only(look)
            return
        batch = look.batch.take(slice(0, self.sequences))
        ends = loss_ends(look.program, batch, self.loss_step)
        length = network.length
        common = bool((ends == ends[0]).all())
        align = partial(_aligned, ends=ends, length=length) if not common else _as_it_is
        at = length - 1 if not common else int(ends[0])
        each = not network.read_last
        arrays = look.arrays(batch) | {"ends": ends}
        step = look.step
        yield recorded("adjoint.loss_step", np.asarray(at), step)

        found = look.lab.compute(
            ("adjoint", look.key, self.segment, self.vectors), partial(_losses, look.program, self), arrays
        )
        whole = _split(found, 0)
        for name, values in whole.items():
            kind, _, of = name.partition("/")
            yield recorded(f"adjoint.{kind}", align(values, of), step, of)
        if each:
            for name, values in _split(found, 1).items():
                kind, _, of = name.partition("/")
                if kind == "log_norm":
                    yield recorded("adjoint.step_log_norm", align(values, of), step, of)
        if self.logits:
            yield from self._logits(look, arrays, align, ends)
        if self.seen:
            share = batch.size / look.source.data.batch_size
            seen = look.own.compute(
                ("seen", look.key), partial(_seen, look.program), arrays | {"share": np.asarray(share)}
            )
            floor = np.log(np.finfo(STORAGE[look.own.precision]).tiny)
            for of, values in seen.items():
                lost = ~np.isfinite(values) | (values < floor)
                yield recorded("adjoint.seen_log_norm", align(values - np.log(share), of), step, of)
                yield recorded(
                    "adjoint.censored", align((lost & np.isfinite(whole[f"log_norm/{of}"])).astype(float), of), step, of
                )

    def _logits(self, look: Look, arrays: Mapping[str, NDArray], align: _Align, ends: NDArray) -> Iterator[Signal]:
        network = look.program.network
        n_out = network.n_out
        exact = n_out <= self.directions
        drawn = stream(look.seed, "probe/adjoint/directions", look.step).integers(0, 2, (self.directions, n_out))
        seeds = np.eye(n_out) if exact else 2.0 * drawn - 1.0
        width = network.directions * network.cell.output.size
        groups = 1
        if not network.read_last:
            most = max(1, SPREAD // (network.length * len(ends) * width))
            groups = -(-len(seeds) // most)
        size = -(-len(seeds) // groups)
        # directions of nothing fill the last group up: one compiled function serves all, and they add nothing
        filled = np.concatenate([seeds, np.zeros((size * groups - len(seeds), n_out))])
        each = [
            look.lab.compute(
                ("logits", look.key, self.segment, size),
                partial(_outputs_jacobian, look.program, self.segment),
                {**arrays, "seeds": some},
            )
            for some in np.split(filled, groups)
        ]
        found = {name: np.concatenate([values[name] for values in each], axis=1) for name in each[0]}
        spread = 0.0 if exact else 0.5 * np.log(len(seeds))
        frobenius = {name: _log_sum_squares(values, axis=1) - spread for name, values in found.items()}
        for scope in network.scopes():
            states = within(frobenius, scope.name)
            whole = 0.5 * np.logaddexp.reduce([2.0 * values for values in states.values()], axis=0)
            last = np.zeros_like(ends) if scope.reverse and network.read_last else ends
            reference = np.take_along_axis(whole, last[None, :], axis=0)
            with np.errstate(invalid="ignore"):
                for name, values in states.items():
                    of = f"{scope.name}.{name}"
                    yield recorded("adjoint.logit_log_norm", align(values - reference, of), look.step, of)
        yield recorded("adjoint.logit_input_log_norm", align(frobenius["input"], ""), look.step)

    def _inputs_only(self, look: Look) -> Iterator[Signal]:
        """Of a user's whole model only its inputs are known: how the loss depends on them."""
        batch = look.batch.take(slice(0, self.sequences))
        ends = loss_ends(look.program, batch, self.loss_step)
        align = _as_it_is if (ends == ends[0]).all() else partial(_aligned, ends=ends, length=batch.inputs.shape[0])
        look.seed_model()
        found = look.lab.compute(("inputs", look.key), partial(_input_gradient, look.program), look.arrays(batch))
        at = batch.inputs.shape[0] - 1 if align is not _as_it_is else int(ends[0])
        yield recorded("adjoint.loss_step", np.asarray(at), look.step)
        yield recorded("adjoint.input_log_norm", align(found["inputs"], ""), look.step)


def loss_ends(program: Program, batch: Batch, loss_step: int | None = None, place: str = "adjoint") -> NDArray:
    """Return for each sequence the step whose loss is followed back [batch]: by default the last one that counts.

    Args:
        program: the task gives the place of its losses.
        batch: the sequences.
        loss_step: the one step asked for, in every sequence.
        place: the probe that asks, for messages.

    Raises:
        BadInput: when the step asked for lies outside a sequence, or no loss is taken there.
    """
    length = batch.inputs.shape[0]
    if program.task.readout == "last":
        if loss_step is not None:
            raise BadInput(f"probe {place}.loss_step: task {program.task.name} has its loss at the end only")
        return batch.lengths - 1
    counted = batch.mask > 0  # [time batch]
    if loss_step is None:
        return np.asarray(length - 1 - np.argmax(counted[::-1], axis=0), dtype=np.int64)
    if loss_step >= length or not counted[loss_step].all():
        raise BadInput(
            f"probe {place}.loss_step: at step {loss_step} of task {program.task.name} (T = {length}) no loss is taken "
            "of every sequence"
        )
    return np.full(batch.size, loss_step, dtype=np.int64)


class _Align(Protocol):
    """Takes [time batch ...] and what it is of to where each sequence ends at the last step."""

    def __call__(self, values: NDArray, of: str) -> NDArray: ...


def _as_it_is(values: NDArray, of: str) -> NDArray:  # noqa: ARG001  # an `_Align`
    return values


def _aligned(values: NDArray, of: str, *, ends: NDArray, length: int) -> NDArray:
    """Move each sequence's end to the last step, or, read backwards, blank what lies beyond its end."""
    moved = np.full_like(values, np.nan, dtype=float)
    for index, end in enumerate(ends):
        if ".backward." in of:
            moved[: end + 1, index] = values[: end + 1, index]
        else:
            moved[length - 1 - end :, index] = values[: end + 1, index]
    return moved


def _losses(program: Program, probe: Adjoint, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return log-norms [time many batch] by ``<kind>/<state>``; the second of many is the loss at the chosen step."""
    replay, batch = forward_and_replay(xp, program, arrays, probe.segment)
    ends = None if replay.network.read_last else arrays["ends"]
    cotangents = loss_cotangents(xp, program, replay, batch, ends)

    def emit(xp: Ops, scope: Scope, gradients: Gradients) -> Arrays:
        scale = gradients.log_scale[None]
        kept = {f"log_norm/{scope.name}.{n}": log_norm(xp, g, scale) for n, g in gradients.states.items()}
        kept |= {f"total_log_norm/{scope.name}.{n}": log_norm(xp, g, scale) for n, g in gradients.inner.items()}
        if probe.vectors:
            plain = xp.exp(scale)[..., None]
            kept |= {f"vector/{scope.name}.{n}": g * plain for n, g in gradients.states.items()}
        return kept

    replayed = replay.run(cotangents, emit)
    return replayed.everything() | {"input_log_norm": replayed.inputs.log_norm(xp)}


def _outputs_jacobian(program: Program, segment: int, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return log-norms [time many batch] by state, and ``input``, of directions of the outputs at the chosen step."""
    replay, _ = forward_and_replay(xp, program, arrays, segment)
    network, top = replay.network, replay.top()
    if not network.read_last:  # only what is read at the chosen step, [batch width]
        steps = xp.asarray(list(range(network.length)))
        chosen = (steps[:, None] == arrays["ends"][None, :])[:, :, None]
        top = xp.sum(xp.where(chosen, top, xp.zeros(top.shape)), axis=0)

    def read(values: Arrays) -> Arrays:
        return {"outputs": network.read(xp, replay.params, values["top"])}

    values, pullback = xp.vjp(read, {"top": top})
    seeds = arrays["seeds"]
    wide = xp.broadcast_to(seeds[:, None, :], (int(seeds.shape[0]), *values["outputs"].shape))
    cotangents = pullback({"outputs": wide}, many=True)["top"]
    if not network.read_last:
        there = cotangents[:, None]
        cotangents = xp.where(chosen[None], there, xp.zeros((1, *chosen.shape)))

    def emit(xp: Ops, scope: Scope, gradients: Gradients) -> Arrays:
        scale = gradients.log_scale[None]
        return {f"{scope.name}.{n}": log_norm(xp, g, scale) for n, g in gradients.states.items()}

    replayed = replay.run(cotangents, emit)
    return replayed.everything() | {"input": replayed.inputs.log_norm(xp)}


def _seen(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return the log-norms [time batch] of the derivative of the loss, times ``share``, by every state.

    By plain backpropagation; the factor enters before it, as the size of a batch does in training.
    """
    params, buffers, batch = unpacked(arrays)
    shapes = program.network.state_shapes(int(batch["inputs"].shape[1]))

    def loss(inject: Arrays) -> Arrays:
        return {"loss": program.loss(xp, params, buffers, batch, inject=inject)[0]}

    _, pullback = xp.vjp(loss, {name: xp.zeros(shape) for name, shape in shapes.items()})
    return {name: xp.log(xp.norm(g, axis=-1)) for name, g in pullback({"loss": arrays["share"]}).items()}


def _input_gradient(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
    params, buffers, batch = unpacked(arrays)

    def loss(primals: Arrays) -> Arrays:
        return {"loss": program.loss(xp, params, buffers, {**batch, "inputs": primals["inputs"]})[0]}

    _, pullback = xp.vjp(loss, {"inputs": batch["inputs"]})
    return {"inputs": xp.log(xp.norm(pullback({"loss": xp.ones(())})["inputs"], axis=-1))}


def _split(found: Mapping[str, NDArray], which: int) -> dict[str, NDArray]:
    """Return the entries [time batch ...] of one of many cotangents."""
    return {name: values[:, which] for name, values in found.items() if values.shape[1] > which}


def _log_sum_squares(values: NDArray, axis: int) -> NDArray:
    """Return ln of the root of the sum of squares, of logarithms."""
    found: NDArray = 0.5 * np.logaddexp.reduce(2.0 * values, axis=axis)
    return found
