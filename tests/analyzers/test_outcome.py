"""How runs ended, on scores small enough to judge by eye."""

from __future__ import annotations

import math
from typing import Any

import pytest
from rnnbench_analyzers.outcome import CLEAR, MARGIN, analyze

from rnnbench.findings import Severity

BASELINES = {"constant": 1.0}


def judged(build: Any, finals: list[float | None], baselines: Any = BASELINES, **fields: Any) -> list[Any]:
    statuses = fields.pop("statuses", ["completed"] * len(finals))
    runs = [
        build.observe(seed=seed, final=final, baselines=baselines, status=status, first_bad_step=fields.get("bad"))
        for seed, (final, status) in enumerate(zip(finals, statuses, strict=True))
    ]
    fields.pop("bad", None)
    return analyze(build.evidence(runs, **fields))


def codes(found: list[Any]) -> list[str]:
    return [each.code for each in found]


def test_seeds_at_the_baseline_are_stuck(build: Any) -> None:
    (found,) = judged(build, [0.99, 1.0, 1.01, 0.98, 1.0, 1.02])
    assert (found.code, found.severity, found.seeds) == ("stuck-at-baseline", Severity.PROBLEM, 6)
    assert "'constant'" in found.claim
    assert found.low < found.value < found.high < MARGIN


def test_seeds_that_beat_it_have_learned(build: Any) -> None:
    (found,) = judged(build, [0.1, 0.2, 0.15])
    assert (found.code, found.severity) == ("task-learned", Severity.OK)
    assert found.value == pytest.approx(0.85)


@pytest.mark.parametrize(("gain", "code"), [(MARGIN - 1e-6, "stuck-at-baseline"), (MARGIN + 1e-6, "task-learned")])
def test_the_margin_is_where_it_is_said_to_be(build: Any, gain: float, code: str) -> None:
    assert codes(judged(build, [1 - gain])) == [code]
    assert codes(judged(build, [0.1 + 0.9 * gain], {"chance": 0.1}, better="higher")) == [code]
    assert codes(judged(build, [1 - 0.5 * gain], threshold=0.5)) == [code]  # the stopping rule's threshold is the goal


def test_a_lottery_is_told_with_its_interval(build: Any) -> None:
    (found,) = judged(build, [0.01, 0.02, 1.0, 1.0, 0.03, 1.0, 0.99, 1.0])
    assert found.code == "seed-lottery"
    assert found.value == 3 / 8
    assert (found.low, found.high) == (pytest.approx(0.1368, abs=1e-4), pytest.approx(0.6943, abs=1e-4))  # Wilson's
    assert "5 stayed at the baseline" in found.claim


def test_five_seeds_say_nothing_of_others(build: Any) -> None:
    (found,) = judged(build, [0.01, 0.02, 1.0, 1.0, 0.03])
    assert found.code == "not-enough-evidence"
    assert "at least 6" in found.claim


def test_seeds_just_beyond_the_margin_are_not_settled(build: Any) -> None:
    (found,) = judged(build, [1.0, 1.0, 1.0, 1 - CLEAR / 2, 1 - CLEAR / 2, 1.0])
    assert found.code == "not-enough-evidence"


def test_a_solved_run_is_clear_whatever_its_last_score(build: Any) -> None:
    statuses = ["solved"] + ["completed"] * 5
    (found,) = judged(build, [1.0] * 6, statuses=statuses, threshold=0.5)
    assert found.code == "seed-lottery"
    assert "1 of 6 seeds solved" in found.claim


def test_divergence_is_told_and_counts_at_the_baseline(build: Any) -> None:
    statuses = ["diverged"] * 2 + ["completed"] * 4
    divergence, standing = judged(build, [None, None, 0.1, 0.1, 0.1, 0.1], statuses=statuses, bad=120)
    assert (divergence.code, divergence.severity, divergence.step) == ("training-diverged", Severity.WARNING, 120)
    assert standing.code == "seed-lottery"
    assert "2 of them since they diverged" in standing.claim


def test_where_all_diverged_nothing_else_is_said(build: Any) -> None:
    (found,) = judged(build, [None, None], statuses=["diverged"] * 2)
    assert (found.code, found.severity) == ("training-diverged", Severity.PROBLEM)


def test_between_two_baselines_the_nearest_and_the_best_are_named(build: Any) -> None:
    """It beats one trivial predictor and loses to another: a trivial predictor would do better."""
    (found,) = judged(build, [0.9], {"mean": 0.905, "persistence": 0.3})
    assert found.code == "stuck-at-baseline"
    assert "as the baseline 'mean'" in found.claim
    assert "worse than 'persistence' (0.3)" in found.claim
    (found,) = judged(build, [0.6], {"mean": 0.9, "persistence": 0.3})
    assert "no better than the baseline 'persistence'" in found.claim


def test_what_the_clock_ended_enters_no_verdict(build: Any) -> None:
    assert codes(judged(build, [1.0, 1.0], statuses=["time_limit"] * 2)) == ["not-enough-evidence"]
    (found,) = judged(build, [1.0, 0.1], statuses=["time_limit", "completed"])
    assert (found.code, found.seeds, found.details["time_limit"]) == ("task-learned", 1, 1)


@pytest.mark.parametrize(
    ("finals", "baselines", "fields"),
    [
        ([], BASELINES, {}),
        ([0.1], {}, {}),
        ([0.1], {"nan": math.nan}, {}),
        ([None], BASELINES, {}),
        ([0.1], {"meets the goal": 0.2}, {"threshold": 0.5}),
    ],
)
def test_without_anything_to_compare_nothing_is_said(
    build: Any, finals: list[float | None], baselines: Any, fields: Any
) -> None:
    assert judged(build, finals, baselines, **fields) == []


def test_an_unscored_run_is_named(build: Any) -> None:
    (found,) = judged(build, [0.1, math.nan])
    assert (found.seeds, found.details["unscored"]) == (1, [1])
