"""Verdicts on planted Lyapunov exponents."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.dynamics import GROWTH, LEFT, SUM_ERROR, analyze, margin

from rnnbench.findings import Severity


def spectra(build: Any, largest: float, seeds: int = 6, spread: float = 0.001, **fields: Any) -> Any:
    def signals(seed: int) -> list[Any]:
        top = largest + spread * np.random.default_rng(seed).standard_normal(8)
        return [build.record("spectrum.exponents/network", np.stack([top, top - 0.5, top - 1], axis=1))]

    return build.evidence(build.seeds(seeds, signals, **fields))


@pytest.mark.parametrize("seeds", [1, 6])
@pytest.mark.parametrize(("largest", "code"), [(0.06, "dynamics-chaotic"), (-0.06, "dynamics-stable")])
def test_the_sign_decides(build: Any, largest: float, code: str, seeds: int) -> None:
    (found,) = analyze(spectra(build, largest, seeds))
    assert (found.code, found.seeds, found.of, found.unit) == (code, seeds, "network", "1/step")
    assert found.low < largest < found.high
    assert re.search(r"(grows tenfold|falls to a tenth) in 3[789] steps", found.claim)  # ln 10 / 0.06 = 38


def test_what_contracts_over_the_needed_lag_is_no_praise(build: Any) -> None:
    (found,) = analyze(spectra(build, -0.2))
    assert (found.code, found.severity) == ("dynamics-stable", Severity.INFO)
    assert "it contracts, and a disturbance falls to 2.1e-09 over the 100 steps that the task needs." in found.claim
    enough = math.log(LEFT) / 100  # a step
    assert analyze(spectra(build, enough - 0.003))[0].severity == Severity.INFO
    assert analyze(spectra(build, enough + 0.003))[0].severity == Severity.OK
    assert analyze(spectra(build, -0.2, 1))[0].severity == Severity.INFO


def test_contraction_over_an_unknown_need_is_only_stable(build: Any) -> None:
    runs = spectra(build, -0.2).runs
    assert analyze(build.evidence(runs, lag=None))[0].severity == Severity.OK
    assert analyze(build.evidence(runs, lag=None, context={"need": 50}))[0].severity == Severity.INFO
    assert analyze(build.evidence(runs, lag=5))[0].severity == Severity.OK


def test_a_neutral_system_is_no_chaos(build: Any) -> None:
    (found,) = analyze(spectra(build, 0.0))
    assert found.code == "dynamics-stable"
    assert "neither grows nor falls" in found.claim


def test_the_margin_is_tenfold_over_the_sequence(build: Any) -> None:
    evidence = spectra(build, 0.0)
    assert margin(evidence) == math.log(GROWTH) / 101
    (found,) = analyze(spectra(build, margin(evidence), spread=0.01))
    assert (found.code, found.severity) == ("not-enough-evidence", Severity.INFO)
    (found,) = analyze(spectra(build, margin(evidence) + 0.02))
    assert found.code == "dynamics-chaotic"


def test_two_seeds_that_disagree_settle_nothing(build: Any) -> None:
    runs = [*spectra(build, 0.3, 1).runs, build.observe(spectra(build, -0.3, 1).runs[0].signals, seed=1)]
    (found,) = analyze(build.evidence(runs))
    assert found.code == "not-enough-evidence"


def test_chaos_in_what_solved_the_task_is_a_remark(build: Any) -> None:
    assert analyze(spectra(build, 0.2))[0].severity == Severity.WARNING
    assert analyze(spectra(build, 0.2, status="solved"))[0].severity == Severity.INFO


@pytest.mark.parametrize(
    ("error", "determinant", "trusted"),
    [
        (SUM_ERROR / 2, -1.0, True),
        (SUM_ERROR * 2, -1.0, False),
        (SUM_ERROR * 2, -300.0, True),  # relative to what is summed
        (math.nan, -math.inf, True),  # a singular Jacobian: both sides are -inf
        (math.nan, -1.0, False),
    ],
)
def test_exponents_that_do_not_sum_to_the_determinant_are_refused(
    build: Any, error: float, determinant: float, trusted: bool
) -> None:
    signals = [
        *spectra(build, 0.2, 1).runs[0].signals,
        build.record("spectrum.sum_error/network", [error] * 8),
        build.record("spectrum.log_det/network", np.full((101, 8), determinant)),
    ]
    (found,) = analyze(build.evidence([build.observe(signals)]))
    assert found.code == ("dynamics-chaotic" if trusted else "not-enough-evidence")
    assert trusted or "not to be trusted" in found.claim


def test_training_that_changed_the_verdict_is_told(build: Any) -> None:
    def at(step: int, value: float) -> Any:
        return build.record("spectrum.exponents/network", np.full((4, 1), value) + 0.001 * np.arange(4)[:, None], step)

    last, first = analyze(build.evidence([build.observe([at(0, -0.2), at(100, -0.1), at(1000, 0.2)])]))
    assert (last.code, last.step, first.code, first.step) == ("dynamics-chaotic", 1000, "dynamics-stable", 0)
    assert len(analyze(build.evidence([build.observe([at(0, -0.2), at(1000, -0.1)])]))) == 1


def test_no_number_is_averaged_in(build: Any) -> None:
    """One sequence without a number is left out and its seed named; a seed without any is no evidence."""
    values = np.array([[0.2], [np.nan], [0.21], [0.2]])
    (found,) = analyze(build.evidence([build.observe([build.record("spectrum.exponents/network", values)])]))
    assert found.value == pytest.approx(0.61 / 3)
    assert found.details["unusable_seeds"] == [0]
    (found,) = analyze(build.evidence([build.observe([build.record("spectrum.exponents/network", values * np.nan)])]))
    assert found.code == "not-enough-evidence"
    values[1] = -np.inf
    analyze(build.evidence([build.observe([build.record("spectrum.exponents/network", values)])]))


def test_weights_and_transient_growth_are_in_the_details(build: Any) -> None:
    """Non-normal: the propagator rises to 3 at lag 2 before it falls as the exponent says."""
    lags = np.array([1.0, 2.0, 10.0])
    signals = [
        *spectra(build, -0.2, 1, spread=0.0).runs[0].signals,
        build.record("propagator.lags", lags),
        build.record("propagator.log_norm/network", np.tile((-0.2 * lags + [1, 3, 2])[None, :, None], (2, 1, 4))),
        build.record("spectrum.radius/layers.0.W_hh", 0.8),
        build.record("spectrum.departure/layers.0.W_hh", 0.6),
    ]
    (found,) = analyze(build.evidence([build.observe(signals)]))
    assert found.details["transient_log_growth"] == pytest.approx(3)
    assert found.details["transient_lag"] == 2
    assert found.details["radius"] == {"layers.0.W_hh": 0.8}
    assert found.details["departure"] == {"layers.0.W_hh": 0.6}


def test_without_exponents_nothing_is_said(build: Any) -> None:
    assert analyze(build.evidence([build.observe()])) == []
