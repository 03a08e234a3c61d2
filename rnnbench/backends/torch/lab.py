"""Where probes compute in PyTorch, and the global that says how products are computed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping

import torch

from rnnbench.arrays import NDArray
from rnnbench.backends.torch.fused import fused_layer
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.spec import Precision
from rnnbench.xp import Arrays, Differentiable


class TorchLab:
    """Runs probes' functions eagerly; see `rnnbench.xp.Lab`."""

    def __init__(self, device: str, precision: Precision) -> None:
        self.xp = TorchOps(device, precision)
        self.device = device
        self.precision = precision
        self.compile_seconds = 0.0
        # rounded products are defined on the equations alone
        self.kernel = None if precision == "bfloat16" else fused_layer

    @torch.no_grad()
    def compute(
        self, key: Hashable, function: Callable[[Differentiable, Arrays], Arrays], arrays: Mapping[str, NDArray]
    ) -> dict[str, NDArray]:
        set_product_mode(self.precision)
        sent = {name: self.xp.asarray(array) for name, array in arrays.items()}
        return {name: value.detach().cpu().numpy() for name, value in function(self.xp, sent).items()}


def set_product_mode(precision: Precision) -> None:
    """Say how float32 products are computed on NVIDIA GPUs: in full, or rounded to tf32. A global of torch's."""
    if torch.cuda.is_available():
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
