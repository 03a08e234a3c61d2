"""Both backends' results come from the same function: whatever replaces it changes both, and equally.

These contracts hold for every registered cell and technique, a third party's too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pytest

from rnnbench import objectives, registry
from rnnbench.arrays import Array
from rnnbench.backends import base
from rnnbench.backends.base import Inspection, Program, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.jax.trainer import forget_compiled
from rnnbench.backends.numpy import NumpyBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.backends.torch.fused import why_not
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.network import Network
from rnnbench.parity import compare, measure
from rnnbench.spec import DataSpec, NetworkSpec
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch
from rnnbench.techniques.base import GradientTechnique, Technique
from rnnbench.techniques.update.optimizers import SGD
from rnnbench.xp import Arrays, Ops

TASK = Adding(T=7)
Both = dict[str, Inspection]


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    """JAX must trace the replaced function, and must not keep it for the tests that follow."""
    forget_compiled()
    yield
    forget_compiled()


def program(cell: Cell, techniques: tuple[Technique, ...] = ()) -> Program:
    network = Network(cell, NetworkSpec(), TASK.n_in, TASK.n_out, TASK.length, read_last=True)
    return Program(TASK, network, SGD(lr=0.1), techniques)


def batches(n: int = 1) -> list[Batch]:
    source = TASK.open(0, 0, DataSpec(batch_size=3), 4)
    return [source.batch("train", step).cast("float64") for step in range(n)]


def on_both(of: Program) -> Both:
    """Inspect one step on each backend by the reference path, with nothing compiled before."""
    forget_compiled()
    results: Both = {}
    for backend in (TorchBackend(), JaxBackend()):
        trainer = backend.trainer(of, "cpu", "float64", "reference")
        trainer.load(TrainState(of.network.initial(0), buffers=of.network.initial_buffers(0)))
        results[backend.name] = trainer.inspect(batches()[0], 0.1)
    return results


def apart(a: Mapping[str, Any], b: Mapping[str, Any]) -> float:
    """Return the largest norm-relative difference of arrays by name."""
    assert set(a) == set(b)
    return max(float(measure(np.asarray(a[name]), np.asarray(b[name])).differences.max()) for name in a)


def changed_equally(before: Both, after: Both, what: Callable[[Inspection], Mapping[str, Any]]) -> None:
    for name in ("torch", "jax"):
        assert apart(what(before[name]), what(after[name])) > 1e-3, f"{name} does not use the function"
    assert apart(what(after["torch"]), what(after["jax"])) < 1e-12


CELLS = registry.names("cells")


def cell(name: str) -> Cell:
    made: Cell = registry.load("cells", name).parse({"hidden": 4}, "cell")
    return made


@pytest.mark.parametrize("name", CELLS)
def test_replacing_a_cells_step_changes_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = cell(name)
    before = on_both(program(it))
    step = type(it).step

    def other(self: Cell, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return {key: xp.sin(2.0 * value) + 0.1 for key, value in step(self, xp, params, states, u, context).items()}

    monkeypatch.setattr(type(it), "step", other)
    after = on_both(program(it))
    changed_equally(before, after, lambda found: found.states)
    changed_equally(before, after, lambda found: found.adjoints)
    changed_equally(before, after, lambda found: found.gradients)
    reference = NumpyBackend().forward(program(it), program(it).network.initial(0), {}, batches()[0])
    assert apart(reference[2], after["jax"].states) < 1e-12


@pytest.mark.parametrize("name", CELLS)
def test_replacing_a_cells_projection_changes_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    it = cell(name)
    before = on_both(program(it))
    project = type(it).project
    monkeypatch.setattr(type(it), "project", lambda self, xp, params, x: 1.5 * project(self, xp, params, x))
    changed_equally(before, on_both(program(it)), lambda found: found.states)


def test_replacing_the_loss_changes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    before = on_both(program(cell("lstm")))

    def absolute(xp: Ops, name: str, outputs: Array, targets: Array) -> Array:
        return xp.mean(xp.abs(outputs - targets), axis=-1)

    monkeypatch.setattr(base, "loss_terms", absolute)
    after = on_both(program(cell("lstm")))
    changed_equally(before, after, lambda found: {"loss": found.loss})
    changed_equally(before, after, lambda found: found.gradients)


def test_replacing_a_metric_changes_both(monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluated() -> dict[str, dict[str, float]]:
        forget_compiled()
        found: dict[str, dict[str, float]] = {}
        for backend in (TorchBackend(), JaxBackend()):
            of = program(cell("gru"))
            trainer = backend.trainer(of, "cpu", "float64", "reference")
            trainer.load(TrainState(of.network.initial(0)))
            found[backend.name] = trainer.evaluate(batches())
        return found

    before = evaluated()
    sums = objectives.metric_sums

    def doubled(xp: Ops, *rest: Any) -> Any:
        total, weight = sums(xp, *rest)
        return 2.0 * total + 1.0, weight

    monkeypatch.setattr(objectives, "metric_sums", doubled)
    after = evaluated()
    for name in ("torch", "jax"):
        assert abs(after[name]["mse"] - before[name]["mse"]) > 1e-3
    assert apart(after["torch"], after["jax"]) < 1e-12


TECHNIQUES = [
    name for name in registry.names("techniques") if issubclass(registry.load("techniques", name), GradientTechnique)
]


@pytest.mark.parametrize("name", TECHNIQUES)
def test_replacing_a_technique_of_the_gradient_changes_both(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    technique: GradientTechnique = registry.load("techniques", name).parse({}, "technique")
    before = on_both(program(cell("rnn"), (technique,)))

    def other(self: GradientTechnique, xp: Ops, gradients: Arrays, params: Arrays) -> Arrays:
        return {key: xp.tanh(3.0 * value) - 0.01 * params[key] for key, value in gradients.items()}

    monkeypatch.setattr(type(technique), "gradients", other)
    after = on_both(program(cell("rnn"), (technique,)))
    changed_equally(before, after, lambda found: found.updated.params)
    assert apart(before["torch"].gradients, after["torch"].gradients) == 0.0  # a technique acts after the backward pass


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_keeps_to_its_declarations(name: str) -> None:
    it = cell(name)
    assert sum(state.output for state in it.states()) == 1
    assert len({state.name for state in it.states()}) == len(it.states())
    network = program(it).network
    assert list(network.initial(0)) == list(network.parameters())
    for key, param in network.parameters().items():
        assert network.initial(0)[key].shape == param.shape
        assert network.initial(0)[key].dtype == np.float64
        assert np.array_equal(network.initial(0)[key], network.initial(0)[key])
    _, _, states = NumpyBackend().forward(program(it), network.initial(0), network.initial_buffers(0), batches()[0])
    assert {key: value.shape for key, value in states.items()} == network.state_shapes(3)


@pytest.mark.parametrize("name", CELLS)
def test_a_cell_is_the_same_on_both_backends(name: str) -> None:
    of = program(cell(name))
    report = compare(of, TrainState(of.network.initial(0), buffers=of.network.initial_buffers(0)), batches(3))
    assert report.equal, [row for row in report.rows if row.verdict != "equal"]


@pytest.mark.parametrize("name", ["rnn", "lstm", "gru"])
def test_a_subclass_is_never_run_by_a_fused_layer(name: str) -> None:
    """Its step may be another; the fused layer would silently compute the base's."""
    it = cell(name)
    assert why_not(it) is None
    derived = type("Derived", (type(it),), {"__module__": __name__})
    assert why_not(derived(hidden=4)) is not None
