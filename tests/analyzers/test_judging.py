"""Intervals over seeds and numbers in words."""

from __future__ import annotations

import math

import pytest
from rnnbench_analyzers.judging import (
    above,
    below,
    counted,
    number,
    over_seeds,
    percent,
    percent_span,
    power,
    power_span,
    span,
    when,
)

from rnnbench.stats import Interval


def interval(value: float, low: float, high: float) -> Interval:
    return Interval(value, low, high, 0.95, 3)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0741, "0.074"), (61.2, "61"), (783.6, "784"), (2.1e-7, "2.1e-07"), (0.0, "0"), (-1.25e6, "-1.2e+06")],
)
def test_numbers_are_short(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(
    ("ln", "text"), [(math.log(2.1e-7), "2.1e-07"), (-2000.0, "1e-869"), (2000.0, "1e+869"), (-math.inf, "0")]
)
def test_powers_are_said_beyond_a_floats_range(ln: float, text: str) -> None:
    assert power(ln) == text


def test_an_interval_takes_the_digits_that_tell_it_apart() -> None:
    assert span(interval(61, 55, 67), "steps") == "61 [55, 67] steps"
    assert span(interval(0.20012, 0.19912, 0.20112)) == "0.2 [0.199, 0.201]"
    assert span(interval(5, 5, 5)) == "5 [5, 5]"
    assert span(over_seeds([3.0]) or interval(0, 0, 0)) == "3"
    assert power_span(interval(-2000, -2100, -1900)) == "1e-869 [1e-912, 1e-825]"
    assert percent_span(interval(0.74, 0.61, 0.84)) == "74 [61, 84] %"
    assert (percent(0.074), counted(1, "seed"), counted(0, "seed")) == ("7.4 %", "1 seed", "0 seeds")
    assert (when([5, 5]), when([7, 5])) == ("At step 5", "At the last probed step (5 to 7)")


def test_a_seed_alone_speaks_by_its_value_and_several_by_their_interval() -> None:
    alone = over_seeds([2.0])
    assert alone is not None
    assert above(alone, 1)
    assert below(alone, 3)
    assert not above(interval(2, 0, 4), 1)
    assert not below(interval(2, 0, 4), 3)
    assert above(interval(2, 1.5, 4), 1)
    assert below(interval(2, 1.5, 2.5), 3)


def test_only_finite_values_count_and_none_is_none() -> None:
    assert over_seeds([math.nan, -math.inf]) is None
    found = over_seeds([1.0, math.nan, 2.0])
    assert found is not None
    assert (found.value, found.n) == (1.5, 2)
    cut = over_seeds([0.0, 1.0], least=0.0, most=1.0)
    assert cut is not None
    assert (cut.low, cut.high) == (0.0, 1.0)
