"""What a cell is: parameters, ordered named states, and one equation for a step, written once over `xp`."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.component import Component
from rnnbench.initialize import Zeros
from rnnbench.xp import Arrays, Ops

Init = Callable[[np.random.Generator, tuple[int, ...]], NDArray]

ZEROS = Zeros()

Hidden = Annotated[int, Field(ge=1, le=65536, description="hidden units H")]


@dataclass(frozen=True)
class Param:
    """A trainable array: its shape, how it starts, and whether theory says that its gradient is zero.

    Attributes:
        shape: as `step` expects it.
        init: draws the starting value in float64 from the parameter's own stream.
        zero_gradient: the reason why the gradient is exactly zero in theory (such a parameter is compared against the
            scale of the others, not against itself); None for an ordinary one.
        recurrent: the names of the square blocks, stacked along the first axis, by which a state acts on itself one
            step later; empty for a parameter that is no recurrent weight.
    """

    shape: tuple[int, ...]
    init: Init = ZEROS
    zero_gradient: str | None = None
    recurrent: tuple[str, ...] = ()


@dataclass(frozen=True)
class State:
    """One named part of what a cell carries from step to step, [batch size].

    Attributes:
        name: as in the equations: h, c.
        size: its width.
        output: whether this is the state that layers above and the readout see; exactly one of a cell's is.
    """

    name: str
    size: int
    output: bool = False


@dataclass(frozen=True)
class Tap:
    """A quantity inside a step that can be watched, and to which a probe can add: a gate, a unit, a state on its way.

    Attributes:
        name: as in the equations: i, f, o; for a state that the same step goes on to use, the state's name.
        low, high: the ends of its range, where it is flat; None for a quantity without such ends.
        keeps: the state of which this gate says what part is kept from step to step, as a forget gate does.
        inner: whether it is a state that later states of the same step are computed from (an LSTM's c, of which h is):
            the derivative by the tap then follows both ways, the derivative by the state that is handed on only one.
    """

    name: str
    low: float | None = None
    high: float | None = None
    keeps: str | None = None
    inner: bool = False


@dataclass(frozen=True)
class Buffer:
    """An array that is carried over training steps but not trained, e.g. running statistics."""

    shape: tuple[int, ...]
    init: Init = ZEROS


@dataclass
class Context:
    """What a step may know beside its inputs.

    Attributes:
        t: index of the step, 0-based.
        valid: [batch 1] whether each sequence has not ended yet; None where none ends early.
        training: False during evaluation.
        buffers: the cell's buffers.
        emitted: what `emit` was given at this step; stacked over time, it reaches `Cell.updated_buffers`.
        added: [batch size] by tap name, added to what is tapped; a probe's way to the derivative by it.
        watching: whether what is tapped is to be kept.
        tapped: what was kept.
    """

    t: Array
    valid: Array | None
    training: bool
    buffers: Mapping[str, Array] = field(default_factory=dict)
    emitted: Arrays = field(default_factory=dict)
    added: Mapping[str, Array] = field(default_factory=dict)
    watching: bool = False
    tapped: Arrays = field(default_factory=dict)

    def emit(self, name: str, value: Array) -> None:
        """Hand a quantity of this step out of the time loop, e.g. a batch's mean."""
        self.emitted[name] = value

    def tap(self, name: str, value: Array) -> Array:
        """Let a probe see a quantity of this step, and add to it; return it, which is what the step must go on with.

        Where nobody probes, that is the value itself, and nothing is computed.
        """
        if name in self.added:
            value = value + self.added[name]
        if self.watching:
            self.tapped[name] = value
        return value


class Cell(Component):
    """Base of all cells. `step` computes one time step; `project` what of it can be done for all steps at once."""

    hidden: Hidden = 128

    @abstractmethod
    def parameters(self, n_in: int) -> dict[str, Param]:
        """Declare the parameters for inputs of width `n_in`."""

    @abstractmethod
    def states(self) -> tuple[State, ...]:
        """Declare the states, in the order that the equations update them."""

    def taps(self) -> tuple[Tap, ...]:
        """Declare what `step` gives to `context.tap`."""
        return ()

    def buffers(self, n_in: int, length: int) -> dict[str, Buffer]:
        """Declare the buffers for sequences of `length` steps."""
        return {}

    def prepare(self, xp: Ops, params: Mapping[str, Array]) -> Mapping[str, Array]:
        """Compute what a whole sequence shares from the parameters, e.g. a matrix exponential."""
        return params

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        """Map inputs x [... n_in] to what `step` receives as `u` [... k]: the part that does not depend on states."""
        return x

    @abstractmethod
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        """Compute the states at t [batch size] from those at t-1 and u [batch k]."""

    def updated_buffers(self, xp: Ops, buffers: Mapping[str, Array], emitted: Mapping[str, Array]) -> Arrays:
        """Return the buffers after a training batch; `emitted` holds each emitted quantity [time ...]."""
        return dict(buffers)

    @property
    def output(self) -> State:
        """The state that layers above see."""
        return next(state for state in self.states() if state.output)
