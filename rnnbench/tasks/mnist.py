"""Sequential MNIST, by pixel or by row, in the natural order or in one of the permutations that papers used."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from importlib.resources import files
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from rnnbench.arrays import NDArray
from rnnbench.spec import Split
from rnnbench.tasks.base import Batch
from rnnbench.tasks.datasets import Mnist, load_mnist
from rnnbench.tasks.images import ImageTask

PIXELS = 784


def _numpy(seed: int) -> NDArray:
    return np.random.RandomState(seed).permutation(PIXELS)


def _bit_reversal() -> NDArray:
    """Order 0..1023 by their ten bits read backwards, and leave out what is not below 784."""
    reverse = np.array([int(f"{i:010b}"[::-1], 2) for i in range(1024)])
    return reverse[reverse < PIXELS]


def _bn_lstm_draw() -> NDArray:
    return np.random.RandomState(1).randint(0, PIXELS, PIXELS)


def _stored(name: str) -> NDArray:
    text = files("rnnbench.tasks").joinpath("data/permutations.json").read_text(encoding="utf-8")
    return np.array(json.loads(text)[name])


PERMUTATIONS: dict[str, Callable[[], NDArray]] = {
    "none": lambda: np.arange(PIXELS),
    "numpy_92916": lambda: _numpy(92916),
    "numpy_1234": lambda: _numpy(1234),
    "lem_torch_5544": lambda: _stored("lem_torch_5544"),
    "cornn_torch_12008": lambda: _stored("cornn_torch_12008"),
    "bit_reversal": _bit_reversal,
    "bn_lstm_draw": _bn_lstm_draw,
}


@cache
def permutation(name: str) -> NDArray:
    """Return the order p [784] of that name: step t reads pixel p[t] of the image's rows put end to end."""
    order = PERMUTATIONS[name]().astype(np.int64)
    order.setflags(write=False)
    return order


class MNIST(ImageTask):
    """Classify a handwritten digit of MNIST that is read pixel by pixel or row by row.

    Permutations (step t reads pixel p[t]):

    - ``numpy_92916``: RandomState(92916).permutation(784) (scoRNN, expRNN, full-capacity uRNN, dilated RNN).
    - ``numpy_1234``: RandomState(1234).permutation(784) (nnRNN).
    - ``lem_torch_5544``, ``cornn_torch_12008``: torch.manual_seed(seed), then torch.randperm(784) as the first draw of
      LEM's and coRNN's psMNIST_task.py; the arrays are stored, since they depend on torch's generator.
    - ``bit_reversal``: 0..1023 by their bits reversed, those below 784 (S4, minimal LRU).
    - ``bn_lstm_draw``: RandomState(1).randint(0, 784, 784), as the released code of recurrent batch normalization and
      of zoneout draws. Not a permutation: 501 different pixels survive.

    JANET's permutation is not among them: it is published as a binary file only and follows from no seed that is known.
    The split is cut from the front of the 60,000 training images; the 10,000 test images are the test part. With
    ``by = "row"`` the pixels are permuted first and then cut into 28 rows.
    """

    name: ClassVar[str] = "mnist"
    version: ClassVar[int] = 1
    source: ClassVar[str] = "Le, Jaitly & Hinton, arXiv 1504.00941, s4.2; orders, scalings and splits as described"
    equation: ClassVar[str] = "x_t = image[p[t]] / 255 (unit), (image[p[t]] / 255 - 0.1307) / 0.3081 (standardized)"

    by: Literal["pixel", "row"] = Field("pixel", description="one pixel a step (T=784) or one row (T=28)")
    permutation: Literal[
        "none", "numpy_92916", "numpy_1234", "lem_torch_5544", "cornn_torch_12008", "bit_reversal", "bn_lstm_draw"
    ] = Field("none", description="the order of the pixels")
    scaling: Literal["unit", "standardized"] = Field("unit", description="[0, 1], or mean 0.1307 and deviation 0.3081")
    split: Literal["50k/10k", "55k/5k", "57k/3k", "60k/0"] = Field(
        "50k/10k", description="sizes of the training and the validation part"
    )

    @property
    def n_in(self) -> int:
        return 1 if self.by == "pixel" else 28

    @property
    def length(self) -> int:
        return PIXELS // self.n_in

    def sizes(self) -> dict[str, int]:
        train = 1000 * int(self.split.partition("k")[0])
        return {"train": train, "valid": 60000 - train, "test": 10000}

    def labels(self, split: str) -> NDArray:
        return self._part("labels", split)

    def _part(self, what: str, split: str) -> NDArray:
        arrays = load_mnist().arrays
        if split == "test":
            return arrays[f"test_{what}"]
        train = self.sizes()["train"]
        whole = arrays[f"train_{what}"]
        return whole[:train] if split == "train" else whole[train:]

    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:  # has no difficulty
        shades = np.arange(256) / 255.0
        if self.scaling == "standardized":
            shades = (shades - 0.1307) / 0.3081
        # The images stay bytes in memory; only a batch is ever turned into floats.
        pixels = self._part("images", split)[index][:, permutation(self.permutation)]
        inputs = shades[pixels.reshape(len(index), self.length, self.n_in).transpose(1, 0, 2)]
        return Batch(
            inputs=inputs,
            targets=self.labels(split)[index].astype(np.int64),
            mask=np.ones(len(index)),
            lengths=np.full(len(index), self.length),
        )

    def prepare(self) -> None:
        load_mnist()

    def data_hash(self) -> str:
        return load_mnist().hash

    def data_facts(self) -> dict[str, str | int | float | bool]:
        data: Mnist = load_mnist()
        facts: dict[str, str | int | float | bool] = {"data": "mnist", "canonical": data.canonical}
        if not data.canonical:
            facts |= {f"sha256_{key}": value for key, value in sorted(data.sha256.items())}
        return facts
