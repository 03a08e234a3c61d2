"""What the updates met: gradients far larger than usual, clipping, and the noise between minibatches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.findings import Finding, Severity, finding
from rnnbench.signals import Signals
from rnnbench.stats import Interval
from rnnbench_analyzers.judging import (
    above,
    all_solved,
    below,
    counted,
    interval_fields,
    number,
    over_seeds,
    percent,
    percent_span,
    span,
)

SPIKE = 10.0
"""A gradient norm above this many times the running median is a spike: an order of magnitude over what the learning
rate was chosen for."""

WINDOW = 100
"""Updates before it that the running median is taken over."""

LEAST_BEFORE = 20
"""Updates that must lie before one for a median to mean anything; the first ones are not judged."""

MOST = 0.5
"""More than this share of the updates clipped is most of them."""


def analyze(evidence: Evidence) -> list[Finding]:
    """Judge gradient spikes, clipping and gradient noise over the whole of training."""
    return [*_spikes(evidence), *_clipping(evidence), *_noise(evidence)]


def recorded(signals: Signals, kind: str, of: str = "") -> NDArray:
    """Return a signal of the updates over all of training, one value an update: its pieces in the order of steps."""
    pieces = sorted(signals.find(kind, of), key=lambda signal: signal.step)
    return np.concatenate([np.asarray(piece.values, dtype=np.float64).reshape(-1) for piece in pieces] or [np.empty(0)])


def spikes(norms: NDArray) -> NDArray:
    """Return the indices of the updates whose norm exceeds `SPIKE` times the median of the `WINDOW` before it.

    Norms that are not finite are no spikes and are left out of the medians; a median of zero is passed over.
    """
    found = []
    for at in np.flatnonzero(np.isfinite(norms)):
        before = norms[max(at - WINDOW, 0) : at]
        before = before[np.isfinite(before)]
        if len(before) >= LEAST_BEFORE and 0 < SPIKE * np.median(before) < norms[at]:
            found.append(at)
    return np.asarray(found, dtype=np.int64)


def _spikes(evidence: Evidence) -> list[Finding]:
    shares, counts, largest, updates, clipped = [], [], 0.0, 0, []
    first: tuple[int, int] | None = None
    for run in evidence.runs:
        norms = recorded(run.signals, "updates.grad_norm")
        if len(norms) <= LEAST_BEFORE:
            continue
        at = spikes(norms)
        shares.append(len(at) / len(norms))
        counts.append(len(at))
        updates += len(norms)
        for index in at:
            before = norms[max(index - WINDOW, 0) : index]
            times = float(norms[index] / np.median(before[np.isfinite(before)]))
            if times > largest:
                largest, first = times, (run.seed, int(index) + 1)
        clipped += _acted_at(run.signals, at, len(norms))
    if not sum(counts) or first is None:
        return []
    share = over_seeds(shares, least=0.0, most=1.0)
    assert share is not None
    held = sum(clipped) / len(clipped) if clipped else None
    tail = f"; {percent(held)} of them were clipped" if held is not None else ""
    severity = Severity.INFO if held == 1 or all_solved(evidence) else None
    return [
        finding(
            "gradient-spikes",
            evidence.subject,
            f"{counted(sum(counts), 'update')} of {updates} had a gradient more than {number(SPIKE)} times the median "
            f"of the {WINDOW} before, the largest {number(largest)} times (seed {first[0]}, update {first[1]}){tail}.",
            severity=severity,
            measure="share of updates whose gradient norm is a spike",
            evidence=("updates.grad_norm", "updates.acted"),
            details={"spikes": counts, "largest_ratio": largest, "clipped_share": held, "spike_factor": SPIKE},
            **interval_fields(share),
        )
    ]


def _acted_at(signals: Signals, at: NDArray, length: int) -> list[bool]:
    """Return for each of the updates at `at` whether some technique changed its gradient; nothing where unknown."""
    acted = [recorded(signals, "updates.acted", name) for name in signals.things("updates.acted")]
    acted = [values for values in acted if len(values) == length]
    return [any(values[index] > 0 for values in acted) for index in at] if acted else []


def _clipping(evidence: Evidence) -> list[Finding]:
    found = []
    for name in dict.fromkeys(name for run in evidence.runs for name in run.signals.things("updates.acted")):
        acted = [recorded(run.signals, "updates.acted", name) for run in evidence.runs]
        # what is no number is not known to have been changed, and not known to have been left alone
        known = [values[np.isfinite(values)] for values in acted]
        share = over_seeds((float(np.mean(values > 0)) for values in known if len(values)), least=0.0, most=1.0)
        if share is None or below(share, MOST):
            continue
        sure = above(share, MOST)
        doubt = "" if sure else f"; the seeds do not settle whether that is more than {percent(MOST)}"
        found.append(
            finding(
                "updates-clipped" if sure else "not-enough-evidence",
                evidence.subject,
                f"{name} changed the gradient of {percent_span(share)} of the updates{doubt}.",
                measure="share of updates whose gradient a technique changed",
                threshold=MOST,
                of=name,
                evidence=("updates.acted",),
                details={"updates": [len(values) for values in known]},
                **interval_fields(share),
            )
        )
    return found


def _noise(evidence: Evidence) -> list[Finding]:
    last = [(run, found) for run in evidence.runs if (found := run.signals.one("noise.scale")) is not None]
    if not last:
        return []
    steps = [signal.step for _, signal in last]
    scales = [float(np.asarray(signal.values).reshape(-1)[0]) for _, signal in last]
    usable = [scale for scale in scales if math.isfinite(scale) and scale > 0]
    batch = float(evidence.batch_size)
    fields: dict[str, Any] = {
        "measure": "simple gradient noise scale tr(Sigma) / |G|^2",
        "unit": "sequences",
        "threshold": batch,
        "step": max(steps),
        "evidence": ("noise.scale", "noise.interval"),
        "details": {"by_seed": dict(zip((str(run.seed) for run, _ in last), map(_finite, scales), strict=True))},
    }
    if 2 * len(usable) < len(scales) or not usable:
        claim = (
            f"At step {max(steps)} the gradient noise scale is not resolved in {len(scales) - len(usable)} of "
            f"{counted(len(scales), 'run')}: the mean gradient is not told from zero."
        )
        return [finding("not-enough-evidence", evidence.subject, claim, **fields, seeds=len(usable))]
    scale = _over_runs(evidence, usable)
    begin = f"At step {max(steps)} the gradient noise scale is {span(scale, 'sequences')}"
    code, severity = "gradient-noise", Severity.INFO
    if above(scale, batch):
        claim = f"{begin} against a batch of {number(batch)}: noise dominates each update, and a larger batch helps."
    elif below(scale, batch):
        severity = Severity.OK
        claim = f"{begin} against a batch of {number(batch)}: a batch averages most of the noise away."
    else:
        claim = f"{begin}, of the order of the batch of {number(batch)}."
    return [finding(code, evidence.subject, claim, severity=severity, **fields, **interval_fields(scale))]


def _over_runs(evidence: Evidence, usable: list[float]) -> Interval:
    """Return the geometric mean over seeds with its interval; with one seed the jackknife's, over minibatches."""
    if len(usable) == 1:
        for run in evidence.runs:
            scale, bounds = run.signals.one("noise.scale"), run.signals.one("noise.interval")
            if scale is not None and bounds is not None and float(np.asarray(scale.values).reshape(-1)[0]) == usable[0]:
                low, high = (float(value) for value in np.asarray(bounds.values).reshape(-1)[:2])
                return Interval(usable[0], low, high, 0.95, 1)
    logs = over_seeds(math.log(scale) for scale in usable)
    assert logs is not None
    low, high = (math.exp(logs.low), math.exp(min(logs.high, 700.0))) if len(usable) > 1 else (logs.low, logs.high)
    return Interval(math.exp(logs.value), low, high, logs.level, logs.n)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
