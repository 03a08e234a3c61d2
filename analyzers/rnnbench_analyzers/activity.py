"""What the units do: at the ends of their range, dead, and how long gated ones keep what they hold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.findings import Finding, Severity, finding
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
    when,
)
from rnnbench_analyzers.profiles import needed_lag

SATURATED = 0.5
"""A gate or layer of units is saturated when most of its values lie in the lowest or highest twentieth of its range;
values spread evenly over the range would put 0.1 there."""

SATURATED_BADLY = 0.9
"""Above this share next to nothing passes its derivative."""

DEAD = 0.1
"""Share of a state's units that may be dead before it is worth a word."""

DEAD_BADLY = 0.5
"""Above this share most of the state is lost."""

KEPT = 1e-3
"""What a gated unit must keep of its content over the needed lag; the share at which a gradient counts as vanished."""

LEAST_TAU = 1e-3
"""Steps; a shorter time constant, exp(-1000) a step, keeps nothing, and counts as this on the logarithmic scale."""


@dataclass(frozen=True)
class _Shares:
    """A share of one tap or state at the runs' last probed step."""

    name: str
    interval: Interval
    steps: list[int]
    unusable: int


def analyze(evidence: Evidence) -> list[Finding]:
    """Judge saturation, dead units and time constants at the last probed step."""
    return [*_saturation(evidence), *_dead(evidence), *_time_constants(evidence)]


def _saturation(evidence: Evidence) -> list[Finding]:
    taps = dict.fromkeys(
        name for run in evidence.runs for kind in ("activity.low", "activity.high") for name in run.signals.things(kind)
    )
    # a gate that keeps a state is meant to stand near 1; only its low end forgets
    keepers = {name for run in evidence.runs for name in run.signals.things("activity.time_constant")}
    known = []
    for tap in taps:
        ends = ("activity.low",) if tap in keepers else ("activity.low", "activity.high")
        found = _mean_shares(evidence, tap, ends)
        if found is not None:
            known.append(found)
    verdicts = {share.name: _side(share.interval, SATURATED) for share in known}
    listed = [share for share in known if verdicts[share.name] == "above"]
    code = "units-saturated"
    if not listed:
        listed = [share for share in known if verdicts[share.name] == "between" and share.interval.value > SATURATED]
        code = "not-enough-evidence"
    if not listed:
        return []
    worst = max(listed, key=lambda share: share.interval.value)
    place = "low end" if worst.name in keepers else "ends"
    more = f", and so for {counted(len(listed) - 1, 'other')}" if len(listed) > 1 else ""
    doubt = "" if code == "units-saturated" else f"; the seeds do not settle whether it exceeds {percent(SATURATED)}"
    claim = (
        f"{when(worst.steps)} {percent_span(worst.interval)} of the values of {worst.name} lie at the {place} of "
        f"its range{more}{doubt}."
    )
    severity: Severity | None = None
    if code == "units-saturated":
        if all_solved(evidence):
            severity = Severity.INFO
        elif above(worst.interval, SATURATED_BADLY):
            severity = Severity.PROBLEM
    return [
        finding(
            code,
            evidence.subject,
            claim,
            severity=severity,
            measure="share of values in the lowest or highest twentieth of the range",
            threshold=SATURATED,
            of=worst.name,
            step=max(worst.steps),
            evidence=("activity.low", "activity.high"),
            details={"shares": {share.name: share.interval.value for share in known}, "unusable_seeds": worst.unusable},
            **interval_fields(worst.interval),
        )
    ]


def _mean_shares(evidence: Evidence, tap: str, ends: tuple[str, ...]) -> _Shares | None:
    values, steps = [], []
    for run in evidence.runs:
        signals = [run.signals.one(kind, tap) for kind in ends]
        shares = [_mean(signal.values) for signal in signals if signal is not None and np.size(signal.values)]
        if shares:
            values.append(sum(shares))
            steps.append(max(signal.step for signal in signals if signal is not None))
    interval = over_seeds(values, least=0.0, most=1.0)
    if interval is None:
        return None
    return _Shares(tap, interval, steps, sum(not math.isfinite(value) for value in values))


def _mean(values: NDArray) -> float:
    """Return the mean, or no number where one of the values is none."""
    return float(np.mean(values)) if np.isfinite(values).all() else math.nan


def _dead(evidence: Evidence) -> list[Finding]:
    states = dict.fromkeys(name for run in evidence.runs for name in run.signals.things("activity.dead"))
    known = [share for state in states if (share := _mean_shares(evidence, state, ("activity.dead",))) is not None]
    listed = [share for share in known if above(share.interval, DEAD)]
    code = "units-dead"
    if not listed:
        listed = [share for share in known if share.interval.value > DEAD]
        code = "not-enough-evidence"
    if not listed:
        return []
    worst = max(listed, key=lambda share: share.interval.value)
    doubt = "" if code == "units-dead" else f"; the seeds do not settle whether it exceeds {percent(DEAD)}"
    severity: Severity | None = None
    if code == "units-dead":
        badly = above(worst.interval, DEAD_BADLY)
        severity = Severity.PROBLEM if badly else Severity.WARNING
        if all_solved(evidence):
            severity = Severity.WARNING if badly else Severity.INFO
    return [
        finding(
            code,
            evidence.subject,
            f"{when(worst.steps)} {percent_span(worst.interval)} of the units of {worst.name} are dead: they never "
            f"change, over all probed sequences and steps{doubt}.",
            severity=severity,
            measure="share of units whose state never changes",
            threshold=DEAD,
            of=worst.name,
            step=max(worst.steps),
            evidence=("activity.dead",),
            details={"shares": {share.name: share.interval.value for share in known}, "unusable_seeds": worst.unusable},
            **interval_fields(worst.interval),
        )
    ]


def _time_constants(evidence: Evidence) -> list[Finding]:
    """Hold each keeping gate's longest time constant against the needed lag.

    A unit with time constant tau keeps exp(-lag / tau) of what it holds, so the lag may be at most tau ln(1 / `KEPT`).
    """
    need, words = needed_lag(evidence)
    known = evidence.lag is not None or evidence.context.get("need") is not None
    found = []
    for gate in dict.fromkeys(name for run in evidence.runs for name in run.signals.things("activity.time_constant")):
        medians, longest, steps = [], [], []
        for run in evidence.runs:
            signal = run.signals.one("activity.time_constant", gate)
            # a gate that never leaves 1 has an infinite time constant; one that is no number says nothing
            values = np.asarray(signal.values, dtype=np.float64).reshape(-1) if signal is not None else np.empty(0)
            values = values[~np.isnan(values)]
            if signal is not None and values.size:
                medians.append(float(np.median(values)))
                longest.append(float(np.max(values)))
                steps.append(signal.step)
        if not steps:
            continue
        median, most = _geometric(medians), _geometric(longest)
        endless = sum(math.isinf(value) for value in longest)
        enough = need / -math.log(KEPT)
        # a seed whose gate never closes keeps for ever, so it counts as long enough and stays out of the mean
        short = known and not endless and most is not None and below(most, enough)
        text = f"longest {span(most, 'steps')}" if most is not None and not endless else "longest without bound"
        middle = f"median {span(median, 'steps')}" if median is not None else "median without bound"
        verdict = (
            f"even the longest keeps less than {number(KEPT)} of what it holds over the {counted(need, 'step')} {words}"
            if short
            else f"{number(KEPT)} over the {counted(need, 'step')} {words} takes {number(enough)} steps"
        )
        severity = Severity.WARNING if short and not all_solved(evidence) else Severity.INFO
        details: dict[str, Any] = {
            "median": median.value if median is not None else None,
            "longest": most.value if most is not None else None,
            "endless_seeds": endless,
            "needed_lag": need,
        }
        found.append(
            finding(
                "time-constants",
                evidence.subject,
                f"{when(steps)} the time constants of {gate} are: {middle}, {text}; {verdict}.",
                severity=severity,
                measure="longest time constant of the gate's units",
                unit="steps",
                threshold=enough,
                of=gate,
                step=max(steps),
                evidence=("activity.time_constant",),
                details=details,
                **(interval_fields(most) if most is not None and not endless else {"seeds": len(steps)}),
            )
        )
    return found


def _geometric(values: list[float]) -> Interval | None:
    """Return the geometric mean over seeds with its interval, by logarithms: time constants are positive and skewed."""
    logs = over_seeds(math.log(max(value, LEAST_TAU)) for value in values)
    if logs is None:
        return None
    value, low, high = (math.exp(each) if math.isfinite(each) else each for each in (logs.value, logs.low, logs.high))
    return Interval(value, low, high, logs.level, logs.n)


def _side(interval: Interval, threshold: float) -> str:
    if above(interval, threshold):
        return "above"
    return "below" if below(interval, threshold) else "between"
