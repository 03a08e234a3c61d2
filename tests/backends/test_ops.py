"""Each operation of `xp` in NumPy, torch and JAX: values, derivatives at kinks, and gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
import pytest
import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.jax.ops import JaxOps
from rnnbench.backends.numpy import NumpyOps
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Ops

Function = Callable[[Ops, Array], Array]


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def numpy_value(function: Function, x: NDArray) -> NDArray:
    return np.asarray(function(NumpyOps(), x))


def torch_value(function: Function, x: NDArray) -> NDArray:
    return function(TorchOps(), torch.from_numpy(x)).numpy()


def jax_value(function: Function, x: NDArray) -> NDArray:
    return np.asarray(jax.jit(lambda x: function(JaxOps(), x))(x))


def torch_gradient(function: Function, x: NDArray) -> NDArray:
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    value = (function(TorchOps(), tensor) * weights_of(torch.from_numpy, function, x)).sum()
    (found,) = torch.autograd.grad(value, tensor, allow_unused=True, materialize_grads=True)
    return found.numpy()


def jax_gradient(function: Function, x: NDArray) -> NDArray:
    def scalar(x: Array) -> Array:
        return (function(JaxOps(), x) * weights_of(np.asarray, function, x)).sum()

    return np.asarray(jax.jit(jax.grad(scalar))(x))


def weights_of(convert: Callable[[NDArray], Any], function: Function, x: Any) -> Any:
    """Weights of the outputs that are all different, so that no entry of a gradient is hidden by a symmetry."""
    shape = function(NumpyOps(), np.ones(tuple(x.shape))).shape
    return convert(np.cos(np.arange(int(np.prod(shape)), dtype=np.float64)).reshape(shape))


def difference_gradient(function: Function, x: NDArray) -> NDArray:
    """Central differences, step 1e-6: errors of about 1e-10 for values and derivatives of about one."""
    weights = weights_of(np.asarray, function, x)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        step = np.zeros_like(x)
        step[index] = 1e-6
        gradient[index] = np.sum(weights * (function(NumpyOps(), x + step) - function(NumpyOps(), x - step)) / 2e-6)
    return gradient


X = stream(0, "tests/ops").normal(0.0, 1.0, (3, 4, 4))
POSITIVE = np.abs(X) + 0.5
INDEX = np.array([[0, 3, 1, 2], [1, 1, 0, 2], [3, 2, 1, 0]])
A = stream(1, "tests/ops").normal(0.0, 1.0, (5, 4))


SMOOTH: dict[str, tuple[Function, NDArray]] = {
    "tanh": (lambda xp, x: xp.tanh(x), X),
    "sigmoid": (lambda xp, x: xp.sigmoid(x), X),
    "relu": (lambda xp, x: xp.relu(x), X),
    "softplus": (lambda xp, x: xp.softplus(x), X),
    "softplus-far": (lambda xp, x: xp.softplus(12.0 * x), X),
    "exp": (lambda xp, x: xp.exp(x), X),
    "log": (lambda xp, x: xp.log(x), POSITIVE),
    "sqrt": (lambda xp, x: xp.sqrt(x), POSITIVE),
    "sin": (lambda xp, x: xp.sin(x), X),
    "cos": (lambda xp, x: xp.cos(x), X),
    "abs": (lambda xp, x: xp.abs(x), X),
    "sign": (lambda xp, x: xp.sign(x) * x, X),
    "clip": (lambda xp, x: xp.clip(x, -0.5, 0.75), X),
    "maximum": (lambda xp, x: xp.maximum(x, xp.flip(x, 0) * 0.5), X),
    "minimum": (lambda xp, x: xp.minimum(x, 0.3 * x + 0.1), X),
    "where": (lambda xp, x: xp.where(x > 0.2, x * x, 3.0 * x), X),
    "matmul": (lambda xp, x: xp.matmul(x, xp.transpose(x)), X),
    "linear": (lambda xp, x: xp.linear(x, xp.asarray(A), xp.asarray(A[:, 0])), X),
    "linear-weight": (lambda xp, x: xp.linear(xp.asarray(A), x[0]), X),
    "transpose": (lambda xp, x: xp.transpose(x), X),
    "sum": (lambda xp, x: xp.sum(x * x), X),
    "sum-axis": (lambda xp, x: xp.sum(x * x, axis=1), X),
    "sum-axes": (lambda xp, x: xp.sum(x * x, axis=(0, 2), keepdims=True), X),
    "sum-kept": (lambda xp, x: xp.sum(x * x, keepdims=True), X),
    "mean-kept": (lambda xp, x: xp.mean(x * x, keepdims=True), X),
    "mean": (lambda xp, x: xp.mean(x * x), X),
    "mean-axis": (lambda xp, x: xp.mean(x * x, axis=-1, keepdims=True), X),
    "amin": (lambda xp, x: xp.amin(x, axis=-1), X),
    "norm": (lambda xp, x: xp.norm(x), X),
    "norm-axis": (lambda xp, x: xp.norm(x, axis=1), X),
    "concat": (lambda xp, x: xp.concat([x, x * x], axis=1), X),
    "stack": (lambda xp, x: xp.stack([x, x * x], axis=1), X),
    "split": (lambda xp, x: xp.split(x, 2, axis=-1)[1] * xp.split(x, 2, axis=-1)[0], X),
    "reshape": (lambda xp, x: xp.reshape(x, (6, 8)), X),
    "broadcast": (lambda xp, x: xp.broadcast_to(x[0, 0], (2, 3, 4)), X),
    "flip": (lambda xp, x: xp.flip(x, 1), X),
    "log_softmax": (lambda xp, x: xp.log_softmax(x), X),
    "pick": (lambda xp, x: xp.pick(x, xp.asarray(INDEX)), X),
    "expm": (lambda xp, x: xp.expm(x[0]), X),
    "solve": (lambda xp, x: xp.solve(x[0] + 5.0 * xp.asarray(np.eye(4)), x[1]), X),
    "floats": (lambda xp, x: xp.floats(x > 0.0) * x, X),
    "zeros": (lambda xp, x: x + xp.zeros((3, 4, 4)), X),
    "ones": (lambda xp, x: x * xp.ones((4,)), X),
    "arithmetic": (lambda xp, x: (1.0 - x) * x / (x * x + 1.0) + (-x) ** 2, X),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_values_agree(name: str) -> None:
    function, x = SMOOTH[name]
    reference = numpy_value(function, x)
    assert reference.dtype == np.float64
    for value in (torch_value(function, x), jax_value(function, x)):
        assert value.dtype == np.float64
        assert value.shape == reference.shape
        # libraries differ in the last digits of transcendental functions; expm and solve also in their algorithm
        np.testing.assert_allclose(value, reference, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_agree_with_differences(name: str) -> None:
    function, x = SMOOTH[name]
    reference = difference_gradient(function, x)
    np.testing.assert_allclose(torch_gradient(function, x), reference, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(torch_gradient(function, x), jax_gradient(function, x), rtol=1e-11, atol=1e-12)


Point = tuple[Function, list[float], list[float]]
KINKS: dict[str, Point] = {
    "abs": (lambda xp, x: xp.abs(x), [-2.0, -0.0, 0.0, 3.0], [-1.0, 0.0, 0.0, 1.0]),
    "relu": (lambda xp, x: xp.relu(x), [-2.0, -0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 1.0]),
    "clip": (lambda xp, x: xp.clip(x, -1.0, 2.0), [-1.5, -1.0, 0.0, 2.0, 2.5], [0.0, 1.0, 1.0, 1.0, 0.0]),
    "norm": (lambda xp, x: xp.norm(x), [0.0, 0.0], [0.0, 0.0]),
    "norm-axis": (lambda xp, x: xp.norm(xp.reshape(x, (2, 2)), axis=1), [0.0, 0.0, 0.0, -2.0], [0.0, 0.0, 0.0, -1.0]),
    "maximum": (lambda xp, x: xp.maximum(x, 1.0 * xp.ones((3,))), [0.0, 1.0, 2.0], [0.0, 0.5, 1.0]),
    "minimum": (lambda xp, x: xp.minimum(x, 1.0 * xp.ones((3,))), [0.0, 1.0, 2.0], [1.0, 0.5, 0.0]),
    "sign": (lambda xp, x: xp.sign(x), [-1.0, 0.0, 2.0], [0.0, 0.0, 0.0]),
    "stop_gradient": (lambda xp, x: xp.stop_gradient(x) * x, [2.0, 0.0], [2.0, 0.0]),
}


@pytest.mark.parametrize("name", KINKS)
def test_derivatives_at_kinks_are_pinned(name: str) -> None:
    function, at, expected = KINKS[name]
    x = np.array(at)
    tensor = torch.from_numpy(x.copy()).requires_grad_()
    (by_torch,) = torch.autograd.grad(
        function(TorchOps(), tensor).sum(), tensor, materialize_grads=True, allow_unused=True
    )
    by_jax = jax.jit(jax.grad(lambda x: function(JaxOps(), x).sum()))(x)
    np.testing.assert_array_equal(by_torch.numpy(), expected)
    np.testing.assert_array_equal(np.asarray(by_jax), expected)


@pytest.mark.parametrize("ops", [NumpyOps(), TorchOps(), JaxOps()], ids=["numpy", "torch", "jax"])
def test_argmax_takes_the_first_of_equals(ops: Ops) -> None:
    rows = ops.asarray(np.array([[0.0, 2.0, 2.0], [1.0, 1.0, 1.0]]))
    assert np.asarray(ops.argmax(rows)).tolist() == [1, 0]


@pytest.mark.parametrize("ops", [NumpyOps(), TorchOps(), JaxOps()], ids=["numpy", "torch", "jax"])
def test_extreme_arguments_do_not_overflow(ops: Ops) -> None:
    far = ops.asarray(np.array([-1000.0, 1000.0]))
    assert np.asarray(ops.sigmoid(far)).tolist() == [0.0, 1.0]
    assert np.asarray(ops.softplus(far)).tolist() == [0.0, 1000.0]
    np.testing.assert_array_equal(np.asarray(ops.log_softmax(far)), [-2000.0, 0.0])


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_runs_over_time(reverse: bool) -> None:
    """h_t = 0.5 h_{t-1} + x_t (t + 1), against a loop."""
    x = stream(2, "tests/ops").normal(0.0, 1.0, (6, 3))
    h, states = np.zeros(3), np.zeros((6, 3))
    for t in reversed(range(6)) if reverse else range(6):
        h = 0.5 * h + x[t] * (t + 1)
        states[t] = h

    def run(xp: Ops, x: Array) -> tuple[Arrays, Arrays]:
        def body(carry: Arrays, at: Any) -> tuple[Arrays, Arrays]:
            new = 0.5 * carry["h"] + at["x"] * (at["t"] + 1)
            return {"h": new}, {"h": new}

        return xp.scan(body, {"h": xp.zeros((3,))}, {"x": x}, 6, reverse)

    for ops in (NumpyOps(), TorchOps(), JaxOps()):
        last, all_of_them = run(ops, ops.asarray(x))
        np.testing.assert_allclose(np.asarray(last["h"]), h, rtol=1e-15)
        np.testing.assert_allclose(np.asarray(all_of_them["h"]), states, rtol=1e-15)


def test_asarray_keeps_integers_and_brings_floats_to_the_precision() -> None:
    for ops, wanted in (
        (TorchOps("cpu", "float32"), "float32"),
        (JaxOps("float32"), "float32"),
        (NumpyOps(), "float64"),
    ):
        assert np.asarray(ops.asarray(np.ones(2, np.float64))).dtype == wanted
        assert np.asarray(ops.asarray(np.ones(2, np.int64))).dtype.kind == "i"


def test_bfloat16_rounds_the_factors_of_products_alike() -> None:
    """Against rounding to the nearest bfloat16 by hand, ties to even; the product itself stays float32."""
    x, weight = X[0].astype(np.float32), A.astype(np.float32)

    def rounded(array: NDArray) -> NDArray:
        bits = array.view(np.uint32).astype(np.uint64)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)

    by_hand = rounded(x).astype(np.float64) @ rounded(weight).astype(np.float64).T
    by_torch = TorchOps("cpu", "bfloat16").linear(torch.from_numpy(x), torch.from_numpy(weight)).numpy()
    by_jax = np.asarray(jax.jit(JaxOps("bfloat16").linear)(x, weight))
    assert by_torch.dtype == by_jax.dtype == np.float32
    np.testing.assert_allclose(by_torch, by_hand, rtol=1e-5, atol=1e-6)  # sums of four products in float32
    np.testing.assert_allclose(by_jax, by_hand, rtol=1e-5, atol=1e-6)
    assert np.abs(by_hand - x.astype(np.float64) @ weight.T).max() > 1e-3  # the rounding is there


@pytest.mark.parametrize("size", [1e-30, 1e-21, 1.0, 1e21, 1e30])
def test_a_norm_neither_underflows_nor_overflows(size: float) -> None:
    x = np.full(4, size, np.float32)
    by_torch = TorchOps("cpu", "float32").norm(torch.from_numpy(x))
    by_jax = JaxOps("float32").norm(jax.numpy.asarray(x))
    for found in (float(by_torch), float(by_jax), float(NumpyOps().norm(x.astype(np.float64)))):
        assert found == pytest.approx(2 * size, rel=1e-6)
    slope = jax.grad(JaxOps("float32").norm)(jax.numpy.asarray(x))
    np.testing.assert_allclose(slope, 0.5, rtol=1e-6)


@pytest.mark.parametrize(("x", "norm"), [([np.inf, 1.0], np.inf), ([-np.inf, np.inf], np.inf), ([np.nan, 1.0], np.nan)])
def test_the_norm_of_what_is_infinite_is_infinite(x: list[float], norm: float) -> None:
    """And not "not a number": an overflown gradient must be told from a missing one."""
    for found in (TorchOps().norm(torch.tensor(x)), JaxOps("float32").norm(jax.numpy.asarray(x))):
        assert np.array_equal(float(found), norm, equal_nan=True)
    assert np.array_equal(float(NumpyOps().norm(np.asarray(x))), norm, equal_nan=True)
