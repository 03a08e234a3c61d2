"""Each cell's step against its equation, unit by unit; both backends share the step, so parity cannot tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.numpy import NumpyOps
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.streams import stream

N_IN, H, BATCH = 2, 3, 2
Weights = dict[str, NDArray]
Vector = list[float]


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + math.exp(-x))


def product(weight: NDArray, vector: Vector) -> float:
    return sum(float(w) * v for w, v in zip(weight, vector, strict=True))


class Twin:
    """Weights looked up by gate and unit; `gates` are in the order in which they are stacked."""

    def __init__(self, weights: Weights, gates: str) -> None:
        self.weights = weights
        self.gates = gates

    def at(self, name: str, gate: str, unit: int) -> NDArray:
        return self.weights[name][self.gates.index(gate) * H + unit]  # type: ignore[no-any-return]  # an entry or a row

    def bias(self, gate: str, unit: int, recurrent: bool) -> float:
        names = ["bias_hh"] if recurrent else ["bias_ih", "bias"]
        return sum(float(self.at(name, gate, unit)) for name in names if name in self.weights)

    def input(self, gate: str, unit: int, x: Vector) -> float:
        return product(self.at("weight_ih", gate, unit), x) + self.bias(gate, unit, False)

    def recurrent(self, gate: str, unit: int, h: Vector) -> float:
        return product(self.at("weight_hh", gate, unit), h) + self.bias(gate, unit, True)

    def both(self, gate: str, unit: int, x: Vector, h: Vector) -> float:
        return self.input(gate, unit, x) + self.recurrent(gate, unit, h)

    def peephole(self, gate: str, unit: int) -> float:
        weight = self.weights.get(f"peephole_{gate}")
        return 0.0 if weight is None else float(weight[unit])


States = dict[str, Vector]
Step = Callable[[Weights, Vector, States], States]


def rnn(f: Callable[[float], float]) -> Step:
    def step(weights: Weights, x: Vector, states: States) -> States:
        twin = Twin(weights, "h")
        return {"h": [f(twin.both("h", k, x, states["h"])) for k in range(H)]}

    return step


def lstm(weights: Weights, x: Vector, states: States) -> States:
    """Gers 2000; with peepholes Gers 2002: the output gate sees the new cell state, the others the old one."""
    twin, h, c = Twin(weights, "ifgo"), states["h"], states["c"]
    new_c, new_h = [], []
    for k in range(H):
        i = sigmoid(twin.both("i", k, x, h) + twin.peephole("i", k) * c[k])
        f = sigmoid(twin.both("f", k, x, h) + twin.peephole("f", k) * c[k])
        new_c.append(f * c[k] + i * math.tanh(twin.both("g", k, x, h)))
        o = sigmoid(twin.both("o", k, x, h) + twin.peephole("o", k) * new_c[k])
        new_h.append(o * math.tanh(new_c[k]))
    return {"c": new_c, "h": new_h}


def gru(reset: str) -> Step:
    def step(weights: Weights, x: Vector, states: States) -> States:
        twin, h = Twin(weights, "rzn"), states["h"]
        r = [sigmoid(twin.both("r", k, x, h)) for k in range(H)]
        new = []
        for k in range(H):
            z = sigmoid(twin.both("z", k, x, h))
            if reset == "after":
                inner = r[k] * twin.recurrent("n", k, h)
            else:
                inner = twin.recurrent("n", k, [a * b for a, b in zip(r, h, strict=True)])
            new.append((1.0 - z) * math.tanh(twin.input("n", k, x) + inner) + z * h[k])
        return {"h": new}

    return step


CASES: list[tuple[Cell, Step]] = [
    *((RNN.parse({"hidden": H, "biases": n}, "cell"), rnn(math.tanh)) for n in (1, 2)),
    (RNN(hidden=H, activation="relu"), rnn(lambda x: max(x, 0.0))),
    *((LSTM.parse({"hidden": H, "biases": n}, "cell"), lstm) for n in (1, 2)),
    *((LSTM.parse({"hidden": H, "biases": n, "peepholes": True}, "cell"), lstm) for n in (1, 2)),
    *((GRU.parse({"hidden": H, "biases": n, "reset": r}, "cell"), gru(r)) for n in (1, 2) for r in ("after", "before")),
]


@pytest.mark.parametrize(("cell", "twin"), CASES, ids=lambda case: str(case) if isinstance(case, Cell) else "")
def test_a_step_is_its_equation(cell: Cell, twin: Step) -> None:
    weights = {name: stream(8, name).normal(size=param.shape) for name, param in cell.parameters(N_IN).items()}
    states = {state.name: stream(9, state.name).normal(size=(BATCH, state.size)) for state in cell.states()}
    x = stream(9, "x").normal(size=(BATCH, N_IN))
    xp = NumpyOps()
    prepared = cell.prepare(xp, weights)
    found = cell.step(xp, prepared, dict(states), cell.project(xp, prepared, x), Context(0, None, False))
    assert set(found) == set(states)
    for row in range(BATCH):
        expected = twin(weights, x[row].tolist(), {name: value[row].tolist() for name, value in states.items()})
        for name, values in expected.items():
            np.testing.assert_allclose(found[name][row], values, rtol=1e-13, atol=1e-15, err_msg=name)
