"""The adding task decoded from its inputs, and its baselines against simulation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding

MARKERS = ["halves", "any", "skip_rnn", "hs1997", "pascanu"]
TARGETS: dict[str, Callable[[float], float]] = {
    "sum": lambda s: s,
    "half_sum": lambda s: s / 2,
    "scaled": lambda s: 0.5 + s / 4,
}
BOUNDS = {"unit": (0, 1), "symmetric": (-1, 1), "half": (-0.5, 0.5)}
DEFAULTS = {
    "halves": ("unit", "sum"),
    "any": ("unit", "sum"),
    "skip_rnn": ("half", "sum"),
    "hs1997": ("symmetric", "scaled"),
    "pascanu": ("unit", "half_sum"),
}


def make(**values: Any) -> Adding:
    return Adding.parse(values, "task")


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("target", [None, "sum", "half_sum", "scaled"])
@pytest.mark.parametrize("values", [None, "unit", "symmetric", "half"])
@pytest.mark.parametrize("T", [20, 47])
def test_target_follows_from_the_inputs(markers: str, target: str | None, values: str | None, T: int) -> None:
    task = make(T=T, markers=markers, target=target, values=values)
    batch = task.sample(stream(5, "test"), 60, 1.0)
    low, high = BOUNDS[values or DEFAULTS[markers][0]]
    formula = TARGETS[target or DEFAULTS[markers][1]]
    assert batch.inputs.shape == (task.length, 60, 2)
    assert batch.targets.shape == (60, 1)
    for b in range(60):
        n = int(batch.lengths[b])
        value, marker = batch.inputs[:n, b, 0].tolist(), batch.inputs[:n, b, 1].tolist()
        assert not batch.inputs[n:, b].any()
        assert marker.count(1.0) == 2
        assert set(marker) <= ({-1.0, 0.0, 1.0} if markers == "hs1997" else {0.0, 1.0})
        assert all(low <= v <= high for v in value)
        total = 0.0
        for v, m in zip(value, marker, strict=True):
            if m == 1.0:
                total += v
        assert batch.targets[b, 0] == pytest.approx(formula(total), abs=1e-15)


@pytest.mark.parametrize("T", [20, 40, 101])
@pytest.mark.parametrize("markers", MARKERS)
def test_positions_and_lengths_cover_their_ranges(markers: str, T: int) -> None:
    task = make(T=T, markers=markers)
    n = 6000
    batch = task.sample(stream(6, "test"), n, 1.0)
    pairs = np.array([np.flatnonzero(batch.inputs[:, b, 1] == 1.0) for b in range(n)])
    first, second = pairs[:, 0], pairs[:, 1]
    spans = {
        "halves": ((0, T // 2 - 1), (T // 2, T - 1)),
        "any": ((0, T - 2), (1, T - 1)),
        "skip_rnn": ((0, T // 10 - 1), (T // 2, T - 1)),
        "hs1997": ((0, 9), (1, T // 2 - 1)),
    }
    if markers in spans:
        # A place of the first or the last pair may be missed with probability below 1e-6 at this sample size,
        # except that `any` and 1997's order the two markers, so that the far ends are rarer there.
        low, high = spans[markers]
        assert first.min() == low[0]
        assert first.max() <= low[1]
        assert second.min() >= high[0]
        assert second.max() == high[1]
    else:
        lengths = batch.lengths
        assert np.all(first < lengths // 10)
        assert np.all((second >= lengths // 10) & (second < lengths // 10 + 4 * lengths // 10))
    expected = {"hs1997": (T, T + T // 10), "pascanu": (T, T + T // 10 - 1)}.get(markers, (T, T))
    assert (int(batch.lengths.min()), int(batch.lengths.max())) == expected
    assert task.length == expected[1]
    assert task.variable_length == (expected[0] < expected[1])


def test_any_two_positions_are_equally_likely() -> None:
    task = make(T=4, markers="any")
    batch = task.sample(stream(7, "test"), 6000, 1.0)
    codes = (batch.inputs[:, :, 1] * np.array([1, 2, 4, 8])[:, None]).sum(axis=0).astype(int)
    counts = np.bincount(codes)[[3, 5, 6, 9, 10, 12]]
    assert counts.sum() == 6000
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 20.5  # chi-square, 5 degrees of freedom, p = 0.001


def test_1997s_edges() -> None:
    task = make(T=20, markers="hs1997")
    batch = task.sample(stream(8, "test"), 4000, 1.0)
    rows = np.arange(4000)
    marked_first = batch.inputs[0, :, 1] == 1.0
    assert np.all(batch.inputs[0, ~marked_first, 1] == -1.0)
    assert np.all(batch.inputs[batch.lengths - 1, rows, 1] == -1.0)
    assert np.all(batch.inputs[0, marked_first, 0] == 0.0)
    assert np.all(batch.inputs[0, ~marked_first, 0] != 0.0)
    q = 0.1 + 0.9 / 9  # one of the first ten, else one of T/2 - 1 = 9 that are left
    assert abs(marked_first.mean() - q) < 4 * np.sqrt(q * (1 - q) / 4000)


@pytest.mark.parametrize("markers", MARKERS)
@pytest.mark.parametrize("values", ["unit", "symmetric", "half"])
@pytest.mark.parametrize("target", ["sum", "half_sum", "scaled"])
def test_baselines_against_simulation(
    markers: str, values: str, target: str, z_score: Callable[[NDArray, float], float]
) -> None:
    task = make(T=20, markers=markers, values=values, target=target)
    sample = task.sample(stream(9, "test"), 40000, 1.0).targets[:, 0]
    found = task.baselines(task.open(0, 0, DataSpec(), 1))
    scale, shift = {"sum": (1.0, 0.0), "half_sum": (0.5, 0.0), "scaled": (0.25, 0.5)}[target]
    q = 0.2 if markers == "hs1997" else 0.0
    error = sample - (scale * (2 - q) * sum(BOUNDS[values]) / 2 + shift)
    assert abs(z_score(error**2, found["constant"].value)) < 4
    assert abs(z_score(np.abs(error) < 0.04, found["constant_correct"].value)) < 4
    hits = error**2 <= 0.04
    if hits.all():
        assert found["constant_correct_squared"].value == 1.0
    else:
        assert abs(z_score(hits, found["constant_correct_squared"].value)) < 4


def test_baselines_by_hand() -> None:
    def mse(**values: Any) -> float:
        task = make(**values)
        return task.baselines(task.open(0, 0, DataSpec(), 1))["constant"].value

    assert mse() == pytest.approx(1 / 6, rel=1e-14)
    assert mse(target="half_sum") == pytest.approx(1 / 24, rel=1e-14)
    assert mse(markers="pascanu") == pytest.approx(1 / 24, rel=1e-14)
    assert mse(markers="skip_rnn") == pytest.approx(1 / 6, rel=1e-14)
    q = 0.1 + 0.9 / 49
    assert mse(markers="hs1997") == pytest.approx((2 - q) / 3 / 16, rel=1e-14)


@pytest.mark.parametrize("markers", MARKERS)
def test_difficulty_shortens_the_sequence(markers: str) -> None:
    task = make(T=200, markers=markers)
    half = task.sample(stream(0, "test"), 50, 0.5)
    tiny = task.sample(stream(0, "test"), 50, 1e-6)
    assert half.inputs.shape == tiny.inputs.shape == (task.length, 50, 2)
    assert 100 <= half.lengths.min() <= half.lengths.max() <= 110
    assert tiny.lengths.max() <= 22
    for batch in (half, tiny):
        assert np.all((batch.inputs[:, :, 1] == 1).sum(axis=0) == 2)


@pytest.mark.parametrize(("markers", "T"), [("hs1997", 19), ("pascanu", 9), ("skip_rnn", 9), ("halves", 1)])
def test_too_short(markers: str, T: int) -> None:
    with pytest.raises(BadInput):
        make(markers=markers, T=T)
