"""What the parity tests share: how a case is put together, and MNIST without its files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rnnbench.backends.base import Program, TrainState
from rnnbench.cells.base import Cell
from rnnbench.cells.network import Network
from rnnbench.parity import ParityReport, compare
from rnnbench.spec import DataSpec, NetworkSpec, Precision
from rnnbench.streams import stream
from rnnbench.tasks import datasets, mnist
from rnnbench.tasks.base import Batch, Task
from rnnbench.techniques.base import Technique
from rnnbench.techniques.update.optimizers import Adam, Optimizer


class Case(NamedTuple):
    """A program, where it starts, and a batch for each step."""

    program: Program
    state: TrainState
    batches: list[Batch]

    def compare(self, precision: Precision = "float64", path: str = "auto") -> ParityReport:
        """Compare torch with jax on it."""
        return compare(self.program, self.state, self.batches, precision, path=path)


Build = Callable[..., Case]


@pytest.fixture
def build() -> Build:
    """Put a case together; seed 1, so that nothing is at its default by accident."""

    def make(
        task: Task,
        cell: Cell,
        optimizer: Optimizer | None = None,
        techniques: tuple[Technique, ...] = (),
        network: NetworkSpec | None = None,
        steps: int = 10,
        batch: int = 3,
        **program: Any,
    ) -> Case:
        source = task.open(1, 2, DataSpec(batch_size=batch), 10)
        net = Network(
            cell,
            network or NetworkSpec(),
            task.n_in,
            task.n_out,
            task.length,
            task.readout == "last",
            task.variable_length,
        )
        return Case(
            Program(task, net, optimizer or Adam(lr=0.01), techniques, **program),
            TrainState(net.initial(1), buffers=net.initial_buffers(1)),
            [source.batch("train", step) for step in range(steps)],
        )

    return make


@pytest.fixture
def equal() -> Callable[[ParityReport], None]:
    """Assert that a report found nothing over tolerance, and that it looked."""

    def check(report: ParityReport) -> None:
        wrong = [row for row in report.rows if row.verdict != "equal"]
        assert not wrong, "\n".join(map(str, wrong))
        assert report.equal
        assert len(set(report.batch_sha256.values())) == 1
        assert {row.phase for row in report.rows} >= {"start", "step", "train", "free"}
        assert report.row("step", "gradients").compared == report.steps * len(report_parameters(report))

    def report_parameters(report: ParityReport) -> range:
        return range(report.row("step", "parameters").compared // report.steps)

    return check


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second thread, and wait for it where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="module")
def _made_up_mnist() -> Iterator[None]:
    """MNIST with made-up images: a black frame, as the real ones have (a ReLU cell starts on its kink there)."""
    rng = stream(0, "tests/mnist")
    images = np.zeros((60000, 28, 28), np.uint8)
    images[:64, 4:24, 4:24] = rng.integers(0, 256, (64, 20, 20))
    images[64:] = images[np.arange(64, 60000) % 64]
    arrays = {"train_images": images.reshape(60000, 784), "train_labels": (np.arange(60000) % 10).astype(np.uint8)}
    arrays |= {"test_images": arrays["train_images"][:10000], "test_labels": arrays["train_labels"][:10000]}
    data = datasets.Mnist(arrays, dict.fromkeys(datasets.MNIST_FILES, "00"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mnist, "load_mnist", lambda: data)
        yield
