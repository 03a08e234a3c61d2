"""Where in time a parameter's gradient comes from, held against the lag that the task needs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    number,
    over_seeds,
    percent,
    power,
    power_span,
    span,
    unbounded,
    when,
)
from rnnbench_analyzers.profiles import headline_scope, needed_lag, scope_of

PART, BEYOND, SHARE = "lags.log_norm", "lags.beyond_log_norm", "lags.share"

FARTHER = 0.5
"""The far part of the gradient comes from beyond this share of the needed lag: a task that needs a lag rarely needs it
of every sequence, and half of it is still a lag that the near past cannot stand in for."""

LEAST = 1e-3
"""A gradient is local when the norm of its far part is less than this share of its own: the share at which a gradient
counts as vanished, for the same reason."""

CUT = 0.1
"""The gradient comes from the steps without which more than this share of its norm is missing."""

RECURRENT = "weight_hh"
"""What cells call the weight that their state goes through; a run is judged by it."""


@dataclass(frozen=True)
class Origin:
    """Where one run's gradient by one parameter comes from.

    Attributes:
        step: training steps done.
        log_norm: of the whole gradient, which a plot of gradient norms shows.
        log_far: ln of the far part's norm over the whole one's; -inf where nothing comes from there.
        near: how many steps from the loss on all but `CUT` of the norm comes from, see `near_steps`.
        log_gross: ln of the sum of the parts' norms over the whole one's: 0 where none points against another.
        share: signed share of the far part; not a number where it was not recorded.
    """

    step: int
    log_norm: float
    log_far: float
    near: int
    log_gross: float
    share: float


@dataclass(frozen=True)
class Judgement:
    """What the runs say at one moment.

    Attributes:
        code: gradient-local, gradient-spread or not-enough-evidence.
        far: `Origin.log_far` over seeds; None where it is an exact zero, or no number, in every run.
        seeds: runs that it rests on.
        zeros: how many of them have an exact zero there.
        unusable: seeds whose gradient is zero or no number, or was not recorded that far back.
    """

    code: str
    far: Interval | None
    seeds: int
    zeros: int
    unusable: tuple[int, ...]


def analyze(evidence: Evidence) -> list[Finding]:
    """Judge at the first and at the last probed step how much of the gradient comes from the far half of the lag."""
    need, words = needed_lag(evidence)
    of = parameter(evidence)
    if need < 1 or of is None:
        return []
    steps = [set(run.signals.steps(BEYOND)) for run in evidence.runs if run.signals.steps(BEYOND)]
    common = sorted(set.intersection(*steps))
    final = judge(evidence, of, None, need)
    found = [_finding(evidence, of, None, need, words, final, None)]
    if common and common[0] < min(max(each) for each in steps):
        first = judge(evidence, of, common[0], need)
        found.append(_finding(evidence, of, common[0], need, words, first, final))
    return found


def parameter(evidence: Evidence) -> str | None:
    """Return the parameter that an arm is judged by; None where none was recorded.

    It is the recurrent weight of the lowest scope that reads forward; in a cell that calls none so, that parameter of
    the scope with the largest gradient at the last probed step of the first run.
    """
    for run in evidence.runs:
        names = parameters(run.signals)
        if names:
            return next((name for name in names if name.rpartition(".")[2] == RECURRENT), _largest(run.signals, names))
    return None


def parameters(signals: Signals) -> list[str]:
    """Return the parameters of the lowest scope that reads forward, in the order of recording."""
    scope = headline_scope(signals, BEYOND)
    return [name for name in signals.things(BEYOND) if scope_of(name) == scope]


def first_far(need: int) -> int:
    """Return the first lag that counts as far: the first beyond `FARTHER` of the needed lag."""
    return math.floor(FARTHER * need) + 1


def origin(signals: Signals, of: str, step: int | None, need: int) -> Origin | None:
    """Return where a run's gradient by a parameter comes from; None where it is zero, no number, or too short.

    Args:
        signals: of the run.
        of: the parameter's full name.
        step: training steps done; the last recorded where not given.
        need: the needed lag.
    """
    signal = signals.one(BEYOND, of, step)
    if signal is None:
        return None
    beyond = np.asarray(signal.values, dtype=np.float64).reshape(-1)
    far = first_far(need)
    if len(beyond) <= far or not math.isfinite(beyond[0]) or (np.isnan(beyond) | np.isposinf(beyond)).any():
        return None
    parts, shares = (_values(signals, kind, of, signal.step) for kind in (PART, SHARE))
    return Origin(
        step=signal.step,
        log_norm=float(beyond[0]),
        log_far=float(beyond[far] - beyond[0]),
        near=near_steps(beyond),
        log_gross=float(np.logaddexp.reduce(parts) - beyond[0]) if len(parts) else math.nan,
        share=float(shares[far:].sum()) if len(shares) else math.nan,
    )


def near_steps(beyond: NDArray) -> int:
    """Return after how many steps backpropagation may be cut off, then or later, and miss `CUT` of the norm at most.

    Args:
        beyond: ln of the norm of what comes from each lag and beyond [lag].
    """
    return int(np.flatnonzero(beyond - beyond[0] > math.log(CUT))[-1]) + 1


def judge(evidence: Evidence, of: str, step: int | None, need: int) -> Judgement:
    """Judge the far part of the gradient at a training step, over seeds."""
    origins = {run.seed: found for run in evidence.runs if (found := origin(run.signals, of, step, need)) is not None}
    unusable = tuple(sorted({run.seed for run in evidence.runs if run.signals.find(BEYOND)} - set(origins)))
    zeros = sum(found.log_far == -math.inf for found in origins.values())
    far = over_seeds(found.log_far for found in origins.values())
    code = "not-enough-evidence"
    if origins and (far is None or 2 * zeros > len(origins) or below(far, math.log(LEAST))):
        code = "gradient-local"
    elif far is not None and not zeros and above(far, math.log(LEAST)):
        code = "gradient-spread"
    return Judgement(code, far, len(origins), zeros, unusable)


def _largest(signals: Signals, names: Sequence[str]) -> str:
    def norm(name: str) -> float:
        values = _values(signals, BEYOND, name, None)
        return float(values[0]) if len(values) and not math.isnan(values[0]) else -math.inf

    return max(names, key=norm)


def _values(signals: Signals, kind: str, of: str, step: int | None) -> NDArray:
    signal = signals.one(kind, of, step)
    return np.empty(0) if signal is None else np.asarray(signal.values, dtype=np.float64).reshape(-1)


def _finding(
    evidence: Evidence, of: str, step: int | None, need: int, words: str, judged: Judgement, later: Judgement | None
) -> Finding:
    origins = [found for run in evidence.runs if (found := origin(run.signals, of, step, need)) is not None]
    steps = [found.step for found in origins] or [step if step is not None else _last_step(evidence)]
    far = judged.far
    shown = None if 2 * judged.zeros > judged.seeds else far
    return finding(
        judged.code,
        evidence.subject,
        f"{when(steps)} {_claim(of, need, words, judged, origins)}",
        severity=_severity(evidence, judged, later),
        measure="share of the gradient's norm that comes from the farther half of the needed lag",
        value=_exp(shown.value) if shown is not None else 0.0 if judged.seeds else None,
        low=_exp(shown.low) if shown is not None and not unbounded(shown) else None,
        high=_exp(shown.high) if shown is not None and not unbounded(shown) else None,
        level=shown.level if shown is not None else None,
        threshold=LEAST,
        of=of,
        step=max(steps),
        seeds=judged.seeds,
        evidence=(BEYOND,),
        details={
            "needed_lag": need,
            "first_far_lag": first_far(need),
            "decades": far.value / math.log(10) if far is not None else None,
            "zero_seeds": judged.zeros,
            "unusable_seeds": list(judged.unusable),
            "near_steps": _mean(found.near for found in origins),
            "log_norm": _mean(found.log_norm for found in origins),
            "log_gross": _mean(found.log_gross for found in origins),
            "signed_share": _mean(found.share for found in origins),
            "parameters": _others(evidence, step, need),
        },
    )


def _claim(of: str, need: int, words: str, judged: Judgement, origins: Sequence[Origin]) -> str:
    norm = over_seeds(found.log_norm for found in origins)
    near = over_seeds((found.near for found in origins), least=1.0)
    place = f"the farther half of the {counted(need, 'step')} {words}"
    if norm is None or near is None:
        return f"dL/d {of} is zero or holds no number over {place}, so that nothing can be said of where it comes from."
    steps = f"the {span(near)} steps" if near.value != 1 or not unbounded(near) else "the one step"
    begin = (
        f"dL/d {of} has a norm of {power_span(norm)}, of which {percent(1 - CUT)} comes from {steps} nearest to the "
        f"loss. From lag {first_far(need)} and beyond, {place}, comes"
    )
    if judged.far is None or 2 * judged.zeros > judged.seeds:
        few = "" if judged.zeros == judged.seeds else f" in {judged.zeros} of {counted(judged.seeds, 'seed')}"
        return f"{begin} exactly none of it{few}: the norm says nothing of the lag that matters."
    few = f", and exactly none in {counted(judged.zeros, 'seed')}" if judged.zeros else ""
    end = {
        "gradient-local": ": the norm says nothing of the lag that matters.",
        "gradient-spread": ".",
    }.get(judged.code, f"; whether that is less than {number(LEAST)} is not settled.")
    return f"{begin} {power_span(judged.far)} of it{few}{end}"


def _severity(evidence: Evidence, judged: Judgement, later: Judgement | None) -> Severity | None:
    """Weigh the verdict: what training has mended, or the task was solved in spite of, is no problem any more."""
    if judged.code != "gradient-local":
        return None
    if all_solved(evidence) or (later is not None and later.code == "gradient-spread"):
        return Severity.INFO
    known = evidence.lag is not None or evidence.context.get("need") is not None
    return None if known else Severity.WARNING


def _others(evidence: Evidence, step: int | None, need: int) -> dict[str, Any]:
    """Return norm, near steps and far part of every parameter of the scope, in the mean over seeds."""
    told: dict[str, Any] = {}
    for name in dict.fromkeys(name for run in evidence.runs for name in parameters(run.signals)):
        origins = [found for run in evidence.runs if (found := origin(run.signals, name, step, need)) is not None]
        told[name] = {
            "norm": power(value) if (value := _mean(found.log_norm for found in origins)) is not None else None,
            "near_steps": _mean(found.near for found in origins),
            "log_far": _mean(found.log_far for found in origins),
        }
    return told


def _last_step(evidence: Evidence) -> int:
    return max(step for run in evidence.runs for step in run.signals.steps(BEYOND))


def _mean(values: Iterable[float]) -> float | None:
    """Return the mean of what is finite; None where nothing is."""
    found = over_seeds(values)
    return None if found is None else found.value


def _exp(value: float) -> float | None:
    """Return exp, or None where no float can hold it."""
    return math.exp(value) if value < 700 else None
