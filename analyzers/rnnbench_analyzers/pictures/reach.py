"""Needs, reach and use: how far back the task needs, the gradient reaches, and the output depends, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence, Observed
from rnnbench.stats import Interval
from rnnbench_analyzers.judging import number, unbounded
from rnnbench_analyzers.pictures import style
from rnnbench_analyzers.profiles import LOGIT_INPUT, lag_profile
from rnnbench_analyzers.reach import LEFT, USED, ThreeNumbers, at_least, three_numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CHANGE, LAGS = "use.output_change", "use.lags"
LOWEST = -5.0
"""Decimal logarithm at which curves are cut: a hundredth of the lower threshold."""

NEEDS, REACHES, USES = "needs", "reaches", "uses"
_LOOKS: dict[str, dict[str, Any]] = {
    NEEDS: {"color": "0.35"},
    REACHES: {"color": "#0173B2", "linestyle": "-"},
    USES: {"color": "#DE8F05", "linestyle": (0, (4, 1.5))},
}


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw the three numbers of each arm as bars, above the curves that two of them are read from.

    A bar with its number is how far back the task needs, the gradient of the outputs by the input reaches, and the
    output depends on the past: medians over seeds, with their intervals as whiskers; ``≥`` says that the median would
    be more if the seeds that go to the last probed lag went farther. Below, by lag: the gradient over the largest in
    its sequence (median over sequences and seeds), and by how much the output changes when all inputs at that lag and
    beyond are exchanged, over the change when all are. The reach and the use are the last lags at which they lie on
    or above the dotted thresholds. None where neither was recorded.
    """
    found = [arm for arm in style.arms(evidence) if style.recorded(arm.evidence, LOGIT_INPUT, CHANGE)]
    if not found:
        return None
    columns = min(2, len(found))
    rows = -(-len(found) // columns)
    ratios = {"height_ratios": [0.36, 1.0] * rows}
    with style.look():
        figure, panels = style.sheet(2 * rows, columns, 0.95, gridspec_kw=ratios)
        for index in range(rows * columns):
            row, column = divmod(index, columns)
            strip, axes = panels[2 * row, column], panels[2 * row + 1, column]
            if index >= len(found):
                style.blank(strip)
                style.blank(axes)
                continue
            arm = found[index]
            three = three_numbers(arm.evidence)
            _curves(axes, arm.evidence)
            _axes(axes, strip, arm.evidence, three)
            _bars(strip, three)
            lowest = index + columns >= len(found)
            ylabel = "share of largest" if column == 0 else ""
            style.finish(axes, "", "lag (steps back from the output)" if lowest else "", ylabel)
            style.finish(strip, style.title_of(arm, found))
            _bare(strip)
        style.room_for_titles(figure, panels)
        style.legend(figure, _legend())
    return figure


def gradient_by_lag(run: Observed) -> NDArray | None:
    """Return [lag] the median over sequences of the log-norm by the input less the sequence's largest; or None."""
    profile = lag_profile(run.signals, LOGIT_INPUT)
    if profile is None:
        return None
    usable = profile.values[:, ~(np.isnan(profile.values) | np.isposinf(profile.values)).any(axis=0)]
    largest = usable.max(axis=0, initial=-np.inf)
    usable = usable[:, np.isfinite(largest)] - largest[np.isfinite(largest)]
    return style.median(usable, axis=1) if usable.shape[1] else None


def change_by_lag(run: Observed) -> tuple[NDArray, NDArray] | None:
    """Return the probed lags, ascending, and the share of the output's change there; None without both."""
    change = run.signals.one(CHANGE)
    at = None if change is None else run.signals.one(LAGS, step=change.step) or run.signals.one(LAGS)
    if change is None or at is None or np.size(at.values) != np.size(change.values):
        return None
    lags = np.asarray(at.values, dtype=np.float64).reshape(-1)
    order = np.argsort(lags)
    return lags[order], np.asarray(change.values, dtype=np.float64).reshape(-1)[order]


def _curves(axes: Axes, evidence: Evidence) -> None:
    gradients = [one for run in evidence.runs if (one := gradient_by_lag(run)) is not None]
    if gradients:
        length = max(len(one) for one in gradients)
        table = np.array([np.pad(one, (0, length - len(one)), constant_values=np.nan) for one in gradients])
        _line(axes, np.arange(length, dtype=np.float64), table / style.LN10, REACHES)
    changes = [pair for run in evidence.runs if (pair := change_by_lag(run)) is not None]
    if changes:
        lags = np.unique(np.concatenate([found for found, _ in changes]))
        table = np.full((len(changes), len(lags)), np.nan)
        for row, (found, values) in zip(table, changes, strict=True):
            with np.errstate(divide="ignore", invalid="ignore"):
                row[np.searchsorted(lags, found)] = np.log10(values)
        _line(axes, lags, table, USES)
    axes.axhline(np.log10(LEFT), **{**style.THRESHOLD, "color": _LOOKS[REACHES]["color"]})
    axes.axhline(np.log10(USED), **{**style.THRESHOLD, "color": _LOOKS[USES]["color"]})


def _line(axes: Axes, lags: NDArray, table: NDArray, what: str) -> None:
    """Draw the median over seeds of decimal logarithms [seed lag] and their range, cut off at `LOWEST`."""

    def cut(values: NDArray) -> NDArray:
        return np.where(np.isnan(values), np.nan, np.maximum(values, LOWEST))

    axes.plot(lags, cut(style.median(table)), linewidth=1.5, label=what, **_LOOKS[what])
    if len(table) > 1:
        low, high = cut(style.quantile(table, 0.0)), cut(style.quantile(table, 1.0))
        axes.fill_between(lags, low, high, color=_LOOKS[what]["color"], alpha=0.15, linewidth=0)


def _axes(axes: Axes, strip: Axes, evidence: Evidence, three: ThreeNumbers) -> None:
    """Give curves and bars one axis of lags, which holds all three numbers."""
    from matplotlib.ticker import FixedLocator

    numbers = [one.value for one in (three.reach, three.use) if one is not None]
    last = max([evidence.length - 1.0, three.need or 0.0, 1.0, *numbers])
    for each in (axes, strip):
        style.counting_axis(each, last)
        each.set_xlim(0, 1.08 * last)
    drawn = np.concatenate([np.asarray(line.get_ydata(), dtype=np.float64) for line in axes.lines])
    top = float(drawn[np.isfinite(drawn)].max(initial=0.0))
    axes.set_ylim(LOWEST - 0.15, top + 0.3)
    if three.need is not None:
        axes.axvline(three.need, color=_LOOKS[NEEDS]["color"], linestyle=(0, (5, 2)), linewidth=1.0, zorder=1.6)
    style.powers(axes.yaxis)
    axes.yaxis.set_major_locator(FixedLocator([-4, -3, -2, -1, 0]))


def _bars(strip: Axes, three: ThreeNumbers) -> None:
    """Draw the three bars with their whiskers, and write the numbers at the right, where no bar can cover them."""
    from matplotlib.ticker import FixedLocator, NullLocator

    need = None if three.need is None else Interval(float(three.need), float("-inf"), float("inf"), 0.95, 1)
    for place, (name, one, more) in enumerate(
        (
            (NEEDS, need, False),
            (REACHES, three.reach, at_least(three.reach_by_seed, three.open_reach)),
            (USES, three.use, at_least(three.use_by_seed, three.open_use)),
        )
    ):
        height = -float(place)
        text = "not known" if name == NEEDS else "not recorded"
        if one is not None:
            text = ("≥ " if more else "") + number(one.value)
            strip.barh(height, one.value, height=0.62, color=_LOOKS[name]["color"], label=name)
            if not unbounded(one):
                text += f" [{number(one.low)}, {number(one.high)}]"
                strip.plot([one.low, one.high], [height, height], color="0.1", linewidth=1.0, marker="|", markersize=5)
        strip.annotate(
            text,
            (1.02, height),
            xycoords=("axes fraction", "data"),
            va="center_baseline",
            fontsize=style.SMALL,
            color="0.1",
            annotation_clip=False,
        )
    strip.set_ylim(-2.5, 0.5)
    strip.yaxis.set_major_locator(FixedLocator([0.0, -1.0, -2.0]))
    strip.set_yticks([0.0, -1.0, -2.0], [NEEDS, REACHES, USES])
    strip.yaxis.set_minor_locator(NullLocator())


def _bare(strip: Axes) -> None:
    """Leave of the strip's frame only the line that bars start from."""
    strip.tick_params(axis="both", which="both", length=0)
    strip.tick_params(axis="x", labelbottom=False)
    strip.spines["bottom"].set_visible(False)


def _legend() -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D

    entries: list[tuple[Any, str]] = [
        (Line2D([], [], linewidth=1.5, **_LOOKS[REACHES]), "gradient of the output by the input"),
        (Line2D([], [], linewidth=1.5, **_LOOKS[USES]), "change of the output when the past is exchanged"),
    ]
    for name, left in ((REACHES, LEFT), (USES, USED)):
        dots = Line2D([], [], **{**style.THRESHOLD, "color": _LOOKS[name]["color"]})
        entries.append((dots, f"{name} as far as {style.power(np.log10(left))} is left"))
    return entries
