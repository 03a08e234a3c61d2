"""`rnnbench.xp.Ops` in JAX."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnbench.arrays import Array
from rnnbench.backends.base import STORAGE
from rnnbench.spec import Precision
from rnnbench.xp import Arrays, Body, Function, Pullback


class JaxOps:
    """Operations in one precision; bfloat16 rounds the factors of every product, as `TorchOps` does."""

    def __init__(self, precision: Precision = "float64") -> None:
        self.dtype = jnp.dtype(STORAGE[precision])
        self.rounded = precision == "bfloat16"

    def asarray(self, value: object) -> Array:
        array = jnp.asarray(value)
        return array.astype(self.dtype) if jnp.issubdtype(array.dtype, jnp.floating) else array

    def zeros(self, shape: Sequence[int]) -> Array:
        return jnp.zeros(tuple(shape), self.dtype)

    def ones(self, shape: Sequence[int]) -> Array:
        return jnp.ones(tuple(shape), self.dtype)

    def floats(self, x: Array) -> Array:
        return x.astype(self.dtype)

    def tanh(self, x: Array) -> Array:
        return jnp.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        return lax.logistic(x)

    def relu(self, x: Array) -> Array:
        return jax.nn.relu(x)

    def softplus(self, x: Array) -> Array:
        return jax.nn.softplus(x)

    def exp(self, x: Array) -> Array:
        return jnp.exp(x)

    def log(self, x: Array) -> Array:
        return jnp.log(x)

    def sqrt(self, x: Array) -> Array:
        return jnp.sqrt(x)

    def sin(self, x: Array) -> Array:
        return jnp.sin(x)

    def cos(self, x: Array) -> Array:
        return jnp.cos(x)

    def abs(self, x: Array) -> Array:
        return x * lax.stop_gradient(jnp.sign(x))  # jnp.abs has derivative 1 at 0

    def sign(self, x: Array) -> Array:
        return jnp.sign(x)

    def clip(self, x: Array, low: float, high: float) -> Array:
        # jnp.clip has derivative one half at the ends
        return jnp.where(x < low, jnp.asarray(low, x.dtype), jnp.where(x > high, jnp.asarray(high, x.dtype), x))

    def maximum(self, x: Array, y: Array) -> Array:
        return jnp.maximum(x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return jnp.minimum(x, y)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return jnp.where(condition, x, y)

    def matmul(self, x: Array, y: Array) -> Array:
        if self.rounded:
            x, y = _rounded(x), _rounded(y)
        return jnp.matmul(x, y)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        product = self.matmul(x, weight.T)
        return product if bias is None else product + bias

    def transpose(self, x: Array) -> Array:
        return jnp.swapaxes(x, -1, -2)

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return jnp.sum(x, axis=axis, keepdims=keepdims)

    def mean(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return jnp.mean(x, axis=axis, keepdims=keepdims)

    def amin(self, x: Array, axis: int) -> Array:
        return jnp.min(x, axis=axis)

    def norm(self, x: Array, axis: int | None = None) -> Array:
        peak = lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True))
        scale = jnp.where((peak == 0) | jnp.isinf(peak), 1.0, peak)  # an infinite entry makes the norm infinite
        square = jnp.sum((x / scale) ** 2, axis=axis)
        zero = square == 0
        # the root's infinite slope at 0 must not be multiplied by a zero: that would be NaN
        root = jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, square)))
        return jnp.reshape(scale, root.shape) * root

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return jnp.concatenate(list(arrays), axis=axis)

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return jnp.stack(list(arrays), axis=axis)

    def split(self, x: Array, parts: int, axis: int) -> Sequence[Array]:
        return jnp.split(x, parts, axis=axis)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.reshape(x, tuple(shape))

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        return jnp.broadcast_to(x, tuple(shape))

    def flip(self, x: Array, axis: int) -> Array:
        return jnp.flip(x, axis=axis)

    def log_softmax(self, x: Array) -> Array:
        return jax.nn.log_softmax(x, axis=-1)

    def pick(self, x: Array, index: Array) -> Array:
        return jnp.take_along_axis(x, index[..., None], axis=-1)[..., 0]

    def argmax(self, x: Array) -> Array:
        return jnp.argmax(x, axis=-1)

    def expm(self, x: Array) -> Array:
        return jax.scipy.linalg.expm(x)

    def solve(self, a: Array, b: Array) -> Array:
        return jnp.linalg.solve(a, b)

    def stop_gradient(self, x: Array) -> Array:
        return lax.stop_gradient(x)

    def scan(
        self, body: Body, carry: Arrays, xs: Mapping[str, Array], length: int, reverse: bool = False
    ) -> tuple[Arrays, Arrays]:
        steps = dict(xs) | {"t": jnp.asarray(np.arange(length, dtype=np.int32))}
        last, ys = lax.scan(body, carry, steps, length=length, reverse=reverse)
        return last, ys

    def vjp(self, function: Function, primals: Arrays) -> tuple[Arrays, Pullback]:
        values, back = jax.vjp(function, primals)

        def pullback(cotangents: Arrays, many: bool = False) -> Arrays:
            count = (next(iter(cotangents.values())).shape[0],) if many else ()
            full = {
                name: cotangents[name] if name in cotangents else jnp.zeros((*count, *value.shape), value.dtype)
                for name, value in values.items()
            }
            # one after another: under vmap, jaxlib 0.10.2 on CPUs fuses the pullback of a split into wrong numbers at
            # some widths (an LSTM of 5 units, 4 sequences: 65 % off)
            (found,) = lax.map(back, full) if many else back(full)
            derived: Arrays = found
            return derived

        return values, pullback

    def jvps(self, function: Function, primals: Arrays, tangents: Arrays) -> Arrays:
        _, along = jax.linearize(function, primals)
        found: Arrays = lax.map(along, tangents)  # not vmap, for the reason given in `vjp`
        return found

    def qr(self, x: Array) -> tuple[Array, Array]:
        q, r = jnp.linalg.qr(x)
        return q, r

    def svdvals(self, x: Array) -> Array:
        return jnp.linalg.svd(x, compute_uv=False)

    def log_abs_det(self, x: Array) -> Array:
        return jnp.linalg.slogdet(x)[1]


def _rounded(x: Array) -> Array:
    """Round to bfloat16 and back; XLA must not fold the pair of casts away, hence reduce_precision."""
    return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)
