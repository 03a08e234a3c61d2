"""Small runs on real backends, all of one shape, so that JAX compiles for the first of them only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import Program, Trainer
from rnnbench.experiment import Experiment, resolve
from rnnbench.record import Status
from rnnbench.spec import RunSpec
from rnnbench.train import Hooks, Progress, starting_state, train

BACKENDS = ("torch", "jax")


@dataclass
class Trained:
    """What came of a run that was kept in memory."""

    experiment: Experiment
    trainer: Trainer
    progress: Progress = field(default_factory=Progress)
    status: Status | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    checkpoints: list[tuple[dict[str, NDArray], dict[str, Any]]] = field(default_factory=list)
    saved: dict[str, dict[str, NDArray]] = field(default_factory=dict)

    def metrics(self, rows: list[dict[str, Any]]) -> None:
        self.rows += rows

    def checkpoint(self, arrays: Mapping[str, NDArray], position: Mapping[str, Any]) -> None:
        self.checkpoints.append((dict(arrays), dict(position)))

    def save_parameters(self, which: str, arrays: Mapping[str, NDArray]) -> None:
        self.saved[which] = dict(arrays)

    def values(self, split: str, metric: str) -> dict[int, float]:
        return {row["step"]: row["value"] for row in self.rows if (row["split"], row["metric"]) == (split, metric)}

    def bits(self) -> tuple[Any, ...]:
        """Everything that must not depend on how a run was executed, comparable with ==."""
        rows = [tuple(repr(value) for key, value in row.items() if key != "seconds") for row in self.rows]
        saved = {which: {k: a.tobytes() for k, a in arrays.items()} for which, arrays in self.saved.items()}
        state = {name: array.tobytes() for name, array in self.trainer.state().arrays().items()}
        return self.status, self.progress.steps_to_solve, self.progress.first_bad_step, rows, saved, state

    def go(self, hooks: Hooks | None = None) -> Trained:
        self.status = train(
            self.experiment, self.trainer, self.experiment.source(), self, self.progress, hooks or Hooks()
        )
        return self


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def prepare() -> Callable[..., Trained]:
    """Make a run ready at its start."""

    def make(backend: str, **changes: Any) -> Trained:
        values: dict[str, Any] = {
            "task": {"name": "adding", "T": 5},
            "cell": {"name": "rnn", "hidden": 3},
            "data": {"batch_size": 4},
            "eval": {"n": 20, "every": 10},
            "budget": {"steps": 30},
            "backend": backend,
        }
        experiment = resolve(RunSpec.parse(values | changes, ""))
        spec = experiment.spec
        stop = spec.stop
        watched = (stop.metric,) if stop is not None and stop.split == "train" and stop.metric != "loss" else ()
        network = experiment.network()
        program = Program(experiment.task, network, experiment.optimizer, experiment.techniques, watched)
        found = registry.load("backends", backend)()
        found.set_threads(1)
        trainer = found.trainer(program, spec.device, spec.precision, spec.path)
        trainer.load(starting_state(experiment, network))
        return Trained(experiment, trainer)

    return make


@pytest.fixture(autouse=True)
def _numbers_may_overflow() -> Any:
    """A run that diverges on purpose is no reason for a warning."""
    with np.errstate(over="ignore", invalid="ignore"):
        yield
