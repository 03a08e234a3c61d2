"""Verdicts on gradients whose decay is planted."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.gradient_flow import EXPLODED, VANISHED, Judgement, _rate, analyze, judge
from rnnbench_analyzers.profiles import LOGIT, LOGIT_INPUT, LOSS, LOSS_INPUT, STEP_LOSS, lag_profile

from rnnbench.evidence import Evidence
from rnnbench.findings import Finding, Severity
from rnnbench.signals import Signals
from rnnbench.stats import Decay, Interval

NEED = 100


def trained(build: Any, rate: float, seeds: int = 6, noise: float = 0.05, **fields: Any) -> Evidence:
    """Return runs whose outputs' gradient changes by `rate` a step of lag at step 1000."""
    observed = {name: fields.pop(name) for name in ("status",) if name in fields}

    def signals(seed: int) -> list[Any]:
        return [build.record(f"{LOGIT}/{build.state}", build.falling(rate, noise=noise, seed=seed))]

    return build.evidence(build.seeds(seeds, signals, **observed), **fields)  # type: ignore[no-any-return]


def only(evidence: Evidence, *codes: str) -> Finding:
    """Return the first finding under one of the codes."""
    found = [each for each in analyze(evidence) if not codes or each.code in codes]
    assert found, f"none of {codes}"
    return found[0]


def verdict(evidence: Evidence) -> str:
    return next(each.code for each in analyze(evidence) if each.code != "regime-change")


@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize(
    ("rate", "code", "severity"),
    [
        (-0.2, "gradient-vanishing", Severity.PROBLEM),
        (0.2, "gradient-exploding", Severity.PROBLEM),
        (0.0, "gradient-healthy", Severity.OK),
        (-0.05, "gradient-healthy", Severity.OK),
    ],
)
def test_a_planted_rate_gets_its_verdict(build: Any, rate: float, code: str, severity: Severity, seeds: int) -> None:
    found = only(trained(build, rate, seeds, noise=0.01))
    assert (found.code, found.severity, found.seeds, found.step) == (code, severity, seeds, 1000)
    assert found.details["rate"] == pytest.approx(rate, abs=0.005)  # five standard errors of the planted noise


def test_what_is_left_is_the_mean_over_seeds_of_the_log(build: Any) -> None:
    """The twin: the difference of the two ends of every sequence, averaged."""
    evidence = trained(build, -0.1)
    values = [run.signals.one(LOGIT, build.state).values for run in evidence.runs]  # type: ignore[union-attr]
    expected = float(np.mean([v[-1 - NEED] - v[-1] for v in values]))
    found = only(evidence)
    assert math.log(found.value or 0) == pytest.approx(expected, rel=1e-12)
    assert found.low is not None
    assert found.high is not None
    assert found.low < math.exp(expected) < found.high


@pytest.mark.parametrize("limit", [VANISHED, EXPLODED])
def test_what_straddles_a_limit_is_not_settled(build: Any, limit: float) -> None:
    found = only(trained(build, math.log(limit) / NEED, noise=0.3))
    assert (found.code, found.severity) == ("not-enough-evidence", Severity.INFO)
    assert "not settled" in found.claim


def test_the_claim_says_what_was_measured(build: Any) -> None:
    claim = only(trained(build, -math.log(2) / 5, noise=0.001)).claim
    assert claim.startswith("At step 1000 the outputs' gradient keeps 9.52e-07 [")
    assert claim.endswith("steps that the task needs: it shrinks by 13 % a step (half-life 5 steps).")
    claim = only(trained(build, math.log(2) / 5, noise=0.001)).claim
    assert "doubling in 5 steps" in claim


def test_a_power_law_and_neither_are_told_from_an_exponential(build: Any) -> None:
    lag = np.arange(101.0)
    shapes = {"power": -3 * np.log1p(lag), "neither": -0.1 * lag - 4 * np.sin(lag / 8)}
    for model, profile in shapes.items():
        profile = profile + np.cumsum(0.002 * np.random.default_rng(0).standard_normal(101))
        signals = [build.record(f"{LOGIT}/{build.state}", profile[::-1, None])]
        found = only(build.evidence([build.observe(signals)]))
        assert found.details["model"] == model
        assert found.details["half_life"] is None
        assert ("as the lag to the power -3 [-3.0" in found.claim) == (model == "power")
    assert "neither" in found.claim


def test_the_horizon_is_counted_not_fitted(build: Any) -> None:
    found = only(trained(build, -0.2, noise=0.0))
    assert found.details["horizon"] == math.ceil(math.log(1000) / 0.2)


@pytest.mark.parametrize(
    ("fields", "severity"),
    [
        ({"lag": None}, Severity.WARNING),
        ({"lag": None, "context": {"need": 100}}, Severity.PROBLEM),
        ({"status": "solved"}, Severity.INFO),
    ],
)
def test_vanishing_is_as_bad_as_what_hangs_on_it(build: Any, fields: dict[str, Any], severity: Severity) -> None:
    found = only(trained(build, -0.2, **fields))
    assert (found.code, found.severity) == ("gradient-vanishing", severity)
    assert ("not known" in found.claim) == (fields.get("lag", 0) is None and "context" not in fields)


def test_an_explosion_that_is_clipped_is_a_warning_until_it_diverges(build: Any) -> None:
    for status, severity in (("completed", Severity.WARNING), ("diverged", Severity.PROBLEM)):
        evidence = trained(build, 0.2, status=status)
        acted = build.record("updates.acted/clip_norm", [1.0])
        runs = [build.observe([*run.signals, acted], run.seed, status=status) for run in evidence.runs]
        assert only(build.evidence(runs)).severity == severity


def test_the_lag_that_the_task_needs_decides(build: Any) -> None:
    assert verdict(trained(build, -0.2, lag=10)) == "gradient-healthy"
    assert verdict(trained(build, -0.2, lag=60)) == "gradient-vanishing"
    assert analyze(trained(build, -0.2, lag=0)) == []


def test_a_record_shorter_than_the_need_is_judged_as_far_as_it_goes(build: Any) -> None:
    found = only(trained(build, -0.2, lag=500, length=501))
    assert found.code == "gradient-vanishing"
    assert "100 of the 500 steps" in found.claim
    found = only(trained(build, -0.01, lag=500, length=501))
    assert found.code == "not-enough-evidence"
    assert "not known" in found.claim


def test_a_short_lag_takes_its_interval_from_seeds(build: Any) -> None:
    found = only(trained(build, -2.0, lag=5))
    assert (found.code, found.seeds) == ("gradient-vanishing", 6)
    assert found.low is not None
    found = only(trained(build, -2.0, lag=5, seeds=1))
    assert (found.code, found.low) == ("gradient-vanishing", None)


def test_the_first_step_is_judged_by_the_loss_and_excused_by_training(build: Any) -> None:
    def signals(seed: int) -> list[Any]:
        return [
            build.record(f"{LOSS}/{build.state}", build.falling(-0.2, noise=0.01, seed=seed), step=0),
            build.record(f"{LOGIT}/{build.state}", build.falling(0.0, noise=0.01, seed=seed), step=0),
            build.record(f"{LOGIT}/{build.state}", build.falling(-0.01, noise=0.01, seed=seed)),
        ]

    last, first, changed = analyze(build.evidence(build.seeds(6, signals)))
    assert (last.code, last.step, last.evidence) == ("gradient-healthy", 1000, (LOGIT,))
    assert (first.code, first.step, first.severity, first.evidence) == ("gradient-vanishing", 0, Severity.INFO, (LOSS,))
    assert (changed.code, changed.details["along"]) == ("regime-change", "training")
    assert changed.details["changed_at"] == [1000]


def test_a_loss_at_each_step_is_judged_from_one_step(build: Any) -> None:
    signals = [
        build.record(f"{LOSS}/{build.state}", build.falling(0.0, noise=0.01), step=0),
        build.record(f"{STEP_LOSS}/{build.state}", build.falling(-0.3, noise=0.01), step=0),
    ]
    found = only(build.evidence([build.observe(signals)]))
    assert (found.code, found.evidence) == ("gradient-vanishing", (STEP_LOSS,))


def test_equal_rates_at_two_steps_are_no_change(build: Any) -> None:
    def signals(seed: int) -> list[Any]:
        name = f"{LOGIT}/{build.state}"
        return [build.record(name, build.falling(-0.1, noise=0.1, seed=seed + step), step) for step in (0, 1000)]

    assert [each.code for each in analyze(build.evidence(build.seeds(6, signals)))].count("regime-change") == 0


def test_a_change_along_the_lag_is_placed(build: Any) -> None:
    increments = np.where(np.arange(100) < 40, -0.2, 0.0) + 0.02 * np.random.default_rng(3).standard_normal(100)
    profile = np.concatenate([[0.0], np.cumsum(increments)])
    found = only(build.evidence([build.observe([build.record(f"{LOGIT}/s.h", profile[::-1, None])])]), "regime-change")
    assert found.details["lags"] == [40]
    assert found.details["rates"] == pytest.approx([-0.2, 0.0], abs=0.02)
    assert "at a lag of 40 steps" in found.claim
    steady = trained(build, -0.1, seeds=1, noise=0.02)
    assert [each.code for each in analyze(steady)].count("regime-change") == 0


def test_an_exact_zero_is_vanishing_without_a_rate_through_it(build: Any) -> None:
    values = build.falling(0.0, noise=0.01)
    values[:60] = -np.inf  # from a lag of 41 steps on
    found = only(build.evidence([build.observe([build.record(f"{LOGIT}/s.h", values)])]))
    assert (found.code, found.value, found.details["exact_zeros"]) == ("gradient-vanishing", 0.0, 1.0)
    assert "exactly zero over" in found.claim
    assert "log_attenuation" not in found.details


@pytest.mark.parametrize(
    ("zero", "code", "claimed"),
    [
        (30, "gradient-vanishing", "is exactly zero in 75 % of the sequences over"),
        (
            20,
            "not-enough-evidence",
            "It is exactly zero in 50 % of the sequences, which are left out of this: too many",
        ),
        (10, "not-enough-evidence", "exactly zero in 25 %"),
        (2, "gradient-healthy", "It is exactly zero in 5 % of the sequences, which are left out of this."),
    ],
)
def test_a_gradient_is_healthy_only_where_hardly_any_is_zero(build: Any, zero: int, code: str, claimed: str) -> None:
    values = build.falling(0.0, batch=40, noise=0.01)
    values[:60, :zero] = -np.inf
    found = only(build.evidence([build.observe([build.record(f"{LOGIT}/s.h", values)])]))
    assert (found.code, found.details["exact_zeros"]) == (code, zero / 40)
    assert claimed in found.claim
    assert "settled" not in found.claim
    assert (found.value == 0.0) == (code == "gradient-vanishing")


@pytest.mark.parametrize(
    ("dead", "code", "seeds"), [(3, "not-enough-evidence", 3), (4, "gradient-vanishing", 6), (0, "gradient-healthy", 6)]
)
def test_seeds_that_are_dead_are_no_part_of_the_interval(build: Any, dead: int, code: str, seeds: int) -> None:
    def signals(seed: int) -> list[Any]:
        values = build.falling(0.0, noise=0.01, seed=seed)
        if seed < dead:
            values[:60] = -np.inf
        return [build.record(f"{LOGIT}/s.h", values)]

    found = only(build.evidence([build.observe(signals(seed), seed) for seed in range(6)]))
    assert (found.code, found.seeds) == (code, seeds)
    assert found.details["exact_zeros"] == dead / 6
    assert ("exactly zero in" in found.claim) == (dead > 0)


def made_fit(model: str, exponent: float | None, rate: tuple[float, float]) -> Decay:
    """Return a fit over lags 0 to 99 with a mean rate between two ends."""
    low, high = rate
    power = None if exponent is None else Interval(exponent, exponent - 0.1, exponent + 0.1, 0.95, 6)
    mean = Interval((low + high) / 2, low, high, 0.95, 6)
    return Decay(model, mean, None, None, power, None, (None,), 1e-3, 100, (0, 99), 0.5, 0.5, 0.0, 0.0, 0.0)  # type: ignore[arg-type]  # a literal


@pytest.mark.parametrize(
    ("fit", "said"),
    [
        (made_fit("power", 1.0, (-0.06, -0.04)), "falls as the lag to the power -1 [-1.1, -0.9]"),  # ln 100 / 99
        (made_fit("power", -0.55, (-0.009, 0.004)), ""),  # a factor of 12 where 0.4 to 1.5 times are left
        (made_fit("power", 1.0, (-0.02, -0.01)), ": on average it shrinks by 1.5 % a step"),
        (made_fit("undecided", None, (-0.007, -0.0014)), ": on average it shrinks by 0.42 % a step"),
        (made_fit("undecided", None, (0.0014, 0.007)), ": on average it grows by 0.42 % a step"),
        (made_fit("undecided", None, (-0.01, 0.01)), ""),
    ],
)
def test_a_law_is_stated_only_where_it_gives_what_is_left(fit: Decay, said: str) -> None:
    judged = Judgement("gradient-healthy", fit.rate, 99, 0.0, 6, (), fit, None)
    found = _rate(judged)
    assert found.endswith(said)
    assert (found == "") == (said == "")
    assert "half-life" not in found


def test_a_diverged_seed_is_left_out_and_named(build: Any) -> None:
    evidence = trained(build, -0.2)
    broken = build.observe([build.record(f"{LOGIT}/{build.state}", np.full((101, 4), np.nan))], seed=9)
    found = only(build.evidence([*evidence.runs, broken]))
    assert (found.code, found.seeds, found.details["unusable_seeds"]) == ("gradient-vanishing", 6, [9])
    found = only(build.evidence([broken]))
    assert (found.code, found.seeds, found.value) == ("not-enough-evidence", 0, None)


def test_infinite_numbers_break_nothing(build: Any) -> None:
    for value in (np.inf, -np.inf):
        values = build.falling(0.0)
        values[30] = value
        values[50, 2] = np.nan
        signals = [build.record(f"{kind}/s.h", values, step) for kind in (LOGIT, LOSS) for step in (0, 10)]
        signals.append(build.record(LOGIT_INPUT, values, 10))
        for each in analyze(build.evidence([build.observe(signals)])):
            Finding.model_validate_json(each.model_dump_json())


def test_beyond_a_floats_range_the_number_is_still_said(build: Any) -> None:
    found = only(trained(build, -20.0, noise=0.0))
    assert "1e-869" in found.claim
    assert found.value == 0.0


def test_other_states_are_listed_where_they_differ(build: Any) -> None:
    def signals(seed: int) -> list[Any]:
        rates = {"layers.0.forward.h": -0.2, "layers.0.forward.c": 0.0, "layers.1.forward.h": -0.01}
        rates["layers.0.backward.h"] = -0.5
        made = [
            build.record(f"{LOGIT}/{name}", build.falling(rate, noise=0.01, seed=seed)) for name, rate in rates.items()
        ]
        return [*made, build.record(LOGIT_INPUT, build.falling(-0.1, noise=0.01, seed=seed))]

    found = only(build.evidence(build.seeds(6, signals)))
    assert (found.code, found.of) == ("gradient-healthy", "layers.0.forward")
    assert found.details["others"] == {"layers.0.forward.h": "gradient-vanishing"}
    assert found.details["input_log_attenuation"] == pytest.approx(-10, abs=0.5)
    assert found.details["input_verdict"] == "gradient-vanishing"


def test_a_whole_model_is_judged_by_its_inputs(build: Any) -> None:
    def signals(seed: int) -> list[Any]:
        return [build.record(LOSS_INPUT, build.falling(-0.2, noise=0.01, seed=seed), step) for step in (0, 1000)]

    runs = build.seeds(6, signals)
    last, first = analyze(build.evidence(runs))
    assert (last.code, last.of, last.step, first.step) == ("gradient-vanishing", "", 1000, 0)
    assert "by the input" in last.claim
    assert analyze(build.evidence(runs, task="copy")) == []  # a loss at each step has no lag
    assert analyze(build.evidence(runs, task="a user's own")) == []


def test_sequences_that_begin_late_leave_the_mean(build: Any) -> None:
    """Of variable length: before its beginning a shorter sequence is not a number."""
    values = build.falling(-0.2, batch=4, noise=0.01)
    values[:50, 2:] = np.nan
    found = only(build.evidence([build.observe([build.record(f"{LOGIT}/s.h", values)])]))
    assert found.code == "gradient-vanishing"
    assert found.details["log_attenuation"] == pytest.approx(-20, abs=0.5)


def test_without_signals_nothing_is_said(build: Any) -> None:
    assert analyze(build.evidence([build.observe()])) == []
    assert analyze(build.evidence([])) == []


def test_judging_no_profile_is_no_verdict(build: Any) -> None:
    assert judge([], 10).code == "not-enough-evidence"
    one = lag_profile(Signals([build.record(f"{LOGIT}/s.h", [[0.0]])]), LOGIT, "s")
    assert one is not None
    assert judge([(0, one)], 10).code == "not-enough-evidence"


def censored(build: Any, rate: float, from_lag: int, seen: float = -math.inf, **fields: Any) -> list[Finding]:
    """Return what is said of a loss gradient that the precision loses from a lag on."""
    true = build.falling(rate, noise=0.001)
    gone = (np.arange(101)[::-1] >= from_lag)[:, None] & np.ones((1, 4), dtype=bool)
    signals = [
        build.record(f"{LOSS}/s.h", true, 10),
        build.record("adjoint.seen_log_norm/s.h", np.where(gone, seen, true), 10),
        build.record("adjoint.censored/s.h", gone, 10),
    ]
    status = fields.pop("status", "completed")
    found = analyze(build.evidence([build.observe(signals, status=status)], precision="float16", **fields))
    return [each for each in found if each.code == "gradient-underflow"]


@pytest.mark.parametrize(
    ("rate", "from_lag", "status", "severity"),
    [
        (-0.01, 50, "completed", Severity.PROBLEM),  # a third is left at the needed lag, and the precision loses it
        (-0.2, 50, "completed", Severity.WARNING),  # it has vanished anyway
        (-0.01, 0, "completed", Severity.PROBLEM),  # lost from the start
        (-0.01, 50, "solved", Severity.INFO),
    ],
)
def test_underflow_is_told_from_vanishing(
    build: Any, rate: float, from_lag: int, status: str, severity: Severity
) -> None:
    (found,) = censored(build, rate, from_lag, status=status)
    assert (found.severity, found.value) == (severity, float(from_lag))
    assert "float16" in found.claim


def test_underflow_beyond_the_needed_lag_is_no_matter(build: Any) -> None:
    (found,) = censored(build, -0.01, 50, lag=40)
    assert found.severity == Severity.INFO
    assert censored(build, -0.2, 101) == []


def test_a_gradient_too_large_for_the_precision_is_said_to_be(build: Any) -> None:
    (found,) = censored(build, 0.2, 50, seen=math.inf)
    assert "beyond the largest number" in found.claim
    assert found.severity == Severity.PROBLEM


def test_a_state_that_still_holds_keeps_the_gradient(build: Any) -> None:
    """An LSTM's h may be lost while c carries it on; c's exact zero at lag 0 is no loss."""
    h, c = build.falling(-0.01), build.falling(-0.01)
    c[-1] = -np.inf
    lost = np.ones((101, 4))
    signals = [
        build.record(f"{LOSS}/s.h", h),
        build.record(f"{LOSS}/s.c", c),
        build.record("adjoint.censored/s.h", lost),
        build.record("adjoint.censored/s.c", 0 * lost),
    ]
    assert "gradient-underflow" not in [each.code for each in analyze(build.evidence([build.observe(signals)]))]
    signals[3] = build.record("adjoint.censored/s.c", np.where(np.arange(101)[:, None] < 30, lost, 0))
    found = [each for each in analyze(build.evidence([build.observe(signals)])) if each.code == "gradient-underflow"]
    assert found[0].value == 71.0
