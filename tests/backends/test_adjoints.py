"""dL/dstate at every t, on both backends: against an unrolled loop, and where theory knows the answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Backend, Inspection, Program, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.parity import measure
from rnnbench.spec import DataSpec, NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch, Task
from rnnbench.tasks.copying import Copy
from rnnbench.techniques.update.optimizers import SGD
from rnnbench.xp import Arrays, Ops

BACKENDS: list[Backend] = [TorchBackend(), JaxBackend()]
H = 4


def inspect(backend: Backend, task: Task, network: Network, params: Mapping[str, NDArray], batch: Batch) -> Inspection:
    trainer = backend.trainer(Program(task, network, SGD(lr=0.1)), "cpu", "float64", "reference")
    trainer.load(TrainState(dict(params)))
    return trainer.inspect(batch, 0.1)


def build(task: Task, cell: Cell, spec: NetworkSpec) -> Network:
    last, variable = task.readout == "last", task.variable_length
    return Network(cell, spec, task.n_in, task.n_out, task.length, last, variable)


def one_step(cell: Cell, p: Mapping[str, torch.Tensor], x: torch.Tensor, states: Mapping[str, torch.Tensor]) -> Any:
    """The equations once more, by hand, for the cells with one bias and tanh, or torch's GRU with two."""
    h = states["h"]
    if isinstance(cell, LSTM):
        i, f, g, o = (x @ p["weight_ih"].T + h @ p["weight_hh"].T + p["bias"]).chunk(4, dim=-1)
        c = torch.sigmoid(f) * states["c"] + torch.sigmoid(i) * torch.tanh(g)
        return {"c": c, "h": torch.sigmoid(o) * torch.tanh(c)}
    if isinstance(cell, GRU):
        a_r, a_z, a_n = (x @ p["weight_ih"].T + p["bias_ih"]).chunk(3, dim=-1)
        b_r, b_z, b_n = (h @ p["weight_hh"].T + p["bias_hh"]).chunk(3, dim=-1)
        z = torch.sigmoid(a_z + b_z)
        return {"h": (1 - z) * torch.tanh(a_n + torch.sigmoid(a_r + b_r) * b_n) + z * h}
    return {"h": torch.tanh(x @ p["weight_ih"].T + h @ p["weight_hh"].T + p["bias"])}


def unrolled(
    task: Task, cell: Cell, spec: NetworkSpec, params: Mapping[str, NDArray], batch: Batch
) -> tuple[float, dict[str, NDArray], dict[str, NDArray]]:
    """Return loss, parameters' gradients and adjoints by a plain loop in torch over layers, directions and steps.

    A state that is handed on is a node of its own, so that its gradient is the total derivative by that state with the
    others of the same step held: for an LSTM, dL/dc_t does not run through h_t.
    """
    p = {name: torch.tensor(value, requires_grad=True) for name, value in params.items()}
    T, B = batch.inputs.shape[:2]
    nodes: dict[str, list[Any]] = {}
    ends: list[torch.Tensor] = []
    below: list[Any] = list(torch.tensor(batch.inputs))
    for layer in range(spec.layers):
        tops: list[Any] = [[] for _ in range(T)]
        ends = []
        for way in ("forward", "backward")[: 1 + spec.bidirectional]:
            prefix = f"layers.{layer}.{way}."
            own = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
            start = torch.zeros((B, H), dtype=torch.float64)
            states = {s.name: own.get(f"initial.{s.name}", start) + start for s in cell.states()}
            for t in range(T) if way == "forward" else reversed(range(T)):
                new = one_step(cell, own, below[t], states)
                inside = torch.tensor(t < batch.lengths)[:, None]
                states = {name: torch.where(inside, new[name], states[name]).clone() for name in states}
                for name, value in states.items():
                    value.retain_grad()
                    nodes.setdefault(prefix + name, [None] * T)[t] = value
                tops[t].append(states["h"])
            ends.append(states["h"])
        below = [torch.cat(parts, dim=-1) for parts in tops]
    mask = torch.tensor(batch.mask)
    if task.readout == "last":
        outputs = torch.cat(ends, dim=-1) @ p["readout.weight"].T + p["readout.bias"]
        terms = ((outputs - torch.tensor(batch.targets)) ** 2).mean(dim=-1)
    else:
        outputs = torch.stack(below) @ p["readout.weight"].T + p["readout.bias"]
        logs = outputs - torch.logsumexp(outputs, dim=-1, keepdim=True)
        terms = -torch.gather(logs, -1, torch.tensor(batch.targets)[..., None])[..., 0]
    loss = (mask * terms).sum() / mask.sum()
    loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation lacks
    adjoints = {
        name: np.stack([np.zeros((B, H)) if node.grad is None else node.grad.numpy() for node in row])
        for name, row in nodes.items()
    }
    return float(loss.detach()), {name: value.grad.numpy() for name, value in p.items()}, adjoints


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize(
    "task",
    [
        Copy(delay=4, symbols=2, alphabet=3),
        Copy(delay=5, symbols=2, alphabet=3, variable=True),
        Adding(T=8),
        Adding(T=30, markers="pascanu"),
    ],
    ids=["each", "each-masked", "last", "last-masked"],
)
@pytest.mark.parametrize(
    ("cell", "spec"),
    [
        (RNN(hidden=H), NetworkSpec()),
        (LSTM(hidden=H), NetworkSpec()),
        (GRU(hidden=H), NetworkSpec(learned_state=True)),
        (LSTM(hidden=H), NetworkSpec(layers=2, bidirectional=True, learned_state=True)),
    ],
    ids=["rnn", "lstm", "gru", "lstm-stacked-bidirectional"],
)
def test_injection_gives_an_unrolled_loops_derivatives(
    cell: Cell, spec: NetworkSpec, task: Task, backend: Backend
) -> None:
    network = build(task, cell, spec)
    params = {n: stream(4, n).normal(0.0, 0.4, param.shape) for n, param in network.parameters().items()}
    batch = task.open(0, 0, DataSpec(batch_size=5), 5).batch("train", 0).cast("float64")
    assert (len(set(batch.lengths.tolist())) > 1) == task.variable_length
    found = inspect(backend, task, network, params, batch)
    loss, gradients, adjoints = unrolled(task, cell, spec, params, batch)
    assert found.loss == pytest.approx(loss, rel=1e-13)
    assert set(found.gradients) == set(gradients)
    assert set(found.adjoints) == set(adjoints)
    for name, gradient in gradients.items():
        assert measure(gradient, found.gradients[name]).differences <= 1e-12, name
    for name, adjoint in adjoints.items():
        # a few hundred roundings along the longest path, and adjoints that stem from differences of larger terms
        assert np.all(measure(adjoint, found.adjoints[name], timed=True).differences <= 1e-12), name


class Linear(RNN):
    """h_t = W h_{t-1} + W_ih x_t + b."""

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return {"h": u + xp.linear(states["h"], params["weight_hh"])}


Matrix = Callable[[np.random.Generator], NDArray]


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
@pytest.mark.parametrize(
    "matrix",
    [
        lambda rng: rng.normal(0.0, 0.4, (H, H)),
        lambda rng: np.triu(rng.normal(0.0, 1.0, (H, H)), 1) + 0.9 * np.eye(H),
        lambda rng: np.linalg.qr(rng.normal(size=(H, H)))[0],
    ],
    ids=["random", "non-normal", "orthogonal"],
)
def test_a_linear_network_has_powers_of_its_matrix(matrix: Matrix, backend: Backend) -> None:
    """dL/dh_t = (W^T)^(T-1-t) v with t counted from 0 and v the derivative by the last state."""
    task = Adding(T=30)
    network = build(task, Linear(hidden=H), NetworkSpec())
    params = network.initial(0)
    params["layers.0.forward.weight_hh"] = W = matrix(stream(0, "tests/matrix"))
    batch = task.open(0, 0, DataSpec(batch_size=3), 3).batch("train", 0).cast("float64")
    adjoints = inspect(backend, task, network, params, batch).adjoints["layers.0.forward.h"]
    expected = adjoints[-1]
    for t in reversed(range(30)):
        assert measure(expected, adjoints[t]).differences <= 1e-12, t
        expected = expected @ W


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_an_orthogonal_network_keeps_its_norm_over_1000_steps(backend: Backend) -> None:
    task = Adding(T=1000)
    network = build(task, Linear(hidden=H), NetworkSpec())
    batch = task.open(0, 0, DataSpec(batch_size=2), 2).batch("train", 0).cast("float64")
    adjoints = inspect(backend, task, network, network.initial(0), batch).adjoints["layers.0.forward.h"]
    norms = np.linalg.norm(adjoints, axis=-1)
    np.testing.assert_allclose(norms, np.broadcast_to(norms[-1], norms.shape), rtol=1e-12)


@pytest.mark.parametrize("backend", BACKENDS, ids=lambda backend: backend.name)
def test_an_lstm_without_recurrent_weights_multiplies_its_forget_gates(backend: Backend) -> None:
    """dc_t/dc_s = f_{s+1} ... f_t where W_hh = 0; and nothing flows back through h."""
    task = Adding(T=12)
    network = build(task, LSTM(hidden=H), NetworkSpec())
    params = network.initial(0)
    params["layers.0.forward.weight_hh"][:] = 0.0
    batch = task.open(0, 0, DataSpec(batch_size=3), 3).batch("train", 0).cast("float64")
    found = inspect(backend, task, network, params, batch)
    gates = batch.inputs @ params["layers.0.forward.weight_ih"].T + params["layers.0.forward.bias"]
    forget = 1.0 / (1.0 + np.exp(-gates[..., H : 2 * H]))
    output = 1.0 / (1.0 + np.exp(-gates[..., 3 * H :]))
    h, c = found.adjoints["layers.0.forward.h"], found.adjoints["layers.0.forward.c"]
    assert np.all(h[:-1] == 0.0)
    assert np.all(c[-1] == 0.0)  # the last cell state is read through h only, which its own injection does not reach
    last = found.states["layers.0.forward.c"][-1]
    expected = h[-1] * output[-1] * (1.0 - np.tanh(last) ** 2)
    for t in reversed(range(11)):
        expected = expected * forget[t + 1]
        assert measure(expected, c[t]).differences <= 1e-12, t
