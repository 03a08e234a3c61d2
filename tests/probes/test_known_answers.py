"""Networks whose gradients theory knows, through the probe: on both backends, and beyond the range of a float."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.numpy import NumpyOps
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.probes.adjoint import Adjoint
from rnnbench.probes.base import Look
from rnnbench.stats import decay
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.xp import Arrays, Ops

from .twin import logs, named

MakeLook = Callable[..., Look]
Found = dict[str, NDArray]
BACKENDS = ["torch", "jax"]
H_NAME, C_NAME = "layers.0.forward.h", "layers.0.forward.c"


class Linear(RNN):
    """h_t = W h_{t-1} + W_ih x_t."""

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return xp.linear(x, params["weight_ih"])

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return {"h": u + xp.linear(states["h"], params["weight_hh"])}


def forward(look: Look, **options: Any) -> Any:
    """Run the network in NumPy."""
    batch = look.batch
    return look.program.network.forward(
        NumpyOps(), look.params, look.buffers, batch.inputs, batch.lengths, training=True, **options
    )


def at_the_end(look: Look) -> NDArray:
    """Return the derivative [batch H] of the mean squared error by the state that is read."""
    error = forward(look).outputs - look.batch.targets
    direction: NDArray = 2.0 * error / look.batch.size @ look.params["readout.weight"]
    return direction


def linear(
    make_look: MakeLook, backend: str, W: NDArray, T: int, drive: float = 1.0, probe: Adjoint | None = None, **how: Any
) -> tuple[Look, Found]:
    """Measure a linear network with the recurrent matrix `W`, its inputs scaled by `drive`."""
    cell: Cell = Linear(hidden=len(W))
    start = make_look(Adding(T=T), cell).params
    params = {
        "layers.0.forward.weight_hh": W,
        "layers.0.forward.weight_ih": drive * start["layers.0.forward.weight_ih"],
    }
    look = make_look(Adding(T=T), cell, params=params, backend=backend, **how)
    return look, named((probe or Adjoint(logits=False, seen=False)).measure(look))


Matrix = Callable[[np.random.Generator], NDArray]
MATRICES: dict[str, Matrix] = {
    "random": lambda rng: rng.normal(0.0, 0.4, (4, 4)),
    "non-normal": lambda rng: np.triu(rng.normal(0.0, 1.0, (4, 4)), 1) + 0.9 * np.eye(4),
    "singular": lambda rng: np.outer(rng.normal(size=4), rng.normal(size=4)) / 4,
    "orthogonal": lambda rng: np.linalg.qr(rng.normal(size=(4, 4)))[0],
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("matrix", MATRICES)
def test_a_linear_network_has_powers_of_its_matrix(matrix: str, backend: str, make_look: MakeLook) -> None:
    """dL/dh_t = (W^T)^(T-1-t) v, t counted from 0; of a non-normal W also what grows before it decays."""
    W = MATRICES[matrix](stream(0, "tests/matrix"))
    look, found = linear(make_look, backend, W, 30, probe=Adjoint(vectors=True, seen=False, logits=False))
    wanted = at_the_end(look)
    norms = found[f"adjoint.log_norm/{H_NAME}"]
    for t in reversed(range(30)):
        vector = found[f"adjoint.vector/{H_NAME}"][t]
        off = np.linalg.norm(vector - wanted, axis=-1) / np.linalg.norm(wanted, axis=-1)
        assert off.max() <= 1e-12, t
        assert np.abs(norms[t] - logs(wanted)).max() <= 1e-12, t
        wanted = wanted @ W
    if matrix == "non-normal":
        assert (norms[20:].max(axis=0) > norms[-1] + 0.5).all()  # a rate by the eigenvalues, all 0.9, would be wrong


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_orthogonal_network_keeps_its_norm_over_1000_steps(backend: str, make_look: MakeLook) -> None:
    W = MATRICES["orthogonal"](stream(1, "tests/matrix"))
    look, found = linear(make_look, backend, W, 1000)
    norms = found[f"adjoint.log_norm/{H_NAME}"]
    np.testing.assert_allclose(np.exp(norms - logs(at_the_end(look))), 1.0, rtol=1e-12)
    by_inputs = found["adjoint.input_log_norm"]
    assert by_inputs.shape == norms.shape
    assert np.isfinite(by_inputs).all()


LAGS = np.arange(2000)[::-1, None]


@pytest.mark.parametrize("backend", BACKENDS)
def test_halving_over_2000_steps_is_measured_and_its_underflow_seen(backend: str, make_look: MakeLook) -> None:
    """0.5^1999 is 1e-602: half of the way lies beyond a float64, nine tenths beyond a float32."""
    half = np.array([[0.5]])
    look, found = linear(make_look, backend, half, 2000, precision="float32", probe=Adjoint(logits=False))
    norms = found[f"adjoint.log_norm/{H_NAME}"]
    start = logs(at_the_end(look))
    np.testing.assert_allclose(norms, start + LAGS * np.log(0.5), rtol=0, atol=1e-9)
    by_inputs = found["adjoint.input_log_norm"]  # u_t enters as h_t does
    weight = np.log(np.linalg.norm(look.params["layers.0.forward.weight_ih"]))
    np.testing.assert_allclose(by_inputs, norms + weight, rtol=0, atol=1e-9)
    fitted = decay([norms.mean(axis=1)[::-1]])
    assert fitted is not None
    assert abs(fitted.rate.value - np.log(0.5)) <= 1e-6
    assert fitted.lags == 2000

    seen, censored = found[f"adjoint.seen_log_norm/{H_NAME}"], found[f"adjoint.censored/{H_NAME}"]
    tiny, least = np.finfo(np.float32).tiny, np.finfo(np.float32).smallest_subnormal
    for b, first in enumerate(start):
        lost = int(np.floor((first - np.log(tiny)) / np.log(2))) + 1  # the first lag below the smallest normal number
        assert 100 < lost < 130
        wanted = np.arange(2000) >= lost
        np.testing.assert_array_equal(censored[::-1, b], wanted)
        np.testing.assert_allclose(seen[::-1, b][~wanted], norms[::-1, b][~wanted], rtol=0, atol=1e-5)
        gone = np.flatnonzero(np.isneginf(seen[::-1, b]))
        # torch goes on into the subnormal numbers, JAX takes them for zero on a CPU
        last = lost if backend == "jax" else int(np.floor((first - np.log(least)) / np.log(2))) + 1
        assert last <= gone[0] <= last + 1
        np.testing.assert_array_equal(gone, np.arange(gone[0], 2000))


@pytest.mark.parametrize("backend", BACKENDS)
def test_doubling_over_2000_steps_is_measured_and_its_overflow_seen(backend: str, make_look: MakeLook) -> None:
    """With nothing coming in the state stays zero and finite while its gradient reaches 1e602."""
    look, found = linear(
        make_look, backend, np.array([[2.0]]), 2000, drive=0.0, precision="float32", probe=Adjoint(logits=False)
    )
    norms, start = found[f"adjoint.log_norm/{H_NAME}"], logs(at_the_end(look))
    assert np.isfinite(norms).all()
    np.testing.assert_allclose(norms, start + LAGS * np.log(2.0), rtol=0, atol=1e-9)
    fitted = decay([norms.mean(axis=1)[::-1]])
    assert fitted is not None
    assert abs(fitted.rate.value - np.log(2.0)) <= 1e-6
    seen, censored = found[f"adjoint.seen_log_norm/{H_NAME}"], found[f"adjoint.censored/{H_NAME}"]
    for b, first in enumerate(start):
        lost = int(np.ceil((np.log(np.finfo(np.float32).max) - first) / np.log(2)))
        wanted = np.arange(2000) >= lost
        np.testing.assert_array_equal(censored[::-1, b], wanted)
        assert np.isposinf(seen[::-1, b][wanted]).all()
        np.testing.assert_allclose(seen[::-1, b][~wanted], norms[::-1, b][~wanted], rtol=0, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_lstm_without_recurrent_weights_multiplies_its_forget_gates(backend: str, make_look: MakeLook) -> None:
    """dc_t/dc_s = f_{s+1} ... f_t where W_hh = 0, over 400 steps and 1e-600; and nothing flows back through h."""
    T, task = 400, Adding(T=400)
    cell = LSTM(hidden=3)
    start = make_look(task, cell).params
    bias = start["layers.0.forward.bias"].copy()
    bias[3:6] = [-3.0, -3.5, -4.0]
    params = {"layers.0.forward.bias": bias, "layers.0.forward.weight_hh": np.zeros((12, 3))}
    look = make_look(task, cell, params=params, backend=backend)
    found = named(Adjoint(vectors=True, seen=False, logits=False).measure(look))
    ran = forward(look, record=True, watch=True)
    c, f, o = ran.states[C_NAME], ran.taps["layers.0.forward.f"], ran.taps["layers.0.forward.o"]
    by_h, by_c = found[f"adjoint.log_norm/{H_NAME}"], found[f"adjoint.log_norm/{C_NAME}"]
    assert np.isneginf(by_h[:-1]).all()
    assert np.isneginf(by_c[-1]).all()  # the last c is read through h only, of which its own derivative knows nothing
    through = at_the_end(look) * o[-1] * (1.0 - np.tanh(c[-1]) ** 2)  # [batch H]
    np.testing.assert_allclose(by_h[-1], logs(at_the_end(look)), rtol=0, atol=1e-12)
    product = np.zeros((T, *through.shape))  # ln of the product of the gates after t
    product[:-1] = np.cumsum(np.log(f[:0:-1]), axis=0)[::-1]
    exact = np.log(np.abs(through)) + product
    wanted = 0.5 * np.logaddexp.reduce(2 * exact, axis=-1)
    assert wanted[0].max() < -1000
    np.testing.assert_allclose(by_c[:-1], wanted[:-1], rtol=0, atol=1e-9)
    np.testing.assert_allclose(found[f"adjoint.total_log_norm/{C_NAME}"], wanted, rtol=0, atol=1e-9)
    vectors = found[f"adjoint.vector/{C_NAME}"][-50:-1]  # those that a float64 holds
    np.testing.assert_allclose(vectors, (np.sign(through) * np.exp(exact))[-50:-1], rtol=1e-11)
