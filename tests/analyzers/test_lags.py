"""Where gradients come from, on parts whose sum is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.lags import CUT, LEAST, analyze, first_far, near_steps, origin, parameter

from rnnbench.findings import Severity

OF = "layers.0.forward.weight_hh"


def signals(build: Any, vectors: Any, of: str = OF, step: int = 1000) -> list[Any]:
    """Return what the probe records of parts [lag entry]."""
    vectors = np.asarray(vectors, dtype=np.float64)
    whole = vectors.sum(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            build.record(f"lags.share/{of}", vectors @ whole / (whole @ whole), step),
            build.record(f"lags.log_norm/{of}", np.log(np.linalg.norm(vectors, axis=1)), step),
            build.record(
                f"lags.beyond_log_norm/{of}",
                np.log(np.linalg.norm(np.cumsum(vectors[::-1], axis=0)[::-1], axis=1)),
                step,
            ),
        ]


def decaying(rate: float, norm: float = 0.2, length: int = 101) -> Any:
    """Return parts along one direction that fall by `rate` a step, in all of a norm."""
    parts = np.exp(rate * np.arange(length))[:, None]
    return norm * parts / parts.sum()


def runs(build: Any, *rates: float, **fields: Any) -> Any:
    status = {name: fields.pop(name) for name in ("status",) if name in fields}
    made = [build.observe(signals(build, decaying(rate)), seed, **status) for seed, rate in enumerate(rates)]
    return build.evidence(made, **fields)


def test_planted_numbers_come_out(build: Any) -> None:
    """exp(-k / 4): beyond lag n comes exp(-n / 4) of it, but for the 1e-11 that 101 steps leave out."""
    (found,) = analyze(runs(build, -0.25))
    assert (found.code, found.severity, found.of, found.step) == ("gradient-local", Severity.PROBLEM, OF, 1000)
    assert found.value == pytest.approx(math.exp(-51 / 4), rel=1e-4)
    assert found.details["first_far_lag"] == 51
    assert found.details["near_steps"] == math.ceil(4 * math.log(10))
    assert found.details["decades"] == pytest.approx(-51 / 4 / math.log(10), rel=1e-4)
    assert found.details["log_norm"] == pytest.approx(math.log(0.2))
    assert found.details["signed_share"] == pytest.approx(found.value)
    assert found.details["log_gross"] == pytest.approx(0.0, abs=1e-12)
    assert found.claim == (
        "At step 1000 dL/d layers.0.forward.weight_hh has a norm of 0.2, of which 90 % comes from the 10 steps nearest "
        "to the loss. From lag 51 and beyond, the farther half of the 100 steps that the task needs, comes 2.9e-06 of "
        "it: the norm says nothing of the lag that matters."
    )


def test_the_same_norm_from_everywhere_is_ok(build: Any) -> None:
    (found,) = analyze(runs(build, 0.0))
    assert (found.code, found.severity) == ("gradient-spread", Severity.OK)
    assert found.value == pytest.approx(50 / 101)
    assert found.details["near_steps"] == 91  # ten of 101 parts are less than a tenth, eleven are more
    assert found.details["log_norm"] == pytest.approx(math.log(0.2))
    assert found.claim.endswith("comes 0.5 of it.")


@pytest.mark.parametrize(("share", "code"), [(0.9, "gradient-local"), (1.1, "gradient-spread")])
def test_the_limit_is_where_it_is_said_to_be(build: Any, share: float, code: str) -> None:
    vectors = np.zeros((101, 1))
    vectors[0], vectors[51] = 1 - share * LEAST, share * LEAST
    assert analyze(build.evidence([build.observe(signals(build, vectors))]))[0].code == code
    vectors[50], vectors[51] = vectors[51], 0.0  # half of the needed lag is not beyond it
    (found,) = analyze(build.evidence([build.observe(signals(build, vectors))]))
    assert (found.code, found.value) == ("gradient-local", 0.0)


def test_parts_that_cancel_are_no_gradient(build: Any) -> None:
    """Far parts of the size of the whole, each the next one's opposite: their sum is what counts, not their sizes."""
    vectors = np.zeros((101, 1))
    vectors[0] = 1.0
    vectors[61:101] = np.tile([[1.0], [-1.0]], (20, 1))
    vectors[60] = 1e-5
    (found,) = analyze(build.evidence([build.observe(signals(build, vectors))]))
    assert (found.code, found.value) == ("gradient-local", pytest.approx(1e-5, rel=1e-4))
    assert found.details["log_gross"] == pytest.approx(math.log(41), rel=1e-4)
    # wherever it is cut off between two that cancel, one of them is missing
    assert found.details["near_steps"] == 101


def test_a_far_part_at_a_right_angle_counts(build: Any) -> None:
    """Its signed share of the gradient is far smaller than its norm."""
    vectors = np.zeros((101, 2))
    vectors[0], vectors[80] = [1.0, 0.0], [0.0, 0.02]
    (found,) = analyze(build.evidence([build.observe(signals(build, vectors))]))
    assert (found.code, found.value) == ("gradient-spread", pytest.approx(0.02, rel=1e-3))
    assert found.details["signed_share"] == pytest.approx(0.0004, rel=1e-3)


def test_a_share_can_exceed_one(build: Any) -> None:
    vectors = np.zeros((101, 1))
    vectors[0], vectors[80] = -0.9, 1.0
    (found,) = analyze(build.evidence([build.observe(signals(build, vectors))]))
    assert (found.code, found.value) == ("gradient-spread", pytest.approx(10.0))


def test_seeds_have_to_agree(build: Any) -> None:
    (found,) = analyze(runs(build, -0.25, -0.26, -0.24))
    assert (found.code, found.seeds) == ("gradient-local", 3)
    assert found.low is not None
    assert found.high is not None
    assert found.low < math.exp(-51 / 4) < found.high < LEAST
    assert "9.7 [8.2, 11] steps" in found.claim
    (found,) = analyze(runs(build, -0.25, -0.01, -0.1))
    assert found.code == "not-enough-evidence"
    assert found.claim.endswith("; whether that is less than 0.001 is not settled.")


def test_an_exact_zero_is_told_apart(build: Any) -> None:
    vectors = np.zeros((101, 1))
    vectors[:7] = 1.0

    def found(zeros: int, others: int) -> Any:
        made = [build.observe(signals(build, vectors), seed) for seed in range(zeros)]
        made += [build.observe(signals(build, decaying(-0.01)), zeros + seed) for seed in range(others)]
        (one,) = analyze(build.evidence(made))
        return one

    every = found(2, 0)
    assert (every.code, every.value, every.details["zero_seeds"]) == ("gradient-local", 0.0, 2)
    assert "comes exactly none of it: the norm" in every.claim
    most = found(2, 1)
    assert (most.code, most.value) == ("gradient-local", 0.0)
    assert "exactly none of it in 2 of 3 seeds: " in most.claim
    few = found(1, 2)
    assert few.code == "not-enough-evidence"
    assert ", and exactly none in 1 seed; whether" in few.claim


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_or_no_gradient_is_nothing_to_judge(build: Any, value: float) -> None:
    bad = [build.record(f"lags.beyond_log_norm/{OF}", np.full(101, value))]
    (found,) = analyze(build.evidence([build.observe(bad)]))
    assert (found.code, found.value, found.seeds) == ("not-enough-evidence", None, 0)
    assert found.details["unusable_seeds"] == [0]
    assert "is zero or holds no number" in found.claim
    good = build.observe(signals(build, decaying(-0.25)), 1)
    (found,) = analyze(build.evidence([build.observe(bad), good]))
    assert (found.code, found.seeds, found.details["unusable_seeds"]) == ("gradient-local", 1, [0])


def test_a_gradient_beyond_a_float_is_judged(build: Any) -> None:
    beyond = -30.0 * np.arange(101.0) - 900.0
    (found,) = analyze(build.evidence([build.observe([build.record(f"lags.beyond_log_norm/{OF}", beyond)])]))
    assert (found.code, found.details["near_steps"], found.details["signed_share"]) == ("gradient-local", 1, None)
    assert "a norm of 1e-391, of which 90 % comes from the one step nearest" in found.claim
    assert "comes 1e-664 of it" in found.claim
    (found,) = analyze(build.evidence([build.observe([build.record(f"lags.beyond_log_norm/{OF}", -beyond)])]))
    assert (found.code, found.value) == ("gradient-spread", None)


def test_before_and_after_training(build: Any) -> None:
    def both(first: float, last: float) -> Any:
        recorded = [*signals(build, decaying(first), step=0), *signals(build, decaying(last))]
        return [(one.code, one.severity, one.step) for one in analyze(build.evidence([build.observe(recorded)]))]

    assert both(-0.01, -0.25) == [("gradient-local", Severity.PROBLEM, 1000), ("gradient-spread", Severity.OK, 0)]
    assert both(-0.25, -0.01) == [("gradient-spread", Severity.OK, 1000), ("gradient-local", Severity.INFO, 0)]
    assert both(-0.25, -0.3)[1] == ("gradient-local", Severity.PROBLEM, 0)


def test_solved_or_unknown_is_milder(build: Any) -> None:
    assert analyze(runs(build, -0.25, status="solved"))[0].severity == Severity.INFO
    (found,) = analyze(runs(build, -0.25, lag=None))
    assert found.severity == Severity.WARNING
    assert "of the whole sequence (how far back the task needs is not known)" in found.claim
    (found,) = analyze(runs(build, -0.25, lag=None, context={"need": 20}))
    assert (found.code, found.details["first_far_lag"]) == ("gradient-spread", 11)
    assert analyze(runs(build, -0.25, lag=0)) == []


def test_the_recurrent_weight_of_the_lowest_forward_layer_is_judged(build: Any) -> None:
    names = ("layers.1.forward.weight_hh", "layers.0.backward.weight_hh", "layers.0.forward.bias", OF)
    recorded = [one for name in names for one in signals(build, decaying(-0.25 if name == OF else 0.0), name)]
    evidence = build.evidence([build.observe(recorded)])
    assert parameter(evidence) == OF
    (found,) = analyze(evidence)
    assert (found.code, found.of) == ("gradient-local", OF)
    assert list(found.details["parameters"]) == ["layers.0.forward.bias", OF]
    assert found.details["parameters"]["layers.0.forward.bias"]["log_far"] == pytest.approx(math.log(50 / 101))


def test_of_other_names_the_largest_gradient_is_judged(build: Any) -> None:
    sizes = {"layers.0.forward.a": 1.0, "layers.0.forward.b": 3.0, "layers.0.forward.c": 0.0}
    recorded = [one for name, norm in sizes.items() for one in signals(build, decaying(-0.1, norm), name)]
    assert parameter(build.evidence([build.observe(recorded)])) == "layers.0.forward.b"
    assert parameter(build.evidence([build.observe()])) is None


@pytest.mark.parametrize(("need", "expected"), [(1, 1), (2, 2), (3, 2), (99, 50), (100, 51)])
def test_far_is_more_than_half(need: int, expected: int) -> None:
    assert first_far(need) == expected


def test_near_is_where_nothing_later_matters() -> None:
    def near(*left: float) -> int:
        with np.errstate(divide="ignore"):
            return near_steps(np.log(left))

    assert near(1.0, CUT * 0.99, 0.0) == 1
    assert near(1.0, CUT * 1.01, 0.0) == 2
    assert near(1.0, 0.01, 0.5, 0.01) == 3
    assert near(1.0, 1.0, 1.0) == 3


def test_a_recording_that_ends_before_the_far_half_decides_nothing(build: Any) -> None:
    run = build.observe(signals(build, decaying(-0.25, length=51)))
    assert origin(run.signals, OF, None, 100) is None
    assert origin(run.signals, OF, None, 99) is not None
    assert origin(run.signals, OF, 7, 99) is None
    assert analyze(build.evidence([run]))[0].code == "not-enough-evidence"
