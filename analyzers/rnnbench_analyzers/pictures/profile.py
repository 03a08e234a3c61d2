"""Gradient norm against lag on a log axis, before and after training, with the fit, the threshold and the need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rnnbench import stats
from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.signals import Signals
from rnnbench_analyzers import profiles
from rnnbench_analyzers.judging import number
from rnnbench_analyzers.pictures import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEFT = 1e-3
"""Share of the gradient at lag 0 below which it counts as gone."""

SEEN = "adjoint.seen_log_norm"
SAME = 0.05
"""How far what the run's own precision sees may lie from the truth before it is drawn, in ln: five per cent."""

DEEPEST, SHALLOW = -48.0, -20.0
"""Lowest decimal logarithm shown: below the smallest number of float32, or, where another line of the panel ends above
`KEPT`, far enough below the threshold; lines that differ in what matters would else lie on one another."""

KEPT = -9.0


@dataclass(frozen=True)
class Curve:
    """An arm's gradient by lag at its first or last recorded training step.

    Attributes:
        arm: what it is of.
        seeds: [seed lag] mean log-norms over sequences, less that at lag 0.
        middle: [lag] their median.
        seen: [lag] the same as the run's own precision sees it; None where that was not recorded.
        fit: of the mean log-norms; None with too few lags.
        steps: training steps done, of each run.
    """

    arm: style.Arm
    seeds: NDArray
    middle: NDArray
    seen: NDArray | None
    fit: stats.Decay | None
    steps: list[int]


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Draw how much of the gradient is left at each lag, a line an arm; None where none was recorded.

    A row is a task, the columns are the first and the last training step that was recorded. The gradient is that by
    the whole state of the lowest layer that reads forward, as `relative` chooses it. Lines are medians
    over seeds of mean log-norms over sequences, bands the range of all seeds. A thin straight line is the fitted law
    over the lags that it was fitted to. Dashes show what the run's own precision sees, where it differs; a cross is
    where it reads nothing at all: that is underflow (or overflow), not vanishing.
    """
    found = [arm for arm in style.arms(evidence) if recorded_steps(arm.evidence)]
    if not found:
        return None
    columns = 1 + any(len(recorded_steps(arm.evidence)) > 1 for arm in found)
    rows = style.in_panels(found)
    curves = style.first_and_last(rows, columns, curve)
    marks: set[str] = set()
    with style.look():
        figure, panels = style.sheet(len(rows), columns, 2.4, sharey="row", sharex="row")
        for row, panel in enumerate(rows):
            for column in range(columns):
                _panel(panels[row, column], curves[panel, column], marks)
            _bounds(panels[row], [curves[panel, column] for column in range(columns)], marks)
            for column in range(columns):
                axes, lines = panels[row, column], curves[panel, column]
                for lag in sorted({one.arm.evidence.lag for one in lines if one.arm.evidence.lag is not None}):
                    style.needed(axes, lag, f"task needs {lag:,}")
                near = [one.arm.evidence.lag for one in lines if one.arm.evidence.lag is not None]
                beside = max(near) if near and max(near) > 0.65 * axes.get_xlim()[1] else None
                style.threshold(axes, np.log10(LEFT), f"horizon: {style.power(np.log10(LEFT))} left", beside)
                title = f"{panel}: {style.when(step for one in lines for step in one.steps)}"
                ylabel = "gradient norm / that at lag 0" if column == 0 else ""
                style.finish(axes, title, "lag (steps back from the loss)" if row == len(rows) - 1 else "", ylabel)
        style.room_for_titles(figure, panels)
        style.legend(figure, _marks(found, marks), above=True)
        style.legend(figure, _legend(found, curves, columns))
    return figure


def recorded_steps(evidence: Evidence) -> list[int]:
    """Return the training steps at which any run recorded a gradient by lag, ascending."""
    return sorted({step for run in evidence.runs for step in signal_steps(run.signals)})


def signal_steps(signals: Signals) -> list[int]:
    """Return the training steps at which a run recorded a gradient by lag, ascending."""
    return sorted({step for kind in (profiles.LOGIT, *_LOSSES) for step in signals.steps(kind)})


_LOSSES = (profiles.STEP_LOSS, profiles.LOSS)


def relative(signals: Signals, step: int) -> profiles.Profile | None:
    """Return the profile that a run is shown by at a training step; None where none was recorded.

    It is the one that findings judge: before training that of the loss, which is what training starts from, later
    that of the outputs, since a solved example has no loss gradient left to follow; else what there is.
    """
    kinds = (*_LOSSES, profiles.LOGIT) if step == 0 else (profiles.LOGIT, *_LOSSES)
    for kind in kinds:
        scope = profiles.headline_scope(signals, kind)
        found = None if scope is None else profiles.lag_profile(signals, kind, scope, step)
        if found is not None:
            return found
    return None


def left(mean: NDArray) -> NDArray:
    """Return log-norms [lag] less that at lag 0, or at the first lag where there is one."""
    finite = np.flatnonzero(np.isfinite(mean))
    return mean - mean[finite[0]] if len(finite) else mean


def curve(arm: style.Arm, last: bool) -> Curve | None:
    """Put together the profiles of an arm's runs at their first or last step; None where there are none."""
    taken, missed = [], []
    for run in arm.evidence.runs:
        steps = signal_steps(run.signals)
        found = relative(run.signals, steps[-1 if last else 0]) if steps else None
        if found is not None and np.isfinite(found.mean).any():
            taken.append(found)
            missed.append(_missed(run.signals, found))
    if not taken:
        return None
    seeds = profiles.stacked(taken)
    seeds = np.array([left(row) for row in seeds])
    middle = style.median(seeds)
    seen = None
    if any(part is not None for part in missed):
        table = np.full_like(seeds, np.nan)
        for row, part in zip(table, missed, strict=True):
            if part is not None:
                row[: len(part)] = part
        seen = middle + style.median(table)
    fit = stats.decay([row for row in seeds if np.isfinite(row[0])] or [middle], left=LEFT)
    return Curve(arm, seeds, middle, seen, fit, [one.step for one in taken])


def _missed(signals: Signals, shown: profiles.Profile) -> NDArray | None:
    """Return [lag] by how much the run's own precision reads less than the truth, in ln; None where not recorded.

    It is recorded of the loss. Taken relative to the loss gradient it holds for that of the outputs as well, which
    passes through the same steps.
    """
    if shown.kind == profiles.STEP_LOSS or profiles.STEP_LOSS in signals.kinds():
        return None
    seen = profiles.lag_profile(signals, SEEN, shown.of, shown.step)
    true = profiles.lag_profile(signals, profiles.LOSS, shown.of, shown.step)
    if seen is None or true is None or len(seen) != len(true):
        return None
    known = np.isfinite(true.mean)
    return np.where(known, seen.mean - np.where(known, true.mean, 0.0), np.nan)


def law(fit: stats.Decay, middle: NDArray) -> tuple[NDArray, NDArray] | None:
    """Return the lags that a fit rests on and its values there, set at the height of `middle`; None for no law."""
    first, last = fit.used
    lags = np.arange(first, min(last, len(middle) - 1) + 1)
    known = np.isfinite(middle[lags])
    if fit.model in ("neither", "undecided") or not known.any():
        return None
    if fit.model == "power" and fit.exponent is not None:
        shape: NDArray = -fit.exponent.value * np.log1p(lags)
    else:
        shape = fit.rate.value * lags
    return lags, shape + np.mean((middle[lags] - shape)[known])


def phrase(fit: stats.Decay | None) -> str:
    """Say in a few words what law was found, with its number and unit."""
    if fit is None:
        return "too few lags to fit"
    if fit.model == "neither":
        return "no single law"
    if fit.model == "power" and fit.exponent is not None:
        return f"(1 + lag)^{_signed(-fit.exponent.value)}"
    rate = f"{_signed(fit.rate.value)}/step"
    if fit.model == "undecided":
        return f"law undecided (mean {rate})"
    if fit.half_life is not None:
        return f"half-life {number(fit.half_life)} steps ({rate})"
    if fit.doubling is not None:
        return f"doubles in {number(fit.doubling)} steps ({rate})"
    return f"no clear trend ({rate})"


def _signed(value: float) -> str:
    return f"{value:+.2g}".replace("-", "−")


def _panel(axes: Axes, curves: Sequence[Curve], marks: set[str]) -> None:
    for one in curves:
        lags = np.arange(len(one.middle))
        shown = style.drawable(one.middle) / style.LN10
        axes.plot(lags, shown, label=one.arm.name, zorder=3, **one.arm.line(len(lags)))
        if len(one.seeds) > 1:
            marks.add("band")
            low, high = (style.drawable(style.quantile(one.seeds, share)) / style.LN10 for share in (0.0, 1.0))
            axes.fill_between(lags, low, high, color=one.arm.colour, alpha=0.13, linewidth=0)
        if one.fit is not None and (fitted := law(one.fit, one.middle)) is not None:
            marks.add("fit")
            dark = tuple(0.5 * part for part in one.arm.colour)
            axes.plot(fitted[0], fitted[1] / style.LN10, color=dark, linewidth=0.6, zorder=4, label="fit")
        if one.seen is not None:
            _seen(axes, one, lags, marks)


def _seen(axes: Axes, one: Curve, lags: NDArray, marks: set[str]) -> None:
    assert one.seen is not None
    there = np.isfinite(one.middle)
    differs = there & ~(np.abs(style.drawable(one.seen - np.where(there, one.middle, 0.0))) <= SAME)
    if not differs.any():
        return
    marks.add("seen")
    first = max(int(np.flatnonzero(differs)[0]) - 1, 0)
    values = np.where(differs | (lags == first), style.drawable(one.seen), np.nan) / style.LN10
    axes.plot(lags, values, color=one.arm.colour, linestyle=(0, (3, 1.5)), linewidth=1.1, zorder=3.5, label="seen")
    gone = gone_from(one)
    if gone is not None:
        marks.add("gone")
        at = max(gone - 1, 0)
        height = one.seen[at] if np.isfinite(one.seen[at]) else one.middle[gone]
        axes.plot([at], [height / style.LN10], zorder=6, label="gone", **_GONE)


_GONE: dict[str, Any] = {"color": "0.1", "linestyle": "", "marker": "x", "markersize": 6, "markeredgewidth": 1.6}


def gone_from(one: Curve) -> int | None:
    """Return the first lag at which the run's own precision reads no number where there is one; None for nowhere."""
    if one.seen is None:
        return None
    gone = np.flatnonzero(np.isfinite(one.middle) & ~np.isfinite(one.seen))
    return int(gone[0]) if len(gone) else None


def _bounds(row: Sequence[Axes], columns: Sequence[Sequence[Curve]], marks: set[str]) -> None:
    """Set a row's axes so that all curves, the threshold and the need lie within, down to the floor."""
    curves = [one for column in columns for one in column]
    values = [style.drawable(part) / style.LN10 for one in curves for part in (one.seeds, one.middle)]
    finite = np.concatenate([part[np.isfinite(part)] for part in values] or [np.zeros(1)])
    low, high = min(float(finite.min(initial=0.0)), np.log10(LEFT)), max(float(finite.max(initial=0.0)), 0.0)
    ends = [float(one.middle[np.isfinite(one.middle)][-1]) / style.LN10 for one in curves]
    floor = SHALLOW if max(ends, default=0.0) > KEPT else DEEPEST
    deeper = low < floor
    if deeper:
        low = floor
        marks.add("deeper")
    margin = 0.05 * (high - low)
    longest = max([len(one.middle) - 1 for one in curves] + [one.arm.evidence.lag or 0 for one in curves], default=1)
    for axes in row:
        # below the threshold there is room for its label, above all for that of the need
        axes.set_ylim(min(low - margin, np.log10(LEFT) - 2.5 * margin), high + 3 * margin)
        axes.set_xlim(-0.02 * max(longest, 1), 1.02 * max(longest, 1))
        style.powers(axes.yaxis)
        style.whole_steps(axes.xaxis)
    if deeper:
        for axes, shown in zip(row, columns, strict=True):
            _leaving(axes, shown, low)


def _leaving(axes: Axes, curves: Sequence[Curve], low: float) -> None:
    """Point down where a line leaves its panel."""
    for one in curves:
        below = np.flatnonzero(style.drawable(one.middle) / style.LN10 < low)
        if len(below):
            axes.plot([below[0]], [low], color=one.arm.colour, zorder=6, label="leaves", **_ARROW)


_ARROW: dict[str, Any] = {"marker": r"$\downarrow$", "markersize": 7, "linestyle": "", "clip_on": False}


def _legend(
    found: Sequence[style.Arm], curves: dict[tuple[str, int], list[Curve]], columns: int
) -> list[tuple[Any, str]]:
    """Name each arm with its fit before and after training, and from where on its precision reads nothing."""
    entries: list[tuple[Any, str]] = []
    for arm in found:
        own = [one for column in range(columns) for one in curves[arm.panel, column] if one.arm is arm]
        said = " → ".join(phrase(one.fit) + _blind(one) for one in own) or "nothing that is a number"
        entries.append((arm.sample(), f"{style.title_of(arm, found)}: {said}"))
    return entries


def _blind(one: Curve) -> str:
    gone = gone_from(one)
    return "" if gone is None else f", {one.arm.evidence.precision} reads none from lag {gone:,} on"


def _marks(found: Sequence[style.Arm], marks: set[str]) -> list[tuple[Any, str]]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    entries: list[tuple[Any, str]] = []
    if "fit" in marks:
        entries.append((Line2D([], [], color="0.1", linewidth=0.6), "fitted law, where fitted"))
    if "band" in marks:
        entries.append((Patch(color="0.4", alpha=0.25, linewidth=0), "range of all seeds"))
    precisions = "/".join(dict.fromkeys(arm.evidence.precision for arm in found))
    if "seen" in marks:
        dashes = Line2D([], [], color="0.4", linestyle=(0, (3, 1.5)), linewidth=1.1)
        entries.append((dashes, f"as {precisions} sees it"))
    if "gone" in marks:
        entries.append((Line2D([], [], **_GONE), f"{precisions} reads no number beyond"))
    if "deeper" in marks:
        entries.append((Line2D([], [], color="0.4", **_ARROW), "goes on below"))
    return entries
