"""What a probe is: it looks at a model that stands still, and returns signals."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Program
from rnnbench.component import Component
from rnnbench.probes.kinds import KINDS
from rnnbench.signals import Signal, SignalKind
from rnnbench.tasks.base import Batch, Source
from rnnbench.xp import Arrays, Lab


@dataclass(frozen=True)
class Look:
    """A model at rest, and all that a probe may ask of it.

    Attributes:
        program: task, network and techniques.
        params, buffers: the model's arrays by full name, in the dtype that the run keeps them in.
        batch: the sequences to probe with, in float64.
        source: the task's batches; a training batch is the run's own.
        lab: where to compute: the run's backend, in float64 where the device has it.
        own: the same in the run's own precision.
        step: training steps done.
        seed: the run's seed; a probe that draws draws from it.
        key: stands for the program in what is kept compiled.
    """

    program: Program
    params: Mapping[str, NDArray]
    buffers: Mapping[str, NDArray]
    batch: Batch
    source: Source
    lab: Lab
    own: Lab
    step: int
    seed: int
    key: Hashable

    def seed_model(self) -> None:
        """Make a user's model that draws, as for dropout, draw the same whenever it is looked at in this step."""
        before = getattr(self.program.network, "before_step", None)
        if before is not None:
            before(self.step)

    def arrays(self, batch: Batch | None = None) -> dict[str, NDArray]:
        """Return parameters, buffers and a batch under ``params/``, ``buffers/`` and ``batch/``, for a lab."""
        named = {"params": self.params, "buffers": self.buffers, "batch": (batch or self.batch).arrays()}
        return {f"{kind}/{name}": array for kind, arrays in named.items() for name, array in arrays.items()}


class Probe(Component):
    """Base of all probes."""

    signals: ClassVar[tuple[SignalKind, ...]]
    """What it records."""

    in_training: ClassVar[bool] = False
    """Whether it follows training itself, step by step, and has nothing to say of a model at rest."""

    wanted: ClassVar[tuple[str, ...]] = ()
    """Kinds that every look of it records by default and that analyzers read: where a run has recorded a part of them
    only, the probe is run on demand. Empty where any one signal of it stands for all."""

    needs_cell: ClassVar[bool] = True
    """Whether it looks inside a cell, and so has nothing to say of a user's whole model."""

    @abstractmethod
    def measure(self, look: Look) -> Iterator[Signal]:
        """Compute the signals of one look."""


def recorded(kind: str, values: NDArray, step: int, of: str = "") -> Signal:
    """Make a signal of one of the catalogue's kinds.

    Raises:
        ValueError: when the array has not the kind's axes.
    """
    declared = KINDS[kind]
    array = np.asarray(values)
    if array.ndim != len(declared.axes):
        raise ValueError(f"signal {kind} has axes {declared.axes}, not {array.ndim} of them")
    return Signal(f"{kind}/{of}" if of else kind, declared.axes, declared.unit, step, array)


def unpacked(arrays: Mapping[str, Array]) -> tuple[Arrays, Arrays, Arrays]:
    """Undo `Look.arrays`: parameters, buffers, batch."""
    kinds: dict[str, Arrays] = {"params": {}, "buffers": {}, "batch": {}}
    for full, array in arrays.items():
        kind, slash, name = full.partition("/")
        if slash and kind in kinds:
            kinds[kind][name] = array
    return kinds["params"], kinds["buffers"], kinds["batch"]
