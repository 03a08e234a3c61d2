"""`Ops`: the small namespace of named operations that every equation is written over, `xp` by convention.

NumPy, PyTorch and JAX each supply one (rnnbench.backends). Arrays also take ``+ - * / **``, comparison and basic
indexing, which mean the same in all three. Derivatives are pinned where frameworks differ:

- ``abs``: 0 at 0. ``relu``: 0 at 0. ``norm``: 0 at the zero vector.
- ``clip``: 1 on the closed interval, also at its ends.
- ``maximum`` and ``minimum``: one half to each side of a tie.
- ``stop_gradient``: 0 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

from rnnbench.arrays import Array, NDArray

Arrays = dict[str, Array]
Body = Callable[[Arrays, Mapping[str, Array]], tuple[Arrays, Arrays]]


class Ops(Protocol):
    """Named operations; axes are counted as in NumPy, shapes are tuples, floats are in the run's precision."""

    def asarray(self, value: object) -> Array:
        """Bring numbers into the framework: floats in the run's precision, integers as they are."""

    def zeros(self, shape: Sequence[int]) -> Array:
        """Zeros."""

    def ones(self, shape: Sequence[int]) -> Array:
        """Ones."""

    def floats(self, x: Array) -> Array:
        """Integers or booleans as floats of the run's precision."""

    def tanh(self, x: Array) -> Array:
        """Hyperbolic tangent."""

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x))."""

    def relu(self, x: Array) -> Array:
        """max(x, 0), derivative 0 at 0."""

    def softplus(self, x: Array) -> Array:
        """log(1 + exp(x)), without overflow."""

    def exp(self, x: Array) -> Array:
        """Exponential."""

    def log(self, x: Array) -> Array:
        """Natural logarithm."""

    def sqrt(self, x: Array) -> Array:
        """Square root."""

    def sin(self, x: Array) -> Array:
        """Sine."""

    def cos(self, x: Array) -> Array:
        """Cosine."""

    def abs(self, x: Array) -> Array:
        """Absolute value, derivative 0 at 0."""

    def sign(self, x: Array) -> Array:
        """Sign: -1, 0 or 1."""

    def clip(self, x: Array, low: float, high: float) -> Array:
        """Limit to [low, high], derivative 1 on the closed interval."""

    def maximum(self, x: Array, y: Array) -> Array:
        """Elementwise larger of two arrays."""

    def minimum(self, x: Array, y: Array) -> Array:
        """Elementwise smaller of two arrays."""

    def where(self, condition: Array, x: Array, y: Array) -> Array:
        """`x` where the condition holds, else `y`."""

    def matmul(self, x: Array, y: Array) -> Array:
        """Matrix product over the last two axes, leading axes broadcast."""

    def linear(self, x: Array, weight: Array, bias: Array | None = None) -> Array:
        """``x @ weight.T + bias`` for weight [n_out n_in]."""

    def transpose(self, x: Array) -> Array:
        """Swap the last two axes."""

    def sum(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """Sum."""

    def mean(self, x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
        """Mean."""

    def amin(self, x: Array, axis: int) -> Array:
        """Smallest along an axis."""

    def norm(self, x: Array, axis: int | None = None) -> Array:
        """Euclidean norm, derivative 0 at the zero vector; scaled, so that no square under- or overflows."""

    def concat(self, arrays: Sequence[Array], axis: int) -> Array:
        """Join along an existing axis."""

    def stack(self, arrays: Sequence[Array], axis: int = 0) -> Array:
        """Join along a new axis."""

    def split(self, x: Array, parts: int, axis: int) -> Sequence[Array]:
        """Cut into equal parts."""

    def reshape(self, x: Array, shape: Sequence[int]) -> Array:
        """Same numbers in C order, new shape."""

    def broadcast_to(self, x: Array, shape: Sequence[int]) -> Array:
        """Repeat along new or unit axes."""

    def flip(self, x: Array, axis: int) -> Array:
        """Reverse along an axis."""

    def log_softmax(self, x: Array) -> Array:
        """Logarithm of the softmax over the last axis."""

    def pick(self, x: Array, index: Array) -> Array:
        """``x[..., index]``: from x [... n], index [...] of integers, the chosen entry of each row [...]."""

    def argmax(self, x: Array) -> Array:
        """Index of the first largest entry of the last axis."""

    def expm(self, x: Array) -> Array:
        """Matrix exponential."""

    def solve(self, a: Array, b: Array) -> Array:
        """Solution of a x = b."""

    def stop_gradient(self, x: Array) -> Array:
        """The same numbers, taken as constant by differentiation."""

    def scan(
        self, body: Body, carry: Arrays, xs: Mapping[str, Array], length: int, reverse: bool = False
    ) -> tuple[Arrays, Arrays]:
        """Run ``carry, y = body(carry, {name: x[t], "t": t})`` for t = 0..length-1 (or backwards).

        Returns:
            The last carry, and the y's stacked along a leading time axis (in the order of t also when backwards).
        """


Function = Callable[[Arrays], Arrays]
"""From named arrays to named arrays."""

Pullback = Callable[..., Arrays]
"""See `Differentiable.vjp`."""


class Differentiable(Ops, Protocol):
    """Operations of a framework that differentiates, as probes need it, and the factorizations that they use."""

    @property
    def dtype(self) -> Any:
        """The framework's type of floats."""

    def vjp(self, function: Function, primals: Arrays) -> tuple[Arrays, Pullback]:
        """Compute ``function(primals)`` and what takes cotangents of its values back to cotangents of the primals.

        The pullback is called as ``pullback(cotangents, many=False)``: cotangents by the names of some of the values,
        the others counting as zero. With ``many`` each has one further, leading axis, and so has each result.
        """

    def jvps(self, function: Function, primals: Arrays, tangents: Arrays) -> Arrays:
        """Return the derivative of ``function`` at `primals` along many tangents.

        Args:
            function: the function.
            primals: where.
            tangents: by the primals' names, each with one further, leading axis.

        Returns:
            The values' tangents, each with that leading axis.
        """

    def qr(self, x: Array) -> tuple[Array, Array]:
        """Reduced QR factorization over the last two axes; signs are the framework's own."""

    def svdvals(self, x: Array) -> Array:
        """Singular values over the last two axes, descending."""

    def log_abs_det(self, x: Array) -> Array:
        """ln |det| over the last two axes; -inf for a singular matrix."""


class Lab(Protocol):
    """Where probes compute: one device and precision of a framework, NumPy arrays in and out."""

    @property
    def xp(self) -> Differentiable:
        """The framework's operations, in the lab's precision."""

    @property
    def precision(self) -> str:
        """float64, float32, tf32 or bfloat16."""

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""

    @property
    def kernel(self) -> Any:
        """The framework's fused layers, for `Network.forward`; None where it has none."""

    def compute(
        self,
        key: Hashable,
        function: Callable[[Differentiable, Arrays], Arrays],
        arrays: Mapping[str, NDArray],
    ) -> dict[str, NDArray]:
        """Compute ``function(xp, arrays)``.

        Args:
            key: equal keys promise equal functions: what was compiled for one is used for the other.
            function: the computation; a framework that compiles traces it.
            arrays: floats are brought into the lab's precision, integers and booleans stay what they are.
        """
