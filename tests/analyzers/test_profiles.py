"""Lag profiles against plain loops, and what is no number never enters a mean unseen."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from rnnbench_analyzers.profiles import (
    LOGIT,
    LOSS,
    STEP_LOSS,
    by_lag,
    headline_scope,
    lag_profile,
    loss_profile,
    mean_by_lag,
    needed_lag,
    stacked,
)

from rnnbench.signals import Signals


def test_lag_zero_is_the_last_step_and_the_first_where_time_runs_backward(build: Any) -> None:
    values = np.arange(12.0).reshape(4, 3)  # [time batch]
    signals = Signals(
        [build.record(f"{LOSS}/layers.0.forward.h", values), build.record(f"{LOSS}/layers.0.backward.h", values)]
    )
    forward = lag_profile(signals, LOSS, "layers.0.forward.h")
    assert forward is not None
    assert [forward.mean[lag] for lag in range(4)] == [np.mean(values[3 - lag]) for lag in range(4)]
    backward = lag_profile(signals, LOSS, "layers.0.backward.h")  # one loss, for which it is read at t = 0
    assert backward is not None
    assert [backward.mean[lag] for lag in range(4)] == [np.mean(values[lag]) for lag in range(4)]
    each = build.record(f"{STEP_LOSS}/layers.0.forward.h", values)
    signals = Signals([*signals, each, build.record("adjoint.loss_step", 1.0)])
    forward, backward = (lag_profile(signals, LOSS, f"layers.0.{way}.h") for way in ("forward", "backward"))
    assert forward is not None
    assert backward is not None
    assert list(forward.mean) == [4.0, 1.0]  # t = 1, 0
    assert list(backward.mean) == [4.0, 7.0, 10.0]  # t = 1, 2, 3
    assert list(forward.lags) == [0, 1]


def test_a_scope_is_the_norm_over_its_states(build: Any) -> None:
    rng = np.random.default_rng(0)
    h, c = rng.standard_normal((2, 5, 3, 7))  # [state time batch unit]
    names = {"layers.0.forward.h": h, "layers.0.forward.c": c, "layers.1.forward.h": 9 * h}
    signals = [build.record(f"{LOGIT}/{of}", np.log(np.linalg.norm(v, axis=-1))) for of, v in names.items()]
    found = lag_profile(Signals(signals), LOGIT, "layers.0.forward")
    assert found is not None
    whole = np.log(np.linalg.norm(np.concatenate([h, c], axis=-1), axis=-1))[::-1]
    np.testing.assert_allclose(found.values, whole, rtol=1e-12)  # a few operations in float64


def test_a_zero_of_one_state_leaves_the_others(build: Any) -> None:
    signals = [build.record(f"{LOGIT}/s.h", [[1.0], [2.0]]), build.record(f"{LOGIT}/s.c", [[-math.inf], [-math.inf]])]
    found = lag_profile(Signals(signals), LOGIT, "s")
    assert found is not None
    np.testing.assert_allclose(found.mean, [2.0, 1.0], rtol=1e-15)


def test_the_mean_is_plain_where_all_is_finite() -> None:
    values = np.random.default_rng(1).standard_normal((20, 5))
    mean, zeros, bad = mean_by_lag(values)
    np.testing.assert_allclose(mean, [np.mean(row) for row in values], rtol=0, atol=1e-14)  # a sum of 20 differences
    assert not zeros.any()
    assert not bad.any()


def test_a_sequence_that_drops_to_zero_leaves_the_mean_without_moving_it() -> None:
    """Both fall by 1 a step; the smaller one ends. A mean over the rest would jump up by 50."""
    values = np.array([[0.0, -100.0], [-1.0, -101.0], [-2.0, -math.inf], [-3.0, -math.inf]])
    mean, zeros, bad = mean_by_lag(values)
    np.testing.assert_allclose(np.diff(mean), [-1.0, -1.0, -1.0])
    assert mean[0] == -50.0
    assert list(zeros) == [0.0, 0.0, 0.5, 0.5]
    assert not bad.any()


@pytest.mark.parametrize(
    ("row", "mean", "zeros", "bad"),
    [
        ([-math.inf, -math.inf], -math.inf, 1.0, 0.0),
        ([math.nan, -math.inf], math.nan, 0.5, 0.5),
        ([math.nan, math.inf], math.nan, 0.0, 1.0),
        ([math.nan, 2.0], 1.0, 0.0, 0.5),  # linked over the sequence that is finite at both lags: 0.5 + (2 - 1.5)
    ],
)
def test_what_is_no_number_is_told(row: list[float], mean: float, zeros: float, bad: float) -> None:
    found = mean_by_lag(np.array([[-0.5, 1.5], row]))
    assert found[0][1] == pytest.approx(mean, nan_ok=True)
    assert (found[1][1], found[2][1]) == (zeros, bad)


def test_a_lag_without_record_is_passed_over() -> None:
    mean, _, bad = mean_by_lag(np.array([[0.0], [math.nan], [-2.0]]))
    assert list(mean[[0, 2]]) == [0.0, -2.0]
    assert math.isnan(mean[1])
    assert bad[1] == 1.0


def test_the_gradient_returns_after_zeros() -> None:
    mean, zeros, _ = mean_by_lag(np.array([[0.0, 0.0], [-math.inf, -math.inf], [-3.0, -math.inf]]))
    assert list(mean) == [0.0, -math.inf, -3.0]
    assert list(zeros) == [0.0, 1.0, 0.5]


def test_a_loss_at_each_step_is_followed_from_one(build: Any) -> None:
    both = [build.record(f"{LOSS}/s.h", [[1.0]]), build.record(f"{STEP_LOSS}/s.h", [[2.0]])]
    kinds = [found.kind for signals in (both, both[:1]) if (found := loss_profile(Signals(signals), "s.h"))]
    assert kinds == [STEP_LOSS, LOSS]
    assert loss_profile(Signals(), "s.h") is None


def test_the_headline_is_the_lowest_layer_that_reads_forward(build: Any) -> None:
    names = ("layers.10.forward.h", "layers.1.forward.h", "layers.0.backward.h", "layers.2.forward.h")
    signals = Signals([build.record(f"{LOGIT}/{name}", [[0.0]]) for name in names])
    assert headline_scope(signals) == "layers.1.forward"
    assert headline_scope(Signals()) is None


def test_the_last_step_is_taken_unless_one_is_named(build: Any) -> None:
    signals = Signals([build.record(f"{LOGIT}/s.h", [[float(step)]], step=step) for step in (0, 10, 5)])
    assert [found.step for step in (None, 5) if (found := lag_profile(signals, LOGIT, "s", step))] == [10, 5]
    assert lag_profile(signals, LOGIT, "s", 7) is None


def test_runs_of_different_length_are_stacked(build: Any) -> None:
    signals = [Signals([build.record(f"{LOGIT}/s.h", np.zeros((n, 1)))]) for n in (2, 3)]
    profiles = [found for each in signals if (found := lag_profile(each, LOGIT, "s.h"))]
    np.testing.assert_array_equal(stacked(profiles), [[0.0, 0.0, math.nan], [0.0, 0.0, 0.0]])
    assert stacked([]).shape == (0, 0)


def test_by_lag_keeps_further_axes() -> None:
    values = np.arange(24).reshape(4, 3, 2)
    assert by_lag(values, 3)[0].tolist() == values[3].tolist()
    assert by_lag(values, 0, "a.backward.h").shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("fields", "lag", "said"),
    [
        ({"lag": 30}, 30, "task needs"),
        ({"lag": None, "context": {"need": 12}}, 12, "reference models"),
        ({"lag": None, "context": {"need": None}}, 100, "not known"),
    ],
)
def test_the_needed_lag_says_where_it_is_from(build: Any, fields: dict[str, Any], lag: int, said: str) -> None:
    found, words = needed_lag(build.evidence([], **fields))
    assert found == lag
    assert said in words
