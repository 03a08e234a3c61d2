"""Needs, reach and use: how far back the task needs, the gradient reaches, and the model's output depends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence, Observed
from rnnbench.findings import Finding, Severity, finding
from rnnbench.stats import Interval
from rnnbench_analyzers.judging import (
    above,
    all_solved,
    below,
    counted,
    interval_fields,
    number,
    percent,
    span,
    unbounded,
)
from rnnbench_analyzers.profiles import LOGIT_INPUT, lag_profile, needed_lag

LEFT = 1e-3
"""The gradient reaches as far as it keeps this share of the largest it has in its sequence: less has vanished."""

USED = 0.05
"""The model uses the past up to the lag beyond which exchanging it changes the output by less than this share of what
exchanging all of it does."""

TOLERANCE = 0.9
"""A model that reaches, or uses, this share of the needed lag does well enough: a needed lag is the longest there is,
which only few sequences need, and lags are probed on a grid."""

APART = 0.25
"""A seed that lies this share of the needed lag from the median is named."""

HARDLY = 0.01
"""Where exchanging the whole history changes the loss by less than this share of it, the model hardly depends on its
input, and the share of a change that is next to none says little."""

LEVEL = 0.95
"""Of the intervals over seeds, where there are seeds enough for it."""


@dataclass(frozen=True)
class ThreeNumbers:
    """Needs, reach and use, in steps of lag.

    Attributes:
        need: how far back the task needs; None where that is not known.
        words: how that is known.
        reach: of the gradient of the outputs by the input, median over seeds; None where it was not recorded.
        use: of the past by the output, median over seeds; None where it was not recorded.
        reach_by_seed, use_by_seed: each seed's, by its seed.
        open_reach, open_use: seeds whose reach or use goes to the farthest probed lag, so that it may be more.
        loss_change: by how much of itself the loss changes when the whole history is exchanged, median over seeds;
            None where it was not recorded.
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
    loss_change: float | None
    step: int | None

    @property
    def hardly(self) -> bool:
        """Whether the loss hardly depends on the input."""
        return self.loss_change is not None and self.loss_change < HARDLY


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
    if three.reach is None or three.use is None or three.hardly:
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
            _sentence(evidence, three, need),
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
                "loss_change": three.loss_change,
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
    losses = [change for run in evidence.runs if (change := _loss_change(run)) is not None]
    steps = [
        step for run in evidence.runs for kind in (LOGIT_INPUT, "use.output_change") for step in run.signals.steps(kind)
    ]
    return ThreeNumbers(
        need=need if known else None,
        words=words,
        reach=median_interval(lag for lag, _ in reaches.values()),
        use=median_interval(lag for lag, _ in uses.values()),
        reach_by_seed={seed: lag for seed, (lag, _) in reaches.items()},
        use_by_seed={seed: lag for seed, (lag, _) in uses.items()},
        open_reach=tuple(seed for seed, (_, farther) in reaches.items() if farther),
        open_use=tuple(seed for seed, (_, farther) in uses.items() if farther),
        loss_change=float(np.median(losses)) if losses else None,
        step=max(steps, default=None),
    )


def median_interval(values: Iterable[float]) -> Interval | None:
    """Return the median over seeds, between two order statistics whatever the distribution; None without values.

    Of n values the k-th smallest and the k-th largest hold the median with a probability of
    1 - 2 P(Binomial(n, 1/2) < k). The largest k is taken for which that is at least `LEVEL`; below six seeds there is
    none, and the level is that of the smallest and largest value. (David & Nagaraja, Order Statistics, 3rd ed., 7.1.)
    """
    ordered = sorted(values)
    n = len(ordered)
    if not n:
        return None
    median = float(np.median(ordered))
    if n == 1:
        return Interval(median, -math.inf, math.inf, LEVEL, 1)
    k, outside = 1, 2.0 ** (1 - n)
    while k < n // 2 and outside + 2.0 ** (1 - n) * math.comb(n, k) <= 1 - LEVEL:
        outside += 2.0 ** (1 - n) * math.comb(n, k)
        k += 1
    return Interval(median, float(ordered[k - 1]), float(ordered[-k]), 1 - outside, n)


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
    """Return the largest lag that still matters to a run's output, and whether that is the last probed one.

    Exchanging everything at that lag and beyond changes the output by `USED` of what exchanging the whole history
    does, or more. Lags count as for the reach: a model that remembers the inputs at lags 0..k uses k. On a grid the
    answer lies below the first probed lag that no longer matters; it is where a straight line between the two probed
    lags around it passes `USED`, rounded down. 0 where no probed lag matters.
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
        return 0.0, False
    last = int(matters[-1])
    if last == len(lags) - 1:
        return float(lags[-1]), True
    share = (changes[last] - USED) / (changes[last] - changes[last + 1])
    crossing = lags[last] + share * (lags[last + 1] - lags[last])
    return float(min(math.floor(crossing), lags[last + 1] - 1)), False


def _loss_change(run: Observed) -> float | None:
    """Return by how much of itself a run's loss changes when the inputs at all lags are exchanged; None if unknown."""
    base = run.signals.one("use.base_loss")
    if base is None:
        return None
    loss, at = run.signals.one("use.loss", step=base.step), run.signals.one("use.lags", step=base.step)
    if loss is None or at is None or np.size(loss.values) != np.size(at.values):
        return None
    whole = np.flatnonzero(np.asarray(at.values).reshape(-1) == 0)
    before = float(np.asarray(base.values, dtype=np.float64).reshape(-1)[0])
    if not len(whole) or before == 0:
        return None
    change = abs(float(np.asarray(loss.values, dtype=np.float64).reshape(-1)[whole[0]]) - before) / abs(before)
    return change if math.isfinite(change) else None


def _by_seed(
    evidence: Evidence, measure: Callable[[Observed], tuple[float, bool] | None]
) -> dict[int, tuple[float, bool]]:
    found = {run.seed: measure(run) for run in evidence.runs}
    return {seed: value for seed, value in found.items() if value is not None}


def _equal(interval: Interval, threshold: float) -> bool:
    return interval.value == threshold and (unbounded(interval) or interval.low == threshold)


def _sentence(evidence: Evidence, three: ThreeNumbers, need: int) -> str:
    if three.need is None:
        begin = f"How far back the task needs is not known (its sequences have {counted(evidence.length, 'step')})"
    elif evidence.lag is not None:
        begin = f"The task needs {counted(three.need, 'step')}"
    else:
        model = evidence.context.get("model", "")
        named = f" ({model})" if model else ""
        begin = f"Reference models{named} gain from inputs up to {counted(three.need, 'step')} back"
    reach = "the reach of the gradient was not recorded"
    if three.reach is not None:
        reach = f"the gradient reaches {_in_words(three.reach, three.reach_by_seed, three.open_reach, need)}"
    use = "what the model uses was not recorded"
    if three.use is not None:
        use = f"the model uses {_in_words(three.use, three.use_by_seed, three.open_use, need)}"
        if three.hardly and three.loss_change is not None:
            over = ", median over seeds" if three.use.n > 1 else ""
            use += (
                ", though its loss hardly depends on its input at all (exchanging the whole of it changes the loss by "
                f"{percent(three.loss_change)}{over})"
            )
    return f"{begin}; {reach}; {use}."


def _in_words(one: Interval, by_seed: dict[int, float], open_seeds: tuple[int, ...], need: int) -> str:
    """Return the median with its interval, and the few seeds that lie far from it."""
    apart = [seed for seed, lag in by_seed.items() if abs(lag - one.value) > APART * need]
    named = ""
    if apart and 3 * len(apart) <= len(by_seed):
        named = f" ({', '.join(f'seed {seed}: {number(by_seed[seed])}' for seed in apart)})"
    return f"{'at least ' if at_least(by_seed, open_seeds) else ''}{span(one)}{named}"


def at_least(by_seed: dict[int, float], open_seeds: tuple[int, ...]) -> bool:
    """Whether the median over seeds would be more if those that go to the last probed lag went farther."""
    farther = [math.inf if seed in open_seeds else lag for seed, lag in by_seed.items()]
    return bool(farther) and math.isinf(float(np.median(farther)))


def _numbers(interval: Interval | None) -> dict[str, float | int | None] | None:
    if interval is None:
        return None
    bounded = not unbounded(interval)
    return {
        "value": interval.value,
        "low": interval.low if bounded else None,
        "high": interval.high if bounded else None,
        "level": interval.level if bounded else None,
        "seeds": interval.n,
    }
