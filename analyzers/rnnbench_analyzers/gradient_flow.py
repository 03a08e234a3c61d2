"""How a gradient shrinks or grows on its way back through time, judged against the lag that the task needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence, Observed
from rnnbench.findings import Finding, Severity, finding
from rnnbench.stats import Decay, Interval, block_bootstrap, change_points, decay, horizon
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
from rnnbench_analyzers.profiles import (
    LOGIT,
    LOGIT_INPUT,
    LOSS,
    LOSS_INPUT,
    STEP_LOSS,
    Profile,
    by_lag,
    headline_scope,
    lag_profile,
    loss_profile,
    loss_step,
    needed_lag,
    runs_backward,
    scope_of,
)

VANISHED = 1e-3
"""A gradient of which less than this share is left has vanished: float32 holds 1e-7 of a sum, minibatch noise is of
order 1e-1 of a gradient, so a thousandth is lost beside what the near past contributes."""

EXPLODED = 1e3
"""One that has grown by more than this has exploded: the same factor, the other way."""

HALF = 0.5
"""More than this share of the sequences zero, or out of the precision's reach, is most of them."""

FEW = 0.05
"""Up to this share of the sequences may be exactly zero in a gradient that is healthy: one in twenty is an odd
sequence, more is a way that is cut."""

AGREES = 0.05
"""A law may differ from what is left by this much in ln, beyond the interval: five per cent change no decision."""

LEAST_INCREMENTS = 8
"""Below this many steps of lag no interval is drawn from the increments of one run; only seeds can give one."""


@dataclass(frozen=True)
class Judgement:
    """What the profiles of one moment say.

    Attributes:
        code: gradient-vanishing, gradient-exploding, gradient-healthy or not-enough-evidence.
        attenuation: log of what is left over `lag` steps; None where no run has a finite value there.
        lag: the steps judged over: the needed lag, or all that was recorded of it.
        zeros: share of sequences, over runs, whose gradient is exactly zero at that lag.
        seeds: runs that it rests on: those of the interval, or all usable ones where the exact zeros decide.
        unusable: seeds whose profile holds no number at lag 0 or at `lag`.
        fit: rate and shape of the decay over `lag`; None where too little is finite.
        horizon: smallest lag, of all recorded, from which on at most `VANISHED` is left in the median over runs.
    """

    code: str
    attenuation: Interval | None
    lag: int
    zeros: float
    seeds: int
    unusable: tuple[int, ...]
    fit: Decay | None
    horizon: int | None


Pick = Callable[[Observed], Profile | None]


def analyze(evidence: Evidence) -> list[Finding]:
    """Judge the gradient at the first and at the last probed step, and what changes on the way.

    A trained model is judged by the Jacobian of its outputs, each sequence's by itself: an example that is solved
    has no loss gradient left that could decay, and a mean over a batch would be that of the few unsolved ones. At
    step 0 it is the loss gradient, which is what training starts from.
    """
    need, words = needed_lag(evidence)
    kinds = {kind for run in evidence.runs for kind in run.signals.kinds()}
    if need < 1 or not kinds & {LOGIT, LOSS, STEP_LOSS, LOSS_INPUT}:
        return []
    found = _verdicts(evidence, need, words)
    found += [*_along_lag(evidence, need), *_along_training(evidence, need), *_underflow(evidence, need)]
    return found


def probed_steps(evidence: Evidence, kind: str) -> list[int]:
    """Return the training steps at which every run that recorded a kind did so, ascending."""
    steps = [set(run.signals.steps(kind)) for run in evidence.runs if run.signals.steps(kind)]
    return sorted(set.intersection(*steps)) if steps else []


def judge(profiles: Sequence[tuple[int, Profile]], need: int) -> Judgement:
    """Judge profiles, given with their seeds, over `need` steps of lag, or over as many as were recorded."""
    lag = min(need, max((len(profile) for _, profile in profiles), default=1) - 1)
    long = [(seed, profile) for seed, profile in profiles if len(profile) > lag]
    usable = [
        (seed, profile) for seed, profile in long if np.isfinite(profile.mean[0]) and not np.isnan(profile.mean[lag])
    ]
    unusable = tuple(sorted({seed for seed, _ in profiles} - {seed for seed, _ in usable}))
    if lag < 1 or not usable:
        return Judgement("not-enough-evidence", None, lag, 0.0, len(usable), unusable, None, None)
    zeros = float(np.mean([profile.zeros[lag] for _, profile in usable]))
    finite = [profile.mean[: lag + 1] for _, profile in usable if np.isfinite(profile.mean[lag])]
    attenuation = _attenuation(finite, lag)
    fit = decay(finite, left=VANISHED) if finite else None
    code, seeds = "not-enough-evidence", len(usable)
    if attenuation is not None and zeros <= HALF:
        seeds = attenuation.n
    if zeros > HALF or attenuation is None or below(attenuation, math.log(VANISHED)):
        code = "gradient-vanishing"
    elif above(attenuation, math.log(EXPLODED)):
        code = "gradient-exploding"
    elif lag == need and zeros <= FEW and _between(attenuation):
        code = "gradient-healthy"
    return Judgement(code, attenuation, lag, zeros, seeds, unusable, fit, horizon(_median(usable), VANISHED))


def _between(attenuation: Interval) -> bool:
    """Tell whether what is left, of the sequences that are not exactly zero, is neither too little nor too much."""
    return above(attenuation, math.log(VANISHED)) and below(attenuation, math.log(EXPLODED))


def _median(profiles: Sequence[tuple[int, Profile]]) -> NDArray:
    """Return the median profile as far as every run's goes."""
    length = min(len(profile) for _, profile in profiles)
    levels = [profile.mean[:length] - profile.mean[0] for _, profile in profiles]
    return np.asarray(np.median(levels, axis=0))


def _attenuation(means: Sequence[NDArray], lag: int) -> Interval | None:
    """Return the log of what is left after `lag` steps: that many times the increments' mean, resampled in blocks."""
    if not means:
        return None
    if lag < LEAST_INCREMENTS or not all(np.isfinite(mean).all() for mean in means):
        return over_seeds(float(mean[lag] - mean[0]) for mean in means)
    rate = block_bootstrap([np.diff(mean) for mean in means])
    return Interval(rate.value * lag, rate.low * lag, rate.high * lag, rate.level, rate.n)


def _gather(evidence: Evidence, pick: Pick) -> list[tuple[int, Profile]]:
    return [(run.seed, profile) for run in evidence.runs if (profile := pick(run)) is not None]


def _of_logits(of: str, step: int | None) -> Pick:
    return lambda run: lag_profile(run.signals, LOGIT, of, step)


def _of_loss(of: str, step: int | None) -> Pick:
    return lambda run: loss_profile(run.signals, of, step)


def _scope(evidence: Evidence, *kinds: str) -> str | None:
    scopes = (headline_scope(run.signals, kind) for kind in kinds for run in evidence.runs)
    return next((scope for scope in scopes if scope is not None), None)


def _verdicts(evidence: Evidence, need: int, words: str) -> list[Finding]:
    of = _scope(evidence, LOGIT, STEP_LOSS, LOSS)
    if of is None:
        return _by_input(evidence, need, words)
    by_logits = _gather(evidence, _of_logits(of, None))
    by_loss = _gather(evidence, _of_loss(of, None))
    last = by_logits if by_logits and max(profile.step for _, profile in by_logits) > 0 else by_loss or by_logits
    start = min(_loss_steps(evidence), default=None)
    found = []
    final = judge(last, need)
    found.append(_verdict(evidence, of, last, final, need, words, None))
    if start is not None and start < min(profile.step for _, profile in last):
        first = _gather(evidence, _of_loss(of, start))
        if first:
            found.append(_verdict(evidence, of, first, judge(first, need), need, words, final))
    return found


def _by_input(evidence: Evidence, need: int, words: str) -> list[Finding]:
    """Judge a whole model, of which only the input's gradient is known; not where each step has a loss of its own."""
    task = registry.load("tasks", evidence.task) if evidence.task in registry.names("tasks") else None
    steps = probed_steps(evidence, LOSS_INPUT)
    if not steps or getattr(task, "readout", None) != "last":
        return []

    def at(step: int | None) -> list[tuple[int, Profile]]:
        return _gather(evidence, lambda run: lag_profile(run.signals, LOSS_INPUT, "", step))

    last = at(None)
    final = judge(last, need)
    found = [_verdict(evidence, "", last, final, need, words, None)]
    if steps[0] < min(profile.step for _, profile in last):
        first = at(steps[0])
        found.append(_verdict(evidence, "", first, judge(first, need), need, words, final))
    return found


def _loss_steps(evidence: Evidence) -> list[int]:
    return probed_steps(evidence, STEP_LOSS) or probed_steps(evidence, LOSS)


def _verdict(
    evidence: Evidence,
    of: str,
    profiles: Sequence[tuple[int, Profile]],
    judged: Judgement,
    need: int,
    words: str,
    later: Judgement | None,
) -> Finding:
    steps = [profile.step for _, profile in profiles]
    kind = profiles[0][1].kind
    left = judged.attenuation
    shown = None if judged.zeros > HALF else left  # of most sequences that are exactly zero, nothing is left
    details: dict[str, Any] = {
        "lag": judged.lag,
        "needed_lag": need,
        "exact_zeros": judged.zeros,
        "unusable_seeds": list(judged.unusable),
        "horizon": judged.horizon,
        **_fit_details(judged.fit),
    }
    if left is not None:
        details |= {"log_attenuation": left.value, "log_low": _finite(left.low), "log_high": _finite(left.high)}
    if later is None and of:
        details |= _others(evidence, of, kind, need, judged.code)
        details |= _input(evidence, max(steps), need)
    value = 0.0 if shown is None else _exp(shown.value)
    return finding(
        judged.code,
        evidence.subject,
        f"{when(steps)} {_claim(judged, kind, need, words)}",
        severity=_severity(evidence, judged, later),
        measure="share of the gradient's norm that is left at the needed lag",
        value=value if judged.seeds else None,
        low=_exp(shown.low) if shown is not None and not unbounded(shown) else None,
        high=_exp(shown.high) if shown is not None and not unbounded(shown) else None,
        level=shown.level if shown is not None else None,
        threshold=EXPLODED if judged.code == "gradient-exploding" else VANISHED,
        of=of,
        step=max(steps),
        seeds=judged.seeds,
        evidence=(kind,),
        details=details,
    )


def _claim(judged: Judgement, kind: str, need: int, words: str) -> str:
    what = {LOGIT: "the outputs' gradient", LOSS_INPUT: "the loss gradient by the input"}.get(kind, "the loss gradient")
    over = f"the {counted(need, 'step')} {words}"
    if judged.lag < need:
        over = f"{judged.lag} of {over}, which is as far as it was recorded"
    if not judged.seeds:
        return f"{what} holds no number over {over}, so that nothing can be said of it."
    if judged.zeros > HALF or judged.attenuation is None:
        share = "" if judged.zeros == 1 else f" in {percent(judged.zeros)} of the sequences"
        return f"{what} is exactly zero{share} over {over}: no unit on the way passes any of it on."
    left = judged.attenuation
    some = f" It is exactly zero in {percent(judged.zeros)} of the sequences, which are left out of this"
    if judged.zeros == 0:
        some = ""
    elif judged.code == "not-enough-evidence" and judged.lag == need and _between(left):
        some += ": too many for a gradient that gets that far, too few for one that does not."
    else:
        some += "."
    doubt = ""
    if judged.code == "not-enough-evidence":
        limit = EXPLODED if left.value > 0 else VANISHED
        if judged.lag < need:
            doubt = " What is left at the needed lag is not known."
        elif not _between(left):
            doubt = f" Whether that is {'more' if left.value > 0 else 'less'} than {number(limit)} is not settled."
    if left.value > 0 and judged.code != "gradient-healthy":
        return f"{what} grows to {power_span(left)} times its norm over {over}{_rate(judged)}.{some}{doubt}"
    return f"{what} keeps {power_span(left)} of its norm over {over}{_rate(judged)}.{some}{doubt}"


def _rate(judged: Judgement) -> str:
    """Return the shape of the decay in words, and nothing where the rate cannot be told from zero.

    Only a law that gives what is left is stated as one; of what is undecided the mean rate is.
    """
    fit = judged.fit
    if fit is None:
        return ""
    if fit.model == "neither":
        gone = f", a thousandth is left after {counted(judged.horizon, 'step')}" if judged.horizon is not None else ""
        return f": it follows neither an exponential nor a power of the lag{gone}"
    first = f", from lag {fit.used[0]} on" if fit.used[0] > 0 else ""
    if fit.model == "power" and fit.exponent is not None and _agrees(fit):
        alpha = fit.exponent
        to_the = span(Interval(-alpha.value, -alpha.high, -alpha.low, alpha.level, alpha.n))
        return f": it {'falls' if alpha.value > 0 else 'grows'} as the lag to the power {to_the}{first}"
    if fit.half_life is not None:
        return (
            f": it shrinks by {percent(-math.expm1(fit.rate.value))} a step "
            f"(half-life {number(fit.half_life)} steps){first}"
        )
    if fit.doubling is not None:
        return (
            f": it grows by {percent(math.expm1(fit.rate.value))} a step "
            f"(doubling in {number(fit.doubling)} steps){first}"
        )
    if fit.rate.high < 0 and fit.model != "exponential":
        return f": on average it shrinks by {percent(-math.expm1(fit.rate.value))} a step{first}"
    if fit.rate.low > 0 and fit.model != "exponential":
        return f": on average it grows by {percent(math.expm1(fit.rate.value))} a step{first}"
    return ""


def _agrees(fit: Decay) -> bool:
    """Tell whether a power law gives, over the lags that it rests on, what the mean increment's interval says."""
    start, end = fit.used
    if fit.exponent is None:
        return False
    whole = -fit.exponent.value * math.log((1 + end) / (1 + start))
    steps = end - start
    return fit.rate.low * steps - AGREES <= whole <= fit.rate.high * steps + AGREES


def _severity(evidence: Evidence, judged: Judgement, later: Judgement | None) -> Severity | None:
    """Weigh the verdict: what training has mended, or the task was solved in spite of, is no problem any more."""
    if judged.code not in ("gradient-vanishing", "gradient-exploding"):
        return None
    if all_solved(evidence) or (later is not None and later.code == "gradient-healthy"):
        return Severity.INFO
    if judged.code == "gradient-vanishing":
        known = evidence.lag is not None or evidence.context.get("need") is not None
        return Severity.PROBLEM if known else Severity.WARNING
    clipped = any(run.signals.things("updates.acted") for run in evidence.runs)
    diverged = any(run.status == "diverged" for run in evidence.runs)
    return Severity.WARNING if clipped and not diverged else Severity.PROBLEM


def _fit_details(fit: Decay | None) -> dict[str, Any]:
    if fit is None:
        return {}
    return {
        "model": fit.model,
        "rate": _finite(fit.rate.value),
        "rate_low": _finite(fit.rate.low),
        "rate_high": _finite(fit.rate.high),
        "half_life": fit.half_life,
        "doubling": fit.doubling,
        "exponent": fit.exponent.value if fit.exponent is not None else None,
        "p_exponential": _finite(fit.p_exponential),
        "p_power": _finite(fit.p_power),
    }


def _others(evidence: Evidence, of: str, kind: str, need: int, code: str) -> dict[str, Any]:
    """Return the verdicts of the other scopes and of single states, where they differ from the headline's."""
    kind = LOGIT if kind == LOGIT else LOSS
    states = dict.fromkeys(state for run in evidence.runs for state in run.signals.things(kind))
    scopes = dict.fromkeys(scope_of(state) for state in states)
    found = {}
    for name in [*scopes, *states]:
        if name == of or (runs_backward(name) and not runs_backward(of)):
            continue
        pick = _of_logits(name, None) if kind == LOGIT else _of_loss(name, None)
        other = judge(_gather(evidence, pick), need)
        # a state that the loss does not reach directly starts at an exact zero and has nothing to be compared with
        if other.seeds and other.code not in (code, "not-enough-evidence"):
            found[name] = other.code
    return {"others": found}


def _input(evidence: Evidence, step: int, need: int) -> dict[str, Any]:
    """Return the same share for the gradient by the input, which is comparable across cells."""
    if step == 0:
        return {}
    judged = judge(_gather(evidence, lambda run: lag_profile(run.signals, LOGIT_INPUT)), need)
    left = judged.attenuation
    if left is None:
        return {}
    return {
        "input_log_attenuation": left.value,
        "input_log_low": _finite(left.low),
        "input_log_high": _finite(left.high),
        "input_verdict": judged.code,
    }


def _along_lag(evidence: Evidence, need: int) -> list[Finding]:
    """Say where along the lag the last probed step's rate changes."""
    of = _scope(evidence, LOGIT, STEP_LOSS, LOSS)
    if of is None:
        return []
    profiles = _gather(evidence, _of_logits(of, None)) or _gather(evidence, _of_loss(of, None))
    means = [profile.mean[: need + 1] for _, profile in profiles]
    length = min((len(mean) for mean in means), default=0)
    means = [mean[:length] for mean in means if np.isfinite(mean[:length]).all()]
    if length < 2 or not means:
        return []
    increments = np.mean([np.diff(mean) for mean in means], axis=0)
    changes = change_points(increments)
    if not changes:
        return []
    edges = [0, *changes, len(increments)]
    rates = [float(np.mean(increments[low:high])) for low, high in pairwise(edges)]
    steps = [profile.step for _, profile in profiles]
    claim = (
        f"{when(steps)} the rate of decay changes at a lag of {_listed(changes)} steps: it is "
        f"{_listed([number(rate) for rate in rates])} a step (ln) in turn."
    )
    return [
        finding(
            "regime-change",
            evidence.subject,
            claim,
            measure="mean increment of the log-norm between changes along the lag",
            unit="1/step",
            of=of,
            step=max(steps),
            seeds=len(means),
            evidence=(profiles[0][1].kind,),
            details={"along": "lag", "lags": [int(change) for change in changes], "rates": rates},
        )
    ]


def _along_training(evidence: Evidence, need: int) -> list[Finding]:
    """Say between which probed steps the rate changed: where two successive steps' intervals do not overlap."""
    kind = LOGIT if len(probed_steps(evidence, LOGIT)) > 1 else LOSS
    of = _scope(evidence, kind)
    if of is None:
        return []
    rates: list[tuple[int, Interval]] = []
    for step in probed_steps(evidence, kind):
        pick = _of_logits(of, step) if kind == LOGIT else _of_loss(of, step)
        means = [profile.mean[: need + 1] for _, profile in _gather(evidence, pick)]
        series = [np.diff(mean) for mean in means if len(mean) > LEAST_INCREMENTS and np.isfinite(mean).all()]
        if series:
            rates.append((step, block_bootstrap(series)))
    changed = [
        (before, after)
        for before, after in pairwise(rates)
        if before[1].high < after[1].low or after[1].high < before[1].low
    ]
    if not changed:
        return []
    largest = max(changed, key=lambda pair: abs(pair[1][1].value - pair[0][1].value))
    (step, before), (later, after) = largest
    claim = (
        f"Training changed the rate of decay between {counted(len(changed), 'pair')} of successive probed steps, most "
        f"between steps {step} and {later}: from {span(before)} to {span(after)} a step (ln)."
    )
    return [
        finding(
            "regime-change",
            evidence.subject,
            claim,
            measure="mean increment of the log-norm at successive probed steps",
            value=after.value,
            low=after.low,
            high=after.high,
            level=after.level,
            unit="1/step",
            of=of,
            step=later,
            seeds=after.n,
            evidence=(kind,),
            details={
                "along": "training",
                "steps": [at for at, _ in rates],
                "rates": [rate.value for _, rate in rates],
                "changed_at": [at for _, (at, _) in changed],
            },
        )
    ]


@dataclass(frozen=True)
class _Censored:
    """How much of the true gradient the run's precision cannot hold, at one step: [lag], means over runs."""

    step: int
    share: NDArray
    too_large: NDArray
    log_left: NDArray
    seeds: int


def _underflow(evidence: Evidence, need: int) -> list[Finding]:
    """Tell a gradient that the precision cannot hold from one that has vanished.

    Where the true gradient keeps more than `VANISHED` of its norm, the precision is what stands in the way; where it
    has vanished, a wider precision would hold a number too small to matter.
    """
    of = _scope(evidence, LOSS)
    steps = probed_steps(evidence, "adjoint.censored")
    if of is None or not steps:
        return []
    found = []
    for step in steps:
        parts = [part for run in evidence.runs if (part := _censored(run, of, step)) is not None]
        length = min((len(part.share) for part in parts), default=0)
        if length:
            share, large, left = (
                np.mean([getattr(part, name)[:length] for part in parts], axis=0)
                for name in ("share", "too_large", "log_left")
            )
            found.append(_Censored(step, share, large, left, len(parts)))
    hit = [censored for censored in found if _lost_from(censored.share, need) is not None]
    if not hit:
        return []
    worst = max(hit, key=lambda censored: (_censored_severity(evidence, censored, need).rank, censored.step))
    lag = _lost_from(worst.share, need) or 0
    severity = _censored_severity(evidence, worst, need)
    grown = bool(worst.too_large[lag] > worst.share[lag] / 2)
    left = float(worst.log_left[lag])
    why = "beyond the largest number" if grown else "below the smallest normal number"
    rest = {
        Severity.PROBLEM: "so the precision, not the network, is what ends it",
        Severity.WARNING: "but by the needed lag it has vanished, so that a wider precision alone would not help",
        Severity.INFO: "which does not concern what the task needs",
    }[severity]
    claim = (
        f"At step {worst.step} the loss gradient is {why} of {evidence.precision} from a lag of {counted(lag, 'step')} "
        f"on{f', where {power(left)} of its norm is left' if math.isfinite(left) else ''}, {rest}."
    )
    causes = {"causes": ("values beyond the largest number of the run's precision become infinite",)} if grown else {}
    return [
        finding(
            "gradient-underflow",
            evidence.subject,
            claim,
            severity=severity,
            measure="lag from which on most sequences' gradient is out of the precision's reach",
            value=float(lag),
            unit="steps",
            threshold=float(need),
            of=of,
            step=worst.step,
            seeds=worst.seeds,
            evidence=("adjoint.censored", LOSS, "adjoint.seen_log_norm"),
            details={
                "share_at_needed_lag": float(worst.share[min(need, len(worst.share) - 1)]),
                "log_left": _finite(left),
            },
            **causes,
        )
    ]


def _censored(run: Observed, of: str, step: int) -> _Censored | None:
    """Return by lag the share of sequences whose gradient the precision holds in no state, of those that have one."""
    signals = run.signals
    there, held, large = [], [], []
    last = 0
    for state in (name for name in signals.things("adjoint.censored") if scope_of(name) == of):
        censored, true = signals.one("adjoint.censored", state, step), signals.one(LOSS, state, step)
        if censored is None or true is None:
            continue
        finite = np.isfinite(true.values)
        last = loss_step(signals, step, len(finite), of)
        there.append(finite)
        held.append(finite & ~(np.asarray(censored.values) > HALF))
        seen = signals.one("adjoint.seen_log_norm", state, step)
        grown = np.zeros_like(finite) if seen is None else np.isnan(seen.values) | np.isposinf(seen.values)
        large.append(grown & finite)
    profile = lag_profile(signals, LOSS, of, step)
    if not there or profile is None:
        return None
    any_there, any_held = np.any(there, axis=0), np.any(held, axis=0)
    count = np.maximum(any_there.sum(axis=1), 1)
    share = (any_there & ~any_held).sum(axis=1) / count
    too_large = (any_there & ~any_held & np.any(large, axis=0)).sum(axis=1) / count
    first = profile.mean[0]
    left = profile.mean - (first if np.isfinite(first) else 0.0)
    return _Censored(step, by_lag(share, last, of), by_lag(too_large, last, of), left, 1)


def _lost_from(share: NDArray, need: int) -> int | None:
    """Return the lag from which on, up to the needed one or else to the end, most sequences' gradient is lost."""
    for last in (min(need, len(share) - 1), len(share) - 1):
        held = np.flatnonzero(share[: last + 1] <= HALF)
        start = int(held[-1]) + 1 if len(held) else 0
        if start <= last:
            return start
    return None


def _censored_severity(evidence: Evidence, censored: _Censored, need: int) -> Severity:
    """Weigh it by whether it lies within the needed lag, and whether the true gradient is still of use there."""
    lag = _lost_from(censored.share, need)
    if lag is None or lag > need or all_solved(evidence):
        return Severity.INFO
    left = censored.log_left[min(need, len(censored.log_left) - 1)]
    return Severity.PROBLEM if left >= math.log(VANISHED) else Severity.WARNING


def _listed(values: Sequence[object]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(texts) == 1 else f"{', '.join(texts[:-1])} and {texts[-1]}"


def _exp(ln: float) -> float:
    return math.exp(ln) if ln < 700 else math.inf


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
