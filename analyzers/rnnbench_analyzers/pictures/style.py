"""What the pictures have in common: size and type for paper, an arm's colour and marker, medians, axes, the legend.

Pictures are drawn at the size they are printed at: a text column or a page's width, no type below 7 points. A line is
told apart by its marker as well as by its colour, so that it survives a copier and any eye; dashes are left for what
a picture has to say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.evidence import Evidence
from rnnbench.signals import Signal

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

Curve = TypeVar("Curve")

COLUMN = 3.35
"""Width of one text column in inches."""

PAGE = 6.75
"""Width of a page's two columns in inches."""

SMALL, NORMAL = 7.0, 8.0
"""Sizes of type in points."""

FONT = "DejaVu Sans"
"""Comes with matplotlib: what is measured is what is drawn, on every machine."""

LINE = 1.3
MARKER_SIZE = 4.0
MARKERS_A_LINE = 6
POINTS_AN_INCH = 72.0

_ORDER = (0, 1, 2, 4, 3, 9, 5)
"""Of seaborn's colour-blind palette: its grey is for baselines, its yellow and its light pink are lost on paper."""

_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h", "<", ">", "p")
"""As many as have no divisor in common with the colours: 88 arms before a colour meets the same marker again."""

LN10 = math.log(10.0)


@dataclass(frozen=True)
class Arm:
    """One arm on one backend, and how its line looks.

    Attributes:
        evidence: its runs.
        name: for the legend.
        panel: the task with its parameters.
        colour: of the arm, whatever the backend.
        marker: likewise.
        filled: whether the marker is: the arm's first backend is filled, the others are hollow.
        index: of the arm, to set its markers apart from others'.
    """

    evidence: Evidence
    name: str
    panel: str
    colour: Any
    marker: str
    filled: bool
    index: int

    def line(self, count: int, **changed: Any) -> dict[str, Any]:
        """Return how to draw a line of `count` points."""
        stride = max(1, count // MARKERS_A_LINE)
        looks: dict[str, Any] = {
            "color": self.colour,
            "linewidth": LINE,
            "marker": self.marker,
            "markersize": MARKER_SIZE,
            "markerfacecolor": self.colour if self.filled else "white",
            "markeredgecolor": self.colour,
            "markeredgewidth": 0.9,
            "markevery": ((self.index * stride) // 4 % stride, stride),
        }
        return {**looks, **changed}

    def sample(self, **changed: Any) -> Line2D:
        """Return what stands for the arm in a legend."""
        from matplotlib.lines import Line2D

        return Line2D([], [], **self.line(1, markevery=None, **changed))


def arms(evidence: Iterable[Evidence]) -> list[Arm]:
    """Give each arm its look: a colour and a marker by what it is, filled or hollow by its backend.

    Two arms whose specs differ in nothing but task and backend are one arm.
    """
    import seaborn as sns

    palette = [sns.color_palette("colorblind", 10)[index] for index in _ORDER] + [(0.15, 0.15, 0.15)]
    indices: dict[Hashable, int] = {}
    backends: dict[int, list[Any]] = {}
    found = []
    for each in evidence:
        spec = {key: value for key, value in each.spec.items() if key not in ("task", "backend")}
        index = indices.setdefault(repr(sorted(spec.items())) if spec else ("", each.subject), len(indices))
        known = backends.setdefault(index, [])
        backend = each.spec.get("backend", "torch")
        if backend not in known:
            known.append(backend)
        found.append(
            Arm(
                evidence=each,
                name=each.subject,
                panel=panel_of(each),
                colour=palette[index % len(palette)],
                marker=_MARKERS[index % len(_MARKERS)],
                filled=known.index(backend) == 0,
                index=index,
            )
        )
    return found


def panel_of(evidence: Evidence) -> str:
    """Name the task with its parameters, as learning curves do: ``adding, T 50``."""
    task = evidence.spec.get("task")
    if isinstance(task, dict) and len(task) > 1:
        given = [f"{name} {value}" for name, value in task.items() if name != "name"]
        return ", ".join([str(task.get("name", evidence.task)), *given])
    named = str(task.get("name")) if isinstance(task, dict) else str(task or evidence.task)
    return f"{named}, T {evidence.length}" if evidence.length else named


def first_and_last(
    rows: Mapping[str, Sequence[Arm]], columns: int, curve: Callable[[Arm, bool], Curve | None]
) -> dict[tuple[str, int], list[Curve]]:
    """Return what is drawn of each panel's arms at the first and, where there are two columns, the last look.

    Args:
        rows: arms by panel, as `in_panels` gives them.
        columns: 1 for the last look alone, or 2.
        curve: what is drawn of an arm at its first (False) or last (True) look; None for nothing.
    """
    return {
        (panel, column): [one for arm in arms if (one := curve(arm, column == columns - 1)) is not None]
        for panel, arms in rows.items()
        for column in range(columns)
    }


def in_panels(found: Iterable[Arm]) -> dict[str, list[Arm]]:
    """Sort the arms by panel, both in the order in which they come."""
    panels: dict[str, list[Arm]] = {}
    for arm in found:
        panels.setdefault(arm.panel, []).append(arm)
    return panels


def recorded(evidence: Evidence, *kinds: str) -> list[int]:
    """Return the training steps at which any run recorded any of these kinds, ascending."""
    return sorted({step for run in evidence.runs for kind in kinds for step in run.signals.steps(kind)})


def at_end(evidence: Evidence, kind: str, of: str, last: bool) -> list[Signal]:
    """Return each run's first or last signal of a kind and a thing; runs without one are left out."""
    found = [run.signals.find(kind, of) for run in evidence.runs]
    choose = max if last else min
    return [choose(signals, key=lambda signal: signal.step) for signals in found if signals]


def when(steps: Iterable[int]) -> str:
    """Say at which training step a panel was recorded; arms may have ended at different ones."""
    taken = sorted(set(steps))
    if not taken:
        return ""
    if taken[-1] == 0:
        return "before training"
    span = f"{taken[0]:,}" if len(taken) == 1 else f"{taken[0]:,} to {taken[-1]:,}"
    return f"after {span} training step" + ("" if taken[-1] == 1 else "s")


def median(table: NDArray, axis: int = 0) -> NDArray:
    """Return the median over an axis, NaN only where there is nothing but NaN; -inf counts as the least."""
    values = np.asarray(table, dtype=np.float64)
    values = np.where(np.isposinf(values), np.nan, values)
    empty = np.isnan(values).all(axis=axis)
    filled = np.where(np.expand_dims(empty, axis), 0.0, values)
    return np.where(empty, np.nan, np.nanmedian(filled, axis=axis))


def quantile(table: NDArray, share: float, axis: int = 0) -> NDArray:
    """Return a quantile that is one of the values (no half-way to -inf), NaN only where there is nothing but NaN."""
    values = np.asarray(table, dtype=np.float64)
    values = np.where(np.isposinf(values), np.nan, values)
    empty = np.isnan(values).all(axis=axis)
    filled = np.where(np.expand_dims(empty, axis), 0.0, values)
    return np.where(empty, np.nan, np.nanquantile(filled, share, axis=axis, method="nearest"))


def drawable(values: NDArray) -> NDArray:
    """Return the values with NaN, which leaves a gap, for what has no place on an axis."""
    return np.where(np.isfinite(values), values, np.nan)


@contextmanager
def look() -> Iterator[None]:
    """Draw in the house's style, at printed size."""
    import matplotlib as mpl
    import seaborn as sns

    sizes: dict[Any, Any] = {
        "font.family": FONT,
        "font.size": NORMAL,
        "axes.titlesize": NORMAL,
        "axes.labelsize": NORMAL,
        "xtick.labelsize": SMALL,
        "ytick.labelsize": SMALL,
        "legend.fontsize": SMALL,
        "axes.linewidth": 0.8,
        "axes.titlepad": 4.0,
        "axes.labelpad": 2.5,
        "xtick.major.size": 3.0,
        "ytick.major.size": 3.0,
        "xtick.minor.size": 1.8,
        "ytick.minor.size": 1.8,
        "xtick.major.width": 0.8,
        "ytick.major.width": 0.8,
        "xtick.minor.width": 0.6,
        "ytick.minor.width": 0.6,
        "xtick.major.pad": 2.0,
        "ytick.major.pad": 2.0,
        "lines.solid_joinstyle": "round",
    }
    with sns.axes_style("ticks"), mpl.rc_context(sizes):
        yield


def sheet(rows: int, columns: int, height: float, **shared: Any) -> tuple[Figure, Any]:
    """Return a figure a column (for one column of panels) or a page wide, and its panels [row column]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, height * rows), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.04, h_pad=0.04, wspace=0.03, hspace=0.03)  # type: ignore[union-attr, call-arg]  # a constrained layout has them
    return figure, figure.subplots(rows, columns, squeeze=False, **shared)


def finish(axes: Axes, title: str = "", xlabel: str = "", ylabel: str = "") -> None:
    """Name a panel and its axes, and fix the sizes of tick labels, which are made only when the picture is drawn."""
    import seaborn as sns

    columns = _columns(axes)
    width = (COLUMN if columns == 1 else PAGE / columns) * POINTS_AN_INCH
    lines = [wrapped(line, 0.82 * width, NORMAL) for line in title.split("\n")]
    axes.set_title("\n".join(lines), parse_math=False)
    axes.set_xlabel(wrapped(xlabel, 0.9 * width, NORMAL))
    axes.set_ylabel(ylabel)
    for which, length, thick in (("major", 3.0, 0.8), ("minor", 1.8, 0.6)):
        axes.tick_params(which=which, labelsize=SMALL, length=length, width=thick, pad=2.0, labelfontfamily=FONT)
    sns.despine(ax=axes)


def room_for_titles(figure: Figure, panels: Any) -> None:
    """Make the figure as much higher as its rows' longest titles [row column] have more than one line."""
    more = sum(max(axes.get_title().count("\n") for axes in row) for row in panels)
    figure.set_figheight(figure.get_figheight() + more * 1.25 * NORMAL / POINTS_AN_INCH)


def _columns(axes: Axes) -> int:
    spec = axes.get_subplotspec()
    return 1 if spec is None else spec.get_topmost_subplotspec().get_gridspec().ncols


def title_of(arm: Arm, found: Iterable[Arm]) -> str:
    """Name a panel by its arm, and by its task where there are several."""
    several = len({other.panel for other in found}) > 1
    return f"{arm.name} ({arm.panel})" if several and arm.panel not in arm.name else arm.name


def blank(axes: Axes) -> None:
    """Leave a place of the sheet empty."""
    axes.set_visible(False)
    axes.set_in_layout(False)


def powers(axis: Axis, most: int = 6) -> None:
    """Label an axis of decimal logarithms: ``1``, ``0.1``, ``0.01``, ``1e-3``. Small superscripts do not print well."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 3, 5, 6, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: power(value)))


def power(exponent: float) -> str:
    """Write a power of ten, given its decimal logarithm."""
    rounded = round(exponent)
    if abs(exponent - rounded) > 1e-6:
        return f"{10**exponent:.2g}" if abs(exponent) < 3 else f"1e{exponent:.1f}"
    return f"{10.0**rounded:g}" if -2 <= rounded <= 2 else f"1e{rounded}"


def counting_axis(axes: Axes, last: float) -> None:
    """Make x an axis of steps that begins at 0 and goes on logarithmically from 1 up to `last`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter

    axes.set_xscale("symlog", linthresh=1, linscale=0.4)
    decades = [10**power for power in range(int(math.log10(max(last, 1))) + 1)]
    stride = -(-len(decades) // 4)
    axes.xaxis.set_major_locator(FixedLocator([0, *decades[::stride]]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.0f}"))
    axes.xaxis.set_minor_locator(FixedLocator([digit * decade for decade in decades for digit in range(1, 10)]))
    axes.xaxis.set_minor_formatter(NullFormatter())


def whole_steps(axis: Axis, most: int = 6) -> None:
    """Label an axis of steps with whole numbers only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:,.0f}"))


def threshold(axes: Axes, value: float, text: str = "", at: float | None = None) -> None:
    """Draw a horizontal line, labelled below it: at the panel's right end, or to the left of `at`."""
    axes.axhline(value, **THRESHOLD)
    if text:
        axes.annotate(
            text,
            (0.99 if at is None else at, value),
            xycoords=("axes fraction" if at is None else "data", "data"),
            xytext=(0 if at is None else -3, -1.5),
            textcoords="offset points",
            ha="right",
            va="top",
            fontsize=SMALL,
            color="0.2",
            bbox=_PATCH,
            zorder=5,
        )


THRESHOLD: dict[str, Any] = {"color": "0.4", "linestyle": (0, (1, 1.2)), "linewidth": 1.0, "zorder": 1.5}
_PATCH = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}


def needed(axes: Axes, lag: float, text: str) -> None:
    """Draw a labelled vertical line, its text on the side where there is room."""
    left = lag > 0.5 * sum(axes.get_xlim())
    axes.axvline(lag, color="0.15", linestyle=(0, (5, 2)), linewidth=1.0, zorder=1.6)
    axes.annotate(
        text,
        (lag, 0.98),
        xycoords=("data", "axes fraction"),
        xytext=(-2 if left else 2, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        fontsize=SMALL,
        color="0.1",
        bbox=_PATCH,
        zorder=5,
    )


def legend(figure: Figure, entries: Sequence[tuple[Artist, str]], above: bool = False) -> None:
    """Put a legend below (or above) all panels, every name whole, and make the figure as much higher as that takes.

    Names are set as they are: a dollar sign begins no formula, an underscore hides nothing.
    """
    if not entries:
        return
    width = figure.get_figwidth() * POINTS_AN_INCH - 8
    columns, names, lines = _fewest_lines([name for _, name in entries], width)
    made = figure.legend(
        [artist for artist, _ in entries],
        ["." for _ in names],
        loc="outside upper center" if above else "outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=SMALL,
        handlelength=2.4,
        handletextpad=0.6,
        columnspacing=_GAP / SMALL,
        labelspacing=0.35,
        borderpad=0.2,
        borderaxespad=0.2,
    )
    for text, name in zip(made.get_texts(), names, strict=True):
        text.set_parse_math(False)
        text.set_text(name)
    figure.set_figheight(figure.get_figheight() + (lines * SMALL * 1.55 + 6) / POINTS_AN_INCH)


_SAMPLE = 3.2 * SMALL
_GAP = 1.2 * SMALL
"""Width in points of what stands for a line in a legend, and between two columns."""


def _fewest_lines(names: Sequence[str], width: float) -> tuple[int, list[str], int]:
    """Return how many columns make a legend lowest, the names broken to fit them, and its lines of text."""
    best: tuple[int, list[str], int] | None = None
    for columns in range(1, min(len(names), 6) + 1):
        broken = [wrapped(name, (width + _GAP) / columns - _GAP - _SAMPLE, SMALL) for name in names]
        longest = -(-len(names) // columns)
        heights = [name.count("\n") + 1 for name in broken]
        lines = max(sum(heights[at : at + longest]) for at in range(0, len(names), longest))
        if best is None or lines < best[2]:
            best = columns, broken, lines
    assert best is not None
    return best


_HINTING = 1.07
"""Letters are set on whole pixels: at 150 dots an inch a line comes out up to so much wider than the font says."""


def measure(text: str, size: float) -> float:
    """Return how wide a line of text is at most, in points; kerning, which only brings letters closer, is left out."""
    return _HINTING * size * sum(map(_advance, text))


@cache
def _advance(letter: str) -> float:
    """Return how far a letter takes the next one along, in units of the size of type."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=FONT)))
    font.set_size(100.0, POINTS_AN_INCH)
    return float(font.load_char(ord(letter)).linearHoriAdvance) / 65536 / 100.0


def wrapped(text: str, width: float, size: float) -> str:
    """Break text into lines of at most `width` points, between words where it can, within a word where it must."""
    text = printable(text)
    lines: list[str] = []
    line = ""
    for word in text.split():
        joined = f"{line} {word}" if line else word
        if measure(joined, size) <= width:
            line = joined
            continue
        if line:
            lines.append(line)
            line = ""
        while measure(word, size) > width and len(word) > 1:
            widths = np.cumsum([measure(letter, size) for letter in word])
            fits = max(1, int(np.searchsorted(widths, width, side="right")))
            lines.append(word[:fits])
            word = word[fits:]
        line = word
    return "\n".join([*lines, line])


def printable(text: str) -> str:
    """Return the text with a question mark for each character that the font cannot draw."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties(family=FONT)))
    return "".join(
        letter if letter == " " or (letter.isprintable() and font.get_char_index(ord(letter))) else "?"
        for letter in " ".join(text.split())
    )
