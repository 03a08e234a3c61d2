"""Spikes, clipping and gradient noise, planted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.updates import LEAST_BEFORE, MOST, SPIKE, WINDOW, analyze, recorded, spikes

from rnnbench.findings import Severity


def naive(norms: Any) -> list[int]:
    """Return the spikes one update at a time."""
    found = []
    for at in range(len(norms)):
        before = [norms[i] for i in range(max(0, at - WINDOW), at) if math.isfinite(norms[i])]
        enough = len(before) >= LEAST_BEFORE and sorted(before)[len(before) // 2] > 0
        if enough and math.isfinite(norms[at]) and norms[at] > SPIKE * float(np.median(before)):
            found.append(at)
    return found


def norms(planted: dict[int, float], length: int = 300) -> Any:
    values = np.exp(0.2 * np.random.default_rng(0).standard_normal(length))
    for at, value in planted.items():
        values[at] = value
    return values


def test_planted_spikes_are_found_and_no_others() -> None:
    values = norms({5: 100.0, 50: 100.0, 200: 30.0, 250: 5.0, 260: np.nan, 261: np.inf})
    assert list(spikes(values)) == [50, 200] == naive(values)


def test_a_gradient_of_zeros_has_no_spikes() -> None:
    assert list(spikes(np.r_[np.zeros(50), 1.0])) == []
    assert list(spikes(np.full(50, np.nan))) == []


def test_growth_that_lasts_is_no_spike() -> None:
    assert list(spikes(np.exp(np.linspace(0, 5, 500)))) == []


def test_spikes_are_told_with_the_largest(build: Any) -> None:
    values = norms({50: 100.0, 200: 30.0})
    pieces = [
        build.record("updates.grad_norm", values[100:], 300),
        build.record("updates.grad_norm", values[:100], 100),
    ]
    (found,) = analyze(build.evidence([build.observe(pieces, 3)]))
    assert (found.code, found.severity, found.value) == ("gradient-spikes", Severity.WARNING, 2 / 300)
    assert "2 updates of 300" in found.claim
    assert "(seed 3, update 51)" in found.claim
    assert analyze(build.evidence([build.observe(pieces, status="solved")]))[0].severity == Severity.INFO
    assert analyze(build.evidence([build.observe([build.record("updates.grad_norm", norms({}))])])) == []


@pytest.mark.parametrize(("acted", "severity"), [({50, 200}, Severity.INFO), ({50}, Severity.WARNING)])
def test_spikes_that_were_clipped_did_no_harm(build: Any, acted: set[int], severity: Severity) -> None:
    signals = [
        build.record("updates.grad_norm", norms({50: 100.0, 200: 30.0})),
        build.record("updates.acted/clip_norm", [float(at in acted) for at in range(300)]),
    ]
    (found,) = analyze(build.evidence([build.observe(signals)]))
    assert (found.severity, found.details["clipped_share"]) == (severity, len(acted) / 2)


@pytest.mark.parametrize(("share", "code"), [(MOST + 0.1, "updates-clipped"), (MOST - 0.1, None)])
def test_clipping_of_most_updates_is_told(build: Any, share: float, code: str | None) -> None:
    acted = (np.arange(100) < 100 * share).astype(float)
    found = analyze(build.evidence([build.observe([build.record("updates.acted/clip_norm", acted)])]))
    assert [each.code for each in found] == ([code] if code else [])


def test_seeds_must_agree_on_clipping(build: Any) -> None:
    name = "updates.acted/clip_norm"
    runs = [build.observe([build.record(name, [share, share])], seed) for seed, share in enumerate((0.0, 1.0, 1.0))]
    (found,) = analyze(build.evidence(runs))
    assert found.code == "not-enough-evidence"
    assert found.value == pytest.approx(2 / 3)


def test_an_unknown_update_is_neither(build: Any) -> None:
    (found,) = analyze(build.evidence([build.observe([build.record("updates.acted/clip", [1.0, np.nan, 1.0, 1.0])])]))
    assert (found.value, found.details["updates"]) == (1.0, [3])


def noise(build: Any, scale: float, low: float, high: float) -> list[Any]:
    return [build.record("noise.scale", scale), build.record("noise.interval", [low, high])]


@pytest.mark.parametrize(
    ("scale", "severity", "said"),
    [
        (500.0, Severity.INFO, "a larger batch helps"),
        (5.0, Severity.OK, "averages most"),
        (50.0, Severity.INFO, "of the order"),
    ],
)
def test_the_noise_is_held_against_the_batch(build: Any, scale: float, severity: Severity, said: str) -> None:
    run = build.observe(noise(build, scale, scale / 2, scale * 2))
    (found,) = analyze(build.evidence([run], batch_size=50))
    assert (found.code, found.severity, found.threshold) == ("gradient-noise", severity, 50.0)
    assert (found.low, found.high) == (scale / 2, scale * 2)
    assert said in found.claim


def test_over_seeds_the_mean_is_geometric(build: Any) -> None:
    scales = (100.0, 200.0, 400.0)
    runs = [build.observe(noise(build, scale, 1.0, 1e6), seed) for seed, scale in enumerate(scales)]
    (found,) = analyze(build.evidence(runs, batch_size=10))
    assert found.value == pytest.approx(200.0)
    assert found.low * found.high == pytest.approx(200.0**2)


def test_noise_that_is_not_resolved_is_no_number(build: Any) -> None:
    runs = [build.observe(noise(build, scale, np.nan, np.nan), seed) for seed, scale in enumerate((np.nan, 9.0, -1.0))]
    (found,) = analyze(build.evidence(runs, batch_size=10))
    assert (found.code, found.value) == ("not-enough-evidence", None)


def test_pieces_are_put_in_the_order_of_steps(build: Any) -> None:
    run = build.observe(
        [build.record("updates.grad_norm", [3.0], 30), build.record("updates.grad_norm", [1.0, 2.0], 20)]
    )
    assert list(recorded(run.signals, "updates.grad_norm")) == [1.0, 2.0, 3.0]
    assert len(recorded(run.signals, "updates.acted", "clip")) == 0
    assert analyze(build.evidence([build.observe()])) == []
