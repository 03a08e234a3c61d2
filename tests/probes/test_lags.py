"""Gradients by distance in time: against a loop with a copy of every parameter at every step, and known answers."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from rnnbench.arrays import NDArray
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network, within
from rnnbench.cells.rnn import RNN
from rnnbench.objectives import loss_terms
from rnnbench.probes import lags as module
from rnnbench.probes.base import Look
from rnnbench.probes.lags import Lags
from rnnbench.spec import NetworkSpec
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.tasks.copying import Copy

MakeLook = Callable[..., Look]
ONE, DEEP = NetworkSpec(), NetworkSpec(layers=2, bidirectional=True, learned_state=True)
STACKED, BOTH_WAYS = NetworkSpec(layers=2), NetworkSpec(bidirectional=True)
ADDING = Adding(T=9)
COPY = Copy(delay=5, symbols=2)
RECALL = Copy(delay=5, symbols=2, loss_over="recall")
SEVERAL_LENGTHS = Adding(T=20, markers="pascanu")
H = 3


def measured(look: Look, probe: Lags) -> tuple[dict[str, NDArray], dict[str, NDArray], dict[str, NDArray]]:
    """Return shares, log-norms and log-norms of what lies beyond [lag] by parameter."""
    found: dict[str, dict[str, NDArray]] = {kind.name: {} for kind in Lags.signals}
    for signal in probe.measure(look):
        found[signal.kind][signal.of] = signal.values
    return found["lags.share"], found["lags.log_norm"], found["lags.beyond_log_norm"]


def parts(look: Look, followed: Sequence[int]) -> dict[str, NDArray]:
    """Return the vectors [lag entry] of every recurrent parameter, one sequence and one loss after another.

    Each sequence runs alone, cut to its own length; every step of every scope has parameters of its own, whose
    gradients autograd keeps apart.
    """
    network: Network = look.program.network
    task, batch, xp = look.program.task, look.batch, TorchOps()
    cell = network.cell
    T = network.length
    plain = {name: torch.tensor(value) for name, value in look.params.items()}
    found: dict[str, NDArray] = {}
    for b in range(batch.size):
        length = int(batch.lengths[b])
        copies: dict[tuple[str, int], torch.Tensor] = {}
        below = list(torch.tensor(batch.inputs[:length, b : b + 1]))
        ends: list[torch.Tensor] = []
        for layer in range(network.spec.layers):
            tops: list[list[torch.Tensor]] = [[] for _ in range(length)]
            ends = []
            for scope in network.scopes():
                if not scope.name.startswith(f"layers.{layer}."):
                    continue
                local = within(plain, scope.name)
                states = network.start(xp, local, 1)
                order = range(length - 1, -1, -1) if scope.reverse else range(length)
                for t in order:
                    own = {name: value.clone().requires_grad_() for name, value in local.items()}
                    copies |= {(f"{scope.name}.{name}", t): value for name, value in own.items() if "init" not in name}
                    u = cell.project(xp, own, below[t])
                    states = cell.step(xp, own, states, u, Context(t, None, True))
                    tops[t].append(states["h"])
                ends.append(states["h"])
            below = [torch.cat(each, dim=-1) for each in tops]
        leaves = list(copies.values())
        target = torch.tensor(batch.targets[..., b : b + 1, :] if task.loss == "mse" else batch.targets[..., b : b + 1])
        for end in followed if task.readout == "each" else [length - 1]:
            each = task.readout == "each"
            top = below[end] if each else torch.cat(ends, dim=-1)
            outputs = network.read(xp, plain, top)
            term = loss_terms(xp, task.loss, outputs, target[end] if each else target)
            weight = batch.mask[end, b] if each else batch.mask[b]
            loss = float(weight) / float(batch.mask.sum()) * term.sum()
            gradients = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
            for (name, t), gradient in zip(copies, gradients, strict=True):
                size = look.params[name].size
                rows = found.setdefault(name, np.zeros((T, size)))
                lag = t if not each and ".backward." in name else abs(end - t)
                if gradient is not None:
                    rows[lag] += gradient.numpy().reshape(-1)
    return found


def check(look: Look, followed: Sequence[int]) -> None:
    probe = Lags(loss_steps=3, segment=4)
    shares, log_norms, beyond = measured(look, probe)
    truth = parts(look, followed)
    assert set(shares) == set(log_norms) == set(beyond) == set(truth)
    for name, vectors in truth.items():
        whole = vectors.sum(axis=0)
        expected = vectors @ whole / (whole @ whole)
        # float64 sums of at most a few hundred terms; a share is relative to one by itself
        np.testing.assert_allclose(shares[name], expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=name)
        norms = np.linalg.norm(vectors, axis=1)
        np.testing.assert_array_equal(np.isneginf(log_norms[name]), norms == 0, err_msg=name)
        seen = norms > 0
        np.testing.assert_allclose(log_norms[name][seen], np.log(norms[seen]), rtol=0, atol=1e-9, err_msg=name)
        assert abs(shares[name].sum() - 1) < 1e-9
        rests = np.linalg.norm(np.cumsum(vectors[::-1], axis=0)[::-1], axis=1)
        np.testing.assert_array_equal(np.isneginf(beyond[name]), rests == 0, err_msg=name)
        seen = rests > 0
        np.testing.assert_allclose(beyond[name][seen], np.log(rests[seen]), rtol=0, atol=1e-9, err_msg=name)


CASES = {
    "adding": (ADDING, ()),
    "copy": (COPY, (2, 5, 8)),  # 9 steps, all with a loss
    "recall": (RECALL, (7, 8)),  # only two with one
    "several lengths": (SEVERAL_LENGTHS, ()),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("network", [ONE, DEEP], ids=["one", "deep"])
@pytest.mark.parametrize("cell", [RNN(hidden=H), LSTM(hidden=H), GRU(hidden=H)], ids=lambda cell: cell.name)
def test_parts_are_those_of_an_unrolled_loop(make_look: MakeLook, cell: Cell, network: NetworkSpec, case: str) -> None:
    task, followed = CASES[case]
    check(make_look(task, cell, network=network), followed)


@pytest.mark.parametrize(
    ("cell", "network", "case"),
    [(LSTM(hidden=H), STACKED, "copy"), (GRU(hidden=H), ONE, "adding"), (RNN(hidden=H), BOTH_WAYS, "several lengths")],
    ids=["lstm", "gru", "rnn"],
)
def test_parts_are_the_same_on_jax(make_look: MakeLook, cell: Cell, network: NetworkSpec, case: str) -> None:
    task, followed = CASES[case]
    check(make_look(task, cell, network=network, backend="jax"), followed)


@pytest.mark.parametrize("case", ["adding", "copy"])
def test_a_lag_that_is_one_off_is_noticed(make_look: MakeLook, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    stretches = module._stretches
    monkeypatch.setattr(
        module, "_stretches", lambda T, ends, behind: stretches(T, tuple(max(end - 1, 0) for end in ends), behind)
    )
    task, followed = CASES[case]
    with pytest.raises(AssertionError):
        check(make_look(task, RNN(hidden=H)), followed)


def test_a_loss_step_that_is_left_out_is_noticed(make_look: MakeLook) -> None:
    with pytest.raises(AssertionError):
        check(make_look(COPY, RNN(hidden=H)), (2, 8))


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("task", [Adding(T=120), Copy(delay=110, symbols=5)], ids=["end", "each"])
@pytest.mark.parametrize("weight", [1e-6, 1e6])
def test_lags_beyond_a_float(make_look: MakeLook, task: Task, weight: float, backend: str) -> None:
    """A tanh unit that stands at 0 has slope 1, so the bias's part of lag k is that of lag 0 times weight**k."""
    look = make_look(
        task,
        RNN(hidden=1),
        backend=backend,
        params={
            "layers.0.forward.weight_ih": np.zeros((1, task.n_in)),
            "layers.0.forward.weight_hh": np.full((1, 1), weight),
            "readout.weight": np.linspace(-1.0, 1.5, task.n_out)[:, None],
        },
    )
    shares, log_norms, beyond = measured(look, Lags(loss_steps=1))
    found, share = log_norms["layers.0.forward.bias"], shares["layers.0.forward.bias"]
    lags = np.arange(task.length)
    np.testing.assert_allclose(found, found[0] + lags * np.log(weight), rtol=1e-12, atol=1e-9)
    assert np.abs(found).max() > 1600  # a float64 ends at exp(-745) and exp(710)
    # a geometric series from each lag on: its largest part, which is the nearest or the farthest, and little more
    largest = found if weight < 1 else np.full_like(found, found[-1])
    more = np.log1p(-(1e-6 ** (task.length - lags))) - np.log1p(-1e-6)
    np.testing.assert_allclose(beyond["layers.0.forward.bias"], largest + more, rtol=1e-12, atol=1e-9)
    # a geometric series; what is below 1e-308 of the whole is no share at all
    near = lags if weight < 1 else lags[::-1]
    expected = (1 - 1e-6) * 10.0 ** (-6 * np.minimum(near, 50))
    np.testing.assert_allclose(share[near < 50], expected[near < 50], rtol=1e-9)
    assert (share[near > 60] == 0).all()
    assert abs(share.sum() - 1) < 1e-9
    # the state never leaves 0, so nothing of the gradient passes through the recurrent weight
    assert np.isneginf(log_norms["layers.0.forward.weight_hh"]).all()
    assert np.isneginf(beyond["layers.0.forward.weight_hh"]).all()
    assert np.isnan(shares["layers.0.forward.weight_hh"]).all()


def test_parameters_in_pieces_come_to_the_same(make_look: MakeLook, monkeypatch: pytest.MonkeyPatch) -> None:
    look = make_look(COPY, RNN(hidden=H))
    whole = measured(look, Lags(loss_steps=3))
    entries = sum(look.params[name].size for name in whole[0])
    # entries, of T times the losses that are followed: a parameter of 3 in 4 pieces leaves one with nothing in it
    monkeypatch.setattr(module, "MOST", 9 * 3 * -(-entries // 4))
    calls = keys_computed(look, monkeypatch)
    pieces = measured(look, Lags(loss_steps=3))
    assert len(calls) == 4
    assert len(set(calls)) == 1  # compiled once
    for one, other in zip(whole, pieces, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-12, atol=1e-15)


def keys_computed(look: Look, monkeypatch: pytest.MonkeyPatch) -> list[Hashable]:
    """Note the key of each computation from here on."""
    calls: list[Hashable] = []
    compute = type(look.lab).compute

    def counted(self: Any, key: Hashable, *rest: Any) -> Any:
        calls.append(key)
        return compute(self, key, *rest)

    monkeypatch.setattr(type(look.lab), "compute", counted)
    return calls


def test_what_four_replays_cannot_hold_has_fewer_losses_followed(
    make_look: MakeLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = make_look(COPY, RNN(hidden=H))
    wanted = measured(look, Lags(loss_steps=2))
    entries = sum(look.params[name].size for name in wanted[0])
    monkeypatch.setattr(module, "MOST", -(-9 * 2 * entries // 4))  # of nine losses, two
    calls = keys_computed(look, monkeypatch)
    found = measured(look, Lags(loss_steps=9))
    assert len(calls) <= 4
    for one, other in zip(wanted, found, strict=True):
        for name, values in one.items():
            np.testing.assert_allclose(other[name], values, rtol=1e-12, atol=1e-15)


def test_what_one_loss_does_not_leave_room_for_is_told_by_every_kth_row(
    make_look: MakeLook, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = make_look(ADDING, LSTM(hidden=4))
    truth = parts(look, ())
    network = look.program.network
    # rows of 16: every third leaves six of them
    monkeypatch.setattr(module, "MOST", -(-9 * module._entries(network, 3) // 4))
    assert module._entries(network, 3) == 6 * (2 + 4) + 16
    calls = keys_computed(look, monkeypatch)
    shares, log_norms, beyond = measured(look, Lags())
    assert len(calls) == 4
    for name, vectors in truth.items():
        shape = look.params[name].shape
        rows = vectors.reshape(len(vectors), *shape)[:, ::3] if len(shape) > 1 else vectors
        vectors = rows.reshape(len(vectors), -1)
        scale = 0.5 * np.log(16 / 6) if len(shape) > 1 else 0.0
        whole = vectors.sum(axis=0)
        expected = vectors @ whole / (whole @ whole)
        np.testing.assert_allclose(shares[name], expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=name)
        assert abs(shares[name].sum() - 1) < 1e-9
        rests = np.cumsum(vectors[::-1], axis=0)[::-1]
        with np.errstate(divide="ignore"):
            for found, those in ((log_norms, vectors), (beyond, rests)):
                logs = np.log(np.linalg.norm(those, axis=1)) + scale
                np.testing.assert_allclose(found[name], logs, rtol=0, atol=1e-9, err_msg=name)
    monkeypatch.setattr(module, "MOST", 1)  # never less than a row, and never more than so many replays
    calls.clear()
    measured(look, Lags())
    assert len(calls) == 4


@pytest.mark.parametrize("value", [np.nan, 1e300])
def test_a_diverged_model_has_no_numbers(make_look: MakeLook, value: float) -> None:
    look = make_look(ADDING, RNN(hidden=H, activation="relu"))
    for name in look.params:
        look.params[name][:] = value
    shares, log_norms, beyond = measured(look, Lags())
    for name, values in shares.items():
        assert np.isnan(values).all()
        assert np.isnan(log_norms[name]).any()
        assert np.isnan(beyond[name]).any()
