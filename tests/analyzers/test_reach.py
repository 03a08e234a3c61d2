"""Needs, reach and use on profiles whose answer is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.profiles import LOGIT_INPUT
from rnnbench_analyzers.reach import (
    APART,
    HARDLY,
    LEFT,
    TOLERANCE,
    USED,
    analyze,
    median_interval,
    reach_of,
    three_numbers,
    use_of,
)

from rnnbench.findings import Severity


def reaching(build: Any, lag: float, length: int = 101) -> Any:
    """Return an input gradient of which `LEFT` is left at `lag`."""
    return build.record(LOGIT_INPUT, build.falling(math.log(LEFT) / (lag + 0.5), length))


def using(build: Any, lag: int, length: int = 101) -> list[Any]:
    """Return a model whose output depends on the inputs at lags 0 to `lag`, and on none beyond."""
    at = np.arange(length)
    change = np.where(at <= lag, np.maximum(1 - at / (lag + 1), 2 * USED), 0.0)
    return [build.record("use.lags", np.arange(length)), build.record("use.output_change", change)]


def runs(build: Any, reach: float, use: int, seeds: int = 6, **fields: Any) -> Any:
    observed = {name: fields.pop(name) for name in ("status",) if name in fields}
    made = build.seeds(
        seeds, lambda seed: [reaching(build, reach + seed % 2), *using(build, use + seed % 2)], **observed
    )
    return build.evidence(made, **fields)


@pytest.mark.parametrize("lag", [0, 1, 5, 12, 61, 99])
def test_planted_numbers_come_out(build: Any, lag: int) -> None:
    run = build.observe([reaching(build, lag), *using(build, lag)])
    assert reach_of(run) == (lag, False)
    assert use_of(run) == (lag, False)


def test_one_sentence_with_three_numbers(build: Any) -> None:
    (found,) = analyze(runs(build, 61, 12))
    assert (found.code, found.severity) == ("horizon-short", Severity.PROBLEM)
    sentence = "The task needs 100 steps; the gradient reaches 61.5 [61, 62]; the model uses 12.5 [12, 13]."
    assert found.claim == sentence
    assert found.level == 1 - 2 / 64  # of six seeds' smallest and largest value
    assert found.details["need"] == 100
    assert found.details["reach"]["value"] == 61.5
    assert found.details["use"]["value"] == 12.5 == found.value
    assert found.details["use_by_seed"]["1"] == 13.0


@pytest.mark.parametrize(
    ("reach", "use", "code"),
    [
        (98, 98, "horizon-enough"),
        (98, 40, "horizon-short"),
        (40, 98, "horizon-short"),
        (TOLERANCE * 100 - 0.5, 98, "not-enough-evidence"),
    ],
)
def test_both_must_suffice(build: Any, reach: float, use: int, code: str) -> None:
    (found,) = analyze(runs(build, reach, use))
    assert found.code == code


def test_one_seed_speaks_for_itself(build: Any) -> None:
    (found,) = analyze(runs(build, 61, 12, seeds=1))
    assert (found.code, found.seeds, found.low) == ("horizon-short", 1, None)
    assert found.claim == "The task needs 100 steps; the gradient reaches 61; the model uses 12."


def test_a_solved_or_unknown_need_is_a_remark(build: Any) -> None:
    assert analyze(runs(build, 61, 12, status="solved"))[0].severity == Severity.INFO
    (found,) = analyze(runs(build, 61, 12, lag=None))
    assert (found.severity, found.details["need"]) == (Severity.INFO, None)
    assert "is not known (its sequences have 101 steps)" in found.claim
    (found,) = analyze(runs(build, 61, 12, lag=None, context={"need": 30, "model": "ridge"}))
    assert found.claim.startswith("Reference models (ridge) gain from inputs up to 30 steps back; ")


def test_what_was_not_recorded_is_said(build: Any) -> None:
    (found,) = analyze(build.evidence([build.observe([reaching(build, 95)])]))
    assert found.code == "not-enough-evidence"
    assert "what the model uses was not recorded" in found.claim
    (found,) = analyze(build.evidence([build.observe(using(build, 12))]))
    assert found.code == "horizon-short"
    assert "the reach of the gradient was not recorded" in found.claim
    assert analyze(build.evidence([build.observe()])) == []


def test_a_gradient_that_returns_still_reaches(build: Any) -> None:
    values = np.array([0.0, -20.0, -20.0, -1.0, -20.0])[::-1, None]
    assert reach_of(build.observe([build.record(LOGIT_INPUT, values)])) == (3, False)


def test_its_own_largest_is_what_it_falls_from(build: Any) -> None:
    """The last input is blank in many tasks: what is left is of the largest, not of lag 0."""
    values = np.array([-30.0, 0.0, -1.0, -30.0])[::-1, None]
    assert reach_of(build.observe([build.record(LOGIT_INPUT, values)])) == (2, False)


def test_the_median_is_over_sequences_and_no_number_is_none(build: Any) -> None:
    zero, short, long = np.full(5, -np.inf), np.array([0, -9, -9, -9, -9.0]), np.zeros(5)
    bad = np.array([0.0, np.nan, 0, 0, 0])

    def reach(*rows: Any) -> Any:
        return reach_of(build.observe([build.record(LOGIT_INPUT, np.stack(rows, axis=1)[::-1])]))

    assert reach(zero, short, long) == (0.0, False)
    assert reach(short, long, long) == (4.0, True)
    assert reach(bad, long) == (4.0, True)
    assert reach(np.array([0.0, 0.0, 0.0, np.nan, np.nan])) == (2.0, False)  # a sequence of three steps
    assert reach(bad) is None


def test_at_least_is_said_where_the_farthest_lag_is_reached(build: Any) -> None:
    signals = [build.record(LOGIT_INPUT, build.falling(0.0)), *using(build, 200)]
    three = three_numbers(build.evidence([build.observe(signals)]))
    assert (three.open_reach, three.open_use) == ((0,), (0,))
    (found,) = analyze(build.evidence([build.observe(signals)]))
    assert found.claim == "The task needs 100 steps; the gradient reaches at least 100; the model uses at least 100."
    assert found.code == "horizon-enough"


@pytest.mark.parametrize(
    ("lags", "change", "expected"),
    [
        ([1, 10, 100], [1.0, 0.5, 0.0], (91.0, False)),  # 0.05 is crossed at 10 + 90 * 0.9 = 91
        ([1, 10, 100], [1.0, 0.5, 0.04999], (99.0, False)),  # below the first probed lag that no longer matters
        ([1, 10, 11], [1.0, 0.5, 0.0], (10.0, False)),
        ([1, 2, 4, 8], [0.01, 0.5, 0.01, 0.2], (8.0, True)),  # what matters later matters
        ([1, 2, 4], [0.01, 0.02, 0.0], (0.0, False)),
        ([0, 1, 2], [1.0, 0.02, 0.0], (0.0, False)),
        ([4, 1, 2], [0.0, 1.0, 0.02], (1.0, False)),  # in any order
        ([1, 2], [np.nan, 0.0], None),
        ([1], [0.0, 1.0], None),
    ],
)
def test_use_on_a_grid(build: Any, lags: list[float], change: list[float], expected: Any) -> None:
    signals = [build.record("use.lags", lags), build.record("use.output_change", change)]
    assert use_of(build.observe(signals)) == expected


def test_change_without_lags_is_no_use(build: Any) -> None:
    assert use_of(build.observe([build.record("use.output_change", [1.0])])) is None


def test_a_task_of_one_step_needs_no_past(build: Any) -> None:
    assert analyze(runs(build, 61, 12, lag=0)) == []


def test_one_seed_far_from_the_others_is_named_and_moves_nothing(build: Any) -> None:
    uses = [5, 9, 100, 8, 12, 3]
    made = build.seeds(6, lambda seed: [reaching(build, 61), *using(build, uses[seed])])
    (found,) = analyze(build.evidence(made))
    assert found.claim.endswith("; the model uses 8.5 [3, 100] (seed 2: 100).")
    assert found.code == "horizon-short"
    assert found.details["open_use"] == [2]
    near = build.seeds(6, lambda seed: [reaching(build, 61), *using(build, 10 + (seed == 2) * int(100 * APART))])
    assert "seed 2" not in analyze(build.evidence(near))[0].claim
    split = build.seeds(6, lambda seed: [reaching(build, 61), *using(build, 90 if seed % 2 else 5)])
    assert "(seed" not in analyze(build.evidence(split))[0].claim  # three of six are no single ones


@pytest.mark.parametrize("n", range(2, 31))
def test_the_interval_holds_the_median_as_often_as_it_says(n: int) -> None:
    found = median_interval(range(n, 0, -1))
    assert found is not None
    k = int(found.low)
    assert (found.value, found.high, found.n) == ((n + 1) / 2, n + 1 - k, n)
    missed = [sum(math.comb(n, i) for i in range(j)) / 2 ** (n - 1) for j in range(n + 1)]  # by the j-th from each end
    assert found.level == pytest.approx(1 - missed[k], abs=1e-12)
    assert missed[k] <= 0.05 or k == 1
    assert missed[k + 1] > 0.05 or n < 6
    assert (k == 1) == (n < 9)  # nine is the first that may drop its ends


def test_the_median_of_one_value_has_no_interval() -> None:
    one = median_interval([7.0])
    assert one is not None
    assert (one.value, one.low, one.high) == (7.0, -math.inf, math.inf)
    assert median_interval([]) is None


@pytest.mark.parametrize(("change", "hardly"), [(HARDLY / 2, True), (-HARDLY / 2, True), (2 * HARDLY, False)])
def test_a_model_whose_loss_hardly_depends_on_its_input_uses_too_little(
    build: Any, change: float, hardly: bool
) -> None:
    loss = [build.record("use.loss", np.full(101, 0.2 * (1 + change))), build.record("use.base_loss", 0.2)]
    made = build.seeds(6, lambda seed: [reaching(build, 98), *using(build, 98), *loss])
    (found,) = analyze(build.evidence(made))
    assert found.code == ("not-enough-evidence" if hardly else "horizon-enough")
    assert ("hardly depends on its input at all" in found.claim) == hardly
    assert found.details["loss_change"] == pytest.approx(abs(change))
