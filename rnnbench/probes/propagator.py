"""How a disturbance of the whole state at t shows at t + lag: the product of the Jacobians between."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import STORAGE
from rnnbench.cells.network import Network
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import PROPAGATOR
from rnnbench.probes.systems import Dynamics, System, chunk_steps, systems
from rnnbench.signals import Signal, SignalKind
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Differentiable

PIECE = 256
"""Steps that are taken at once at most; a power of two, so that few lengths need compiling."""

CHUNKS = 16
"""Chunks of Jacobians that are computed in one call at most: 64 MB."""


class Propagator(Probe):
    """Size and shape of dS_{t+lag}/dS_t, the Jacobian of the whole state between two times.

    The first origin is the first step, from which the longest lag reaches to the last; the others are spread evenly,
    and have no number at lags that lead beyond the sequence. For a system that reads backwards origins and lags count
    in its order of reading. A product is renormalized at every step.

    Of a product of many matrices in floating point only the singular values above about eps (n + lag) times the largest
    are more than rounding; the others are not a number. A state of more than `exact_up_to` entries is probed with
    random directions instead (Hutchinson's estimate of the Frobenius norm, its standard error beside it), and its
    largest singular value is estimated from below by block power iteration, each lag starting from the last one's.
    """

    name: ClassVar[str] = "propagator"
    source: ClassVar[str] = (
        "Pascanu, Mikolov & Bengio, ICML 2013, eq. 5; Hutchinson, Communications in Statistics 1990; Halko, Martinsson "
        "& Tropp, SIAM Review 2011, algorithm 4.4"
    )
    equation: ClassVar[str] = "P(t, lag) = J_{t+lag} ... J_{t+1},  J_t = dS_t/dS_{t-1}"
    signals: ClassVar[tuple[SignalKind, ...]] = PROPAGATOR

    origins: Annotated[int, Field(ge=1, le=256, description="steps that propagators start from")] = 3
    sequences: Annotated[int, Field(ge=1, le=4096, description="sequences to follow")] = 2
    lags_per_decade: Annotated[int, Field(ge=1, le=1000, description="lags in each power of ten")] = 8
    exact_up_to: Annotated[int, Field(ge=0, le=8192, description="state entries up to which all is exact")] = 512
    directions: Annotated[int, Field(ge=2, le=1024, description="random directions, and width of the block")] = 16
    iterations: Annotated[int, Field(ge=0, le=100, description="of the block power iteration, for each lag")] = 3

    def measure(self, look: Look) -> Iterator[Signal]:
        network = look.program.network
        if not isinstance(network, Network) or network.length < 2:
            return
        lags = spaced(network.length - 1, self.lags_per_decade)
        number = min(self.origins, network.length - 1)
        origins = np.arange(number) * (network.length - 1) // number
        yield recorded("propagator.lags", lags, look.step)
        yield recorded("propagator.origins", origins, look.step)
        for system in systems(network):
            yield from self._system(look, system, origins, lags)

    def _system(self, look: Look, system: System, origins: NDArray, lags: NDArray) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        course = look.lab.compute(
            ("propagator/course", look.key, system.name), partial(_course, system), look.arrays(batch)
        )
        sizes = (len(origins), batch.size)
        path = _Path(look, system, course, origins)
        found = self._exact(path, lags) if system.size <= self.exact_up_to else self._probed(path, lags)
        room = path.room(lags)  # [origin lag batch]
        for name, values in found.items():
            shaped = np.moveaxis(values.reshape(len(lags), *sizes, *values.shape[2:]), 0, 1)
            shaped = np.where(room.reshape(room.shape + (1,) * (shaped.ndim - 3)), shaped, np.nan)
            kind, _, of = name.partition("/")
            yield recorded(f"propagator.{kind}", shaped, look.step, of or system.name)

    def _exact(self, path: _Path, lags: NDArray) -> dict[str, NDArray]:
        """Return what is to be recorded [lag rows ...] from the whole product."""
        n, lab = path.system.size, path.look.lab
        eps = float(np.finfo(STORAGE[lab.precision]).eps)
        carry = {"product": np.tile(np.eye(n), (path.size, 1, 1)), "log_scale": np.zeros(path.size)}
        longest = min(PIECE, chunk_steps(path.system, path.size, CHUNKS))
        kept: dict[str, list[NDArray]] = {}
        done = 0
        for lag in lags:
            for start, stop in _pieces(done, int(lag), longest):
                carry = path.compute("product", _advance, start, stop, carry)
            done = int(lag)
            product, log_scale = carry["product"].astype(np.float64), carry["log_scale"].astype(np.float64)
            usable = _finite(product)
            safe = np.where(usable[:, None, None], product, 0.0)
            values = lab.compute(("propagator/values", path.look.key), _singular_values, {"product": safe})["values"]
            values = np.where(usable[:, None], values.astype(np.float64), np.nan)
            floor = eps * (n + done) * values[:, :1]
            with np.errstate(divide="ignore", invalid="ignore"):
                logs = np.log(values) + log_scale[:, None]
            # where all is zero, zeros are exact
            logs[:, 1:][(values <= floor)[:, 1:] & (values[:, :1] > 0)] = np.nan
            here = {"log_norm": logs[:, 0], "log_singular_values": logs}
            here["log_frobenius"] = _log_frobenius(product) + log_scale
            here["log_frobenius_error"] = np.zeros(path.size)
            for to, source, name in path.blocks():
                here[f"block_log_norm/{name}"] = _log_frobenius(product[:, to, source]) + log_scale
            for name, value in here.items():
                kept.setdefault(name, []).append(value)
        return {name: np.stack(values) for name, values in kept.items()}

    def _probed(self, path: _Path, lags: NDArray) -> dict[str, NDArray]:
        """Return what is to be recorded [lag rows] from products with a few directions."""
        n, count, parts = path.system.size, self.directions, path.system.parts
        draw = stream(path.look.seed, f"probe/propagator/{path.system.name}", path.look.step)
        signs = 2.0 * draw.integers(0, 2, (count, path.size, n)) - 1.0
        # each named state is disturbed by itself: what the whole state's disturbance does is the sum
        tangents = np.zeros((len(parts), count, path.size, n))
        for number, part in enumerate(parts):
            tangents[number, ..., part.low : part.high] = signs[..., part.low : part.high]
        sent = Block(tangents.reshape(-1, path.size, n), np.zeros(path.size))
        basis = np.moveaxis(np.linalg.qr(draw.standard_normal((path.size, n, count)))[0], 2, 0)
        kept: dict[str, list[NDArray]] = {}
        done = 0
        for lag in lags:
            sent = path.forward(sent, done, int(lag))
            done = int(lag)
            reached = sent.values.reshape(len(parts), count, path.size, n)
            here: dict[str, NDArray] = {}
            here["log_frobenius"], here["log_frobenius_error"] = _estimate(reached.sum(axis=0), sent.log_scale)
            for number, source in enumerate(parts):
                for to in parts:
                    name = f"{path.system.name}:{to.name}<{source.name}"
                    here[f"block_log_norm/{name}"] = _estimate(reached[number, ..., to.low : to.high], sent.log_scale)[
                        0
                    ]
            basis, here["log_norm"] = self._power(path, basis, done)
            for name, value in here.items():
                kept.setdefault(name, []).append(value)
        return {name: np.stack(values) for name, values in kept.items()}

    def _power(self, path: _Path, basis: NDArray, lag: int) -> tuple[NDArray, NDArray]:
        """Turn orthonormal directions [many rows n] towards those that grow most; return ln of the most growth [rows].

        Whatever the directions, an orthonormal block cannot grow by more than the largest singular value.
        """
        for _ in range(self.iterations):
            back = path.backward(path.forward(Block(basis, np.zeros(path.size)), 0, lag), 0, lag).values
            if not np.isfinite(back).all():
                break
            basis = np.moveaxis(np.linalg.qr(np.moveaxis(back, 0, 2))[0], 2, 0)
        grown = path.forward(Block(basis, np.zeros(path.size)), 0, lag)
        rows = np.moveaxis(grown.values, 0, 1)  # [rows many n]
        usable = _finite(rows)
        safe = np.where(usable[:, None, None], rows, 0.0)
        with np.errstate(divide="ignore"):
            largest = np.log(np.linalg.svd(safe, compute_uv=False)[:, 0])
        return basis, np.where(usable, largest, np.nan) + grown.log_scale


@dataclass(frozen=True)
class Block:
    """Directions apart from their scale: ``values * exp(log_scale)``, [many rows n] and [rows]."""

    values: NDArray
    log_scale: NDArray


@dataclass(frozen=True)
class _Path:
    """The rows of a system along sequences, as many times side by side as there are origins.

    Attributes:
        look: the model.
        system: the system.
        course: rows [time batch ...].
        origins: steps in the order of reading.
    """

    look: Look
    system: System
    course: Mapping[str, NDArray]
    origins: NDArray

    @property
    def batch(self) -> int:
        return int(self.course["before"].shape[1])

    @property
    def size(self) -> int:
        """Rows side by side: origins times sequences."""
        return len(self.origins) * self.batch

    def blocks(self) -> Iterator[tuple[slice, slice, str]]:
        """Yield where a named state acts on another in a Jacobian, and the block's name."""
        for to in self.system.parts:
            for source in self.system.parts:
                name = f"{self.system.name}:{to.name}<{source.name}"
                yield slice(to.low, to.high), slice(source.low, source.high), name

    def room(self, lags: NDArray) -> NDArray:
        """Return [origin lag batch]: whether all steps from an origin to a lag beyond it belong to the sequence."""
        length = len(self.course["before"])
        ends = self.origins[:, None] + lags[None, :]
        found: NDArray = np.repeat(np.less(ends, length)[:, :, None], self.batch, axis=2)
        if "valid" in self.course:
            taken = np.concatenate([np.zeros((1, self.batch)), np.cumsum(self.course["valid"][:, :, 0], axis=0)])
            last = np.minimum(ends, length - 1) + 1
            found = found & np.equal(taken[last] - taken[self.origins + 1][:, None], lags[None, :, None])
        return found

    def rows(self, start: int, stop: int) -> dict[str, NDArray]:
        """Return rows [lag origin*batch ...] of the steps from lag `start` + 1 to lag `stop` from each origin.

        Beyond the sequence's end, where nothing is recorded, the last step stands in.
        """
        steps = self.origins[None, :] + np.arange(start + 1, stop + 1)[:, None]
        steps = np.minimum(steps, len(self.course["before"]) - 1)
        found = {}
        for name, values in self.course.items():
            chosen = values[steps]  # [lag origin batch ...]
            found[f"rows/{name}"] = chosen.reshape(stop - start, self.size, *chosen.shape[3:])
        return found

    def compute(self, name: str, function: _Function, start: int, stop: int, more: Mapping[str, NDArray]) -> _Found:
        """Compute a function of the steps between two lags."""
        look = self.look
        arrays = {f"params/{name}": array for name, array in look.params.items()}
        arrays |= {f"buffers/{name}": array for name, array in look.buffers.items()}
        key = (f"propagator/{name}", look.key, self.system.name)
        return look.lab.compute(key, partial(function, self.system), {**arrays, **self.rows(start, stop), **more})

    def forward(self, block: Block, start: int, stop: int) -> Block:
        """Take tangents from lag `start` to lag `stop`."""
        for low, high in _pieces(start, stop, PIECE):
            block = self._turn("forward", _forward, low, high, block)
        return block

    def backward(self, block: Block, start: int, stop: int) -> Block:
        """Take cotangents from lag `stop` back to lag `start`."""
        for low, high in reversed(list(_pieces(start, stop, PIECE))):
            block = self._turn("backward", _backward, low, high, block)
        return block

    def _turn(self, name: str, function: _Function, low: int, high: int, block: Block) -> Block:
        found = self.compute(name, function, low, high, {"values": block.values, "log_scale": block.log_scale})
        return Block(found["values"].astype(np.float64), found["log_scale"].astype(np.float64))


_Found = dict[str, NDArray]
_Function = Callable[[System, Differentiable, Arrays], Arrays]


def spaced(longest: int, per_decade: int) -> NDArray:
    """Return ascending lags from 1 to `longest`, evenly spaced on a logarithmic scale as far as whole steps can be."""
    exponents = np.arange(int(np.ceil(np.log10(longest) * per_decade)) + 1) / per_decade
    return np.unique(np.append(np.minimum(np.round(10.0**exponents), longest), longest)).astype(np.int64)


def _pieces(start: int, stop: int, longest: int) -> Iterator[tuple[int, int]]:
    """Cut a stretch of steps into pieces of as few different lengths as can be: powers of two up to `longest`."""
    while start < stop:
        length = min(longest, 1 << ((stop - start).bit_length() - 1))
        yield start, start + length
        start += length


def _finite(matrices: NDArray) -> NDArray:
    """Return which matrices [rows ...] hold numbers only."""
    return np.asarray(np.isfinite(matrices).all(axis=(1, 2)))


def _log_frobenius(matrices: NDArray) -> NDArray:
    """Return ln of the Frobenius norms of matrices [rows to from]: [rows]; -inf for zero, whatever the scale."""
    peak = np.abs(matrices).max(axis=(1, 2), initial=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = matrices / np.where(peak > 0, peak, 1.0)[:, None, None]
        found: NDArray = np.log(peak) + 0.5 * np.log(np.where(peak > 0, (scaled**2).sum(axis=(1, 2)), 1.0))
    return found


def _estimate(reached: NDArray, log_scale: NDArray) -> tuple[NDArray, NDArray]:
    """Return ln of the Frobenius norm [rows] and its standard error, from what became of random signs [many rows n].

    E |P z|^2 = |P|_F^2 for z of independent signs; the error of a logarithm is the relative one.
    """
    peak = np.abs(reached).max(axis=(0, 2), initial=0.0)
    scaled = reached / np.where(peak > 0, peak, 1.0)[:, None]
    squares = (scaled**2).sum(axis=2)  # [many rows]
    mean = squares.mean(axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        value = np.where(peak > 0, np.log(peak) + 0.5 * np.log(mean), np.log(peak)) + log_scale
        error = np.where(peak > 0, 0.5 * squares.std(axis=0, ddof=1) / np.sqrt(len(squares)) / mean, 0.0)
    return value, error


def _course(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return the system's rows [time batch ...]."""
    params, buffers, batch = unpacked(arrays)
    return Dynamics(xp, system, params, buffers).course(batch["inputs"], batch["lengths"])


def _given(system: System, xp: Differentiable, arrays: Arrays) -> tuple[Dynamics, Arrays]:
    params, buffers, _ = unpacked(arrays)
    rows = {name.removeprefix("rows/"): x for name, x in arrays.items() if name.startswith("rows/")}
    return Dynamics(xp, system, params, buffers), rows


def _singular_values(xp: Differentiable, arrays: Arrays) -> Arrays:
    return {"values": xp.svdvals(arrays["product"])}


def _advance(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Multiply a product [rows n n] by the Jacobians of further steps, renormalizing at each."""
    dynamics, rows = _given(system, xp, arrays)
    count, n = int(arrays["product"].shape[0]), system.size

    def body(carry: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        product = xp.matmul(x["jacobian"], carry["product"])
        scale = _positive(xp, -xp.amin(-xp.abs(xp.reshape(product, (count, n * n))), axis=-1))
        return {
            "product": product / scale[:, None, None],
            "log_scale": carry["log_scale"] + xp.log(scale),
        }, {}

    jacobians = dynamics.jacobians(rows)
    start = {name: arrays[name] for name in ("product", "log_scale")}
    return xp.scan(body, start, {"jacobian": jacobians}, int(jacobians.shape[0]))[0]


def _forward(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    return _followed(system, xp, arrays, reverse=False)


def _backward(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    return _followed(system, xp, arrays, reverse=True)


def _followed(system: System, xp: Differentiable, arrays: Arrays, reverse: bool) -> Arrays:
    """Take vectors [many rows n] through steps, forward or transposed and backward, renormalizing at each."""
    dynamics, rows = _given(system, xp, arrays)
    take = dynamics.backward if reverse else dynamics.forward

    def body(carry: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        values = take({name: each for name, each in x.items() if name != "t"}, carry["values"])
        scale = _positive(xp, -xp.amin(xp.amin(-xp.abs(values), axis=-1), axis=0))
        return {"values": values / scale[None, :, None], "log_scale": carry["log_scale"] + xp.log(scale)}, {}

    start = {name: arrays[name] for name in ("values", "log_scale")}
    return xp.scan(body, start, rows, int(rows["before"].shape[0]), reverse)[0]


def _positive(xp: Differentiable, x: Array) -> Array:
    """Return what can be divided by: 1 in the place of zero, and of what is not a number."""
    return xp.where(x > 0, x, xp.ones(x.shape))
