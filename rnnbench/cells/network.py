"""From cells to a network: layers, directions, initial states and the readout, once over `xp`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
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
        taps: what the cells tap at every step by full name, e.g. ``layers.0.forward.f``; only on request.
        buffers: the buffers after this batch.
    """

    outputs: Array
    states: Arrays = field(default_factory=dict)
    buffers: Arrays = field(default_factory=dict)
    taps: Arrays = field(default_factory=dict)


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
        watch: bool = False,
        inject: Mapping[str, Array] | None = None,
        cuts: Sequence[int] | None = None,
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
            watch: also return what the cells tap.
            inject: [time batch size] by full state name, added to that state after each step: the gradient by it (at
                zero) is the total derivative of the loss by the state, the step's other states held.
            cuts: ascending steps t; the layers are then run in pieces that end at these, and `inject` is
                [cut batch size], for these steps alone.
            kernel: a fused layer to try first, for whole layers or pieces; it is not used where states are recorded,
                tapped, masked, or injected at every step.
        """
        valid = valid_steps(xp, self.length, lengths) if self.masked else None
        plain = not (record or watch or self.masked or (inject and cuts is None))
        states: Arrays = {}
        taps: Arrays = {}
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
                local = within(params, scope.name)
                start = self.start(xp, local, inputs.shape[1])
                context = Context(0, None, training, within(buffers, scope.name), watching=watch)
                ways = _Ways(xp, self.cell, local, context, scope.reverse, kernel if plain else None, record, whole)
                inject_here = within(inject or {}, scope.name)
                end, ys = ways.run(below, start, valid, inject_here, cuts)
                if record:
                    states |= {f"{scope.name}.{name}": ys[name] for name in start}
                if watch:
                    taps |= {f"{scope.name}.{name}": value for name, value in within(ys, "tap").items()}
                emitted = within(ys, "emit")
                if training and emitted:
                    updated = self.cell.updated_buffers(xp, context.buffers, emitted)
                    new_buffers |= {f"{scope.name}.{name}": value for name, value in updated.items()}
                tops.append(ys.get(self.cell.output.name))
                ends.append(end[self.cell.output.name])
            if whole:
                below = tops[0] if len(tops) == 1 else xp.concat(tops, axis=-1)
        if self.read_last:
            below = ends[0] if len(ends) == 1 else xp.concat(ends, axis=-1)
        return Forward(self.read(xp, params, below), states, new_buffers, taps)

    def read(self, xp: Ops, params: Mapping[str, Array], top: Array) -> Array:
        """Map the last layer's outputs [(time) batch directions*H] to the network's [(time) batch n_out]."""
        return xp.linear(top, params["readout.weight"], params["readout.bias"])

    def start(self, xp: Ops, local: Mapping[str, Array], batch: int) -> Arrays:
        """Return the initial states [batch size]: zeros, or the learned ones."""
        return {
            state.name: xp.broadcast_to(local[f"initial.{state.name}"], (batch, state.size))
            if self.spec.learned_state
            else xp.zeros((batch, state.size))
            for state in self.cell.states()
        }


def advance(
    xp: Ops, cell: Cell, prepared: Mapping[str, Array], states: Arrays, x: Mapping[str, Array], context: Context
) -> Arrays:
    """Take one step of a recurrence: the cell's equation, and what surrounds it.

    Args:
        xp: the operations.
        cell: the equation.
        prepared: what `Cell.prepare` gave.
        states: before the step [batch size].
        x: of this step: ``u`` [batch k], what `Cell.project` gave; ``t``; ``valid`` [batch 1] where sequences end
            early; ``inject.<state>`` [batch size], added after the step.
        context: of this step; receives what is emitted and tapped.

    Returns:
        The states after the step; those of a sequence that has ended are held.
    """
    new = cell.step(xp, prepared, states, x["u"], context)
    if context.valid is not None:
        new = {name: xp.where(context.valid, value, states[name]) for name, value in new.items()}
    return {name: new[name] + x[f"inject.{name}"] if f"inject.{name}" in x else new[name] for name in new}


@dataclass(frozen=True)
class _Ways:
    """The ways to run one recurrence: a fused layer, or the equation step by step; whole, or in pieces."""

    xp: Ops
    cell: Cell
    params: Mapping[str, Array]
    context: Context
    reverse: bool
    kernel: Kernel | None
    record: bool
    whole: bool

    def run(
        self,
        inputs: Array,
        start: Arrays,
        valid: Array | None,
        inject: Mapping[str, Array],
        cuts: Sequence[int] | None,
    ) -> tuple[Arrays, Arrays]:
        """Return (last states, the output and whatever else was asked for at every step)."""
        if cuts is None:
            return self._piece(inputs, start, valid, inject)
        length = int(inputs.shape[0])
        bounds = _pieces(length, cuts, self.reverse)
        states, collected = start, []
        for first, after, cut in bounds:
            piece_valid = None if valid is None else valid[first:after]
            states, ys = self._piece(inputs[first:after], states, piece_valid, {}, first)
            if cut is not None and inject:
                states = {name: states[name] + inject[name][cut] for name in states}
                if self.cell.output.name in ys:
                    ys = ys | {self.cell.output.name: self._ending(ys[self.cell.output.name], states)}
            collected.append(ys)
        if self.reverse:
            collected.reverse()
        return states, {name: self.xp.concat([ys[name] for ys in collected], axis=0) for name in collected[0]}

    def _ending(self, outputs: Array, states: Arrays) -> Array:
        """Put the state that was added to in the place of the piece's last output."""
        last = states[self.cell.output.name][None]
        parts = [last, outputs[1:]] if self.reverse else [outputs[:-1], last]
        return self.xp.concat(parts, axis=0)

    def _piece(
        self, inputs: Array, start: Arrays, valid: Array | None, inject: Mapping[str, Array], first: int = 0
    ) -> tuple[Arrays, Arrays]:
        if self.kernel is not None:
            fused = _fused(self.xp, self.kernel, self.cell, self.params, inputs, start, self.reverse)
            if fused is not None:
                return fused[1], {self.cell.output.name: fused[0]}
        return recur(
            self.xp,
            self.cell,
            self.params,
            inputs,
            start,
            valid,
            self.context,
            self.reverse,
            inject,
            self.record,
            self.whole,
            first,
        )


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
    first: int = 0,
    added: Mapping[str, Array] | None = None,
) -> tuple[Arrays, Arrays]:
    """Run one recurrence, or a piece of one, by its equation.

    Args:
        xp: the operations.
        cell: the equation.
        params: the cell's parameters by its own names.
        inputs: [time batch n_in].
        start: the states before the first step [batch size].
        valid: [time batch 1] whether a step is not padding; None when no sequence is padded.
        context: training, buffers and whether taps are watched; t and valid are filled in at each step.
        reverse: read from the end.
        inject: [time batch size] by state name, added after each step.
        record: return every state at every step, not the output alone.
        whole: return the output at every step.
        first: index of the first of these steps in the whole sequence.
        added: [time batch size] by tap name, added inside each step.

    Returns:
        (last states, arrays over time by name: states, ``emit.<name>`` and ``tap.<name>``).
    """
    prepared = cell.prepare(xp, params)
    kept = [state.name for state in cell.states() if record or (whole and state.output)]
    xs: Arrays = {"u": cell.project(xp, prepared, inputs)}
    if valid is not None:
        xs["valid"] = valid
    xs |= {f"inject.{name}": value for name, value in inject.items()}
    xs |= {f"added.{name}": value for name, value in (added or {}).items()}
    taps = list(added or {})

    def body(states: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        here = Context(
            x["t"] + first,
            x.get("valid"),
            context.training,
            context.buffers,
            added={name: x[f"added.{name}"] for name in taps},
            watching=context.watching,
        )
        new = advance(xp, cell, prepared, states, x, here)
        ys = {name: new[name] for name in kept}
        ys |= {f"emit.{name}": value for name, value in here.emitted.items()}
        return new, ys | {f"tap.{name}": value for name, value in here.tapped.items()}

    return xp.scan(body, start, xs, inputs.shape[0], reverse)


def _pieces(length: int, cuts: Sequence[int], reverse: bool) -> list[tuple[int, int, int | None]]:
    """Return (first step, step after the last, index of the cut that ends it) in the order of reading.

    A piece ends with the step at its cut; reading backwards, it begins with the lower index and ends there.
    """
    found: list[tuple[int, int, int | None]] = []
    if reverse:
        bounds = [*cuts, length]
        found = [(bounds[i], bounds[i + 1], i) for i in reversed(range(len(cuts)))]
        return [*found, (0, cuts[0], None)] if cuts[0] > 0 else found
    ends = [0, *(cut + 1 for cut in cuts)]
    found = [(ends[i], ends[i + 1], i) for i in range(len(cuts))]
    return [*found, (ends[-1], length, None)] if ends[-1] < length else found


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


def within(named: Mapping[str, Array], scope: str) -> dict[str, Array]:
    """Return the entries whose full names lie in `scope`, by the rest of their names."""
    prefix = scope + "."
    return {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}


def valid_steps(xp: Ops, length: int, lengths: Array) -> Array:
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
