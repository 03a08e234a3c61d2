"""Finite-time Lyapunov exponents along a task's own sequences, and what the recurrent weights' eigenvalues say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.network import Network
from rnnbench.errors import BadInput
from rnnbench.initialize import Orthogonal
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import SPECTRUM
from rnnbench.probes.systems import Dynamics, System, chunk_steps, systems
from rnnbench.signals import Signal, SignalKind
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Differentiable

ALL = 256
"""A state of up to so many entries has all its exponents computed, unless a number is asked for."""

LEADING = 32
"""So many are computed of a larger one."""


class Spectrum(Probe):
    """Lyapunov exponents by QR at every step, their sum against the log-determinant, and the weights' eigenvalues.

    The exponents are those of the product of the Jacobians along each sequence, from its first step to its last, and
    so belong to that time: they start from random orthonormal directions, whose turning into the directions of growth
    is a part of it. `settle` leaves the first steps out, for the exponents of the long run. Steps after a sequence's
    end, where its state is held, do not count.

    Where units are dead a Jacobian has zero rows: as many exponents are minus infinity as it then lacks in rank.
    """

    name: ClassVar[str] = "spectrum"
    source: ClassVar[str] = (
        "Benettin et al., Meccanica 1980; Geist, Parlitz & Lauterborn, Progress of Theoretical Physics 1990; for "
        "recurrent networks Engelken, Wolf & Abbott, Physical Review Research 2023; Henrici, Numerische Mathematik 1962"
    )
    equation: ClassVar[str] = "\n".join(
        (
            "J_t Q_{t-1} = Q_t R_t,  J_t = dS_t/dS_{t-1}",
            "lambda_i = 1/T sum_t ln |R_t,ii|,  sum_i lambda_i = 1/T sum_t ln |det J_t|",
        )
    )
    signals: ClassVar[tuple[SignalKind, ...]] = SPECTRUM

    exponents: Annotated[int, Field(ge=1, le=65536)] | None = Field(
        None, description=f"how many, from the largest on; by default all of up to {ALL} states, else {LEADING}"
    )
    sequences: Annotated[int, Field(ge=1, le=4096, description="sequences to follow")] = 2
    settle: Annotated[int, Field(ge=0, description="first steps that do not count")] = 0

    def measure(self, look: Look) -> Iterator[Signal]:
        network = look.program.network
        if not isinstance(network, Network):
            return
        if self.settle >= network.length:
            raise BadInput(f"probe spectrum.settle: {self.settle} steps leave none of the sequence's {network.length}")
        for system in systems(network):
            yield from self._exponents(look, system)
        yield from _weights(look, network)

    def _exponents(self, look: Look, system: System) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        network, n = system.network, system.size
        count = min(n, self.exponents or (n if n <= ALL else LEADING))
        drawn = stream(look.seed, f"probe/spectrum/{system.name}", look.step)
        found = look.lab.compute(
            ("spectrum", look.key, system.name, network.masked, count),
            partial(_rates, system),
            {**look.arrays(batch), "start": Orthogonal()(drawn, (n, count))},
        )
        rates = found["rates"].astype(np.float64)  # [time batch rank], in the order of reading
        length = rates.shape[0]
        counts = _valid(batch.lengths, length, system) & (np.arange(length) >= self.settle)[:, None]
        steps = counts.sum(axis=0)  # [batch]
        means = _mean(rates, counts)
        order = np.argsort(-means, axis=1, kind="stable")
        exponents = np.take_along_axis(means, order, axis=1)
        largest = np.take_along_axis(rates, order[None, :, :1], axis=2)[:, :, 0]
        yield recorded("spectrum.exponents", exponents, look.step, system.name)
        yield recorded("spectrum.local", _in_time(largest, counts, system), look.step, system.name)
        if "log_det" in found:
            log_det = found["log_det"].astype(np.float64)
            mean = _mean(log_det[..., None], counts)[:, 0]
            # a singular step makes both minus infinity, and there is nothing to compare
            comparable = np.isfinite(mean) & (steps > 0)
            error = np.full(mean.shape, np.nan)
            error[comparable] = exponents[comparable].sum(axis=1) - mean[comparable]
            yield recorded("spectrum.log_det", _in_time(log_det, counts, system), look.step, system.name)
            yield recorded("spectrum.sum_error", error, look.step, system.name)


def _valid(lengths: NDArray, length: int, system: System) -> NDArray:
    """Return [time batch] in the order of reading: whether a step is one of the sequence."""
    valid = np.arange(length)[:, None] < np.where(system.network.masked, lengths, length)[None, :]
    found: NDArray = valid[::-1] if system.reverse else valid
    return found


def _mean(values: NDArray, counts: NDArray) -> NDArray:
    """Return the means [batch rank] of values [time batch rank] over the steps that count; NaN where none does."""
    with np.errstate(invalid="ignore"):
        total = np.where(counts[..., None], values, 0.0).sum(axis=0)
        found: NDArray = total / counts.sum(axis=0)[:, None]
    return found


def _in_time(values: NDArray, counts: NDArray, system: System) -> NDArray:
    """Return values [time batch] in the order of t, NaN at steps that do not count."""
    blanked = np.where(counts, values, np.nan)
    found: NDArray = blanked[::-1] if system.reverse else blanked
    return found


def _rates(system: System, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return ln |R_ii| [time batch rank] of each step, and its ln |det J| [time batch] where all are computed."""
    params, buffers, batch = unpacked(arrays)
    dynamics = Dynamics(xp, system, params, buffers)
    rows = dynamics.course(batch["inputs"], batch["lengths"])
    n, count = (int(size) for size in arrays["start"].shape)
    follow = _by_products if 2 * count <= n else _by_jacobians
    found = follow(dynamics, rows, arrays["start"])
    rates = xp.log(xp.abs(found["diagonal"]))
    # what lies beyond the rank is zero, of which a factorization leaves rounding: a step hands on no more directions
    # than it has rows that are not zero, nor than it reads of those that the step before handed on
    written, read = found["rows"], found["columns"]
    before = xp.concat([xp.ones((1, *written.shape[1:])), written[:-1]], axis=0)
    rank = xp.minimum(xp.sum(written, axis=-1), xp.sum(read * before, axis=-1))
    within = xp.asarray(list(range(count))) < rank[..., None]
    kept = {"rates": xp.where(within, rates, xp.log(xp.zeros(rates.shape)))}
    return kept | {name: found[name] for name in ("log_det",) if name in found}


def _by_jacobians(dynamics: Dynamics, rows: Arrays, start: Array) -> Arrays:
    """Follow directions by whole Jacobians, computed for many steps at once.

    Returns:
        ``diagonal`` of R [time batch rank]; ``rows`` and ``columns`` [time batch n], 1 for those of the Jacobian that
        are not zero, else 0; where all exponents are computed, ``log_det`` [time batch].
    """
    xp, (n, count) = dynamics.xp, (int(size) for size in start.shape)
    length, size = (int(extent) for extent in rows["before"].shape[:2])
    chunk = min(chunk_steps(dynamics.system, size), length)

    def turn(carry: Arrays, rows: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        jacobians = dynamics.jacobians({name: x for name, x in rows.items() if name != "t"})

        def body(carry: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
            q, r = xp.qr(xp.matmul(x["jacobian"], carry["basis"]))
            return {"basis": q}, {"diagonal": _diagonal(xp, r)}

        carry, found = xp.scan(body, carry, {"jacobian": jacobians}, int(jacobians.shape[0]))
        shrunk = -xp.abs(jacobians)
        found["rows"] = xp.floats(xp.amin(shrunk, axis=-1) != 0)
        found["columns"] = xp.floats(xp.amin(shrunk, axis=-2) != 0)
        if count == n:
            found["log_det"] = xp.log_abs_det(jacobians)
        return carry, found

    carry: Arrays = {"basis": xp.broadcast_to(start[None], (size, n, count))}
    whole, rest = divmod(length, chunk)
    cut = {name: xp.reshape(x[: whole * chunk], (whole, chunk, *x.shape[1:])) for name, x in rows.items()}
    carry, found = xp.scan(turn, carry, cut, whole)
    found = {name: xp.reshape(x, (whole * chunk, *x.shape[2:])) for name, x in found.items()}
    if rest:
        _, last = turn(carry, {name: x[whole * chunk :] for name, x in rows.items()})
        found = {name: xp.concat([found[name], last[name]], axis=0) for name in found}
    return found


def _by_products(dynamics: Dynamics, rows: Arrays, start: Array) -> Arrays:
    """Follow a few directions by Jacobian-vector products: cheaper for less than half of all.

    Returns:
        ``diagonal``, ``rows`` and ``columns`` as `_by_jacobians` has them.
    """
    xp, (n, count) = dynamics.xp, (int(size) for size in start.shape)
    length, size = (int(extent) for extent in rows["before"].shape[:2])
    # a row of the Jacobian that is zero has no product with any direction, a column none with a random cotangent
    flat = {name: xp.reshape(x, (length * size, *x.shape[2:])) for name, x in rows.items()}
    taken_back = dynamics.backward(flat, xp.broadcast_to(start[None, None, :, 0], (1, length * size, n)))
    columns = xp.reshape(xp.floats(taken_back[0] != 0), (length, size, n))

    def body(carry: Arrays, x: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        row = {name: x[name] for name in rows}
        by_sequence = xp.transpose(carry["basis"])  # [batch rank n]
        tangents = xp.stack([by_sequence[each] for each in range(size)], axis=1)
        taken = dynamics.forward(row, tangents)
        reached = xp.stack([taken[:, each] for each in range(size)], axis=0)
        q, r = xp.qr(xp.transpose(reached))
        written = xp.floats(xp.amin(-xp.abs(reached), axis=-2) != 0)
        return {"basis": q}, {"diagonal": _diagonal(xp, r), "rows": written}

    carry = {"basis": xp.broadcast_to(start[None], (size, n, count))}
    return xp.scan(body, carry, rows, length)[1] | {"columns": columns}


def _diagonal(xp: Differentiable, matrices: Array) -> Array:
    """Return the diagonals [batch k] of matrices [batch k k]."""
    batch, k = (int(size) for size in matrices.shape[:2])
    return xp.reshape(matrices, (batch, k * k))[:, :: k + 1]


def _weights(look: Look, network: Network) -> Iterator[Signal]:
    """Measure the eigenvalues of each recurrent block, as its parameter declares them."""
    for name, param in network.parameters().items():
        if not param.recurrent:
            continue
        blocks = np.split(np.asarray(look.params[name], dtype=np.float64), len(param.recurrent), axis=0)
        for block, weight in zip(param.recurrent, blocks, strict=True):
            radius, departure = eigenvalues(weight)
            yield recorded("spectrum.radius", np.asarray(radius), look.step, f"{name}.{block}")
            yield recorded("spectrum.departure", np.asarray(departure), look.step, f"{name}.{block}")


def eigenvalues(weight: NDArray) -> tuple[float, float]:
    """Return spectral radius and departure from normality of a square matrix; NaN for what is not finite.

    The departure sqrt(|W|_F^2 - sum |lambda|^2) is read off the Schur form, as the norm of what is above its diagonal:
    the difference of the squares would lose half of the digits.
    """
    from scipy.linalg import schur

    norm = float(np.linalg.norm(weight))
    if not np.isfinite(norm):
        return float("nan"), float("nan")
    form = schur(weight, output="complex")[0]
    radius = float(np.abs(np.diag(form)).max(initial=0.0))
    return radius, float(np.linalg.norm(np.triu(form, 1))) / norm if norm > 0 else 0.0
