"""torch's own recurrent layers, driven with our parameters: the same equations, several times faster.

Only plain cells are here; tests/parity compares them with the equations, forward and backward.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from rnnbench.arrays import Array
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.xp import Arrays


def why_not(cell: Cell) -> str | None:
    """Return why `cell` has no fused layer, or None if it has. A subclass has none: its step may differ."""
    if type(cell) is LSTM:
        return "torch's LSTM has no peepholes" if cell.peepholes else None
    if type(cell) is GRU:
        return None if cell.reset == "after" else "torch's GRU resets after the product"
    if type(cell) is RNN:
        return None
    return f"torch has no fused layer for {cell.name}"


def fused_layer(
    cell: Cell, params: Mapping[str, Array], inputs: Array, start: Mapping[str, Array]
) -> tuple[Array, Arrays] | None:
    """Run a whole layer: inputs [time batch n_in] -> (outputs [time batch H], last states [batch H])."""
    if why_not(cell) is not None:
        return None
    weight = params["weight_hh"]
    if "bias" in params:
        bias, second = params["bias"], torch.zeros_like(params["bias"])
    else:
        bias, second = params["bias_ih"], params["bias_hh"]
    weights = [params["weight_ih"], weight, bias, second]
    h = start["h"].unsqueeze(0).contiguous()
    # has_biases, num_layers, dropout, train, bidirectional, batch_first
    settings = (True, 1, 0.0, True, False, False)
    if isinstance(cell, LSTM):
        c = start["c"].unsqueeze(0).contiguous()
        outputs, last_h, last_c = torch.lstm(inputs, (h, c), weights, *settings)
        return outputs, {"h": last_h[0], "c": last_c[0]}
    if isinstance(cell, GRU):
        outputs, last = torch.gru(inputs, h, weights, *settings)
    elif isinstance(cell, RNN) and cell.activation == "relu":
        outputs, last = torch.rnn_relu(inputs, h, weights, *settings)
    else:
        outputs, last = torch.rnn_tanh(inputs, h, weights, *settings)
    return outputs, {"h": last[0]}
