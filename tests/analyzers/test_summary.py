"""The summary's numbers on frames small enough to sum up by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from rnnbench_analyzers.summary import summarize


def run(digest: str, **changed: Any) -> dict[str, Any]:
    columns = {
        "digest": digest,
        "label": "adding rnn",
        "backend": "torch",
        "seed": 0,
        "matched": True,
        "metric": "mse",
        "better": "lower",
        "status": "completed",
        "steps_to_solve": None,
        "total_s": 1.0,
        "first_batch_sha256": "aa",
        "summary.mse": 0.1,
        "baseline.mse.constant": 0.25,
        "baseline.mse.persistence": 0.2,
        "baseline.loss.constant": 0.01,
    }
    return columns | changed


def losses(digest: str, *values: float) -> list[dict[str, Any]]:
    return [
        {"digest": digest, "step": step, "split": "train", "metric": "loss", "value": value}
        for step, value in enumerate(values, start=1)
    ]


def only(runs: list[dict[str, Any]], metrics: list[dict[str, Any]] | None = None) -> dict[str, Any]:
    frame = pd.DataFrame(metrics or losses("none", 1.0))
    row = summarize(pd.DataFrame(runs), frame).iloc[0]
    return {str(name): value for name, value in row.items()}


def test_scores_over_seeds() -> None:
    row = only([run(str(seed), seed=seed, **{"summary.mse": score}) for seed, score in enumerate((0.3, 0.1, 0.15))])
    assert (row["runs"], row["median"], row["low"], row["high"]) == (3, 0.15, 0.1, 0.3)
    assert (row["baseline"], row["baseline_name"]) == (0.2, "persistence")  # the best of its own metric


def test_the_best_baseline_of_an_accuracy_is_the_highest() -> None:
    accuracy = {"metric": "accuracy", "better": "higher", "summary.accuracy": 0.9}
    row = only([run("a", **accuracy, **{"baseline.accuracy.chance": 0.1, "baseline.accuracy.majority": 0.3})])
    assert (row["baseline"], row["baseline_name"]) == (0.3, "majority")


def test_a_diverged_run_counts_at_the_baseline() -> None:
    row = only([run("a"), run("b", seed=1, status="diverged", **{"summary.mse": np.nan})])
    assert (row["diverged"], row["low"], row["high"]) == (1, 0.1, 0.2)
    assert row["median"] == pytest.approx(0.15)


@pytest.mark.parametrize(
    ("steps", "solved", "median"), [((50, 100, None), 2, 100.0), ((50, None, None), 1, None), ((50, None), 1, None)]
)
def test_what_was_not_solved_counts_as_never(steps: tuple[int | None, ...], solved: int, median: float | None) -> None:
    row = only([run(str(seed), seed=seed, steps_to_solve=step) for seed, step in enumerate(steps)])
    assert row["solved"] == solved
    assert row["median_steps_to_solve"] == median or (median is None and pd.isna(row["median_steps_to_solve"]))


def test_backends_are_compared_seed_by_seed_over_the_first_ten_steps() -> None:
    runs = [run("t0"), run("j0", backend="jax"), run("t1", seed=1), run("j1", backend="jax", seed=1)]
    metrics = losses("t0", 1.0, 2.0) + losses("j0", 1.0, 2.5) + losses("t1", *[4.0] * 11) + losses("j1", *[4.0] * 10, 9)
    row = only(runs, metrics)
    assert row["difference"] == pytest.approx(0.2)  # the eleventh step does not count, nor does another seed's run
    assert row["same_inputs"]


def test_other_first_batches_are_told() -> None:
    runs = [run("t"), run("j", backend="jax", first_batch_sha256="bb")]
    assert not only(runs, losses("t", 1.0) + losses("j", 1.0))["same_inputs"]


@pytest.mark.parametrize(("a", "b", "expected"), [(1.0, math.nan, math.inf), (math.inf, 1.0, math.inf)])
def test_a_loss_that_is_not_finite_on_one_side_is_infinitely_far(a: float, b: float, expected: float) -> None:
    row = only([run("t"), run("j", backend="jax")], losses("t", 0.5, a) + losses("j", 0.5, b))
    assert row["difference"] == expected


@pytest.mark.parametrize("other", [{"data_seed": 1}, {"backend": "jax", "matched": False}])
def test_what_is_no_partner_is_not_compared(other: dict[str, Any]) -> None:
    """Another run on the same backend, or an unmatched model."""
    row = only([run("a"), run("b", **other)], losses("a", 1.0) + losses("b", 3.0))
    assert math.isnan(row["difference"])
