"""Signals: named arrays that probes record while a model runs, and the catalogue of what each one means.

A probe measures and never judges; what is recorded here is all that an analyzer gets to see. Logarithms are natural.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rnnbench.arrays import NDArray


@dataclass(frozen=True)
class SignalKind:
    """What a family of signals means.

    Attributes:
        name: e.g. ``adjoint.log_norm``; the probe's name comes first.
        axes: the name of each axis, e.g. ``("time", "batch")``.
        unit: of the values, empty for a pure number; ``ln`` for a natural logarithm.
        meaning: one sentence.
        cost: what it takes beside one training step of the same batch, in steps of the same precision.
        of: what is named after the slash of a full name: state, parameter, system, tap; empty for nothing.
    """

    name: str
    axes: tuple[str, ...]
    unit: str
    meaning: str
    cost: str
    of: str = ""


@dataclass(frozen=True)
class Signal:
    """A named array that was recorded at one training step.

    Attributes:
        name: its kind and, after a slash, what it is of: ``adjoint.log_norm/layers.0.forward.h``.
        axes: the name of each axis of `values`, e.g. ``("time", "batch")``.
        unit: of the values, empty for a pure number.
        step: training steps done when it was recorded.
        values: the array.
    """

    name: str
    axes: tuple[str, ...]
    unit: str
    step: int
    values: NDArray

    @property
    def kind(self) -> str:
        """The name without what it is of."""
        return self.name.partition("/")[0]

    @property
    def of(self) -> str:
        """What it is of; empty for what is of the whole model."""
        return self.name.partition("/")[2]


class Signals:
    """The signals of one run, to ask by kind, by what they are of, and by training step."""

    def __init__(self, recorded: Iterable[Signal] = ()) -> None:
        self._recorded = tuple(recorded)

    def __iter__(self) -> Iterator[Signal]:
        return iter(self._recorded)

    def __len__(self) -> int:
        return len(self._recorded)

    @cached_property
    def _by_kind(self) -> dict[str, list[Signal]]:
        found: dict[str, list[Signal]] = {}
        for signal in self._recorded:
            found.setdefault(signal.kind, []).append(signal)
        return found

    def kinds(self) -> list[str]:
        """Return the kinds that were recorded, sorted."""
        return sorted(self._by_kind)

    def find(self, kind: str, of: str | None = None, step: int | None = None) -> list[Signal]:
        """Return the signals of a kind in the order of recording, of one thing and one step only where given."""
        return [
            signal
            for signal in self._by_kind.get(kind, [])
            if (of is None or signal.of == of) and (step is None or signal.step == step)
        ]

    def steps(self, kind: str) -> list[int]:
        """Return the training steps at which a kind was recorded, ascending."""
        return sorted({signal.step for signal in self._by_kind.get(kind, [])})

    def things(self, kind: str) -> list[str]:
        """Return what the signals of a kind are of, in the order of recording."""
        return list(dict.fromkeys(signal.of for signal in self._by_kind.get(kind, [])))

    def one(self, kind: str, of: str = "", step: int | None = None) -> Signal | None:
        """Return the signal of a kind, a thing and a step (the last recorded where not given), or None."""
        found = self.find(kind, of, step)
        return max(found, key=lambda signal: signal.step) if found else None


def coordinates(signals: Signals, kind: str, step: int | None = None) -> Sequence[float] | None:
    """Return the values along an axis that a signal of its own holds, e.g. ``propagator.lags``."""
    found = signals.one(kind, step=step)
    return None if found is None else [float(value) for value in found.values]
