"""What the analyzers share: intervals over seeds, what a single seed may say, and numbers in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from rnnbench.evidence import Evidence, Observed
from rnnbench.stats import Interval, mean_interval

SEEDS_NEEDED = 6
"""Below this many seeds nothing is said of other seeds: an exact paired test cannot reach 0.05 with five."""


LEARNED = 0.9
"""A run without a stopping rule counts as solved once it has come this share of the way from baseline to goal."""


@dataclass(frozen=True)
class Scores:
    """The seeds' scores against the best baseline.

    Attributes:
        gains: share of the way from the best baseline to the goal, a run; a diverged run's is 0.
        finals: the scores themselves; a diverged run's is the baseline.
        solved: whether each met the stopping rule.
        seeds: of these runs.
        unscored: seeds of runs without a score.
        best: name of the best baseline.
        baseline: its value.
        goal: the stopping rule's threshold, else the metric's perfect value.
    """

    gains: tuple[float, ...]
    finals: tuple[float, ...]
    solved: tuple[bool, ...]
    seeds: tuple[int, ...]
    unscored: tuple[int, ...]
    best: str
    baseline: float
    goal: float


def over_seeds(values: Iterable[float], least: float = -math.inf, most: float = math.inf) -> Interval | None:
    """Return the mean over seeds with its interval, cut to what is possible; None where no value is finite.

    Values that are not finite are left out: whoever calls says how many there were.
    """
    kept = [float(value) for value in values if math.isfinite(value)]
    if not kept:
        return None
    found = mean_interval(np.asarray(kept))
    if len(kept) < 2:
        return Interval(found.value, -math.inf, math.inf, found.level, len(kept))
    return Interval(found.value, max(found.low, least), min(found.high, most), found.level, found.n)


def above(interval: Interval, threshold: float) -> bool:
    """Whether the whole interval lies above; a single seed without an interval speaks for itself by its value."""
    return (interval.value if unbounded(interval) else interval.low) > threshold


def below(interval: Interval, threshold: float) -> bool:
    """Whether the whole interval lies below; a single seed without an interval speaks for itself by its value."""
    return (interval.value if unbounded(interval) else interval.high) < threshold


def unbounded(interval: Interval) -> bool:
    """Whether there is no interval, as with one seed."""
    return not (math.isfinite(interval.low) and math.isfinite(interval.high))


def scores(evidence: Evidence) -> Scores | None:
    """Place each run between the best baseline and the goal; None without a baseline to compare with.

    The goal is the threshold of the stopping rule, else the metric's perfect value: 0 where lower is better, 1 where
    higher is. Runs that the clock ended are left out, diverged ones count at the baseline.
    """
    higher = evidence.better == "higher"
    known = {
        name: float(np.median([run.baselines[name] for run in evidence.runs if name in run.baselines]))
        for name in dict.fromkeys(name for run in evidence.runs for name in run.baselines)
    }
    known = {name: value for name, value in known.items() if math.isfinite(value)}
    if not known:
        return None
    best = (max if higher else min)(known, key=lambda name: known[name])
    goal = evidence.threshold if evidence.threshold is not None else (1.0 if higher else 0.0)
    way = goal - known[best]
    if not math.isfinite(way) or way == 0 or (way > 0) != higher:
        return None  # a baseline that meets the goal leaves nothing to be learned
    runs = [run for run in evidence.runs if run.status != "time_limit"]
    scored = [(run, _final(run, known[best])) for run in runs]
    kept = [(run, final) for run, final in scored if final is not None]
    return Scores(
        gains=tuple((final - known[best]) / way for _, final in kept),
        finals=tuple(final for _, final in kept),
        solved=tuple(run.status == "solved" for run, _ in kept),
        seeds=tuple(run.seed for run, _ in kept),
        unscored=tuple(run.seed for run, final in scored if final is None),
        best=best,
        baseline=known[best],
        goal=goal,
    )


def _final(run: Observed, baseline: float) -> float | None:
    if run.status == "diverged":
        return baseline
    return run.final if run.final is not None and math.isfinite(run.final) else None


def all_solved(evidence: Evidence) -> bool:
    """Whether every run not ended by the clock met the stopping rule, or came `LEARNED` of the way to the goal."""
    runs = [run for run in evidence.runs if run.status != "time_limit"]
    found = scores(evidence)
    gains = dict(zip(found.seeds, found.gains, strict=True)) if found is not None else {}
    return bool(runs) and all(run.status == "solved" or gains.get(run.seed, 0.0) >= LEARNED for run in runs)


def number(value: float, digits: int = 2) -> str:
    """Return two significant digits, and all that stand before the point: 0.074, 61, 784, 2.1e-07."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    whole = 10**digits - 0.5 <= abs(value) < 1e5  # what rounds up to it too: 99.6 is 100, not 1e+02
    return f"{value:.0f}" if whole else f"{value:.{digits}g}"


def power(ln: float, digits: int = 2) -> str:
    """Return exp(ln) in digits, also where a float cannot hold it: 2.1e-07, 1e-869."""
    if not math.isfinite(ln):
        return "0" if ln == -math.inf else f"{ln:g}"
    return number(math.exp(ln), digits) if abs(ln) < 600 else f"1e{ln / math.log(10):+.0f}"


def span(interval: Interval, unit: str = "") -> str:
    """Return value, interval and unit: ``61 [55, 67] steps``; without the interval where there is none."""
    return f"{_told_apart(interval, number)}{' ' if unit else ''}{unit}"


def power_span(ln: Interval) -> str:
    """Return exp of a value and its interval."""
    return _told_apart(ln, power)


def _told_apart(interval: Interval, text: Callable[[float, int], str]) -> str:
    """Return value and interval with as many digits as it takes to tell the ends from the value, at most six."""
    if unbounded(interval):
        return text(interval.value, 2)
    for digits in range(2, 7):
        value, low, high = (text(x, digits) for x in (interval.value, interval.low, interval.high))
        if len({value, low, high}) == 3:
            break
    return f"{value} [{low}, {high}]"


def counted(n: int, thing: str) -> str:
    """Return the number with its noun: 1 seed, 3 seeds."""
    return f"{n} {thing}{'' if n == 1 else 's'}"


def percent_span(share: Interval) -> str:
    """Return a share and its interval in percent: ``74 [61, 84] %``."""
    return span(Interval(100 * share.value, 100 * share.low, 100 * share.high, share.level, share.n), "%")


def interval_fields(interval: Interval | None) -> dict[str, Any]:
    """Return an interval as the fields of a finding; nothing for None."""
    if interval is None:
        return {}
    return {
        "value": interval.value,
        "low": interval.low,
        "high": interval.high,
        "level": interval.level,
        "seeds": interval.n,
    }


def percent(share: float) -> str:
    """Return a share in percent: 0.74 %, 7.4 %, 74 %."""
    return f"{number(100 * share)} %"


def when(steps: Iterable[int]) -> str:
    """Return a training step, or the range of the seeds' last ones, in words."""
    known = sorted(set(steps))
    return f"At step {known[0]}" if len(known) == 1 else f"At the last probed step ({known[0]} to {known[-1]})"
