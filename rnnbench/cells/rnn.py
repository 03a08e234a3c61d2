"""The plain recurrent network of Elman (1990) and Werbos (1990), with tanh or ReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from rnnbench.arrays import Array
from rnnbench.cells.base import Cell, Context, Param, State, Tap
from rnnbench.initialize import GlorotUniform, Orthogonal
from rnnbench.xp import Arrays, Ops


class RNN(Cell):
    """Plain recurrent cell, tanh or ReLU.

    Parameters: weight_ih [H n_in], weight_hh [H H], bias [H] (or bias_ih and bias_hh, which only add up).
    """

    name: ClassVar[str] = "rnn"
    source: ClassVar[str] = "Elman, Finding structure in time, Cognitive Science 14, 1990"
    equation: ClassVar[str] = "h_t = f(W_ih x_t + W_hh h_{t-1} + b),  f = tanh or relu"

    activation: Literal["tanh", "relu"] = Field("tanh", description="f")
    biases: Literal[1, 2] = Field(1, description="one bias, or two that add up as torch and cuDNN keep them")

    def parameters(self, n_in: int) -> dict[str, Param]:
        H = self.hidden
        return {
            "weight_ih": Param((H, n_in), GlorotUniform()),
            "weight_hh": Param((H, H), Orthogonal(), recurrent=("h",)),
            **bias_parameters(self.biases, Param((H,))),
        }

    def states(self) -> tuple[State, ...]:
        return (State("h", self.hidden, output=True),)

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("h", -1.0, 1.0) if self.activation == "tanh" else Tap("h"),)

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return xp.linear(x, params["weight_ih"], params["bias_ih" if self.biases == 2 else "bias"])

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        f = xp.tanh if self.activation == "tanh" else xp.relu
        recurrent = xp.linear(states["h"], params["weight_hh"], params.get("bias_hh"))
        return {"h": context.tap("h", f(u + recurrent))}


def bias_parameters(biases: int, first: Param) -> dict[str, Param]:
    """Return ``bias``, or ``bias_ih`` and ``bias_hh``: of two, the second starts at zero, so that no value doubles."""
    return {"bias": first} if biases == 1 else {"bias_ih": first, "bias_hh": Param(first.shape)}
