"""What a model uses of its past: exact for models whose memory is planted, else against a loop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.errors import BadInput
from rnnbench.probes.base import Look
from rnnbench.probes.use import Use, derangement, exchanged, log_lags
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.tasks.copying import Copy

MakeLook = Callable[..., Look]
ADDING = Adding(T=9)
COPY = Copy(delay=5, symbols=2)
SEVERAL_LENGTHS = Adding(T=20, markers="pascanu")
BACKENDS = ("torch", "jax")
SCOPE = "layers.0.forward"
PER_STEP = {"copy": (COPY, 8, None), "copy, in between": (COPY, 5, 5)}


def measured(look: Look, probe: Use) -> dict[str, NDArray]:
    return {signal.name: signal.values for signal in probe.measure(look)}


def register(task: Task, lag: int) -> dict[str, NDArray]:
    """Return parameters with which a ReLU network puts out its input of `lag` steps ago, and nothing else.

    Inputs are counted by one number, the weighted sum of their entries; it is shifted from unit to unit at each step.
    """
    units = lag + 1
    weight_ih, readout = np.zeros((units, task.n_in)), np.zeros((task.n_out, units))
    weight_ih[0] = 0.5 + np.arange(task.n_in)
    readout[:, lag] = 1.0 + np.arange(task.n_out)
    return {
        f"{SCOPE}.weight_ih": weight_ih,
        f"{SCOPE}.weight_hh": np.eye(units, k=-1),
        f"{SCOPE}.bias": np.zeros(units),
        "readout.weight": readout,
        "readout.bias": np.zeros(task.n_out),
    }


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_model_without_memory_uses_lag_0_alone(make_look: MakeLook, backend: str) -> None:
    look = make_look(ADDING, RNN(hidden=4), backend=backend, params={f"{SCOPE}.weight_hh": np.zeros((4, 4))})
    found = measured(look, Use())
    np.testing.assert_array_equal(found["use.lags"], np.arange(9))
    np.testing.assert_array_equal(found["use.output_change"], [1.0] + [0.0] * 8)
    np.testing.assert_array_equal(found["use.single_change"], [1.0] + [0.0] * 8)
    np.testing.assert_array_equal(found["use.loss"][1:], np.full(8, found["use.base_loss"]))
    assert found["use.loss"][0] != found["use.base_loss"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", [ADDING, SEVERAL_LENGTHS], ids=["one length", "several lengths"])
def test_a_shift_register_uses_its_own_lag_alone(make_look: MakeLook, task: Task, backend: str) -> None:
    look = make_look(task, RNN(hidden=4, activation="relu"), backend=backend, params=register(task, 3))
    if task is SEVERAL_LENGTHS:
        assert len(set(look.batch.lengths)) > 1
    found = measured(look, Use(points=64))
    lags = found["use.lags"]
    np.testing.assert_array_equal(lags, np.arange(look.batch.lengths.max()))
    np.testing.assert_array_equal(found["use.output_change"], (lags <= 3).astype(float))
    np.testing.assert_array_equal(found["use.single_change"], (lags == 3).astype(float))


@pytest.mark.parametrize("case", PER_STEP)
def test_lags_are_counted_from_the_loss_step(make_look: MakeLook, case: str) -> None:
    """Symbols stand at steps 0 and 1; step 2 holds a blank, which all sequences share."""
    task, at, asked = PER_STEP[case]
    for lag, differs in ((at, True), (at - 1, True), (at - 2, False)):
        look = make_look(task, RNN(hidden=lag + 1, activation="relu"), params=register(task, lag), sequences=16)
        found = measured(look, Use(loss_step=asked))
        expected = np.arange(at + 1)
        np.testing.assert_array_equal(found["use.lags"], expected)
        if differs:
            np.testing.assert_array_equal(found["use.output_change"], (expected <= lag).astype(float))
            np.testing.assert_array_equal(found["use.single_change"], (expected == lag).astype(float))
        else:  # a blank is exchanged for a blank: nothing changes, and there is nothing to divide by
            assert np.isnan(found["use.output_change"]).all()


@pytest.mark.parametrize(
    ("task", "backend"),
    [(ADDING, "torch"), (ADDING, "jax"), (COPY, "torch"), (SEVERAL_LENGTHS, "torch")],
    ids=["end", "end on jax", "each", "several lengths"],
)
def test_against_one_sequence_after_another(make_look: MakeLook, task: Task, backend: str) -> None:
    look = make_look(task, LSTM(hidden=3), backend=backend)
    found = measured(look, Use(draws=2, points=5))
    batch, network, xp = look.batch, look.program.network, registry.backend("numpy").ops("cpu", "float64")
    T, B = batch.inputs.shape[:2]
    each = task.readout == "each"
    ends = np.full(B, T - 1) if each else batch.lengths - 1
    rng = stream(look.seed, "probe/use/donors")
    donors = [derangement(rng, B) for _ in range(2)]

    def output(b: int, x: NDArray) -> NDArray:
        forward = network.forward(xp, look.params, {}, x[:, None], batch.lengths[b : b + 1], training=False)
        return np.asarray(forward.outputs[ends[b], 0] if each else forward.outputs[0])

    def loss(b: int, y: NDArray) -> float:
        if task.loss == "mse":
            return float(np.mean((y - batch.targets[b]) ** 2))
        return float(np.log(np.exp(y).sum()) - y[batch.targets[ends[b], b]])

    def change(wanted: Callable[[int], bool]) -> tuple[float, float]:
        squares, losses = [], []
        for donor in donors:
            for b in range(B):
                x = batch.inputs[:, b].copy()
                for lag in range(ends[b] + 1):
                    if wanted(lag) and lag <= ends[donor[b]]:
                        x[ends[b] - lag] = batch.inputs[ends[donor[b]] - lag, donor[b]]
                y = output(b, x)
                squares.append(np.mean((y - output(b, batch.inputs[:, b])) ** 2))
                losses.append(loss(b, y))
        return float(np.sqrt(np.mean(squares))), float(np.mean(losses))

    whole, _ = change(lambda lag: True)
    last = int(ends.max())
    assert found["use.lags"][0] == 0
    assert found["use.lags"][-1] == last
    for place, k in enumerate(found["use.lags"]):
        beyond, loss_there = change(lambda lag, k=k: lag >= k)
        single, _ = change(lambda lag, k=k: lag == k)
        assert found["use.output_change"][place] == pytest.approx(beyond / whole, rel=1e-9, abs=1e-9)
        assert found["use.single_change"][place] == pytest.approx(single / whole, rel=1e-9, abs=1e-9)
        assert found["use.loss"][place] == pytest.approx(loss_there, rel=1e-9)
    _, base = change(lambda lag: False)
    assert found["use.base_loss"] == pytest.approx(base, rel=1e-9)


def test_padding_and_the_future_stay(make_look: MakeLook) -> None:
    look = make_look(SEVERAL_LENGTHS, GRU(hidden=3))
    ends = look.batch.lengths - 1
    given, lags = exchanged(look.batch.inputs, ends, np.roll(np.arange(look.batch.size), 1))
    for b, end in enumerate(ends):
        np.testing.assert_array_equal(given[end + 1 :, b], look.batch.inputs[end + 1 :, b])
        assert (lags[end + 1 :, b] == -1).all()
        np.testing.assert_array_equal(given[end, b], look.batch.inputs[ends[b - 1], b - 1])
    clean = measured(look, Use())
    inputs = look.batch.inputs.copy()
    for b, end in enumerate(ends):
        inputs[end + 1 :, b] = 7.0
    soiled = measured(replace(look, batch=replace(look.batch, inputs=inputs)), Use())
    for name, values in clean.items():
        np.testing.assert_array_equal(soiled[name], values)


@pytest.mark.parametrize("size", [2, 3, 16])
def test_every_sequence_has_another_for_a_donor(size: int) -> None:
    rng = stream(0, "test")
    seen = {tuple(derangement(rng, size)) for _ in range(20)}
    for found in seen:
        assert sorted(found) == list(range(size))
        assert all(donor != own for own, donor in enumerate(found))
    assert len(seen) == min(20, size - 1) if size < 16 else len(seen) == 20


def test_lags_are_spread_evenly_in_their_logarithm() -> None:
    assert log_lags(0, 24).tolist() == [0]
    assert log_lags(1, 24).tolist() == [0, 1]
    assert log_lags(7, 2).tolist() == [0, 7]
    assert log_lags(1000, 5).tolist() == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_whole_model_is_looked_at_too(
    make_look: MakeLook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
) -> None:
    """It reads the input of two steps before the end."""
    name = f"use_model_{backend}"
    if backend == "torch":
        text = "import torch\nclass M(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        text += "        self.w = torch.nn.Parameter(torch.ones(1))\n"
        text += "    def forward(self, x):\n        return self.w * x[-3, :, :1]\n"
        text += "def build(n_in, n_out):\n    return M()\n"
    else:
        text = "import jax.numpy as jnp\ndef build(n_in, n_out):\n"
        text += "    return lambda key: {'w': jnp.ones(1)}, lambda p, x: p['w'] * x[-3, :, :1]\n"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    assert not Use.needs_cell
    found = measured(make_look(ADDING, None, backend=backend, model=f"{name}:build"), Use())
    np.testing.assert_array_equal(found["use.output_change"], [1.0] * 3 + [0.0] * 6)
    np.testing.assert_array_equal(found["use.single_change"], [0.0, 0.0, 1.0] + [0.0] * 6)


def test_what_cannot_be_exchanged_is_refused(make_look: MakeLook) -> None:
    with pytest.raises(BadInput, match="at least 2 are needed"):
        list(Use().measure(make_look(ADDING, RNN(hidden=2), sequences=1)))
    with pytest.raises(BadInput, match=r"probe use.loss_step: task adding has its loss at the end only"):
        list(Use(loss_step=3).measure(make_look(ADDING, RNN(hidden=2))))
    with pytest.raises(BadInput, match=r"probe use.loss_step: at step 9 .* \(T = 9\)"):
        list(Use(loss_step=9).measure(make_look(COPY, RNN(hidden=2))))


@pytest.mark.parametrize("value", [np.nan, 1e200])
def test_a_diverged_model_has_no_numbers(make_look: MakeLook, value: float) -> None:
    look = make_look(ADDING, RNN(hidden=2, activation="relu"))
    for name in look.params:
        look.params[name][:] = value
    found = measured(look, Use())
    assert not np.isfinite(found["use.output_change"]).any()
    assert not np.isfinite(found["use.base_loss"])
