"""What surrounds every computation in JAX: device, precision and jax's globals; and where probes compute."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import STORAGE
from rnnbench.backends.jax.ops import JaxOps
from rnnbench.spec import Precision
from rnnbench.xp import Arrays, Differentiable

KEPT_FUNCTIONS = 64
"""Compiled functions of probes that are kept; the one used longest ago goes first."""

_COMPILED: dict[Hashable, Any] = {}


class JaxLab:
    """Compiles probes' functions, once for equal keys and shapes; see `rnnbench.xp.Lab`."""

    def __init__(self, device: str, precision: Precision) -> None:
        self.xp = JaxOps(precision)
        self.device = device
        self.precision = precision
        self.kernel = None
        self.compile_seconds = 0.0
        self._on = pick_device(device)

    def compute(
        self, key: Hashable, function: Callable[[Differentiable, Arrays], Arrays], arrays: Mapping[str, NDArray]
    ) -> dict[str, NDArray]:
        with jax_mode(self.precision, self._on):
            sent = {name: put(array, self.precision, self._on) for name, array in arrays.items()}
            shapes = tuple((name, array.shape, str(array.dtype)) for name, array in sorted(sent.items()))
            full = (key, self.device, self.precision, shapes)
            compiled = _COMPILED.pop(full, None)
            if compiled is None:
                began = time.perf_counter()
                compiled = jax.jit(lambda given: function(self.xp, given)).lower(sent).compile()
                self.compile_seconds += time.perf_counter() - began
            _COMPILED[full] = compiled
            while len(_COMPILED) > KEPT_FUNCTIONS:
                del _COMPILED[next(iter(_COMPILED))]
            # XLA factorizes on the CPU by SciPy's BLAS, whose own threads wait for one another by spinning: on a busy
            # machine fifty times slower than one thread at a probe's sizes
            with threadpool_limits(1, user_api="blas"):
                return {name: np.array(value) for name, value in compiled(sent).items()}


def forget_labs() -> None:
    """Drop everything compiled for probes, as a test must that changes an equation."""
    _COMPILED.clear()


def put(array: NDArray, precision: Precision, device: Any) -> Array:
    """Send an array to a device: floats in the dtype that they are kept in, booleans as they are, integers as int32."""
    if array.dtype.kind == "f":
        return jax.device_put(np.asarray(array, STORAGE[precision]), device)
    return jax.device_put(array if array.dtype.kind == "b" else np.asarray(array, np.int32), device)


@contextmanager
def jax_mode(precision: Precision, device: Any) -> Iterator[None]:
    """Set what jax keeps in globals for the length of a block: 64-bit types, device, precision of products."""
    with ExitStack() as stack:
        stack.enter_context(jax.enable_x64(precision == "float64"))
        stack.enter_context(jax.default_device(device))
        stack.enter_context(jax.default_matmul_precision(product_mode(precision)))
        yield


def product_mode(precision: Precision) -> str:
    """Return jax's name for how float32 products are computed; in full, a TPU too, unless tf32 is asked for."""
    return "tensorfloat32" if precision == "tf32" else "highest"


def pick_device(name: str) -> Any:
    """Return jax's device for ``cpu``, ``cuda:1``, ``tpu:0``."""
    kind, _, index = name.partition(":")
    return jax.devices(kind)[int(index or 0)]
