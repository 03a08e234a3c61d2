"""From which distances in time a parameter's gradient comes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial, reduce
from itertools import pairwise
from operator import add
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Program
from rnnbench.cells.network import Network, Scope, within
from rnnbench.objectives import loss_terms
from rnnbench.probes.base import Look, Probe, recorded
from rnnbench.probes.kinds import LAGS
from rnnbench.probes.replay import NOTHING, SEGMENT, Gradients, forward_and_replay
from rnnbench.signals import Signal, SignalKind
from rnnbench.tasks.base import Batch
from rnnbench.xp import Arrays, Differentiable, Ops

MOST = 2**26
"""Numbers in the parts that one replay keeps (512 MiB); parameters that need more are followed in several replays."""

REPLAYS = 4
"""Replays at most; what would need more is not all followed."""


class Lags(Probe):
    """The share of a parameter's gradient, and its norm, from each distance in time between its use and the loss.

    A recurrence uses its parameters once a step, and its gradient is the sum of what each use contributes. The part of
    lag k is the sum of the contributions whose use lies k steps from the loss; its share is its inner product with the
    whole gradient over that gradient's square, negative where the part points against the whole. Shares sum to one; of
    a gradient that is zero they are not numbers. The norm of the sum of the parts from lag k on is by how much
    backpropagation that is cut off after k steps misses the gradient; at lag 0 it is the gradient's own. The readout
    and learned initial states have no lag and are left out.

    Loss at the end: the distance is counted back from each sequence's own last step, however long it is, and for a
    scope that reads backward from the first step, where its reading ends; that a lower layer may reach the loss
    through the other direction of a layer above changes nothing in this count.

    Loss at each step: `loss_steps` of the steps with a loss, spread evenly and the last among them, are followed back
    side by side, and the gradient that is taken apart is that of their part of the training loss; the distance is
    \\|loss step - step of use\\|, since with two directions a lower layer also acts on losses before it.

    Memory: about three times the parts of one replay, T x (loss steps, or different lengths) x parameters, of which
    about 2^26 numbers are kept at once.

    Work: at most four replays, each little more than a backward pass. What needs more is cut down, always in the same
    way. First fewer loss steps are followed, one at the least. If that is not enough, of every parameter with more than
    one axis only every k-th row counts, k as small as will do; the other rows are left out. Shares are then those of
    the rows that count, and norms are theirs times the root of k (of all rows over those that count), which estimates
    the whole parameter's. Of a parameter without rows to leave out nothing is left out. A layer of 128 LSTM units and
    a loss at the end are followed whole up to some 4000 steps, one of 512 units up to some 250.
    """

    name: ClassVar[str] = "lags"
    source: ClassVar[str] = (
        "the sum over uses: Werbos, Backpropagation through time, Proceedings of the IEEE 1990; by distance: Pascanu, "
        "Mikolov & Bengio, ICML 2013, eqs. 3-5"
    )
    equation: ClassVar[str] = (
        "G = sum_t g_t;  G_k = sum over losses l of g_{l, t_l - k};  share_k = <G_k, G> / |G|^2;  "
        "beyond_k = |sum_{j >= k} G_j|"
    )
    signals: ClassVar[tuple[SignalKind, ...]] = LAGS

    sequences: Annotated[int, Field(ge=1, le=4096, description="sequences to probe with")] = 16
    loss_steps: Annotated[int, Field(ge=1, le=4096)] = Field(
        8, description="how many of the losses at each step are followed back"
    )
    segment: Annotated[int, Field(ge=1, le=4096)] = Field(SEGMENT, description="steps between renormalizations")

    def measure(self, look: Look) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        network: Network = look.program.network
        room = REPLAYS * MOST // network.length
        steps = min(self.loss_steps, max(1, room // _entries(network, 1)))
        ends, weights = _groups(look.program, batch, steps)
        every = _every(network, room // len(ends))
        pieces = min(REPLAYS, math.ceil(_entries(network, every) * network.length * len(ends) / MOST))
        arrays = look.arrays(batch) | {"weights": weights}
        found: dict[str, _Collected] = {}
        for piece in range(pieces):
            values = look.lab.compute(
                ("lags", look.key, self.segment, ends, every, pieces),
                partial(_by_lag, look.program, self.segment, ends, every, pieces),
                arrays | {"piece": np.asarray(piece)},
            )
            for name in network.parameters():
                if f"{name}/unit" in values:
                    found.setdefault(name, _Collected()).add(values, name)
        for name, collected in found.items():
            rows = look.params[name].shape[0] if look.params[name].ndim > 1 else 1
            left_out = 0.5 * math.log(rows / math.ceil(rows / every))
            yield recorded("lags.share", collected.shares(), look.step, name)
            yield recorded("lags.log_norm", _together(collected.log_norm) + left_out, look.step, name)
            yield recorded("lags.beyond_log_norm", _together(collected.beyond) + left_out, look.step, name)


@dataclass
class _Collected:
    """What one parameter's pieces came to: log-norms and products [lag], the latter in units exp(2 unit)."""

    log_norm: list[NDArray] = field(default_factory=list)
    beyond: list[NDArray] = field(default_factory=list)
    products: list[NDArray] = field(default_factory=list)
    square: list[float] = field(default_factory=list)
    unit: list[float] = field(default_factory=list)

    def add(self, values: Mapping[str, NDArray], name: str) -> None:
        """Take the parameter's piece of what `_by_lag` returned."""
        self.log_norm.append(values[f"{name}/log_norm"])
        self.beyond.append(values[f"{name}/beyond"])
        self.products.append(values[f"{name}/products"])
        self.square.append(float(values[f"{name}/square"]))
        self.unit.append(float(values[f"{name}/unit"]))

    def shares(self) -> NDArray:
        """Return each lag's signed share [lag]."""
        weights = [math.exp(2.0 * (unit - max(self.unit))) for unit in self.unit]
        products = np.sum([w * values for w, values in zip(weights, self.products, strict=True)], axis=0)
        square = sum(w * value for w, value in zip(weights, self.square, strict=True))
        return products / square if square > 0 else np.full_like(products, np.nan)


def _together(pieces: Sequence[NDArray]) -> NDArray:
    """Return the log-norm of a whole [lag] from those of its pieces."""
    with np.errstate(invalid="ignore"):  # of a model that has diverged
        found: NDArray = 0.5 * np.logaddexp.reduce([2.0 * values for values in pieces], axis=0)
    return found


def _groups(program: Program, batch: Batch, loss_steps: int) -> tuple[tuple[int, ...], NDArray]:
    """Return the steps of the losses that are followed apart, ascending, and their weights [group (time) batch]."""
    share = batch.mask / batch.mask.sum()
    if program.task.readout == "last":
        last = batch.lengths - 1
        ends = tuple(int(end) for end in np.unique(last))
        return ends, np.stack([np.where(last == end, share, 0.0) for end in ends])
    counted = np.flatnonzero((batch.mask > 0).any(axis=1))
    count = min(loss_steps, len(counted))
    ends = tuple(int(counted[(number + 1) * len(counted) // count - 1]) for number in range(count))
    weights = np.zeros((count, *batch.mask.shape))
    for number, end in enumerate(ends):
        weights[number, end] = share[end]
    return ends, weights


def _entries(network: Network, every: int) -> int:
    """Return how many entries of all recurrences' parameters count where every so many rows one does."""
    shapes = [p.shape for scope in network.scopes() for p in network.cell.parameters(scope.n_in).values()]
    return sum(math.prod((math.ceil(s[0] / every), *s[1:])) if len(s) > 1 else math.prod(s) for s in shapes)


def _every(network: Network, most: int) -> int:
    """Return the least distance of rows at which no more than `most` entries count, or that leaves one row each."""
    shapes = [p.shape for scope in network.scopes() for p in network.cell.parameters(scope.n_in).values()]
    rows = max((shape[0] for shape in shapes if len(shape) > 1), default=1)
    return next((every for every in range(1, rows) if _entries(network, every) <= most), rows)


def _by_lag(
    program: Program,
    segment: int,
    ends: tuple[int, ...],
    every: int,
    pieces: int,
    xp: Differentiable,
    arrays: Arrays,
) -> Arrays:
    """Return by ``<parameter>/``: log_norm, beyond, products [lag] and square in units exp(2 unit), unit.

    They are of one of so many pieces of equal size into which each parameter is cut, number ``arrays["piece"]``: not
    known when this is compiled, so that one compiled function serves all pieces.
    """
    replay, batch = forward_and_replay(xp, program, arrays, segment, by_step=True)

    def terms(values: Arrays) -> Arrays:
        outputs = replay.network.read(xp, replay.params, values["top"])
        return {"terms": loss_terms(xp, program.task.loss, outputs, batch["targets"])}

    _, pullback = xp.vjp(terms, {"top": replay.top()})
    cotangents = pullback({"terms": arrays["weights"]}, many=True)["top"]

    def emit(xp: Ops, scope: Scope, gradients: Gradients) -> Arrays:  # noqa: ARG001  # an `Emit`
        kept: Arrays = {}
        for name, whole in gradients.params.items():
            part = whole[:, :, ::every] if len(whole.shape) > 3 else whole
            steps, many = int(part.shape[0]), int(part.shape[1])
            part = xp.reshape(part, (steps, many, -1))
            if pieces > 1:
                entries = int(part.shape[2])
                size = math.ceil(entries / pieces)
                # a zero adds nothing to any norm or product
                filled = xp.concat([part, xp.zeros((steps, many, size * pieces - entries))], axis=-1)
                part = xp.reshape(filled, (steps, many, pieces, size))[:, :, arrays["piece"]]
            kept[f"part.{name}"] = part
            kept["scale"] = xp.broadcast_to(gradients.log_scale[None, :, 0], (steps, many))
        return kept

    emitted = replay.run(cotangents, emit).emitted
    network = replay.network
    found: Arrays = {}
    for scope in network.scopes():
        read_at = tuple(0 for _ in ends) if scope.reverse and network.read_last else ends
        # read forward alone, a step after the loss has no part in it; nor has padding
        behind = scope.reverse or (network.directions > 1 and not network.read_last)
        stretches = _stretches(network.length, read_at, behind)
        here = emitted[scope.name]
        for name, part in within(here, "part").items():
            summed = _summed(xp, part, here["scale"], stretches)
            found |= {f"{scope.name}.{name}/{kind}": value for kind, value in summed.items()}
    return found


@dataclass(frozen=True)
class _Stretch:
    """A range of lags, and where in time its parts lie: (group, first step, step after the last, whether backward)."""

    lags: int
    places: tuple[tuple[int, int, int, bool], ...]

    def of(self, xp: Ops, x: Array) -> list[Array]:
        """Return from [time group ...] what lies there [lag ...]."""
        return [
            xp.flip(x[first:after, group], 0) if backward else x[first:after, group]
            for group, first, after, backward in self.places
        ]


def _stretches(length: int, ends: tuple[int, ...], behind: bool) -> list[_Stretch]:
    """Cut lags 0..T-1 into ranges over which the same groups have parts.

    Args:
        length: T.
        ends: the step from which each group's lags are counted.
        behind: whether steps after that one count too.
    """
    cuts = {0, length, *(end + 1 for end in ends)}
    if behind:
        cuts |= {1, *(length - end for end in ends)}
    found = []
    for low, high in pairwise(sorted(cuts)):
        before = [(g, end - high + 1, end - low + 1, True) for g, end in enumerate(ends) if high <= end + 1]
        after = [(g, end + low, end + high, False) for g, end in enumerate(ends) if low > 0 and high <= length - end]
        found.append(_Stretch(high - low, (*before, *(after if behind else ()))))
    return found


def _summed(xp: Ops, parts: Array, scale: Array, stretches: list[_Stretch]) -> Arrays:
    """Sum the parts of equal lag, and hold them against the whole.

    Args:
        xp: the operations.
        parts: [time group entry], in units of exp(scale).
        scale: [time group].
        stretches: the lags, in ascending order.
    """
    sizes = -xp.amin(-xp.abs(parts), axis=-1)  # [time group]
    divisors = xp.where(sizes == 0, xp.ones(sizes.shape), sizes)
    logs = xp.where(sizes == 0, xp.zeros(sizes.shape) + NOTHING, xp.log(divisors) + scale)
    totals, peaks = [], []
    for stretch in stretches:
        if not stretch.places:
            totals.append(xp.zeros((stretch.lags, int(parts.shape[2]))))
            peaks.append(xp.zeros((stretch.lags,)) + NOTHING)
            continue
        here = stretch.of(xp, logs)
        peak = -xp.amin(-xp.stack(here), axis=0)
        # brought to their own size before they are scaled: apart, either factor could leave a float's range
        each = zip(stretch.of(xp, parts), stretch.of(xp, divisors), here, strict=True)
        scaled = [part / divisor[:, None] * xp.exp(log - peak)[:, None] for part, divisor, log in each]
        totals.append(reduce(add, scaled))
        peaks.append(peak)
    total, peak = xp.concat(totals, axis=0), xp.concat(peaks, axis=0)
    unit = -xp.amin(-peak, axis=0)
    factor = xp.exp(peak - unit)[:, None]
    whole = xp.sum(total * factor, axis=0)
    return {
        "log_norm": xp.log(xp.norm(total, axis=-1)) + peak,
        "beyond": _beyond(xp, total, peak),
        "products": xp.matmul(total, whole[:, None])[:, 0] * factor[:, 0],
        "square": xp.sum(whole * whole),
        "unit": unit,
    }


def _beyond(xp: Ops, parts: Array, scale: Array) -> Array:
    """Return ln of the norm of the sum of the parts from each lag on [lag].

    Args:
        xp: the operations.
        parts: [lag entry], in units of exp(scale).
        scale: [lag].
    """

    # from the far end on, in the unit of the largest part so far: what decays with the lag is never lost in a sum
    def body(carry: Arrays, now: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        unit = xp.maximum(carry["unit"], now["scale"])
        rest = carry["rest"] * xp.exp(carry["unit"] - unit) + now["parts"] * xp.exp(now["scale"] - unit)
        return {"rest": rest, "unit": unit}, {"log_norm": xp.log(xp.norm(rest, axis=-1)) + unit}

    lags, entries = (int(size) for size in parts.shape)
    start = {"rest": xp.zeros((entries,)), "unit": xp.zeros(()) + NOTHING}
    return xp.scan(body, start, {"parts": parts, "scale": scale}, lags, reverse=True)[1]["log_norm"]
