"""What a backend is: operations, devices, and a trainer that runs a program's steps.

A `Program` is everything that a training step computes, and nothing of which data or how long: runs that differ only
by seed share one, and so share what was compiled for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

from rnnbench.arrays import Array, NDArray
from rnnbench.cells.network import Network
from rnnbench.errors import BadInput
from rnnbench.objectives import loss_terms, scores, weighted_mean
from rnnbench.spec import Precision
from rnnbench.tasks.base import Batch, Task
from rnnbench.techniques.base import GradientTechnique, Technique, global_norm
from rnnbench.techniques.update.optimizers import Optimizer
from rnnbench.xp import Arrays, Lab, Ops


@dataclass(frozen=True)
class Program:
    """What one training step computes.

    Attributes:
        task: gives the loss and the metrics.
        network: the equations; or a user's whole model, which stands in for a Network.
        optimizer: the update.
        techniques: in the order that they are applied within their stage.
        train_metrics: metrics of the training batch that every step returns beside the loss.
        history: whether every step also returns its gradient's norm, and which techniques changed the gradient.
    """

    task: Task
    network: Network | Any
    optimizer: Optimizer
    techniques: tuple[Technique, ...] = ()
    train_metrics: tuple[str, ...] = ()
    history: bool = False

    @property
    def eval_metrics(self) -> tuple[str, ...]:
        """Every metric of the task, and the loss."""
        return ("loss", *(name for name in self.task.metrics if name != "loss"))

    def outputs(
        self,
        xp: Ops,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        batch: Mapping[str, Array],
        training: bool,
        **options: Any,
    ) -> Any:
        """Run the network over a batch; options are `Network.forward`'s."""
        return self.network.forward(
            xp, params, buffers, batch["inputs"], batch["lengths"], training=training, **options
        )

    def loss(
        self,
        xp: Ops,
        params: Mapping[str, Array],
        buffers: Mapping[str, Array],
        batch: Mapping[str, Array],
        **options: Any,
    ) -> tuple[Array, Any]:
        """Return the training loss of a batch, a scalar, and the forward pass."""
        forward = self.outputs(xp, params, buffers, batch, training=True, **options)
        terms = loss_terms(xp, self.task.loss, forward.outputs, batch["targets"])
        return weighted_mean(xp, terms, batch["mask"]), forward

    def gradients(self, xp: Ops, gradients: Arrays, params: Arrays, acted: Arrays | None = None) -> Arrays:
        """Apply the techniques of the gradient stage, in order.

        Args:
            xp: the operations.
            gradients: by parameter name.
            params: by name.
            acted: where given, receives 1 or 0 by ``acted/<technique>``: whether it changed any number.
        """
        for technique in self.techniques:
            if isinstance(technique, GradientTechnique):
                before, gradients = gradients, technique.gradients(xp, gradients, params)
                if acted is not None:
                    changes = {name: gradients[name] - before[name] for name in before}
                    acted[f"acted/{technique.name}"] = xp.floats(global_norm(xp, changes) > 0)
        return gradients

    def acting(self) -> tuple[str, ...]:
        """Return the names that `gradients` reports under, where history is kept."""
        if not self.history:
            return ()
        return tuple(dict.fromkeys(f"acted/{t.name}" for t in self.techniques if isinstance(t, GradientTechnique)))

    def scores(
        self, xp: Ops, outputs: Array, batch: Mapping[str, Array], names: tuple[str, ...]
    ) -> dict[str, tuple[Array, Array]]:
        """Return (sum, weight) of each named metric over a batch."""
        return scores(xp, self.task, outputs, batch, names)


@dataclass
class TrainState:
    """All that training carries from step to step, as NumPy arrays by full name, the same on every backend.

    Attributes:
        params: the parameters.
        slots: the optimizer's arrays by "<slot>/<parameter>".
        buffers: the network's buffers.
        step: number of steps taken.
    """

    params: dict[str, NDArray]
    slots: dict[str, NDArray] = field(default_factory=dict)
    buffers: dict[str, NDArray] = field(default_factory=dict)
    step: int = 0

    def arrays(self) -> dict[str, NDArray]:
        """Return all arrays under ``params/``, ``slots/`` and ``buffers/``."""
        return {
            f"{kind}/{name}": array
            for kind, named in (("params", self.params), ("slots", self.slots), ("buffers", self.buffers))
            for name, array in named.items()
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray], step: int) -> TrainState:
        """Undo `arrays`."""
        kinds: dict[str, dict[str, NDArray]] = {"params": {}, "slots": {}, "buffers": {}}
        for full, array in arrays.items():
            kind, _, name = full.partition("/")
            kinds[kind][name] = array
        return cls(kinds["params"], kinds["slots"], kinds["buffers"], step)


class StepLog(Protocol):
    """The numbers of some training steps, perhaps still being computed."""

    def fetch(self) -> dict[str, NDArray]:
        """Wait for them and return [steps] float64 arrays: ``loss``, ``grad_norm`` (NaN where unknown), metrics.

        Where the program keeps a history no norm is unknown, and ``acted/<technique>`` is there as well.
        """


@dataclass(frozen=True)
class Inspection:
    """One training step laid open, for parity and for probes; NumPy arrays by full name.

    Attributes:
        loss: the training loss.
        outputs: the network's outputs.
        states: every state [time batch size].
        adjoints: the total derivative of the loss by every state at every step [time batch size], the step's other
            states held: an LSTM's dL/dc_t leaves out the route through h_t.
        gradients: by parameter, after the backward pass, before any technique.
        updated: the training state after the update.
    """

    loss: float
    outputs: NDArray
    states: dict[str, NDArray]
    adjoints: dict[str, NDArray]
    gradients: dict[str, NDArray]
    updated: TrainState


@dataclass(frozen=True)
class Device:
    """A device that a backend can or cannot use.

    Attributes:
        name: as the user types it: cpu, cuda:0, tpu:0.
        available: whether it can be used now.
        detail: its model and memory, or why it cannot be used and what would cure that.
    """

    name: str
    available: bool
    detail: str


class Trainer(Protocol):
    """Holds one training state on a device and advances it."""

    path: str
    compile_seconds: float

    def load(self, state: TrainState) -> None:
        """Put a training state on the device."""

    def state(self) -> TrainState:
        """Fetch the training state, waiting for steps under way."""

    def readback(self, batch: Batch) -> dict[str, NDArray]:
        """Send a batch to the device and fetch what arrived, integers as int64."""

    @property
    def capacity(self) -> int:
        """The most steps that one call of `train` takes."""

    def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> StepLog:
        """Take one training step for each batch, at its learning rate, without waiting for the end.

        The gradient's norm of the last step is always logged.
        """

    def evaluate(self, pieces: Sequence[Batch]) -> dict[str, float]:
        """Return the task's metrics over all pieces (of one static size) with the present parameters."""

    def inspect(self, batch: Batch, rate: float) -> Inspection:
        """Compute one training step by the reference path from the present state, without changing it."""


class Backend(Protocol):
    """A framework."""

    name: ClassVar[str]

    def check(self, device: str, precision: Precision) -> None:
        """Refuse a device or a precision that is not to be had; for the CPU, without importing the framework.

        Raises:
            BadInput: with the reason, and what would cure it.
        """

    def ops(self, device: str, precision: Precision) -> Ops:
        """Return the operations for a device and a precision."""

    def devices(self) -> list[Device]:
        """Return what this backend sees, and what it misses."""

    def versions(self) -> dict[str, str]:
        """Return the versions that its numbers depend on."""

    def facts(self, device: str, precision: Precision) -> dict[str, Any]:
        """Return what `Environment.capture` takes of a backend: gpu, driver, libraries, allocator, precision."""

    def set_threads(self, threads: int) -> int:
        """Limit the CPU threads of this process; return the number in effect, where it can be set only once."""

    def adopt(self, reference: str, task: Task, seed: int) -> Any:
        """Build a user's whole model (``pkg.mod:build``) for a task, in the place of a `Network`.

        Raises:
            BadInput: when building it fails, or it is not a model of this framework.
        """

    def trainer(self, program: Program, device: str, precision: Precision, path: str) -> Trainer:
        """Build a trainer; what was compiled for an equal program is used again.

        Raises:
            BadInput: when the device is absent, or the precision or path is not to be had on it.
        """

    def lab(self, device: str, precision: Precision) -> Lab:
        """Return where probes compute.

        Raises:
            BadInput: when the device is absent, the precision is not to be had on it, or nothing differentiates.
        """


STORAGE = {"float64": "float64", "float32": "float32", "tf32": "float32", "bfloat16": "float32"}
"""The dtype that parameters, states and batches are kept in; tf32 and bfloat16 concern products only."""


def check_lengths(program: Program, batch: Batch) -> None:
    """Refuse a batch with sequences that end early where the network was not built to hold its state from there on.

    Below full difficulty any task's sequences may end early; the network must then be a masked one.

    Raises:
        BadInput: when such a network would silently read padding.
    """
    network = program.network
    if isinstance(network, Network) and not network.masked and int(batch.lengths.min()) < batch.inputs.shape[0]:
        raise BadInput("difficulty: sequences end before the task's length, but the network is not a masked one")


def check_precision(precision: Precision, device: str) -> None:
    """Refuse a precision that the device has not.

    Raises:
        BadInput: for tf32 off NVIDIA GPUs, and float64 on a TPU.
    """
    kind = device.partition(":")[0]
    if precision == "tf32" and kind != "cuda":
        raise BadInput(f"precision: tf32 is a mode of NVIDIA GPUs, not of {kind}; use float32, or --device cuda")
    if precision == "float64" and kind == "tpu":
        raise BadInput("precision: a TPU has no float64; use float32")


def check_device(backend: str, device: str, devices: Sequence[Device]) -> None:
    """Refuse a device that the backend does not see; ``cuda`` means ``cuda:0``.

    Raises:
        BadInput: with the reason, the cure where there is one, and the devices that can be used.
    """
    known = {found.name: found for found in devices}
    wanted = known.get(device) or known.get(f"{device}:0") or known.get(device.partition(":")[0])
    if wanted is None or not wanted.available:
        there = ", ".join(name for name, found in known.items() if found.available) or "none"
        why = wanted.detail if wanted is not None else f"there is no {device}"
        raise BadInput(f"device: {backend} cannot use {device} ({why}); available: {there}")


def choose_path(backend: str, requested: str, available: Sequence[str], why_not: Mapping[str, str]) -> str:
    """Resolve `requested`: ``auto`` is the first of `available`.

    Raises:
        BadInput: when the path is unknown to this backend or cannot serve here, with the reason.
    """
    if requested == "auto":
        return available[0]
    if requested in available:
        return requested
    reason = why_not.get(requested, f"{backend} has no such path")
    raise BadInput(f"path: {requested} is not to be had here ({reason}); there is {', '.join(available)}")


def nvidia_driver() -> str | None:
    """Return the NVIDIA driver's version as the kernel module states it, or None."""
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((word for word in words if word[0].isdigit() and "." in word), None)
