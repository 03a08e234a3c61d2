"""On an NVIDIA GPU: each framework against itself on the CPU, and against the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.engine.probing import probe_run
from rnnbench.errors import BadInput
from rnnbench.experiment import resolve
from rnnbench.parity import TOLERANCES, compare
from rnnbench.spec import Precision, Ref, RunSpec
from rnnbench.tasks.adding import Adding

from .conftest import Build

pytestmark = pytest.mark.gpu

TASK = Adding(T=20)
CELLS = [RNN(hidden=8), LSTM(hidden=8), GRU(hidden=8)]


def on_cuda(backend: str, precision: Precision = "float64") -> Any:
    """Return the backend, or skip where it sees no GPU."""
    found = registry.load("backends", backend)()
    try:
        found.ops("cuda", precision)
    except BadInput as error:
        pytest.skip(str(error))
    return found


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_a_step_on_the_gpu_equals_one_on_the_cpu(backend: str, cell: Cell, build: Build) -> None:
    case = build(TASK, cell, steps=1)
    batch = case.batches[0].cast("float64")
    found = []
    for device in ("cpu", "cuda"):
        trainer = on_cuda(backend).trainer(case.program, device, "float64", "reference")
        trainer.load(case.state)
        found.append(trainer.inspect(batch, 0.01))
    here, there = found
    for name, gradient in here.gradients.items():
        worst = np.linalg.norm(there.gradients[name] - gradient) / np.linalg.norm(gradient)
        assert worst < 1e-11, name


@pytest.mark.parametrize("precision", ["float64", "float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
def test_torch_and_jax_agree_on_the_gpu(precision: Precision, cell: Cell, build: Build) -> None:
    for backend in ("torch", "jax"):
        on_cuda(backend, precision)
    assert precision in TOLERANCES
    case = build(TASK, cell, steps=10)
    report = compare(case.program, case.state, case.batches, precision, device="cuda")
    assert report.equal, "\n".join(str(row) for row in report.rows if row.verdict != "equal")


def test_tf32_is_another_number_than_float32(build: Build) -> None:
    backend = on_cuda("torch", "tf32")
    case = build(Adding(T=20), LSTM(hidden=256), steps=1, batch=128)
    losses = []
    for precision in ("float32", "tf32"):
        trainer = backend.trainer(case.program, "cuda", precision, "reference")
        trainer.load(case.state)
        losses.append(trainer.inspect(case.batches[0].cast("float32"), 0.01).loss)
    assert losses[0] != losses[1]


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_signals_of_the_gpu_equal_those_of_the_cpu(backend: str) -> None:
    on_cuda(backend)
    settings = {"task": {"name": "adding", "T": 20}, "cell": {"name": "lstm", "hidden": 6}, "backend": backend}
    experiment = resolve(RunSpec.parse({**settings, "precision": "float64"}, ""))
    params = experiment.network().initial(0)
    probes = [Ref(name=name) for name in ("adjoint", "points", "spectrum", "propagator", "lags", "activity", "use")]
    here, there = (probe_run(experiment, params, 0, probes, device=device) for device in ("cpu", "cuda"))
    assert [signal.name for signal in here] == [signal.name for signal in there]
    for mine, other in zip(here, there, strict=True):
        # the smallest singular values and exponents stand on differences of large numbers
        np.testing.assert_allclose(other.values, mine.values, rtol=1e-6, atol=1e-7, err_msg=mine.name)
