"""The adjoint at some points in time, through torch's fused layers: against the adjoint at every step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.torch import lab as torch_lab
from rnnbench.backends.torch.fused import why_not
from rnnbench.cells import network as networks
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.probes.adjoint import Adjoint
from rnnbench.probes.base import Look
from rnnbench.probes.points import Points, cuts_of

from . import twin
from .twin import CELLS, NETWORKS, TASKS, H, named, worst

Drawn = Callable[..., Look]
Found = dict[str, NDArray]

EXACT = 1e-9
PARITY = 1e-11

FUSED: dict[str, Cell] = {
    "tanh": RNN(hidden=H),
    "relu": RNN(hidden=H, activation="relu", biases=2),
    "lstm": LSTM(hidden=H),
    "lstm-two-biases": LSTM(hidden=H, biases=2),
    "gru": GRU(hidden=H),
    "gru-one-bias": GRU(hidden=H, biases=1),
}


@pytest.fixture
def fused_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many steps each call of a fused layer took."""
    calls: list[int] = []
    layer = torch_lab.fused_layer

    def noted(cell: Cell, params: Any, inputs: Any, start: Any) -> Any:
        found = layer(cell, params, inputs, start)
        if found is not None:
            calls.append(int(inputs.shape[0]))
        return found

    monkeypatch.setattr(torch_lab, "fused_layer", noted)
    return calls


def at_points(look: Look, points: int) -> Found:
    return named(Points(points=points).measure(look))


def wanted_of(look: Look, points: int) -> Found:
    """Take the derivatives at the points; unlike `Adjoint`'s they are not lined up."""
    cuts = np.asarray(cuts_of(look.program.network.length, points))
    held = unaligned(look)
    return {"points.at": cuts} | {f"points.log_norm/{name}": twin.logs(v[cuts]) for name, v in held.items()}


def unaligned(look: Look) -> Found:
    """Return dL/dstate [time batch size] at every t by a complex step, where it stands in the sequence."""
    return {name.partition("/")[2]: v for name, v in twin.by_complex_step(look, line_up=False).items()}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("cell", FUSED)
@pytest.mark.parametrize("task", ["last", "each"])
def test_points_through_fused_layers_are_those_of_the_adjoint(
    task: str, cell: str, network: str, drawn_look: Drawn, fused_calls: list[int]
) -> None:
    look = drawn_look(FUSED[cell], TASKS[task], NETWORKS[network])
    assert why_not(FUSED[cell]) is None
    every = named(Adjoint(logits=False, seen=False).measure(look))
    T = look.program.network.length
    for points in (1, 3, T, T + 7):
        fused_calls.clear()
        found = at_points(look, points)
        cuts = cuts_of(T, points)
        scopes = len(list(look.program.network.scopes()))
        assert sum(fused_calls) == T * scopes
        assert len(fused_calls) >= len(cuts) * scopes
        wanted = {f"points.log_norm/{name}": every[f"adjoint.log_norm/{name}"][list(cuts)] for name in states(look)}
        assert worst(found, wanted | {"points.at": np.asarray(cuts)}) <= EXACT, points


def states(look: Look) -> list[str]:
    return list(look.program.network.state_shapes(1))


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_points_without_fused_layers(
    cell: str, task: str, network: str, drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where sequences end early, which no fused layer knows: the padding holds the state."""
    look = drawn_look(CELLS[cell], TASKS[task], NETWORKS[network])
    monkeypatch.setattr(look.own, "kernel", None)
    assert worst(at_points(look, 4), wanted_of(look, 4)) <= EXACT


@pytest.mark.parametrize(
    ("cell", "task", "network"),
    [("lstm-peepholes=True-biases=1", "each-masked", "one"), ("gru-reset=after-biases=2", "last", "both-ways")],
)
def test_points_on_jax(cell: str, task: str, network: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS[task], NETWORKS[network], backend="jax")
    found = at_points(look, 3)
    assert worst(found, wanted_of(look, 3)) <= EXACT
    assert worst(found, at_points(drawn_look(CELLS[cell], TASKS[task], NETWORKS[network]), 3)) <= PARITY


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize(
    "cell", ["rnn-activation=relu-biases=2", "lstm-peepholes=False-biases=2", "gru-reset=before-biases=1"]
)
def test_more_points_on_jax(cell: str, network: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS["each"], NETWORKS[network], backend="jax")
    assert worst(at_points(look, 3), wanted_of(look, 3)) <= EXACT


def test_points_are_in_the_runs_own_precision(drawn_look: Drawn, fused_calls: list[int]) -> None:
    wide = at_points(drawn_look(LSTM(hidden=H), TASKS["each"]), 3)
    narrow = at_points(drawn_look(LSTM(hidden=H), TASKS["each"], precision="float32"), 3)
    assert fused_calls
    off = worst({k: v.astype(float) for k, v in narrow.items()}, wide)
    assert 1e-9 < off < 1e-4  # float32 along a path of a few dozen roundings


@pytest.mark.parametrize(
    ("length", "points"), [(1, 1), (1, 8), (2, 1), (9, 8), (784, 8), (200, 32), (10, 10), (7, 999)]
)
def test_points_are_spread_evenly_and_end_at_the_last_step(length: int, points: int) -> None:
    cuts = cuts_of(length, points)
    assert len(cuts) == min(length, points)
    assert list(cuts) == sorted(set(cuts))
    assert cuts[-1] == length - 1
    gaps = np.diff([-1, *cuts])
    assert gaps.max() - gaps.min() <= 2  # each is rounded, and the first gap begins before the first step


def test_pieces_that_drop_the_output_are_caught(drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read of the piece's last output then has nothing added to it."""
    look = drawn_look(LSTM(hidden=H), TASKS["each"])
    wanted = wanted_of(look, 4)
    assert worst(at_points(look, 4), wanted) <= EXACT
    monkeypatch.setattr(networks._Ways, "_ending", lambda self, outputs, states: outputs)
    assert worst(at_points(look, 4), wanted) > 10 * EXACT


@pytest.mark.parametrize("task", ["last", "each"])
def test_pieces_that_drop_what_is_handed_on_are_caught(
    task: str, drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = drawn_look(GRU(hidden=H), TASKS[task])
    wanted = wanted_of(look, 4)
    assert worst(at_points(look, 4), wanted) <= EXACT
    piece, ends = networks._Ways._piece, []

    def unaware(self: Any, inputs: Any, start: Any, valid: Any, inject: Any, first: int = 0) -> Any:
        end, ys = piece(self, inputs, ends[-1] if first else start, valid, inject, first)
        ends.append(end)
        return end, ys

    monkeypatch.setattr(networks._Ways, "_piece", unaware)
    assert worst(at_points(look, 4), wanted) > 10 * EXACT


def test_a_point_taken_for_its_neighbour_is_caught(drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    look = drawn_look(RNN(hidden=H), TASKS["last"], NETWORKS["both-ways"])
    wanted = wanted_of(look, 3)
    pieces = networks._pieces

    def shifted(length: int, cuts: Any, reverse: bool) -> Any:
        return pieces(length, [cut - 1 if reverse and cut else cut for cut in cuts], reverse)

    monkeypatch.setattr(networks, "_pieces", shifted)
    assert worst(at_points(look, 3), wanted) > 10 * EXACT
