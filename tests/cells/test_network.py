"""Networks: published sizes, starting values, directions, and sequences that end early."""

from __future__ import annotations

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Backend, Inspection, Program, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.numpy import NumpyBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.errors import BadInput
from rnnbench.parity import measure
from rnnbench.spec import DataSpec, NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch, Task
from rnnbench.tasks.copying import Copy
from rnnbench.techniques.update.optimizers import SGD


def network(cell: Cell, n_in: int, n_out: int, spec: NetworkSpec | None = None) -> Network:
    return Network(cell, spec or NetworkSpec(), n_in, n_out, 784, read_last=True)


@pytest.mark.parametrize(
    ("cell", "count"),
    [
        (LSTM(hidden=128), 67_850),
        (LSTM(hidden=128, biases=2), 67_850 + 4 * 128),
        (LSTM(hidden=128, peepholes=True), 67_850 + 3 * 128),
        (RNN(hidden=100, activation="relu"), 11_210),
        # 3H (n_in + H) + 3H (+ 3H) + 10 H + 10
        (GRU(hidden=100, biases=1), 31_610),
        (GRU(hidden=100), 31_910),
    ],
)
def test_sizes_on_mnist(cell: Cell, count: int) -> None:
    """Single-bias LSTM-128 and IRNN-100 as published; two bias vectors as torch counts them."""
    assert network(cell, 1, 10).count() == count


@pytest.mark.parametrize("cell", [RNN(hidden=7, biases=2), LSTM(hidden=7, biases=2), GRU(hidden=7, biases=2)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_two_biases_count_as_torch_counts(cell: Cell, bidirectional: bool) -> None:
    import torch

    module = {"rnn": torch.nn.RNN, "lstm": torch.nn.LSTM, "gru": torch.nn.GRU}[cell.name]
    theirs = sum(p.numel() for p in module(3, 7, num_layers=3, bidirectional=bidirectional).parameters())
    ours = network(cell, 3, 2, NetworkSpec(layers=3, bidirectional=bidirectional))
    readout = (2 if bidirectional else 1) * 7 * 2 + 2
    assert ours.count() == theirs + readout


def test_learned_states_are_parameters_for_each_layer_and_direction() -> None:
    spec = NetworkSpec(layers=2, bidirectional=True, learned_state=True)
    plain = network(LSTM(hidden=7), 3, 2, NetworkSpec(layers=2, bidirectional=True))
    learned = network(LSTM(hidden=7), 3, 2, spec)
    assert learned.count() - plain.count() == 2 * 2 * 2 * 7
    assert {name for name in learned.parameters() if ".initial." in name} == {
        f"layers.{layer}.{way}.initial.{state}" for layer in (0, 1) for way in ("forward", "backward") for state in "hc"
    }


@pytest.mark.parametrize("biases", [1, 2])
def test_the_forget_bias_is_not_doubled(biases: int) -> None:
    start = network(LSTM.parse({"hidden": 3, "biases": biases, "forget_bias": 2.5}, "cell"), 1, 2).initial(0)
    total = sum(value for name, value in start.items() if "bias" in name and name.startswith("layers"))
    assert np.array_equal(total, [0] * 3 + [2.5] * 3 + [0] * 6)


def test_starting_values_hang_on_seed_and_name_only() -> None:
    small, large = network(GRU(hidden=5), 2, 1), network(GRU(hidden=5), 2, 1, NetworkSpec(layers=2))
    for name, value in small.initial(3).items():
        assert np.array_equal(value, small.initial(3)[name])
        assert np.array_equal(value, large.initial(3)[name]), "another layer does not shift the draws of the first"
    assert not np.array_equal(small.initial(3)["readout.weight"], small.initial(4)["readout.weight"])


@pytest.mark.parametrize(("cell", "blocks"), [(RNN(hidden=6), 1), (LSTM(hidden=6), 4), (GRU(hidden=6), 3)])
def test_each_gate_starts_orthogonal_and_within_glorots_bound(cell: Cell, blocks: int) -> None:
    start = network(cell, 2, 1).initial(0)
    for block in np.split(start["layers.0.forward.weight_hh"], blocks):
        np.testing.assert_allclose(block @ block.T, np.eye(6), atol=1e-14)
    bound = np.sqrt(6 / (2 + 6))
    weight = start["layers.0.forward.weight_ih"]
    assert 0.5 * bound < np.abs(weight).max() <= bound


BACKENDS: list[Backend] = [TorchBackend(), JaxBackend()]
TASKS: list[Task] = [Adding(T=30, markers="pascanu"), Copy(delay=6, symbols=2, alphabet=3, variable=True)]
CASES = [
    (RNN(hidden=4), NetworkSpec()),
    (LSTM(hidden=4), NetworkSpec(layers=2)),
    (GRU(hidden=4), NetworkSpec(layers=2, bidirectional=True, learned_state=True)),
]


def inspect(
    backend: Backend, task: Task, cell: Cell, spec: NetworkSpec, batch: Batch, length: int, masked: bool
) -> Inspection:
    net = Network(cell, spec, task.n_in, task.n_out, length, task.readout == "last", masked)
    params = {n: stream(6, n).normal(0.0, 0.5, param.shape) for n, param in net.parameters().items()}
    trainer = backend.trainer(Program(task, net, SGD(lr=0.1)), "cpu", "float64", "reference")
    trainer.load(TrainState(params))
    return trainer.inspect(batch, 0.1)


def batch_of(task: Task) -> Batch:
    batch = task.open(0, 0, DataSpec(batch_size=6), 6).batch("train", 0).cast("float64")
    assert len(set(batch.lengths.tolist())) > 1
    assert batch.lengths.min() < task.length
    return batch


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(("cell", "spec"), CASES, ids=["rnn", "stacked", "bidirectional"])
def test_padding_has_no_influence(cell: Cell, spec: NetworkSpec, task: Task, backend: Backend) -> None:
    batch = batch_of(task)
    outside = np.arange(task.length)[:, None] >= batch.lengths
    filled = np.where(outside[..., None], 123.0, batch.inputs)
    clean = inspect(backend, task, cell, spec, batch, task.length, masked=True)
    dirty = inspect(
        backend, task, cell, spec, Batch(filled, batch.targets, batch.mask, batch.lengths), task.length, True
    )
    assert clean.loss == dirty.loss
    for name, gradient in clean.gradients.items():
        assert gradient.tobytes() == dirty.gradients[name].tobytes(), name


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
@pytest.mark.parametrize(("cell", "spec"), CASES, ids=["rnn", "stacked", "bidirectional"])
def test_a_padded_batch_is_its_sequences_alone(cell: Cell, spec: NetworkSpec, task: Task) -> None:
    """Each sequence on its own, cut to its length, in a network that knows nothing of masks."""
    batch = batch_of(task)
    together = [inspect(backend, task, cell, spec, batch, task.length, masked=True) for backend in BACKENDS]
    loss, weight = 0.0, 0.0
    gradients: dict[str, NDArray] = {}
    for row, length in enumerate(batch.lengths.tolist()):
        one = batch.take(slice(row, row + 1))
        each = task.readout == "each"
        cut = Batch(
            one.inputs[:length],
            one.targets[:length] if each else one.targets,
            one.mask[:length] if each else one.mask,
            one.lengths,
        )
        alone = inspect(TorchBackend(), task, cell, spec, cut, length, masked=False)
        share = float(cut.mask.sum())
        loss, weight = loss + share * alone.loss, weight + share
        for name, gradient in alone.gradients.items():
            gradients[name] = gradients.get(name, 0.0) + share * gradient
        for found in together:
            outputs = found.outputs[:length, row] if each else found.outputs[row]
            np.testing.assert_allclose(
                outputs, alone.outputs[:, 0] if each else alone.outputs[0], rtol=1e-12, atol=1e-14
            )
    for found in together:
        assert found.loss == pytest.approx(loss / weight, rel=1e-13)
        for name, gradient in gradients.items():
            assert measure(gradient / weight, found.gradients[name]).differences <= 1e-12, name


@pytest.mark.parametrize("cell", [RNN(hidden=4), LSTM(hidden=4), GRU(hidden=4)])
def test_the_backward_direction_reads_the_sequence_turned_round(cell: Cell) -> None:
    task = Copy(delay=4, symbols=2, alphabet=3)
    spec = NetworkSpec(bidirectional=True)
    net = Network(cell, spec, task.n_in, task.n_out, task.length, read_last=False)
    params = net.initial(0)
    for name in cell.parameters(task.n_in):
        params[f"layers.0.backward.{name}"] = params[f"layers.0.forward.{name}"]
    batch = task.open(0, 0, DataSpec(batch_size=3), 3).batch("train", 0)
    turned = Batch(batch.inputs[::-1].copy(), batch.targets, batch.mask, batch.lengths)
    program = Program(task, net, SGD(lr=0.1))
    _, _, states = NumpyBackend().forward(program, params, {}, batch)
    _, _, mirrored = NumpyBackend().forward(program, params, {}, turned)
    for state in cell.states():
        there, back = f"layers.0.forward.{state.name}", f"layers.0.backward.{state.name}"
        np.testing.assert_allclose(mirrored[there], states[back][::-1], rtol=1e-14)
        np.testing.assert_allclose(mirrored[back], states[there][::-1], rtol=1e-14)


@pytest.mark.parametrize("backend", [TorchBackend(), JaxBackend()], ids=lambda backend: backend.name)
def test_an_easier_batch_needs_a_network_that_masks(backend: Backend) -> None:
    task = Copy(delay=6, symbols=2, alphabet=2)
    batch = task.open(0, 0, DataSpec(batch_size=2), 4).batch("train", 0, 0.5).cast("float64")
    assert int(batch.lengths.max()) < task.length
    for masked in (False, True):
        network = Network(RNN(hidden=3), NetworkSpec(), task.n_in, task.n_out, task.length, False, masked)
        trainer = backend.trainer(Program(task, network, SGD(lr=0.1)), "cpu", "float64", "reference")
        trainer.load(TrainState(network.initial(0)))
        if masked:
            assert np.isfinite(trainer.inspect(batch, 0.1).loss)
        else:
            for use in (lambda: trainer.inspect(batch, 0.1), lambda: trainer.train([batch], [0.1])):  # noqa: B023
                with pytest.raises(BadInput, match="masked"):
                    use()
