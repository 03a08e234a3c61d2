"""How large the noise between minibatches is, compared with the gradient that they share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Program
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import NOISE
from rnnbench.signals import Signal, SignalKind
from rnnbench.xp import Arrays, Differentiable


class Noise(Probe):
    """The simple gradient noise scale, from the gradients of the next minibatches of training.

    With minibatches of B sequences whose gradients g_i have the mean G and the covariance Sigma / B, the mean squared
    deviation from their own mean, with M - 1 in the denominator, is an unbiased estimate of tr(Sigma) / B, and the mean
    of g_i . g_j over i != j one of \\|G\\|^2; these are the paper's estimates for B_small = B and B_big = M B. The
    scale is B times their quotient. Where the estimate of \\|G\\|^2 is not positive, the gradient is not told from zero
    and the scale is not a number.

    The interval is Student's, about the jackknife over minibatches of \\|G\\|^2 / tr(Sigma), which is close to normal
    where its reciprocal, the scale, is not; an upper bound is infinite where a gradient of zero is not excluded, and
    both bounds are not numbers where a positive one is.

    Gradients are those of the training loss by all parameters, before any technique. They are kept on the device, M
    times the parameters; only their inner products are fetched. Of a fixed training set the minibatches are the next
    ones in its order, not independent draws: the scale then leaves out what another training set would change.
    """

    name: ClassVar[str] = "noise"
    source: ClassVar[str] = "McCandlish, Kaplan, Amodei et al., arXiv 1812.06162, 2018, eq. 2.9 and appendix A.1"
    equation: ClassVar[str] = (
        "tr(Sigma) = B sum_i |g_i - mean|^2 / (M - 1);  |G|^2 = sum_{i != j} g_i . g_j / (M (M - 1))\n"
        "B_simple = tr(Sigma) / |G|^2"
    )
    signals: ClassVar[tuple[SignalKind, ...]] = NOISE
    needs_cell: ClassVar[bool] = False

    batches: Annotated[int, Field(ge=3, le=4096, description="minibatches M")] = 8

    def measure(self, look: Look) -> Iterator[Signal]:
        found = [look.source.batch("train", look.step + number).cast("float64") for number in range(self.batches)]
        named = [batch.arrays() for batch in found]
        stacked = {f"batch/{name}": np.stack([arrays[name] for arrays in named]) for name in named[0]}
        rest = {name: array for name, array in look.arrays().items() if not name.startswith("batch/")}
        look.seed_model()
        gram = look.lab.compute(("noise", look.key), partial(_products, look.program), rest | stacked)["gram"]
        size = found[0].size
        scale, low, high = noise_scale(gram)
        yield recorded("noise.scale", np.asarray(size * scale), look.step)
        yield recorded("noise.interval", size * np.asarray([low, high]), look.step)
        yield recorded("noise.batch", np.asarray(size), look.step)


def noise_scale(gram: NDArray) -> tuple[float, float, float]:
    """Return the noise scale in minibatches, and its 95 % interval, from inner products of gradients [batch batch].

    The unit in which the gradients are given cancels.
    """
    from scipy.special import stdtrit

    count = len(gram)
    signal = _signal_to_noise(gram)
    if not np.isfinite(signal):
        alone = 1.0 / signal
        return alone, alone, alone
    kept = [np.delete(np.delete(gram, number, axis=0), number, axis=1) for number in range(count)]
    left_out = np.array([_signal_to_noise(gram) for gram in kept])
    # where all but one agree, the others' deviation may be none
    known = bool(np.isfinite(left_out).all())
    spread = np.sqrt((count - 1) / count * np.sum((left_out - left_out.mean()) ** 2)) if known else np.inf
    reach = float(stdtrit(count - 1, 0.975)) * spread
    scale = 1.0 / signal if signal > 0 else np.nan
    most, least = signal + reach, signal - reach
    if most <= 0:
        return scale, np.nan, np.nan
    return scale, 1.0 / most, 1.0 / least if least > 0 else np.inf


def estimates(gram: NDArray) -> tuple[float, float]:
    """Return unbiased estimates of \\|G\\|^2 and of tr(Sigma) / B, from inner products of gradients [batch batch]."""
    count = len(gram)
    trace, total = float(np.trace(gram)), float(np.sum(gram))
    return (total - trace) / (count * (count - 1)), (trace - total / count) / (count - 1)


def _signal_to_noise(gram: NDArray) -> float:
    """Return the estimate of |G|^2 / (tr(Sigma) / B): infinite where nothing deviates, no number where all is zero."""
    square, deviation = estimates(gram)
    trace = float(np.trace(gram))
    if not np.isfinite(square) or trace == 0:
        return float("nan")
    if deviation <= 4 * np.finfo(float).eps * trace:  # equal but for rounding
        return float("inf")
    return square / deviation


def _products(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return the inner products [batch batch] of minibatches' gradients, in units of the largest one's square."""
    params, buffers, batches = unpacked(arrays)
    count = int(batches["lengths"].shape[0])

    def body(carry: Arrays, batch: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        def loss(params: Arrays) -> Arrays:
            return {"loss": program.loss(xp, params, buffers, batch)[0]}

        _, pullback = xp.vjp(loss, params)
        return carry, pullback({"loss": xp.ones(())})

    _, gradients = xp.scan(body, {}, batches, count)
    # sorted: a resumed run has its parameters in another order, and sums must not tell
    flat = xp.concat([xp.reshape(gradients[name], (count, -1)) for name in sorted(gradients)], axis=1)
    peak = -xp.amin(-xp.norm(flat, axis=1), axis=0)
    unit = flat / xp.where(peak > 0, peak, xp.ones(()))  # the square of a small gradient would underflow
    return {"gram": xp.matmul(unit, xp.transpose(unit))}
