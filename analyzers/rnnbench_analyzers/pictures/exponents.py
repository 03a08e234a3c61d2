"""Lyapunov spectra: exponent against rank, before and after training, with the edge of chaos drawn in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench_analyzers.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXPONENTS = "spectrum.exponents"
BAND = (0.05, 0.95)


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw the finite-time Lyapunov exponents, descending, a line an arm; None where none were recorded.

    A row is a task and a system, the columns are the first and the last training step that was recorded. A line is
    the median over seeds of the mean over sequences, its band holds nine tenths of all sequences and seeds. An
    exponent of minus infinity (a direction that is lost altogether) has no place on the axis; the legend says from
    which rank on there are such. Of zero, by Engelken, Wolf & Abbott 2023: above it nearby states part.
    """
    found = [arm for arm in style.arms(evidence) if style.recorded(arm.evidence, EXPONENTS)]
    if not found:
        return None
    rows = [
        (panel, system, [arm for arm in arms if system in _systems(arm.evidence)])
        for panel, arms in style.in_panels(found).items()
        for system in dict.fromkeys(name for arm in arms for name in _systems(arm.evidence))
    ]
    columns = 1 + any(len(style.recorded(arm.evidence, EXPONENTS)) > 1 for arm in found)
    lost: dict[str, int] = {}
    with style.look():
        figure, panels = style.sheet(len(rows), columns, 2.1, sharey="row", sharex="row")
        for row, (panel, system, arms) in enumerate(rows):
            named = panel if len({name for _, name, _ in rows}) == 1 else f"{panel}, {system}"
            for column in range(columns):
                last = column == columns - 1
                steps = [_panel(panels[row, column], arm, system, last, lost) for arm in arms]
                when = style.when(step for taken in steps for step in taken)
                _finish(panels[row, column], f"{named}: {when}", column == 0)
        style.room_for_titles(figure, panels)
        style.legend(figure, _marks(), above=True)
        style.legend(figure, _legend(found, lost))
    return figure


def _systems(evidence: Evidence) -> list[str]:
    return list(dict.fromkeys(name for run in evidence.runs for name in run.signals.things(EXPONENTS)))


def spectra(evidence: Evidence, system: str, last: bool) -> tuple[NDArray, NDArray, list[int]]:
    """Return the means over sequences [seed rank], all of them [seed*sequence rank], and the training steps."""
    signals = style.at_end(evidence, EXPONENTS, system, last)
    values = [np.atleast_2d(np.asarray(signal.values, dtype=np.float64)) for signal in signals]
    ranks = max((each.shape[-1] for each in values), default=0)
    padded = [np.pad(each, ((0, 0), (0, ranks - each.shape[-1])), constant_values=np.nan) for each in values]
    means = [_mean(each) for each in padded]
    empty = np.empty((0, ranks))
    return np.array(means).reshape(-1, ranks), np.concatenate([empty, *padded]), [signal.step for signal in signals]


def _mean(values: NDArray) -> NDArray:
    """Return the mean [rank] over sequences [sequence rank] that are numbers; -inf where any is."""
    known = ~np.isnan(values) & ~np.isposinf(values)
    count = known.sum(axis=0)
    total = np.where(known, values, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _panel(axes: Axes, arm: style.Arm, system: str, last: bool, lost: dict[str, int]) -> list[int]:
    means, everything, steps = spectra(arm.evidence, system, last)
    if not len(means):
        return []
    middle = style.median(means)
    ranks = np.arange(1, len(middle) + 1)
    axes.plot(ranks, style.drawable(middle), label=arm.name, **arm.line(len(middle)))
    if len(everything) > 1:
        low, high = (style.drawable(style.quantile(everything, share)) for share in BAND)
        axes.fill_between(ranks, low, high, color=arm.colour, alpha=0.15, linewidth=0)
    if np.isneginf(middle).any():
        first = int(ranks[np.isneginf(middle)][0])
        lost[arm.name] = min(first, lost.get(arm.name, first))
    return steps


def _finish(axes: Axes, title: str, leftmost: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = axes.get_ylim()
    axes.set_ylim(min(low, -0.12 * max(high, 1e-9)), max(high, 0.05 * max(-low, 1e-9)))  # the zero line lies within
    axes.axhline(0.0, **style.THRESHOLD)
    style.whole_steps(axes.xaxis)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))
    axes.margins(x=0.03)
    ylabel = "Lyapunov exponent (1/step)" if leftmost else ""
    style.finish(axes, title, "rank of the exponent", ylabel)


def _marks() -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        (Patch(color="0.4", alpha=0.25, linewidth=0), "90 % of sequences and seeds"),
        (Line2D([], [], **style.THRESHOLD), "0: above it, chaos"),
    ]


def _legend(found: Sequence[style.Arm], lost: dict[str, int]) -> list[tuple[Any, str]]:
    named = {arm.name: arm for arm in found}
    entries: list[tuple[Any, str]] = [
        (arm.sample(), name + (f" (−∞ from rank {lost[name]} on)" if name in lost else ""))
        for name, arm in named.items()
    ]
    return entries
