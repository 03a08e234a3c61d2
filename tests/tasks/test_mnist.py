"""Sequential MNIST: orders, scalings, splits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec
from rnnbench.tasks.base import StoredSource
from rnnbench.tasks.mnist import MNIST, PERMUTATIONS, permutation


def make(**values: Any) -> MNIST:
    return MNIST.parse(values, "task")


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("none", [0, 1, 2, 3]),
        ("numpy_92916", [319, 576, 323, 107]),
        ("numpy_1234", [529, 511, 328, 133]),
        ("lem_torch_5544", [327, 72, 48, 129]),
        ("cornn_torch_12008", [91, 97, 471, 426]),
        ("bit_reversal", [0, 512, 256, 768]),
        ("bn_lstm_draw", [37, 235, 72, 767]),
    ],
)
def test_permutations(name: str, prefix: list[int]) -> None:
    order = permutation(name)
    assert order[:4].tolist() == prefix
    assert len(order) == 784
    assert len(set(order.tolist())) == (501 if name == "bn_lstm_draw" else 784)
    assert 0 <= order.min() <= order.max() < 784
    assert not order.flags.writeable


def test_every_permutation_can_be_asked_for() -> None:
    for name in PERMUTATIONS:
        assert make(permutation=name).permutation == name
    with pytest.raises(BadInput):
        make(permutation="janet")


@pytest.mark.parametrize(("name", "seed"), [("lem_torch_5544", 5544), ("cornn_torch_12008", 12008)])
def test_stored_permutations_are_torchs_algorithm(name: str, seed: int) -> None:
    """The Mersenne twister seeded alike, one 32-bit draw a swap, modulo what is left."""
    draws = np.random.RandomState(seed).randint(0, 2**32, size=783, dtype=np.uint32)
    order = list(range(784))
    for i in range(783):
        j = i + int(draws[i]) % (784 - i)
        order[i], order[j] = order[j], order[i]
    assert permutation(name).tolist() == order


@pytest.mark.parametrize(("name", "seed"), [("lem_torch_5544", 5544), ("cornn_torch_12008", 12008)])
def test_stored_permutations_are_what_torch_draws(name: str, seed: int) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(seed)
    assert permutation(name).tolist() == torch.randperm(784).tolist()


def test_bit_reversal_by_splitting() -> None:
    """The same order from even and odd places, again and again."""

    def split(numbers: list[int]) -> list[int]:
        return numbers if len(numbers) < 2 else split(numbers[::2]) + split(numbers[1::2])

    assert permutation("bit_reversal").tolist() == [n for n in split(list(range(1024))) if n < 784]


@pytest.mark.parametrize("by", ["pixel", "row"])
@pytest.mark.parametrize("name", ["none", "numpy_92916", "bn_lstm_draw"])
@pytest.mark.parametrize("scaling", ["unit", "standardized"])
def test_steps_are_the_pixels(made_up_mnist: dict[str, NDArray], by: str, name: str, scaling: str) -> None:
    task = make(by=by, permutation=name, scaling=scaling)
    batch = task.rows("valid", np.array([3, 9999, 0]), 1.0)
    order = permutation(name)
    for b, row in enumerate((50003, 59999, 50000)):
        image = made_up_mnist["train_images"][row]
        flat = [float(image[p]) / 255 for p in order]
        if scaling == "standardized":
            flat = [(v - 0.1307) / 0.3081 for v in flat]
        read = [float(v) for t in range(task.length) for v in batch.inputs[t, b]]
        assert read == flat
        assert batch.targets[b] == made_up_mnist["train_labels"][row]


@pytest.mark.parametrize(
    ("split", "train"), [("50k/10k", 50000), ("55k/5k", 55000), ("57k/3k", 57000), ("60k/0", 60000)]
)
def test_splits(made_up_mnist: dict[str, NDArray], split: str, train: int) -> None:
    task = make(by="row", split=split)
    assert task.sizes() == {"train": train, "valid": 60000 - train, "test": 10000}
    labels = made_up_mnist["train_labels"]
    assert np.array_equal(task.labels("train"), labels[:train])
    assert np.array_equal(task.labels("valid"), labels[train:])
    assert np.array_equal(task.labels("test"), made_up_mnist["test_labels"])
    last = task.rows("train", np.array([train - 1]), 1.0)
    assert last.inputs[0, 0, 0] == made_up_mnist["train_images"][train - 1, 0] / 255
    source = task.open(0, 0, DataSpec(), 100)
    if train == 60000:
        with pytest.raises(BadInput, match="no valid"):
            source.evaluation("valid")
    assert source.evaluation("test").size == 100


def test_baselines_follow_from_the_labels(made_up_mnist: dict[str, NDArray]) -> None:
    task = make(by="row")
    source = task.open(0, 0, DataSpec(), 200)
    found = task.baselines(source, "test")
    assert isinstance(source, StoredSource)
    train, test = task.labels("train").tolist(), task.labels("test")[source.evaluated("test")].tolist()
    counts = [train.count(c) for c in range(10)]
    majority = counts.index(max(counts))
    assert found["majority"].value == pytest.approx(test.count(majority) / 200, rel=1e-12)
    losses = [-np.log((counts[c] + 1) / (len(train) + 10)) for c in test]
    assert found["prior"].value == pytest.approx(float(np.mean(losses)), rel=1e-12)


def test_real_files(mnist_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNBENCH_DATA", str(mnist_dir))
    task = make(permutation="numpy_1234")
    task.prepare()
    batch = task.open(0, 0, DataSpec(), 50).evaluation("test")
    assert batch.inputs.shape == (784, 50, 1)
    assert 0.0 <= batch.inputs.min() <= batch.inputs.max() <= 1.0
    facts = task.data_facts()
    assert len(task.data_hash()) == 64
    assert facts["canonical"] is True or len(str(facts["sha256_train_images"])) == 64
    images = task._part("images", "train")
    assert images.dtype == np.uint8
    assert images.base is not None  # a view: nothing is copied
