"""What an analyzer is given: the runs of one arm over seeds, with their facts, signals and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rnnbench.findings import Finding
from rnnbench.signals import Signals

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Observed:
    """One run, as an analyzer sees it.

    Attributes:
        digest: of the run; empty for a user's own model.
        seed: its seed.
        status: solved, completed, diverged, time_limit.
        steps: training steps taken.
        first_bad_step: the first step whose loss or gradient was not finite.
        steps_to_solve: where it was solved.
        final: the final value of the metric that the run is judged by; None where it is not finite.
        baselines: trivial predictors' values of that metric, by name.
        signals: what probes recorded.
        metrics: rows of step, split, metric, value; None where there are none.
    """

    digest: str
    seed: int
    status: str
    steps: int
    first_bad_step: int | None = None
    steps_to_solve: int | None = None
    final: float | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)
    signals: Signals = field(default_factory=Signals)
    metrics: pd.DataFrame | None = None


@dataclass(frozen=True)
class Evidence:
    """The runs of one arm on one backend: equal but for their seeds.

    Attributes:
        subject: the arm and backend, as the user knows them.
        runs: over seeds, ascending.
        task: name of the task.
        length: its time steps T.
        lag: how far back the task needs, in steps; None where its definition does not say.
        context: for data, the held-out loss of capable reference models by the context given:
            ``{"lags": [...], "losses": [...], "need": steps or None, "model": name}``; empty where there is none.
        metric, better: what the runs are judged by, and which way is good.
        precision: of the runs.
        batch_size: of the runs.
        spec: the canonical spec, seed left out.
        threshold: of the stopping rule on `metric`; None where there is none.
    """

    subject: str
    runs: tuple[Observed, ...]
    task: str = ""
    length: int = 0
    lag: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "loss"
    better: str = "lower"
    precision: str = "float32"
    batch_size: int = 1
    spec: Mapping[str, Any] = field(default_factory=dict)
    threshold: float | None = None


class Analyzer(Protocol):
    """A pure function from evidence to findings, under the registry's kind ``analyzers``."""

    def __call__(self, evidence: Evidence) -> list[Finding]:
        """Return what the evidence says; an empty list where it has nothing that this analyzer reads."""
