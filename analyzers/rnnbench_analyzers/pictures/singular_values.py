"""Fans of singular values: how much the full-state Jacobian over a lag stretches each direction."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence, Observed
from rnnbench.signals import coordinates
from rnnbench_analyzers.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

VALUES, LARGEST, LAGS = "propagator.log_singular_values", "propagator.log_norm", "propagator.lags"
EXPONENTS = "spectrum.exponents"
BANDS = ((0.0, 1.0, 0.14), (0.1, 0.9, 0.16), (0.25, 0.75, 0.22))
"""Lowest and highest share of the ranks, and how dark."""

BOTH_STEPS_UP_TO = 4
"""Arms that are shown both before and after training; more get a panel each, after training."""


@dataclass(frozen=True)
class Fan:
    """Log singular values of an arm's full-state Jacobian by lag.

    Attributes:
        lags: [lag] in steps.
        largest: [lag] median of the largest over seeds, sequences and origins.
        low, high: [lag] its range over nine tenths of them.
        ranks: [lag rank] median of each over the same, descending; NaN below rounding's floor; None where only the
            largest was recorded.
        step: training steps done, of each run.
    """

    lags: NDArray
    largest: NDArray
    low: NDArray
    high: NDArray
    ranks: NDArray | None
    step: list[int]


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw the singular values of ds_{t+lag}/ds_t against the lag on a log axis; None where none were recorded.

    A panel is an arm and a system; up to four arms are shown at the first and the last training step that was
    recorded, more at the last. The heavy line is the largest singular value, its medians over seeds, sequences and
    origins; bands hold all, eight tenths and half of the ranks. Dashed lines have the slope of the Lyapunov exponents:
    of the largest, and of the one in the middle where as many were recorded as there are ranks. Over long lags
    singular values grow or shrink at those rates (Oseledets 1968).
    """
    found = [arm for arm in style.arms(evidence) if style.recorded(arm.evidence, VALUES, LARGEST)]
    if not found:
        return None
    shown = [(arm, system) for arm in found for system in _systems(arm.evidence)]
    both = len(shown) <= BOTH_STEPS_UP_TO and any(
        len(style.recorded(arm.evidence, VALUES, LARGEST)) > 1 for arm in found
    )
    places = [(arm, system, last) for arm, system in shown for last in ((False, True) if both else (True,))]
    columns = 2 if both else min(2, len(places))
    rows = -(-len(places) // columns)
    with style.look():
        figure, panels = style.sheet(rows, columns, 1.8, sharey="row" if both else False)
        drawn: set[str] = set()
        for index, axes in enumerate(panels.flat):
            if index >= len(places):
                style.blank(axes)
                continue
            arm, system, last = places[index]
            said = _panel(axes, arm, system, last, drawn)
            named = style.title_of(arm, found) + (f", {system}" if len(_systems(arm.evidence)) > 1 else "")
            title = f"{named}: {said}"
            lowest = index + columns >= len(places)
            xlabel = "lag (steps)" if lowest else ""
            style.finish(axes, title, xlabel, "singular value" if index % columns == 0 else "")
        style.room_for_titles(figure, panels)
        style.legend(figure, _legend(drawn))
    return figure


def _systems(evidence: Evidence) -> list[str]:
    kinds = (VALUES, LARGEST)
    return list(dict.fromkeys(name for run in evidence.runs for kind in kinds for name in run.signals.things(kind)))


def fan(evidence: Evidence, system: str, last: bool) -> Fan | None:
    """Put together what the runs recorded of a system at their first or last step; None for nothing."""
    taken = [one for run in evidence.runs if (one := _of_run(run, system, last)) is not None]
    if not taken:
        return None
    lags = sorted({lag for found, _, _, _ in taken for lag in found})
    largest = np.concatenate([_at(lags, found, values) for found, values, _, _ in taken], axis=1)
    every = [_at(lags, found, values) for found, _, values, _ in taken if values is not None]
    width = max((each.shape[2] for each in every), default=0)
    ranks = None
    if every:
        padded = [np.pad(each, ((0, 0), (0, 0), (0, width - each.shape[2])), constant_values=np.nan) for each in every]
        ranks = style.median(_floored(np.concatenate(padded, axis=1)), axis=1)
        ranks = np.where(np.isneginf(ranks), np.nan, ranks)
    return Fan(
        lags=np.array(lags),
        largest=style.median(largest, axis=1),
        low=style.quantile(largest, 0.05, axis=1),
        high=style.quantile(largest, 0.95, axis=1),
        ranks=ranks,
        step=[step for _, _, _, step in taken],
    )


def _of_run(run: Observed, system: str, last: bool) -> tuple[list[float], NDArray, NDArray | None, int] | None:
    """Return the lags, the largest [lag sample], all [lag sample rank] and the step of one run."""
    signals = run.signals
    recorded = [*signals.find(VALUES, system), *signals.find(LARGEST, system)]
    if not recorded:
        return None
    step = (max if last else min)(signal.step for signal in recorded)
    values, norm = signals.one(VALUES, system, step), signals.one(LARGEST, system, step)
    every = None
    if values is not None:
        every = np.moveaxis(np.asarray(values.values, dtype=np.float64), 1, 0)
        every = every.reshape(every.shape[0], -1, every.shape[-1])
    if norm is not None:
        largest = np.moveaxis(np.asarray(norm.values, dtype=np.float64), 1, 0)
        largest = largest.reshape(largest.shape[0], -1)
    elif every is not None:
        largest = every[:, :, 0]
    else:
        return None
    lags = coordinates(signals, LAGS, step) or coordinates(signals, LAGS) or [float(n) for n in range(len(largest))]
    return list(lags)[: len(largest)], largest, every, step


def _at(lags: Sequence[float], found: Sequence[float], values: NDArray) -> NDArray:
    """Return values [lag ...] at all of `lags`, NaN where this run has none."""
    table = np.full((len(lags), *values.shape[1:]), np.nan)
    for lag, row in zip(found, values, strict=False):
        table[lags.index(lag)] = row
    return table


def _floored(values: NDArray) -> NDArray:
    """Return singular values [lag sample rank] with -inf for what lies below rounding's floor, NaN for no sample."""
    here = ~np.isnan(values).all(axis=2, keepdims=True)
    return np.where(here & np.isnan(values), -np.inf, values)


def _panel(axes: Axes, arm: style.Arm, system: str, last: bool, drawn: set[str]) -> str:
    """Draw one fan; return when it was recorded and the exponents whose slopes are drawn, for the title."""
    found = fan(arm.evidence, system, last)
    if found is None:
        return "not recorded"
    lags = found.lags
    if found.ranks is not None:
        drawn.add("ranks")
        ordered = np.sort(np.where(np.isnan(found.ranks), -np.inf, found.ranks), axis=1)
        if np.isneginf(ordered).any():
            drawn.add("floor")
        for low, high, alpha in BANDS:
            bottom, top = (np.quantile(ordered, share, axis=1, method="nearest") for share in (low, high))
            # what lies below rounding's floor is not known; the band goes on to the floor, below the largest
            floor = ordered[:, -1] + np.log(np.finfo(np.float64).eps * (ordered.shape[1] + np.asarray(lags)))
            bottom = np.where(np.isneginf(bottom), floor, bottom)
            axes.fill_between(
                lags,
                style.drawable(bottom) / style.LN10,
                style.drawable(top) / style.LN10,
                color=arm.colour,
                alpha=alpha,
                linewidth=0,
            )
        middle = np.quantile(ordered, 0.5, axis=1, method="nearest")
        axes.plot(lags, style.drawable(middle) / style.LN10, color=arm.colour, linewidth=0.9)
    axes.plot(lags, style.drawable(found.low) / style.LN10, color=arm.colour, linewidth=0.6, linestyle=(0, (1, 1)))
    axes.plot(lags, style.drawable(found.high) / style.LN10, color=arm.colour, linewidth=0.6, linestyle=(0, (1, 1)))
    axes.plot(lags, style.drawable(found.largest) / style.LN10, color="0.1", linewidth=1.8, label="largest")
    axes.axhline(0.0, **style.THRESHOLD)
    bottom, top = axes.get_ylim()
    rates = _rates(arm.evidence, system, last, 0 if found.ranks is None else found.ranks.shape[1])
    end = float(lags.max(initial=1.0))
    for name, rate in rates:
        drawn.add("slopes")
        axes.plot([0.0, end], [0.0, rate * end / style.LN10], label=name, **_SLOPE)
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, bottom - 0.25 * (top - bottom)), min(high, top + 0.25 * (top - bottom)))
    style.powers(axes.yaxis, 5)
    style.whole_steps(axes.xaxis)
    axes.margins(x=0.02)
    said = ", ".join(f"{name} = {rate:.2g}".replace("-", "−") for name, rate in rates)
    return f"{style.when(found.step)}\n{said} per step" if said else style.when(found.step)


def _rates(evidence: Evidence, system: str, last: bool, ranks: int) -> list[tuple[str, float]]:
    """Return the exponents whose slopes are drawn, in 1/step: the largest, and the middle one of a whole spectrum."""
    signals = style.at_end(evidence, EXPONENTS, system, last)
    if not signals:
        return []
    means = [np.atleast_2d(np.asarray(signal.values, dtype=np.float64)) for signal in signals]
    spectra = style.median(np.array([style.median(each) for each in means if each.shape == means[0].shape]))
    chosen = [("λ1", 0)] + ([(f"λ{(ranks + 1) // 2}", (ranks - 1) // 2)] if ranks == len(spectra) > 2 else [])
    return [(name, float(spectra[rank])) for name, rank in chosen if np.isfinite(spectra[rank])]


_SLOPE: dict[str, Any] = {"color": "0.1", "linestyle": (0, (5, 2)), "linewidth": 0.9}


def _legend(drawn: set[str]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = [
        (Line2D([], [], color="0.1", linewidth=1.8), "largest (median)"),
        (
            Line2D([], [], color="0.4", linewidth=0.6, linestyle=(0, (1, 1))),
            "90 % of sequences, origins, seeds",
        ),
    ]
    if "ranks" in drawn:
        below = ", above rounding's floor" if "floor" in drawn else ""
        entries += [
            (Line2D([], [], color="0.4", linewidth=0.9), "median over ranks"),
            (Patch(color="0.4", alpha=0.5, linewidth=0), "half of the ranks"),
            (Patch(color="0.4", alpha=0.3, linewidth=0), "eight tenths"),
            (Patch(color="0.4", alpha=0.14, linewidth=0), f"all ranks{below}"),
        ]
    if "slopes" in drawn:
        entries.append((Line2D([], [], **_SLOPE), "slope of a Lyapunov exponent λ"))
    return [*entries, (Line2D([], [], **style.THRESHOLD), "1: length is kept")]
