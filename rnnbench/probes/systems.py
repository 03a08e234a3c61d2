"""A network as driven dynamical systems: the whole state, its step, and the step's Jacobian.

A network that only reads forward is one system, named ``network``: the step of the whole stack, S_{t-1} -> S_t, in
which a layer reads the layer below at the same t. Where layers also read backwards there is no such step, and each
scope is a system of its own, driven by the recorded outputs of the layer below. A system's time is the order in which
it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from rnnbench.arrays import Array
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.network import Network, Scope, advance, valid_steps, within
from rnnbench.xp import Arrays, Differentiable

NETWORK = "network"
"""The name of the system that a whole stack makes."""

CHUNK = 4 * 2**20
"""Bytes of Jacobians at a time: enough to fill the products, few enough to stay near the caches."""


@dataclass(frozen=True)
class Part:
    """One named state's place in a system's state.

    Attributes:
        name: full name, e.g. ``layers.0.forward.h``.
        low, high: its entries are ``low:high``.
    """

    name: str
    low: int
    high: int


@dataclass(frozen=True)
class System:
    """A recurrence whose whole state is known: all scopes of a network, or one.

    Attributes:
        network: the network that it is of.
        name: ``network``, or the scope's.
        scopes: from the inputs up.
    """

    network: Network
    name: str
    scopes: tuple[Scope, ...]

    @property
    def cell(self) -> Cell:
        """The equation."""
        return self.network.cell

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The named states, in the order in which they make up the whole one."""
        found, low = [], 0
        for scope in self.scopes:
            for state in self.cell.states():
                found.append(Part(f"{scope.name}.{state.name}", low, low + state.size))
                low += state.size
        return tuple(found)

    @property
    def size(self) -> int:
        """Entries n of the whole state."""
        return self.parts[-1].high

    @property
    def reverse(self) -> bool:
        """Whether it reads the sequence from its end."""
        return self.scopes[0].reverse


def systems(network: Network) -> list[System]:
    """Return the systems of a network: one, or one for each scope where layers also read backwards."""
    scopes = tuple(network.scopes())
    if network.spec.bidirectional:
        return [System(network, scope.name, (scope,)) for scope in scopes]
    return [System(network, NETWORK, scopes)]


@dataclass(frozen=True)
class Dynamics:
    """A system with its parameters, in evaluation mode: its step from any state.

    A *row* is one step of one sequence; the arrays that describe rows are called

    - ``before`` [... n]: the whole state before the step;
    - ``u`` [... k]: what `Cell.project` makes of the inputs of the lowest scope;
    - ``time`` [...]: the index t of the step in the sequence, which a cell finds as `Context.t` [rows];
    - ``valid`` [... 1]: whether the sequence has not ended; only in a masked network. Where it has, the step holds.

    Attributes:
        xp: the operations.
        system: the system.
        params, buffers: by full name.
    """

    xp: Differentiable
    system: System
    params: Mapping[str, Array]
    buffers: Mapping[str, Array]

    @cached_property
    def _prepared(self) -> list[Mapping[str, Array]]:
        cell = self.system.cell
        return [cell.prepare(self.xp, within(self.params, scope.name)) for scope in self.system.scopes]

    def course(self, inputs: Array, lengths: Array) -> Arrays:
        """Run the network over sequences, and return the system's rows in its order of reading.

        Args:
            inputs: [time batch n_in].
            lengths: [batch].

        Returns:
            Rows [time batch ...].
        """
        xp, system, network = self.xp, self.system, self.system.network
        length, batch = network.length, int(inputs.shape[1])
        states: Arrays = network.forward(
            xp, self.params, self.buffers, inputs, lengths, training=False, record=True
        ).states

        def along(x: Array) -> Array:  # in the order of reading
            return xp.flip(x, 0) if system.reverse else x

        parts = []
        for scope in system.scopes:
            start = network.start(xp, within(self.params, scope.name), batch)
            for state in system.cell.states():
                after = along(states[f"{scope.name}.{state.name}"])
                parts.append(xp.concat([start[state.name][None], after[:-1]], axis=0))
        time = xp.broadcast_to(xp.asarray(list(range(length)))[:, None], (length, batch))
        below = along(self._below(inputs, states))
        rows: Arrays = {
            "before": xp.concat(parts, axis=-1),
            "u": system.cell.project(xp, self._prepared[0], below),
            "time": along(time),
        }
        if network.masked:
            rows["valid"] = along(valid_steps(xp, length, lengths))
        return rows

    def _below(self, inputs: Array, states: Mapping[str, Array]) -> Array:
        """Return what the lowest scope reads [time batch n_in]."""
        layer = int(self.system.scopes[0].name.split(".")[1])
        if layer == 0:
            return inputs
        output = self.system.cell.output.name
        lower = [s for s in self.system.network.scopes() if s.name.startswith(f"layers.{layer - 1}.")]
        return self.xp.concat([states[f"{scope.name}.{output}"] for scope in lower], axis=-1)

    def step(self, before: Array, row: Mapping[str, Array]) -> Array:
        """Return the whole states [rows n] after one step from those before [rows n].

        Args:
            before: [rows n].
            row: ``u`` [rows k], ``time`` [rows], ``valid`` [rows 1] where there is one.
        """
        after = self._parts_after(self._parts_of(before), row)
        return _joined(self.xp, [after[part.name] for part in self.system.parts], axis=-1)

    def _parts_of(self, whole: Array) -> Arrays:
        return {part.name: whole[..., part.low : part.high] for part in self.system.parts}

    def _parts_after(self, before: Arrays, row: Mapping[str, Array]) -> Arrays:
        """Take a step from named states [rows size] to named states."""
        xp, system = self.xp, self.system
        after: Arrays = {}
        new: Arrays = {}
        u = row["u"]
        for number, (scope, prepared) in enumerate(zip(system.scopes, self._prepared, strict=True)):
            if number:  # the output of the layer below, of this same step
                u = system.cell.project(xp, prepared, new[system.cell.output.name])
            context = Context(row["time"], row.get("valid"), False, within(self.buffers, scope.name))
            new = advance(xp, system.cell, prepared, within(before, scope.name), {"u": u}, context)
            after |= {f"{scope.name}.{name}": value for name, value in new.items()}
        return after

    def jacobians(self, rows: Mapping[str, Array]) -> Array:
        """Return the exact Jacobians dS_t/dS_{t-1} of rows [time batch ...]: [time batch n n]."""
        xp, system = self.xp, self.system
        lead = tuple(int(size) for size in rows["before"].shape[:2])
        count = lead[0] * lead[1]
        flat = {name: xp.reshape(x, (count, *x.shape[2:])) for name, x in rows.items()}

        def after(primals: Arrays) -> Arrays:
            return self._parts_after(primals, flat)

        _, pullback = xp.vjp(after, self._parts_of(flat["before"]))
        rows_of_blocks = []  # by named states, so that what one of them does not depend on costs nothing
        for part in system.parts:
            size = part.high - part.low
            seeds = xp.broadcast_to(xp.asarray(np.eye(size))[:, None, :], (size, count, size))
            found = pullback({part.name: seeds}, many=True)  # [out rows in]
            blocks = []
            for each in system.parts:
                width = each.high - each.low
                turned = xp.transpose(xp.reshape(found[each.name], (size, count * width)))  # [rows*in out]
                blocks.append(xp.transpose(xp.reshape(turned, (*lead, width, size))))
            rows_of_blocks.append(_joined(xp, blocks, axis=-1))
        return _joined(xp, rows_of_blocks, axis=-2)

    def forward(self, row: Mapping[str, Array], tangents: Array) -> Array:
        """Return J V [many batch n] at one row [batch ...] for tangents V [many batch n]."""

        def after(primals: Arrays) -> Arrays:
            return {"after": self.step(primals["before"], row)}

        return self.xp.jvps(after, {"before": row["before"]}, {"before": tangents})["after"]

    def backward(self, row: Mapping[str, Array], cotangents: Array) -> Array:
        """Return J^T V [many batch n] at one row [batch ...] for cotangents V [many batch n]."""

        def after(primals: Arrays) -> Arrays:
            return {"after": self.step(primals["before"], row)}

        _, pullback = self.xp.vjp(after, {"before": row["before"]})
        return pullback({"after": cotangents}, many=True)["before"]


def chunk_steps(system: System, batch: int, chunks: int = 1) -> int:
    """Return how many steps' Jacobians of a batch make up so many chunks: a power of two, at least one."""
    steps = max(1, chunks * CHUNK // (8 * system.size**2 * batch))
    return 1 << (steps.bit_length() - 1)


def _joined(xp: Differentiable, arrays: Sequence[Array], axis: int) -> Array:
    return arrays[0] if len(arrays) == 1 else xp.concat(arrays, axis=axis)
