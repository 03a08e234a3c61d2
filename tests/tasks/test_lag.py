"""How far back each generated task's answer lies, by changing its inputs one step at a time.

The answer is computed from the inputs alone by a function written here; an input matters to a target when another
input that the task could have drawn at its place gives another answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch
from rnnbench.tasks.copying import Copy
from rnnbench.tasks.temporal_order import TemporalOrder

N = 3000
Answer = Callable[[NDArray], NDArray]


def farthest(symbols: NDArray, others: NDArray, answer: Answer, judged: NDArray) -> int:
    """Return the longest distance from a step whose exchange changes an answer to that answer's step.

    Args:
        symbols: [time batch ...], what `answer` reads.
        others: of the same shape, what else could stand at each step.
        answer: to targets [judged batch].
        judged: the steps [judged batch] that the answers are asked at.
    """
    plain, longest = answer(symbols), -1
    for t in range(len(symbols)):
        changed = symbols.copy()
        changed[t] = others[t]
        distances = (judged - t)[answer(changed) != plain]
        longest = max(longest, int(distances.max(initial=-1)))
    return longest


def last(batch: Batch) -> NDArray:
    return (batch.lengths - 1)[None]


def adding(task: Adding, batch: Batch) -> int:
    scale, shift = task.affine
    low, high = task.bounds
    marked = batch.inputs[..., 1] == 1.0

    def answer(values: NDArray) -> NDArray:
        return np.asarray(scale * np.where(marked, values, 0.0).sum(axis=0) + shift)[None]

    values = batch.inputs[..., 0]
    assert np.allclose(answer(values)[0], batch.targets[:, 0], rtol=0, atol=1e-15)
    others = np.random.default_rng(0).uniform(low, high, size=values.shape)
    if task.markers == "hs1997":
        others[0, marked[0]] = 0.0  # the rule of 1997: there is nothing else that could stand there
    return farthest(values, others, answer, last(batch))


@pytest.mark.parametrize("markers", ["halves", "any", "skip_rnn", "hs1997", "pascanu"])
@pytest.mark.parametrize("T", [20, 23, 47])
@pytest.mark.parametrize("values", [None, "symmetric"])
def test_adding(markers: str, T: int, values: str | None) -> None:
    task = Adding.parse({"markers": markers, "T": T, "values": values}, "task")
    assert adding(task, task.sample(stream(1, "test"), N, 1.0)) == task.lag
    assert adding(task, task.sample(stream(1, "test"), 300, 0.6)) <= task.lag


@pytest.mark.parametrize(("markers", "T"), [("halves", 2), ("any", 2), ("skip_rnn", 10), ("pascanu", 10)])
def test_adding_at_its_shortest(markers: str, T: int) -> None:
    task = Adding.parse({"markers": markers, "T": T}, "task")
    assert adding(task, task.sample(stream(1, "test"), N, 1.0)) == task.lag == T - 1


def copying(task: Copy, batch: Batch) -> int:
    K, M = task.symbols, task.alphabet
    codes = batch.inputs[..., 0].astype(int) if task.layout == "D" else np.argmax(batch.inputs, axis=-1)
    late = {"A": 1, "B": 0, "C": 1, "D": 1}[task.layout]  # steps from the delimiter to the first answer
    judged = np.argmax(codes == M + 1, axis=0) + late + np.arange(K)[:, None]

    def answer(codes: NDArray) -> NDArray:
        return codes[:K]

    columns = np.arange(batch.size)
    assert np.array_equal(answer(codes), batch.targets[judged, columns])
    assert np.all(batch.mask[judged, columns] == 1)
    # the delimiter, too, is nearer than the symbols to each answer whose place it tells
    assert late + K - 1 < task.lag
    others = codes.copy()
    others[:K] = others[:K] % M + 1
    return farthest(codes, others, answer, judged)


@pytest.mark.parametrize("layout", "ABCD")
@pytest.mark.parametrize("delay", [1, 2, 9])
@pytest.mark.parametrize(("K", "M"), [(1, 2), (4, 8)])
@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("loss_over", ["all", "recall"])
def test_copy(layout: str, delay: int, K: int, M: int, variable: bool, loss_over: str) -> None:
    values: dict[str, Any] = {"layout": layout, "delay": delay, "symbols": K, "alphabet": M, "variable": variable}
    task = Copy.parse(values | {"loss_over": loss_over}, "task")
    assert copying(task, task.sample(stream(1, "test"), N, 1.0)) == task.lag
    assert copying(task, task.sample(stream(1, "test"), 300, 0.5)) <= task.lag


def ordering(batch: Batch) -> int:
    codes = np.argmax(batch.inputs, axis=-1)
    codes[np.arange(len(codes))[:, None] >= batch.lengths] = 9  # padding

    def answer(codes: NDArray) -> NDArray:
        relevant = codes < 2
        first = np.argmax(relevant, axis=0)
        second = len(codes) - 1 - np.argmax(relevant[::-1], axis=0)
        columns = np.arange(codes.shape[1])
        return np.asarray(codes[first, columns] + 2 * codes[second, columns])[None]

    assert np.array_equal(answer(codes)[0], batch.targets)
    others = codes.copy()
    others[codes < 2] = 1 - codes[codes < 2]
    distractors = (codes >= 2) & (codes < 6)
    others[distractors] = (codes[distractors] - 1) % 4 + 2
    return farthest(codes, others, answer, last(batch))


@pytest.mark.parametrize("values", [{"T": 10}, {"T": 29}, {"T": 60}, {}, {"variant": "hs1997_6a"}])
def test_temporal_order(values: dict[str, Any]) -> None:
    task = TemporalOrder.parse(values, "task")
    assert ordering(task.sample(stream(1, "test"), N, 1.0)) == task.lag
    assert ordering(task.sample(stream(1, "test"), 300, 0.5)) <= task.lag
