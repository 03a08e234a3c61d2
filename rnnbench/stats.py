"""Intervals and tests: what a measured number can and cannot say.

Every function is pure and deterministic: what is drawn comes from `rnnbench.streams.stream`. Logarithms are natural.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.streams import stream

FEWEST_LAGS = 8
REJECTED = 0.01
TOLERATED = 0.05  # ln: a gradient that is 5% off changes no decision
TOLERATED_SHARE = 0.02
FOLLOWED = math.log(1.5)  # a law that is off by more than half, and by a tenth of the range, describes nothing
FOLLOWED_SHARE = 0.1
TRANSIENT_PART = 10  # a tenth of the lags, at most
POWER_SPAN = 30
LEAST_REGIME = 3
SIMULATED = 499
CALIBRATED_BELOW = 60  # independent stretches; above, the F distribution holds
NO_CHANGE = 2.0  # noise alone exceeds this standardized difference more often than not
MOST_SPLITS = 3
SPLIT_EVERY = 5  # times the least length of a regime
NEGLIGIBLE = 1e-6
REDDEST = 0.97
GRID = np.linspace(-0.9, REDDEST, 30)  # of autocorrelations

Model: TypeAlias = Literal["exponential", "power", "neither", "undecided"]


@dataclass(frozen=True)
class Interval:
    """A value and how far it may be off.

    Attributes:
        value: the estimate.
        low, high: the interval's ends; -inf and inf where the data cannot bound it (one value, say).
        level: of confidence, e.g. 0.95.
        n: how many clusters (seeds) it rests on. With one seed the interval speaks of that seed alone.
    """

    value: float
    low: float
    high: float
    level: float
    n: int


@dataclass(frozen=True)
class Decay:
    """How a gradient's log-norm falls, or grows, with the lag.

    Attributes:
        model: what the log-norm follows: ``exponential`` (a line), ``power`` (-alpha ln(1 + lag)), ``neither`` where
            both are rejected at 1%, ``undecided`` where neither is, or where the one that is not lies farther off than
            the other, or too far to be called the profile's law.
        rate: mean increment of the mean log-norm per step of lag over `used` [ln/step]; negative where the gradient
            decays on its way back.
        half_life: steps of lag that halve it; None unless it follows an exponential whose rate's interval lies below 0.
        doubling: steps of lag that double it; None unless it follows an exponential whose rate's interval lies above 0.
        exponent: alpha of the power law; None unless it follows one.
        horizon: smallest lag from which on at most `left` of the value at lag 0 is left, in the median profile over
            seeds; None if never.
        horizon_by_seed: the same for each seed by itself, in the order given.
        left: the share that counts as gone.
        lags: how many lags are usable: lag 0 and those before the first exact zero or missing value.
        used: first and last lag that the fit rests on.
        p_exponential, p_power: lack-of-fit p-values of the two models over `used`.
        misfit_exponential, misfit_power: largest distance between the seeds' mean profile over `used` and the model,
            which is moved up or down to where that is smallest [ln].
        autocorrelation: of the increments' noise from one lag to the next, corrected for bias.
    """

    model: Model
    rate: Interval
    half_life: float | None
    doubling: float | None
    exponent: Interval | None
    horizon: float | None
    horizon_by_seed: tuple[float | None, ...]
    left: float
    lags: int
    used: tuple[int, int]
    p_exponential: float
    p_power: float
    misfit_exponential: float
    misfit_power: float
    autocorrelation: float


def mean_interval(values: NDArray, level: float = 0.95) -> Interval:
    """Return the mean over seeds with its Student t interval.

    With fewer than six seeds it is wide, as it has to be: 4.3 standard errors either way with three.

    Args:
        values: finite values [seed].
        level: of confidence.

    Raises:
        ValueError: for no values, or values that are not finite.
    """
    values = _finite(values)
    n = len(values)
    if n == 1:
        return Interval(float(values[0]), -math.inf, math.inf, level, 1)
    return _t_interval(float(values.mean()), float(values.var(ddof=1)) / n, n - 1, level, n)


def proportion_interval(k: int, n: int, level: float = 0.95) -> Interval:
    """Return k of n with its score interval, which stays within 0 and 1 and has a width at k = 0.

    Source: Wilson, Probable inference, the law of succession, and statistical inference, JASA 1927.

    Raises:
        ValueError: unless 0 <= k <= n and n > 0.
    """
    from scipy.special import ndtri

    if not 0 <= k <= n or n == 0:
        raise ValueError(f"{k} of {n} is not a share")
    z = float(ndtri(0.5 + level / 2))
    share, spread = k / n, z * z / n
    center = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / n + spread / (4 * n)) / (1 + spread)
    low = 0.0 if k == 0 else center - half
    high = 1.0 if k == n else center + half
    return Interval(share, low, high, level, n)


def smallest_p(seeds: int) -> float:
    """Return the smallest two-sided p that an exact paired sign-flip test can reach: 2 / 2**seeds, 1 without seeds."""
    return min(1.0, 2.0 ** (1 - seeds))


def jackknife(values_by_leaving_out: NDArray, full: float) -> tuple[float, float]:
    """Return a statistic with its bias of order 1/n removed, and its standard error.

    Source: Efron & Tibshirani, An introduction to the bootstrap, 1993, eq. 10.9 and 11.5.

    Args:
        values_by_leaving_out: the statistic without observation i [n], n at least 2.
        full: the statistic of all observations.

    Raises:
        ValueError: for fewer than two values, or values that are not finite.
    """
    values = _finite(values_by_leaving_out)
    n = len(values)
    if n < 2:
        raise ValueError("a jackknife needs at least two observations to leave out")
    error = math.sqrt((n - 1) / n * float(((values - values.mean()) ** 2).sum()))
    return n * full - (n - 1) * float(values.mean()), error


def block_bootstrap(
    series: Sequence[NDArray], level: float = 0.95, resamples: int = 2000, seed: int = 0, block: int | None = None
) -> Interval:
    """Return the mean over several series with a block-bootstrap interval clustered by seed.

    The value is the mean of the series' own means: every seed counts once. Two levels are resampled: seeds, and
    circular blocks within each drawn seed. As it stands that miscounts with few seeds or short series, so:

    - The blocks' length follows Politis & White 2004 (corrected 2009), averaged over the seeds.
    - Blocks within a short series miss part of its variance. How much they miss of a first-order autoregression is
      known exactly; deviations are scaled up by it, at the autocorrelation found over all seeds, corrected for bias.
    - The seeds' means differ by the noise within a seed too. They are shrunk to the variance beyond it before they are
      drawn (Carpenter, Goldstein & Rasbash 2003), so that the noise counts once.
    - The standard deviation of the resampled means is widened by Student's t: on n - 1 degrees of freedom where the
      seeds differ beyond their noise, else on as many as the series hold independent stretches.

    With one seed the interval speaks of that seed alone.

    Coverage of the 95% interval, simulated with Gaussian first-order autoregressions of phi 0, 0.5 and 0.8 and 50 to
    800 steps: 92 to 98% with one seed, 88 to 99% with three, 91 to 99% with ten, whether the seeds differ or not; 86 to
    99% with two, worst where seeds differ by one to two times their noise. One seed, 20 steps, phi 0.8: 87%.

    Args:
        series: finite values in order [step], one array a seed; lengths may differ.
        level: of confidence.
        resamples: how many means are drawn.
        seed: of the draws.
        block: length of the blocks in steps, half a series at most; chosen from the series where not given.

    Raises:
        ValueError: for no series, an empty one, or values that are not finite.
    """
    rows = [_finite(values) for values in series]
    if not rows:
        raise ValueError("no series")
    means = np.array([row.mean() for row in rows])
    value = float(means.mean())
    seeds = len(rows)
    if seeds == 1 and len(rows[0]) == 1:
        return Interval(value, -math.inf, math.inf, level, 1)
    centered = [row - row.mean() for row in rows]
    phi = max(0.0, _common_autocorrelation(centered))
    if block is None:
        block = max(1, round(float(np.mean([_block_length(row) for row in centered]))))
    blocks = [max(1, min(block, len(row) // 2)) for row in rows]
    scales = [math.sqrt(_missed_by_blocks(phi, len(row), b)) for row, b in zip(rows, blocks, strict=True)]
    noise = float(
        np.mean([scale**2 * _block_variance(row, b) for row, b, scale in zip(centered, blocks, scales, strict=True)])
    )
    between = float(means.var(ddof=1)) if seeds > 1 else 0.0
    beyond = max(0.0, between - noise)
    # Drawing with replacement from few values understates their variance by (n - 1) / n.
    effects = (means - value) * math.sqrt(beyond / between * seeds / (seeds - 1)) if beyond else np.zeros(seeds)

    rng = stream(seed, "stats/block-bootstrap")
    drawn = rng.integers(seeds, size=(resamples, seeds))
    total = effects[drawn].sum(axis=1)
    for at, (row, b, scale) in enumerate(zip(centered, blocks, scales, strict=True)):
        owners = np.nonzero(drawn == at)[0]
        total += scale * np.bincount(owners, _resampled_means(row, b, len(owners), rng), minlength=resamples)
    variance = float((total / seeds).var())
    stretches = [_stretches(len(row), b, phi) for row, b in zip(rows, blocks, strict=True)]
    return _t_interval(value, variance, seeds - 1 if beyond else sum(stretches), level, seeds)


def horizon(profile: NDArray, left: float = 1e-3) -> int | None:
    """Return the smallest lag from which on at most `left` of the value at lag 0 is left, or None if never.

    Nothing is assumed of the profile's shape. An exact zero (-inf) is nothing left; the profile ends at its first NaN.

    Args:
        profile: log-norm at each lag [lag].
        left: the share that counts as gone.
    """
    profile = np.asarray(profile, dtype=np.float64)
    missing = np.isnan(profile) | (profile == np.inf)
    profile = profile[: int(missing.argmax()) if missing.any() else len(profile)]
    if len(profile) == 0 or profile[0] == -np.inf:
        return None
    above = np.flatnonzero(profile > profile[0] + math.log(left))
    first = int(above[-1]) + 1 if len(above) else 0
    return first if first < len(profile) else None


def decay(profiles: Sequence[NDArray], left: float = 1e-3, level: float = 0.95, seed: int = 0) -> Decay | None:
    """Say how log-norms fall with the lag: at which rate, and whether as an exponential or as a power law.

    A log-norm along the lags is a running sum, so both models are fitted and tested on its increments from lag to
    lag + 1, whose noise is stationary: an exponential's are constant, a power law's -alpha ln((lag + 2) / (lag + 1)).

    Lack of fit: both are nested in a smooth curve (constant, power law and up to six cosines along the lags). One F
    test asks whether that curve fits better, a second, with one degree of freedom, whether the other model adds to this
    one; the smaller p counts twice. Least squares are generalized to first-order autoregressive noise. Its
    autocorrelation comes from what the curve and one free step leave; it is corrected for the bias of such a fit (to
    the value under which what was observed is expected) and set one standard error higher. Where the increments hold
    fewer than 60 independent stretches, p is the share of simulated noise that does as badly. A model is rejected at
    p < 0.01 if its misfit matters too: more than 0.05 ln and more than 2% of the profile's range. A profile free of
    noise would otherwise reject any model for a difference that nobody acts on.

    What is not rejected is not therefore a law: slow noise forgives nearly everything. The model that is left stands
    only if its misfit is no larger than the other's and at most ln 1.5, or a tenth of the profile's range where that is
    more. The profile is undecided else.

    Of simulated profiles with Gaussian autoregressive noise the tests reject a true model in 0 to 2% of cases from 200
    lags on; in up to 4% of those with fewer lags and an autocorrelation of 0.5, and up to 10% at 0.8, where 20 to 100
    lags hold two to eleven independent stretches.

    The first lags are often a transient: the gradient arrives in the readout's directions and turns to those that last.
    All lags are tried first. Where both models are rejected the first 1, 2, 4, ... lags are left out, up to a tenth of
    them, until a model stands, or until neither is rejected; `used` tells. A power law must then still span a factor of
    30 in 1 + lag, since a short piece of it fits many curves. With neither, the rate is that over all lags, a mean and
    no law.

    Args:
        profiles: mean over the batch of the log-norm at each lag [lag], one array a seed. What follows the first value
            that is not finite (an exact zero) is not fitted; seeds with fewer than 8 finite lags are not either. Lags
            that at least half of the others reach are usable.
        left: the share of the value at lag 0 that counts as gone.
        level: of the intervals.
        seed: of what is simulated and resampled.

    Returns:
        None when no seed has 8 finite lags.
    """
    arrays = [np.asarray(profile) for profile in profiles]
    finite = [part for part in map(_finite_prefix, arrays) if len(part) >= FEWEST_LAGS]
    if not finite:
        return None
    lags = sorted(map(len, finite))[(len(finite) - 1) // 2]
    reaching = np.stack([part[:lags] for part in finite if len(part) >= lags])
    rounding = 4 * max(np.finfo(a.dtype).eps if a.dtype.kind == "f" else 0.0 for a in arrays) * np.abs(reaching).max()
    increments = np.diff(reaching, axis=1)

    # A transient: what is left out grows until a model stands.
    skips = [0, *(2**i for i in range(32) if 2**i <= lags // TRANSIENT_PART and lags - 2**i >= FEWEST_LAGS)]
    fits = ((skip, _fit(increments[:, skip:], skip, float(rounding), level, seed)) for skip in skips)
    start, fit = first = next(fits)
    if fit.model == "neither":
        start, fit = next((tried for tried in fits if _stands(tried[1], lags / (tried[0] + 1))), first)
    model = fit.model
    spans = [part[start:lags] for part in finite if len(part) - start >= FEWEST_LAGS]
    rate = block_bootstrap([np.diff(span) for span in spans], level=level, seed=seed)
    exponential = model == "exponential"
    return Decay(
        model=model,
        rate=rate,
        half_life=math.log(2) / -rate.value if exponential and rate.high < 0 else None,
        doubling=math.log(2) / rate.value if exponential and rate.low > 0 else None,
        exponent=fit.exponent if model == "power" else None,
        horizon=horizon(_median_profile(arrays), left),
        horizon_by_seed=tuple(horizon(profile, left) for profile in arrays),
        left=left,
        lags=lags,
        used=(start, lags - 1),
        p_exponential=fit.exponential.p,
        p_power=fit.power.p,
        misfit_exponential=fit.exponential.misfit,
        misfit_power=fit.power.misfit,
        autocorrelation=fit.autocorrelation,
    )


def change_points(increments: NDArray, level: float = 0.01, least: int = 10, seed: int = 0) -> list[int]:
    """Return where the mean of a series changes: the index of the first value of each new regime, ascending.

    Binary segmentation: the largest standardized difference of means over all splits of a segment is compared with its
    distribution without a change; where it exceeds it the segment is split, and its parts are looked at alike. Splits
    are then moved to the best place between their neighbours. The distribution is that of autoregressive noise: its
    autocorrelation from what up to three splits leave, corrected for bias and set one standard error higher, its
    innovations drawn in blocks from those left. Each simulated series goes through the same estimation. More than three
    changes within a hundred steps or so pass for slow noise and may stay unfound.

    Of Gaussian first-order autoregressions without a change, 0 to 2% are flagged at `level` 0.01 with phi 0 and 0.5 and
    100 to 800 steps, 4% of 40 steps, and 2 to 4% of 40 to 300 steps with phi 0.8. A change by two standard deviations
    in 200 steps is found always at phi up to 0.5 and in four of five cases at 0.8.

    Source: Vostrikova, Detecting disorder in multidimensional random processes, 1981; Robbins et al., Mean shift
        testing in correlated data, J. Time Series Analysis 2011 (the autoregressive noise).

    Args:
        increments: values in order [step]; the series ends at its first value that is not finite.
        level: share of stationary segments that may be split by mistake.
        least: steps that a regime lasts at least.
        seed: of what is simulated.
    """
    values = _finite_prefix(np.asarray(increments, dtype=np.float64))
    least = max(2, least)
    simulated = max(SIMULATED, math.ceil(5 / level) - 1)
    rounding = 8 * np.finfo(np.float64).eps * len(values) * float(np.abs(values).max(initial=0.0))
    found: list[int] = []
    waiting = [(0, len(values))]
    while waiting:
        start, end = waiting.pop()
        chance, split = _best_split(values[start:end], least, rounding, seed, simulated)
        if chance <= level:
            found.append(start + split)
            waiting += [(start, start + split), (start + split, end)]
    found.sort()
    for at in range(len(found)):
        start = found[at - 1] if at else 0
        end = found[at + 1] if at + 1 < len(found) else len(values)
        found[at] = start + int(_differences(values[start:end, None], least)[1][0])
    return found


def _finite(values: NDArray) -> NDArray:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1 or len(values) == 0 or not np.isfinite(values).all():
        raise ValueError(f"expected finite values along one axis, got {values.size} of shape {values.shape}")
    return values


def _finite_prefix(values: NDArray) -> NDArray:
    if values.ndim != 1:
        raise ValueError(f"expected values along one axis, got the shape {values.shape}")
    lost = ~np.isfinite(values)
    return np.asarray(values[: int(lost.argmax()) if lost.any() else len(values)], dtype=np.float64)


def _median_profile(profiles: Sequence[NDArray]) -> NDArray:
    shortest = min(map(len, profiles))
    return np.asarray(np.median(np.stack([profile[:shortest] for profile in profiles]).astype(np.float64), axis=0))


def _t_interval(value: float, variance: float, freedom: float, level: float, n: int) -> Interval:
    from scipy.special import stdtrit

    half = float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(variance)
    return Interval(value, value - half, value + half, level, n)


def _block_length(centered: NDArray) -> int:
    """Return the block length for a circular block bootstrap of a mean.

    Source: Politis & White, Automatic block-length selection for the dependent bootstrap, Econometric Reviews 2004,
        with the correction of Patton, Politis & White 2009.
    """
    n = len(centered)
    if n < 4:
        return 1
    longest = math.ceil(min(3 * math.sqrt(n), n / 3))
    run = max(5, math.ceil(math.sqrt(math.log10(n))))
    furthest = min(math.ceil(math.sqrt(n)) + run, n - 1)
    covariance = np.array([centered[: n - k] @ centered[k:] / n for k in range(min(2 * furthest, n - 1) + 1)])
    if covariance[0] <= 0:
        return 1
    small = np.abs(covariance / covariance[0]) < 2 * math.sqrt(math.log10(n) / n)
    # The last lag before a whole run of autocorrelations that cannot be told from none.
    last = next((m for m in range(furthest + 1) if small[m + 1 : m + 1 + run].all()), furthest)
    if last == 0:
        return 1
    width = min(2 * last, len(covariance) - 1)
    k = np.arange(1, width + 1)
    flat_top = np.clip(2 * (1 - k / width), 0, 1)
    spectrum = covariance[0] + 2 * float((flat_top * covariance[k]).sum())
    if spectrum <= 0:
        return longest
    curvature = 2 * float((flat_top * k * covariance[k]).sum())
    best: float = (2 * curvature**2 / (4 / 3 * spectrum**2)) ** (1 / 3) * n ** (1 / 3)
    return min(max(1, round(best)), longest)


def _block_sums(centered: NDArray, block: int) -> NDArray:
    """Return the sum of the circular block that starts at each step [step]."""
    running = np.concatenate([[0.0], np.cumsum(np.concatenate([centered, centered[: block - 1]]))])
    return np.asarray(running[block:] - running[: len(centered)])


def _block_variance(centered: NDArray, block: int) -> float:
    """Return the variance of the mean that circular blocks give, as with infinitely many resamples."""
    n = len(centered)
    return float((_block_sums(centered, block) ** 2).mean()) / block / n


def _resampled_means(centered: NDArray, block: int, draws: int, rng: np.random.Generator) -> NDArray:
    """Return the means of as many resampled series [draw]: whole blocks, and a shorter last one."""
    n = len(centered)
    whole, rest = divmod(n, block)
    total = _block_sums(centered, block)[rng.integers(n, size=(draws, whole))].sum(axis=1)
    if rest:
        total += _block_sums(centered, rest)[rng.integers(n, size=draws)]
    return np.asarray(total / n)


def _missed_by_blocks(phi: float, n: int, block: int) -> float:
    """Return a mean's variance over what circular blocks are expected to give, for an autoregression; at least 1."""
    covariance = phi ** np.arange(n)
    k = np.arange(1, n)
    mean_variance = (1 + 2 * float(((1 - k / n) * covariance[1:]).sum())) / n
    k = k[: block - 1]
    circular = ((n - k) * covariance[k] + k * covariance[n - k]) / n
    expected = (1 + 2 * float(((1 - k / block) * circular).sum()) - block * mean_variance) / n
    return max(1.0, mean_variance / expected) if expected > 0 else 1.0


def _stretches(n: int, block: int, phi: float) -> float:
    """Return the degrees of freedom of a series' variance: the kernel's, or those of its independent stretches."""
    return max(2.0, min(1.5 * n / block - 1, n * (1 - phi) / (1 + phi) - 1))


def _autoregression(innovations: NDArray, phi: NDArray | float) -> NDArray:
    """Run y_t = phi y_{t-1} + e_t along the first axis, from y_0 = e_0."""
    out = np.array(innovations, dtype=np.float64)
    for t in range(1, len(out)):
        out[t] += phi * out[t - 1]
    return out


def _lag_one(residuals: NDArray) -> NDArray:
    """Return the lag-one autocorrelation along the first axis, 0 for zeros."""
    power = (residuals**2).sum(axis=0)
    return np.asarray((residuals[1:] * residuals[:-1]).sum(axis=0) / np.where(power > 0, power, 1.0))


def _expected_lag_one(basis: NDArray, grid: NDArray) -> NDArray:
    """Return the lag-one autocorrelation that residuals are expected to show, for each true one [grid].

    A fit takes out the slow part of an autoregression, so that what is left looks less autocorrelated than it is. The
    ratio of the expected products is exact: with M = 1 - Q Q' and A the matrix of neighbours, tr(M A M S) / tr(M S).

    Args:
        basis: orthonormal columns Q of the fit [step column].
        grid: true autocorrelations, each within -1 and 1.
    """
    n, columns = basis.shape
    repeated = np.tile(basis, len(grid))  # [step (grid column)]
    phi = np.repeat(grid, columns)
    spread = _autoregression(repeated, phi) + _autoregression(repeated[::-1], phi)[::-1] - repeated  # S Q
    spread = spread.reshape(n, len(grid), columns)
    neighbours = np.zeros_like(basis)
    neighbours[1:] += basis[:-1] / 2
    neighbours[:-1] += basis[1:] / 2
    inner = np.einsum("nc,ngd->gcd", basis, spread)
    products = (n - 1) * grid - 2 * np.einsum("nc,ngc->g", neighbours, spread)
    products += np.einsum("cd,gdc->g", basis.T @ neighbours, inner)
    return np.asarray(products / (n - np.einsum("gcc->g", inner)))


def _unbiased(observed: NDArray | float, basis: NDArray) -> NDArray:
    """Return the true autocorrelation whose residuals are expected to show the observed one."""
    return np.asarray(np.interp(observed, np.maximum.accumulate(_expected_lag_one(basis, GRID)), GRID))


def _cautious(phi: NDArray, n: int) -> NDArray:
    """Return an autocorrelation set one standard error higher, as estimated from n values."""
    return np.asarray(np.minimum(phi + np.sqrt((1 - phi**2) / n), REDDEST))


def _common_autocorrelation(centered: Sequence[NDArray]) -> float:
    """Return the bias-corrected autocorrelation of series about their own means, averaged by length."""
    long = [row for row in centered if len(row) > 3 and (row**2).sum() > 0]
    if not long:
        return 0.0
    each = []
    for row in long:
        n = len(row)
        each.append(float(_unbiased(_lag_one(row), np.full((n, 1), 1 / math.sqrt(n)))))
    return float(np.average(each, weights=[len(row) for row in long]))


@dataclass(frozen=True)
class _Model:
    p: float
    misfit: float
    rejected: bool


@dataclass(frozen=True)
class _Fit:
    exponential: _Model
    power: _Model
    exponent: Interval
    autocorrelation: float
    followed: float  # misfit up to which a model describes the profile [ln]

    @property
    def model(self) -> Model:
        if self.exponential.rejected and self.power.rejected:
            return "neither"
        if self.exponential.rejected and self.power.misfit <= min(self.exponential.misfit, self.followed):
            return "power"
        if self.power.rejected and self.exponential.misfit <= min(self.power.misfit, self.followed):
            return "exponential"
        return "undecided"


def _stands(fit: _Fit, span: float) -> bool:
    """Tell whether a fit without the first lags, over a factor of `span` in 1 + lag, says more than that over all."""
    if fit.model == "undecided":
        return not fit.exponential.rejected and not fit.power.rejected
    return fit.model == "exponential" or (fit.model == "power" and span >= POWER_SPAN)


class _Curves:
    """The nested curves for increments after lags start, start + 1, ..., and the tests between them."""

    def __init__(self, n: int, start: int) -> None:
        lag = start + np.arange(n)
        self.power = -np.log((lag + 2) / (lag + 1))
        cosines = min(6, max(0, (n - 4) // 8))
        place = np.pi * (np.arange(n) + 0.5) / n
        flat = np.ones(n)
        both = np.column_stack([flat, self.power])
        smooth = np.column_stack([both, np.cos(np.outer(place, np.arange(1, cosines + 1)))])
        self.extra = cosines + 1
        self.freedom = n - smooth.shape[1]
        self.exponential, self.powerlaw, self.both, self.smooth = (
            np.linalg.qr(columns)[0] for columns in (flat[:, None], self.power[:, None], both, smooth)
        )
        # Where the free step will be is not known yet; the bias hardly depends on it.
        assumed = np.column_stack([self.smooth, self._step(np.array([n // 2]))])
        self._expected = np.maximum.accumulate(_expected_lag_one(assumed, GRID))

    def _step(self, place: NDArray) -> NDArray:
        """Return unit steps up at `place` [column], less what the smooth curve takes of them [step column]."""
        step = (np.arange(len(self.power))[:, None] >= place).astype(np.float64)
        step -= self.smooth @ (self.smooth.T @ step)
        return np.asarray(step / np.maximum(np.linalg.norm(step, axis=0), NEGLIGIBLE))

    def autocorrelation(self, rows: NDArray, floor: float) -> NDArray:
        """Return the noise's autocorrelation for each column of increments [step column].

        One step at the best place is taken out beside the smooth curve: a knee would pass for slow noise else. What is
        left below `floor` is rounding, and counts as none.
        """
        left = rows - self.smooth @ (self.smooth.T @ rows)
        step = self._step(_differences(rows, LEAST_REGIME)[1])
        left = left - step * (step * left).sum(axis=0)
        noisy = (left**2).mean(axis=0) > floor**2
        return np.asarray(np.where(noisy, np.interp(_lag_one(left), self._expected, GRID), 0.0))

    def p_values(self, rows: NDArray, phi: NDArray, floor: float) -> tuple[NDArray, NDArray]:
        """Return the smaller p of the two tests of the exponential, and of the power law, for each column."""
        from scipy.special import fdtrc

        smooth = _generalized(rows, self.smooth, phi)
        both = _generalized(rows, self.both, phi)
        unit = np.maximum(smooth / self.freedom, floor**2)
        unit = np.where(unit > 0, unit, np.finfo(np.float64).tiny)
        found = []
        for basis in (self.exponential, self.powerlaw):
            alone = _generalized(rows, basis, phi)
            wide = fdtrc(self.extra, self.freedom, np.maximum(alone - smooth, 0) / self.extra / unit)
            direct = fdtrc(1, self.freedom, np.maximum(alone - both, 0) / unit)
            found.append(np.minimum(wide, direct))
        return found[0], found[1]


def _generalized(rows: NDArray, basis: NDArray, phi: NDArray) -> NDArray:
    """Return each column's generalized residual sum of squares [column], with its own `phi` [column].

    Whitened products are quadratic in phi: the normal equations of all columns come from three products.
    """
    rows = rows - basis @ (basis.T @ rows)  # changes no result, and keeps a perfect fit's residuals small
    now, before, inner = slice(1, None), slice(None, -1), slice(1, -1)
    gram = np.eye(basis.shape[1]) + np.multiply.outer(
        phi, -(basis[now].T @ basis[before] + basis[before].T @ basis[now])
    )
    gram += np.multiply.outer(phi**2, basis[inner].T @ basis[inner])
    mixed = -phi * (basis[now].T @ rows[before] + basis[before].T @ rows[now])
    mixed += phi**2 * (basis[inner].T @ rows[inner])
    energy = (rows**2).sum(axis=0) - 2 * phi * (rows[now] * rows[before]).sum(axis=0)
    energy += phi**2 * (rows[inner] ** 2).sum(axis=0)
    explained = np.einsum("cr,rc->r", mixed, np.linalg.solve(gram, mixed.T[:, :, None])[:, :, 0])
    return np.asarray(np.maximum(energy - explained, 0.0))


def _fit(increments: NDArray, start: int, rounding: float, level: float, seed: int) -> _Fit:
    """Fit and test both models on increments [seed step], the first of them from lag `start` on."""
    n = increments.shape[1]
    curves = _Curves(n, start)
    mean = increments.mean(axis=0)
    phi = curves.autocorrelation(mean[:, None], rounding)
    cautious = _cautious(phi, n)
    found = curves.p_values(mean[:, None], cautious, rounding)
    p_values = [min(1.0, 2 * float(p[0])) for p in found]
    if n * (1 - cautious[0]) / (1 + cautious[0]) < CALIBRATED_BELOW:
        noise = stream(seed, "stats/lack-of-fit").standard_normal((n, SIMULATED))
        noise[0] /= math.sqrt(1 - cautious[0] ** 2)
        noise = _autoregression(noise, float(cautious[0]))
        simulated = curves.p_values(noise, _cautious(curves.autocorrelation(noise, 0.0), n), 0.0)
        p_values = [
            float(1 + (reference <= p[0]).sum()) / (1 + SIMULATED)
            for p, reference in zip(found, simulated, strict=True)
        ]

    exponent = _exponent(increments, curves, float(phi[0]), rounding, level)
    profile = np.concatenate([[0.0], np.cumsum(mean)])
    height = float(np.ptp(profile))
    tolerated = max(TOLERATED, TOLERATED_SHARE * height)
    models = []
    for p, expected in zip(p_values, (np.full(n, mean.mean()), exponent.value * curves.power), strict=True):
        left = mean - expected
        misfit = float(np.ptp(np.concatenate([[0.0], np.cumsum(left)]))) / 2
        models.append(_Model(p, misfit, p < REJECTED and misfit > tolerated))
    return _Fit(models[0], models[1], exponent, float(phi[0]), max(FOLLOWED, FOLLOWED_SHARE * height))


def _exponent(increments: NDArray, curves: _Curves, phi: float, rounding: float, level: float) -> Interval:
    """Return the power law's alpha by generalized least squares; over seeds, the larger of two variances counts."""
    seeds, n = increments.shape
    regressor = curves.power[:, None] / np.linalg.norm(curves.power)
    scale = float(np.linalg.norm(curves.power))
    now, before = slice(1, None), slice(None, -1)

    def whitened(columns: NDArray) -> NDArray:
        return np.concatenate([columns[:1] * math.sqrt(1 - phi**2), columns[now] - phi * columns[before]])

    x, y = whitened(regressor)[:, 0], whitened(increments.T)
    alphas = x @ y / (x @ x) / scale
    value = float(alphas.mean())
    left = y.mean(axis=1) - x * (value * scale)
    unit = max(float(left @ left) / (n - 1), rounding**2)
    variance, freedom = unit / float(x @ x) / scale**2, _stretches(n, 1, max(phi, 0.0))
    if seeds > 1 and (between := float(alphas.var(ddof=1)) / seeds) > variance:
        variance, freedom = between, seeds - 1
    return _t_interval(value, variance, freedom, level, seeds)


def _differences(columns: NDArray, least: int) -> tuple[NDArray, NDArray]:
    """Return the largest standardized difference of means over splits of each column [step column], and its place."""
    n = len(columns)
    k = np.arange(least, n - least + 1)[:, None]
    running = np.cumsum(columns - columns.mean(axis=0), axis=0)
    size = np.abs(running[least - 1 : n - least]) / np.sqrt(k * (n - k) / n)
    place = size.argmax(axis=0)
    return size[place, np.arange(columns.shape[1])], place + least


def _segmented(columns: NDArray, least: int, splits: int) -> tuple[NDArray, NDArray]:
    """Take up to `splits` best splits out of each column, one after the other.

    Returns:
        What the segments' means leave [step column], and the segment that each step is in [step column].
    """
    n, count = columns.shape
    left = columns - columns.mean(axis=0)
    at, every = np.arange(n)[:, None], np.arange(count)
    start, end = np.zeros((n, count), dtype=np.int64), np.full((n, count), n)
    for _ in range(splits):
        before, after = at - start, end - at
        total = np.cumsum(left, axis=0) - left  # of the segment's steps before this one: those of whole segments are 0
        allowed = (before >= least) & (after >= least)
        gain = np.where(allowed, total**2 / np.maximum(before, 1) / after * (end - start), 0.0)
        place = gain.argmax(axis=0)
        total, splittable = total[place, every], gain[place, every] > 0
        first, last = start[place, every], end[place, every]
        lower = splittable & (at >= first) & (at < place)
        upper = splittable & (at >= place) & (at < last)
        left = left - np.where(lower, total / np.maximum(place - first, 1), 0.0)
        left = left + np.where(upper, total / (last - place), 0.0)
        start, end = np.where(upper, place, start), np.where(lower, place, end)
    return left, start


def _standardized(columns: NDArray, least: int, rounding: float) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Return `_differences` over the noise's long-run deviation, its place, the noise, and the segments behind it."""
    size, place = _differences(columns, least)
    left, segments = _segmented(columns, least, min(MOST_SPLITS, max(1, len(columns) // (SPLIT_EVERY * least))))
    phi = np.clip(_lag_one(left), GRID[0], REDDEST)
    deviation = np.sqrt((left**2).mean(axis=0) * (1 + phi) / (1 - phi))
    return size / np.maximum(deviation, max(rounding, np.finfo(np.float64).tiny)), place, left, segments


def _best_split(values: NDArray, least: int, rounding: float, seed: int, simulated: int) -> tuple[float, int]:
    """Return the probability of as large a difference of means in stationary noise, and where the best split is."""
    n = len(values)
    if n < 2 * least:
        return 1.0, 0
    size, place, left, segments = _standardized(values[:, None], least, rounding)
    split = int(place[0])
    if size[0] < NO_CHANGE:
        return 1.0, split
    basis = (segments == np.unique(segments)).astype(np.float64)
    basis /= np.linalg.norm(basis, axis=0)
    phi = float(_cautious(_unbiased(_lag_one(left)[0], basis), n))
    innovations = left[1:, 0] - phi * left[:-1, 0]
    innovations = innovations - innovations.mean()
    rng = stream(seed, "stats/change-points")
    block = _block_length(innovations)
    starts = rng.integers(n - 1, size=(math.ceil(n / block), simulated))
    drawn = (starts[:, None, :] + np.arange(block)[None, :, None]).reshape(-1, simulated)[:n] % (n - 1)
    noise = innovations[drawn]
    noise[0] /= math.sqrt(1 - phi**2)
    reference = _standardized(_autoregression(noise, phi), least, rounding)[0]
    return float(1 + (reference >= size[0]).sum()) / (1 + simulated), split
