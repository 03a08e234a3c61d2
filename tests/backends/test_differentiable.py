"""What probes ask of a framework beyond plain operations: derivatives, factorizations, and labs to compute in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rnnbench.backends.base import Backend
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.numpy import NumpyBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.errors import BadInput
from rnnbench.xp import Arrays, Differentiable, Lab

RNG = np.random.default_rng(7)
A = RNG.normal(size=(4, 3))
X = RNG.normal(size=(2, 3))
Y = RNG.normal(size=(2, 4))


@pytest.fixture(params=[TorchBackend, JaxBackend])
def lab(request: pytest.FixtureRequest) -> Lab:
    backend: Backend = request.param()
    return backend.lab("cpu", "float64")


def bend(xp: Differentiable) -> Any:
    """x [2 3], y [2 4] -> tanh(x A^T) * y and sum x^2, whose derivatives are known."""
    weight = xp.asarray(A)

    def function(primals: Arrays) -> Arrays:
        return {
            "product": xp.tanh(xp.linear(primals["x"], weight)) * primals["y"],
            "square": xp.sum(primals["x"] ** 2),
        }

    return function


def jacobian_product(dx: Any, dy: Any) -> Any:
    """The tangent of ``product`` by hand."""
    bent = np.tanh(X @ A.T)
    return (1 - bent**2) * (dx @ A.T) * Y + bent * dy


def test_pullbacks_are_the_transposed_derivative(lab: Lab) -> None:
    seed = RNG.normal(size=(2, 4))

    def compute(xp: Differentiable, arrays: Arrays) -> Arrays:
        values, pullback = xp.vjp(bend(xp), {"x": arrays["x"], "y": arrays["y"]})
        one = pullback({"product": arrays["seed"]})
        other = pullback({"square": xp.ones(())})
        both = pullback({"product": arrays["seed"], "square": xp.ones(())})
        named = {"one": one, "other": other, "both": both}
        found = {f"{which}.{name}": value for which, part in named.items() for name, value in part.items()}
        return found | {"value": values["product"]}

    found = lab.compute("pullbacks", compute, {"x": X, "y": Y, "seed": seed})
    bent = np.tanh(X @ A.T)
    np.testing.assert_allclose(found["value"], bent * Y, rtol=1e-14)
    np.testing.assert_allclose(found["one.x"], (seed * Y * (1 - bent**2)) @ A, rtol=1e-13)
    np.testing.assert_allclose(found["one.y"], seed * bent, rtol=1e-13)
    np.testing.assert_allclose(found["other.x"], 2 * X, rtol=1e-14)
    assert (found["other.y"] == 0).all()
    np.testing.assert_allclose(found["both.x"], found["one.x"] + found["other.x"], rtol=1e-13)


def test_many_cotangents_and_tangents_are_each_by_itself(lab: Lab) -> None:
    seeds = RNG.normal(size=(5, 2, 4))
    dx, dy = RNG.normal(size=(5, 2, 3)), RNG.normal(size=(5, 2, 4))

    def compute(xp: Differentiable, arrays: Arrays) -> Arrays:
        primals = {"x": arrays["x"], "y": arrays["y"]}
        _, pullback = xp.vjp(bend(xp), primals)
        back = pullback({"product": arrays["seeds"]}, many=True)
        along = xp.jvps(bend(xp), primals, {"x": arrays["dx"], "y": arrays["dy"]})
        return {"x": back["x"], "y": back["y"], "product": along["product"], "square": along["square"]}

    found = lab.compute("many", compute, {"x": X, "y": Y, "seeds": seeds, "dx": dx, "dy": dy})
    bent = np.tanh(X @ A.T)
    for index, seed in enumerate(seeds):
        np.testing.assert_allclose(found["x"][index], (seed * Y * (1 - bent**2)) @ A, rtol=1e-13)
        np.testing.assert_allclose(found["y"][index], seed * bent, rtol=1e-13)
        np.testing.assert_allclose(found["product"][index], jacobian_product(dx[index], dy[index]), rtol=1e-12)
        np.testing.assert_allclose(found["square"][index], 2 * np.sum(X * dx[index]), rtol=1e-12)


def test_a_value_that_depends_on_nothing_gives_zeros(lab: Lab) -> None:
    def compute(xp: Differentiable, arrays: Arrays) -> Arrays:
        _, pullback = xp.vjp(lambda primals: {"held": xp.stop_gradient(primals["x"]) * 2.0}, {"x": arrays["x"]})
        one = pullback({"held": arrays["x"]})["x"]
        many = pullback({"held": xp.stack([arrays["x"]] * 3)}, many=True)["x"]
        return {"one": one, "many": many}

    found = lab.compute("nothing", compute, {"x": X})
    assert found["one"].shape == (2, 3)
    assert found["many"].shape == (3, 2, 3)
    assert not found["one"].any()
    assert not found["many"].any()


def test_factorizations(lab: Lab) -> None:
    tall, square = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(3, 4, 4))
    square[2, :, 0] = 0.0

    def compute(xp: Differentiable, arrays: Arrays) -> Arrays:
        q, r = xp.qr(arrays["tall"])
        return {
            "q": q,
            "r": r,
            "s": xp.svdvals(arrays["tall"]),
            "det": xp.log_abs_det(arrays["square"]),
        }

    found = lab.compute("factor", compute, {"tall": tall, "square": square})
    np.testing.assert_allclose(found["q"] @ found["r"], tall, rtol=1e-12)
    np.testing.assert_allclose(
        np.swapaxes(found["q"], 1, 2) @ found["q"], np.broadcast_to(np.eye(3), (2, 3, 3)), atol=1e-14
    )
    assert np.allclose(np.tril(found["r"], -1), 0.0, atol=0.0)
    np.testing.assert_allclose(found["s"], np.linalg.svd(tall, compute_uv=False), rtol=1e-12)
    np.testing.assert_allclose(found["det"][:2], np.linalg.slogdet(square[:2])[1], rtol=1e-12)
    assert found["det"][2] == -np.inf


def test_a_lab_compiles_once_for_equal_keys_and_keeps_integers(lab: Lab) -> None:
    traced: list[int] = []

    def compute(xp: Differentiable, arrays: Arrays) -> Arrays:
        traced.append(1)
        picked = xp.pick(arrays["x"], arrays["which"])
        return {"picked": picked, "kept": xp.where(arrays["mask"], picked, xp.zeros((2,)))}

    arrays = {"x": X, "which": np.array([2, 0]), "mask": np.array([True, False])}
    first = lab.compute("once", compute, arrays)
    again = lab.compute("once", compute, arrays)
    np.testing.assert_array_equal(first["picked"], X[[0, 1], [2, 0]])
    np.testing.assert_array_equal(again["kept"], [X[0, 2], 0.0])
    if lab.compile_seconds:  # a framework that compiles
        assert len(traced) == 1


@pytest.mark.parametrize("backend", [TorchBackend(), JaxBackend()], ids=["torch", "jax"])
def test_a_lab_computes_in_its_precision(backend: Backend) -> None:
    for precision, dtype in (("float32", np.float32), ("float64", np.float64)):
        lab = backend.lab("cpu", precision)  # type: ignore[arg-type]  # one of the precisions
        found = lab.compute(("dtype", precision), lambda xp, arrays: {"x": arrays["x"] * 2.0}, {"x": X})
        assert found["x"].dtype == dtype


def test_numpy_does_not_differentiate() -> None:
    with pytest.raises(BadInput, match="numpy does not differentiate"):
        NumpyBackend().lab("cpu", "float64")
