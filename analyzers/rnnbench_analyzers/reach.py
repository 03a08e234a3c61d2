"""Needs, reach and use: how far back the task needs, the gradient reaches, and the model's output depends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence, Observed
from rnnbench.findings import Finding, Severity, finding
from rnnbench.stats import Interval
from rnnbench_analyzers.judging import above, all_solved, below, counted, interval_fields, over_seeds, span, unbounded
from rnnbench_analyzers.profiles import LOGIT_INPUT, lag_profile, needed_lag

LEFT = 1e-3
"""The gradient reaches as far as it keeps this share of the largest it has in its sequence: less has vanished."""

USED = 0.05
"""The model uses the past up to the lag beyond which exchanging it changes the output by less than this share of what
exchanging all of it does."""

TOLERANCE = 0.9
"""A model that reaches, or uses, this share of the needed lag does well enough: a needed lag is the longest there is,
which only few sequences need, and lags are probed on a grid."""


@dataclass(frozen=True)
class ThreeNumbers:
    """Needs, reach and use, in steps of lag.

    Attributes:
        need: how far back the task needs; None where that is not known.
        words: how that is known.
        reach: of the gradient of the outputs by the input, over seeds; None where it was not recorded.
        use: of the past by the output, over seeds; None where it was not recorded.
        reach_by_seed, use_by_seed: each seed's, by its seed.
        open_reach, open_use: seeds whose reach or use goes to the farthest probed lag, so that it may be more.
        step: training steps done, the most of any run.
    """

    need: int | None
    words: str
    reach: Interval | None
    use: Interval | None
    reach_by_seed: dict[int, float]
    use_by_seed: dict[int, float]
    open_reach: tuple[int, ...]
    open_use: tuple[int, ...]
    step: int | None


def analyze(evidence: Evidence) -> list[Finding]:
    """Say in one sentence how far back the task needs, the gradient reaches and the model uses."""
    three = three_numbers(evidence)
    if three.reach is None and three.use is None:
        return []
    need = three.need if three.need is not None else needed_lag(evidence)[0]
    if need < 1:
        return []
    known = [one for one in (three.reach, three.use) if one is not None]
    short = any(below(one, TOLERANCE * need) for one in known)
    enough = all(above(one, TOLERANCE * need) or _equal(one, TOLERANCE * need) for one in known)
    if three.reach is None or three.use is None:
        enough = False
    code = "horizon-short" if short else "horizon-enough" if enough else "not-enough-evidence"
    severity: Severity | None = None
    if code == "horizon-short" and (three.need is None or all_solved(evidence)):
        severity = Severity.INFO
    judged = min(known, key=lambda one: one.value)
    return [
        finding(
            code,
            evidence.subject,
            _sentence(evidence, three),
            severity=severity,
            measure="the smaller of what the gradient reaches and what the model uses",
            unit="steps",
            threshold=float(TOLERANCE * need),
            step=three.step,
            evidence=(LOGIT_INPUT, "use.output_change"),
            details={
                "need": three.need,
                "reach": _numbers(three.reach),
                "use": _numbers(three.use),
                "reach_by_seed": {str(seed): value for seed, value in three.reach_by_seed.items()},
                "use_by_seed": {str(seed): value for seed, value in three.use_by_seed.items()},
                "open_reach": list(three.open_reach),
                "open_use": list(three.open_use),
                "left": LEFT,
                "used": USED,
            },
            **interval_fields(judged),
        )
    ]


def three_numbers(evidence: Evidence) -> ThreeNumbers:
    """Return needs, reach and use of the runs at their last probed step, with intervals over seeds."""
    known = evidence.lag is not None or evidence.context.get("need") is not None
    need, words = needed_lag(evidence)
    reaches, uses = _by_seed(evidence, reach_of), _by_seed(evidence, use_of)
    most = evidence.length - 1.0 if evidence.length else math.inf  # no lag is longer than the sequence
    steps = [
        step for run in evidence.runs for kind in (LOGIT_INPUT, "use.output_change") for step in run.signals.steps(kind)
    ]
    return ThreeNumbers(
        need=need if known else None,
        words=words,
        reach=over_seeds((lag for lag, _ in reaches.values()), 0.0, most),
        use=over_seeds((lag for lag, _ in uses.values()), 0.0, most),
        reach_by_seed={seed: lag for seed, (lag, _) in reaches.items()},
        use_by_seed={seed: lag for seed, (lag, _) in uses.items()},
        open_reach=tuple(seed for seed, (_, farther) in reaches.items() if farther),
        open_use=tuple(seed for seed, (_, farther) in uses.items() if farther),
        step=max(steps, default=None),
    )


def reach_of(run: Observed) -> tuple[float, bool] | None:
    """Return how far back the gradient of a run's outputs by its input reaches, and whether that is to the last lag.

    In each sequence, the largest lag at which at least `LEFT` of its own largest norm is left; then the median over
    sequences. A sequence without any gradient is reached nowhere: 0. What lies before a shorter sequence's beginning
    is not a number and is left out; None where no sequence holds numbers up to its beginning.
    """
    profile = lag_profile(run.signals, LOGIT_INPUT)
    if profile is None:
        return None
    reaches = [lag for values in profile.values.T if (lag := _reach(values)) is not None]
    if not reaches:
        return None
    median = float(np.median(reaches))
    return median, median >= len(profile) - 1


def _reach(values: NDArray) -> int | None:
    numbers = np.flatnonzero(~np.isnan(values))
    values = values[: int(numbers[-1]) + 1] if len(numbers) else values
    if np.isnan(values).any() or np.isposinf(values).any():
        return None
    largest = float(np.max(values))
    if largest == -math.inf:
        return 0
    return int(np.flatnonzero(values >= largest + math.log(LEFT))[-1])


def use_of(run: Observed) -> tuple[float, bool] | None:
    """Return the smallest lag from which on a run's past no longer matters to its output, and whether none was found.

    From there on, exchanging everything at that lag and beyond changes the output by less than `USED` of what
    exchanging the whole history does; between probed lags the change is taken to run straight.
    """
    change = run.signals.one("use.output_change")
    if change is None:
        return None
    at = run.signals.one("use.lags", step=change.step) or run.signals.one("use.lags")
    if at is None or np.size(at.values) != np.size(change.values) or not np.size(change.values):
        return None
    order = np.argsort(np.asarray(at.values, dtype=np.float64).reshape(-1))
    lags = np.asarray(at.values, dtype=np.float64).reshape(-1)[order]
    changes = np.asarray(change.values, dtype=np.float64).reshape(-1)[order]
    if not (np.isfinite(changes).all() and np.isfinite(lags).all()):
        return None
    matters = np.flatnonzero(changes >= USED)
    if not len(matters):
        return float(lags[0]), False
    last = int(matters[-1])
    if last == len(lags) - 1:
        return float(lags[-1]), True
    share = (changes[last] - USED) / (changes[last] - changes[last + 1])
    # the first lag with less than that: strictly beyond the crossing, and never beyond the probed lag that has less
    crossing = lags[last] + share * (lags[last + 1] - lags[last])
    return float(min(math.floor(crossing) + 1, lags[last + 1])), False


def _by_seed(
    evidence: Evidence, measure: Callable[[Observed], tuple[float, bool] | None]
) -> dict[int, tuple[float, bool]]:
    found = {run.seed: measure(run) for run in evidence.runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _equal(interval: Interval, threshold: float) -> bool:
    return interval.value == threshold and (unbounded(interval) or interval.low == threshold)


def _sentence(evidence: Evidence, three: ThreeNumbers) -> str:
    if three.need is None:
        begin = f"How far back the task needs is not known (its sequences have {counted(evidence.length, 'step')})"
    elif evidence.lag is not None:
        begin = f"The task needs {counted(three.need, 'step')}"
    else:
        model = evidence.context.get("model", "")
        begin = f"Reference models{f' ({model})' if model else ''} gain from {counted(three.need, 'step')} of context"
    reach = "the reach of the gradient was not recorded"
    if three.reach is not None:
        reach = f"the gradient reaches {_at_least(three.open_reach)}{span(three.reach)}"
    use = "what the model uses was not recorded"
    if three.use is not None:
        use = f"the model uses {_at_least(three.open_use)}{span(three.use)}"
    return f"{begin}; {reach}; {use}."


def _at_least(open_seeds: tuple[int, ...]) -> str:
    return "at least " if open_seeds else ""


def _numbers(interval: Interval | None) -> dict[str, float | int | None] | None:
    if interval is None:
        return None
    bounded = not unbounded(interval)
    return {
        "value": interval.value,
        "low": interval.low if bounded else None,
        "high": interval.high if bounded else None,
        "seeds": interval.n,
    }
