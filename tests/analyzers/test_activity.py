"""Saturation, dead units and time constants, planted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.activity import DEAD, DEAD_BADLY, KEPT, LEAST_TAU, SATURATED, SATURATED_BADLY, analyze

from rnnbench.findings import Severity

GATE = "layers.0.forward.i"
KEEPER = "layers.0.forward.f"


def one(build: Any, *signals: Any, seeds: int = 1, **fields: Any) -> list[Any]:
    status = fields.pop("status", "completed")
    return analyze(build.evidence(build.seeds(seeds, lambda _: signals, status=status), **fields))  # type: ignore[no-any-return]


def ends(build: Any, low: float, high: float, tap: str = GATE) -> list[Any]:
    return [build.record(f"activity.{end}/{tap}", [share] * 101) for end, share in (("low", low), ("high", high))]


@pytest.mark.parametrize(
    ("low", "high", "severity"),
    [
        (SATURATED / 2, SATURATED / 2 + 0.01, Severity.WARNING),
        (0.0, SATURATED_BADLY + 0.01, Severity.PROBLEM),
        (SATURATED / 2, SATURATED / 2 - 0.01, None),
        (0.05, 0.05, None),
    ],
)
def test_both_ends_of_a_range_count(build: Any, low: float, high: float, severity: Severity | None) -> None:
    found = one(build, *ends(build, low, high))
    assert [(each.code, each.severity) for each in found] == ([("units-saturated", severity)] if severity else [])
    assert one(build, *ends(build, low, high), status="solved") == [] or found[0].value == pytest.approx(low + high)


def test_a_gate_that_keeps_may_stand_open(build: Any) -> None:
    tau = build.record(f"activity.time_constant/{KEEPER}", [1000.0])
    assert [each.code for each in one(build, *ends(build, 0.0, 0.99, KEEPER), tau)] == ["time-constants"]
    found = one(build, *ends(build, 0.99, 0.0, KEEPER), tau)
    assert [each.code for each in found] == ["units-saturated", "time-constants"]
    assert "low end" in found[0].claim


def test_the_worst_of_several_is_named(build: Any) -> None:
    (found,) = one(build, *ends(build, 0.3, 0.3), *ends(build, 0.4, 0.5, "b.g"), *ends(build, 0.1, 0.0, "c.g"))
    assert found.of == "b.g"
    assert "1 other" in found.claim
    assert found.details["shares"] == pytest.approx({GATE: 0.6, "b.g": 0.9, "c.g": 0.1})


@pytest.mark.parametrize(
    ("shares", "code"),
    [
        ((0.62, 0.65, 0.6, 0.68), "units-saturated"),
        ((0.2, 0.9, 0.6, 0.5), "not-enough-evidence"),
        ((0.1, 0.2, 0.15, 0.1), None),
    ],
)
def test_seeds_must_agree_on_saturation(build: Any, shares: tuple[float, ...], code: str | None) -> None:
    runs = [build.observe(ends(build, share, 0.0), seed) for seed, share in enumerate(shares)]
    assert [each.code for each in analyze(build.evidence(runs))] == ([code] if code else [])


@pytest.mark.parametrize(
    ("dead", "severity"), [(DEAD, None), (DEAD + 0.1, Severity.WARNING), (DEAD_BADLY + 0.1, Severity.PROBLEM)]
)
def test_dead_units_are_counted(build: Any, dead: float, severity: Severity | None) -> None:
    units = (np.arange(10) < round(10 * dead)).astype(float)
    found = one(build, build.record(f"activity.dead/{build.state}", units))
    assert [(each.code, each.severity) for each in found] == ([("units-dead", severity)] if severity else [])
    if severity:
        solved = one(build, build.record(f"activity.dead/{build.state}", units), status="solved")
        assert solved[0].severity.rank == severity.rank - 1


def test_seeds_must_agree_on_death(build: Any) -> None:
    name = f"activity.dead/{build.state}"
    runs = [build.observe([build.record(name, [share, share])], seed) for seed, share in enumerate((0.0, 0.0, 1.0))]
    (found,) = analyze(build.evidence(runs))
    assert found.code == "not-enough-evidence"


def test_time_constants_are_held_against_the_needed_lag(build: Any) -> None:
    tau = [1.0, 2.0, 5.0]
    (found,) = one(build, build.record(f"activity.time_constant/{KEEPER}", tau))
    assert (found.code, found.severity) == ("time-constants", Severity.WARNING)
    assert (found.value, found.details["median"]) == pytest.approx((5.0, 2.0))
    assert found.threshold == pytest.approx(100 / math.log(1 / KEPT))
    assert math.exp(-100 / found.threshold) == pytest.approx(KEPT)
    long = build.record(f"activity.time_constant/{KEEPER}", [1.0, found.threshold + 1])
    assert one(build, long)[0].severity == Severity.INFO


def test_an_unknown_need_and_a_solved_task_are_no_warning(build: Any) -> None:
    tau = build.record(f"activity.time_constant/{KEEPER}", [1.0])
    assert one(build, tau, lag=None)[0].severity == Severity.INFO
    assert one(build, tau, status="solved")[0].severity == Severity.INFO


def test_time_constants_are_averaged_by_their_logarithms(build: Any) -> None:
    taus = (1.0, 10.0, 100.0)
    runs = [
        build.observe([build.record(f"activity.time_constant/{KEEPER}", [tau])], seed) for seed, tau in enumerate(taus)
    ]
    (found,) = analyze(build.evidence(runs))
    assert found.value == pytest.approx(10.0)
    assert found.low > 0
    assert found.low * found.high == pytest.approx(100.0)  # symmetric about 10 by its ratios
    # a t interval of ln 1, ln 10, ln 100: 4.3027 ln 10 / sqrt 3, two degrees of freedom
    assert math.log(found.high / 10) == pytest.approx(4.30265 * math.log(10) / math.sqrt(3), rel=1e-4)


def test_a_gate_that_lets_everything_go_has_no_logarithm_but_counts(build: Any) -> None:
    (found,) = one(build, build.record(f"activity.time_constant/{KEEPER}", [0.0]))
    assert (found.severity, found.value) == (Severity.WARNING, pytest.approx(LEAST_TAU))


def test_a_gate_that_never_closes_keeps_for_ever(build: Any) -> None:
    (found,) = one(build, build.record(f"activity.time_constant/{KEEPER}", [1.0, np.inf, np.nan]))
    assert (found.severity, found.value, found.details["endless_seeds"]) == (Severity.INFO, None, 1)
    assert "longest without bound" in found.claim


def test_no_number_says_nothing(build: Any) -> None:
    signals = [*ends(build, np.nan, np.nan), build.record(f"activity.time_constant/{KEEPER}", [np.nan])]
    signals += [build.record(f"activity.dead/{build.state}", [np.nan])]
    assert one(build, *signals) == []
    assert one(build) == []


def test_a_seed_without_numbers_is_counted(build: Any) -> None:
    runs = [build.observe(ends(build, share, 0.0), seed) for seed, share in enumerate((0.7, 0.71, np.nan))]
    (found,) = analyze(build.evidence(runs))
    assert (found.code, found.seeds, found.details["unusable_seeds"]) == ("units-saturated", 2, 1)
