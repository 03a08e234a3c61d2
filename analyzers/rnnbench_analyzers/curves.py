"""Learning curves: a panel a task, a line an arm and backend, the trivial predictors' scores drawn in."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 2
CHARACTERS_AN_INCH = 11
DASHED = {"jax": (3, 1.5)}


def learning_curves(runs: pd.DataFrame, metrics: pd.DataFrame, title: str = "") -> Figure:
    """Draw each task's metric against the training step.

    A line is a cell with its techniques, or, where arms differ in something else as well, an arm by its label. Lines
    are medians over seeds, bands the range of all seeds; a run that stopped because it was solved counts with its last
    score from there on. Colours are of cells and techniques, dashes of backends;
    grey dotted lines are baselines. An error that spans more than a factor of thirty gets a logarithmic
    axis.

    Args:
        runs: as `rnnbench_analyzers.summary.summarize` takes it, with a column ``label``.
        metrics: likewise.
        title: above all panels.
    """
    import seaborn as sns
    from matplotlib.figure import Figure

    runs = runs.assign(panel=_panels(runs), arm=_arms(runs))
    runs["arm"] = _told_apart(runs)
    panels = list(dict.fromkeys(runs["panel"]))
    columns = min(COLUMNS, max(1, len(panels)))
    lines = -(-len(panels) // columns)
    with sns.axes_style("ticks"), sns.plotting_context("notebook", font_scale=0.85):
        figure = Figure(figsize=(5.6 * columns, 3.5 * lines + 0.9), layout="constrained")
        arms = list(dict.fromkeys(runs["arm"]))
        colours = dict(zip(arms, sns.color_palette("colorblind", len(arms)), strict=True))
        for index, panel in enumerate(panels):
            axes = figure.add_subplot(lines, columns, index + 1)
            _panel(axes, runs[runs["panel"] == panel], metrics, str(panel), colours)
        _legend(figure, colours, list(dict.fromkeys(runs["backend"])))
    if title:
        figure.suptitle(title, fontsize="medium")
    return figure


def _panel(
    axes: Axes, runs: pd.DataFrame, metrics: pd.DataFrame, panel: str, colours: dict[str, tuple[float, float, float]]
) -> None:
    import seaborn as sns

    metric = str(runs["metric"].iloc[0])
    split = str(runs["eval.split"].iloc[0]) if "eval.split" in runs and runs["eval.split"].notna().iloc[0] else "valid"
    wanted = metrics[(metrics["metric"] == metric) & (metrics["split"] == split)]
    table = wanted[["digest", "step", "value"]].merge(runs[["digest", "arm", "backend"]], on="digest")
    table = _held(table[np.isfinite(table["value"])], runs)
    if len(table):
        sns.lineplot(
            table,
            x="step",
            y="value",
            hue="arm",
            style="backend",
            palette=colours,
            dashes={name: DASHED.get(name, "") for name in table["backend"].unique()},
            estimator="median",
            errorbar=("pi", 100),
            err_kws={"alpha": 0.12, "linewidth": 0},
            linewidth=1.6,
            legend=False,
            ax=axes,
        )
    marks = _baselines(runs, metric)
    smallest = min([*table["value"], *marks.values()], default=0.0)
    largest = max([*table["value"], *marks.values()], default=1.0)
    if runs["better"].iloc[0] == "lower" and smallest > 0 and largest / smallest > 30:
        axes.set_yscale("log")
    for name, value in marks.items():
        axes.axhline(value, color="0.45", linestyle=":", linewidth=1.2, zorder=1)
        axes.annotate(
            f"baseline: {name.replace('_', ' ')}",
            (0.995, value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="right",
            va="bottom",
            fontsize="x-small",
            color="0.3",
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.6},
        )
    better = runs["better"].iloc[0]
    axes.set(title=panel, xlabel="training step", ylabel=f"{metric.replace('_', ' ')} ({split}, {better} is better)")
    axes.margins(x=0.01)
    sns.despine(ax=axes)


def _held(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Let runs that stopped because they were solved keep their last score, or the medians would be of the others."""
    import pandas as pd

    solved = set(runs.loc[runs["status"] == "solved", "digest"])
    pieces = [table]
    for _, arm in table.groupby(["arm", "backend"], sort=False):
        steps = np.unique(arm["step"])
        for digest, run in arm.groupby("digest", sort=False):
            later = steps[steps > run["step"].max()]
            if digest in solved and len(later):
                last = run[run["step"] == run["step"].max()].iloc[[0] * len(later)]
                pieces.append(last.assign(step=later))
    return pd.concat(pieces, ignore_index=True)


def _baselines(runs: pd.DataFrame, metric: str) -> dict[str, float]:
    """Return the trivial predictors' scores; of two that are all but equal the first."""
    prefix = f"baseline.{metric}."
    found: dict[str, float] = {}
    for column in runs.columns:
        if str(column).startswith(prefix) and runs[column].notna().any():
            value = float(runs[column].dropna().iloc[0])
            if all(abs(value - other) > 0.02 * max(abs(value), abs(other)) for other in found.values()):
                found[str(column).removeprefix(prefix)] = value
    return found


def _legend(figure: Figure, colours: dict[str, tuple[float, float, float]], backends: list[str]) -> None:
    from matplotlib.lines import Line2D

    marks: list[Any] = [Line2D([], [], color=colour, linewidth=2, label=arm) for arm, colour in colours.items()]
    for name in backends:
        line = Line2D([], [], color="0.3", linewidth=1.6, label=name)
        if name in DASHED:
            line.set_dashes(DASHED[name])
        marks.append(line)
    longest = max(len(str(mark.get_label())) for mark in marks)
    fitting = int(figure.get_figwidth() * CHARACTERS_AN_INCH) // (longest + 6)  # six for the sample and the gap
    figure.legend(handles=marks, loc="outside lower center", ncols=max(1, min(len(marks), fitting)), frameon=False)


def _panels(runs: pd.DataFrame) -> list[str]:
    """Name each run's panel: its task with the parameters that were set."""
    own = [column for column in runs.columns if str(column).startswith("task.")]
    names = []
    for _, run in runs.iterrows():
        given = {str(column).removeprefix("task."): run[column] for column in own}
        named = [
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in given.items()
            if value is not None and value == value  # NaN where another task's runs set it
        ]
        names.append(", ".join([str(run["task"]), *named]))
    return names


def _told_apart(runs: pd.DataFrame) -> pd.Series[str]:
    """Return the lines' names, and the labels in place of those that would pool arms which differ in something else."""
    pooled = runs.groupby(["panel", "arm"])["label"].nunique().max() > 1
    return runs["label"] if pooled else runs["arm"]


def _arms(runs: pd.DataFrame) -> list[str]:
    """Name what a line stands for: the cell or model, and its techniques."""
    names = []
    for _, run in runs.iterrows():
        what = run["cell"] if isinstance(run["cell"], str) else f"{run['model']} (unmatched)"
        techniques = run.get("techniques") or ""
        names.append(f"{what} + {techniques}" if techniques else str(what))
    return names
