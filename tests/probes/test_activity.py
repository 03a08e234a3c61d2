"""Saturation, time constants, dead units and norms: against loops over single numbers, and planted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Program
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.probes import activity as module
from rnnbench.probes.activity import Activity
from rnnbench.probes.base import Look
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.xp import Arrays, Differentiable

MakeLook = Callable[..., Look]
H = 3
ADDING = Adding(T=9)
SEVERAL_LENGTHS = Adding(T=20, markers="pascanu")
BACKENDS = ("torch", "jax")
SCOPE = "layers.0.forward"


def measured(look: Look) -> dict[str, NDArray]:
    return {signal.name: signal.values for signal in Activity().measure(look)}


def sigmoid(x: NDArray) -> NDArray:
    return np.asarray(1 / (1 + np.exp(-x)))


def lstm_by_hand(p: Mapping[str, NDArray], x: NDArray) -> dict[str, list[NDArray]]:
    """Return gates and states [time][H] of one sequence [time n_in]."""
    found: dict[str, list[NDArray]] = {name: [] for name in "ifgoch"}
    c = h = np.zeros(H)
    for x_t in x:
        a = p["weight_ih"] @ x_t + p["weight_hh"] @ h + p["bias"]
        i, f, g, o = sigmoid(a[:H]), sigmoid(a[H : 2 * H]), np.tanh(a[2 * H : 3 * H]), sigmoid(a[3 * H :])
        c = f * c + i * g
        h = o * np.tanh(c)
        for name, value in zip("ifgoch", (i, f, g, o, c, h), strict=True):
            found[name].append(value)
    return found


@pytest.mark.parametrize("backend", BACKENDS)
def test_lstm_against_numbers_one_by_one(make_look: MakeLook, backend: str) -> None:
    """Sequences of several lengths, with weights that saturate some gates and not others."""
    rng = stream(0, "test/activity")
    params = {
        f"{SCOPE}.weight_ih": rng.normal(0, 4, (4 * H, 2)),
        f"{SCOPE}.weight_hh": rng.normal(0, 2, (4 * H, H)),
        f"{SCOPE}.bias": rng.normal(0, 1, 4 * H),
    }
    look = make_look(SEVERAL_LENGTHS, LSTM(hidden=H), backend=backend, params=params)
    found = measured(look)
    assert len(set(look.batch.lengths)) > 1
    local = {name.rpartition(".")[2]: value for name, value in params.items()}
    lengths = look.batch.lengths
    runs = [lstm_by_hand(local, look.batch.inputs[:length, b]) for b, length in enumerate(lengths)]
    for gate in "ifgo":
        low, high = (-1.0, 1.0) if gate == "g" else (0.0, 1.0)
        for t in range(look.batch.inputs.shape[0]):
            here = [value for run, length in zip(runs, lengths, strict=True) if t < length for value in run[gate][t]]
            lowest = [value for value in here if value <= low + 0.05 * (high - low)]
            highest = [value for value in here if value >= high - 0.05 * (high - low)]
            for kind, those in (("low", lowest), ("high", highest)):
                share = found[f"activity.{kind}/{SCOPE}.{gate}"][t]
                assert share == pytest.approx(len(those) / len(here), abs=1e-12) if here else math.isnan(share)
        assert np.nansum(found[f"activity.low/{SCOPE}.{gate}"] + found[f"activity.high/{SCOPE}.{gate}"]) > 0
    for unit in range(H):
        logs = [math.log(f[unit]) for run in runs for f in run["f"]]
        constant = found[f"activity.time_constant/{SCOPE}.f"][unit]
        assert constant == pytest.approx(-len(logs) / sum(logs), rel=1e-9)
        gates = [f[unit] for run in runs for f in run["f"]]
        assert constant != pytest.approx(1 / (1 - sum(gates) / len(gates)), rel=0.05)  # the formula that it is not
    for state in "ch":
        norms = found[f"activity.state_norm/{SCOPE}.{state}"]
        for b, (run, length) in enumerate(zip(runs, lengths, strict=True)):
            np.testing.assert_allclose(norms[:length, b], [np.linalg.norm(v) for v in run[state]], rtol=1e-9)
            assert np.isnan(norms[length:, b]).all()
        np.testing.assert_array_equal(found[f"activity.dead/{SCOPE}.{state}"], np.zeros(H))
    assert set(found) == {
        *(f"activity.{kind}/{SCOPE}.{gate}" for kind in ("low", "high") for gate in "ifgo"),
        f"activity.time_constant/{SCOPE}.f",
        *(f"activity.{kind}/{SCOPE}.{state}" for kind in ("dead", "state_norm") for state in "ch"),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_planted_dead_units(make_look: MakeLook, backend: str) -> None:
    """Units 1 and 3 are pushed below zero for good, unit 2 stands still above it; units 0 and 4 live."""
    weight = np.ones((5, 2))
    weight[2] = 0.0
    look = make_look(
        ADDING,
        RNN(hidden=5, activation="relu"),
        backend=backend,
        params={
            f"{SCOPE}.weight_ih": weight,
            f"{SCOPE}.weight_hh": np.zeros((5, 5)),
            f"{SCOPE}.bias": np.array([0.0, -100.0, 0.5, -50.0, 0.1]),
        },
    )
    found = measured(look)
    np.testing.assert_array_equal(found[f"activity.dead/{SCOPE}.h"], [0, 1, 1, 1, 0])
    assert set(found) == {f"activity.dead/{SCOPE}.h", f"activity.state_norm/{SCOPE}.h"}  # ReLU has no range


@pytest.mark.parametrize("task", [ADDING, SEVERAL_LENGTHS], ids=["same", "several"])
def test_sequences_in_groups_come_to_the_same(
    make_look: MakeLook, monkeypatch: pytest.MonkeyPatch, task: Adding
) -> None:
    params = {f"{SCOPE}.weight_ih": stream(0, "test/activity").normal(0, 6, (4 * H, 2))}
    look = make_look(task, LSTM(hidden=H), params=params, sequences=5)
    whole = measured(look)
    monkeypatch.setattr(module, "AT_ONCE", 2 * len(look.batch.inputs) * 2 * H * 6)  # two sequences, and one is left
    sizes: list[int] = []
    watched = module._watched

    def counted(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
        sizes.append(int(arrays["batch/inputs"].shape[1]))
        return watched(program, xp, arrays)

    monkeypatch.setattr(module, "_watched", counted)
    groups = measured(look)
    assert sizes == [2, 2, 1]
    assert set(groups) == set(whole)
    for name, values in whole.items():
        # shares are ratios of counts; products of another shape, and sums in another order, round differently
        counts = name.startswith(("activity.low", "activity.high", "activity.dead"))
        np.testing.assert_allclose(groups[name], values, rtol=0 if counts else 1e-13, err_msg=name)
    assert any(0 < value < 1 for value in whole[f"activity.low/{SCOPE}.i"])


def test_a_unit_that_lives_in_one_sequence_is_not_dead(make_look: MakeLook) -> None:
    params = {f"{SCOPE}.weight_ih": np.array([[1.0, 0.0]]), f"{SCOPE}.weight_hh": np.zeros((1, 1))}
    look = make_look(ADDING, RNN(hidden=1, activation="relu"), params=params)
    look.batch.inputs[:, :, 0] = -1.0
    assert measured(look)[f"activity.dead/{SCOPE}.h"] == 1
    look.batch.inputs[4, 2, 0] = 1e-6
    assert measured(look)[f"activity.dead/{SCOPE}.h"] == 0


def test_padding_gives_no_unit_life_and_no_gate_a_share(make_look: MakeLook) -> None:
    look = make_look(SEVERAL_LENGTHS, LSTM(hidden=H), network=NetworkSpec(bidirectional=True))
    clean = measured(look)
    inputs = look.batch.inputs.copy()
    for b, length in enumerate(look.batch.lengths):
        inputs[length:, b] = 1e6
    soiled = measured(replace(look, batch=replace(look.batch, inputs=inputs)))
    for name, values in clean.items():
        np.testing.assert_array_equal(soiled[name], values, err_msg=name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_constant_gate_has_the_time_constant_of_its_value(make_look: MakeLook, backend: str) -> None:
    """A gate at f decays by f a step: -1/ln f; one that is 1 to the last bit never, one that is 0 at once."""
    bias = np.zeros(4 * 4)
    bias[4:8] = [0.0, 2.0, 1000.0, -1000.0]
    zeros = {f"{SCOPE}.weight_ih": np.zeros((16, 2)), f"{SCOPE}.weight_hh": np.zeros((16, 4)), f"{SCOPE}.bias": bias}
    found = measured(make_look(ADDING, LSTM(hidden=4), backend=backend, params=zeros))
    expected = [1 / math.log(2), 1 / math.log(1 + math.exp(-2)), math.inf, 0.0]
    np.testing.assert_allclose(found[f"activity.time_constant/{SCOPE}.f"], expected, rtol=1e-12)
    np.testing.assert_array_equal(found[f"activity.high/{SCOPE}.f"], np.full(9, 0.25))
    np.testing.assert_array_equal(found[f"activity.low/{SCOPE}.f"], np.full(9, 0.25))


def test_a_gru_keeps_by_its_update_gate(make_look: MakeLook) -> None:
    bias = np.zeros(3)
    bias[1] = 3.0
    params = {
        f"{SCOPE}.weight_ih": np.zeros((3, 2)),
        f"{SCOPE}.weight_hh": np.zeros((3, 1)),
        f"{SCOPE}.bias_ih": bias,
    }
    found = measured(make_look(ADDING, GRU(hidden=1), params=params))
    np.testing.assert_allclose(found[f"activity.time_constant/{SCOPE}.z"], [1 / math.log(1 + math.exp(-3))], rtol=1e-12)


def test_what_is_no_number_shows(make_look: MakeLook) -> None:
    params = {f"{SCOPE}.bias": np.array([np.nan] + [0.0] * (4 * H - 1))}
    found = measured(make_look(ADDING, LSTM(hidden=H), params=params))
    assert np.isnan(found[f"activity.low/{SCOPE}.i"]).all()
    assert np.isnan(found[f"activity.high/{SCOPE}.i"]).all()
    assert np.isnan(found[f"activity.dead/{SCOPE}.h"][0])
    assert np.isnan(found[f"activity.time_constant/{SCOPE}.f"]).all()
