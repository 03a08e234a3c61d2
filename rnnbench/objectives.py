"""Losses and metrics, once over `xp`, as weighted sums, so that they add up exactly over the pieces of a set."""

from __future__ import annotations

from collections.abc import Mapping

from rnnbench.arrays import Array
from rnnbench.tasks.base import LossName, Metric, Task
from rnnbench.xp import Ops


def loss_terms(xp: Ops, name: LossName, outputs: Array, targets: Array) -> Array:
    """Return the loss of each target [(time) batch].

    ``cross_entropy`` is -log softmax(outputs)[target], in nats; ``mse`` the mean over outputs of the squared error.
    """
    if name == "cross_entropy":
        return -xp.pick(xp.log_softmax(outputs), targets)
    return xp.mean((outputs - targets) ** 2, axis=-1)


def weighted_mean(xp: Ops, terms: Array, weights: Array) -> Array:
    """Return sum(weights * terms) / sum(weights), a scalar."""
    return xp.sum(weights * terms) / xp.sum(weights)


def metric_sums(xp: Ops, metric: Metric, outputs: Array, targets: Array, weights: Array) -> tuple[Array, Array]:
    """Return (sum of weighted terms, sum of weights) of a metric over a batch; their quotient is its value."""
    if metric.kind == "cross_entropy":
        terms = loss_terms(xp, "cross_entropy", outputs, targets)
    elif metric.kind == "mse":
        terms = loss_terms(xp, "mse", outputs, targets)
    elif metric.kind == "accuracy":
        terms = xp.floats(xp.argmax(outputs) == targets)
    elif metric.kind == "sequence_accuracy":
        miss = xp.floats(xp.argmax(outputs) != targets) * xp.floats(weights > 0)
        hit = 1.0 - xp.sign(xp.sum(miss, axis=0))
        weights = xp.sign(xp.sum(weights, axis=0))
        return xp.sum(hit * weights), xp.sum(weights)
    elif metric.kind == "mae":
        terms = xp.mean(xp.abs(outputs - targets), axis=-1)
    else:
        assert metric.threshold is not None
        error = xp.abs(outputs - targets)
        inside = error < metric.threshold if metric.kind == "within" else error * error <= metric.threshold
        terms = xp.amin(xp.floats(inside), axis=-1)
    return xp.sum(weights * terms), xp.sum(weights)


def scores(
    xp: Ops, task: Task, outputs: Array, batch: Mapping[str, Array], names: tuple[str, ...]
) -> dict[str, tuple[Array, Array]]:
    """Return (sum, weight) of each named metric; ``loss`` is the task's loss."""
    results: dict[str, tuple[Array, Array]] = {}
    for name in names:
        if name == "loss":
            terms = loss_terms(xp, task.loss, outputs, batch["targets"])
            results[name] = xp.sum(batch["mask"] * terms), xp.sum(batch["mask"])
        else:
            metric = task.metrics[name]
            weights = batch["mask"] if metric.mask is None else batch[f"mask/{metric.mask}"]
            results[name] = metric_sums(xp, metric, outputs, batch["targets"], weights)
    return results
