"""Training steps in JAX: many steps a dispatch, under one compiled loop whose number of turns is not compiled in."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Inspection, Program, StepLog, TrainState, check_lengths, choose_path
from rnnbench.backends.jax.lab import jax_mode, pick_device, put
from rnnbench.backends.jax.ops import JaxOps
from rnnbench.backends.jax.optimizers import build, pack, unpack
from rnnbench.spec import Precision
from rnnbench.tasks.base import Batch
from rnnbench.techniques.base import global_norm
from rnnbench.xp import Arrays

DISPATCH_BYTES = 4 * 2**20
"""Room for the batches of one dispatch. All of it is sent each time, also where a dispatch takes a single step."""

MOST_STEPS = 128
"""Most steps of one dispatch."""

LONG_STEP = 5e8
"""Parameters times time steps times sequences from which on a step is dispatched by itself.

Such a step takes tens of milliseconds and does not feel the 0.1 ms that a dispatch costs, while inside a loop around
many steps XLA computes it more slowly: by 13 to 15 % at T=784, batch 100, hidden 128 on a CPU. The rule looks at shapes
alone, never at the clock, so that a run's bits do not depend on how fast it ran.
"""


@dataclass
class Compiled:
    """What was compiled for a program, shared by its runs."""

    functions: dict[Any, Any] = field(default_factory=dict)


KEPT_PROGRAMS = 16
"""Programs whose compiled functions are kept; a process that serves a long sweep would otherwise keep them all."""

_COMPILED: dict[Any, Compiled] = {}


def forget_compiled() -> None:
    """Drop everything compiled, as a test must that changes an equation."""
    _COMPILED.clear()


class JaxLog:
    """Per-step scalars, left on the device until asked for: one array for each dispatch."""

    def __init__(self, logs: Sequence[Arrays], steps: int) -> None:
        self._logs = logs
        self._steps = steps

    def fetch(self) -> dict[str, NDArray]:
        def whole(name: str) -> NDArray:
            pieces = [np.atleast_1d(np.asarray(log[name], np.float64)) for log in self._logs]
            return np.concatenate(pieces)[: self._steps]

        return {name: whole(name) for name in self._logs[0]}


class JaxTrainer:
    """Steps through a program on one device; see `rnnbench.backends.base.Trainer`."""

    def __init__(self, program: Program, device: str, precision: Precision, path: str) -> None:
        self.program = program
        self.ops = JaxOps(precision)
        self.precision = precision
        self.device = pick_device(device)
        self.compile_seconds = 0.0
        self.path = choose_path("jax", path, ["reference"], {"fused": "jax has no fused recurrent layers here"})
        self._optimizer = build(program.optimizer)
        # the learning rate is an argument of the compiled step
        key = (replace(program, optimizer=program.optimizer.model_copy(update={"lr": 1.0})), device, precision)
        self._compiled = _COMPILED[key] = _COMPILED.pop(key, Compiled())
        while len(_COMPILED) > KEPT_PROGRAMS:
            del _COMPILED[next(iter(_COMPILED))]  # the one that was asked for longest ago
        self._capacity = 0

    @property
    def capacity(self) -> int:
        return self._capacity or MOST_STEPS

    def load(self, state: TrainState) -> None:
        with self._mode():
            params = {name: self._put(array) for name, array in state.params.items()}
            slots = {name: self._put(array) for name, array in state.slots.items()}
            buffers = {name: self._put(array) for name, array in state.buffers.items()}
            packed = pack(self.program.optimizer, params, slots, jnp.asarray(state.step, jnp.int32))
            # donated buffers must not be shared, and an absent slot's filling may be
            self._carry = jax.tree.map(
                lambda leaf: jax.device_put(jnp.array(leaf), self.device), (params, packed, buffers)
            )
            self._step = state.step

    def state(self) -> TrainState:
        with self._mode():
            params, packed, buffers = self._carry
            return TrainState(
                _numpy(params), _numpy(unpack(self.program.optimizer, packed)), _numpy(buffers), self._step
            )

    def readback(self, batch: Batch) -> dict[str, NDArray]:
        with self._mode():
            fetched = _numpy(self._send(batch))
        return {name: array.astype(np.int64) if array.dtype.kind in "iu" else array for name, array in fetched.items()}

    def train(self, batches: Sequence[Batch], rates: Sequence[float]) -> StepLog:
        with self._mode():
            if self._long(batches[0]):
                return self._train_one_by_one(batches, rates)
            for batch in batches:
                check_lengths(self.program, batch)
            if not self._capacity:
                size = sum(array.nbytes for array in batches[0].arrays().values())
                self._capacity = max(1, min(MOST_STEPS, DISPATCH_BYTES // max(1, size)))
            steps, room = len(batches), max(len(batches), self.capacity)
            stacked = {
                name: self._put(_stack([batch.arrays()[name] for batch in batches], room))
                for name in batches[0].arrays()
            }
            filled = np.zeros(room)
            filled[:steps] = rates
            arguments = (self._carry, stacked, self._put(filled), jnp.asarray(steps, jnp.int32))
            run = self._compile("train", self._train_loop, arguments, donate=(0,))
            self._carry, logs = run(*arguments)
            self._step += steps
            return JaxLog([logs], steps)

    def _long(self, batch: Batch) -> bool:
        time_steps, sequences, _ = batch.inputs.shape
        return bool(self.program.network.count() * time_steps * sequences >= LONG_STEP)

    def _train_one_by_one(self, batches: Sequence[Batch], rates: Sequence[float]) -> StepLog:
        logs: list[Arrays] = []
        for batch, rate in zip(batches, rates, strict=True):
            arguments = (self._carry, self._send(batch), self._put(np.asarray(rate)))
            self._carry, numbers = self._compile("step", self._one_step, arguments, donate=(0,))(*arguments)
            logs.append(numbers)
        self._step += len(batches)
        return JaxLog(logs, len(batches))

    def evaluate(self, pieces: Sequence[Batch]) -> dict[str, float]:
        with self._mode():
            params, _, buffers = self._carry
            found: list[dict[str, tuple[Array, Array]]] = []
            for piece in pieces:
                arguments = (params, buffers, self._send(piece))
                found.append(self._compile("evaluate", self._scores, arguments)(*arguments))
            return {
                name: float(
                    sum(float(sums[name][0]) for sums in found)
                    / np.float64(sum(float(sums[name][1]) for sums in found))
                )
                for name in self.program.eval_metrics
            }

    def inspect(self, batch: Batch, rate: float) -> Inspection:
        with self._mode():
            arguments = (self._carry, self._send(batch), self._put(np.asarray(rate)))
            loss, outputs, states, adjoints, gradients, carry = self._compile("inspect", self._inspect, arguments)(
                *arguments
            )
            params, packed, buffers = carry
            updated = TrainState(
                _numpy(params), _numpy(unpack(self.program.optimizer, packed)), _numpy(buffers), self._step + 1
            )
            return Inspection(
                float(loss), np.array(outputs), _numpy(states), _numpy(adjoints), _numpy(gradients), updated
            )

    def _train_loop(self, carry: Any, batches: Arrays, rates: Array, steps: Array) -> tuple[Any, Arrays]:
        """Take `steps` training steps; logs have room for as many as there are batches."""
        names = ("loss", "grad_norm", *self.program.train_metrics, *self.program.acting())
        logs = {name: jnp.full(rates.shape, jnp.nan, self.ops.dtype) for name in names}

        def turn(i: Array, both: tuple[Any, Arrays]) -> tuple[Any, Arrays]:
            carry, logs = both
            batch = {name: lax.dynamic_index_in_dim(array, i, keepdims=False) for name, array in batches.items()}
            carry, numbers = self._one_step(carry, batch, rates[i])
            return carry, {name: logs[name].at[i].set(numbers[name]) for name in names}

        ended: tuple[Any, Arrays] = lax.fori_loop(0, steps, turn, (carry, logs))
        return ended

    def _one_step(self, carry: Any, batch: Arrays, rate: Array) -> tuple[Any, Arrays]:
        params, packed, buffers = carry

        def loss_of(params: Arrays) -> tuple[Array, Any]:
            loss, forward = self.program.loss(self.ops, params, buffers, batch)
            return loss, (forward.outputs, forward.buffers)

        (loss, (outputs, buffers)), gradients = jax.value_and_grad(loss_of, has_aux=True)(params)
        numbers = {"loss": loss, "grad_norm": global_norm(self.ops, gradients)}
        sums = self.program.scores(self.ops, outputs, batch, self.program.train_metrics)
        numbers |= {name: total / weight for name, (total, weight) in sums.items()}
        acted: Arrays | None = {} if self.program.history else None
        carry = self._update(params, packed, buffers, gradients, rate, acted)
        return carry, numbers | (acted or {})

    def _update(
        self,
        params: Arrays,
        packed: Any,
        buffers: Arrays,
        gradients: Arrays,
        rate: Array,
        acted: Arrays | None = None,
    ) -> Any:
        gradients = self.program.gradients(self.ops, gradients, params, acted)
        directions, packed = self._optimizer.update(gradients, packed, params)
        params = {name: param - rate * directions[name] for name, param in params.items()}
        return params, packed, jax.tree.map(lax.stop_gradient, buffers)

    def _scores(self, params: Arrays, buffers: Arrays, batch: Arrays) -> dict[str, tuple[Array, Array]]:
        forward = self.program.outputs(self.ops, params, buffers, batch, training=False)
        return self.program.scores(self.ops, forward.outputs, batch, self.program.eval_metrics)

    def _inspect(self, carry: Any, batch: Arrays, rate: Array) -> Any:
        params, packed, buffers = carry
        shapes = self.program.network.state_shapes(batch["inputs"].shape[1])
        inject = {name: self.ops.zeros(shape) for name, shape in shapes.items()}

        def loss_of(params: Arrays, inject: Arrays) -> tuple[Array, Any]:
            loss, forward = self.program.loss(self.ops, params, buffers, batch, record=True, inject=inject)
            return loss, (forward.outputs, forward.states, forward.buffers)

        (loss, (outputs, states, buffers)), (gradients, adjoints) = jax.value_and_grad(
            loss_of, argnums=(0, 1), has_aux=True
        )(params, inject)
        carry = self._update(params, packed, buffers, gradients, rate)
        return loss, outputs, states, adjoints, gradients, carry

    def _compile(
        self, name: str, function: Callable[..., Any], arguments: tuple[Any, ...], donate: tuple[int, ...] = ()
    ) -> Callable[..., Any]:
        """Return `function` compiled for the arguments' shapes, counting the time where it was not already."""
        leaves, structure = jax.tree.flatten(arguments)
        key = (name, structure, tuple((leaf.shape, leaf.dtype) for leaf in leaves))
        if key not in self._compiled.functions:
            began = time.perf_counter()
            self._compiled.functions[key] = jax.jit(function, donate_argnums=donate).lower(*arguments).compile()
            self.compile_seconds += time.perf_counter() - began
        compiled: Callable[..., Any] = self._compiled.functions[key]
        return compiled

    def _send(self, batch: Batch) -> Arrays:
        check_lengths(self.program, batch)
        return {name: self._put(array) for name, array in batch.arrays().items()}

    def _put(self, array: NDArray) -> Array:
        return put(array, self.precision, self.device)

    def _mode(self) -> AbstractContextManager[None]:
        return jax_mode(self.precision, self.device)


def _stack(arrays: list[NDArray], room: int) -> NDArray:
    """Stack along a new first axis with room for more; what is beyond is never read."""
    stacked = np.empty((room, *arrays[0].shape), arrays[0].dtype)
    np.stack(arrays, out=stacked[: len(arrays)])
    return stacked


def _numpy(arrays: Arrays) -> dict[str, NDArray]:
    return {name: np.array(array) for name, array in arrays.items()}
