"""Backpropagation through time replayed in segments, each renormalized, so that no decay leaves a float's range.

The forward pass is run once and its states are kept. Then segment after segment, from the end of the sequence, is run
again and differentiated: the cotangent that enters a segment is a vector of norm one and the logarithm of its scale,
for each sequence by itself. Within a segment plain numbers are used, so that a decay of a factor 1e-300 over one
segment is still seen; what falls below even that is exactly zero here, and its logarithm -inf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from rnnbench.arrays import Array
from rnnbench.backends.base import Program
from rnnbench.cells.base import Context
from rnnbench.cells.network import Network, Scope, advance, valid_steps, within
from rnnbench.objectives import loss_terms
from rnnbench.probes.base import unpacked
from rnnbench.xp import Arrays, Differentiable, Ops

SEGMENT = 8
"""Time steps in a segment: few enough that a float64 holds a decay of 1e-38 a step, many enough to cost little."""

NOTHING = -1e30
"""Stands for the logarithm of zero where minus infinity would make differences that are not numbers."""


@dataclass(frozen=True)
class Scaled:
    """Vectors kept apart from their scale: the numbers meant are ``values * exp(log_scale)``.

    Attributes:
        values: [time many batch size].
        log_scale: [time many batch].
    """

    values: Array
    log_scale: Array

    def log_norm(self, xp: Ops) -> Array:
        """Return ln of each vector's norm [time many batch]; -inf for zero."""
        return log_norm(xp, self.values, self.log_scale)


@dataclass(frozen=True)
class Replayed:
    """What a replay found; `many` counts the cotangents that were followed side by side.

    Attributes:
        emitted: what `emit` returned, by scope, stacked along a leading time axis in the order of t.
        inputs: the cotangent of the network's inputs [time many batch n_in].
    """

    emitted: dict[str, Arrays]
    inputs: Scaled

    def everything(self) -> Arrays:
        """Return what was emitted of all scopes together, where the names tell them apart."""
        return {name: value for arrays in self.emitted.values() for name, value in arrays.items()}


@dataclass(frozen=True)
class Gradients:
    """The cotangents of one segment, [time many batch ...], all in units of exp(log_scale).

    Attributes:
        states: by state name, the step's other states held.
        inner: by tap name, followed both ways.
        below: of the layer's inputs.
        params: by parameter name [time many ...shape], summed over the batch; only where asked for.
        log_scale: [many batch], or [many 1] where the batch shares one.
    """

    states: Arrays
    inner: Arrays
    below: Array
    params: Arrays
    log_scale: Array


Emit = Callable[[Ops, Scope, Gradients], Arrays]
"""What to keep of a segment's cotangents: arrays with a leading time axis."""


@dataclass(frozen=True)
class Replay:
    """Follows cotangents of a network's top back through layers and time.

    Attributes:
        xp: the operations.
        network: the network.
        params, buffers: by full name.
        inputs: [time batch n_in].
        lengths: [batch].
        states: of the forward pass, every state at every step by full name.
        training: as the forward pass.
        segment: time steps in a segment.
        by_step: also give the gradient of every parameter's use at each single step; the batch then shares one scale.
    """

    xp: Differentiable
    network: Network
    params: Mapping[str, Array]
    buffers: Mapping[str, Array]
    inputs: Array
    lengths: Array
    states: Mapping[str, Array]
    training: bool = True
    segment: int = SEGMENT
    by_step: bool = False

    def top(self) -> Array:
        """Return what the readout reads: [time batch width], or the ends [batch width] where only those are read."""
        parts = []
        for scope in self._layer(self.network.spec.layers - 1):
            outputs = self.states[f"{scope.name}.{self.network.cell.output.name}"]
            parts.append((outputs[0] if scope.reverse else outputs[-1]) if self.network.read_last else outputs)
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=-1)

    def run(self, cotangents: Array, emit: Emit) -> Replayed:
        """Follow cotangents of `top` back.

        Args:
            cotangents: [many (time) batch width].
            emit: what to keep of each segment.
        """
        xp, many = self.xp, int(cotangents.shape[0])
        emitted: dict[str, Arrays] = {}
        size = self.network.cell.output.size
        above: Scaled | None = None
        if not self.network.read_last:
            above = _at_scale_one(xp, _time_first(xp, cotangents))
        for layer in reversed(range(self.network.spec.layers)):
            below: list[Scaled] = []
            for number, scope in enumerate(self._layer(layer)):
                own = slice(number * size, (number + 1) * size)
                if above is None:  # the last layer of a network whose end is read
                    found, down = self._scope(scope, many, None, cotangents[..., own], emit)
                else:
                    direct = Scaled(above.values[..., own], above.log_scale)
                    found, down = self._scope(scope, many, direct, None, emit)
                emitted[scope.name] = found
                below.append(down)
            above = below[0] if len(below) == 1 else _sum(xp, *below)
        assert above is not None
        return Replayed(emitted, above)

    def _layer(self, layer: int) -> list[Scope]:
        return [scope for scope in self.network.scopes() if scope.name.startswith(f"layers.{layer}.")]

    def _below(self, scope: Scope) -> Array:
        """Return what a layer reads [time batch n_in]."""
        layer = int(scope.name.split(".")[1])
        if layer == 0:
            return self.inputs
        name = self.network.cell.output.name
        parts = [self.states[f"{lower.name}.{name}"] for lower in self._layer(layer - 1)]
        return parts[0] if len(parts) == 1 else self.xp.concat(parts, axis=-1)

    def _scope(
        self, scope: Scope, many: int, direct: Scaled | None, end: Array | None, emit: Emit
    ) -> tuple[Arrays, Scaled]:
        """Follow one recurrence back from cotangents of its output at every step, or at its end."""
        xp, cell, length = self.xp, self.network.cell, self.network.length
        names = [state.name for state in cell.states()]
        batch = int(self.inputs.shape[1])
        local = within(self.params, scope.name)
        start = self.network.start(xp, local, batch)

        def along(x: Array) -> Array:  # in the order of reading
            return xp.flip(x, 0) if scope.reverse else x

        columns: Arrays = {"below": along(self._below(scope)), "time": along(xp.asarray(list(range(length))))}
        for name in names:
            states = along(self.states[f"{scope.name}.{name}"])
            columns[f"before.{name}"] = xp.concat([start[name][None], states[:-1]], axis=0)
        if self.network.masked:
            columns["valid"] = along(valid_steps(xp, length, self.lengths))
        if direct is not None:
            columns |= {"direct": along(direct.values), "direct_scale": along(direct.log_scale)}

        carry: Arrays = {f"state.{s.name}": xp.zeros((many, batch, s.size)) for s in cell.states()}
        carry["log_scale"] = xp.zeros((many, 1 if self.by_step else batch))
        if end is not None:
            carry[f"state.{cell.output.name}"] = end

        def turn(carry: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
            carry, gradients = self._segment(scope, local, carry, x, many)
            scale = gradients.log_scale
            here = {f"emit.{name}": array for name, array in emit(xp, scope, gradients).items()}
            wide = xp.broadcast_to(scale[None], (int(x["below"].shape[0]), many, batch))
            return carry, here | {"below": gradients.below, "below_scale": wide}

        segment = min(self.segment, length)
        whole, rest = divmod(length, segment)
        cut = {name: xp.reshape(x[rest:], (whole, segment, *x.shape[1:])) for name, x in columns.items()}
        carry, found = xp.scan(turn, carry, cut, whole, reverse=True)
        found = {name: xp.reshape(x, (whole * segment, *x.shape[2:])) for name, x in found.items()}
        if rest:
            _, first = turn(carry, {name: x[:rest] for name, x in columns.items()})
            found = {name: xp.concat([first[name], found[name]], axis=0) for name in found}
        found = {name: along(x) for name, x in found.items()}
        return within(found, "emit"), Scaled(found["below"], found["below_scale"])

    def _segment(
        self, scope: Scope, local: Mapping[str, Array], carry: Arrays, x: Mapping[str, Array], many: int
    ) -> tuple[Arrays, Gradients]:
        """Run one segment again, and take the cotangents that leave its end back to its start."""
        xp, cell = self.xp, self.network.cell
        steps, batch = int(x["below"].shape[0]), int(x["below"].shape[1])
        inner = [tap.name for tap in cell.taps() if tap.inner]
        sizes = {state.name: state.size for state in cell.states()}
        primals: Arrays = {f"start.{name}": x[f"before.{name}"][0] for name in sizes}
        primals |= {f"inject.{name}": xp.zeros((steps, batch, size)) for name, size in sizes.items()}
        primals |= {f"added.{name}": xp.zeros((steps, batch, sizes[name])) for name in inner}
        primals["below"] = x["below"]
        if self.by_step:
            own = {name: value for name, value in local.items() if not name.startswith("initial.")}
            primals |= {f"param.{name}": xp.broadcast_to(p[None], (steps, *p.shape)) for name, p in own.items()}

        def run(primals: Arrays) -> Arrays:
            return self._forward(scope, local, primals, x, steps)

        _, pullback = xp.vjp(run, primals)
        scale = carry["log_scale"]
        cotangents: Arrays = {}
        if "direct" in x:
            peak = -xp.amin(-x["direct_scale"], axis=0)  # [many batch]
            if self.by_step:
                peak = -xp.amin(-peak, axis=1)[:, None]
            above = xp.maximum(scale, peak)
            cotangents["out"] = _many_first(xp, x["direct"] * xp.exp(x["direct_scale"] - above[None])[..., None])
            shrink = xp.exp(scale - above)[..., None]
            scale = above
            cotangents |= {f"end.{name}": carry[f"state.{name}"] * shrink for name in sizes}
        else:
            cotangents |= {f"end.{name}": carry[f"state.{name}"] for name in sizes}
        if many == 1:
            found = pullback({name: value[0] for name, value in cotangents.items()})
            found = {name: value[None] for name, value in found.items()}
        else:
            found = pullback(cotangents, many=True)

        whole = xp.concat([found[f"start.{name}"] for name in sizes], axis=-1)
        norm = xp.norm(whole, axis=-1)  # [many batch]
        if self.by_step:
            norm = -xp.amin(-norm, axis=1)[:, None]
        positive = norm > 0
        divisor = xp.where(positive, norm, xp.ones(norm.shape))
        carried = {f"state.{name}": found[f"start.{name}"] / divisor[..., None] for name in sizes}
        carried["log_scale"] = xp.where(positive, scale + xp.log(divisor), xp.zeros(norm.shape) + NOTHING)

        timed = {name: _time_first(xp, value) for name, value in found.items() if not name.startswith("start.")}
        states = within(timed, "inject")
        held = x.get("valid")
        for name in inner:  # padding goes through no equation: there both derivatives are that of the held state
            if held is not None:
                timed[f"added.{name}"] = xp.where(held[:, None], timed[f"added.{name}"], states[name])
        return carried, Gradients(states, within(timed, "added"), timed["below"], within(timed, "param"), scale)

    def _forward(
        self, scope: Scope, local: Mapping[str, Array], primals: Arrays, x: Mapping[str, Array], steps: int
    ) -> Arrays:
        """Run one segment: from states before it, inputs, and what is added, to its outputs and the states after it."""
        xp, cell = self.xp, self.network.cell
        inner = within(primals, "added")
        own = within(primals, "param")
        buffers = within(self.buffers, scope.name)
        xs: Arrays = {"time": x["time"]} | ({"valid": x["valid"]} if "valid" in x else {})
        xs |= {name: value for name, value in primals.items() if not name.startswith("start.") and name != "below"}
        prepared = cell.prepare(xp, local)
        if own:
            xs["below"] = primals["below"]
        else:
            xs["u"] = cell.project(xp, prepared, primals["below"])

        def body(states: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
            used = prepared
            if own:  # each step has parameters of its own, to be told apart by the derivative
                used = cell.prepare(xp, {**local, **within(x, "param")})
                x = {**x, "u": cell.project(xp, used, x["below"])}
            added = {name: x[f"added.{name}"] for name in inner}
            context = Context(x["time"], x.get("valid"), self.training, buffers, added=added)
            new = advance(xp, cell, used, states, x, context)
            return new, {"out": new[cell.output.name]}

        end, ys = xp.scan(body, within(primals, "start"), xs, steps)
        return {f"end.{name}": value for name, value in end.items()} | {"out": ys["out"]}


def forward_and_replay(
    xp: Differentiable, program: Program, arrays: Mapping[str, Array], segment: int, by_step: bool = False
) -> tuple[Replay, Arrays]:
    """Run the forward pass, and make ready to follow its outputs back; return also the batch by name."""
    params, buffers, batch = unpacked(arrays)
    network: Network = program.network
    forward = network.forward(xp, params, buffers, batch["inputs"], batch["lengths"], training=True, record=True)
    replay = Replay(
        xp, network, params, buffers, batch["inputs"], batch["lengths"], forward.states, True, segment, by_step
    )
    return replay, batch


def loss_cotangents(xp: Differentiable, program: Program, replay: Replay, batch: Arrays, ends: Array | None) -> Array:
    """Return the derivatives by `Replay.top` of the loss, and of its part at the steps `ends` [batch] where given.

    Returns:
        [1 or 2 (time) batch width].
    """
    total = xp.sum(batch["mask"])

    def losses(values: Arrays) -> Arrays:
        outputs = replay.network.read(xp, replay.params, values["top"])
        terms = batch["mask"] * loss_terms(xp, program.task.loss, outputs, batch["targets"])
        found = {"loss": xp.sum(terms) / total}
        if ends is not None:
            steps = xp.asarray(list(range(replay.network.length)))
            chosen = xp.floats(steps[:, None] == ends[None, :])
            found["step"] = xp.sum(terms * chosen) / total
        return found

    _, pullback = xp.vjp(losses, {"top": replay.top()})
    names = ["loss"] if ends is None else ["loss", "step"]
    return xp.stack([pullback({name: xp.ones(())})["top"] for name in names])


def log_norm(xp: Ops, values: Array, log_scale: Array) -> Array:
    """Return ln of the norm over the last axis of ``values * exp(log_scale)``; -inf for zero."""
    return xp.log(xp.norm(values, axis=-1)) + log_scale


def _at_scale_one(xp: Ops, values: Array) -> Scaled:
    """Keep vectors as they are; one that is zero must not hold up the scale of what comes down from later steps."""
    zeros = xp.zeros(values.shape[:-1])
    return Scaled(values, xp.where(xp.norm(values, axis=-1) > 0, zeros, zeros + NOTHING))


def _sum(xp: Ops, first: Scaled, second: Scaled) -> Scaled:
    """Add vectors of different scales, at the larger."""
    scale = xp.maximum(first.log_scale, second.log_scale)
    parts = [each.values * xp.exp(each.log_scale - scale)[..., None] for each in (first, second)]
    return Scaled(parts[0] + parts[1], scale)


def _time_first(xp: Ops, x: Array) -> Array:
    """[many time ...] -> [time many ...]"""
    return xp.stack([x[i] for i in range(int(x.shape[0]))], axis=1)


def _many_first(xp: Ops, x: Array) -> Array:
    """[time many ...] -> [many time ...]"""
    return xp.stack([x[:, i] for i in range(int(x.shape[1]))], axis=0)
