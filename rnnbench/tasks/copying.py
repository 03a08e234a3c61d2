"""The copy task: remember K symbols over a delay, then recall them in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, model_validator

from rnnbench.arrays import NDArray
from rnnbench.tasks.base import (
    Baseline,
    Batch,
    EvalSplit,
    GeneratedTask,
    LossName,
    Metric,
    Readout,
    Source,
    scaled,
)


class _Layout(NamedTuple):
    """What tells one published layout from another.

    Attributes:
        fewer_blanks: blanks before the delimiter are T minus this.
        offset: steps from the (first) delimiter to the first target.
        repeated: whether the delimiter fills the rest of the sequence.
        scalar: whether the input is the symbol's number instead of its one-hot code.
        delimiter_class: whether the outputs include the delimiter.
    """

    fewer_blanks: int
    offset: int
    repeated: bool
    scalar: bool
    delimiter_class: bool


LAYOUTS: dict[str, _Layout] = {
    "A": _Layout(fewer_blanks=1, offset=1, repeated=False, scalar=False, delimiter_class=False),
    "B": _Layout(fewer_blanks=0, offset=0, repeated=False, scalar=False, delimiter_class=False),
    "C": _Layout(fewer_blanks=0, offset=1, repeated=False, scalar=False, delimiter_class=True),
    "D": _Layout(fewer_blanks=1, offset=1, repeated=True, scalar=True, delimiter_class=True),
}


class Copy(GeneratedTask):
    """Remember K symbols over a delay of T steps and recall them in order.

    Codes are 0 for blank, 1..M for the symbols and M+1 for the delimiter. Steps are counted from 0; K=10, M=8.

    ======  =====================  =========  ============  ======  =========  ===================================
    layout  blanks, delimiter at   then       targets from  length  classes    used by
    ======  =====================  =========  ============  ======  =========  ===================================
    A       T-1, T+9               10 blanks  T+10          T+20    9          uRNN, scoRNN, nnRNN, chrono
    B       T, T+10                9 blanks   T+10          T+20    9          expRNN
    C       T, T+10                10 blanks  T+11          T+21    10         JANET
    D       T-1, T+9..T+19         (none)     T+10          T+20    10         TCN; the input is the code itself
    ======  =====================  =========  ============  ======  =========  ===================================

    With `variable` the number of blanks is drawn from U{1..T} for each sequence; the targets keep their place relative
    to the delimiter, the sequence ends with the last target, and the rest up to the static length is padding.
    """

    name: ClassVar[str] = "copy"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "Hochreiter & Schmidhuber 1997, s5.1 (idea); layouts A: amarshah/complex_RNN memory_problem.py, "
        "B: Lezcano/expRNN 1_copying.py, C: JosvanderWesthuizen/janet prepare_data.py, "
        "D: locuslab/TCN copy_memory/utils.py; variable: Tallec & Ollivier, ICLR 2018, s3"
    )
    equation: ClassVar[str] = (
        "x = s_1..s_K, blanks, delimiter, blanks (D: delimiters); s_i ~ U{1..M}\ny = blanks, then s_1..s_K at the end"
    )
    loss: ClassVar[LossName] = "cross_entropy"
    readout: ClassVar[Readout] = "each"

    layout: Literal["A", "B", "C", "D"] = Field("A", description="which published arrangement of the sequence")
    delay: int = Field(100, ge=1, le=10**6, description="T, the delay in steps")
    symbols: int = Field(10, ge=1, le=10**4, description="K, how many symbols are to be remembered")
    alphabet: int = Field(8, ge=2, le=10**4, description="M, how many different symbols there are")
    variable: bool = Field(False, description="draw the number of blanks from U{1..T} for each sequence")
    loss_over: Literal["all", "recall"] = Field("all", description="which steps the loss is averaged over")

    @model_validator(mode="after")
    def _bounded(self) -> Self:
        if self.length * self.n_in > 10**8:
            raise ValueError(f"one sequence would hold {self.length} x {self.n_in} numbers; take a smaller task")
        return self

    @property
    def _rule(self) -> _Layout:
        return LAYOUTS[self.layout]

    @property
    def _after(self) -> int:
        """Steps after the first delimiter."""
        return self.symbols - 1 + self._rule.offset

    @property
    def _most_blanks(self) -> int:
        return self.delay if self.variable else self.delay - self._rule.fewer_blanks

    @property
    def n_in(self) -> int:
        return 1 if self._rule.scalar else self.alphabet + 2

    @property
    def n_out(self) -> int:
        return self.alphabet + (2 if self._rule.delimiter_class else 1)

    @property
    def length(self) -> int:
        return self.symbols + self._most_blanks + 1 + self._after

    @property
    def variable_length(self) -> bool:
        return self.variable

    @property
    def lag(self) -> int:
        return self.symbols + self._most_blanks + self._rule.offset

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {
            "recall_accuracy": Metric("accuracy", "higher", mask="recall"),
            "sequence_accuracy": Metric("sequence_accuracy", "higher", mask="recall"),
            "accuracy": Metric("accuracy", "higher", mask="all"),
        }

    @property
    def metric(self) -> str:
        return "recall_accuracy"

    def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
        """Draw `n` sequences; difficulty scales the delay (at least 1).

        The symbols are drawn first, as [batch K], then, for the variable task, the numbers of blanks [batch].
        """
        K, T, rule = self.symbols, self.length, self._rule
        delay = scaled(self.delay, difficulty, 1)
        symbols = rng.integers(1, self.alphabet + 1, size=(n, K))
        blanks = rng.integers(1, delay + 1, size=n) if self.variable else np.full(n, delay - rule.fewer_blanks)
        delimiter = K + blanks
        lengths = delimiter + 1 + self._after
        steps = np.arange(T)[:, None]
        codes = np.zeros((T, n), dtype=np.int64)
        codes[:K] = symbols.T
        if rule.repeated:
            codes[(steps >= delimiter) & (steps < lengths)] = self.alphabet + 1
        else:
            codes[delimiter, np.arange(n)] = self.alphabet + 1
        targets = np.zeros((T, n), dtype=np.int64)
        recall_at = delimiter + rule.offset + np.arange(K)[:, None]  # [K batch]
        targets[recall_at, np.arange(n)] = symbols.T
        recall = np.zeros((T, n))
        recall[recall_at, np.arange(n)] = 1.0
        inside = (steps < lengths).astype(np.float64)
        return Batch(
            inputs=self._encode(codes, inside),
            targets=targets,
            mask=inside if self.loss_over == "all" else recall,
            lengths=lengths,
            masks={"all": inside, "recall": recall},
        )

    def _encode(self, codes: NDArray, inside: NDArray) -> NDArray:
        """Return inputs [time batch n_in] for codes [time batch]; padding is all zeros, unlike a one-hot blank."""
        if self._rule.scalar:
            return codes[..., None].astype(np.float64)
        inputs = np.zeros((*codes.shape, self.n_in), dtype=np.float32)  # 0 and 1 are exact in any precision
        np.put_along_axis(inputs, codes[..., None], 1.0, axis=-1)
        inputs *= inside[..., None]
        return inputs

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:  # exact, so no data
        """Return what forgetting everything scores; loss in nats.

        ``known_timing`` puts the blank where it belongs and 1/M on each symbol at recall: K ln M over the mean length.
        ``memoryless`` is the best predictor that sees the present input alone: given its category c (a symbol, a blank
        or a delimiter) it is the class frequencies there, sum_c [n_c ln n_c - b_c ln b_c - r_c ln(r_c / M)] over the
        mean length, with b_c blank and r_c recalled targets among the n_c steps of category c.
        """
        K, M, rule = self.symbols, self.alphabet, self._rule
        blanks = (1 + self.delay) / 2 if self.variable else float(self.delay - rule.fewer_blanks)
        length = K + blanks + 1 + self._after
        of = "E[length]" if self.variable else "length"
        if self.loss_over == "recall":
            known = memoryless = math.log(M)
            formula = "ln M, over the recall steps"
        else:
            known = K * math.log(M) / length
            at_delimiter = K if rule.repeated else 1 - rule.offset
            delimiters = 1 + self._after if rule.repeated else 1
            among_blanks = 0 if rule.repeated else self._after
            memoryless = (
                _category_loss(blanks + among_blanks, K - at_delimiter, M) + _category_loss(delimiters, at_delimiter, M)
            ) / length
            formula = f"K ln M / {of}, over all steps"
        share = K / length
        return {
            "known_timing": Baseline("loss", known, f"no memory, with known timing: {formula}"),
            "memoryless": Baseline("loss", memoryless, "best function of the present input alone, timing unknown"),
            "guess": Baseline("recall_accuracy", 1 / M, "one symbol always: 1/M"),
            "guess_sequence": Baseline("sequence_accuracy", float(M) ** -K, "one sequence always: M^-K"),
            "guess_all": Baseline("accuracy", 1 - share + share / M, f"known timing: 1 - (1 - 1/M) K / {of}"),
        }


def _category_loss(steps: float, recalled: float, alphabet: int) -> float:
    """Return the summed loss of the frequencies over `steps` steps, `recalled` of which ask for a uniform symbol."""
    blank = steps - recalled
    total = 0.0
    if blank > 0:
        total += blank * math.log(steps / blank)
    if recalled > 0:
        total += recalled * math.log(steps * alphabet / recalled)
    return total
