"""The adjoint at some points in time, for little more than a training step, also through fused layers."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.backends.base import Program
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import POINTS
from rnnbench.signals import Signal, SignalKind
from rnnbench.xp import Arrays, Differentiable


class Points(Probe):
    """Total derivatives of the loss by every state at a few steps, in the run's own precision and on its own path.

    A fused layer gives its states at its end only: it is run in pieces that end at the points, and what is added there,
    to the state that is handed on and to the piece's last output alike, has the total derivative for its gradient.
    Either of the two alone would miss a part.
    """

    name: ClassVar[str] = "points"
    source: ClassVar[str] = "Werbos, Backpropagation through time, Proceedings of the IEEE 1990"
    signals: ClassVar[tuple[SignalKind, ...]] = POINTS

    points: Annotated[int, Field(ge=1, le=65536)] = Field(8, description="points in time, the last step among them")
    sequences: Annotated[int, Field(ge=1, le=4096)] = Field(16, description="sequences to probe with")

    def measure(self, look: Look) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        cuts = cuts_of(int(batch.inputs.shape[0]), self.points)
        yield recorded("points.at", np.asarray(cuts), look.step)
        function = partial(_at_points, look.program, cuts, look.own.kernel)
        for of, values in look.own.compute(("points", look.key, cuts), function, look.arrays(batch)).items():
            yield recorded("points.log_norm", values, look.step, of)


def cuts_of(length: int, points: int) -> tuple[int, ...]:
    """Return at most `points` steps, spread evenly, the last of a sequence of `length` among them."""
    return tuple(int(t) for t in np.unique(np.linspace(0, length - 1, points + 1).round()))[-points:]


def _at_points(program: Program, cuts: tuple[int, ...], kernel: object, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return log-norms [point batch] by state."""
    params, buffers, batch = unpacked(arrays)
    shapes = program.network.state_shapes(int(batch["inputs"].shape[1]))

    def loss(inject: Arrays) -> Arrays:
        found, _ = program.loss(xp, params, buffers, batch, inject=inject, cuts=cuts, kernel=kernel)
        return {"loss": found}

    _, pullback = xp.vjp(loss, {name: xp.zeros((len(cuts), *shape[1:])) for name, shape in shapes.items()})
    return {name: xp.log(xp.norm(g, axis=-1)) for name, g in pullback({"loss": xp.ones(())}).items()}
