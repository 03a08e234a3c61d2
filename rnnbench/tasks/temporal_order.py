"""The temporal order task: which of two symbols came first, long ago."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

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

_SHORTEST = 10  # below ten steps a tenth of the sequence holds no place for a symbol
_LENGTH_1997 = 110


class TemporalOrder(GeneratedTask):
    """Tell the order of two relevant symbols amid distractors; four classes, read at the last step.

    Steps are counted from 0, inputs are one-hot.

    - ``pascanu``: 6 symbols, 0 and 1 relevant, 2..5 distractors; the first relevant one at a step of
      [L//10, 2(L//10)), the second at one of [L//2, L//2 + L//10); class v1 + 2 v2.
    - ``hs1997_6a``: 8 symbols, 0 = X and 1 = Y relevant, 2..5 = a..d distractors, 6 = E at the first step, 7 = B at the
      last; length U{100..110}, t1 of U{10..20}, t2 of U{50..60}; class v1 + 2 v2, so Q, S, R, U are 0, 1, 2, 3. The
      paper counts elements without saying from where; here t1 and t2 are steps counted from 0.
    """

    name: ClassVar[str] = "temporal_order"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "Pascanu, Mikolov & Bengio, ICML 2013, s4.1, pascanur/trainingRNNs tempOrder.py (pascanu); "
        "Hochreiter & Schmidhuber 1997, s5.6, task 6a (hs1997_6a)"
    )
    equation: ClassVar[str] = "y = v1 + 2 v2, v1, v2 ~ U{0,1} the relevant symbols in the order of their appearance"
    loss: ClassVar[LossName] = "cross_entropy"
    readout: ClassVar[Readout] = "last"

    variant: Literal["pascanu", "hs1997_6a"] = Field("pascanu", description="whose task")
    T: int | None = Field(
        None, ge=_SHORTEST, le=10**6, description="sequence length of pascanu (by default 100); 1997's is 100 to 110"
    )

    @model_validator(mode="after")
    def _fixed(self) -> Self:
        if self.variant == "hs1997_6a" and self.T is not None:
            raise ValueError("T belongs to variant pascanu; hs1997_6a has lengths from 100 to 110 by definition")
        return self

    @property
    def n_in(self) -> int:
        return 8 if self.variant == "hs1997_6a" else 6

    @property
    def n_out(self) -> int:
        return 4

    @property
    def length(self) -> int:
        return _LENGTH_1997 if self.variant == "hs1997_6a" else self.T or 100

    @property
    def variable_length(self) -> bool:
        return self.variant == "hs1997_6a"

    @property
    def lag(self) -> int:
        return self.length - 1 - (10 if self.variant == "hs1997_6a" else self.length // 10)

    @property
    def metrics(self) -> Mapping[str, Metric]:
        return {"accuracy": Metric("accuracy", "higher")}

    @property
    def metric(self) -> str:
        return "accuracy"

    def _ranges(self, difficulty: float) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Return the inclusive ranges of t1, t2 and the length; difficulty scales all of them."""
        if self.variant == "pascanu":
            L = scaled(self.length, difficulty, _SHORTEST)
            tenth = L // 10
            return (tenth, 2 * tenth - 1), (L // 2, L // 2 + tenth - 1), (L, L)
        t1 = scaled(10, difficulty, 1), scaled(20, difficulty, 1)
        t2 = scaled(50, difficulty, t1[1] + 1), scaled(60, difficulty, t1[1] + 1)
        return t1, t2, (scaled(100, difficulty, t2[1] + 2), scaled(_LENGTH_1997, difficulty, t2[1] + 2))

    def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
        """Draw `n` sequences; difficulty scales the length and the positions alike.

        Drawn in this order: lengths, first and second steps, first and second symbols, distractors [time batch].
        """
        first, second, length = self._ranges(difficulty)
        lengths = rng.integers(length[0], length[1] + 1, size=n)
        t1 = rng.integers(first[0], first[1] + 1, size=n)
        t2 = rng.integers(second[0], second[1] + 1, size=n)
        v1 = rng.integers(0, 2, size=n)
        v2 = rng.integers(0, 2, size=n)
        codes = rng.integers(2, 6, size=(length[1], n))
        rows = np.arange(n)
        codes[t1, rows] = v1
        codes[t2, rows] = v2
        if self.variant == "hs1997_6a":
            codes[0] = 6
            codes[lengths - 1, rows] = 7
        inputs = np.zeros((self.length, n, self.n_in), dtype=np.float32)  # 0 and 1 are exact in any precision
        np.put_along_axis(inputs[: length[1]], codes[..., None], 1.0, axis=-1)
        inputs[np.arange(self.length)[:, None] >= lengths] = 0.0
        return Batch(inputs=inputs, targets=v1 + 2 * v2, mask=np.ones(n), lengths=lengths)

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:  # exact, so no data
        """Return what guessing among four equally likely classes scores."""
        return {
            "chance": Baseline("accuracy", 0.25, "one of four equally likely classes"),
            "uniform": Baseline("loss", math.log(4), "equal probabilities: ln 4"),
        }
