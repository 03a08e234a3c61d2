"""From cells to a network: layers, directions, initial states and the readout, once over `xp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.base import Buffer, Cell, Context, Param
from rnnbench.errors import BadInput
from rnnbench.initialize import GlorotUniform
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Ops

Kernel = Callable[[Cell, Mapping[str, Array], Array, Mapping[str, Array]], "tuple[Array, Arrays] | None"]
"""A fused layer: (cell, params, inputs [time batch n_in], initial states) -> (outputs [time batch H], last states)."""


@dataclass(frozen=True)
class Forward:
    """What a forward pass gives.

    Attributes:
        outputs: [time batch n_out], or [batch n_out] where only the end is read.
        states: every state at every step by full name, e.g. ``layers.0.forward.h`` [time batch size]; only on request.
        buffers: the buffers after this batch.
    """

    outputs: Array
    states: Arrays = field(default_factory=dict)
    buffers: Arrays = field(default_factory=dict)


@dataclass(frozen=True)
class Scope:
    """One recurrence of a network: a layer in a direction.

    Attributes:
        name: prefix of the full names of its parameters and states, e.g. ``layers.1.backward``.
        n_in: width of its inputs.
        reverse: whether it reads the sequence from its end.
    """

    name: str
    n_in: int
    reverse: bool


@dataclass(frozen=True)
class Network:
    """A stack of recurrent layers of one cell with a linear readout.

    Attributes:
        cell: the equation.
        spec: layers, directions, initial states.
        n_in: width of the inputs.
        n_out: width of the outputs.
        length: static number of time steps T.
        read_last: the readout sees the end of the sequence only: the last state of each direction.
        masked: some sequences end early; their states are then held to the end.
    """

    cell: Cell
    spec: NetworkSpec
    n_in: int
    n_out: int
    length: int
    read_last: bool
    masked: bool = False

    @property
    def directions(self) -> int:
        """1, or 2 when bidirectional."""
        return 2 if self.spec.bidirectional else 1

    def scopes(self) -> Iterator[Scope]:
        """Yield each recurrence, from the inputs up, forward before backward."""
        for layer in range(self.spec.layers):
            n_in = self.n_in if layer == 0 else self.directions * self.cell.output.size
            yield Scope(f"layers.{layer}.forward", n_in, reverse=False)
            if self.spec.bidirectional:
                yield Scope(f"layers.{layer}.backward", n_in, reverse=True)

    def parameters(self) -> dict[str, Param]:
        """Declare every parameter by full name."""
        params: dict[str, Param] = {}
        for scope in self.scopes():
            params |= {f"{scope.name}.{name}": param for name, param in self.cell.parameters(scope.n_in).items()}
            if self.spec.learned_state:
                params |= {f"{scope.name}.initial.{s.name}": Param((s.size,)) for s in self.cell.states()}
        width = self.directions * self.cell.output.size
        params["readout.weight"] = Param((self.n_out, width), GlorotUniform())
        params["readout.bias"] = Param((self.n_out,))
        return params

    def buffers(self) -> dict[str, Buffer]:
        """Declare every buffer by full name."""
        return {
            f"{scope.name}.{name}": buffer
            for scope in self.scopes()
            for name, buffer in self.cell.buffers(scope.n_in, self.length).items()
        }

    def initial(self, seed: int) -> dict[str, NDArray]:
        """Draw the starting parameters in float64, each from its own stream (seed, "init/<name>")."""
        return {
            name: param.init(stream(seed, f"init/{name}"), param.shape) for name, param in self.parameters().items()
        }

    def initial_buffers(self, seed: int) -> dict[str, NDArray]:
        """Draw the starting buffers in float64."""
        return {name: item.init(stream(seed, f"buffer/{name}"), item.shape) for name, item in self.buffers().items()}

    def count(self) -> int:
        """Return the number of trainable numbers."""
        return sum(math.prod(param.shape) for param in self.parameters().values())

    def state_shapes(self, batch: int) -> dict[str, tuple[int, int, int]]:
        """Return the shape [time batch size] of every state by full name, for `forward`'s `record` and `inject`."""
        return {
            f"{scope.name}.{state.name}": (self.length, batch, state.size)
            for scope in self.scopes()
            for state in self.cell.states()
        }

    def zero_gradients(self) -> dict[str, str]:
        """Return the parameters whose gradient is zero in theory, with the reason."""
        return {name: p.zero_gradient for name, p in self.parameters().items() if p.zero_gradient is not None}

    def forward(
        self,
        xp: Ops,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        inputs: Array,
        lengths: Array,
        *,
        training: bool,
        record: bool = False,
        inject: Mapping[str, Array] | None = None,
        kernel: Kernel | None = None,
    ) -> Forward:
        """Run the network over a batch.

        Args:
            xp: the operations.
            params: by full name.
            buffers: by full name.
            inputs: [time batch n_in].
            lengths: [batch] steps that are not padding; read only when `masked`.
            training: whether this is a training step.
            record: also return every state at every step.
            inject: [time batch size] by full state name, added to that state after each step: the gradient by it (at
                zero) is the total derivative of the loss by the state, the step's other states held.
            kernel: a fused layer to try first; it is not used where states are recorded, injected or masked.
        """
        valid = _valid(xp, self.length, lengths) if self.masked else None
        plain = not (record or inject or self.masked)
        states: Arrays = {}
        new_buffers = dict(buffers)
        below = inputs
        last_layer = self.spec.layers - 1
        ends: list[Array] = []
        for layer in range(self.spec.layers):
            tops: list[Array] = []
            ends = []
            whole = layer < last_layer or not self.read_last
            for scope in self.scopes():
                if not scope.name.startswith(f"layers.{layer}."):
                    continue
                local = _within(params, scope.name)
                start = self._start(xp, local, inputs.shape[1])
                fused = _fused(xp, kernel, self.cell, local, below, start, scope.reverse) if kernel and plain else None
                if fused is not None:
                    top, end = fused
                else:
                    context = Context(0, None, training, _within(buffers, scope.name))
                    inject_here = _within(inject or {}, scope.name)
                    end, ys, emitted = recur(
                        xp, self.cell, local, below, start, valid, context, scope.reverse, inject_here, record, whole
                    )
                    if record:
                        states |= {f"{scope.name}.{name}": ys[name] for name in start}
                    if training and emitted:
                        updated = self.cell.updated_buffers(xp, context.buffers, emitted)
                        new_buffers |= {f"{scope.name}.{name}": value for name, value in updated.items()}
                    top = ys.get(self.cell.output.name)
                tops.append(top)
                ends.append(end[self.cell.output.name])
            if whole:
                below = tops[0] if len(tops) == 1 else xp.concat(tops, axis=-1)
        if self.read_last:
            below = ends[0] if len(ends) == 1 else xp.concat(ends, axis=-1)
        return Forward(xp.linear(below, params["readout.weight"], params["readout.bias"]), states, new_buffers)

    def _start(self, xp: Ops, local: Mapping[str, Array], batch: int) -> Arrays:
        """Return the initial states [batch size]: zeros, or the learned ones."""
        return {
            state.name: xp.broadcast_to(local[f"initial.{state.name}"], (batch, state.size))
            if self.spec.learned_state
            else xp.zeros((batch, state.size))
            for state in self.cell.states()
        }


def recur(
    xp: Ops,
    cell: Cell,
    params: Mapping[str, Array],
    inputs: Array,
    start: Arrays,
    valid: Array | None,
    context: Context,
    reverse: bool,
    inject: Mapping[str, Array],
    record: bool,
    whole: bool,
) -> tuple[Arrays, Arrays, Arrays]:
    """Run one recurrence by its equation.

    Args:
        xp: the operations.
        cell: the equation.
        params: the cell's parameters by its own names.
        inputs: [time batch n_in].
        start: the states before the first step [batch size].
        valid: [time batch 1] whether a step is not padding; None when no sequence is padded.
        context: training and buffers; t and valid are filled in at each step.
        reverse: read from the end.
        inject: [time batch size] by state name, added after each step.
        record: return every state at every step, not the output alone.
        whole: return the output at every step.

    Returns:
        (last states, {state: [time batch size]}, {emitted name: [time ...]}).
    """
    prepared = cell.prepare(xp, params)
    kept = [state.name for state in cell.states() if record or (whole and state.output)]
    xs: Arrays = {"u": cell.project(xp, prepared, inputs)}
    if valid is not None:
        xs["valid"] = valid
    xs |= {f"inject.{name}": value for name, value in inject.items()}

    def body(states: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        here = Context(x["t"], x.get("valid"), context.training, context.buffers)
        new = cell.step(xp, prepared, states, x["u"], here)
        if here.valid is not None:
            new = {name: xp.where(here.valid, value, states[name]) for name, value in new.items()}
        for name in inject:
            new[name] = new[name] + x[f"inject.{name}"]
        return new, {name: new[name] for name in kept} | {f"emit.{k}": v for k, v in here.emitted.items()}

    end, ys = xp.scan(body, start, xs, inputs.shape[0], reverse)
    emitted = {name.removeprefix("emit."): value for name, value in ys.items() if name.startswith("emit.")}
    return end, {name: ys[name] for name in kept}, emitted


def read_end(xp: Ops, outputs: Array, lengths: Array, read_last: bool, n_out: int) -> Array:
    """Fit a whole model's outputs to what a task reads: of [time batch n_out], each sequence's last valid step.

    Raises:
        BadInput: when the shape is not one that the task can read; broadcasting would otherwise hide it.
    """
    shape = tuple(outputs.shape)
    batch = int(lengths.shape[0])
    if len(shape) == 3 and shape[1:] == (batch, n_out):
        if not read_last:
            return outputs
        steps = xp.asarray(list(range(shape[0])))
        last = xp.floats(steps[:, None] == lengths[None, :] - 1)
        return xp.sum(outputs * last[:, :, None], axis=0)
    if read_last and shape == (batch, n_out):
        return outputs
    wanted = f"[time {batch} {n_out}]" + (f" or [{batch} {n_out}]" if read_last else "")
    raise BadInput(f"model: its output has shape {list(shape)}; the task reads {wanted}")


def _within(named: Mapping[str, Array], scope: str) -> dict[str, Array]:
    """Return the entries whose full names lie in `scope`, by the rest of their names."""
    prefix = scope + "."
    return {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}


def _valid(xp: Ops, length: int, lengths: Array) -> Array:
    """Return [time batch 1] booleans: t < length of the sequence."""
    steps = xp.asarray(list(range(length)))
    return (steps[:, None] < lengths[None, :])[:, :, None]


def _fused(
    xp: Ops,
    kernel: Kernel,
    cell: Cell,
    params: Mapping[str, Array],
    inputs: Array,
    start: Arrays,
    reverse: bool,
) -> tuple[Array, Arrays] | None:
    """Try the fused layer, reading backwards by turning the sequence round."""
    result = kernel(cell, params, xp.flip(inputs, 0) if reverse else inputs, start)
    if result is None or not reverse:
        return result
    outputs, end = result
    return xp.flip(outputs, 0), end
