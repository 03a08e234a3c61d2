"""What a task is: where sequences come from, what is asked of them, and what guessing scores.

Tasks use NumPy only. A task is either *generated* (`GeneratedTask`: implements `sample`) or *stored* (`StoredTask`:
implements `sizes` and `rows`). Both are read through a `Source`, which owns the seeds, so that a batch depends on
nothing but (seeds, split, step, difficulty).
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.component import Component
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec, Split
from rnnbench.streams import stream

LossName = Literal["cross_entropy", "mse"]
Readout = Literal["last", "each"]
EvalSplit = Literal["valid", "test"]


@dataclass(frozen=True)
class Batch:
    """A batch of sequences, time-major, padded to the task's static length T.

    With readout ``each`` the targets and masks have a time axis; with ``last`` they have none, and the network is read
    at step ``lengths - 1``.

    Attributes:
        inputs: [time batch n_in] floats.
        targets: class indices [(time) batch] int64, or values [(time) batch n_out] floats.
        mask: [(time) batch] weights of each target in the loss; zero where there is none.
        lengths: [batch] int64, steps that are not padding.
        masks: further weightings for metrics by name, e.g. ``recall``, shaped as `mask`.
    """

    inputs: NDArray
    targets: NDArray
    mask: NDArray
    lengths: NDArray
    masks: Mapping[str, NDArray] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of sequences."""
        return int(self.inputs.shape[1])

    def take(self, index: NDArray | slice) -> Batch:
        """Return the sequences at `index`."""
        return Batch(
            inputs=self.inputs[:, index],
            targets=self.targets[..., index, :] if self.targets.dtype.kind == "f" else self.targets[..., index],
            mask=self.mask[..., index],
            lengths=self.lengths[index],
            masks={name: mask[..., index] for name, mask in self.masks.items()},
        )

    def cast(self, dtype: np.dtype | str) -> Batch:
        """Return the batch with its floats in `dtype` and its integers as int64, C-contiguous.

        This is the one place where a batch's precision is decided, so that every backend sees the same bytes.
        """

        def to(array: NDArray) -> NDArray:
            return np.ascontiguousarray(array, dtype=dtype if array.dtype.kind == "f" else np.int64)

        return Batch(
            inputs=np.ascontiguousarray(self.inputs, dtype=dtype),
            targets=to(self.targets),
            mask=np.ascontiguousarray(self.mask, dtype=dtype),
            lengths=to(self.lengths),
            masks={name: np.ascontiguousarray(mask, dtype=dtype) for name, mask in self.masks.items()},
        )

    def arrays(self) -> dict[str, NDArray]:
        """Return the arrays by name, in a fixed order; further masks as ``mask/<name>``."""
        named = {"inputs": self.inputs, "targets": self.targets, "mask": self.mask, "lengths": self.lengths}
        return named | {f"mask/{name}": self.masks[name] for name in sorted(self.masks)}

    def sha256(self) -> str:
        """Hash names, dtypes, shapes and bytes of all arrays."""
        return hash_arrays(self.arrays())


def hash_arrays(arrays: Mapping[str, NDArray]) -> str:
    """Return the SHA-256 over (name, dtype, shape, little-endian C-order bytes) of each array, names in given order."""
    total = hashlib.sha256()
    for name, array in arrays.items():
        little = np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<"), copy=False)
        total.update(f"{name}|{little.dtype.str}|{little.shape}|".encode())
        total.update(little.tobytes())
    return total.hexdigest()


@dataclass(frozen=True)
class Metric:
    """How outputs are scored: a weighted mean over targets of a quantity.

    Attributes:
        kind: ``cross_entropy``, ``accuracy`` (share of argmax hits), ``sequence_accuracy`` (share of sequences with no
            miss), ``mse``, ``mae``, ``within`` (share with \\|error\\| < threshold in every output), or
            ``squared_within`` (share with error² <= threshold).
        better: ``lower`` or ``higher``.
        threshold: for the two last kinds.
        mask: which of the batch's weightings; None is the loss's own.
    """

    kind: Literal["cross_entropy", "accuracy", "sequence_accuracy", "mse", "mae", "within", "squared_within"]
    better: Literal["lower", "higher"]
    threshold: float | None = None
    mask: str | None = None


@dataclass(frozen=True)
class Baseline:
    """What a predictor that has learnt nothing scores.

    Attributes:
        metric: the metric that it is a value of.
        value: the score, computed from the task's definition or from its data.
        how: the predictor in words, with the formula where there is one.
    """

    metric: str
    value: float
    how: str


class Task(Component):
    """Base of all tasks.

    Class variables and properties that a task supplies: `loss`, `readout`, `n_in`, `n_out`, `length`, `metrics`,
    `metric`, and `baselines`.
    """

    loss: ClassVar[LossName]
    readout: ClassVar[Readout]
    bidirectional_allowed: ClassVar[bool] = True
    """False where reading backwards would give the answer away (forecasting what the input itself holds)."""

    @property
    @abstractmethod
    def n_in(self) -> int:
        """Width of the inputs."""

    @property
    @abstractmethod
    def n_out(self) -> int:
        """Width of the outputs: number of classes, or of predicted values."""

    @property
    @abstractmethod
    def length(self) -> int:
        """The static, padded number of time steps T."""

    @property
    def variable_length(self) -> bool:
        """Whether some sequences end before T at full difficulty (the network then holds its state from there on).

        Below full difficulty sequences may end before T in any task that has a difficulty.
        """
        return False

    @property
    @abstractmethod
    def metrics(self) -> Mapping[str, Metric]:
        """The task's metrics by name; ``loss`` is always there and need not be named."""

    @property
    @abstractmethod
    def metric(self) -> str:
        """Name of the metric that the task is judged by."""

    @abstractmethod
    def baselines(self, source: Source, split: EvalSplit = "valid") -> dict[str, Baseline]:
        """Return trivial predictors' scores; a stored task computes them on `source`'s evaluation set of `split`."""

    @property
    def lag(self) -> int | None:
        """The longest distance in steps from an input to where it is needed, where the definition says so."""
        return None

    def data_hash(self) -> str | None:
        """Return the SHA-256 of the data that the task reads, or None for a generated task."""
        return None

    def data_facts(self) -> dict[str, str | int | float | bool]:
        """Return what a record should say of the data: origin, whether they are the canonical bytes, sizes."""
        return {}

    def prepare(self) -> None:
        """Read and check whatever the task needs, so that a fault is named before training starts.

        Raises:
            CorruptData: when a data file is not what it should be.
            BadInput: when a file is missing or cannot serve.
        """

    @abstractmethod
    def open(self, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> Source:
        """Open the task's batches under the given seeds."""


class Source:
    """Batches of one run: a pure function of (split, step, difficulty).

    Training batches depend on `seed` (order, fresh draws) and, for a fixed training set, on `data_seed` (its content);
    validation and test depend on `data_seed` alone, so that every arm is scored on the same sequences.
    """

    def __init__(self, task: Task, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> None:
        self.task = task
        self.seed = seed
        self.data_seed = data_seed
        self.data = data
        self.eval_n = eval_n

    def batch(self, split: Split, step: int, difficulty: float = 1.0) -> Batch:
        """Return training batch number `step` (0-based); for valid and test the whole evaluation set (step 0 only)."""
        raise NotImplementedError

    def evaluation(self, split: EvalSplit, difficulty: float = 1.0) -> Batch:
        """Return the evaluation set of `split`, the same for every seed."""
        return self.batch(split, 0, difficulty)

    @property
    def train_size(self) -> int | None:
        """Number of sequences in the training set; None when each step's are fresh."""
        return self.data.train_n


class _Indexed(Source):
    """Shared by sources with a finite training set: which of its rows make up step's batch.

    An epoch is a permutation drawn from (seed, "order", epoch); the epochs' permutations follow one another without a
    gap, so a batch may span two of them and every sequence is seen equally often.
    """

    def indices(self, step: int, size: int) -> NDArray:
        """Return the row numbers [batch] of training batch `step` out of a set of `size` rows."""
        first = step * self.data.batch_size
        wanted = np.arange(first, first + self.data.batch_size)
        epochs, places = np.divmod(wanted, size)
        rows = np.empty(self.data.batch_size, dtype=np.int64)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = self._order(int(epoch), size)[places[here]]
        return rows

    def _order(self, epoch: int, size: int) -> NDArray:
        kept: dict[int, NDArray] = self.__dict__.setdefault("_orders", {})
        if epoch not in kept:
            if len(kept) >= 2:  # a batch spans two epochs at most, unless it is larger than the set
                kept.pop(min(kept))
            kept[epoch] = stream(self.seed, "order", epoch).permutation(size)
        return kept[epoch]


class GeneratedSource(_Indexed):
    """Source of a `GeneratedTask`: fresh sequences each step, or a fixed set drawn from `data_seed`."""

    task: GeneratedTask

    def __init__(self, task: GeneratedTask, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> None:
        super().__init__(task, seed, data_seed, data, eval_n)
        self.task = task

    def batch(self, split: Split, step: int, difficulty: float = 1.0) -> Batch:
        if split != "train":
            return self.task.sample(stream(self.data_seed, split, 0), self.eval_n, difficulty)
        if self.data.train_n is None:
            return self.task.sample(stream(self.seed, "train", step), self.data.batch_size, difficulty)
        if difficulty != 1.0:
            raise BadInput("data.train_n: a fixed training set has one difficulty; a curriculum needs fresh data")
        return self._fixed.take(self.indices(step, self.data.train_n))

    @cached_property
    def _fixed(self) -> Batch:
        """The fixed training set; apart from valid and test by its stream's name."""
        assert self.data.train_n is not None
        return self.task.sample(stream(self.data_seed, "train_set", 0), self.data.train_n, 1.0)


class GeneratedTask(Task):
    """A task whose sequences are drawn: implement `sample`."""

    @abstractmethod
    def sample(self, rng: np.random.Generator, n: int, difficulty: float) -> Batch:
        """Draw `n` sequences at `difficulty` in (0, 1], padded to `length`; 1 is the task as specified."""

    def open(self, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> Source:
        return GeneratedSource(self, seed, data_seed, data, eval_n)


class StoredSource(_Indexed):
    """Source of a `StoredTask`: rows of its training part in a seeded order."""

    task: StoredTask

    def __init__(self, task: StoredTask, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> None:
        super().__init__(task, seed, data_seed, data, eval_n)
        self.task = task
        available = task.sizes()["train"]
        if data.train_n is not None and data.train_n > available:
            raise BadInput(f"data.train_n: {data.train_n} sequences asked for, the set has {available}")

    def batch(self, split: Split, step: int, difficulty: float = 1.0) -> Batch:
        sizes = self.task.sizes()
        if split != "train":
            if sizes[split] == 0:
                raise BadInput(f"eval.split: task {self.task.name} as set up has no {split} sequences")
            return self.task.rows(split, self.evaluated(split), difficulty)
        n = self.train_size
        rows = self.indices(step, n)
        if n < sizes["train"]:  # a subset of the training part, chosen by data_seed
            rows = self._subset[rows]
        return self.task.rows("train", rows, difficulty)

    def evaluated(self, split: EvalSplit) -> NDArray:
        """Return the rows of `split` that are scored: all, or `eval_n` of them drawn by data_seed, in ascending order.

        Drawn, because a data set's first rows need not be like the others: MNIST's first 5,000 test digits are cleaner.
        """
        size = self.task.sizes()[split]
        if self.eval_n >= size:
            return np.arange(size)
        return np.sort(stream(self.data_seed, f"evaluated/{split}").permutation(size)[: self.eval_n])

    def training_rows(self) -> NDArray:
        """Return the rows of the training part that batches are drawn from, in ascending order."""
        if self.train_size < self.task.sizes()["train"]:
            return np.sort(self._subset)
        return np.arange(self.train_size)

    @cached_property
    def _subset(self) -> NDArray:
        return stream(self.data_seed, "subset", 0).permutation(self.task.sizes()["train"])[: self.train_size]

    @property
    def train_size(self) -> int:
        return self.data.train_n or self.task.sizes()["train"]


class StoredTask(Task):
    """A task over a finite data set: implement `sizes` and `rows`."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Return the number of sequences in each of train, valid and test."""

    @abstractmethod
    def rows(self, split: Split, index: NDArray, difficulty: float) -> Batch:
        """Return the sequences of `split` at `index`; difficulty is ignored where the task has none."""

    def open(self, seed: int, data_seed: int, data: DataSpec, eval_n: int) -> Source:
        return StoredSource(self, seed, data_seed, data, eval_n)


def pad_rows(batch: Batch, size: int) -> Batch:
    """Pad `batch` to `size` sequences by repeating the first one at weight zero (for equal evaluation chunks)."""
    missing = size - batch.size
    if missing <= 0:
        return batch
    index = np.concatenate([np.arange(batch.size), np.zeros(missing, dtype=np.int64)])
    padded = batch.take(index)
    keep = (np.arange(size) < batch.size).astype(batch.mask.dtype)
    return replace(padded, mask=padded.mask * keep, masks={name: mask * keep for name, mask in padded.masks.items()})


def scaled(size: int, difficulty: float, least: int) -> int:
    """Return `size` times `difficulty`, rounded, at least `least` and at most `size`.

    Raises:
        BadInput: when the difficulty is not in (0, 1].
    """
    if not 0.0 < difficulty <= 1.0:
        raise BadInput(f"difficulty: {difficulty} is not above 0 and at most 1")
    return min(size, max(least, round(size * difficulty)))
