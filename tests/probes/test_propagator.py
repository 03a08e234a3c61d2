"""Jacobians of a network's step against equations written out by hand, and their products against known answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.base import Buffer, Cell, Context, Param, State
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.probes.base import Look, unpacked
from rnnbench.probes.propagator import Propagator, spaced
from rnnbench.probes.systems import Dynamics, System, chunk_steps, systems
from rnnbench.signals import Signals
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.xp import Arrays, Differentiable, Ops

MakeLook = Callable[..., Look]
BACKENDS = ("torch", "jax")
TASK = Adding(T=7)
SEVERAL_LENGTHS = Adding(T=20, markers="pascanu")
LAYER = "layers.0.forward"
NETWORKS = {
    "one": NetworkSpec(),
    "two": NetworkSpec(layers=2, learned_state=True),
    "both-ways": NetworkSpec(layers=2, bidirectional=True, learned_state=True),
}
CELLS: dict[str, Cell] = {
    "tanh": RNN(hidden=4),
    "relu": RNN(hidden=4, activation="relu", biases=2),
    "lstm": LSTM(hidden=4, biases=2),
    "peepholes": LSTM(hidden=4, peepholes=True),
    "gru": GRU(hidden=4),
    "gru, reset before": GRU(hidden=4, reset="before", biases=1),
}


class Linear(Cell):
    """h_t = W h_{t-1} + V x_t, of which everything is known."""

    name = "linear"

    def parameters(self, n_in: int) -> dict[str, Param]:
        H = self.hidden
        return {"W": Param((H, H), recurrent=("h",)), "V": Param((H, n_in))}

    def states(self) -> tuple[State, ...]:
        return (State("h", self.hidden, output=True),)

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return {"h": xp.linear(states["h"], params["W"]) + xp.linear(u, params["V"])}


def _count(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
    return np.arange(1.0, shape[0] + 1)[:, None] * np.ones(shape)


class Clocked(Linear):
    """h_t = (1 + t) W h_{t-1}: the gain of each t is looked up."""

    name = "clocked"

    def buffers(self, n_in: int, length: int) -> dict[str, Buffer]:
        return {"gain": Buffer((length, self.hidden), _count)}

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return {"h": context.buffers["gain"][context.t] * xp.linear(states["h"], params["W"])}


def drawn(network: Network, spread: float = 0.6) -> dict[str, NDArray]:
    """Draw every parameter, biases and initial states too: nothing is zero by default."""
    named = network.parameters()
    return {name: stream(0, f"test/{name}").normal(0.0, spread, param.shape) for name, param in named.items()}


def looked(
    make_look: MakeLook, cell: Cell, backend: str = "torch", spec: NetworkSpec = NETWORKS["one"], task: Task = TASK
) -> Look:
    network = Network(cell, spec, task.n_in, task.n_out, task.length, task.readout == "last", task.variable_length)
    return make_look(task, cell, backend=backend, network=spec, params=drawn(network), sequences=3)


def linear(make_look: MakeLook, weight: NDArray, length: int, backend: str = "torch") -> Look:
    params = {f"{LAYER}.W": weight, f"{LAYER}.V": np.zeros((len(weight), TASK.n_in))}
    return make_look(Adding(T=length), Linear(hidden=len(weight)), backend=backend, params=params, sequences=2)


def one_step(
    cell: Cell, p: Mapping[str, torch.Tensor], x: torch.Tensor, before: list[torch.Tensor]
) -> list[torch.Tensor]:
    """Write a step of each cell out, on vectors; states as the cell orders them."""
    a, late = p["weight_ih"] @ x + p.get("bias", p.get("bias_ih", torch.zeros(()))), p.get("bias_hh")
    U, h = p["weight_hh"], before[-1]
    b = torch.zeros(len(U), dtype=h.dtype) if late is None else late
    if isinstance(cell, RNN):
        summed = a + U @ h + b
        return [torch.tanh(summed) if cell.activation == "tanh" else summed.clamp(min=0.0)]
    if isinstance(cell, LSTM):
        c = before[0]
        i, f, g, o = (a + U @ h + b).chunk(4)
        if cell.peepholes:
            i, f = i + p["peephole_i"] * c, f + p["peephole_f"] * c
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        o = o + p["peephole_o"] * c if cell.peepholes else o
        return [c, torch.sigmoid(o) * torch.tanh(c)]
    assert isinstance(cell, GRU)
    (a_r, a_z, a_n), (U_r, U_z, U_n), (b_r, b_z, b_n) = a.chunk(3), U.chunk(3), b.chunk(3)
    r, z = torch.sigmoid(a_r + U_r @ h + b_r), torch.sigmoid(a_z + U_z @ h + b_z)
    n = torch.tanh(a_n + r * (U_n @ h + b_n) if cell.reset == "after" else a_n + U_n @ (r * h) + b_n)
    return [(1 - z) * n + z * h]


def by_hand(look: Look) -> dict[str, NDArray]:
    """Return each system's Jacobians [time batch n n] in its order of reading, by autodiff of a loop over sequences."""
    network: Network = look.program.network
    cell, T, B = network.cell, network.length, look.batch.size
    p = {name: torch.tensor(value) for name, value in look.params.items()}
    sizes = [state.size for state in cell.states()]
    n = sum(sizes)
    own = {
        scope.name: {k.removeprefix(scope.name + "."): v for k, v in p.items() if k.startswith(scope.name + ".")}
        for scope in network.scopes()
    }
    found = {system.name: np.zeros((T, B, system.size, system.size)) for system in systems(network)}
    for b in range(B):
        below = list(torch.tensor(look.batch.inputs[:, b]))
        starts: dict[
            str, list[torch.Tensor]
        ] = {}  # by scope, the whole state before each step, in the order of reading
        reads: dict[str, list[torch.Tensor]] = {}
        for layer in range(network.spec.layers):
            tops: list[list[torch.Tensor]] = [[] for _ in range(T)]
            for scope in (s for s in network.scopes() if s.name.startswith(f"layers.{layer}.")):
                local = own[scope.name]
                state = torch.cat([local.get(f"initial.{s.name}", torch.zeros(s.size).double()) for s in cell.states()])
                order = list(reversed(range(T))) if scope.reverse else list(range(T))
                starts[scope.name], reads[scope.name] = [], [below[t] for t in order]
                for t in order:
                    starts[scope.name].append(state)
                    if t < look.batch.lengths[b]:
                        state = torch.cat(one_step(cell, local, below[t], list(state.split(sizes))))
                    tops[t].append(state[-sizes[-1] :])
            below = [torch.cat(parts) for parts in tops]

        def step(state: torch.Tensor, names: list[str], x: torch.Tensor) -> torch.Tensor:
            after = []
            for name, part in zip(names, state.split(n), strict=True):
                new = one_step(cell, own[name], x, list(part.split(sizes)))
                after += new
                x = new[-1]
            return torch.cat(after)

        for system in systems(network):
            names = [scope.name for scope in system.scopes]
            for k in range(T):
                if (T - 1 - k if system.reverse else k) >= look.batch.lengths[b]:
                    found[system.name][k, b] = np.eye(system.size)
                    continue
                state = torch.cat([starts[name][k] for name in names])
                taken = partial(step, names=names, x=reads[names[0]][k])
                found[system.name][k, b] = torch.autograd.functional.jacobian(taken, state).numpy()
    return found


def own_jacobians(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    params, buffers, batch = unpacked(arrays)
    dynamics = Dynamics(xp, system, params, buffers)
    rows = dynamics.course(batch["inputs"], batch["lengths"])
    row = {name: x[2] for name, x in rows.items()}
    seeds = arrays["seeds"]
    return {
        "jacobians": dynamics.jacobians(rows),
        "forward": dynamics.forward(row, seeds),
        "backward": dynamics.backward(row, seeds),
    }


def jacobian_error(look: Look) -> float:
    """Return the largest relative error of a Jacobian, or of its products with vectors either way."""
    worst = 0.0
    wanted = by_hand(look)
    network: Network = look.program.network
    assert [system.name for system in systems(network)] == list(wanted)
    for system in systems(network):
        seeds = stream(0, "test/seeds").standard_normal((3, look.batch.size, system.size))
        key = ("test", look.key, system.name)
        got = look.lab.compute(key, partial(own_jacobians, system), {**look.arrays(), "seeds": seeds})
        exact = wanted[system.name]
        size = np.linalg.norm(exact, axis=(2, 3))
        worst = max(worst, float((np.linalg.norm(got["jacobians"] - exact, axis=(2, 3)) / size).max()))
        for name, equation in (("forward", "bij,mbj->mbi"), ("backward", "bij,mbi->mbj")):
            product = np.einsum(equation, exact[2], seeds)
            worst = max(worst, float(np.abs(got[name] - product).max() / np.abs(product).max()))
    return worst


@pytest.mark.parametrize("of", [*NETWORKS, "several lengths"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS)
def test_jacobians_in_torch(make_look: MakeLook, cell: Cell, of: str) -> None:
    task = SEVERAL_LENGTHS if of == "several lengths" else TASK
    assert jacobian_error(looked(make_look, cell, spec=NETWORKS.get(of, NETWORKS["one"]), task=task)) < 1e-12


@pytest.mark.parametrize(
    ("cell", "of"),
    [("tanh", "one"), ("relu", "two"), ("peepholes", "two"), ("gru", "both-ways"), ("lstm", "several lengths")],
)
def test_jacobians_in_jax(make_look: MakeLook, cell: str, of: str) -> None:
    task = SEVERAL_LENGTHS if of == "several lengths" else TASK
    assert jacobian_error(looked(make_look, CELLS[cell], "jax", NETWORKS.get(of, NETWORKS["one"]), task)) < 1e-12


def test_a_system_names_its_states_in_order(make_look: MakeLook) -> None:
    (whole,) = systems(looked(make_look, LSTM(hidden=2), spec=NETWORKS["two"]).program.network)
    assert [(part.name, part.low, part.high) for part in whole.parts] == [
        ("layers.0.forward.c", 0, 2),
        ("layers.0.forward.h", 2, 4),
        ("layers.1.forward.c", 4, 6),
        ("layers.1.forward.h", 6, 8),
    ]
    assert whole.size == 8
    each = systems(looked(make_look, LSTM(hidden=2), spec=NETWORKS["both-ways"]).program.network)
    assert [system.name for system in each] == [
        f"layers.{layer}.{way}" for layer in (0, 1) for way in ("forward", "backward")
    ]
    assert [system.reverse for system in each] == [False, True] * 2


@pytest.mark.parametrize(("limit", "steps"), [(8 * 16 * 2 * 5, 4), (8 * 16 * 2 * 4, 4), (1, 1)])
def test_chunks_are_powers_of_two_within_their_limit(
    make_look: MakeLook, monkeypatch: pytest.MonkeyPatch, limit: int, steps: int
) -> None:
    (system,) = systems(looked(make_look, RNN(hidden=4)).program.network)
    monkeypatch.setattr("rnnbench.probes.systems.CHUNK", limit)
    assert chunk_steps(system, 2) == steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_is_told_which_step_it_takes(make_look: MakeLook, backend: str) -> None:
    """Its Jacobians follow a gain that is looked up by t, whichever way it reads."""
    look = looked(make_look, Clocked(hidden=2), backend, NETWORKS["both-ways"])
    gains = np.arange(1.0, TASK.length + 1)
    for system in systems(look.program.network)[:2]:
        arrays = {**look.arrays(), "seeds": np.ones((1, 3, 2))}
        found = look.lab.compute(("clocked", system.name), partial(own_jacobians, system), arrays)["jacobians"]
        in_order = gains[::-1] if system.reverse else gains
        wanted = in_order[:, None, None, None] * look.params[f"{system.name}.W"]
        np.testing.assert_allclose(found, np.broadcast_to(wanted, found.shape), rtol=1e-14)


def measured(look: Look, probe: Propagator) -> Signals:
    return Signals(probe.measure(look))


def values(signals: Signals, kind: str, of: str = "network") -> NDArray:
    found = signals.one(f"propagator.{kind}", of)
    assert found is not None
    return found.values


def test_lags_are_spaced_evenly_on_a_logarithmic_scale() -> None:
    assert spaced(1, 8).tolist() == [1]
    assert spaced(10, 1).tolist() == [1, 10]
    assert spaced(1500, 1).tolist() == [1, 10, 100, 1000, 1500]
    assert spaced(12, 100).tolist() == list(range(1, 13))


@pytest.mark.parametrize("cell", ["peepholes", "relu"])
@pytest.mark.parametrize("of", [*NETWORKS, "several lengths"])
def test_products_of_the_jacobians(make_look: MakeLook, cell: str, of: str) -> None:
    """Norms, singular values and blocks against products of the Jacobians by hand; no number where there is no room."""
    task = SEVERAL_LENGTHS if of == "several lengths" else TASK
    look = looked(make_look, CELLS[cell], spec=NETWORKS.get(of, NETWORKS["one"]), task=task)
    signals = measured(look, Propagator(sequences=3, lags_per_decade=4))
    lags, origins = values(signals, "lags", "").astype(int), values(signals, "origins", "").astype(int)
    assert lags[-1] == task.length - 1
    assert origins[0] == 0
    for name, jacobians in by_hand(look).items():
        system = next(each for each in systems(look.program.network) if each.name == name)
        for b in range(3):
            length = int(look.batch.lengths[b])
            first, after = (task.length - length, task.length) if system.reverse else (0, length)
            for o, origin in enumerate(origins):
                for i, lag in enumerate(lags):
                    at = (o, i, b)
                    if origin + 1 < first or origin + lag >= after:
                        for kind in ("log_norm", "log_frobenius", "log_frobenius_error", "log_singular_values"):
                            assert np.isnan(values(signals, kind, name)[at]).all()
                        continue
                    product = np.eye(system.size)
                    for t in range(origin + 1, origin + lag + 1):
                        product = jacobians[t, b] @ product
                    exact = np.linalg.svd(product, compute_uv=False)
                    found = np.exp(values(signals, "log_singular_values", name)[at])
                    floor = np.finfo(float).eps * (system.size + lag) * exact[0]
                    seen = ~np.isnan(found)
                    # a value is given where it is above rounding, and is as good as rounding lets it be
                    assert (exact[seen] > 0.2 * floor).all() or exact[0] == 0
                    assert (exact[~seen] < 5 * floor).all()
                    np.testing.assert_allclose(found[seen], exact[seen], rtol=1e-12, atol=3 * floor)
                    np.testing.assert_allclose(np.exp(values(signals, "log_norm", name)[at]), exact[0], rtol=1e-12)
                    np.testing.assert_allclose(
                        np.exp(values(signals, "log_frobenius", name)[at]), np.linalg.norm(product), rtol=1e-12
                    )
                    assert values(signals, "log_frobenius_error", name)[at] == 0
                    for to in system.parts:
                        for source in system.parts:
                            block = product[to.low : to.high, source.low : source.high]
                            got = values(signals, "block_log_norm", f"{name}:{to.name}<{source.name}")[at]
                            np.testing.assert_allclose(np.exp(got), np.linalg.norm(block), rtol=1e-10, atol=floor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("normal", [True, False])
def test_a_linear_network_propagates_by_powers_of_its_weights(make_look: MakeLook, backend: str, normal: bool) -> None:
    draw = stream(1, "test/linear")
    weight = draw.standard_normal((6, 6)) / np.sqrt(6)
    weight = (weight + weight.T) / 2 if normal else weight + np.triu(np.full((6, 6), 1.5), 1)
    signals = measured(linear(make_look, weight, 60, backend), Propagator(origins=2))
    lags = values(signals, "lags", "").astype(int)
    for i, lag in enumerate(lags):
        exact = np.linalg.svd(np.linalg.matrix_power(weight, lag), compute_uv=False)
        found = np.exp(values(signals, "log_singular_values")[0, i])
        floor = np.finfo(float).eps * (6 + lag) * exact[0]
        np.testing.assert_allclose(found[:, 0], exact[0], rtol=1e-12)
        for row in found:
            # both computations round at the floor: 1e-9 can be asked of what is a billion times above it
            far = exact > 1e9 * floor
            np.testing.assert_allclose(row[far], exact[far], rtol=1e-9)
            assert np.isnan(row[exact < 0.1 * floor]).all()
            np.testing.assert_allclose(row[~np.isnan(row)], exact[~np.isnan(row)], rtol=1e-9, atol=2 * floor)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_cell_state_passes_through_its_forget_gates_alone(make_look: MakeLook, backend: str) -> None:
    """Without recurrent weights dc_{t+lag}/dc_t is the diagonal product of the gates between."""
    task = Adding(T=40)
    cell = LSTM(hidden=3)
    network = Network(cell, NetworkSpec(), task.n_in, task.n_out, task.length, read_last=True)
    params = drawn(network) | {f"{LAYER}.weight_hh": np.zeros((12, 3))}
    look = make_look(task, cell, backend=backend, params=params, sequences=2)
    signals = measured(look, Propagator())
    a = look.batch.inputs @ params[f"{LAYER}.weight_ih"].T + params[f"{LAYER}.bias"]
    logs = -np.log1p(np.exp(-a[..., 3:6]))  # ln f [time batch unit]
    found = values(signals, "block_log_norm", f"network:{LAYER}.c<{LAYER}.c")
    for o, origin in enumerate(values(signals, "origins", "").astype(int)):
        for i, lag in enumerate(values(signals, "lags", "").astype(int)):
            if origin + lag < task.length:
                through = logs[origin + 1 : origin + lag + 1].sum(axis=0)
                wanted = 0.5 * np.logaddexp.reduce(2 * through, axis=1)
                np.testing.assert_allclose(found[o, i], wanted, atol=1e-12 * lag)
    # h is read by nothing
    assert np.isneginf(values(signals, "block_log_norm", f"network:{LAYER}.c<{LAYER}.h")[0]).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_orthogonal_network_keeps_every_length(make_look: MakeLook, backend: str) -> None:
    weight = np.linalg.qr(stream(0, "test/orthogonal").standard_normal((5, 5)))[0]
    signals = measured(linear(make_look, weight, 1000, backend), Propagator(origins=1))
    found = values(signals, "log_singular_values")
    assert np.abs(found).max() < 1e-12
    assert found.shape[1] > 20


def test_a_product_far_below_the_smallest_float_has_its_logarithm(make_look: MakeLook) -> None:
    signals = measured(linear(make_look, 0.5 * np.eye(3), 2000), Propagator(origins=1))
    lags, found = values(signals, "lags", ""), values(signals, "log_singular_values")
    np.testing.assert_allclose(found, np.broadcast_to(lags[None, :, None, None] * np.log(0.5), found.shape), rtol=1e-13)
    slope = np.polyfit(lags, found[0, :, 0, 0], 1)[0]
    assert abs(slope - np.log(0.5)) < 1e-12


@pytest.mark.parametrize("exact_up_to", [512, 0])
def test_nothing_that_passes_is_an_exact_zero(make_look: MakeLook, exact_up_to: int) -> None:
    dead = {f"{LAYER}.bias": np.full(4, -100.0)}
    look = make_look(TASK, RNN(hidden=4, activation="relu"), params=dead, sequences=2)
    signals = measured(look, Propagator(origins=1, exact_up_to=exact_up_to))
    for kind in ("log_norm", "log_frobenius"):
        assert np.isneginf(values(signals, kind)).all()
    assert (values(signals, "log_frobenius_error") == 0).all()
    if exact_up_to:
        assert np.isneginf(values(signals, "log_singular_values")).all()


@pytest.mark.parametrize("exact_up_to", [512, 0])
def test_what_is_no_number_stays_none(make_look: MakeLook, exact_up_to: int) -> None:
    broken = {f"{LAYER}.weight_hh": np.full((4, 4), np.nan)}
    signals = measured(make_look(TASK, RNN(hidden=4), params=broken, sequences=2), Propagator(exact_up_to=exact_up_to))
    assert np.isnan(values(signals, "log_norm")).all()
    assert np.isnan(values(signals, "log_frobenius")).all()


def test_probing_a_large_state_states_its_error(make_look: MakeLook) -> None:
    """Over many rows the estimates scatter about the truth as their errors say; power iteration stays below."""
    task = Adding(T=12)
    cell = LSTM(hidden=6)
    network = Network(cell, NETWORKS["two"], task.n_in, task.n_out, task.length, read_last=True)
    look = make_look(task, cell, network=NETWORKS["two"], params=drawn(network), sequences=12)
    exact = measured(look, Propagator(sequences=12, origins=2))
    probed = measured(look, Propagator(sequences=12, origins=2, exact_up_to=0))
    assert probed.find("propagator.log_singular_values") == []
    truth, found, error = (
        values(exact, "log_frobenius"),
        values(probed, "log_frobenius"),
        values(probed, "log_frobenius_error"),
    )
    there = ~np.isnan(truth)
    np.testing.assert_array_equal(np.isnan(found), ~there)
    z = ((found - truth) / error)[there]
    assert 0.5 < np.sqrt(np.mean(z**2)) < 1.6
    assert np.abs(z).max() < 5
    assert (error[there] < 0.3).all()
    below = (values(probed, "log_norm") - values(exact, "log_norm"))[there]
    assert (below < 1e-12).all()
    assert (below > np.log(0.95)).all()
    for block in exact.things("propagator.block_log_norm"):
        a, b = values(exact, "block_log_norm", block)[there], values(probed, "block_log_norm", block)[there]
        np.testing.assert_array_equal(np.isneginf(a), np.isneginf(b))
        assert abs(np.mean((b - a)[np.isfinite(a)])) < 0.3 if np.isfinite(a).any() else True


@pytest.mark.parametrize("exact_up_to", [512, 0])
def test_torch_and_jax_agree(make_look: MakeLook, exact_up_to: int) -> None:
    probe = Propagator(exact_up_to=exact_up_to, directions=4, iterations=2, lags_per_decade=3)
    one, other = (measured(looked(make_look, LSTM(hidden=3), backend), probe) for backend in BACKENDS)
    assert [signal.name for signal in one] == [signal.name for signal in other]
    for a, b in zip(one, other, strict=True):
        if a.kind == "propagator.log_singular_values":  # relative to the largest, all that a product can hold
            top = np.exp(a.values[..., :1])
            np.testing.assert_allclose(np.exp(b.values) / top, np.exp(a.values) / top, atol=1e-13)
        else:
            np.testing.assert_allclose(b.values, a.values, atol=1e-9, rtol=0)


def test_what_is_asked_of_it_is_drawn_from_its_own_stream(make_look: MakeLook) -> None:
    look = looked(make_look, RNN(hidden=4))
    probe = Propagator(exact_up_to=0, directions=2)
    one, again = (values(measured(look, probe), "log_frobenius") for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_a_whole_model_has_no_states_to_follow(
    make_look: MakeLook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import torch\ndef build(n_in, n_out):\n    return torch.nn.Sequential(torch.nn.Linear(n_in, n_out))\n"
    (tmp_path / "propagator_model.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert Propagator.needs_cell
    assert list(Propagator().measure(make_look(TASK, None, model="propagator_model:build"))) == []
