"""Losses and metrics against naive twins, on NumPy, torch and JAX."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.jax.ops import JaxOps
from rnnbench.backends.numpy import NumpyOps
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.objectives import loss_terms, metric_sums, weighted_mean
from rnnbench.streams import stream
from rnnbench.tasks.base import Metric
from rnnbench.xp import Ops

T, B, N = 5, 12, 2
Term = Callable[[NDArray, Any], float]
"""(outputs of one target [n_out], the target) -> its term."""


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=[NumpyOps, TorchOps, lambda: JaxOps("float64")], ids=["numpy", "torch", "jax"])
def ops(request: pytest.FixtureRequest) -> Ops:
    made: Ops = request.param()
    return made


def surprise(outputs: NDArray, target: Any) -> float:
    return math.log(sum(math.exp(value) for value in outputs)) - float(outputs[target])


def hit(outputs: NDArray, target: Any) -> float:
    return float(list(outputs).index(max(outputs)) == target)


def squares(outputs: NDArray, target: Any) -> float:
    return sum((float(a) - float(b)) ** 2 for a, b in zip(outputs, target, strict=True)) / len(outputs)


def distance(outputs: NDArray, target: Any) -> float:
    return sum(abs(float(a) - float(b)) for a, b in zip(outputs, target, strict=True)) / len(outputs)


def inside(outputs: NDArray, target: Any) -> float:
    return float(all(abs(float(a) - float(b)) < 0.5 for a, b in zip(outputs, target, strict=True)))


def square_inside(outputs: NDArray, target: Any) -> float:
    return float(all((float(a) - float(b)) ** 2 <= 0.5 for a, b in zip(outputs, target, strict=True)))


CLASSES: dict[str, tuple[Metric, Term]] = {
    "cross_entropy": (Metric("cross_entropy", "lower"), surprise),
    "accuracy": (Metric("accuracy", "higher"), hit),
}
VALUES: dict[str, tuple[Metric, Term]] = {
    "mse": (Metric("mse", "lower"), squares),
    "mae": (Metric("mae", "lower"), distance),
    "within": (Metric("within", "higher", threshold=0.5), inside),
    "squared_within": (Metric("squared_within", "higher", threshold=0.5), square_inside),
}


def drawn(kind: str) -> tuple[NDArray, NDArray, NDArray]:
    """Return outputs [time batch N], targets and weights, some of which are zero."""
    rng = stream(0, "tests/objectives")
    outputs = rng.normal(0.0, 1.0, (T, B, N))
    targets = rng.integers(0, N, (T, B)) if kind in CLASSES else outputs + rng.normal(0.0, 0.6, (T, B, N))
    return outputs, targets, rng.integers(0, 3, (T, B)).astype(np.float64)


@pytest.mark.parametrize("kind", [*CLASSES, *VALUES])
@pytest.mark.parametrize("last", [False, True])
def test_metrics_are_weighted_means_of_their_terms(kind: str, last: bool, ops: Ops) -> None:
    metric, term = {**CLASSES, **VALUES}[kind]
    outputs, targets, weights = (array[-1] if last else array for array in drawn(kind))
    places = list(np.ndindex(*weights.shape))
    terms = [term(outputs[place], targets[place]) for place in places]
    if kind in ("accuracy", "within", "squared_within"):
        assert 0 < sum(terms) < len(terms)  # some hit and some miss
    expected = sum(weights[place] * value for place, value in zip(places, terms, strict=True))
    total, weight = metric_sums(ops, metric, *(ops.asarray(array) for array in (outputs, targets, weights)))
    assert float(total) == pytest.approx(expected, rel=1e-13)
    assert float(weight) == weights.sum()


def test_a_sequence_counts_when_all_that_is_asked_is_right(ops: Ops) -> None:
    """One without a miss, one with a miss, one whose miss has no weight, one that has no weight at all."""
    targets = np.zeros((T, 4), np.int64)
    outputs = np.zeros((T, 4, N))
    outputs[..., 0] = 1.0
    weights = np.full((T, 4), 0.5)
    outputs[2, 1, 1] = outputs[3, 2, 1] = outputs[0, 3, 1] = 2.0
    weights[3, 2] = 0.0
    weights[:, 3] = 0.0
    metric = Metric("sequence_accuracy", "higher")
    total, weight = metric_sums(ops, metric, *(ops.asarray(array) for array in (outputs, targets, weights)))
    assert (float(total), float(weight)) == (2.0, 3.0)


@pytest.mark.parametrize("name", ["cross_entropy", "mse"])
def test_the_loss_is_the_weighted_mean(name: Any, ops: Ops) -> None:
    term = {**CLASSES, **VALUES}[name][1]
    outputs, targets, weights = drawn(name)
    expected = sum(weights[p] * term(outputs[p], targets[p]) for p in np.ndindex(T, B)) / weights.sum()
    terms = loss_terms(ops, name, ops.asarray(outputs), ops.asarray(targets))
    assert float(weighted_mean(ops, terms, ops.asarray(weights))) == pytest.approx(expected, rel=1e-13)
