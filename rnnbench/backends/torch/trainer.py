"""Training steps in PyTorch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import STORAGE, Inspection, Program, StepLog, TrainState, check_lengths, choose_path
from rnnbench.backends.torch.fused import fused_layer, why_not
from rnnbench.backends.torch.lab import set_product_mode
from rnnbench.backends.torch.model import TorchModel
from rnnbench.backends.torch.ops import TorchOps
from rnnbench.backends.torch.optimizers import build, load_slots, read_slots
from rnnbench.cells.network import Network
from rnnbench.spec import Precision
from rnnbench.tasks.base import Batch
from rnnbench.techniques.base import global_norm
from rnnbench.xp import Arrays


class TorchLog:
    """Per-step scalars, left on the device until asked for."""

    def __init__(self, losses: list[Array], norms: list[Array], metrics: dict[str, list[Array]]) -> None:
        self._losses = losses
        self._norms = norms
        self._metrics = metrics

    def fetch(self) -> dict[str, NDArray]:
        norms = np.full(len(self._losses), np.nan)
        norms[-len(self._norms) :] = _to_float64(self._norms)
        numbers = {name: _to_float64(values) for name, values in self._metrics.items()}
        return {"loss": _to_float64(self._losses), "grad_norm": norms, **numbers}


class TorchTrainer:
    """Steps through a program on one device; see `rnnbench.backends.base.Trainer`."""

    capacity = 128

    def __init__(self, program: Program, device: str, precision: Precision, path: str) -> None:
        self.program = program
        self.ops = TorchOps(device, precision)
        self.precision = precision
        self.compile_seconds = 0.0
        reason = self._no_fused(program, precision)
        self.path = choose_path(
            "torch", path, ["reference"] if reason else ["fused", "reference"], {"fused": reason or ""}
        )
        self._kernel = fused_layer if self.path == "fused" else None
        self._params: dict[str, torch.Tensor] = {}
        self._buffers: dict[str, torch.Tensor] = {}
        self._step = 0

    @staticmethod
    def _no_fused(program: Program, precision: Precision) -> str | None:
        if not isinstance(program.network, Network):
            return "a user's whole model runs as it is"
        if program.network.masked:
            return "sequences end at different steps"
        if precision == "bfloat16":
            return "rounded products are defined on the equations"
        return why_not(program.network.cell)

    def load(self, state: TrainState) -> None:
        self._params = {name: self._tensor(array).requires_grad_() for name, array in state.params.items()}
        self._buffers = {name: self._tensor(array) for name, array in state.buffers.items()}
        self._step = state.step
        self._optimizer = build(self.program.optimizer, list(self._params.values()))
        load_slots(self.program.optimizer, self._optimizer, self._params, state.slots, state.step)

    def state(self) -> TrainState:
        return TrainState(
            {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._params.items()},
            read_slots(self.program.optimizer, self._optimizer, self._params),
            {name: tensor.detach().cpu().numpy().copy() for name, tensor in self._buffers.items()},
            self._step,
        )

    def readback(self, batch: Batch) -> dict[str, NDArray]:
        return {name: tensor.cpu().numpy().copy() for name, tensor in self._send(batch).items()}

    def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> StepLog:
        set_product_mode(self.precision)
        params, program = list(self._params.values()), self.program
        losses: list[Array] = []
        metrics: dict[str, list[Array]] = {name: [] for name in (*program.train_metrics, *program.acting())}
        norms: list[Array] = []
        for number, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
            sent = self._send(batch)
            if isinstance(program.network, TorchModel):
                program.network.before_step(self._step + number - 1)
            loss, forward = program.loss(self.ops, self._params, self._buffers, sent, kernel=self._kernel)
            found = torch.autograd.grad(loss, params, allow_unused=True, materialize_grads=True)
            with torch.no_grad():
                gradients = dict(zip(self._params, found, strict=True))
                if program.history or number == len(batches):
                    norms.append(global_norm(self.ops, gradients))
                acted: Arrays | None = {} if program.history else None
                gradients = program.gradients(self.ops, gradients, self._params, acted)
                for name, value in (acted or {}).items():
                    metrics[name].append(value)
                for name, param in self._params.items():
                    param.grad = gradients[name]
                if program.train_metrics:
                    sums = program.scores(self.ops, forward.outputs, sent, program.train_metrics)
                    for name, (total, weight) in sums.items():
                        metrics[name].append(total / weight)
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            self._optimizer.step()
            self._buffers = {name: value.detach() for name, value in forward.buffers.items()}
            losses.append(loss.detach())
        self._step += len(batches)
        return TorchLog(losses, norms, metrics)

    @torch.no_grad()
    def evaluate(self, pieces: Sequence[Batch]) -> dict[str, float]:
        set_product_mode(self.precision)
        names = self.program.eval_metrics
        sums: dict[str, list[tuple[Array, Array]]] = {name: [] for name in names}
        for piece in pieces:
            sent = self._send(piece)
            forward = self.program.outputs(
                self.ops, self._params, self._buffers, sent, training=False, kernel=self._kernel
            )
            for name, pair in self.program.scores(self.ops, forward.outputs, sent, names).items():
                sums[name].append(pair)
        return {
            name: float(_to_float64([total for total, _ in pairs]).sum() / _to_float64([w for _, w in pairs]).sum())
            for name, pairs in sums.items()
        }

    def inspect(self, batch: Batch, rate: float) -> Inspection:
        set_product_mode(self.precision)
        before = self.state()
        sent = self._send(batch)
        shapes = self.program.network.state_shapes(batch.size)
        inject = {name: self.ops.zeros(shape).requires_grad_() for name, shape in shapes.items()}
        loss, forward = self.program.loss(self.ops, self._params, self._buffers, sent, record=True, inject=inject)
        wanted = [*self._params.values(), *inject.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
        gradients = dict(zip(self._params, found[: len(self._params)], strict=True))
        adjoints = dict(zip(inject, found[len(self._params) :], strict=True))

        copy = TorchTrainer(self.program, str(self.ops.device), self.precision, "reference")
        copy.load(before)
        with torch.no_grad():
            used = self.program.gradients(self.ops, dict(gradients), copy._params)
            for name, param in copy._params.items():
                param.grad = used[name]
        for group in copy._optimizer.param_groups:
            group["lr"] = rate
        copy._optimizer.step()
        copy._buffers = {name: value.detach() for name, value in forward.buffers.items()}
        copy._step += 1
        return Inspection(
            float(loss.detach()),
            _numpy(forward.outputs),
            _all_numpy(forward.states),
            _all_numpy(adjoints),
            _all_numpy(gradients),
            copy.state(),
        )

    def _tensor(self, array: NDArray) -> torch.Tensor:
        dtype = STORAGE[self.precision] if array.dtype.kind == "f" else array.dtype
        return torch.from_numpy(np.array(array, dtype=dtype)).to(self.ops.device)

    def _send(self, batch: Batch) -> dict[str, Array]:
        check_lengths(self.program, batch)
        return {name: self.ops.asarray(array) for name, array in batch.arrays().items()}


def _to_float64(values: list[Array]) -> NDArray:
    return torch.stack([value.detach() for value in values]).to(torch.float64).cpu().numpy()


def _numpy(tensor: Array) -> NDArray:
    array: NDArray = tensor.detach().cpu().numpy().copy()
    return array


def _all_numpy(tensors: Mapping[str, Array]) -> dict[str, NDArray]:
    return {name: _numpy(tensor) for name, tensor in tensors.items()}
