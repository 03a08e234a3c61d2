"""A model at rest for probes to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import Program
from rnnbench.cells.base import Cell
from rnnbench.cells.network import Network
from rnnbench.probes.base import Look
from rnnbench.spec import DataSpec, NetworkSpec, Precision
from rnnbench.tasks.base import Batch, Task
from rnnbench.techniques.base import Technique
from rnnbench.techniques.update.optimizers import SGD

from .twin import drawn

MakeLook = Callable[..., Look]


@pytest.fixture
def make_look() -> MakeLook:
    """Put a look together: a task, a cell or a whole model, and what differs from the starting parameters.

    `precision` is the run's own.
    """

    def make(
        task: Task,
        cell: Cell | None,
        *,
        backend: str = "torch",
        network: NetworkSpec | None = None,
        model: str | None = None,
        params: Mapping[str, NDArray] | None = None,
        batch: Batch | None = None,
        sequences: int = 4,
        batch_size: int = 4,
        techniques: tuple[Technique, ...] = (),
        step: int = 0,
        precision: Precision = "float64",
    ) -> Look:
        made = registry.backend(backend)
        spec = network or NetworkSpec()
        whole: Any = None
        if model is not None:
            whole = made.adopt(model, task, 0)
        else:
            assert cell is not None
            last = task.readout == "last"
            whole = Network(cell, spec, task.n_in, task.n_out, task.length, last, task.variable_length)
        start = whole.initial(0)
        given = dict(params or {})
        assert set(given) <= set(start), "no such parameter"
        assert all(given[name].shape == start[name].shape for name in given), "no such shape"
        source = task.open(0, 0, DataSpec(batch_size=batch_size), 64)
        program = Program(task, whole, SGD(lr=0.1), techniques)
        return Look(
            program=program,
            params=start | given,
            buffers=whole.initial_buffers(0),
            batch=(batch or source.evaluation("valid").take(slice(0, sequences))).cast("float64"),
            source=source,
            lab=made.lab("cpu", "float64"),
            own=made.lab("cpu", precision),
            step=step,
            seed=0,
            key=(repr(task), repr(cell), repr(spec), model),
        )

    return make


@pytest.fixture
def drawn_look(make_look: MakeLook) -> MakeLook:
    """Make a look at a network none of whose parameters is zero: (cell, task, network, what `make_look` takes)."""

    def make(cell: Cell, task: Task, network: NetworkSpec | None = None, **options: Any) -> Look:
        of = {"network": network, "sequences": 3, **options}
        return make_look(task, cell, **of, params=drawn(make_look(task, cell, **of)))

    return make


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Products this small gain nothing from a second thread, and wait for it where cores are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
