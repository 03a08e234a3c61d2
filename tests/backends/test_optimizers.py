"""Optimizers on both backends against naive NumPy twins, and slots that carry over between backends."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Backend, Program, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.parity import measure
from rnnbench.spec import DataSpec, NetworkSpec
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch
from rnnbench.techniques.gradient.clip import ClipNorm, ClipValue
from rnnbench.techniques.update.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp

TASK = Adding(T=5)
STEPS = 5
BACKENDS: dict[str, Backend] = {"torch": TorchBackend(), "jax": JaxBackend()}
Arrays = dict[str, NDArray]


def program(optimizer: Optimizer, techniques: Any = ()) -> Program:
    network = Network(RNN(hidden=3), NetworkSpec(), TASK.n_in, TASK.n_out, TASK.length, read_last=True)
    return Program(TASK, network, optimizer, techniques)


def batches(steps: int = STEPS) -> list[Batch]:
    source = TASK.open(5, 0, DataSpec(batch_size=4), 4)
    return [source.batch("train", step).cast("float64") for step in range(steps)]


def naive(spec: Optimizer, params: Arrays, slots: dict[str, Arrays], gradients: Arrays, t: int, lr: float) -> None:
    """Update `params` and `slots` in place, by the equations of the papers; t counts from 1."""
    for name, g in gradients.items():
        p = params[name]
        if isinstance(spec, SGD):
            d = g
            if spec.momentum:
                m = slots["momentum"][name] = spec.momentum * slots["momentum"].get(name, 0.0) + g
                d = g + spec.momentum * m if spec.nesterov else m
            params[name] = p - lr * d
        elif isinstance(spec, RMSProp):
            v = slots["square"].get(name, np.full_like(g, spec.accumulator))
            v = slots["square"][name] = spec.decay * v + (1 - spec.decay) * g * g
            d = g / np.sqrt(v + spec.eps) if spec.eps_inside else g / (np.sqrt(v) + spec.eps)
            if spec.momentum:
                d = slots["momentum"][name] = spec.momentum * slots["momentum"].get(name, 0.0) + d
            params[name] = p - lr * d
        else:
            assert isinstance(spec, Adam)
            m = slots["mean"][name] = spec.beta1 * slots["mean"].get(name, 0.0) + (1 - spec.beta1) * g
            v = slots["square"][name] = spec.beta2 * slots["square"].get(name, 0.0) + (1 - spec.beta2) * g * g
            d = (m / (1 - spec.beta1**t)) / (np.sqrt(v / (1 - spec.beta2**t)) + spec.eps)
            if isinstance(spec, AdamW):
                d = d + spec.weight_decay * p
            params[name] = p - lr * d


OPTIMIZERS: dict[str, Optimizer] = {
    "sgd": SGD(lr=0.1),
    "momentum": SGD(lr=0.1, momentum=0.9),
    "nesterov": SGD(lr=0.1, momentum=0.9, nesterov=True),
    "rmsprop": RMSProp(lr=0.01),
    "rmsprop-eps": RMSProp(lr=0.01, eps=1e-2),
    "rmsprop-inside": RMSProp(lr=0.01, eps=1e-2, eps_inside=True),
    "rmsprop-urnn": RMSProp(lr=0.01, decay=0.9, eps=0.0, accumulator=1e-3),
    "rmsprop-tensorflow": RMSProp(lr=0.01, decay=0.9, eps=1e-10, eps_inside=True, accumulator=1.0),
    "rmsprop-momentum": RMSProp(lr=0.01, momentum=0.9),
    "rmsprop-inside-momentum": RMSProp(lr=0.01, eps=1e-3, eps_inside=True, momentum=0.9, accumulator=0.1),
    "adam": Adam(lr=0.01),
    "adam-eps": Adam(lr=0.01, beta1=0.8, beta2=0.95, eps=1e-2),
    "adam-no-momentum": Adam(lr=0.01, beta1=0.0),
    "adamw": AdamW(lr=0.01, weight_decay=0.5),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_five_steps_are_the_papers(name: str, backend: str) -> None:
    """Gradients are the backend's own; the updates from them are held against the twin, at a rate that changes."""
    spec = OPTIMIZERS[name]
    of = program(spec)
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    state = TrainState(of.network.initial(1))
    params = copy.deepcopy(state.params)
    slots: dict[str, Arrays] = {slot: {} for slot in spec.slots()}
    trainer.load(state)
    for step, batch in enumerate(batches()):
        rate = spec.lr / (1 + step)
        naive(spec, params, slots, trainer.inspect(batch, rate).gradients, step + 1, rate)
        trainer.train([batch], [rate])
    found = trainer.state()
    assert found.step == STEPS
    for key, value in params.items():
        assert measure(value, found.params[key]).differences <= 1e-13, key
    assert set(found.slots) == {f"{slot}/{key}" for slot in spec.slots() for key in params}
    for slot, arrays in slots.items():
        for key, value in arrays.items():
            assert measure(value, found.slots[f"{slot}/{key}"]).differences <= 1e-13, f"{slot}/{key}"


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_changes_its_backend_without_a_trace(name: str) -> None:
    """Two steps on one backend and three on the other are five on either: slots, step and parameters carry over."""
    of = program(OPTIMIZERS[name])
    trainers = {key: backend.trainer(of, "cpu", "float64", "reference") for key, backend in BACKENDS.items()}
    all_batches, rates = batches(), [of.optimizer.lr] * STEPS

    def run(first: str, then: str) -> TrainState:
        trainers[first].load(TrainState(of.network.initial(1)))
        trainers[first].train(all_batches[:2], rates[:2])
        carried = trainers[first].state()
        assert carried.step == 2
        trainers[then].load(TrainState.from_arrays(carried.arrays(), carried.step))
        trainers[then].train(all_batches[2:], rates[2:])
        return trainers[then].state()

    stayed = run("jax", "jax")
    for other in (run("torch", "jax"), run("jax", "torch"), run("torch", "torch")):
        for key, value in stayed.arrays().items():
            assert measure(value, other.arrays()[key]).differences <= 1e-12, key


@pytest.mark.parametrize("backend", BACKENDS)
def test_loading_and_fetching_keeps_every_byte(backend: str) -> None:
    of = program(OPTIMIZERS["rmsprop-momentum"])
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    trainer.load(TrainState(of.network.initial(1)))
    trainer.train(batches(), [0.01] * STEPS)
    first = trainer.state()
    trainer.load(first)
    second = trainer.state()
    assert second.step == first.step
    assert set(first.arrays()) == set(second.arrays())
    for key, value in first.arrays().items():
        assert value.tobytes() == second.arrays()[key].tobytes()
    trainer.train(batches(1), [0.5])  # what was fetched is a copy, not a view of what training overwrites
    assert all(value.tobytes() == second.arrays()[key].tobytes() for key, value in first.arrays().items())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_first_slots_are_the_starting_values(backend: str) -> None:
    of = program(RMSProp(lr=0.01, accumulator=0.25, momentum=0.5))
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    trainer.load(TrainState(of.network.initial(1)))
    for key, value in trainer.state().slots.items():
        assert np.all(value == (0.25 if key.startswith("square/") else 0.0)), key


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("threshold", [1e-3, 1e3])
def test_clipping_the_norm(backend: str, threshold: float) -> None:
    """SGD's step shows the clipped gradient: same direction, norm at most the threshold, untouched below it."""
    of = program(SGD(lr=1.0), (ClipNorm(threshold=threshold),))
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    start = of.network.initial(1)
    trainer.load(TrainState(start))
    found = trainer.inspect(batches(1)[0], 1.0)
    norm = float(np.sqrt(sum(np.sum(g**2) for g in found.gradients.values())))
    assert 1e-3 < norm < 1e3
    for key, gradient in found.gradients.items():
        expected = start[key] - gradient * min(1.0, threshold / norm)
        np.testing.assert_allclose(found.updated.params[key], expected, rtol=1e-13, atol=1e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_clipping_each_element(backend: str) -> None:
    of = program(SGD(lr=1.0), (ClipValue(threshold=0.5),))
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    start = of.network.initial(1)
    trainer.load(TrainState(start))
    found = trainer.inspect(batches(1)[0], 1.0)
    largest = max(float(np.abs(g).max()) for g in found.gradients.values())
    smallest = min(float(np.abs(g).min()) for g in found.gradients.values())
    assert smallest < 0.5 < largest  # some elements are clipped and some are not
    for key, gradient in found.gradients.items():
        expected = start[key] - np.clip(gradient, -0.5, 0.5)
        np.testing.assert_allclose(found.updated.params[key], expected, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_of_zero_is_clipped_to_zero(backend: str) -> None:
    of = program(SGD(lr=1.0), (ClipNorm(threshold=1.0),))
    trainer = BACKENDS[backend].trainer(of, "cpu", "float64", "reference")
    start = {name: np.zeros_like(value) for name, value in of.network.initial(1).items()}
    batch = batches(1)[0]
    still = Batch(batch.inputs, np.zeros_like(batch.targets), batch.mask, batch.lengths)
    trainer.load(TrainState(start))
    found = trainer.inspect(still, 1.0)
    assert all(np.all(value == 0.0) for value in found.updated.params.values())
