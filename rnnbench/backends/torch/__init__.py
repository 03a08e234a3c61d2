"""The PyTorch backend. torch is imported when a method is called, not when this module is."""

from __future__ import annotations

import os
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, ClassVar

from rnnbench.backends.base import Device, Program, Trainer, check_device, check_precision, nvidia_driver
from rnnbench.spec import Precision
from rnnbench.tasks.base import Task

if TYPE_CHECKING:
    from rnnbench.xp import Lab, Ops

INSTALL = "pip install 'rnnbench[torch]'"


class TorchBackend:
    """Runs step by step, or layer by layer through torch's fused modules where those compute the same."""

    name: ClassVar[str] = "torch"

    def check(self, device: str, precision: Precision) -> None:
        check_precision(precision, device)
        if device != "cpu" or not self._installed():
            check_device(self.name, device, self.devices())

    def ops(self, device: str, precision: Precision) -> Ops:
        self.check(device, precision)
        from rnnbench.backends.torch.ops import TorchOps

        return TorchOps(device, precision)

    def devices(self) -> list[Device]:
        if not self._installed():
            return [Device("cpu", False, f"torch is not installed; {INSTALL}")]
        import torch

        found = [Device("cpu", True, f"torch {torch.__version__}, {torch.get_num_threads()} threads")]
        if torch.cuda.is_available():
            for index in range(torch.cuda.device_count()):
                facts = torch.cuda.get_device_properties(index)
                found.append(Device(f"cuda:{index}", True, f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB"))
        elif torch.version.cuda is None and torch.version.hip is None:
            found.append(Device("cuda", False, "this build of torch has no CUDA; pytorch.org has builds with it"))
        else:
            found.append(Device("cuda", False, "torch sees no GPU; check nvidia-smi and CUDA_VISIBLE_DEVICES"))
        found.append(Device("tpu", False, "torch needs torch_xla for a TPU, which rnnbench does not use; use jax"))
        return found

    def versions(self) -> dict[str, str]:
        try:
            return {"torch": version("torch")}
        except PackageNotFoundError:
            return {}

    def facts(self, device: str, precision: Precision) -> dict[str, Any]:
        if not device.startswith("cuda"):
            return {}
        import torch

        return {
            "gpu": torch.cuda.get_device_name(device),
            "driver": nvidia_driver(),
            "libraries": {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())},  # type: ignore[no-untyped-call]  # torch leaves it unannotated,
            "allocator": os.environ.get("PYTORCH_CUDA_ALLOC_CONF", "default"),
            "precision": {
                "matmul_tf32": precision == "tf32",  # `TorchTrainer` sets both before each call
                "cudnn_tf32": precision == "tf32",
            },
        }

    def set_threads(self, threads: int) -> int:
        # Read when torch is loaded. Threads that wait by spinning slow a small model down fifty times where other
        # processes want the same processors.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        import torch

        torch.set_num_threads(threads)
        return torch.get_num_threads()

    def adopt(self, reference: str, task: Task, seed: int) -> Any:
        from rnnbench.backends.torch.model import TorchModel

        return TorchModel(reference, task, seed)

    def trainer(self, program: Program, device: str, precision: Precision, path: str) -> Trainer:
        self.check(device, precision)
        from rnnbench.backends.torch.trainer import TorchTrainer

        return TorchTrainer(program, device, precision, path)

    def lab(self, device: str, precision: Precision) -> Lab:
        self.check(device, precision)
        from rnnbench.backends.torch.lab import TorchLab

        return TorchLab(device, precision)

    @staticmethod
    def _installed() -> bool:
        return find_spec("torch") is not None
