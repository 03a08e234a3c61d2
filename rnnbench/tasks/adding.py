"""The adding task: the sum of two marked numbers in a long sequence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from rnnbench.tasks.base import (
    Baseline,
    Batch,
    EvalSplit,
    GeneratedTask,
    LossName,
    Metric,
    Readout,
    Source,
    scaled,
)

Values = Literal["unit", "symmetric", "half"]
Target = Literal["sum", "half_sum", "scaled"]

RANGES: dict[str, tuple[float, float]] = {"unit": (0.0, 1.0), "symmetric": (-1.0, 1.0), "half": (-0.5, 0.5)}
TARGETS: dict[str, tuple[float, float]] = {"sum": (1.0, 0.0), "half_sum": (0.5, 0.0), "scaled": (0.25, 0.5)}
"""Scale a and shift c of the target a (X1 + X2) + c."""


class _Markers(NamedTuple):
    """What a marker variant brings with it: its paper's values and target, and the shortest sequence it works on."""

    values: Values
    target: Target
    least: int


MARKERS: dict[str, _Markers] = {
    "halves": _Markers("unit", "sum", 2),
    "any": _Markers("unit", "sum", 2),
    "skip_rnn": _Markers("half", "sum", 10),
    "hs1997": _Markers("symmetric", "scaled", 20),
    "pascanu": _Markers("unit", "half_sum", 10),
}


class Adding(GeneratedTask):
    """Add the two marked numbers of a sequence of random numbers.

    The input is (value, marker) at each step; steps are counted from 0. Marker variants, with the values and the
    target that their papers use (either may be set apart):

    - ``halves``: one in [0, T//2), one in [T//2, T); U[0,1]; the sum (uRNN, coRNN, LEM, JANET, chrono).
    - ``any``: any two different steps; U[0,1]; the sum (TCN).
    - ``skip_rnn``: one in [0, T//10), one in [T//2, T); U[-0.5,0.5]; the sum.
    - ``hs1997``: length U{T..T+T//10}; one of the first ten steps, then one of the first T//2 - 1 steps still
      unmarked (so of the first T//2 without the one taken); markers are -1 on the first and the last step, 0 elsewhere.
      A marked first step keeps its marker 1 and has its value set to zero. U[-1,1]; target 0.5 + (X1+X2)/4.
    - ``pascanu``: length L = U{T..T+T//10-1}, drawn for each sequence (the public code draws one for each batch); one
      in [0, L//10), one in [L//10, L//10 + 4L//10); U[0,1]; half the sum. The public code has the marker first.
    """

    name: ClassVar[str] = "adding"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "Hochreiter & Schmidhuber 1997, s5.4 (hs1997); amarshah/complex_RNN adding_problem.py (halves); locuslab/TCN "
        "adding_problem/utils.py (any); Campos et al., ICLR 2018, 01_adding_task.py (skip_rnn); "
        "pascanur/trainingRNNs addition.py (pascanu)"
    )
    equation: ClassVar[str] = "y = a (X1 + X2) + c; (a, c) = (1, 0) sum, (1/2, 0) half_sum, (1/4, 1/2) scaled"
    loss: ClassVar[LossName] = "mse"
    readout: ClassVar[Readout] = "last"

    T: int = Field(100, ge=2, le=10**6, description="sequence length; the shortest one where lengths vary")
    markers: Literal["halves", "any", "skip_rnn", "hs1997", "pascanu"] = Field(
        "halves", description="where the two markers may fall"
    )
    values: Values | None = Field(
        None, description="unit [0,1], symmetric [-1,1] or half [-0.5,0.5]; by default as in the markers' paper"
    )
    target: Target | None = Field(
        None, description="sum, half_sum or scaled (0.5 + sum/4); by default as in the markers' paper"
    )

    @model_validator(mode="after")
    def _long_enough(self) -> Self:
        least = MARKERS[self.markers].least
        if least > self.T:
            raise ValueError(f"T = {self.T} is too short for markers {self.markers}, which need at least {least}")
        return self

    @property
    def n_in(self) -> int:
        return 2

    @property
    def n_out(self) -> int:
        return 1

    @property
    def length(self) -> int:
        return self._longest(self.T)

    def _longest(self, T: int) -> int:
        """Return the longest sequence of a task of nominal length `T`."""
        return {"hs1997": T + T // 10, "pascanu": T + T // 10 - 1}.get(self.markers, T)

    @property
    def variable_length(self) -> bool:
        return self.length > self.T

    @property
    def lag(self) -> int:
        # 1997's first step counts as zero whether it is marked or not, so the second is the first that matters
        return self.length - (2 if self.markers == "hs1997" else 1)

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest value."""
        return RANGES[self.values or MARKERS[self.markers].values]

    @property
    def affine(self) -> tuple[float, float]:
        """Scale a and shift c of the target a (X1 + X2) + c."""
        return TARGETS[self.target or MARKERS[self.markers].target]

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            "mse": Metric("mse", "lower"),
            "correct": Metric("within", "higher", threshold=0.04),
            "correct_squared": Metric("squared_within", "higher", threshold=0.04),
        }

    @property
    def metric(self) -> str:
        return "mse"

    def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
        """Draw `n` sequences; difficulty scales T (at least the variant's shortest).

        Drawn in this order: lengths (where they vary), first positions, second positions, values [time batch].
        """
        T = scaled(self.T, difficulty, MARKERS[self.markers].least)
        longest = self._longest(T)
        lengths = rng.integers(T, longest + 1, size=n) if longest > T else np.full(n, T)
        first, second = self._positions(rng, lengths, T)
        low, high = self.bounds
        inputs = np.zeros((self.length, n, 2))
        inside = np.arange(longest)[:, None] < lengths
        inputs[:longest, :, 0] = np.where(inside, rng.uniform(low, high, size=(longest, n)), 0.0)
        rows = np.arange(n)
        if self.markers == "hs1997":
            inputs[0, :, 1] = -1.0
            inputs[lengths - 1, rows, 1] = -1.0
            inputs[0, (first == 0) | (second == 0), 0] = 0.0
        inputs[first, rows, 1] = 1.0
        inputs[second, rows, 1] = 1.0
        scale, shift = self.affine
        targets = scale * (inputs[first, rows, 0] + inputs[second, rows, 0]) + shift
        return Batch(inputs=inputs, targets=targets[:, None], mask=np.ones(n), lengths=lengths)

    def _positions(self, rng: np.random.Generator, lengths: np.ndarray, T: int) -> tuple[np.ndarray, np.ndarray]:
        """Draw the two marked steps [batch], which always differ."""
        n = len(lengths)
        if self.markers == "any":
            first = rng.integers(0, T, size=n)
            return first, _skipping(first, rng.integers(0, T - 1, size=n))
        if self.markers == "hs1997":
            first = rng.integers(0, 10, size=n)
            return first, _skipping(first, rng.integers(0, T // 2 - 1, size=n))
        if self.markers == "pascanu":
            first = rng.integers(0, lengths // 10)
            return first, lengths // 10 + rng.integers(0, 4 * lengths // 10)
        end = T // 10 if self.markers == "skip_rnn" else T // 2
        return rng.integers(0, end, size=n), rng.integers(T // 2, T, size=n)

    @property
    def _edge_share(self) -> float:
        """Probability that the first step is marked and so counts as zero (1997's rule)."""
        if self.markers != "hs1997":
            return 0.0
        return 1 / 10 + 9 / 10 / (self.T // 2 - 1)

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:  # exact, so no data
        """Return the scores of the best constant, the target's mean.

        With N numbers counting (N = 2, or 1 with probability q under 1997's rule) of mean m and variance v:
        Var(y) = a^2 (E[N] v + m^2 Var[N]), E[N] = 2 - q, Var[N] = q (1 - q).
        """
        low, high = self.bounds
        scale, _ = self.affine
        q = self._edge_share
        mean, variance = (low + high) / 2, (high - low) ** 2 / 12
        mse = scale**2 * ((2 - q) * variance + mean**2 * q * (1 - q))

        def hit(half_width: float) -> float:
            centre, reach = (2 - q) * mean, half_width / scale
            two = _sum_cdf(centre + reach, low, high) - _sum_cdf(centre - reach, low, high)
            one = _cdf(centre + reach, low, high) - _cdf(centre - reach, low, high)
            return (1 - q) * two + q * one

        how = "the best constant, the target's mean"
        return {
            "constant": Baseline("mse", mse, f"{how}: the target's variance"),
            "constant_correct": Baseline("correct", hit(0.04), f"{how}: P(|error| < 0.04)"),
            "constant_correct_squared": Baseline("correct_squared", hit(0.2), f"{how}: P(error^2 <= 0.04)"),
        }


def _skipping(taken: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Map draws from a range that lacks one place onto the places that are left."""
    return drawn + (drawn >= taken)


def _cdf(x: float, low: float, high: float) -> float:
    """Return P(X <= x) for X ~ U[low, high]."""
    return min(1.0, max(0.0, (x - low) / (high - low)))


def _sum_cdf(x: float, low: float, high: float) -> float:
    """Return P(X1 + X2 <= x) for independent U[low, high]: the triangular distribution."""
    u = min(2.0, max(0.0, (x - 2 * low) / (high - low)))
    return u * u / 2 if u <= 1 else 1 - (2 - u) ** 2 / 2
