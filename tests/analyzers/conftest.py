"""Synthetic evidence with a planted truth, put together in one line a signal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from rnnbench.evidence import Evidence, Observed
from rnnbench.probes.kinds import KINDS
from rnnbench.signals import Signal, Signals

STATE = "layers.0.forward.h"


def record(name: str, values: Any, step: int = 1000) -> Signal:
    """Make a signal with the axes and the unit that the catalogue gives its kind."""
    kind = KINDS[name.partition("/")[0]]
    array = np.asarray(values, dtype=np.float64)
    assert array.ndim == len(kind.axes), f"{name} has axes {kind.axes}"
    return Signal(name, kind.axes, kind.unit, step, array)


def falling(
    rate: float, length: int = 101, batch: int = 4, noise: float = 0.0, seed: int = 0, backward: bool = False
) -> np.ndarray[Any, Any]:
    """Return log-norms [time batch] that change by `rate` for each step of lag from the last step."""
    steps = rate + noise * np.random.default_rng(seed).standard_normal((length - 1, batch))
    by_lag = np.concatenate([np.zeros((1, batch)), np.cumsum(steps, axis=0)])
    return by_lag if backward else by_lag[::-1]


def observe(signals: Sequence[Signal] = (), seed: int = 0, **fields: Any) -> Observed:
    known = {"digest": f"{seed:064x}", "status": "completed", "steps": 1000, "seed": seed}
    return Observed(signals=Signals(signals), **known | fields)


def evidence(runs: Sequence[Observed], **fields: Any) -> Evidence:
    known: Mapping[str, Any] = {"subject": "adding rnn · torch", "task": "adding", "length": 101, "lag": 100}
    return Evidence(runs=tuple(runs), **known | fields)


class Build:
    """The functions of this file, for tests, which cannot import it."""

    record = staticmethod(record)
    falling = staticmethod(falling)
    observe = staticmethod(observe)
    evidence = staticmethod(evidence)
    state = STATE

    @staticmethod
    def seeds(n: int, signals: Callable[[int], Sequence[Signal]], **fields: Any) -> list[Observed]:
        """Make n runs, each with the signals of its seed."""
        return [observe(signals(seed), seed, **fields) for seed in range(n)]


@pytest.fixture
def build() -> type[Build]:
    return Build
