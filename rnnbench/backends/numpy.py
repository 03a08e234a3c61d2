"""NumPy in float64: the reference that the frameworks' forward passes are held against. It does not train."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Device, Program, Trainer
from rnnbench.backends.loop import loop_scan
from rnnbench.errors import BadInput
from rnnbench.spec import Precision
from rnnbench.tasks.base import Batch, Task
from rnnbench.xp import Arrays, Body, Lab


class NumpyOps:
    """`rnnbench.xp.Ops` in NumPy float64."""

    def asarray(self, value: object) -> Array:
        array = np.asarray(value)
        return array.astype(np.float64) if array.dtype.kind == "f" else array

    def zeros(self, shape: Sequence[int]) -> Array:
        return np.zeros(tuple(shape))

    def ones(self, shape: Sequence[int]) -> Array:
        return np.ones(tuple(shape))

    def floats(self, x: Array) -> Array:
        return np.asarray(x, dtype=np.float64)

    def tanh(self, x: Array) -> Array:
        return np.tanh(x)

    def sigmoid(self, x: Array) -> Array:
        # exp of a non-positive number never overflows
        small = np.exp(-np.abs(x))
        return np.where(x >= 0, 1.0, small) / (1.0 + small)

    def relu(self, x: Array) -> Array:
        return np.maximum(x, 0.0)

    def softplus(self, x: Array) -> Array:
        return np.logaddexp(0.0, x)

    def exp(self, x: Array) -> Array:
        return np.exp(x)

    def log(self, x: Array) -> Array:
        return np.log(x)

    def sqrt(self, x: Array) -> Array:
        return np.sqrt(x)

    def sin(self, x: Array) -> Array:
        return np.sin(x)

    def cos(self, x: Array) -> Array:
        return np.cos(x)

    def abs(self, x: Array) -> Array:
        return np.abs(x)

    def sign(self, x: Array) -> Array:
        return np.sign(x)

    def clip(self, x: Array, low: float, high: float) -> Array:
        return np.clip(x, low, high)

    def maximum(self, x: Array, y: Array) -> Array:
        return np.maximum(x, y)

    def minimum(self, x: Array, y: Array) -> Array:
        return np.minimum(x, y)

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        return np.where(condition, x, y)

    def matmul(self, x: Array, y: Array) -> Array:
        return np.matmul(x, y)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        product = x @ weight.T
        return product if bias is None else product + bias

    def transpose(self, x: Array) -> Array:
        return np.swapaxes(x, -1, -2)

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return np.sum(x, axis=axis, keepdims=keepdims)

    def mean(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return np.mean(x, axis=axis, keepdims=keepdims)

    def amin(self, x: Array, axis: int) -> Array:
        return np.min(x, axis=axis)

    def norm(self, x: Array, axis: int | None = None) -> Array:
        peak = np.max(np.abs(x), axis=axis, keepdims=True)
        scale = np.where((peak == 0) | np.isinf(peak), 1.0, peak)  # an infinite entry makes the norm infinite
        root = np.sqrt(np.sum((x / scale) ** 2, axis=axis))
        return np.reshape(scale, np.shape(root)) * root

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return np.concatenate(list(arrays), axis=axis)

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return np.stack(list(arrays), axis=axis)

    def split(self, x: Array, parts: int, axis: int) -> Sequence[Array]:
        return np.split(x, parts, axis=axis)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return np.reshape(x, tuple(shape))

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        return np.broadcast_to(x, tuple(shape))

    def flip(self, x: Array, axis: int) -> Array:
        return np.flip(x, axis=axis)

    def log_softmax(self, x: Array) -> Array:
        shifted = x - np.max(x, axis=-1, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))

    def pick(self, x: Array, index: Array) -> Array:
        return np.take_along_axis(x, index[..., None], axis=-1)[..., 0]

    def argmax(self, x: Array) -> Array:
        return np.argmax(x, axis=-1)

    def expm(self, x: Array) -> Array:
        from scipy.linalg import expm

        return expm(x)

    def solve(self, a: Array, b: Array) -> Array:
        return np.linalg.solve(a, b)

    def stop_gradient(self, x: Array) -> Array:
        return x

    def scan(
        self, body: Body, carry: Arrays, xs: Mapping[str, Array], length: int, reverse: bool = False
    ) -> tuple[Arrays, Arrays]:
        return loop_scan(body, carry, xs, length, reverse, np.stack)


class NumpyBackend:
    """Forward passes in float64."""

    name: ClassVar[str] = "numpy"

    def check(self, device: str, precision: Precision) -> None:
        if device != "cpu" or precision != "float64":
            raise BadInput(f"backend: numpy computes on the CPU in float64, not on {device} in {precision}")

    def ops(self, device: str = "cpu", precision: Precision = "float64") -> NumpyOps:
        """Return the float64 operations; there is no other precision."""
        return NumpyOps()

    def devices(self) -> list[Device]:
        return [Device("cpu", True, "float64 reference for forward passes; does not train")]

    def versions(self) -> dict[str, str]:
        return {"numpy": np.__version__}

    def facts(self, device: str, precision: Precision) -> dict[str, Any]:
        return {}

    def set_threads(self, threads: int) -> int:
        """Nothing to set: NumPy's threads are set by the environment before it is imported."""
        return threads

    def adopt(self, reference: str, task: Task, seed: int) -> Any:
        raise BadInput("backend: numpy runs no user's models; use torch or jax")

    def trainer(self, program: Program, device: str, precision: Precision, path: str) -> Trainer:
        raise BadInput("backend: numpy is the reference for forward passes and does not train; use torch or jax")

    def lab(self, device: str, precision: Precision) -> Lab:
        raise BadInput("backend: numpy does not differentiate, and probes nothing; use torch or jax")

    def forward(
        self, program: Program, params: Mapping[str, NDArray], buffers: Mapping[str, NDArray], batch: Batch
    ) -> tuple[float, NDArray, dict[str, NDArray]]:
        """Return (training loss, outputs, every state at every step [time batch size]) in float64."""
        loss, result = program.loss(NumpyOps(), params, buffers, batch.cast("float64").arrays(), record=True)
        return float(loss), result.outputs, result.states
