"""Sequential digits: scikit-learn's 1,797 small images, offline."""

from __future__ import annotations

from functools import lru_cache
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rnnbench.arrays import NDArray
from rnnbench.errors import CorruptData
from rnnbench.spec import Split
from rnnbench.streams import stream
from rnnbench.tasks.base import Batch, hash_arrays
from rnnbench.tasks.images import ImageTask

SHA256 = "2bc65a68f61cb4eb65d40c7a27705c32c5fc16059aea3053aa778ae2eb0fb166"
"""Of the images (uint8 [1797 64]) and the labels (uint8 [1797]); known here so that a digest need not load them."""


@lru_cache(maxsize=1)
def _load() -> tuple[NDArray, NDArray]:
    from sklearn.datasets import load_digits

    loaded = load_digits()
    images, labels = loaded.data.astype(np.uint8), loaded.target.astype(np.uint8)
    found = hash_arrays({"images": images, "labels": labels})
    if found != SHA256:
        raise CorruptData(f"digits: scikit-learn's load_digits gives sha256 {found}, expected {SHA256}")
    return images, labels


@lru_cache(maxsize=1)
def _parts() -> dict[str, NDArray]:
    """Return the row numbers of each part.

    The 1,797 images are put in the order of the stream (0, "digits/split"), then sorted by label without changing the
    order within one; of each six in turn the first goes to valid, the second to test and the rest to train. So every
    part holds every class in proportion, and the split is the same for all seeds.
    """
    _, labels = _load()
    order = stream(0, "digits/split").permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    place = np.arange(len(order)) % 6
    # back in the set's own order, in which the classes are mixed: an evaluation may be of the first few alone
    return {"valid": np.sort(order[place == 0]), "test": np.sort(order[place == 1]), "train": order[place > 1]}


class Digits(ImageTask):
    """Classify scikit-learn's 8x8 digits, read pixel by pixel (T=64) or row by row (T=8).

    1,197 images for training, 300 for validation, 300 for the test, in a fixed stratified split.
    """

    name: ClassVar[str] = "digits"
    version: ClassVar[int] = 1
    source: ClassVar[str] = (
        "sklearn.datasets.load_digits: test set of Alpaydin & Kaynak, Optical Recognition of Handwritten Digits, UCI"
    )
    equation: ClassVar[str] = "x_t = image[t] / 16"

    by: Literal["pixel", "row"] = Field("pixel", description="one pixel a step (T=64) or one row (T=8)")

    @property
    def n_in(self) -> int:
        return 1 if self.by == "pixel" else 8

    @property
    def length(self) -> int:
        return 64 // self.n_in

    def sizes(self) -> dict[str, int]:
        return {"train": 1197, "valid": 300, "test": 300}

    def labels(self, split: str) -> NDArray:
        return _load()[1][_parts()[split]]

    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:  # has no difficulty
        images, labels = _load()
        chosen = _parts()[split][index]
        pixels = images[chosen].reshape(len(index), self.length, self.n_in).transpose(1, 0, 2)
        return Batch(
            inputs=pixels / 16.0,
            targets=labels[chosen].astype(np.int64),
            mask=np.ones(len(index)),
            lengths=np.full(len(index), self.length),
        )

    def prepare(self) -> None:
        _load()

    def data_hash(self) -> str:
        return SHA256

    def data_facts(self) -> dict[str, str | int | float | bool]:
        return {"data": "scikit-learn digits", "canonical": True}
