"""`rnnbench.xp.Ops` in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from rnnbench.arrays import Array
from rnnbench.backends.base import STORAGE
from rnnbench.backends.loop import loop_scan
from rnnbench.spec import Precision
from rnnbench.xp import Arrays, Body, Function, Pullback


class TorchOps:
    """Operations on one device in one precision.

    In bfloat16 the factors of every product of the forward pass are rounded to bfloat16 and the product is kept in
    float32; on the way back the derivative by each factor is rounded, not what it is a product of. In float32 and tf32
    the factors are left to the hardware's mode, which `TorchTrainer` sets and the record names.
    """

    def __init__(self, device: str = "cpu", precision: Precision = "float64") -> None:
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, STORAGE[precision])
        self.rounded = precision == "bfloat16"
        # tensor methods that need no adaptation, bound once: attribute look-ups count in a loop over time
        self.tanh = torch.tanh
        self.sigmoid = torch.sigmoid
        self.relu = torch.relu
        self.exp = torch.exp
        self.log = torch.log
        self.sqrt = torch.sqrt
        self.sin = torch.sin
        self.cos = torch.cos
        self.sign = torch.sign
        self.where = torch.where
        self.maximum = torch.maximum
        self.minimum = torch.minimum
        self.abs = torch.abs
        self.expm = torch.linalg.matrix_exp
        self.solve = torch.linalg.solve

    def asarray(self, value: object) -> Array:
        if isinstance(value, torch.Tensor):
            tensor = value.to(self.device)
        else:
            array = np.asarray(value)
            if not array.flags.writeable:
                array = array.copy()
            tensor = torch.as_tensor(array, device=self.device)
        return tensor.to(self.dtype) if tensor.is_floating_point() else tensor

    def zeros(self, shape: Sequence[int]) -> Array:
        return torch.zeros(tuple(shape), dtype=self.dtype, device=self.device)

    def ones(self, shape: Sequence[int]) -> Array:
        return torch.ones(tuple(shape), dtype=self.dtype, device=self.device)

    def floats(self, x: Array) -> Array:
        return x.to(self.dtype)

    def softplus(self, x: Array) -> Array:
        return -functional.logsigmoid(-x)  # functional.softplus is x itself above 20, 1e-10 off

    def clip(self, x: Array, low: float, high: float) -> Array:
        return torch.clamp(x, low, high)

    def matmul(self, x: Array, y: Array) -> Array:
        if self.rounded:
            return torch.matmul(_rounded(x), _rounded(y))
        return torch.matmul(x, y)

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        if self.rounded:
            return functional.linear(_rounded(x), _rounded(weight), bias)
        return functional.linear(x, weight, bias)

    def transpose(self, x: Array) -> Array:
        return x.transpose(-1, -2)

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return x.sum(dim=axis, keepdim=keepdims)

    def mean(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        return x.mean(dim=axis, keepdim=keepdims)

    def amin(self, x: Array, axis: int) -> Array:
        return x.amin(dim=axis)

    def norm(self, x: Array, axis: int | None = None) -> Array:
        size = x.detach().abs()
        peak = size.amax() if axis is None else size.amax(dim=axis, keepdim=True)
        # an infinite entry makes the norm infinite
        scale = torch.where((peak == 0) | peak.isinf(), torch.ones_like(peak), peak)
        square = self.sum((x / scale) ** 2, axis=axis)
        zero = square == 0
        # the root's infinite slope at 0 must not be multiplied by a zero: that would be NaN
        root = torch.where(zero, torch.zeros_like(square), torch.where(zero, torch.ones_like(square), square).sqrt())
        return scale.reshape(root.shape) * root

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        return torch.cat(list(arrays), dim=axis)

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        return torch.stack(list(arrays), dim=axis)

    def split(self, x: Array, parts: int, axis: int) -> Sequence[Array]:
        return torch.chunk(x, parts, dim=axis)

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        return x.reshape(tuple(shape))

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        return x.expand(tuple(shape))

    def flip(self, x: Array, axis: int) -> Array:
        return torch.flip(x, (axis,))

    def log_softmax(self, x: Array) -> Array:
        return functional.log_softmax(x, dim=-1)

    def pick(self, x: Array, index: Array) -> Array:
        return torch.gather(x, -1, index.unsqueeze(-1)).squeeze(-1)

    def argmax(self, x: Array) -> Array:
        return torch.argmax(x, dim=-1)

    def stop_gradient(self, x: Array) -> Array:
        return x.detach()

    def scan(
        self, body: Body, carry: Arrays, xs: Mapping[str, Array], length: int, reverse: bool = False
    ) -> tuple[Arrays, Arrays]:
        columns: dict[str, Any] = {name: x.unbind(0) for name, x in xs.items()}
        return loop_scan(body, carry, columns, length, reverse, self.stack)

    def vjp(self, function: Function, primals: Arrays) -> tuple[Arrays, Pullback]:
        with torch.enable_grad():
            leaves = {name: x.detach().requires_grad_() for name, x in primals.items()}
            values = function(leaves)

        def pullback(cotangents: Arrays, many: bool = False) -> Arrays:
            reached = {name: cotangents[name] for name in cotangents if values[name].requires_grad}

            def back(given: Arrays) -> Arrays:
                found = torch.autograd.grad(
                    [values[name] for name in given],
                    list(leaves.values()),
                    list(given.values()),
                    retain_graph=True,
                    allow_unused=True,
                )
                return _zeros_for_none(leaves, found)

            if reached:
                # not is_grads_batched, which takes tanh and others one cotangent after another
                derived: Arrays = torch.func.vmap(back)(reached) if many else back(reached)
                return derived
            count = (next(iter(cotangents.values())).shape[0],) if many else ()
            return {name: x.new_zeros((*count, *x.shape)) for name, x in leaves.items()}

        return {name: value.detach() for name, value in values.items()}, pullback

    def jvps(self, function: Function, primals: Arrays, tangents: Arrays) -> Arrays:
        # the pullback is linear in the cotangent, and its own pullback is the derivative: at 128 tangents fifty times
        # faster than torch.func.jvp, which takes some operations one tangent after another
        with torch.enable_grad():
            leaves = {name: x.detach().requires_grad_() for name, x in primals.items()}
            values = function(leaves)
            reached = [name for name, value in values.items() if value.requires_grad]
            seeds = [torch.zeros_like(values[name]).requires_grad_() for name in reached]
            back = torch.autograd.grad(
                [values[name] for name in reached], list(leaves.values()), seeds, create_graph=True, allow_unused=True
            )
        linear = {name: b for name, b in zip(leaves, back, strict=True) if b is not None and b.requires_grad}

        def along(given: Arrays) -> Arrays:
            found = torch.autograd.grad(
                list(linear.values()), seeds, [given[name] for name in linear], retain_graph=True, allow_unused=True
            )
            return _zeros_for_none({name: values[name] for name in reached}, found)

        count = next(iter(tangents.values())).shape[0]
        derived: Arrays = {name: value.new_zeros((count, *value.shape)) for name, value in values.items()}
        return derived | (torch.func.vmap(along)(tangents) if linear else {})

    def qr(self, x: Array) -> tuple[Array, Array]:
        if x.device.type != "cpu":
            q, r = torch.linalg.qr(x)
            return q, r
        # what torch.linalg.qr does, without its copies: a sixth of its time at 128 columns
        factors, tau = torch.geqrf(x)
        columns = min(x.shape[-2:])
        return torch.linalg.householder_product(factors[..., :columns], tau), factors[..., :columns, :].triu()

    def svdvals(self, x: Array) -> Array:
        return torch.linalg.svdvals(x)

    def log_abs_det(self, x: Array) -> Array:
        if x.device.type != "cpu":
            return torch.linalg.slogdet(x)[1]
        # one after another: of many at once, torch 2.13 calls MKL's getrf from several threads, which then gives wrong
        # numbers from some 150 rows on (pytorch/pytorch#142815)
        flat = x.reshape(-1, *x.shape[-2:])
        found = [torch.linalg.slogdet(matrix)[1] for matrix in flat]
        return torch.stack(found).reshape(x.shape[:-2])


def _rounded(x: torch.Tensor) -> torch.Tensor:
    """Round to bfloat16 and back: the product of two such numbers is exact in float32, its sum is float32's."""
    return x.to(torch.bfloat16).to(torch.float32)


def _zeros_for_none(like: Mapping[str, torch.Tensor], found: Sequence[torch.Tensor | None]) -> Arrays:
    """Name derivatives; of what nothing depends on they are zero."""
    return {
        name: torch.zeros_like(x) if derivative is None else derivative
        for (name, x), derivative in zip(like.items(), found, strict=True)
    }
