"""Saturation over training: the share of each gate's values that is pinned to an end of its range."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench_analyzers.activity import SATURATED
from rnnbench_analyzers.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOW, HIGH = "activity.low", "activity.high"


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw the share of saturated values against the training step, a panel an arm, a line a gate or unit.

    The share in the highest twentieth of the range goes up from the middle, the share in the lowest twentieth down:
    a gate that is open, or shut, at all times is at the panel's edge. Shares are means over time; lines are medians
    over seeds, bands the range of all seeds. None where nothing was recorded. After Karpathy, Johnson & Fei-Fei 2015.
    """
    found = [arm for arm in style.arms(evidence) if style.recorded(arm.evidence, LOW, HIGH)]
    if not found:
        return None
    taps = list(dict.fromkeys(tap for arm in found for tap in _taps(arm.evidence)))
    looks = _looks(taps)
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    with style.look():
        figure, panels = style.sheet(rows, columns, 1.85, sharey=True)
        for index, axes in enumerate(panels.flat):
            if index >= len(found):
                style.blank(axes)
                continue
            arm = found[index]
            _panel(axes, arm, looks)
            lowest = index + columns >= len(found)
            ylabel = "share of values at the\nlow end     high end" if index % columns == 0 else ""
            style.finish(axes, style.title_of(arm, found), "training step" if lowest else "", ylabel)
        style.room_for_titles(figure, panels)
        style.legend(figure, _legend(taps, looks))
    return figure


def _taps(evidence: Evidence) -> list[str]:
    return list(dict.fromkeys(tap for run in evidence.runs for kind in (LOW, HIGH) for tap in run.signals.things(kind)))


def over_training(evidence: Evidence, kind: str, tap: str) -> tuple[NDArray, NDArray]:
    """Return the training steps, ascending, and the share, a mean over time, of each run there [seed step]."""
    steps = sorted({step for run in evidence.runs for step in run.signals.steps(kind)})
    table = np.full((len(evidence.runs), len(steps)), np.nan)
    for row, run in zip(table, evidence.runs, strict=True):
        for signal in run.signals.find(kind, tap):
            values = np.asarray(signal.values, dtype=np.float64)
            known = values[np.isfinite(values)]
            if len(known):
                row[steps.index(signal.step)] = known.mean()
    return np.array(steps), table


def _panel(axes: Axes, arm: style.Arm, looks: dict[str, dict[str, Any]]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter

    taken: list[int] = []
    for tap in _taps(arm.evidence):
        for kind, sign in ((HIGH, 1.0), (LOW, -1.0)):
            steps, table = over_training(arm.evidence, kind, tap)
            middle = style.median(table)
            known = np.isfinite(middle)
            if not known.any():
                continue
            taken.extend(int(step) for step in steps[known])
            axes.plot(steps[known], sign * middle[known], label=tap, clip_on=False, zorder=3, **looks[tap])
            if len(table) > 1:
                low, high = style.quantile(table, 0.0)[known], style.quantile(table, 1.0)[known]
                axes.fill_between(steps[known], sign * low, sign * high, color=looks[tap]["color"], alpha=0.15, lw=0)
    style.counting_axis(axes, max(taken, default=1))
    axes.set_xlim(-0.25 if min(taken, default=0) == 0 else 0.75 * min(taken), max([*taken, 1]) * 1.35)
    if len(set(taken)) == 1:  # a power of ten need not lie in so short an axis
        axes.xaxis.set_major_locator(FixedLocator([taken[0]]))
    axes.set_ylim(-1, 1)
    axes.axhline(0, color="0.3", linewidth=0.8, zorder=1)
    for value in (SATURATED, -SATURATED):
        style.threshold(axes, value)
    axes.yaxis.set_major_locator(FixedLocator([-1, -0.5, 0, 0.5, 1]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{abs(value):g}"))


def _looks(taps: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Give each gate a colour and a marker of its own: the palette's, with arms of one gate each."""
    stand_ins = style.arms([Evidence(tap, ()) for tap in taps])
    return {arm.name: arm.line(1, markersize=3.5, markevery=None) for arm in stand_ins}


def _legend(taps: Sequence[str], looks: dict[str, dict[str, Any]]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    scopes = {tap.rpartition(".")[0] for tap in taps}
    names = {tap: tap.rpartition(".")[2] if len(scopes) == 1 else tap for tap in taps}
    entries: list[tuple[Any, str]] = [(Line2D([], [], **looks[tap]), names[tap]) for tap in taps]
    return [*entries, (Line2D([], [], **style.THRESHOLD), f"threshold: {SATURATED:g}, both ends together")]
