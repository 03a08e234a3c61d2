"""How the runs ended: diverged, at a trivial predictor's score, solved by some seeds only, or learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from rnnbench.evidence import Evidence, Observed
from rnnbench.findings import Finding, Severity, finding
from rnnbench.stats import proportion_interval
from rnnbench_analyzers.judging import (
    SEEDS_NEEDED,
    Scores,
    counted,
    interval_fields,
    number,
    over_seeds,
    percent,
    scores,
    span,
)

MARGIN = 0.05
"""A run that covers less than this share of the way from the best baseline to the goal is at the baseline."""

CLEAR = 0.25
"""One that covers more than this share of it has clearly left: five margins, so no chance of the evaluation set."""


def analyze(evidence: Evidence) -> list[Finding]:
    """Say how the runs ended: divergence, and the final scores against the trivial predictors'."""
    counted_runs = [run for run in evidence.runs if run.status != "time_limit"]
    if not counted_runs:
        return _only_the_clock(evidence)
    return [*_divergence(evidence, counted_runs), *_standing(evidence, counted_runs)]


def _only_the_clock(evidence: Evidence) -> list[Finding]:
    if not evidence.runs:
        return []
    claim = f"The clock ended {'the run' if len(evidence.runs) == 1 else f'all {len(evidence.runs)} runs'}: no verdict."
    return [finding("not-enough-evidence", evidence.subject, claim, measure="status", seeds=len(evidence.runs))]


def _divergence(evidence: Evidence, runs: list[Observed]) -> list[Finding]:
    diverged = [run for run in runs if run.status == "diverged"]
    if not diverged:
        return []
    share = proportion_interval(len(diverged), len(runs))
    first = min((run for run in diverged if run.first_bad_step is not None), key=_bad_step, default=None)
    where = f"; the first at step {first.first_bad_step} (seed {first.seed})" if first is not None else ""
    return [
        finding(
            "training-diverged",
            evidence.subject,
            f"{len(diverged)} of {counted(len(runs), 'run')} diverged{where}.",
            severity=Severity.PROBLEM if 2 * len(diverged) >= len(runs) else Severity.WARNING,
            measure="share of runs whose loss or gradient stopped being finite",
            evidence=("status", "first_bad_step"),
            step=first.first_bad_step if first is not None else None,
            details={
                "seeds": [run.seed for run in diverged],
                "first_bad_steps": [run.first_bad_step for run in diverged],
            },
            **interval_fields(share),
        )
    ]


def _bad_step(run: Observed) -> int:
    return run.first_bad_step or 0


def _standing(evidence: Evidence, runs: list[Observed]) -> list[Finding]:
    placed = scores(evidence)
    if placed is None or not placed.gains or all(run.status == "diverged" for run in runs):
        return []
    n = len(placed.gains)
    stuck = [not solved and gain < MARGIN for gain, solved in zip(placed.gains, placed.solved, strict=True)]
    clear = [solved or gain > CLEAR for gain, solved in zip(placed.gains, placed.solved, strict=True)]
    fields: dict[str, Any] = {
        "measure": "share of the way from the best baseline to the goal",
        "threshold": MARGIN,
        "seeds": n,
        "evidence": (evidence.metric, "baselines"),
        "details": {
            "baseline": placed.best,
            "baseline_value": placed.baseline,
            "goal": placed.goal,
            "gains": dict(zip(map(str, placed.seeds), placed.gains, strict=True)),
            "at_baseline": sum(stuck),
            "clear": sum(clear),
            "solved": sum(placed.solved),
            "unscored": list(placed.unscored),
            "time_limit": len(evidence.runs) - len(runs),
        },
    }
    if all(stuck):
        return [_stuck(evidence, placed, fields)]
    if not any(stuck):
        return [_learned(evidence, placed, fields)]
    share = proportion_interval(n - sum(stuck), n)
    if n < SEEDS_NEEDED:
        claim = (
            f"{n - sum(stuck)} of {counted(n, 'seed')} beat the baseline {placed.best!r}; what other seeds would do "
            f"takes at least {SEEDS_NEEDED} to say."
        )
        fields |= interval_fields(share) | {"measure": "share of seeds that left the baseline", "threshold": None}
        return [finding("not-enough-evidence", evidence.subject, claim, **fields)]
    if not any(clear):
        gain = over_seeds(placed.gains)
        claim = (
            f"{n - sum(stuck)} of {n} seeds beat the baseline {placed.best!r} by more than {percent(MARGIN)} of the "
            f"way to {number(placed.goal)}, and none by more than {percent(CLEAR)}: too little to call it learned."
        )
        return [finding("not-enough-evidence", evidence.subject, claim, **fields | interval_fields(gain))]
    reached = "solved the task" if any(placed.solved) else f"clearly beat the baseline {placed.best!r}"
    won = sum(placed.solved) or sum(clear)
    lost = sum(run.status == "diverged" for run in runs)
    share = proportion_interval(won, n)
    claim = (
        f"{won} of {n} seeds {reached} ({percent(share.low)} to {percent(share.high)} of seeds would), and "
        f"{sum(stuck)} stayed at the baseline {placed.best!r} ({evidence.metric} {number(placed.baseline)})"
        f"{f', {lost} of them since they diverged' if lost else ''}."
    )
    fields |= interval_fields(share) | {"measure": "share of seeds that left the baseline", "threshold": None}
    return [finding("seed-lottery", evidence.subject, claim, **fields)]


def _stuck(evidence: Evidence, placed: Scores, fields: dict[str, Any]) -> Finding:
    """Name the baseline that the scores lie nearest to: a score between two beats the one and loses to the other."""
    median = float(np.median(placed.finals))
    known = {name: value for run in evidence.runs for name, value in run.baselines.items() if math.isfinite(value)}
    nearest = min(known, key=lambda name: abs(known[name] - median))
    score = over_seeds(placed.finals)
    assert score is not None
    near = abs(known[nearest] - median) <= MARGIN * abs(placed.goal - known[nearest])
    verb = "as the baseline" if near else "no better than the baseline"
    named = nearest if near else placed.best
    claim = (
        f"{'The run scores' if len(placed.gains) == 1 else f'All {len(placed.gains)} seeds score'} {verb} {named!r}: "
        f"{evidence.metric} {span(score)} against {number(known[named])}."
    )
    if near and named != placed.best:
        claim = f"{claim[:-1]}, and worse than {placed.best!r} ({number(placed.baseline)})."
    fields |= {"details": fields["details"] | {"nearest": nearest, "nearest_value": known[nearest]}}
    return finding("stuck-at-baseline", evidence.subject, claim, **fields | interval_fields(over_seeds(placed.gains)))


def _learned(evidence: Evidence, placed: Scores, fields: dict[str, Any]) -> Finding:
    score = over_seeds(placed.finals)
    assert score is not None
    n, solved = len(placed.gains), sum(placed.solved)
    who = "The run beats" if n == 1 else f"All {n} seeds beat"
    goal = f", and {solved} of {n} met the stopping rule" if evidence.threshold is not None else ""
    claim = (
        f"{who} the best baseline {placed.best!r}: {evidence.metric} {span(score)} against "
        f"{number(placed.baseline)}{goal}."
    )
    return finding("task-learned", evidence.subject, claim, **fields | interval_fields(over_seeds(placed.gains)))
