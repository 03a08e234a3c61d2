"""Lag profiles: how large a gradient is at each distance from the loss, from the signals of the adjoint probe.

The lag of step t is ``loss_step - t`` where time runs forward and ``t - loss_step`` in a scope that reads backward;
such a scope is read at its own last step, t = 0, where the task has one loss.
Logarithms are natural; -inf is an exact zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.signals import Signals

LOSS = "adjoint.log_norm"
STEP_LOSS = "adjoint.step_log_norm"
LOGIT = "adjoint.logit_log_norm"
LOSS_INPUT = "adjoint.input_log_norm"
LOGIT_INPUT = "adjoint.logit_input_log_norm"


@dataclass(frozen=True)
class Profile:
    """Log-norms by lag of one run at one training step.

    Attributes:
        kind: the signal that it was taken from.
        of: the state, or the scope whose states were taken together; empty for the input.
        step: training steps done.
        values: [lag batch] log-norms at lag 0, 1, ...
        mean: [lag] mean over sequences, linked from lag to lag over those that are finite at both, so that a sequence
            that drops to zero leaves the mean without moving it; -inf where every sequence is exactly zero, NaN
            where nothing finite was recorded. With finite values throughout it is the plain mean.
        zeros: [lag] share of sequences that are exactly zero; they are not in `mean`.
        bad: [lag] share of sequences that are not numbers or too large for one; they are not in `mean`.
    """

    kind: str
    of: str
    step: int
    values: NDArray
    mean: NDArray
    zeros: NDArray
    bad: NDArray

    def __len__(self) -> int:
        return len(self.mean)

    @property
    def lags(self) -> NDArray:
        """[lag] 0, 1, ..."""
        return np.arange(len(self.mean))


def runs_backward(of: str) -> bool:
    """Whether time runs backward in the scope of a state, e.g. of ``layers.0.backward.h``."""
    return "backward" in of.split(".")


def loss_step(signals: Signals, step: int, length: int, of: str = "") -> int:
    """Return the step in time that is followed back, T - 1 where none was recorded or it lies outside the sequence.

    Args:
        signals: of a run.
        step: training steps done.
        length: T.
        of: the state; one that reads backward is read at t = 0 unless there is a loss at each step.
    """
    if runs_backward(of) and not signals.find(STEP_LOSS):
        return 0
    found = signals.one("adjoint.loss_step", step=step)
    chosen = float(length - 1 if found is None else np.asarray(found.values).reshape(-1)[0])
    return int(chosen) if 0 <= chosen < length else length - 1


def by_lag(values: NDArray, last: int, of: str = "") -> NDArray:
    """Return values [time ...] as [lag ...], from lag 0 at step `last` to the sequence's first (or last) step."""
    return values[last:] if runs_backward(of) else values[last::-1]


def mean_by_lag(values: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return `Profile`'s mean, zeros and bad, each [lag], of log-norms [lag batch]."""
    values = np.asarray(values, dtype=np.float64)
    finite = np.isfinite(values)
    zeros = np.mean(np.isneginf(values), axis=1)
    bad = np.mean(~finite & ~np.isneginf(values), axis=1)
    mean = np.where(zeros == 1.0, -np.inf, np.nan)
    before = None
    for lag in np.flatnonzero(finite.any(axis=1)):
        both = finite[lag] & finite[before] if before is not None else finite[lag]
        if before is not None and both.any():
            mean[lag] = mean[before] + np.mean(values[lag, both] - values[before, both])
        else:
            mean[lag] = np.mean(values[lag, finite[lag]])
        before = lag
    return mean, zeros, bad


def scope_of(state: str) -> str:
    """Return the scope of a state's full name: ``layers.0.forward`` of ``layers.0.forward.h``."""
    return state.rpartition(".")[0]


def headline_scope(signals: Signals, kind: str = LOGIT) -> str | None:
    """Return the scope that a run is judged by: the lowest layer's that reads forward; None where none was recorded.

    What arrives there has passed every layer above it, and nothing but the input lies below.
    """
    scopes = dict.fromkeys(scope_of(state) for state in signals.things(kind))

    def place(scope: str) -> tuple[bool, int]:
        layer = re.search(r"(?:^|\.)layers\.(\d+)(?:\.|$)", scope)
        return runs_backward(scope), int(layer[1]) if layer else 0

    return min(scopes, key=place, default=None)


def lag_profile(signals: Signals, kind: str, of: str = "", step: int | None = None) -> Profile | None:
    """Return the profile of a state, or of a scope's states taken together, at a training step; None without signal.

    A scope's profile is the norm over all its states: its square is the sum of theirs. That is the derivative by the
    whole state, which no choice of a state can hide a route of.

    Args:
        kind: a signal with axes time and batch, e.g. `LOGIT`.
        of: a state's full name, a scope, or empty for what is of the whole model.
        step: training steps done; the last recorded where not given.
    """
    found = signals.one(kind, of, step)
    if found is not None:
        at, values = found.step, np.asarray(found.values, dtype=np.float64)
    else:
        states = [name for name in signals.things(kind) if of and scope_of(name) == of]
        recorded = [signal for name in states for signal in signals.find(kind, name, step)]
        if not recorded:
            return None
        at = max(signal.step for signal in recorded)
        parts = [np.asarray(signal.values, dtype=np.float64) for signal in recorded if signal.step == at]
        with np.errstate(invalid="ignore"):  # what is not a number in one state is none in the whole
            values = 0.5 * np.logaddexp.reduce([2.0 * part for part in parts], axis=0)
    values = values.reshape(values.shape[0], -1)
    values = by_lag(values, loss_step(signals, at, len(values), of), of)
    mean, zeros, bad = mean_by_lag(values)
    return Profile(kind, of, at, values, mean, zeros, bad)


def loss_profile(signals: Signals, of: str = "", step: int | None = None) -> Profile | None:
    """Return the profile of the loss gradient: of the loss at one step alone where the task has a loss at each."""
    stepwise = lag_profile(signals, STEP_LOSS, of, step)
    return stepwise if stepwise is not None else lag_profile(signals, LOSS, of, step)


def stacked(profiles: Iterable[Profile]) -> NDArray:
    """Return the means of several runs as [run lag], NaN beyond the end of a shorter one."""
    means = [profile.mean for profile in profiles]
    table = np.full((len(means), max((len(mean) for mean in means), default=0)), np.nan)
    for row, mean in zip(table, means, strict=True):
        row[: len(mean)] = mean
    return table


def needed_lag(evidence: Evidence) -> tuple[int, str]:
    """Return how far back the task needs, in steps, and in words how that is known.

    From the task's definition, else from reference models given less context (``context["need"]``), else the whole
    sequence, which is the most that it could need.
    """
    if evidence.lag is not None:
        return evidence.lag, "that the task needs"
    need = evidence.context.get("need")
    if need is not None:
        return int(need), "of context that reference models gain from"
    return max(evidence.length - 1, 0), "of the whole sequence (how far back the task needs is not known)"
