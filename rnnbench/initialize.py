"""How parameters start. Each rule is a small frozen object: called with a stream and a shape, it draws float64.

A matrix that holds several gates stacked along its first axis is drawn gate by gate (`blocks`), since a gate's fan-out
is its own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rnnbench.arrays import NDArray


@dataclass(frozen=True)
class Zeros:
    """All zero."""

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Return zeros."""
        return np.zeros(shape)


@dataclass(frozen=True)
class Blocks:
    """Constant over each of len(values) equal blocks of the first axis: a bias for each gate."""

    values: tuple[float, ...]

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Return each value repeated over its block."""
        return np.repeat(np.asarray(self.values, dtype=np.float64), shape[0] // len(self.values)).reshape(shape)


@dataclass(frozen=True)
class Uniform:
    """Uniform on [-bound, bound]."""

    bound: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Draw."""
        return rng.uniform(-self.bound, self.bound, shape)


@dataclass(frozen=True)
class Normal:
    """Normal with mean 0 and the given standard deviation."""

    std: float

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Draw."""
        return rng.standard_normal(shape) * self.std


@dataclass(frozen=True)
class GlorotUniform:
    """Uniform on +-sqrt(6 / (fan_in + fan_out)) (Glorot & Bengio 2010, eq. 16), for each block of the first axis."""

    blocks: int = 1

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Draw a matrix [blocks*fan_out fan_in]."""
        bound = np.sqrt(6.0 / (shape[1] + shape[0] // self.blocks))
        return rng.uniform(-bound, bound, shape)


@dataclass(frozen=True)
class Orthogonal:
    """Orthogonal, uniformly distributed (Saxe, McClelland & Ganguli 2014; Mezzadri 2007), for each block."""

    blocks: int = 1
    gain: float = 1.0

    def __call__(self, rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray:
        """Draw a matrix [blocks*n m] of blocks with orthonormal rows or columns, whichever are fewer."""
        from threadpoolctl import threadpool_limits

        rows, columns = shape[0] // self.blocks, shape[1]
        # a factorization's last bits depend on the number of BLAS threads, and a seed must mean one set of bytes
        with threadpool_limits(1, user_api="blas"):
            return self.gain * np.concatenate([self._one(rng, rows, columns) for _ in range(self.blocks)])

    @staticmethod
    def _one(rng: np.random.Generator, rows: int, columns: int) -> NDArray:
        tall = rng.standard_normal((max(rows, columns), min(rows, columns)))
        q, r = np.linalg.qr(tall)
        q *= np.sign(np.diag(r))  # without this the distribution is not uniform (Mezzadri 2007, section 5)
        return q if rows >= columns else q.T
