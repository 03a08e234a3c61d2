"""The gated recurrent unit, in both places where the reset gate can act."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import Field

from rnnbench.arrays import Array
from rnnbench.cells.base import Cell, Context, Param, State, Tap
from rnnbench.cells.rnn import bias_parameters
from rnnbench.initialize import GlorotUniform, Orthogonal
from rnnbench.xp import Arrays, Ops


class GRU(Cell):
    """GRU with the reset gate after the recurrent product (torch, cuDNN) or before it (Cho 2014).

    Gates are stacked in torch's order r, z, n. Parameters: weight_ih [3H n_in], weight_hh [3H H], bias [3H] (or bias_ih
    and bias_hh; with ``reset = after`` the part of bias_hh that belongs to n stands inside the reset product, as in
    torch, and is then no mere second summand).
    """

    name: ClassVar[str] = "gru"
    source: ClassVar[str] = (
        "Cho et al., EMNLP 2014, eqs. 5-8 (reset before); reset after: the preprint's first version, arXiv "
        "1406.1078v1, as implemented by cuDNN and torch"
    )
    equation: ClassVar[str] = "\n".join(
        (
            "r_t = sigmoid(W_r x_t + U_r h_{t-1} + b_r)",
            "z_t = sigmoid(W_z x_t + U_z h_{t-1} + b_z)",
            "n_t = tanh(W_n x_t + b_n + r_t * (U_n h_{t-1} [+ b_hn]))   (reset after)",
            "n_t = tanh(W_n x_t + b_n + U_n (r_t * h_{t-1}) [+ b_hn])   (reset before)",
            "h_t = (1 - z_t) * n_t + z_t * h_{t-1}",
        )
    )

    reset: Literal["after", "before"] = Field("after", description="r acts after or before the product with U_n")
    biases: Literal[1, 2] = Field(2, description="one bias vector, or an input and a recurrent one as torch has")

    def parameters(self, n_in: int) -> dict[str, Param]:
        H = self.hidden
        return {
            "weight_ih": Param((3 * H, n_in), GlorotUniform(blocks=3)),
            "weight_hh": Param((3 * H, H), Orthogonal(blocks=3), recurrent=("r", "z", "n")),
            **bias_parameters(self.biases, Param((3 * H,))),
        }

    def states(self) -> tuple[State, ...]:
        return (State("h", self.hidden, output=True),)

    def taps(self) -> tuple[Tap, ...]:
        return (Tap("r", 0.0, 1.0), Tap("z", 0.0, 1.0, keeps="h"), Tap("n", -1.0, 1.0))

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return xp.linear(x, params["weight_ih"], params["bias_ih" if self.biases == 2 else "bias"])

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        h, H = states["h"], self.hidden
        weight, bias = params["weight_hh"], params.get("bias_hh")
        u_r, u_z, u_n = xp.split(u, 3, axis=-1)
        if self.reset == "after":
            v_r, v_z, v_n = xp.split(xp.linear(h, weight, bias), 3, axis=-1)
            r = context.tap("r", xp.sigmoid(u_r + v_r))
            n = context.tap("n", xp.tanh(u_n + r * v_n))
        else:
            v_r, v_z = xp.split(xp.linear(h, weight[: 2 * H], None if bias is None else bias[: 2 * H]), 2, axis=-1)
            r = context.tap("r", xp.sigmoid(u_r + v_r))
            n = xp.tanh(u_n + xp.linear(r * h, weight[2 * H :], None if bias is None else bias[2 * H :]))
            n = context.tap("n", n)
        z = context.tap("z", xp.sigmoid(u_z + v_z))
        return {"h": (1.0 - z) * n + z * h}
