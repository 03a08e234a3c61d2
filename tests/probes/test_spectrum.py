"""Lyapunov exponents against eigenvalues, determinants, and a loop over Jacobians; weights against known spectra."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.cells.base import Cell, Context, Param, State
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.errors import BadInput
from rnnbench.initialize import Orthogonal
from rnnbench.probes.base import Look
from rnnbench.probes.spectrum import LEADING, Spectrum, eigenvalues
from rnnbench.probes.systems import Dynamics, systems
from rnnbench.signals import Signals
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.xp import Arrays, Ops

MakeLook = Callable[..., Look]
BACKENDS = ("torch", "jax")
TASK = Adding(T=11)
SEVERAL_LENGTHS = Adding(T=20, markers="pascanu")
LAYER = "layers.0.forward"
TWO = NetworkSpec(layers=2, learned_state=True)
BOTH_WAYS = NetworkSpec(bidirectional=True, learned_state=True)


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


def looked(
    make_look: MakeLook, cell: Cell, backend: str = "torch", spec: NetworkSpec | None = None, task: Task = TASK
) -> Look:
    """Return a look at a network with every parameter drawn anew."""
    spec = spec or NetworkSpec()
    network = Network(cell, spec, task.n_in, task.n_out, task.length, task.readout == "last", task.variable_length)
    params = {n: stream(0, f"test/{n}").normal(0.0, 0.6, p.shape) for n, p in network.parameters().items()}
    return make_look(task, cell, backend=backend, network=spec, params=params, sequences=3)


def linear(make_look: MakeLook, weight: NDArray, length: int, backend: str = "torch") -> Look:
    params = {f"{LAYER}.W": weight, f"{LAYER}.V": np.zeros((len(weight), TASK.n_in))}
    return make_look(Adding(T=length), Linear(hidden=len(weight)), backend=backend, params=params, sequences=2)


def measured(look: Look, probe: Spectrum) -> Signals:
    return Signals(probe.measure(look))


def values(signals: Signals, kind: str, of: str = "network") -> NDArray:
    found = signals.one(f"spectrum.{kind}", of)
    assert found is not None
    return found.values


def step_jacobians(look: Look) -> dict[str, NDArray]:
    """Return each system's Jacobians [time batch n n] in reading order: one autodiff call a step and sequence."""
    xp = TorchOps()
    found = {}
    p, buffers = {k: xp.asarray(v) for k, v in look.params.items()}, dict(look.buffers)
    for system in systems(look.program.network):
        dynamics = Dynamics(xp, system, p, buffers)
        rows = dynamics.course(xp.asarray(look.batch.inputs), xp.asarray(look.batch.lengths))
        T, B, n = rows["before"].shape
        found[system.name] = np.zeros((T, B, n, n))
        for t in range(T):
            for b in range(B):
                row = {name: x[t, b : b + 1] for name, x in rows.items()}

                def after(state: torch.Tensor, row: Arrays = row, dynamics: Dynamics = dynamics) -> torch.Tensor:
                    return dynamics.step(state[None], row)[0]

                found[system.name][t, b] = torch.autograd.functional.jacobian(after, row["before"][0]).numpy()
    return found


def followed(jacobians: NDArray, start: NDArray, every: int = 1) -> NDArray:
    """Return ln |R_ii| [time rank] along one sequence's Jacobians [time n n], with a QR every so many steps."""
    basis, rates = start, []
    for t, jacobian in enumerate(jacobians, 1):
        basis = jacobian @ basis
        if t % every == 0 or t == len(jacobians):
            basis, r = np.linalg.qr(basis)
            with np.errstate(divide="ignore"):
                rates.append(np.log(np.abs(np.diag(r))))
    return np.array(rates)


def start_of(system: str, n: int, count: int) -> NDArray:
    return Orthogonal()(stream(0, f"probe/spectrum/{system}"), (n, count))


CASES: dict[str, tuple[Cell, NetworkSpec | None, Task, int | None]] = {
    "tanh": (RNN(hidden=5), None, TASK, None),
    "relu": (RNN(hidden=4, activation="relu"), None, TASK, 2),
    "lstm": (LSTM(hidden=3), TWO, TASK, None),
    "lstm, leading": (LSTM(hidden=4, peepholes=True), None, TASK, 3),
    "gru": (GRU(hidden=4), BOTH_WAYS, TASK, None),
    "gru, several lengths": (GRU(hidden=4), None, SEVERAL_LENGTHS, None),
    "rnn, both ways, several lengths": (RNN(hidden=4), BOTH_WAYS, SEVERAL_LENGTHS, 3),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_exponents_are_those_of_a_loop_over_jacobians(make_look: MakeLook, case: str, backend: str) -> None:
    cell, spec, task, count = CASES[case]
    look = looked(make_look, cell, backend, spec, task)
    signals = measured(look, Spectrum(exponents=count, sequences=3))
    exact = step_jacobians(look)
    assert signals.things("spectrum.exponents") == list(exact)
    for name, jacobians in exact.items():
        T, B, n, _ = jacobians.shape
        backward = ".backward" in name
        exponents, local = values(signals, "exponents", name), values(signals, "local", name)
        assert exponents.shape == (B, count or n)
        assert local.shape == (T, B)
        for b, length in enumerate(look.batch.lengths):
            inside = slice(T - length, T) if backward else slice(0, length)
            rates = followed(jacobians[inside, b], start_of(name, n, count or n))
            wanted = rates.mean(axis=0)
            np.testing.assert_allclose(exponents[b], np.sort(wanted)[::-1], atol=1e-9, rtol=0)
            in_time = np.full(T, np.nan)
            in_time[:length] = rates[::-1, np.argmax(wanted)] if backward else rates[:, np.argmax(wanted)]
            np.testing.assert_allclose(local[:, b], in_time, atol=1e-9, rtol=0)
            assert abs(np.nanmean(local[:, b]) - exponents[b, 0]) < 1e-13
            if count is None:
                logs = np.linalg.slogdet(jacobians[inside, b])[1]
                log_det = values(signals, "log_det", name)[:, b]
                np.testing.assert_allclose(log_det[:length], logs[::-1] if backward else logs, atol=1e-9)
                assert np.isnan(log_det[length:]).all()
                error = values(signals, "sum_error", name)[b]
                assert abs(error) < 1e-12
                assert abs(exponents[b].sum() - np.nanmean(log_det) - error) < 1e-12 or length < T
        if count is not None:
            assert signals.find("spectrum.log_det", name) == []
            assert signals.find("spectrum.sum_error", name) == []


@pytest.mark.parametrize("backend", BACKENDS)
def test_exponents_of_a_normal_linear_network(make_look: MakeLook, backend: str) -> None:
    """They are the logarithms of its eigenvalues' magnitudes, once the directions have settled."""
    turn = 0.9 * np.array([[np.cos(0.7), -np.sin(0.7)], [np.sin(0.7), np.cos(0.7)]])
    weight = np.zeros((5, 5))
    weight[:2, :2], weight[2, 2], weight[3, 3], weight[4, 4] = turn, 1.2, -0.6, 0.1
    Q = Orthogonal()(stream(0, "test/normal"), (5, 5))
    weight = Q @ weight @ Q.T
    signals = measured(linear(make_look, weight, 150, backend), Spectrum(settle=100))
    wanted = np.log([1.2, 0.9, 0.9, 0.6, 0.1])
    np.testing.assert_allclose(values(signals, "exponents"), np.tile(wanted, (2, 1)), atol=1e-10, rtol=0)
    local = values(signals, "local")
    assert np.isnan(local[:100]).all()
    np.testing.assert_allclose(local[100:], np.log(1.2), atol=1e-10)
    assert float(values(signals, "radius", f"{LAYER}.W.h")) == pytest.approx(1.2, rel=1e-12)
    assert float(values(signals, "departure", f"{LAYER}.W.h")) < 1e-14


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_sum_is_the_determinant_of_a_non_normal_network(make_look: MakeLook, backend: str) -> None:
    weight = stream(3, "test/weight").standard_normal((7, 7)) / np.sqrt(7) + np.triu(np.ones((7, 7)), 1)
    signals = measured(linear(make_look, weight, 90, backend), Spectrum())
    wanted = np.linalg.slogdet(weight)[1]
    np.testing.assert_allclose(values(signals, "exponents").sum(axis=1), wanted, atol=1e-12, rtol=0)
    np.testing.assert_allclose(values(signals, "log_det"), wanted, atol=1e-12, rtol=0)
    assert np.abs(values(signals, "sum_error")).max() < 1e-12


def test_factorizing_seldom_ruins_the_small_exponents(make_look: MakeLook) -> None:
    """What the sum's error is there to notice: directions that contract fast are lost within eight steps."""
    weight = np.diag([1.0, 0.5, 0.1, 0.001]) @ Orthogonal()(stream(0, "test/turn"), (4, 4))
    look = linear(make_look, weight, 64)
    signals = measured(look, Spectrum())
    jacobians, start = np.tile(weight, (64, 1, 1)), start_of("network", 4, 4)
    seldom = np.sort(followed(jacobians, start, every=8).sum(axis=0) / 64)[::-1]
    found, truth = values(signals, "exponents")[0], np.linalg.slogdet(weight)[1]
    assert abs(seldom[0] - found[0]) < 1e-9
    assert abs(seldom.sum() - truth) > 0.01
    assert abs(values(signals, "sum_error")[0]) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_gain_decides_between_rest_and_chaos(make_look: MakeLook, backend: str) -> None:
    """Random tanh networks without inputs (Sompolinsky, Crisanti & Sommers 1988): rest below gain 1, chaos above."""
    H, task = 80, Adding(T=150)

    def largest(gain: float) -> NDArray:
        params = {
            f"{LAYER}.weight_hh": stream(0, "test/random").normal(0.0, gain / np.sqrt(H), (H, H)),
            f"{LAYER}.weight_ih": np.zeros((H, task.n_in)),
            f"{LAYER}.initial.h": stream(0, "test/start").standard_normal(H),
        }
        spec = NetworkSpec(learned_state=True)
        look = make_look(task, RNN(hidden=H), backend=backend, network=spec, params=params, sequences=1)
        return values(measured(look, Spectrum(exponents=2, settle=50)), "exponents")[:, 0]

    assert (largest(0.9) < -0.02).all()
    assert (largest(5.0) > 0.2).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_dead_units_have_exponents_of_minus_infinity(make_look: MakeLook, backend: str) -> None:
    """As many as are dead; the others are what the loop finds, in which rounding stands for zero."""
    look = looked(make_look, RNN(hidden=5, activation="relu"), backend)
    params = dict(look.params)
    params[f"{LAYER}.bias"] = np.array([50.0, -50.0, 50.0, 50.0, -50.0])
    params[f"{LAYER}.weight_hh"] = 0.3 * params[f"{LAYER}.weight_hh"]
    look = make_look(TASK, RNN(hidden=5, activation="relu"), backend=backend, params=params, sequences=2)
    signals = measured(look, Spectrum())
    exponents = values(signals, "exponents")
    assert np.isneginf(exponents[:, 3:]).all()
    for b in range(2):
        rates = followed(step_jacobians(look)["network"][:, b], start_of("network", 5, 5))
        np.testing.assert_allclose(exponents[b, :3], np.sort(rates[:, :3].mean(axis=0))[::-1], atol=1e-9)
    assert np.isneginf(values(signals, "log_det")).all()
    assert np.isnan(values(signals, "sum_error")).all()
    assert np.isfinite(values(signals, "local")).all()
    leading = values(measured(look, Spectrum(exponents=4)), "exponents")
    assert np.isneginf(leading[:, 3]).all()
    assert np.isfinite(leading[:, :3]).all()


@pytest.mark.parametrize("count", [3, 6])
@pytest.mark.parametrize("backend", BACKENDS)
def test_what_nothing_reads_is_lost_too(make_look: MakeLook, backend: str, count: int) -> None:
    """Three of seven units live, and one of them is read by none: two directions remain."""
    weight = 0.1 * stream(0, "test/few").standard_normal((7, 7))
    params = {f"{LAYER}.bias": np.array([50.0, 50, 50, -50, -50, -50, -50]), f"{LAYER}.weight_hh": weight}

    def exponents() -> NDArray:
        cell = RNN(hidden=7, activation="relu")
        look = make_look(TASK, cell, backend=backend, params=params, sequences=2)
        return values(measured(look, Spectrum(exponents=count)), "exponents")

    assert np.isfinite(exponents()).tolist() == [[rank < 3 for rank in range(count)]] * 2
    weight[:, 1] = 0.0
    assert np.isfinite(exponents()).tolist() == [[rank < 2 for rank in range(count)]] * 2


def test_all_dead_is_minus_infinity_alone(make_look: MakeLook) -> None:
    look = make_look(TASK, RNN(hidden=3, activation="relu"), params={f"{LAYER}.bias": np.full(3, -99.0)}, sequences=2)
    assert np.isneginf(values(measured(look, Spectrum()), "exponents")).all()


def test_what_is_no_number_stays_none(make_look: MakeLook) -> None:
    look = make_look(TASK, RNN(hidden=3), params={f"{LAYER}.weight_hh": np.full((3, 3), np.nan)}, sequences=2)
    signals = measured(look, Spectrum())
    for kind in ("exponents", "local", "sum_error"):
        assert np.isnan(values(signals, kind)).all()
    for kind in ("radius", "departure"):
        assert np.isnan(values(signals, kind, f"{LAYER}.weight_hh.h"))


@pytest.mark.parametrize("count", [1, 3, 100])
def test_no_more_exponents_than_there_are(make_look: MakeLook, count: int) -> None:
    signals = measured(looked(make_look, RNN(hidden=5)), Spectrum(exponents=count))
    assert values(signals, "exponents").shape == (2, min(count, 5))
    assert bool(signals.find("spectrum.log_det")) == (count >= 5)


def test_a_large_state_has_its_leading_exponents_computed(make_look: MakeLook, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnbench.probes.spectrum.ALL", LEADING + 3)
    assert values(measured(looked(make_look, RNN(hidden=LEADING + 3)), Spectrum()), "exponents").shape[1] == LEADING + 3
    assert values(measured(looked(make_look, RNN(hidden=LEADING + 4)), Spectrum()), "exponents").shape[1] == LEADING


@pytest.mark.parametrize("limit", [1, 8 * 25 * 2 * 4, 10**9])
def test_the_size_of_chunks_changes_nothing(make_look: MakeLook, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """Eleven steps: one at a time, fours and a rest, all at once."""
    look = looked(make_look, RNN(hidden=5))
    plain = values(measured(look, Spectrum()), "local")
    monkeypatch.setattr("rnnbench.probes.systems.CHUNK", limit)
    np.testing.assert_allclose(values(measured(look, Spectrum()), "local"), plain, atol=1e-12)


def test_settling_leaves_something(make_look: MakeLook) -> None:
    with pytest.raises(BadInput, match=r"probe spectrum.settle: 11 steps leave none of the sequence's 11"):
        measured(looked(make_look, RNN(hidden=2)), Spectrum(settle=11))


def test_sequences_that_end_while_settling_have_no_exponents(make_look: MakeLook) -> None:
    look = looked(make_look, RNN(hidden=3), task=SEVERAL_LENGTHS)
    shortest = int(look.batch.lengths.min())
    assert shortest < look.batch.lengths.max()
    exponents = values(measured(look, Spectrum(settle=shortest, sequences=3)), "exponents")
    ended = look.batch.lengths == shortest
    assert np.isnan(exponents[ended]).all()
    assert np.isfinite(exponents[~ended]).all()


def test_every_recurrent_block_is_measured(make_look: MakeLook) -> None:
    look = looked(make_look, LSTM(hidden=3), spec=BOTH_WAYS)
    signals = measured(look, Spectrum(exponents=1))
    names = [f"layers.0.{way}.weight_hh.{gate}" for way in ("forward", "backward") for gate in "ifgo"]
    assert signals.things("spectrum.radius") == names
    assert signals.things("spectrum.departure") == names
    weight = look.params["layers.0.backward.weight_hh"][3:6]
    eigen = np.linalg.eigvals(weight)
    assert float(values(signals, "radius", names[5])) == pytest.approx(np.abs(eigen).max(), rel=1e-12)
    henrici = np.sqrt(np.sum(weight**2) - np.sum(np.abs(eigen) ** 2)) / np.linalg.norm(weight)
    assert float(values(signals, "departure", names[5])) == pytest.approx(henrici, rel=1e-9)


def test_eigenvalues_of_known_matrices() -> None:
    assert eigenvalues(np.array([[0.5, 3.0], [0.0, -2.0]])) == pytest.approx((2.0, 3.0 / np.sqrt(13.25)))
    radius, departure = eigenvalues(Orthogonal()(stream(0, "test"), (20, 20)))
    assert radius == pytest.approx(1.0, rel=1e-13)
    assert departure < 1e-14
    assert eigenvalues(np.array([[0.0, 5.0], [0.0, 0.0]])) == (0.0, 1.0)
    assert eigenvalues(np.zeros((3, 3))) == (0.0, 0.0)


def test_determinants_of_many_large_matrices_by_several_threads() -> None:
    """Factorizing them at once, several threads of torch's get wrong numbers and complain on standard error."""
    matrices = stream(0, "test/determinants").standard_normal((3, 200, 200))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        found = TorchOps().log_abs_det(torch.tensor(matrices))
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found.numpy(), np.linalg.slogdet(matrices)[1], rtol=1e-12)


def test_directions_are_drawn_from_their_own_stream(make_look: MakeLook) -> None:
    look = looked(make_look, RNN(hidden=5))
    one, again = (values(measured(look, Spectrum(exponents=2)), "local") for _ in range(2))
    np.testing.assert_array_equal(one, again)


def test_a_whole_model_has_no_states_to_follow(
    make_look: MakeLook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "import torch\ndef build(n_in, n_out):\n    return torch.nn.Sequential(torch.nn.Linear(n_in, n_out))\n"
    (tmp_path / "spectrum_model.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert Spectrum.needs_cell
    assert list(Spectrum().measure(make_look(TASK, None, model="spectrum_model:build"))) == []
