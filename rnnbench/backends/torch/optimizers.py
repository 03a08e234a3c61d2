"""Our optimizers on torch.optim, and what torch.optim lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput
from rnnbench.techniques.update.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp

SLOT_KEYS = {
    "SGD": {"momentum": "momentum_buffer"},
    "RMSProp": {"square": "square_avg", "momentum": "momentum_buffer"},
    "Adam": {"mean": "exp_avg", "square": "exp_avg_sq"},
    "AdamW": {"mean": "exp_avg", "square": "exp_avg_sq"},
}
"""Our slots' names in torch.optim's state, by our optimizer's class."""


class RMSPropInside(torch.optim.Optimizer):
    """RMSProp with eps inside the root, which torch.optim.RMSprop does not offer."""

    def __init__(self, params: Sequence[torch.Tensor], lr: float, alpha: float, eps: float, momentum: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no closure is used
        """Update every parameter from its gradient."""
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state[param]
                square = state["square_avg"]
                square.mul_(group["alpha"]).addcmul_(param.grad, param.grad, value=1 - group["alpha"])
                quotient = param.grad / (square + group["eps"]).sqrt_()
                if group["momentum"]:
                    quotient = state["momentum_buffer"].mul_(group["momentum"]).add_(quotient)
                param.add_(quotient, alpha=-group["lr"])


def build(spec: Optimizer, params: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    """Return the optimizer for `params`, its slots still unset."""
    if isinstance(spec, SGD):
        return torch.optim.SGD(params, lr=spec.lr, momentum=spec.momentum, nesterov=spec.nesterov)
    if isinstance(spec, RMSProp):
        if spec.eps_inside:
            return RMSPropInside(params, spec.lr, spec.decay, spec.eps, spec.momentum)
        return torch.optim.RMSprop(params, lr=spec.lr, alpha=spec.decay, eps=spec.eps, momentum=spec.momentum)
    if isinstance(spec, AdamW):
        return torch.optim.AdamW(
            params, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, weight_decay=spec.weight_decay
        )
    if isinstance(spec, Adam):
        return torch.optim.Adam(params, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps)
    raise BadInput(f"optimizer: torch has no mapping for {spec.name}")


def load_slots(
    spec: Optimizer,
    optimizer: torch.optim.Optimizer,
    params: Mapping[str, torch.Tensor],
    slots: Mapping[str, NDArray],
    step: int,
) -> None:
    """Set the optimizer's arrays from ``<slot>/<parameter>``; absent ones take their starting values."""
    keys = _keys(spec)
    for name, param in params.items():
        state: dict[str, Any] = {"step": torch.tensor(float(step))}
        for slot, start in spec.slots().items():
            given = slots.get(f"{slot}/{name}")
            value = torch.full_like(param, start) if given is None else torch.as_tensor(np.array(given)).to(param)
            state[keys[slot]] = value.detach()
        optimizer.state[param] = state


def read_slots(
    spec: Optimizer, optimizer: torch.optim.Optimizer, params: Mapping[str, torch.Tensor]
) -> dict[str, NDArray]:
    """Return copies of the optimizer's arrays as ``<slot>/<parameter>``."""
    keys = _keys(spec)
    return {
        f"{slot}/{name}": optimizer.state[param][keys[slot]].detach().cpu().numpy().copy()
        for slot in spec.slots()
        for name, param in params.items()
    }


def _keys(spec: Optimizer) -> dict[str, str]:
    return (
        SLOT_KEYS[next(cls.__name__ for cls in type(spec).__mro__ if cls.__name__ in SLOT_KEYS)] if spec.slots() else {}
    )
