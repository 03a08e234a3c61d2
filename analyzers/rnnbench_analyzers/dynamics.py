"""Whether trajectories that start close part or meet: Lyapunov exponents and the recurrent weights behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnbench.evidence import Evidence, Observed
from rnnbench.findings import Finding, Severity, finding
from rnnbench.signals import Signals
from rnnbench.stats import Interval, mean_interval
from rnnbench_analyzers.judging import above, all_solved, below, counted, number, over_seeds, power, span, when
from rnnbench_analyzers.profiles import needed_lag

GROWTH = 10.0
"""A disturbance that grows by less than this over the whole sequence is no chaos: exponents of a finite stretch differ
from those of an endless one by a transient of this order, divided by its length."""

SUM_ERROR = 1e-6
"""Largest difference between the sum of all exponents and the mean log-determinant, relative to the latter where that
exceeds 1: the precision that the exponents themselves are held to."""

LEFT = 1e-3
"""What is left of a disturbance over the needed lag: the share at which a gradient counts as vanished. Less is stable,
but no memory."""


@dataclass(frozen=True)
class _Largest:
    """The largest exponents of a system at the seeds' first or last probed step.

    Attributes:
        interval: over seeds; over sequences where there is one seed.
        steps: training steps done.
        seeds: runs with a finite exponent.
        unusable: seeds without one.
        spread: the smallest and largest sequence's.
    """

    interval: Interval
    steps: list[int]
    seeds: int
    unusable: list[int]
    spread: tuple[float, float]


def analyze(evidence: Evidence) -> list[Finding]:
    """Judge the largest exponent of every system at the last probed step, and at the first where that differs."""
    systems = dict.fromkeys(name for run in evidence.runs for name in run.signals.things("spectrum.exponents"))
    found: list[Finding] = []
    for system in systems:
        wrong = _sum_is_off(evidence, system)
        if wrong is not None:
            found.append(wrong)
            continue
        last = _verdict(evidence, system, first=False)
        start = _verdict(evidence, system, first=True)
        found.append(last)
        if start.step != last.step and start.code != last.code:
            found.append(start)
    return found


def margin(evidence: Evidence) -> float:
    """Return the rate at which a disturbance grows by `GROWTH` over the sequence [1/step]."""
    times = [len(signal.values) for run in evidence.runs for signal in run.signals.find("spectrum.local")]
    return math.log(GROWTH) / max([evidence.length, *times, 1])


def _verdict(evidence: Evidence, system: str, first: bool) -> Finding:
    largest = _largest(evidence, system, first)
    if largest is None:
        steps = [step for run in evidence.runs for step in run.signals.steps("spectrum.exponents")]
        step = min(steps) if first else max(steps)
        return finding(
            "not-enough-evidence",
            evidence.subject,
            f"At step {step} no Lyapunov exponent of {system} is a number.",
            measure="largest Lyapunov exponent",
            of=system,
            step=step,
            evidence=("spectrum.exponents",),
        )
    limit, interval = margin(evidence), largest.interval
    over = "seeds" if largest.seeds > 1 else "sequences"
    begin = f"{when(largest.steps)} the largest Lyapunov exponent of {system} is {span(interval)} a step over {over}"
    severity: Severity | None = None
    if above(interval, limit):
        code = "dynamics-chaotic"
        severity = Severity.INFO if all_solved(evidence) else None
        tenfold = math.log(GROWTH) / interval.value
        claim = f"{begin}: a disturbance grows tenfold in {number(tenfold)} steps."
    elif below(interval, limit):
        code = "dynamics-stable"
        fades = interval.value < -limit
        tenfold = math.log(GROWTH) / abs(interval.value) if fades else math.inf
        claim = (
            f"{begin}: a disturbance falls to a tenth in {number(tenfold)} steps."
            if fades
            else f"{begin}: a disturbance neither grows nor falls tenfold over the sequence."
        )
        need, words = needed_lag(evidence)
        known = evidence.lag is not None or evidence.context.get("need") is not None
        if known and interval.value * need < math.log(LEFT):
            severity = Severity.INFO
            left = power(interval.value * need)
            claim = (
                f"{begin}: it contracts, and a disturbance falls to {left} over the {counted(need, 'step')} {words}."
            )
    else:
        code = "not-enough-evidence"
        claim = f"{begin}, which does not settle whether it exceeds {number(limit)}."
    return finding(
        code,
        evidence.subject,
        claim,
        severity=severity,
        measure="largest Lyapunov exponent along the task's own sequences",
        value=interval.value,
        low=interval.low,
        high=interval.high,
        level=interval.level,
        unit="1/step",
        threshold=limit,
        of=system,
        step=max(largest.steps),
        seeds=largest.seeds,
        evidence=("spectrum.exponents",),
        details={
            "smallest_sequence": largest.spread[0],
            "largest_sequence": largest.spread[1],
            "unusable_seeds": [*largest.unusable],
            **_weights(evidence, first),
            **_transient(evidence, system, first, interval.value),
        },
    )


def _at(signals: Signals, kind: str, first: bool) -> int | None:
    steps = signals.steps(kind)
    return None if not steps else steps[0] if first else steps[-1]


def _largest(evidence: Evidence, system: str, first: bool) -> _Largest | None:
    rows: list[tuple[int, int, Sequence[float]]] = []
    unusable = []
    for run in evidence.runs:
        found = run.signals.one("spectrum.exponents", system, _at(run.signals, "spectrum.exponents", first))
        if found is None:
            continue
        top = np.atleast_2d(np.asarray(found.values, dtype=np.float64))[:, 0]
        finite = [float(value) for value in top if math.isfinite(value)]
        if finite:
            rows.append((run.seed, found.step, finite))
        if len(finite) < len(top):
            unusable.append(run.seed)
    if not rows:
        return None
    if len(rows) > 1:
        interval = over_seeds(float(np.mean(values)) for _, _, values in rows)
    else:
        values = rows[0][2]
        interval = mean_interval(np.asarray(values)) if len(values) > 1 else over_seeds(values)
    assert interval is not None
    every = [value for _, _, values in rows for value in values]
    return _Largest(interval, [step for _, step, _ in rows], len(rows), unusable, (min(every), max(every)))


def _sum_is_off(evidence: Evidence, system: str) -> Finding | None:
    """Refuse exponents whose sum is not the log-determinant's mean: the directions were lost to rounding.

    Where a step's Jacobian is singular both are -inf, and there is nothing to compare.
    """
    worst, at = 0.0, None
    for run in evidence.runs:
        for signal in run.signals.find("spectrum.sum_error", system):
            errors = np.abs(np.asarray(signal.values, dtype=np.float64)).reshape(-1)
            determinant = run.signals.one("spectrum.log_det", system, signal.step)
            scale = np.ones_like(errors)
            if determinant is not None:
                with np.errstate(invalid="ignore"):  # inf - inf, for values that are no determinant's
                    mean = np.abs(np.mean(np.asarray(determinant.values, dtype=np.float64), axis=0)).reshape(-1)
                if mean.shape == errors.shape:
                    errors, mean = errors[np.isfinite(mean)], mean[np.isfinite(mean)]
                    scale = np.maximum(mean, 1.0)
            relative = np.where(np.isfinite(errors), errors / scale, np.inf)
            if relative.size and float(relative.max()) > worst:
                worst, at = float(relative.max()), signal.step
    if worst <= SUM_ERROR:
        return None
    by = number(worst) if math.isfinite(worst) else "more than a number can say"
    return finding(
        "not-enough-evidence",
        evidence.subject,
        f"At step {at} the exponents of {system} do not sum to the log-determinant: they are off by {by}, where "
        f"{number(SUM_ERROR)} is allowed; the spectrum is not to be trusted.",
        measure="sum of all exponents less the mean log-determinant, relative to the latter where that exceeds 1",
        value=worst,
        threshold=SUM_ERROR,
        of=system,
        step=at,
        seeds=len(evidence.runs),
        evidence=("spectrum.sum_error", "spectrum.log_det"),
        causes=("a state so contracted that its directions are lost to rounding",),
        remedies=("ask for the leading exponents only",),
    )


def _weights(evidence: Evidence, first: bool) -> dict[str, Any]:
    """Return spectral radius and departure from normality of each recurrent block, means over seeds."""
    found: dict[str, Any] = {}
    for kind in ("spectrum.radius", "spectrum.departure"):
        names = dict.fromkeys(name for run in evidence.runs for name in run.signals.things(kind))
        values = {name: over_seeds(_scalars(evidence.runs, kind, name, first)) for name in names}
        known = {name: interval.value for name, interval in values.items() if interval is not None}
        if known:
            found[kind.partition(".")[2]] = known
    return found


def _scalars(runs: Sequence[Observed], kind: str, name: str, first: bool) -> list[float]:
    signals = [run.signals.one(kind, name, _at(run.signals, kind, first)) for run in runs]
    return [float(np.asarray(signal.values).reshape(-1)[0]) for signal in signals if signal is not None]


def _transient(evidence: Evidence, system: str, first: bool, exponent: float) -> dict[str, Any]:
    """Return how far the propagator's largest singular value rises above what the largest exponent says, and when.

    Non-normal weights make a disturbance grow for a while although every exponent is negative.
    """
    peaks, lags = [], []
    for run in evidence.runs:
        at = _at(run.signals, "propagator.log_norm", first)
        norm, lag = run.signals.one("propagator.log_norm", system, at), run.signals.one("propagator.lags", step=at)
        if norm is None or lag is None:
            continue
        along = np.asarray(norm.values, dtype=np.float64)
        known = np.isfinite(along)
        known &= known.all(axis=2, keepdims=True)  # an origin has no propagator over lags that leave the sequence
        count = known.sum(axis=(0, 2))
        if not count.any() or not np.isfinite(lag.values).all():
            continue
        total = np.where(known, along, 0.0).sum(axis=(0, 2))
        mean = np.where(count > 0, total / np.maximum(count, 1), -np.inf)
        mean -= exponent * np.asarray(lag.values, dtype=np.float64)
        best = int(np.argmax(mean))
        peaks.append(float(mean[best]))
        lags.append(float(lag.values[best]))
    interval = over_seeds(peaks)
    if interval is None:
        return {}
    return {
        "transient_log_growth": interval.value,
        "transient_lag": float(np.median(lags)),
        "transient_runs": len(peaks),
    }
