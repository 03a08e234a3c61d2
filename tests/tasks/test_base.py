"""Batches and sources: orders, epochs, subsets, padding."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec, Split
from rnnbench.streams import stream
from rnnbench.tasks.base import (
    Baseline,
    Batch,
    EvalSplit,
    LossName,
    Metric,
    Readout,
    Source,
    StoredSource,
    StoredTask,
    hash_arrays,
    pad_rows,
    scaled,
)


class Numbers(StoredTask):
    """Row i of a part holds the number i."""

    name: ClassVar[str] = "numbers"
    loss: ClassVar[LossName] = "mse"
    readout: ClassVar[Readout] = "last"

    train: int = 10
    valid: int = 4

    @property
    def n_in(self) -> int:
        return 1

    @property
    def n_out(self) -> int:
        return 1

    @property
    def length(self) -> int:
        return 1

    @property
    def metrics(self) -> dict[str, Metric]:
        return {}

    @property
    def metric(self) -> str:
        return "loss"

    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        return {}

    def sizes(self) -> dict[str, int]:
        return {"train": self.train, "valid": self.valid, "test": 3}

    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:
        n = len(index)
        values = np.asarray(index, dtype=np.float64)
        return Batch(values.reshape(1, n, 1), values[:, None], np.ones(n), np.ones(n, dtype=np.int64))


def drawn(source: Source, steps: int) -> list[int]:
    return [int(v) for step in range(steps) for v in source.batch("train", step).targets[:, 0]]


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 25, 47])
def test_every_epoch_holds_every_row_once(batch_size: int) -> None:
    """Also where the batch is larger than the set, and so spans several epochs."""
    source = Numbers().open(3, 0, DataSpec(batch_size=batch_size), 4)
    rows = drawn(source, -(-60 // batch_size))[:60]
    epochs = [rows[i : i + 10] for i in range(0, 60, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 6
    # the naive twin: the epochs' permutations put end to end
    naive = [int(v) for epoch in range(6) for v in stream(3, "order", epoch).permutation(10)]
    assert rows == naive


def test_the_order_does_not_depend_on_the_batch_size_or_on_earlier_calls() -> None:
    small = drawn(Numbers().open(3, 0, DataSpec(batch_size=2), 4), 30)
    large = drawn(Numbers().open(3, 0, DataSpec(batch_size=20), 4), 3)
    assert small == large
    jumping = Numbers().open(3, 0, DataSpec(batch_size=2), 4)
    steps = [29, 0, 14, 7, 28, 1]
    assert [jumping.batch("train", s).targets[:, 0].tolist() for s in steps] == [
        small[2 * s : 2 * s + 2] for s in steps
    ]


def test_subset_of_the_training_part() -> None:
    source = Numbers().open(0, 5, DataSpec(batch_size=3, train_n=6), 4)
    rows = drawn(source, 8)
    assert len(set(rows)) == 6
    assert all(rows.count(row) == 4 for row in set(rows))
    assert set(rows) == set(drawn(Numbers().open(9, 5, DataSpec(batch_size=3, train_n=6), 4), 8))
    assert set(rows) != set(drawn(Numbers().open(0, 6, DataSpec(batch_size=3, train_n=6), 4), 8))
    with pytest.raises(BadInput, match=r"data\.train_n: 11 .* 10"):
        Numbers().open(0, 0, DataSpec(train_n=11), 4)


def test_evaluation_takes_at_most_what_there_is() -> None:
    source = Numbers().open(0, 0, DataSpec(), 1000)
    assert isinstance(source, StoredSource)
    assert source.evaluation("valid").targets[:, 0].tolist() == [0, 1, 2, 3]
    assert Numbers().open(0, 0, DataSpec(), 2).evaluation("test").size == 2
    with pytest.raises(BadInput, match=r"eval\.split.*no valid"):
        Numbers(valid=0).open(0, 0, DataSpec(), 2).evaluation("valid")


def test_pad_rows_changes_no_weighted_mean() -> None:
    batch = Numbers().rows("train", np.arange(3), 1.0)
    batch = Batch(batch.inputs, batch.targets, batch.mask, batch.lengths, {"again": batch.mask})
    padded = pad_rows(batch, 5)
    assert padded.size == 5
    assert padded.mask.tolist() == padded.masks["again"].tolist() == [1, 1, 1, 0, 0]
    assert (padded.targets[:, 0] * padded.mask).sum() == 3.0
    assert pad_rows(batch, 3) is batch


def test_cast_and_hash() -> None:
    batch = Numbers().rows("train", np.arange(3), 1.0)
    single = batch.cast("float32")
    assert {a.dtype.name for a in single.arrays().values()} == {"float32", "int64"}
    assert single.sha256() != batch.sha256()
    assert batch.cast("float64").sha256() == batch.sha256()
    # name, type, shape and every byte count; memory order and byte order do not
    a = np.arange(6.0).reshape(2, 3)
    base = hash_arrays({"a": a})
    assert base == hash_arrays({"a": np.asfortranarray(a)}) == hash_arrays({"a": a.astype(">f8")})
    assert len({base, hash_arrays({"b": a}), hash_arrays({"a": a.reshape(3, 2)}), hash_arrays({"a": a + 1})}) == 4


def test_take_keeps_columns_together() -> None:
    batch = Numbers().rows("train", np.arange(5), 1.0)
    some = batch.take(np.array([4, 0]))
    assert some.inputs[0, :, 0].tolist() == some.targets[:, 0].tolist() == [4.0, 0.0]


def test_scaled() -> None:
    assert [scaled(100, d, 10) for d in (1.0, 0.5, 0.333, 0.01)] == [100, 50, 33, 10]
    assert scaled(5, 1e-300, 10) == 5
    for difficulty in (0.0, -0.1, 1.0000001, float("nan")):
        with pytest.raises(BadInput):
            scaled(5, difficulty, 1)


def test_a_part_of_the_evaluation_set_is_drawn_and_the_same_for_every_seed() -> None:
    task = Numbers(train=10, valid=100)
    found = [
        task.open(seed, data_seed, DataSpec(), 20).evaluation("valid").inputs.ravel()
        for seed, data_seed in ((0, 0), (7, 0), (0, 1))
    ]
    np.testing.assert_array_equal(found[0], found[1])
    assert not np.array_equal(found[0], found[2])
    assert len(set(found[0])) == 20
    assert list(found[0]) != list(range(20))
    assert list(found[0]) == sorted(found[0])
    whole = task.open(0, 0, DataSpec(), 1000).evaluation("valid").inputs.ravel()
    assert list(whole) == list(range(100))
