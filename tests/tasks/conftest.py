"""What the tests of the tasks share: MNIST on disk or made up, and a z-score."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.tasks import datasets, mnist


def made_up() -> dict[str, NDArray]:
    """Arrays of MNIST's shapes with a pattern in which every image and every pixel differs from its neighbours."""
    arrays = {}
    for part, n in (("train", 60000), ("test", 10000)):
        numbers = np.arange(n)
        arrays[f"{part}_images"] = np.add.outer((numbers * 7 % 256).astype(np.uint8), np.arange(784).astype(np.uint8))
        arrays[f"{part}_labels"] = (numbers // 3 % 10).astype(np.uint8)
    return arrays


def idx_bytes(array: NDArray) -> bytes:
    """Write an array of bytes in IDX format."""
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, dtype=">u4").tobytes() + array.tobytes()


@pytest.fixture(scope="session")
def mnist_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with MNIST's four files: `RNNBENCH_TEST_MNIST`, a copy beside the repository, or made up."""
    candidates = [Path(__file__).parents[2].parent / "shared" / "data" / "mnist"]
    if named := os.environ.get("RNNBENCH_TEST_MNIST"):
        candidates.insert(0, Path(named))
    for candidate in candidates:
        if (candidate / "train-images-idx3-ubyte.gz").is_file():
            return candidate
    directory = tmp_path_factory.mktemp("mnist")
    for key, array in made_up().items():
        shaped = array.reshape(-1, 28, 28) if array.ndim == 2 else array
        (directory / datasets.MNIST_FILES[key].name).write_bytes(gzip.compress(idx_bytes(shaped), compresslevel=1))
    return directory


@pytest.fixture
def made_up_mnist(monkeypatch: pytest.MonkeyPatch) -> dict[str, NDArray]:
    """MNIST replaced by made-up arrays, the same everywhere."""
    arrays = made_up()
    data = datasets.Mnist(arrays, dict.fromkeys(datasets.MNIST_FILES, "00"))
    monkeypatch.setattr(mnist, "load_mnist", lambda: data)
    return arrays


@pytest.fixture
def z_score() -> Callable[[NDArray, float], float]:
    """The distance of a sample's mean from what it should be, in standard errors."""

    def compute(sample: NDArray, expected: float) -> float:
        return float((np.mean(sample) - expected) / (np.std(sample, ddof=1) / np.sqrt(len(sample))))

    return compute
