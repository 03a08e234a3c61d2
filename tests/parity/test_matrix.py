"""torch and JAX compute the same: every cell and task, every optimizer, all pairs of options, long sequences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest

from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.parity import ParityReport
from rnnbench.spec import NetworkSpec
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.tasks.copying import Copy
from rnnbench.tasks.digits import Digits
from rnnbench.tasks.forecast import Forecast
from rnnbench.tasks.mnist import MNIST
from rnnbench.tasks.temporal_order import TemporalOrder
from rnnbench.techniques.base import Technique
from rnnbench.techniques.gradient.clip import ClipNorm, ClipValue
from rnnbench.techniques.update.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp

from .conftest import Build

Equal = Callable[[ParityReport], None]

CELLS: dict[str, Cell] = {
    f"{name}-{biases}": cell
    for biases in (1, 2)
    for name, cell in {
        "tanh": RNN(hidden=4, biases=biases),
        "relu": RNN(hidden=4, activation="relu", biases=biases),
        "lstm": LSTM(hidden=4, biases=biases),
        "peepholes": LSTM(hidden=4, peepholes=True, biases=biases),
        "gru-after": GRU(hidden=4, reset="after", biases=biases),
        "gru-before": GRU(hidden=4, reset="before", biases=biases),
    }.items()
}

TASKS: dict[str, Task] = {
    "copy-A": Copy(layout="A", delay=4, symbols=3, alphabet=3),
    "copy-B": Copy(layout="B", delay=4, symbols=3, alphabet=3),
    "copy-C": Copy(layout="C", delay=4, symbols=3, alphabet=3, loss_over="recall"),
    "copy-D": Copy(layout="D", delay=4, symbols=3, alphabet=3),
    "copy-variable": Copy(delay=5, symbols=3, alphabet=3, variable=True),
    "adding-halves": Adding(T=10),
    "adding-any": Adding(T=10, markers="any"),
    "adding-skip": Adding(T=10, markers="skip_rnn"),
    "adding-1997": Adding(T=20, markers="hs1997"),
    "adding-pascanu": Adding(T=20, markers="pascanu"),
    "order": TemporalOrder(T=10),
    "order-1997": TemporalOrder(variant="hs1997_6a"),
    "mnist-rows": MNIST(by="row", scaling="standardized"),
    "digits-rows": Digits(by="row"),
    "digits-pixels": Digits(),
    "forecast": Forecast(window=8, horizon=2),
    "mackey-glass": Forecast(file="mackey_glass", window=8),
}

FAMILIES = ("copy-variable", "adding-halves", "order", "mnist-rows", "digits-rows", "forecast")
"""One variant of each task: it meets every cell. The other variants meet one cell of each family."""

OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.05),
    "momentum": SGD(lr=0.05, momentum=0.9),
    "nesterov": SGD(lr=0.05, momentum=0.9, nesterov=True),
    "rmsprop": RMSProp(lr=0.01),
    "rmsprop-urnn": RMSProp(lr=0.01, decay=0.9, accumulator=1e-3, eps=0.0),
    "rmsprop-inside": RMSProp(lr=0.01, decay=0.9, eps=1e-6, eps_inside=True, accumulator=1.0),
    "rmsprop-momentum": RMSProp(lr=0.01, decay=0.5, momentum=0.9),
    "rmsprop-inside-momentum": RMSProp(lr=0.01, eps=1e-4, eps_inside=True, momentum=0.5),
    "adam": Adam(lr=0.01),
    "adam-betas": Adam(lr=0.01, beta1=0.5, beta2=0.9, eps=1e-4),
    "adamw": AdamW(lr=0.01, weight_decay=0.1),
}

TECHNIQUES: dict[str, tuple[Technique, ...]] = {
    "none": (),
    "norm": (ClipNorm(threshold=0.1),),
    "value": (ClipValue(threshold=0.01),),
    "both": (ClipValue(threshold=0.05), ClipNorm(threshold=0.1)),
}


@pytest.mark.parametrize("task", ["copy-variable", "adding-halves"])
@pytest.mark.parametrize("cell", CELLS)
def test_every_cell_computes_the_same(build: Build, equal: Equal, cell: str, task: str) -> None:
    equal(build(TASKS[task], CELLS[cell]).compare())


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in FAMILIES if name not in ("copy-variable", "adding-halves")])
@pytest.mark.parametrize("cell", ["tanh-1", "relu-1", "lstm-1", "peepholes-1", "gru-after-2", "gru-before-2"])
def test_every_cell_on_every_task(build: Build, equal: Equal, cell: str, task: str) -> None:
    equal(build(TASKS[task], CELLS[cell]).compare())


@pytest.mark.slow
@pytest.mark.parametrize("task", [name for name in TASKS if name not in FAMILIES])
@pytest.mark.parametrize("cell", ["tanh-1", "lstm-1", "gru-after-2"])
def test_every_variant_of_every_task(build: Build, equal: Equal, cell: str, task: str) -> None:
    equal(build(TASKS[task], CELLS[cell]).compare())


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("cell", ["lstm-1", "gru-before-2"])
def test_every_optimizer(build: Build, equal: Equal, cell: str, optimizer: str) -> None:
    report = build(TASKS["adding-pascanu"], CELLS[cell], OPTIMIZERS[optimizer]).compare()
    equal(report)
    assert any(row.quantity == "slots" for row in report.rows) == bool(OPTIMIZERS[optimizer].slots())


AXES: dict[str, Sequence[Any]] = {
    "cell": ["tanh", "relu", "lstm", "peepholes", "gru-after", "gru-before"],
    "biases": [1, 2],
    "layers": [1, 2],
    "bidirectional": [False, True],
    "learned_state": [False, True],
    "optimizer": ["sgd", "nesterov", "rmsprop-urnn", "rmsprop-inside-momentum", "adam-betas", "adamw"],
    "task": [
        "copy-A",
        "copy-D",
        "copy-variable",
        "adding-halves",
        "adding-pascanu",
        "order",
        "digits-rows",
        "forecast",
    ],
    "techniques": list(TECHNIQUES),
    "precision": ["float64", "float32", "bfloat16"],
}


def covering(axes: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return rows in which every pair of values of every two axes occurs, found greedily."""
    names = list(axes)
    missing = {
        ((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in axes[a] for y in axes[b]
    }  # fmt: skip
    order = {(name, value): rank for rank, (name, value) in enumerate((n, v) for n in names for v in axes[n])}
    rows: list[dict[str, Any]] = []
    while missing:
        (a, x), (b, y) = min(missing, key=lambda pair: (order[pair[0]], order[pair[1]]))
        row = {a: x, b: y}
        for name in (name for name in names if name not in row):
            row[name] = max(axes[name], key=lambda value: _gain(row, name, value, missing, names))
        missing -= set(_pairs(row, names))
        rows.append({name: row[name] for name in names})
    return rows


def _pairs(row: Mapping[str, Any], names: Sequence[str]) -> list[Any]:
    return [((a, row[a]), (b, row[b])) for a, b in itertools.combinations([n for n in names if n in row], 2)]


def _gain(row: Mapping[str, Any], name: str, value: Any, missing: set[Any], names: Sequence[str]) -> int:
    return sum(name in (pair[0][0], pair[1][0]) and pair in missing for pair in _pairs({**row, name: value}, names))


ROWS = covering(AXES)


def test_the_rows_cover_all_pairs() -> None:
    seen = {pair for row in ROWS for pair in _pairs(row, list(AXES))}
    for a, b in itertools.combinations(AXES, 2):
        for x, y in itertools.product(AXES[a], AXES[b]):
            assert ((a, x), (b, y)) in seen
    least = len(AXES["task"]) * len(AXES["optimizer"])  # every pair of the two longest axes takes a row of its own
    assert least <= len(ROWS) <= 1.2 * least


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: "-".join(map(str, row.values())))
def test_all_pairs(build: Build, equal: Equal, row: dict[str, Any]) -> None:
    network = NetworkSpec(layers=row["layers"], bidirectional=row["bidirectional"], learned_state=row["learned_state"])
    case = build(
        TASKS[row["task"]],
        CELLS[f"{row['cell']}-{row['biases']}"],
        OPTIMIZERS[row["optimizer"]],
        TECHNIQUES[row["techniques"]],
        network,
        steps=3,
    )
    equal(case.compare(row["precision"]))


@pytest.mark.slow
@pytest.mark.parametrize("cell", ["tanh-1", "lstm-1", "gru-after-2"])
def test_a_sequence_of_784_steps(build: Build, equal: Equal, cell: str) -> None:
    # Adam would divide gradients that have vanished over the length by themselves, and kappa would be beyond its limit
    calm = SGD(lr=0.01), (ClipNorm(threshold=1.0),)
    case = build(MNIST(), CELLS[cell].model_copy(update={"hidden": 6}), *calm, steps=3, batch=2)
    assert case.batches[0].inputs.shape[0] == 784
    equal(case.compare())
