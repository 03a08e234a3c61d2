"""What a trainer promises beside its numbers: bits that do not hang on how steps are cut, and no compiling twice."""

from __future__ import annotations

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Backend, Program, Trainer, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.jax.trainer import forget_compiled
from rnnbench.backends.torch import TorchBackend
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.errors import BadInput
from rnnbench.spec import DataSpec, NetworkSpec, Precision
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch, pad_rows
from rnnbench.tasks.copying import Copy
from rnnbench.techniques.gradient.clip import ClipNorm
from rnnbench.techniques.update.optimizers import Adam

BACKENDS: list[Backend] = [TorchBackend(), JaxBackend()]
TASK = Adding(T=6)
every_backend = pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)


def program(lr: float = 0.01, hidden: int = 3, task: Adding | Copy = TASK) -> Program:
    network = Network(
        GRU(hidden=hidden), NetworkSpec(), task.n_in, task.n_out, task.length, task.readout == "last",
        task.variable_length,
    )  # fmt: skip
    return Program(task, network, Adam(lr=lr), (ClipNorm(threshold=0.1),), train_metrics=tuple(task.metrics))


def batches(steps: int, precision: str = "float64") -> list[Batch]:
    source = TASK.open(0, 0, DataSpec(batch_size=3), 3)
    return [source.batch("train", step).cast(precision) for step in range(steps)]


def started(backend: Backend, seed: int = 0, precision: Precision = "float64", lr: float = 0.01) -> Trainer:
    of = program(lr)
    trainer = backend.trainer(of, "cpu", precision, "auto")
    trainer.load(TrainState(of.network.initial(seed)))
    return trainer


def bits(state: TrainState) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in state.arrays().items()}


@every_backend
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize("cuts", [[12], [5, 7], [1] * 12, [11, 1]], ids=str)
def test_the_number_of_steps_a_call_changes_no_bit(backend: Backend, precision: Precision, cuts: list[int]) -> None:
    rates = [0.01 / (1 + step) for step in range(12)]
    whole, cut = started(backend, 0, precision), started(backend, 0, precision)
    log = whole.train(batches(12, precision), rates).fetch()
    parts: dict[str, list[NDArray]] = {}
    at = 0
    for size in cuts:
        part = cut.train(batches(12, precision)[at : at + size], rates[at : at + size]).fetch()
        for name, values in part.items():
            parts.setdefault(name, []).append(values)
        at += size
    assert bits(whole.state()) == bits(cut.state())
    assert whole.state().step == cut.state().step == 12
    assert set(log) == {"loss", "grad_norm", *TASK.metrics}
    for name, values in log.items():
        joined = np.concatenate(parts[name])
        assert joined.shape == values.shape == (12,)
        if name == "grad_norm":  # some backends know it at the last step of a call only
            assert joined[-1] == values[-1]
            assert np.isfinite(values[-1])
        else:
            assert joined.tobytes() == values.tobytes()


def test_long_steps_are_dispatched_one_by_one_and_come_to_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = [0.01] * 5
    looped = started(JaxBackend())
    expected = looped.train(batches(5), rates).fetch()
    monkeypatch.setattr("rnnbench.backends.jax.trainer.LONG_STEP", 0)
    whole, cut = started(JaxBackend()), started(JaxBackend())
    log = whole.train(batches(5), rates).fetch()
    for at, cuts in ((0, 2), (2, 3)):
        cut.train(batches(5)[at : at + cuts], rates[:cuts])
    assert bits(whole.state()) == bits(cut.state())
    assert whole.state().step == 5
    for name, values in expected.items():
        np.testing.assert_allclose(log[name], values, rtol=1e-12)
    for name, array in looped.state().arrays().items():
        np.testing.assert_allclose(whole.state().arrays()[name], array, rtol=1e-10, err_msg=name)


@every_backend
def test_a_full_call(backend: Backend) -> None:
    trainer = started(backend)
    trainer.train(batches(1), [0.01])
    size = trainer.capacity
    assert size >= 2
    log = trainer.train(batches(size), [0.01] * size).fetch()
    assert log["loss"].shape == (size,)
    assert np.all(np.isfinite(log["loss"]))
    assert trainer.state().step == size + 1


@every_backend
def test_inspecting_and_evaluating_change_nothing(backend: Backend) -> None:
    disturbed, left_alone = started(backend), started(backend)
    for step, batch in enumerate(batches(3)):
        disturbed.inspect(batches(5)[4], 0.5)
        disturbed.evaluate(batches(2))
        disturbed.readback(batch)
        before = bits(disturbed.state())
        inspected = disturbed.inspect(batch, 0.01)
        assert bits(disturbed.state()) == before
        log = disturbed.train([batch], [0.01]).fetch()
        assert log["loss"][0] == pytest.approx(inspected.loss, rel=1e-14)
        assert inspected.updated.step == step + 1
        left_alone.train([batch], [0.01])
    assert bits(disturbed.state()) == bits(left_alone.state())


@every_backend
def test_the_logged_norm_is_that_of_the_unclipped_gradient(backend: Backend) -> None:
    trainer = started(backend)
    batch = batches(1)[0]
    gradients = trainer.inspect(batch, 0.01).gradients
    norm = np.sqrt(sum(np.sum(g**2) for g in gradients.values()))
    assert norm > 0.1  # so that clipping would show
    assert trainer.train([batch], [0.01]).fetch()["grad_norm"][-1] == pytest.approx(norm, rel=1e-13)


@every_backend
def test_a_rate_of_zero_trains_nothing(backend: Backend) -> None:
    trainer = started(backend)
    before = trainer.state().params
    trainer.train(batches(3), [0.0] * 3)
    assert {k: v.tobytes() for k, v in trainer.state().params.items()} == {k: v.tobytes() for k, v in before.items()}


@every_backend
def test_pieces_of_an_evaluation_add_up(backend: Backend) -> None:
    """Of seven sequences in pieces of three, the last filled up with weightless ones, as of seven at once."""
    for task in (TASK, Copy(delay=4, symbols=2, alphabet=3, variable=True)):
        whole = task.open(0, 0, DataSpec(), 7).evaluation("valid").cast("float64")
        of = program(task=task)
        trainer = backend.trainer(of, "cpu", "float64", "auto")
        trainer.load(TrainState(of.network.initial(0)))
        pieces = [pad_rows(whole.take(np.arange(at, min(at + 3, 7))), 3) for at in (0, 3, 6)]
        at_once, in_pieces = trainer.evaluate([whole]), trainer.evaluate(pieces)
        assert set(at_once) == {"loss", *task.metrics}
        for name, value in at_once.items():
            assert in_pieces[name] == pytest.approx(value, rel=1e-13), name
        if task is TASK:
            direct = np.mean((trainer.inspect(whole, 0.1).outputs - whole.targets) ** 2)
            assert at_once["mse"] == at_once["loss"] == pytest.approx(float(direct), rel=1e-13)


@every_backend
@pytest.mark.parametrize("precision", ["float64", "float32", "bfloat16"])
def test_state_and_batches_are_kept_in_the_precision(backend: Backend, precision: Precision) -> None:
    storage = "float64" if precision == "float64" else "float32"
    trainer = started(backend, 0, precision)
    trainer.train(batches(2, storage), [0.01] * 2)
    assert {str(array.dtype) for array in trainer.state().arrays().values()} == {storage}
    arrived = trainer.readback(batches(1, storage)[0])
    assert {name: str(array.dtype) for name, array in arrived.items()} == {
        name: str(array.dtype) for name, array in batches(1, storage)[0].arrays().items()
    }


def test_what_was_compiled_is_used_again() -> None:
    """By every seed and learning rate; another program is compiled anew."""
    forget_compiled()
    first = started(JaxBackend())
    first.train(batches(3), [0.01] * 3)
    first.evaluate(batches(1))
    first.inspect(batches(1)[0], 0.01)
    assert first.compile_seconds > 0
    second = started(JaxBackend(), seed=7, lr=0.5)
    second.train(batches(5), [0.5] * 5)
    second.train(batches(1), [0.1])
    second.evaluate(batches(2))
    second.inspect(batches(1)[0], 0.01)
    assert second.compile_seconds == 0
    assert bits(first.state()) != bits(second.state())
    other = JaxBackend().trainer(program(hidden=4), "cpu", "float64", "auto")
    other.load(TrainState(program(hidden=4).network.initial(0)))
    other.train(batches(1), [0.01])
    assert other.compile_seconds > 0


def test_jax_is_left_as_it_was_found() -> None:
    import jax

    before = (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision)
    trainer = started(JaxBackend())
    trainer.train(batches(1), [0.01])
    assert (jax.config.jax_enable_x64, jax.config.jax_default_matmul_precision) == before
    assert jax.numpy.ones(1).dtype == (np.float64 if before[0] else np.float32)


def test_a_path_that_is_not_there_is_refused_with_the_reason() -> None:
    network = Network(LSTM(hidden=3, peepholes=True), NetworkSpec(), 2, 1, 6, read_last=True)
    peepholes = Program(TASK, network, Adam(lr=0.1))
    with pytest.raises(BadInput, match="no peepholes"):
        TorchBackend().trainer(peepholes, "cpu", "float64", "fused")
    with pytest.raises(BadInput, match="no fused recurrent layers"):
        JaxBackend().trainer(program(), "cpu", "float64", "fused")
    assert TorchBackend().trainer(peepholes, "cpu", "float64", "auto").path == "reference"
    assert TorchBackend().trainer(program(), "cpu", "float64", "auto").path == "fused"
    assert TorchBackend().trainer(program(), "cpu", "bfloat16", "auto").path == "reference"
