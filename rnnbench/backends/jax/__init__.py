"""The JAX backend. jax is imported when a method is called, not when this module is."""

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

INSTALL = {
    "cpu": "pip install 'rnnbench[jax]'",
    "cuda": "pip install 'rnnbench[jax-cuda]'",
    "tpu": "pip install 'rnnbench[jax-tpu]' on a TPU machine",
}


class JaxBackend:
    """Runs whole stretches of training as one compiled program, the time loop under ``lax.scan``."""

    name: ClassVar[str] = "jax"
    _threads: ClassVar[int | None] = None

    def check(self, device: str, precision: Precision) -> None:
        check_precision(precision, device)
        if device != "cpu" or not self._installed():
            check_device(self.name, device, self.devices())

    def ops(self, device: str, precision: Precision) -> Ops:
        self.check(device, precision)
        from rnnbench.backends.jax.ops import JaxOps

        return JaxOps(precision)

    def devices(self) -> list[Device]:
        if not self._installed():
            return [Device("cpu", False, f"jax or optax is not installed; {INSTALL['cpu']}")]
        import jax

        found: list[Device] = []
        for kind, platform in (("cpu", "cpu"), ("cuda", "cuda"), ("tpu", "tpu")):
            try:
                there = jax.devices(platform)
            except RuntimeError:
                found.append(Device(kind, False, f"jax sees none; {INSTALL[kind]}"))
                continue
            if kind == "cpu":
                found.append(Device("cpu", True, f"jax {jax.__version__}, {os.cpu_count()} processors"))
            else:
                found += [Device(f"{kind}:{n}", True, str(d.device_kind)) for n, d in enumerate(there)]
        return found

    def versions(self) -> dict[str, str]:
        found: dict[str, str] = {}
        for package in ("jax", "jaxlib", "optax"):
            try:
                found[package] = version(package)
            except PackageNotFoundError:
                continue
        return found

    def facts(self, device: str, precision: Precision) -> dict[str, Any]:
        from rnnbench.backends.jax.lab import pick_device, product_mode

        flags = {"xla_flags": os.environ.get("XLA_FLAGS", "")[:200], "matmul_precision": product_mode(precision)}
        facts: dict[str, Any] = {"precision": flags}
        if device != "cpu":
            facts["gpu"] = str(pick_device(device).device_kind)
            facts["driver"] = nvidia_driver() if device.startswith("cuda") else None
            facts["allocator"] = os.environ.get("XLA_PYTHON_CLIENT_ALLOCATOR", "default")
        return facts

    def set_threads(self, threads: int) -> int:
        """XLA sizes its pool once, from NPROC, when jax first runs: later calls have no effect."""
        if JaxBackend._threads is None:
            JaxBackend._threads = threads
            os.environ["NPROC"] = str(threads)
        return JaxBackend._threads

    def adopt(self, reference: str, task: Task, seed: int) -> Any:
        from rnnbench.backends.jax.model import JaxModel

        return JaxModel(reference, task, seed)

    def trainer(self, program: Program, device: str, precision: Precision, path: str) -> Trainer:
        self.check(device, precision)
        from rnnbench.backends.jax.trainer import JaxTrainer

        return JaxTrainer(program, device, precision, path)

    def lab(self, device: str, precision: Precision) -> Lab:
        self.check(device, precision)
        from rnnbench.backends.jax.lab import JaxLab

        return JaxLab(device, precision)

    @staticmethod
    def _installed() -> bool:
        return find_spec("jax") is not None and find_spec("optax") is not None
