"""Sequential digits: the split and the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from rnnbench.errors import CorruptData
from rnnbench.tasks import digits
from rnnbench.tasks.digits import Digits


def test_split_is_a_stratified_partition() -> None:
    parts = digits._parts()
    rows = np.concatenate([parts[name] for name in ("train", "valid", "test")])
    assert sorted(rows.tolist()) == list(range(1797))
    assert {name: len(part) for name, part in parts.items()} == Digits().sizes()
    whole = np.bincount(load_digits().target, minlength=10)
    for name, share in (("train", 4 / 6), ("valid", 1 / 6), ("test", 1 / 6)):
        counts = np.bincount(Digits().labels(name), minlength=10)
        # every sixth image of a class, wherever the class begins: off by less than one
        assert np.all(np.abs(counts - share * whole) < (2 if name == "train" else 1))


@pytest.mark.parametrize("split", ["valid", "test"])
def test_the_first_of_a_part_hold_every_class(split: str) -> None:
    """An evaluation set of n is the first n of its part, which must not be sorted by class."""
    assert np.bincount(Digits().labels(split)[:60], minlength=10).min() >= 1


@pytest.mark.parametrize("by", ["pixel", "row"])
def test_steps_are_the_pixels(by: str) -> None:
    task = Digits(by=by)  # type: ignore[arg-type]  # one of the two
    whole = load_digits()
    batch = task.rows("test", np.array([0, 299]), 1.0)
    for b, row in enumerate(digits._parts()["test"][[0, 299]]):
        read = [float(v) for t in range(task.length) for v in batch.inputs[t, b]]
        assert read == [float(v) / 16 for v in whole.images[row].ravel()]
        assert batch.targets[b] == whole.target[row]


def test_other_bytes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digits, "SHA256", "0" * 64)
    digits._load.cache_clear()
    with pytest.raises(CorruptData, match="sha256"):
        Digits().prepare()
    digits._load.cache_clear()
