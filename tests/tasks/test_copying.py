"""The copy task against lists put together as each paper's code does."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec
from rnnbench.streams import stream
from rnnbench.tasks.base import Batch
from rnnbench.tasks.copying import Copy

LAYOUTS = "ABCD"


def decode(task: Copy, batch: Batch) -> NDArray:
    """Codes [time batch], checking that inputs are one-hot inside and zero outside."""
    if task.layout == "D":
        return np.asarray(batch.inputs[..., 0].astype(int))
    inside = np.arange(task.length)[:, None] < batch.lengths
    assert np.array_equal(batch.inputs.sum(axis=-1), inside)
    assert set(np.unique(batch.inputs)) <= {0.0, 1.0}
    return np.asarray(np.argmax(batch.inputs, axis=-1))


def naive(layout: str, symbols: list[int], T: int, delimiter: int = 9) -> tuple[list[int], list[int]]:
    """Inputs and targets of one sequence, for layouts with T as their papers count it."""
    K, d = len(symbols), delimiter
    if layout == "A":
        return symbols + [0] * (T - 1) + [d] + [0] * K, [0] * (T + K) + symbols
    if layout == "B":
        return symbols + [0] * T + [d] + [0] * (K - 1), [0] * (T + K) + symbols
    if layout == "C":
        return symbols + [0] * T + [d] + [0] * K, [0] * (T + K + 1) + symbols
    return symbols + [0] * (T - 1) + [d] * (K + 1), [0] * (T + K) + symbols


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("T", [1, 2, 100])
@pytest.mark.parametrize(("K", "M"), [(10, 8), (1, 2), (3, 20)])
def test_sequences_are_the_papers(layout: str, T: int, K: int, M: int) -> None:
    task = Copy(layout=layout, delay=T, symbols=K, alphabet=M)  # type: ignore[arg-type]  # one of the letters
    batch = task.sample(stream(1, "test"), 7, 1.0)
    codes = decode(task, batch)
    for b in range(7):
        symbols = codes[:K, b].tolist()
        assert all(1 <= s <= M for s in symbols)
        inputs, targets = naive(layout, symbols, T, M + 1)
        assert codes[:, b].tolist() == inputs
        assert batch.targets[:, b].tolist() == targets
        assert batch.masks["recall"][:, b].tolist() == [0.0] * (len(targets) - K) + [1.0] * K
    assert batch.lengths.tolist() == [task.length] * 7
    assert np.all(batch.mask == 1.0)


@pytest.mark.parametrize(
    ("layout", "delimiter", "first_target", "length", "n_in", "n_out"),
    [
        ("A", 109, 110, 120, 10, 9),
        ("B", 110, 110, 120, 10, 9),
        ("C", 110, 111, 121, 10, 10),
        ("D", 109, 110, 120, 1, 10),
    ],
)
def test_places_at_a_delay_of_100(
    layout: str, delimiter: int, first_target: int, length: int, n_in: int, n_out: int
) -> None:
    task = Copy(layout=layout)  # type: ignore[arg-type]  # one of the letters
    batch = task.sample(stream(0, "test"), 3, 1.0)
    codes = decode(task, batch)
    assert (task.length, task.n_in, task.n_out) == (length, n_in, n_out)
    assert int(np.argmax(codes[:, 0] == 9)) == delimiter
    assert int(np.argmax(batch.masks["recall"][:, 0])) == first_target
    assert task.lag == first_target


@pytest.mark.parametrize("layout", LAYOUTS)
def test_variable_delay(layout: str) -> None:
    T, K = 6, 3
    task = Copy(layout=layout, delay=T, symbols=K, variable=True)  # type: ignore[arg-type]  # one of the letters
    batch = task.sample(stream(2, "test"), 600, 1.0)
    codes = decode(task, batch)
    blanks = np.array([int(np.argmax(codes[:, b] == 9)) - K for b in range(600)])
    # With blanks each paper's T is blanks + 1 (A, D) or blanks (B, C).
    for b in range(600):
        inputs, targets = naive(layout, codes[:K, b].tolist(), int(blanks[b]) + (layout in "AD"))
        n = len(inputs)
        assert batch.lengths[b] == n
        assert codes[:n, b].tolist() == inputs
        assert batch.targets[:n, b].tolist() == targets
        assert not codes[n:, b].any()
        assert not batch.mask[n:, b].any()
        assert batch.mask[:n, b].all()
        assert batch.masks["recall"][:, b].sum() == K
    counts = np.bincount(blanks, minlength=T + 1)
    assert counts[0] == 0
    assert len(counts) == T + 1
    # Chi-square with 5 degrees of freedom: 20.5 has probability 0.001.
    assert np.sum((counts[1:] - 100.0) ** 2 / 100.0) < 20.5
    assert task.variable_length
    assert int(batch.lengths.max()) == task.length


@pytest.mark.parametrize(
    ("T", "loss"),
    [(100, 0.173287), (200, 0.094520), (300, 0.064983), (500, 0.039989), (1000, 0.020387), (2000, 0.010294)],
)
def test_known_timing_baseline_is_the_published_one(T: int, loss: float) -> None:
    task = Copy(delay=T)
    found = task.baselines(task.open(0, 0, DataSpec(), 1))
    assert found["known_timing"].value == pytest.approx(loss, abs=5e-7)
    assert found["known_timing"].value == 10 * math.log(8) / (T + 20)


def test_memoryless_baseline_is_the_published_one() -> None:
    task = Copy(delay=100)
    assert task.baselines(task.open(0, 0, DataSpec(), 1))["memoryless"].value == pytest.approx(0.452, abs=5e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("variable", [False, True])
@pytest.mark.parametrize("loss_over", ["all", "recall"])
def test_baselines_are_what_their_predictors_score(
    layout: str, variable: bool, loss_over: str, z_score: Callable[[NDArray, float], float]
) -> None:
    task = Copy(layout=layout, delay=7, symbols=4, alphabet=5, variable=variable, loss_over=loss_over)  # type: ignore[arg-type]
    n = 4000
    batch = task.sample(stream(3, "test"), n, 1.0)
    found = task.baselines(task.open(0, 0, DataSpec(), 1))
    codes = decode(task, batch)
    recall = batch.masks["recall"] > 0
    inside = batch.masks["all"] > 0
    weighed = batch.mask > 0

    # known timing: nothing where a blank is due, ln M where a symbol is
    known = np.where(recall, math.log(5), 0.0)
    # memoryless: the frequencies of blank and symbol given the present input, counted in a second, large sample
    large = task.sample(stream(4, "test"), 40000, 1.0)
    seen, due = decode(task, large), large.masks["recall"] > 0
    memoryless = np.zeros_like(known)
    for code in range(7):
        # in the loss over recall alone, only those steps count for the best predictor too
        among = (seen == code) & (large.mask > 0)
        if among.any():
            share = due[among].mean()
            here = (codes == code) & weighed
            memoryless[here & recall] = -math.log(share / 5) if share else 0.0
            memoryless[here & ~recall] = -math.log(1 - share) if share < 1 else 0.0
    for name, losses in (("known_timing", known), ("memoryless", memoryless)):
        excess = ((losses - found[name].value) * weighed).sum(axis=0)
        if variable and loss_over == "all":
            # The frequencies of the large sample are off by a relative 1/sqrt(4e4), to second order in the loss.
            assert abs(z_score(excess, 0.0)) < 4
        else:
            assert np.max(np.abs(excess)) < 1e-12 * task.length

    hits = (batch.targets == 1) & recall
    assert abs(z_score(hits.sum(axis=0) / 4, found["guess"].value)) < 4
    assert found["guess_sequence"].value == pytest.approx(5.0**-4, rel=1e-15)
    right = np.where(recall, batch.targets == 1, True) & inside
    assert abs(z_score((right - found["guess_all"].value * inside).sum(axis=0), 0.0)) < 4


def test_loss_over_recall_only_moves_the_weights() -> None:
    one = Copy(delay=5).sample(stream(0, "test"), 3, 1.0)
    two = Copy(delay=5, loss_over="recall").sample(stream(0, "test"), 3, 1.0)
    assert np.array_equal(one.inputs, two.inputs)
    assert np.array_equal(two.mask, one.masks["recall"])
    assert np.array_equal(two.masks["all"], one.mask)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_difficulty_shortens_the_delay(layout: str) -> None:
    task = Copy(layout=layout, delay=50, symbols=3)  # type: ignore[arg-type]  # one of the letters
    for difficulty, delay in ((0.5, 25), (1e-9, 1), (1.0, 50)):
        batch = task.sample(stream(0, "test"), 2, difficulty)
        codes = decode(task, batch)
        inputs, targets = naive(layout, codes[:3, 0].tolist(), delay)
        assert batch.inputs.shape[0] == task.length
        assert codes[: len(inputs), 0].tolist() == inputs
        assert batch.targets[: len(inputs), 0].tolist() == targets
        assert batch.lengths.tolist() == [len(inputs)] * 2
        assert not batch.inputs[len(inputs) :].any()


@pytest.mark.parametrize("difficulty", [0.0, -1.0, 1.5, math.nan])
def test_difficulty_out_of_range(difficulty: float) -> None:
    with pytest.raises(BadInput, match="difficulty"):
        Copy().sample(stream(0, "test"), 2, difficulty)


def test_parameters_out_of_range() -> None:
    for values in ({"delay": 0}, {"layout": "E"}, {"symbols": 0}, {"alphabet": 1}, {"delay": 10**6, "alphabet": 10**4}):
        with pytest.raises(BadInput):
            Copy.parse(values, "task")
