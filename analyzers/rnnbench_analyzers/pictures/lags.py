"""Where in time a parameter's gradient comes from, beside the one number that its norm is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.signals import Signals
from rnnbench_analyzers.judging import percent, power
from rnnbench_analyzers.lags import BEYOND, CUT, PART, Origin, first_far, origin, parameter
from rnnbench_analyzers.pictures import style
from rnnbench_analyzers.profiles import needed_lag

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -12.0
"""Lowest decimal logarithm shown: what is smaller adds nothing to the largest part that any precision would keep."""


@dataclass(frozen=True)
class Curve:
    """An arm's parts by lag at its first or last recorded training step.

    Attributes:
        arm: what it is of.
        of: the parameter.
        seeds: [seed lag] log-norms of the parts, less the largest of the seed.
        middle: [lag] their median.
        log_norm: of the whole gradient, the median over seeds; None where that is no number.
        log_far: ln of the far part's norm over that, likewise; None also where the needed lag is not known.
        near: how many steps from the loss on all but `CUT` of the norm comes from, the median over seeds; None where
            that is no number.
        steps: training steps done, of each run.
    """

    arm: style.Arm
    of: str
    seeds: NDArray
    middle: NDArray
    log_norm: float | None
    log_far: float | None
    near: int | None
    steps: list[int]


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw how large a part each lag has in the gradient by the recurrent weight; None where none was recorded.

    A row is a task, the columns are the first and the last training step that was recorded. A line is the median over
    seeds of the parts' norms over the largest of them, a band the range of all seeds; a tick on it says up to where
    nine tenths of the gradient come from. Shaded is the farther half of the lag that the task needs. The legend tells
    the norm of the whole gradient, which a plot of gradient norms shows, and how much of it comes from the shaded half:
    gradients of one size may come from anywhere.
    """
    found = [arm for arm in style.arms(evidence) if parameter(arm.evidence) is not None]
    if not found:
        return None
    columns = 1 + any(len(style.recorded(arm.evidence, BEYOND)) > 1 for arm in found)
    rows = style.in_panels(found)
    curves = style.first_and_last(rows, columns, curve)
    marks: set[str] = set()
    with style.look():
        figure, panels = style.sheet(len(rows), columns, 2.4, sharey="row", sharex="row")
        for row, (panel, arms) in enumerate(rows.items()):
            for column in range(columns):
                _panel(panels[row, column], curves[panel, column], marks)
            _bounds(panels[row], [curves[panel, column] for column in range(columns)], arms, marks)
            for column in range(columns):
                axes, lines = panels[row, column], curves[panel, column]
                for lag in sorted({arm.evidence.lag for arm in arms if arm.evidence.lag}):
                    marks.add("far")
                    axes.axvspan(first_far(lag) - 0.5, lag + 0.5, **_FAR)
                    style.needed(axes, lag, f"task needs {lag:,}")
                title = f"{panel}: {style.when(step for one in lines for step in one.steps)}"
                ylabel = "part of dL/dW / largest part" if column == 0 else ""
                style.finish(axes, title, "lag (steps back from the loss)" if row == len(rows) - 1 else "", ylabel)
        style.room_for_titles(figure, panels)
        style.legend(figure, _marks(found, marks), above=True)
        style.legend(figure, _legend(found, curves, columns))
    return figure


def curve(arm: style.Arm, last: bool) -> Curve | None:
    """Put together what an arm's runs recorded at their first or last step; None where there are no numbers."""
    of = parameter(arm.evidence)
    if of is None:
        return None
    parts: list[NDArray] = []
    steps: list[int] = []
    origins: list[Origin] = []
    for run in arm.evidence.runs:
        known = [signal.step for signal in run.signals.find(PART, of)]
        relative = _relative(run.signals, of, (max if last else min)(known)) if known else None
        if relative is None:
            continue
        step = (max if last else min)(known)
        parts.append(relative)
        steps.append(step)
        found = origin(run.signals, of, step, needed_lag(arm.evidence)[0])
        if found is not None:
            origins.append(found)
    if not parts:
        return None
    seeds = np.full((len(parts), max(len(row) for row in parts)), np.nan)
    for row, values in zip(seeds, parts, strict=True):
        row[: len(values)] = values
    if not origins:
        return Curve(arm, of, seeds, style.median(seeds), None, None, None, steps)
    far = float(style.median(np.array([found.log_far for found in origins])))
    return Curve(
        arm=arm,
        of=of,
        seeds=seeds,
        middle=style.median(seeds),
        log_norm=float(np.median([found.log_norm for found in origins])),
        log_far=far if arm.evidence.lag else None,
        near=int(np.ceil(np.median([found.near for found in origins]))),
        steps=steps,
    )


def _relative(signals: Signals, of: str, step: int) -> NDArray | None:
    """Return log-norms of the parts less the largest [lag]; None where none is finite."""
    signal = signals.one(PART, of, step)
    values = np.empty(0) if signal is None else np.asarray(signal.values, dtype=np.float64).reshape(-1)
    values = np.where(np.isposinf(values), np.nan, values)
    finite = values[np.isfinite(values)]
    return values - finite.max() if len(finite) else None


_FAR: dict[str, Any] = {"color": "0.5", "alpha": 0.12, "linewidth": 0, "zorder": 0.5}
_ARROW: dict[str, Any] = {"marker": r"$\downarrow$", "markersize": 7, "linestyle": "", "clip_on": False}
_TICK: dict[str, Any] = {"marker": "|", "markersize": 9, "markeredgewidth": 1.8, "linestyle": ""}


def _panel(axes: Axes, curves: Sequence[Curve], marks: set[str]) -> None:
    for one in curves:
        lags = np.arange(len(one.middle))
        shown = style.drawable(one.middle) / style.LN10
        axes.plot(lags, shown, label=one.arm.name, zorder=3, **one.arm.line(len(lags)))
        if len(one.seeds) > 1:
            marks.add("band")
            low, high = (style.drawable(style.quantile(one.seeds, share)) / style.LN10 for share in (0.0, 1.0))
            axes.fill_between(lags, low, high, color=one.arm.colour, alpha=0.13, linewidth=0)
        if one.near is not None and one.near <= len(lags) and np.isfinite(shown[one.near - 1]):
            marks.add("near")
            axes.plot(
                [one.near - 1], [shown[one.near - 1]], color=one.arm.colour, zorder=5, label="nine tenths", **_TICK
            )


def _bounds(
    row: Sequence[Axes], columns: Sequence[Sequence[Curve]], arms: Sequence[style.Arm], marks: set[str]
) -> None:
    """Set a row's axes so that all lines and the need lie within, down to the lowest that is shown."""
    curves = [one for column in columns for one in column]
    values = [style.drawable(part) / style.LN10 for one in curves for part in (one.seeds, one.middle)]
    low = min((float(part[np.isfinite(part)].min(initial=0.0)) for part in values), default=0.0)
    if low < LOWEST:
        for axes, shown in zip(row, columns, strict=True):
            for one in shown:
                below = np.flatnonzero(style.drawable(one.middle) / style.LN10 < LOWEST)
                if len(below):
                    marks.add("deeper")
                    axes.plot([below[0]], [LOWEST], color=one.arm.colour, zorder=6, label="leaves", **_ARROW)
    low = min(max(low, LOWEST), -1.0)
    longest = max([len(one.middle) - 1 for one in curves] + [arm.evidence.lag or 0 for arm in arms], default=1)
    for axes in row:
        axes.set_ylim(1.05 * low, -0.1 * low)
        axes.set_xlim(-0.02 * max(longest, 1), 1.02 * max(longest, 1))
        style.powers(axes.yaxis)
        style.whole_steps(axes.xaxis)


def _legend(
    found: Sequence[style.Arm], curves: dict[tuple[str, int], list[Curve]], columns: int
) -> list[tuple[Any, str]]:
    """Name each arm with the norm of its gradient and how much of it is from the shaded half, before and after."""

    def along(values: Iterable[float | None]) -> str:
        return " → ".join("?" if value is None else power(value) for value in values)

    entries: list[tuple[Any, str]] = []
    for arm in found:
        own = [one for column in range(columns) for one in curves[arm.panel, column] if one.arm is arm]
        said = f"|dL/dW| {along(one.log_norm for one in own)}" if own else "nothing that is a number"
        if any(one.log_far is not None for one in own):
            said += f", far half {along(one.log_far for one in own)} of it"
        entries.append((arm.sample(), f"{style.title_of(arm, found)}: {said}"))
    return entries


def _marks(found: Iterable[style.Arm], marks: set[str]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    names = dict.fromkeys(name for arm in found if (name := parameter(arm.evidence)) is not None)
    entries: list[tuple[Any, str]] = [(Line2D([], [], linestyle=""), f"W: {', '.join(names)}")]
    if "near" in marks:
        entries.append((Line2D([], [], color="0.3", **_TICK), f"{percent(1 - CUT)} of the norm from up to here"))
    if "far" in marks:
        entries.append((Patch(**_FAR), "farther half of the needed lag"))
    if "band" in marks:
        entries.append((Patch(color="0.4", alpha=0.25, linewidth=0), "range of all seeds"))
    if "deeper" in marks:
        entries.append((Line2D([], [], color="0.4", **_ARROW), "goes on below"))
    return entries
