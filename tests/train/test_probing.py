"""Probes that follow a run: at the right steps, the same however it was executed, and no trace left in its training."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from rnnbench import registry
from rnnbench import train as loop
from rnnbench.arrays import NDArray
from rnnbench.backends.base import Program, TrainState
from rnnbench.engine.probing import Probing
from rnnbench.errors import BadInput
from rnnbench.experiment import Experiment, log_spaced, resolve
from rnnbench.record import Status
from rnnbench.signals import Signal
from rnnbench.spec import RunSpec
from rnnbench.train import Hooks, Progress, starting_state, train

from .conftest import Trained

PROBES: dict[str, Any] = {"record": {"probes": ["adjoint", "points", "updates"], "probes_per_decade": 2}}
STEPS = [0, 1, 3, 10, 30]

Recorded = dict[tuple[str, int], bytes]


@dataclass
class Probed(Trained):
    """A run whose signals are kept too, and how many there were at each checkpoint."""

    signals: list[Signal] = field(default_factory=list)
    counts: list[tuple[int, int]] = field(default_factory=list)

    def signal(self, name: str, axes: Iterable[str], unit: str, values: NDArray, step: int) -> None:
        self.signals.append(Signal(name, tuple(axes), unit, step, np.array(values)))

    def checkpoint(self, arrays: Mapping[str, NDArray], position: Mapping[str, Any]) -> None:
        super().checkpoint(arrays, position)
        self.counts.append((len(self.rows), len(self.signals)))

    def hooks(self, **options: Any) -> Hooks:
        probes = [probe for probe in self.experiment.probes if not probe.in_training]
        return Hooks(probe=Probing(self.experiment, probes) if probes else None, **options)

    def run(self, **options: Any) -> Probed:
        self.go(self.hooks(**options))
        return self

    def looks(self) -> Recorded:
        """What probes have seen, each look by itself."""
        found = {(s.name, s.step): s.values.tobytes() for s in self.signals if not s.name.startswith("updates.")}
        assert len(found) == sum(not s.name.startswith("updates.") for s in self.signals), "a look was taken twice"
        return found

    def updates(self) -> dict[str, NDArray]:
        """What was seen of every step, put together in order."""
        names = dict.fromkeys(s.name for s in self.signals if s.name.startswith("updates."))
        return {name: np.concatenate([s.values for s in self.signals if s.name == name]) for name in names}

    def seen(self) -> tuple[Recorded, dict[str, bytes]]:
        return self.looks(), {name: values.tobytes() for name, values in self.updates().items()}

    def steps_of(self, kind: str) -> list[int]:
        return sorted({signal.step for signal in self.signals if signal.kind == kind})


def experiment_of(backend: str, changes: Mapping[str, Any]) -> Experiment:
    values: dict[str, Any] = {
        "task": {"name": "adding", "T": 5},
        "cell": {"name": "rnn", "hidden": 3},
        "data": {"batch_size": 4},
        "eval": {"n": 20, "every": 10},
        "budget": {"steps": 30},
        "backend": backend,
    }
    return resolve(RunSpec.parse(values | changes, ""))


def prepare(backend: str, **changes: Any) -> Probed:
    experiment = experiment_of(backend, changes)
    spec, network = experiment.spec, experiment.network()
    history = any(probe.in_training for probe in experiment.probes)
    program = Program(experiment.task, network, experiment.optimizer, experiment.techniques, history=history)
    found = registry.backend(backend)
    found.set_threads(1)
    trainer = found.trainer(program, spec.device, spec.precision, spec.path)
    trainer.load(starting_state(experiment, network))
    return Probed(experiment, trainer)


def resumed(run: Probed, which: int, backend: str, **changes: Any) -> Probed:
    """Go on from a checkpoint; what was written after it is lost, as with a kill."""
    arrays, position = run.checkpoints[which]
    rows, signals = run.counts[which]
    fresh = prepare(backend, **changes)
    fresh.trainer.load(TrainState.from_arrays(arrays, position["step"]))
    fresh.progress = replace(Progress(), **position)
    fresh.rows, fresh.signals, fresh.saved = run.rows[:rows], run.signals[:signals], dict(run.saved)
    return fresh


@pytest.mark.parametrize(
    ("per_decade", "steps", "expected"),
    [(1, 30, [0, 1, 10, 30]), (2, 30, [0, 1, 3, 10, 30]), (1, 1, [0, 1]), (1, 100, [0, 1, 10, 100])],
)
def test_looks_fall_at_the_start_at_log_spaced_steps_and_at_the_end(
    per_decade: int, steps: int, expected: list[int]
) -> None:
    record = {"probes": ["points"], "probes_per_decade": per_decade, "per_decade": 7}
    run = prepare("torch", record=record, budget={"steps": steps}, eval={"n": 20, "every": 9}).run()
    assert expected == [0, *log_spaced(per_decade, steps)]
    assert run.steps_of("points.log_norm") == expected
    assert run.progress.probed_step == steps
    assert not run.updates()


def looker(experiment: Experiment) -> Callable[[TrainState], list[Signal]]:
    probing = Probing(experiment, experiment.probes)
    return lambda state: probing.look(state.params, state.buffers, state.step)


def test_a_look_sees_the_parameters_of_its_step(backend: str) -> None:
    run = prepare(backend, **PROBES).run()
    assert run.steps_of("adjoint.log_norm") == run.steps_of("points.log_norm") == STEPS
    looks = run.looks()
    for step in STEPS[1:]:
        short = prepare(backend, budget={"steps": step}).go()
        look = looker(run.experiment)
        state = short.trainer.state()
        wanted = {(s.name, s.step): np.asarray(s.values).tobytes() for s in look(state)}
        assert wanted == {key: value for key, value in looks.items() if key[1] == step}
    first = looker(run.experiment)(starting_state(run.experiment, run.experiment.network()))
    assert {(s.name, 0): np.asarray(s.values).tobytes() for s in first} == {k: v for k, v in looks.items() if not k[1]}


def test_signals_change_as_the_model_does(backend: str) -> None:
    """A probe that looked at the same parameters again and again would pass most other tests."""
    run = prepare(backend, **PROBES).run()
    of = [s.values for s in run.signals if s.name == "adjoint.log_norm/layers.0.forward.h"]
    assert len(of) == len(STEPS)
    assert all(np.abs(a - b).max() > 1e-6 for a, b in itertools.pairwise(of))


RICH: dict[str, Any] = {
    "eval": {"n": 20, "every": 7, "select": "best_valid"},
    "techniques": ["clip_norm", {"name": "clip_value", "threshold": 0.05}],
    "stop": {"metric": "mse", "threshold": 1e-9, "window": 3, "split": "valid"},
}


@pytest.mark.parametrize("probes", [["adjoint", "points"], ["updates"], ["adjoint", "noise", "updates"]])
def test_a_probed_run_trains_to_the_same_bits(probes: list[str], backend: str) -> None:
    plain = prepare(backend, **RICH).go()
    run = prepare(backend, **RICH, record={"probes": probes, "probes_per_decade": 20}).run()
    assert run.signals
    assert run.bits() == plain.bits()


def test_what_is_seen_does_not_depend_on_dispatches_and_checkpoints(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = prepare(backend, **RICH, **PROBES).run()
    assert len(expected.updates()["updates.grad_norm"]) == 30
    sizes = random.Random(0)
    for steps in (lambda: 1, lambda: sizes.randint(1, 9)):
        monkeypatch.setattr(loop._Pace, "steps", lambda self, steps=steps: steps())
        for every in (1, 4, 1000):
            run = prepare(backend, **RICH, **PROBES).run(checkpoint_steps=every)
            assert run.bits() == expected.bits()
            assert run.seen() == expected.seen()


def test_killed_after_any_checkpoint_the_same_is_seen(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop._Pace, "steps", lambda self: 2)
    expected = prepare(backend, **RICH, **PROBES).run(checkpoint_steps=3)
    assert len(expected.checkpoints) >= 8
    for which in range(len(expected.checkpoints)):
        run = resumed(expected, which, backend, **RICH, **PROBES).run(checkpoint_steps=5)
        assert run.bits() == expected.bits()
        assert run.seen() == expected.seen()


def test_interrupted_again_and_again_the_same_is_seen(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = prepare(backend, **RICH, **PROBES).run()
    sizes = random.Random(3)
    monkeypatch.setattr(loop._Pace, "steps", lambda self: sizes.randint(1, 4))
    run = prepare(backend, **RICH, **PROBES)
    for _ in range(60):
        calls = iter([False] * sizes.randint(1, 5))
        run.run(interrupted=lambda calls=calls: next(calls, True))
        if run.status != Status.INTERRUPTED:
            break
        run = resumed(run, -1, backend, **RICH, **PROBES)
    assert run.status == Status.COMPLETED
    assert run.bits() == expected.bits()
    assert run.seen() == expected.seen()


def test_probes_belong_to_the_experiment() -> None:
    """What is recorded is part of the digest; an experiment without probes has the one that it always had."""

    def digest(**record: Any) -> str:
        return experiment_of("torch", {"record": record} if record else {}).digest

    bare = digest()
    assert digest(probes=[]) == digest(per_decade=20, probes_per_decade=1) == bare
    asked = [
        digest(probes=["adjoint"]),
        digest(probes=["points"]),
        digest(probes=["adjoint", "points"]),
        digest(probes=[{"name": "adjoint", "sequences": 3}]),
        digest(probes=["adjoint"], probes_per_decade=2),
    ]
    assert len({bare, *asked}) == len(asked) + 1
    assert digest(probes=[{"name": "adjoint", "sequences": 16}]) == asked[0]  # a default that is spelled out


def hand_computed(backend: str, changes: Mapping[str, Any]) -> list[dict[str, NDArray]]:
    """Return every step's gradient before any technique, each from a step laid open."""
    run = prepare(backend, **changes)
    source, rate = run.experiment.source(), run.experiment.optimizer.lr
    gradients = []
    for step in range(30):
        batch = source.batch("train", step).cast("float64")
        gradients.append(run.trainer.inspect(batch, rate).gradients)
        run.trainer.train([batch], [rate])
    return gradients


def norm_of(gradient: Mapping[str, NDArray]) -> float:
    return math.sqrt(sum(float((array**2).sum()) for array in gradient.values()))


@pytest.mark.parametrize("technique", ["clip_norm", "clip_value"])
def test_every_updates_norm_and_whether_it_was_clipped(technique: str, backend: str) -> None:
    changes: dict[str, Any] = {"precision": "float64", "path": "reference"}
    threshold = {"clip_norm": 5.0, "clip_value": 3.5}[technique]
    clipped = changes | {"techniques": [{"name": technique, "threshold": threshold}]}
    gradients = hand_computed(backend, clipped)
    norms = [norm_of(gradient) for gradient in gradients]
    largest = [max(float(np.abs(array).max()) for array in gradient.values()) for gradient in gradients]
    run = prepare(backend, **clipped, record={"probes": ["updates"]}).run()
    found = run.updates()
    assert set(found) == {"updates.grad_norm", f"updates.acted/{technique}"}
    # the same sums of squares in another order
    np.testing.assert_allclose(found["updates.grad_norm"], norms, rtol=1e-12)
    wanted = np.array(norms if technique == "clip_norm" else largest) > threshold
    assert 5 < wanted.sum() < 25, "nothing to tell apart"
    np.testing.assert_array_equal(found[f"updates.acted/{technique}"], wanted)


def test_each_technique_is_judged_by_what_it_was_given(backend: str) -> None:
    """What the first has clipped leaves the second nothing to do."""
    techniques = [{"name": "clip_norm", "threshold": 1e-3}, {"name": "clip_value", "threshold": 1e-3}]
    run = prepare(backend, techniques=techniques, record={"probes": ["updates"]}).run()
    found = run.updates()
    assert found["updates.acted/clip_norm"].tolist() == [1.0] * 30
    assert found["updates.acted/clip_value"].tolist() == [0.0] * 30
    assert (found["updates.grad_norm"] > 1e-3).all()  # before either


def test_without_techniques_only_the_norm_is_followed(backend: str) -> None:
    run = prepare(backend, record={"probes": ["updates"]}).run()
    assert set(run.updates()) == {"updates.grad_norm"}
    norms = run.updates()["updates.grad_norm"]
    for step, value in run.values("train", "grad_norm").items():
        assert norms[step - 1] == value


DIVERGING: dict[str, Any] = {
    "cell": {"name": "rnn", "hidden": 3, "activation": "relu"},
    "eval": {"n": 20, "every": 500},
    "budget": {"steps": 500},
}
ALL = ["adjoint", "points", "propagator", "spectrum", "lags", "activity", "noise", "use", "updates"]


@pytest.mark.parametrize(("lr", "bad"), [(1e6, 2), (20.0, 10)])
def test_after_a_divergence_nothing_is_looked_at(lr: float, bad: int, backend: str) -> None:
    few = ["adjoint", "points", "updates"]  # all of them would take JAX some while to compile
    record = {"probes": ALL if backend == "torch" else few, "probes_per_decade": 20}
    run = prepare(backend, **DIVERGING, optimizer={"name": "sgd", "lr": lr}, record=record).run()
    assert (run.status, run.progress.first_bad_step) == (Status.DIVERGED, bad)
    looks = run.steps_of("adjoint.log_norm")
    assert looks == [step for step in (0, *log_spaced(20, bad - 1)) if step < bad]
    assert len(run.updates()["updates.grad_norm"]) == run.progress.step
    assert set(run.saved) == {"final"}


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_parameters_that_are_no_finite_numbers_are_not_looked_at(value: float) -> None:
    """A gradient may overflow at a step whose loss was finite; what it leaves behind is not worth a look."""
    run = prepare("torch", record={"probes": ALL})
    state = run.trainer.state()
    state.params["layers.0.forward.weight_hh"][0, 0] = value
    run.trainer.load(state)
    run.run()
    assert (run.status, run.progress.first_bad_step) == (Status.DIVERGED, 1)
    assert not run.looks()
    assert run.progress.probed_step is None


def test_the_time_of_probes_is_told_apart(backend: str) -> None:
    run, plain = prepare(backend, **PROBES).run(), prepare(backend).run()
    progress = run.progress
    assert plain.progress.probe_seconds == 0.0
    assert progress.probe_seconds > 0.0
    parts = progress.probe_seconds + progress.eval_seconds + progress.compile_seconds + progress.data_seconds
    assert parts <= progress.seconds


class Slow:
    """A trainer that takes its time by a clock of the test's own."""

    def __init__(self, clock: list[float], trainer: Any) -> None:
        self._clock, self._trainer = clock, trainer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)

    def train(self, batches: Any, rates: Any) -> Any:
        self._clock[0] += 0.5 * len(batches)
        return self._trainer.train(batches, rates)


class Slower:
    """A prober that takes still more, some of it to compile."""

    def __init__(self, clock: list[float]) -> None:
        self._clock, self.compile_seconds = clock, 0.0

    def __call__(self, state: TrainState, interrupted: Any, dropped: Any) -> list[Signal]:
        self._clock[0] += 100.0
        self.compile_seconds += 30.0
        return [Signal("looked.at", (), "", state.step, np.asarray(1.0))]


def test_a_budget_of_seconds_leaves_out_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(loop.time, "perf_counter", lambda: clock[0])
    record = {"probes": ["points"], "probes_per_decade": 2}
    run = prepare("torch", budget={"seconds": 9.9}, eval={"n": 20, "every": 7}, record=record)
    trainer: Any = Slow(clock, run.trainer)
    status = train(run.experiment, trainer, run.experiment.source(), run, run.progress, Hooks(probe=Slower(clock)))
    assert (status, run.progress.step) == (Status.TIME_LIMIT, 20)
    assert run.steps_of("looked.at") == [0, 1, 3, 10, 20]
    assert run.progress.probe_seconds == pytest.approx(5 * 70.0)
    assert run.progress.compile_seconds == pytest.approx(5 * 30.0)
    assert run.progress.seconds == pytest.approx(5 * 100.0 + 10.0)


STOPPING: dict[str, Any] = {
    "eval": {"n": 20, "every": 1000},
    "budget": {"steps": 100},
    "stop": {"metric": "loss", "threshold": 1e3, "window": 40, "split": "train"},
}


@pytest.mark.parametrize("per_decade", [3, 7, 20])
@pytest.mark.parametrize(
    ("changes", "status", "steps"),
    [
        (STOPPING, Status.SOLVED, 100),
        (DIVERGING | {"optimizer": {"name": "sgd", "lr": 1e6}}, Status.DIVERGED, 10),
    ],
    ids=["stop", "divergence"],
)
def test_where_probes_look_does_not_decide_where_a_run_ends(
    changes: dict[str, Any], status: Status, steps: int, per_decade: int
) -> None:
    """A stop on training batches and a divergence take effect where something is recorded or scored, as without."""
    plain = prepare("torch", **changes, record={"per_decade": 1}).go()
    record = {"per_decade": 1, "probes": ["points"], "probes_per_decade": per_decade}
    run = prepare("torch", **changes, record=record).run()
    assert (plain.status, plain.progress.step) == (status, steps)
    assert set(log_spaced(per_decade, 100)) - {1, 10, 100}, "the schedules are nested"
    assert run.bits() == plain.bits()
    assert (run.status, run.progress.step) == (status, steps)


def failing(
    monkeypatch: pytest.MonkeyPatch, error: Exception, at: int, name: str = "adjoint", after: int = 1
) -> list[int]:
    """Make a probe fail from a step on, after it has given some signals; return the steps that it was asked at."""
    found = registry.load("probes", name, "probe")
    measure, asked = found.measure, list[int]()

    def fail(self: Any, look: Any) -> Any:
        asked.append(look.step)
        if look.step < at:
            yield from measure(self, look)
        else:
            yield from itertools.islice(measure(self, look), after)
            raise error

    monkeypatch.setattr(found, "measure", fail)
    return asked


def test_a_failing_probe_is_dropped_and_the_run_goes_on(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prepare(backend, **RICH).go()
    whole = prepare(backend, **RICH, **PROBES).run()
    asked = failing(monkeypatch, ValueError("no such\nnumber"), at=3)
    run = prepare(backend, **RICH, **PROBES).run(checkpoint_steps=4)
    assert run.bits() == plain.bits()
    assert asked == [0, 1, 3]
    note = "probe adjoint failed at step 3 and was dropped: ValueError: no such number"
    assert run.progress.dropped == {"adjoint": note}
    left = {key: value for key, value in whole.looks().items() if key[1] < 3 or key[0].startswith("points.")}
    assert run.looks() == left
    assert run.updates().keys() == whole.updates().keys()
    asked.clear()
    again = resumed(run, -1, backend, **RICH, **PROBES).run()
    assert (again.bits(), again.seen()) == (run.bits(), run.seen())
    assert (asked, again.progress.dropped) == ([], {"adjoint": note})


def test_a_probe_that_takes_too_much_memory_says_what_would_take_less(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, RuntimeError("CUDA out of memory. Tried to allocate"), at=0)
    run = prepare("torch", **PROBES).run()
    assert run.status == Status.COMPLETED
    (note,) = run.progress.dropped.values()
    assert note.startswith("probe adjoint failed at step 0 and was dropped: RuntimeError: CUDA out of memory")
    assert note.endswith("fewer `sequences` of probe adjoint need less memory")


def test_a_probe_that_cannot_serve_refuses_the_run_at_its_start_only(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, BadInput("probe adjoint: not for this task"), at=10)
    assert list(prepare("torch", **PROBES).run().progress.dropped) == ["adjoint"]
    failing(monkeypatch, BadInput("probe adjoint: not for this task"), at=0)
    with pytest.raises(BadInput, match="not for this task"):
        prepare("torch", **PROBES).run()


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("no signal", "TypeError: it returned str where a Signal belongs"),
        (Signal("a.b", ("time",), "", 0, np.asarray(1.0)), "ValueError: its signal 'a.b' has 0 axes and 1 names"),
        (Signal("a.b", (), "", 0, np.asarray(1j)), "TypeError: its signal 'a.b' is complex128, no real numbers"),
    ],
)
def test_what_is_no_signal_is_a_failure_of_its_probe(made: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.load("probes", "points", "probe")
    monkeypatch.setattr(found, "measure", lambda self, look: iter([made]))
    run = prepare("torch", record={"probes": ["points"]}, budget={"steps": 2}).run()
    assert run.status == Status.COMPLETED
    assert said in run.progress.dropped["points"]
    assert not run.signals


@pytest.mark.parametrize("at", [0, 1, 10, 30])
def test_a_look_that_is_broken_off_is_taken_again(at: int, backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal does not wait for the probes that are still to come."""
    expected = prepare(backend, **RICH, **PROBES).run()
    struck: list[int] = []
    with monkeypatch.context() as patch:
        asked = failing(patch, ValueError("unreached"), at=10**9)
        found = registry.load("probes", "points", "probe")
        patch.setattr(found, "measure", lambda self, look: struck.append(look.step) or iter(()))
        run = prepare(backend, **RICH, **PROBES).run(interrupted=lambda: at in asked)
        assert (run.status, run.progress.step) == (Status.INTERRUPTED, at)
        assert at in asked
        assert at not in struck, "the signal waited for every probe"
        assert not any(s.step == at for s in run.signals if not s.name.startswith("updates."))
    whole = [s for s in expected.signals if s.step < at and s.kind.startswith("points.")]
    again = resumed(run, -1, backend, **RICH, **PROBES)
    again.signals += whole  # what the silenced probe would have given before
    again.run()
    assert again.bits() == expected.bits()
    assert again.seen() == expected.seen()
