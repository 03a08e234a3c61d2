"""Learning curves: what is a line, and what is drawn beside it."""

from __future__ import annotations

import pandas as pd
import pytest
from rnnbench_analyzers.curves import learning_curves


def frames(arms: list[tuple[str, str]]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return runs of (label, cell) and two scores of each."""
    runs = pd.DataFrame(
        {
            "digest": [str(n) for n in range(len(arms))],
            "label": [label for label, _ in arms],
            "status": "completed",
            "task": "adding",
            "cell": [cell for _, cell in arms],
            "techniques": "",
            "backend": "torch",
            "seed": 0,
            "metric": "mse",
            "better": "lower",
            "baseline.mse.constant": 0.5,
        }
    )
    rows = [
        {"digest": str(n), "step": step, "split": "valid", "metric": "mse", "value": 1.0 + n - step / 10}
        for n in range(len(arms))
        for step in (0, 5)
    ]
    return runs, pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("arms", "lines"),
    [
        ([("a rnn", "rnn"), ("a lstm", "lstm")], ["rnn", "lstm"]),
        ([("lr=0.1", "rnn"), ("lr=0.2", "rnn")], ["lr=0.1", "lr=0.2"]),
    ],
)
def test_arms_that_differ_are_lines_of_their_own(arms: list[tuple[str, str]], lines: list[str]) -> None:
    figure = learning_curves(*frames(arms), "title")
    (axes,) = figure.axes
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_linestyle() == "-"]
    assert sorted(float(line.get_ydata()[0]) for line in drawn) == [1.0, 2.0]
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [*lines, "torch"]
    assert any("baseline: constant" in text.get_text() for text in axes.texts)


@pytest.mark.parametrize(
    "labels", [["a", "b"], ["adding lstm lr=0.001", "adding lstm lr=0.01", "adding lstm lr=0.1"], ["x" * 80] * 2]
)
def test_the_legend_stays_inside_the_picture(labels: list[str]) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    arms = [(f"{n} {label}"[:60], "rnn") for n, label in enumerate(labels)]
    figure = learning_curves(*frames(arms))
    FigureCanvasAgg(figure).draw()
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.x1
