"""Long short-term memory with a forget gate, with or without peepholes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from rnnbench.arrays import Array
from rnnbench.cells.base import Cell, Context, Param, State, Tap
from rnnbench.cells.rnn import bias_parameters
from rnnbench.initialize import Blocks, GlorotUniform, Orthogonal
from rnnbench.xp import Arrays, Ops


class LSTM(Cell):
    """LSTM with forget gate (Gers 2000), optionally with peepholes (Gers 2002).

    Gates are stacked in torch's order i, f, g, o. Parameters: weight_ih [4H n_in], weight_hh [4H H], bias [4H] (or
    bias_ih and bias_hh), and with peepholes peephole_i, peephole_f, peephole_o [H]. The forget bias is a starting
    value of one bias vector only, so that two vectors do not double it.
    """

    name: ClassVar[str] = "lstm"
    source: ClassVar[str] = (
        "Hochreiter & Schmidhuber, Neural Computation 1997; forget gate: Gers, Schmidhuber & Cummins, Neural "
        "Computation 2000; peepholes: Gers, Schraudolph & Schmidhuber, JMLR 2002"
    )
    equation: ClassVar[str] = "\n".join(
        (
            "i_t = sigmoid(W_i x_t + U_i h_{t-1} + b_i [+ p_i * c_{t-1}])",
            "f_t = sigmoid(W_f x_t + U_f h_{t-1} + b_f [+ p_f * c_{t-1}])",
            "g_t = tanh(W_g x_t + U_g h_{t-1} + b_g)",
            "c_t = f_t * c_{t-1} + i_t * g_t",
            "o_t = sigmoid(W_o x_t + U_o h_{t-1} + b_o [+ p_o * c_t])",
            "h_t = o_t * tanh(c_t)",
        )
    )

    forget_bias: float = Field(1.0, description="starting value of b_f")
    peepholes: bool = Field(False, description="gates also see the cell state, through diagonal weights")
    biases: Literal[1, 2] = Field(1, description="one bias, or two that add up as torch and cuDNN keep them")

    def parameters(self, n_in: int) -> dict[str, Param]:
        H = self.hidden
        peepholes = {f"peephole_{gate}": Param((H,)) for gate in "ifo"} if self.peepholes else {}
        return {
            "weight_ih": Param((4 * H, n_in), GlorotUniform(blocks=4)),
            "weight_hh": Param((4 * H, H), Orthogonal(blocks=4), recurrent=("i", "f", "g", "o")),
            **bias_parameters(self.biases, Param((4 * H,), Blocks((0.0, self.forget_bias, 0.0, 0.0)))),
            **peepholes,
        }

    def states(self) -> tuple[State, ...]:
        return (State("c", self.hidden), State("h", self.hidden, output=True))

    def taps(self) -> tuple[Tap, ...]:
        gates = (Tap("i", 0.0, 1.0), Tap("f", 0.0, 1.0, keeps="c"), Tap("g", -1.0, 1.0), Tap("o", 0.0, 1.0))
        return (*gates, Tap("c", inner=True))

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return xp.linear(x, params["weight_ih"], params["bias_ih" if self.biases == 2 else "bias"])

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        c, h = states["c"], states["h"]
        i, f, g, o = xp.split(u + xp.linear(h, params["weight_hh"], params.get("bias_hh")), 4, axis=-1)
        if self.peepholes:
            i = i + params["peephole_i"] * c
            f = f + params["peephole_f"] * c
        i = context.tap("i", xp.sigmoid(i))
        f = context.tap("f", xp.sigmoid(f))
        g = context.tap("g", xp.tanh(g))
        c = context.tap("c", f * c + i * g)
        if self.peepholes:
            o = o + params["peephole_o"] * c
        o = context.tap("o", xp.sigmoid(o))
        return {"c": c, "h": o * xp.tanh(c)}
