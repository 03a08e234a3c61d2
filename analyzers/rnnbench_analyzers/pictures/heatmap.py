"""How far back the gradient reaches as training goes on: a heat map of its norm over lag and training step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench import stats
from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench_analyzers.pictures import style
from rnnbench_analyzers.pictures.profile import LEFT, left, recorded_steps, relative

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST, HIGHEST = -9.0, 3.0
"""Decimal logarithms beyond which all is one colour, so that colours tell apart what is near the threshold."""

MAP = "mako"
ZERO = "0.82"


@dataclass(frozen=True)
class Grid:
    """An arm's gradient over training and lag.

    Attributes:
        steps: training steps, ascending.
        values: [step lag] medians over seeds of the log-norm less that at lag 0; -inf exactly zero, NaN not recorded.
        horizon: [step] first lag from which on at most a thousandth is left; NaN where there is none.
    """

    steps: list[int]
    values: NDArray
    horizon: NDArray


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw the gradient norm over lag and training step, a panel an arm; None where it was not recorded.

    The gradient is the one of the profile picture: by the whole state of the lowest layer that reads forward,
    relative to lag 0, the median over seeds. Training steps are categories in their order, which is close to a
    logarithmic axis where they were recorded log-spaced. A white-edged line is the lag from which on at most a
    thousandth is left, a dashed line what the task needs. Hatched is exactly zero, white not recorded.
    """
    found = [arm for arm in style.arms(evidence) if recorded_steps(arm.evidence)]
    grids = [(arm, made) for arm in found if (made := grid(arm.evidence)) is not None]
    if not grids:
        return None
    columns = min(2, len(grids))
    rows = -(-len(grids) // columns)
    lines = max(len(made.steps) for _, made in grids)
    marks: set[str] = set()
    with style.look():
        figure, panels = style.sheet(rows, columns, 0.75 + 0.09 * min(max(lines, 6), 12))
        figure.set_figheight(figure.get_figheight() + 0.5)  # for the colour bar
        colours, norm = _colours([made.values for _, made in grids])
        for index, axes in enumerate(panels.flat):
            if index >= len(grids):
                style.blank(axes)
                continue
            arm, made = grids[index]
            _panel(axes, made, colours, norm, marks)
            if arm.evidence.lag is not None:
                _need(axes, arm.evidence.lag, marks)
            lowest = index + columns >= len(grids)
            xlabel = "lag (steps back from the loss)" if lowest else ""
            style.finish(axes, style.title_of(arm, found), xlabel, "training step" if index % columns == 0 else "")
        _bar(figure, list(panels.flat)[: len(grids)], colours, norm, [made.values for _, made in grids])
        style.room_for_titles(figure, panels)
        style.legend(figure, _legend(marks, {arm.evidence.lag for arm, _ in grids}))
    return figure


def grid(evidence: Evidence) -> Grid | None:
    """Put together the medians over seeds at each training step; None where nothing is finite."""
    steps = recorded_steps(evidence)
    rows = []
    for step in steps:
        found = [relative(run.signals, step) for run in evidence.runs]
        seeds = [left(one.mean) for one in found if one is not None]
        longest = max((len(row) for row in seeds), default=0)
        table = [np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in seeds]
        rows.append(style.median(np.array(table)) if table else np.empty(0))
    lags = max((len(row) for row in rows), default=0)
    values = np.array([np.pad(row, (0, lags - len(row)), constant_values=np.nan) for row in rows])
    if not np.isfinite(values).any():
        return None
    horizons = [stats.horizon(row, LEFT) if np.isfinite(row[0]) else None for row in values]
    return Grid(steps, values, np.array([np.nan if lag is None else float(lag) for lag in horizons]))


def _colours(grids: Sequence[NDArray]) -> tuple[Any, Any]:
    import seaborn as sns
    from matplotlib.colors import Normalize

    finite = np.concatenate([values[np.isfinite(values)] for values in grids]) / style.LN10
    low = min(max(float(np.floor(finite.min())), LOWEST), -4.0)
    high = max(min(float(np.ceil(finite.max() - 0.2)), HIGHEST), 0.0)
    return sns.color_palette(MAP, as_cmap=True), Normalize(low, high)


def _panel(axes: Axes, made: Grid, colours: Any, norm: Any, marks: set[str]) -> None:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    count, lags = made.values.shape
    edges = np.arange(lags + 1) - 0.5, np.arange(count + 1) - 0.5
    if np.isneginf(made.values).any():
        marks.add("zero")
        behind = Rectangle((-0.5, -0.5), lags, count, **_zero(), zorder=0.5)
        axes.add_patch(behind)
    decades = np.ma.masked_invalid(style.drawable(made.values) / style.LN10)
    axes.pcolormesh(*edges, decades, cmap=colours, norm=norm, rasterized=True, zorder=1)
    unknown = np.isnan(made.values)
    if unknown.any():
        marks.add("unknown")
        cover = np.ma.masked_where(~unknown, np.ones_like(made.values))
        axes.pcolormesh(*edges, cover, cmap=ListedColormap(["white"]), rasterized=True, zorder=1)
    _staircase(axes, made.horizon, marks)
    axes.set_xlim(-0.5, lags - 0.5)
    axes.set_ylim(-0.5, count - 0.5)
    labelled = sorted({round(row) for row in np.linspace(0, count - 1, min(count, 6))})
    axes.yaxis.set_major_locator(FixedLocator(labelled))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{made.steps[round(value)]:,}"))
    style.whole_steps(axes.xaxis)


def _zero() -> dict[str, Any]:
    return {"facecolor": ZERO, "edgecolor": "0.45", "hatch": "//////", "linewidth": 0.0}


def _staircase(axes: Axes, horizon: NDArray, marks: set[str]) -> None:
    """Draw the horizon as a stroke across each training step's row, joined where neighbours have one."""
    from matplotlib.patheffects import withStroke

    if not np.isfinite(horizon).any():
        return
    marks.add("horizon")
    x = np.repeat(horizon, 2)
    y = np.repeat(np.arange(len(horizon) + 1) - 0.5, 2)[1:-1]
    axes.plot(x, y, **_HORIZON, path_effects=[withStroke(linewidth=3.2, foreground="white")], zorder=4, label="horizon")


_HORIZON: dict[str, Any] = {"color": "0.05", "linewidth": 1.4}
_NEED: dict[str, Any] = {"color": "#DE8F05", "linewidth": 1.4, "linestyle": (0, (4, 2))}


def _need(axes: Axes, lag: int, marks: set[str]) -> None:
    from matplotlib.patheffects import withStroke

    marks.add("need")
    low, high = axes.get_xlim()
    axes.axvline(
        lag, **_NEED, path_effects=[withStroke(linewidth=2.8, foreground="0.05")], zorder=5, label="need", clip_on=False
    )
    axes.set_xlim(low, max(high, lag + 0.5))


def _bar(figure: Figure, panels: list[Axes], colours: Any, norm: Any, grids: Sequence[NDArray]) -> None:
    from matplotlib.cm import ScalarMappable

    finite = np.concatenate([values[np.isfinite(values)] for values in grids]) / style.LN10
    below, above = bool(finite.min() < norm.vmin), bool(finite.max() > norm.vmax)
    extend = {(True, True): "both", (True, False): "min", (False, True): "max"}.get((below, above), "neither")
    bar = figure.colorbar(
        ScalarMappable(norm=norm, cmap=colours),
        ax=panels,
        location="top",
        extend=extend,
        shrink=0.7,
        aspect=30,
        pad=0.03,
    )
    style.powers(bar.ax.xaxis)
    bar.ax.tick_params(labelsize=style.SMALL, length=2.5, width=0.8, pad=2.0, labelfontfamily=style.FONT)
    bar.set_label("gradient norm / that at lag 0")
    bar.outline.set_linewidth(0.6)


def _legend(marks: set[str], lags: set[int | None]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch
    from matplotlib.patheffects import withStroke

    entries: list[tuple[Any, str]] = []
    if "horizon" in marks:
        gone = style.power(np.log10(LEFT))
        entries.append((Line2D([], [], **_HORIZON), f"horizon: from here on at most {gone} is left"))
    if "need" in marks:
        known = sorted(lag for lag in lags if lag is not None)
        text = f"lag that the task needs: {known[0]:,}" if len(known) == 1 else "lag that the task needs"
        line = Line2D([], [], **_NEED, path_effects=[withStroke(linewidth=2.8, foreground="0.05")])
        entries.append((line, text))
    if "zero" in marks:
        entries.append((Patch(**_zero()), "exactly zero"))
    if "unknown" in marks:
        entries.append((Patch(facecolor="white", edgecolor="0.5", linewidth=0.6), "not recorded, or not a number"))
    return entries
