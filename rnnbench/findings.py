"""Findings: what an analyzer says of the evidence, each under a code that has a page in the documentation."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Annotated, Any

from pydantic import Field, JsonValue, field_validator

from rnnbench.component import Frozen


class Severity(StrEnum):
    """How bad it is, ascending: ``ok``, ``info``, ``warning``, ``problem``."""

    OK = "ok"
    INFO = "info"
    WARNING = "warning"
    PROBLEM = "problem"

    @property
    def rank(self) -> int:
        """0 for ``ok`` up to 3 for ``problem``."""
        return list(Severity).index(self)


class Code(Frozen):
    """A kind of finding.

    Attributes:
        code: what users and programs see; ``docs/findings/<code>.md`` is its page.
        title: a few words.
        severity: how bad it is as a rule.
        causes: what usually causes it, most usual first.
        remedies: what usually helps, most usual first.
        reference: the paper.
    """

    code: str
    title: str
    severity: Severity
    causes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    reference: str = ""


class Finding(Frozen):
    """One statement about a run, or about an arm's runs over seeds.

    Attributes:
        code: a code of `CODES`, or a plug-in's own.
        severity: how bad it is here.
        subject: the arm or run that it is about, as the user knows it.
        claim: one plain sentence with its numbers and units.
        measure: what was measured, in words.
        value: the measured value; None where there is none.
        low, high: its interval.
        level: the coverage that the interval is built for, e.g. 0.95.
        unit: of value, interval and threshold.
        threshold: what the value was judged against.
        of: the state, parameter or gate it is of.
        step: the training step it was measured at; None for the whole run.
        seeds: number of seeds behind it.
        evidence: names of the signals or metrics that it rests on.
        details: further numbers, for programs.
        causes, remedies, reference: as the code has them, unless the analyzer knows better.
    """

    code: str
    severity: Severity
    subject: str
    claim: str
    measure: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    level: float | None = None
    unit: str = ""
    threshold: float | None = None
    of: str = ""
    step: int | None = None
    seeds: Annotated[int, Field(ge=0)] = 0
    evidence: tuple[str, ...] = ()
    details: dict[str, JsonValue] = Field(default_factory=dict)
    causes: tuple[str, ...] = ()
    remedies: tuple[str, ...] = ()
    reference: str = ""

    @field_validator("value", "low", "high", "threshold", mode="before")
    @classmethod
    def _finite(cls, value: Any) -> Any:
        """JSON has no infinity: a value without a bound is None, and the claim says so."""
        return None if isinstance(value, float) and not math.isfinite(value) else value


def finding(code: str, subject: str, claim: str, *, severity: Severity | None = None, **fields: Any) -> Finding:
    """Make a finding under one of `CODES`, whose severity, causes, remedies and reference it takes unless given.

    Raises:
        KeyError: when there is no such code.
    """
    known = CODES[code]
    return Finding(
        code=code,
        severity=severity or known.severity,
        subject=subject,
        claim=claim,
        causes=fields.pop("causes", known.causes),
        remedies=fields.pop("remedies", known.remedies),
        reference=fields.pop("reference", known.reference),
        **fields,
    )


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the highest severity, ``ok`` for none."""
    return max((found.severity for found in findings), key=lambda severity: severity.rank, default=Severity.OK)


def ordered(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings, worst first, else as they came."""
    return sorted(findings, key=lambda found: -found.severity.rank)


def _codes(*codes: Code) -> dict[str, Code]:
    return {code.code: code for code in codes}


_PASCANU = "Pascanu, Mikolov & Bengio, On the difficulty of training recurrent neural networks, ICML 2013"
_BENGIO = "Bengio, Simard & Frasconi, Learning long-term dependencies with gradient descent is difficult, 1994"
_HOCHREITER = "Hochreiter & Schmidhuber, Long short-term memory, Neural Computation 1997"

CODES = _codes(
    Code(
        code="gradient-vanishing",
        title="The gradient has vanished over the lag that the task needs",
        severity=Severity.PROBLEM,
        causes=(
            "recurrent Jacobians contract: small recurrent weights, or saturated units",
            "forget gates that start near one half",
            "a lag that is long for a plain cell",
        ),
        remedies=(
            "a gated cell (LSTM, GRU) with a forget bias of 1 or more, or chrono initialization",
            "orthogonal or identity recurrent weights",
            "a curriculum that starts at short lags",
        ),
        reference=_BENGIO,
    ),
    Code(
        code="gradient-exploding",
        title="The gradient grows on its way back through time",
        severity=Severity.PROBLEM,
        causes=("recurrent Jacobians expand: large recurrent weights", "a ReLU recurrence without bounds"),
        remedies=("clip the gradient's global norm", "orthogonal recurrent weights", "a smaller learning rate"),
        reference=_PASCANU,
    ),
    Code(
        code="gradient-healthy",
        title="The gradient reaches as far back as the task needs",
        severity=Severity.OK,
        reference=_PASCANU,
    ),
    Code(
        code="gradient-underflow",
        title="The gradient is there, but the run's precision cannot hold it",
        severity=Severity.WARNING,
        causes=("values below the smallest number of the run's precision are flushed to zero",),
        remedies=("float32 in place of a half precision, or a scaled loss", "a cell whose gradients decay less"),
        reference="Micikevicius et al., Mixed precision training, ICLR 2018",
    ),
    Code(
        code="gradient-local",
        title="The parameters' gradient comes from the last few steps alone",
        severity=Severity.PROBLEM,
        causes=(
            "the gradient decays on its way back, and what the near past contributes makes up for it in the norm",
            "training that has come to live off the near past",
        ),
        remedies=(
            "look at the gradient by lag in place of its norm",
            "a gated cell (LSTM, GRU) with a forget bias of 1 or more, or chrono initialization",
            "orthogonal or identity recurrent weights",
        ),
        reference=_PASCANU,
    ),
    Code(
        code="gradient-spread",
        title="The parameters' gradient comes from the farther half of the needed lag as well",
        severity=Severity.OK,
        reference=_PASCANU,
    ),
    Code(
        code="units-dead",
        title="Units or states that no longer pass any gradient",
        severity=Severity.PROBLEM,
        causes=("ReLU units that are negative for every input", "a learning rate that was too large"),
        remedies=("a smaller learning rate", "tanh, or a leaky unit", "identity initialization with a small bias"),
        reference="Le, Jaitly & Hinton, A simple way to initialize recurrent networks of rectified linear units, 2015",
    ),
    Code(
        code="units-saturated",
        title="Gates or units at the flat ends of their range",
        severity=Severity.WARNING,
        causes=("inputs of large scale", "large weights", "a learning rate that was too large"),
        remedies=("standardize the inputs", "layer normalization", "weight decay"),
        reference="Karpathy, Johnson & Fei-Fei, Visualizing and understanding recurrent networks, 2015",
    ),
    Code(
        code="time-constants",
        title="How long gated units keep what they hold, against the lag that the task needs",
        severity=Severity.INFO,
        causes=("forget gates that start near one half", "training that has not yet found the long lags"),
        remedies=("a forget bias of the needed lag's logarithm (chrono initialization)", "a curriculum"),
        reference="Tallec & Ollivier, Can recurrent neural networks warp time?, ICLR 2018",
    ),
    Code(
        code="training-diverged",
        title="The loss or the gradient stopped being a number",
        severity=Severity.PROBLEM,
        causes=("an exploding gradient met a large learning rate", "inputs that are not finite"),
        remedies=("clip the gradient's global norm", "a smaller learning rate"),
        reference=_PASCANU,
    ),
    Code(
        code="stuck-at-baseline",
        title="The run scores what a trivial predictor scores",
        severity=Severity.PROBLEM,
        causes=("the gradient does not reach the inputs that matter", "too few training steps"),
        remedies=("look at how far the gradient reaches", "a longer budget or a larger learning rate"),
        reference=_HOCHREITER,
    ),
    Code(
        code="task-learned",
        title="Every run beats the trivial predictors",
        severity=Severity.OK,
        reference=_HOCHREITER,
    ),
    Code(
        code="horizon-short",
        title="The model reaches or uses less of the past than the task needs",
        severity=Severity.PROBLEM,
        causes=("gradients decay before they reach the inputs that matter", "a memory that forgets by design"),
        remedies=("a larger forget bias or chrono initialization", "a cell with a longer memory", "a curriculum"),
        reference="Tallec & Ollivier, Can recurrent neural networks warp time?, ICLR 2018",
    ),
    Code(
        code="horizon-enough",
        title="The gradient reaches, and the model uses, as much of the past as the task needs",
        severity=Severity.OK,
        reference="Tallec & Ollivier, Can recurrent neural networks warp time?, ICLR 2018",
    ),
    Code(
        code="seed-lottery",
        title="Some seeds solve the task and others stay at the baseline",
        severity=Severity.WARNING,
        causes=("a plateau that is left by chance", "a budget that ends within the plateau"),
        remedies=("report the share of seeds that solve it", "a longer budget", "gradient clipping and a warm-up"),
        reference="Bouthillier et al., Accounting for variance in machine learning benchmarks, MLSys 2021",
    ),
    Code(
        code="regime-change",
        title="The rate of decay changes along time or along training",
        severity=Severity.INFO,
        causes=("inputs that differ along the sequence", "training that moved the recurrent weights"),
        reference=_PASCANU,
    ),
    Code(
        code="gradient-spikes",
        title="Single updates with far larger gradients than usual",
        severity=Severity.WARNING,
        causes=("steep walls in the loss", "single odd batches"),
        remedies=("clip the gradient's global norm", "a larger batch"),
        reference=_PASCANU,
    ),
    Code(
        code="updates-clipped",
        title="Most updates are changed by clipping",
        severity=Severity.INFO,
        causes=("a threshold below the usual gradient norm: clipping then sets the learning rate",),
        remedies=("a larger threshold", "judge the learning rate together with the threshold"),
        reference=_PASCANU,
    ),
    Code(
        code="gradient-noise",
        title="The noise between minibatches against the batch size",
        severity=Severity.INFO,
        causes=("a batch that is small against the noise scale averages little of the noise away",),
        remedies=("a larger batch, as long as the noise scale exceeds it",),
        reference="McCandlish et al., An empirical model of large-batch training, 2018",
    ),
    Code(
        code="dynamics-chaotic",
        title="The largest Lyapunov exponent is positive",
        severity=Severity.WARNING,
        causes=("recurrent weights of large gain",),
        remedies=("a smaller gain", "orthogonal recurrent weights", "clipping does not cure it"),
        reference="Engelken, Wolf & Abbott, Lyapunov spectra of chaotic recurrent neural networks, 2023",
    ),
    Code(
        code="dynamics-stable",
        title="The largest Lyapunov exponent is not positive",
        severity=Severity.OK,
        reference="Engelken, Wolf & Abbott, Lyapunov spectra of chaotic recurrent neural networks, 2023",
    ),
    Code(
        code="not-enough-evidence",
        title="What was recorded does not decide the question",
        severity=Severity.INFO,
        causes=("too few seeds or too few steps in time", "signals that were not recorded"),
        remedies=("more seeds", "record the probes that the finding names"),
    ),
)
"""Every code that the project's own analyzers use; a test asks each one for its page."""
