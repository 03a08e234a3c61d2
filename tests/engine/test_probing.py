"""Probes around a run: recorded with it, measured again of what it left, and of a user's whole model."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench import train as loop
from rnnbench.arrays import NDArray
from rnnbench.engine import Options, Planned, Watcher, execute
from rnnbench.engine.probing import DEFAULT, Probing, probe_run
from rnnbench.errors import BadInput, Interrupted
from rnnbench.experiment import make_probes
from rnnbench.record import Status
from rnnbench.signals import Signal
from rnnbench.spec import Ref
from rnnbench.store import RunFolder, Store
from rnnbench.train import Event

ONE = Options(threads=1, checkpoint_steps=7)
Plan = Callable[..., Planned]
FolderOf = Callable[[Planned], RunFolder]
Bits = Callable[[RunFolder], Any]

AT_REST = ("adjoint", "points", "propagator", "spectrum", "lags", "activity", "noise", "use")
FEW = ("adjoint", "points")


@pytest.fixture(autouse=True)
def _short_dispatches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop._Pace, "steps", lambda self: 3)


def refs(*names: str) -> tuple[Ref, ...]:
    return tuple(Ref(name=name) for name in names)


def at(signals: list[Signal], step: int) -> dict[str, NDArray]:
    return {s.name: np.asarray(s.values) for s in signals if s.step == step and not s.name.startswith("updates.")}


def equal(found: dict[str, NDArray], wanted: dict[str, NDArray]) -> None:
    assert set(found) == set(wanted)
    for name, values in wanted.items():
        assert found[name].shape == values.shape, name
        np.testing.assert_array_equal(found[name], values, err_msg=name)


@pytest.mark.parametrize(
    ("backend", "probes"),
    [("torch", AT_REST), ("jax", FEW), pytest.param("jax", AT_REST, marks=pytest.mark.slow)],
    ids=["torch", "jax", "jax-all"],
)
def test_measured_afterwards_the_same_as_recorded_on_the_way(
    backend: str, probes: tuple[str, ...], planned: Plan, store: Store, folder_of: FolderOf
) -> None:
    record = {"probes": [*probes, "updates"]}
    cell = {"name": "rnn" if probes == FEW else "lstm", "hidden": 3}
    run = planned(backend=backend, cell=cell, record=record, budget={"steps": 10})
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None, outcome.error
    assert outcome.record.status == Status.COMPLETED
    recorded = folder_of(run).signals()
    assert sorted({s.step for s in recorded if s.kind == "points.at"}) == [0, 1, 10]
    params = folder_of(run).parameters("final")
    assert params is not None
    measured = probe_run(run.experiment, params, 10, refs(*probes), threads=1)
    assert {s.step for s in measured} == {10}
    assert {s.kind.partition(".")[0] for s in measured} == set(probes)
    equal(at(measured, 10), at(recorded, 10))
    start = probe_run(run.experiment, run.experiment.network().initial(0), 0, refs("points"), threads=1)
    equal(at(start, 0), {name: v for name, v in at(recorded, 0).items() if name.startswith("points.")})
    assert any(not np.array_equal(v, at(recorded, 0)[name], equal_nan=True) for name, v in at(measured, 10).items())


def test_without_being_told_the_usual_probes_are_run(planned: Plan) -> None:
    run = planned(cell={"name": "gru", "hidden": 3})
    params = run.experiment.network().initial(0)
    measured = probe_run(run.experiment, params, 0, threads=1)
    assert {s.kind.partition(".")[0] for s in measured} == {ref.name for ref in DEFAULT}
    assert len({s.name for s in measured}) == len(measured)


def test_a_probe_that_follows_training_has_nothing_to_say_afterwards(planned: Plan) -> None:
    run = planned()
    assert probe_run(run.experiment, run.experiment.network().initial(0), 0, refs("updates"), threads=1) == []


def test_every_look_is_at_the_same_sequences_of_the_scored_set(planned: Plan) -> None:
    """So that steps, seeds and arms can be compared; another evaluation set is another look."""
    by_test = {"eval": {"n": 20, "every": 10, "split": "test"}}
    looks = {}
    for name, changes in {"valid": {}, "seed": {"seed": 5}, "test": by_test}.items():
        experiment = planned(**changes).experiment
        params = planned().experiment.network().initial(0)
        looks[name] = at(probe_run(experiment, params, 0, refs("points"), threads=1), 0)
    equal(looks["seed"], looks["valid"])
    of = "points.log_norm/layers.0.forward.h"
    assert looks["valid"][of].shape == (5, 16)
    assert not np.array_equal(looks["test"][of], looks["valid"][of])


@pytest.mark.parametrize(
    ("probes", "device", "said"),
    [
        (refs("adjiont"), None, "did you mean adjoint?"),
        ((Ref(name="adjoint", params={"sequences": 0}),), None, "probe.sequences: 0 will not do"),
        ((Ref(name="adjoint", params={"sequence": 3}),), None, "unknown key; did you mean sequences"),
        ((Ref(name="adjoint", params={"loss_step": 3}),), None, "task adding has its loss at the end only"),
        (refs("points"), "cuda:7", "device: torch cannot use cuda:7"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(
    probes: tuple[Ref, ...], device: str | None, said: str, planned: Plan
) -> None:
    run = planned()
    with pytest.raises(BadInput) as caught:
        probe_run(run.experiment, run.experiment.network().initial(0), 0, probes, device=device, threads=1)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_a_killed_run_has_the_signals_of_one_that_was_not(
    backend: str, planned: Plan, store: Store, tmp_path: Path, bits: Bits, folder_of: FolderOf
) -> None:
    run = planned(backend=backend, record={"probes": ["adjoint", "updates"], "probes_per_decade": 3})
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    expected = whole.folder(run.suite, run.experiment.digest)
    for goal in (1, 11, 23):
        sent: list[int] = []

        def strike(planned: Planned, event: Event, goal: int = goal, sent: list[int] = sent) -> None:
            if event.step >= goal and not sent:
                sent.append(event.step)
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Interrupted):
            execute([run], store, ONE, Watcher(progress=strike))
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert len(outcome.record.resumed) == 3
    found = folder_of(run)
    assert bits(found) == bits(expected)
    steps = sorted({s.step for s in expected.signals() if s.kind == "adjoint.log_norm"})
    assert steps == [0, 1, 2, 5, 10, 22, 30]
    for step in steps:
        equal(at(found.signals(), step), at(expected.signals(), step))
    for_each = [s.name for s in expected.signals()]
    assert len(for_each) == len({(s.name, s.step) for s in expected.signals()})
    for one in (found, expected):
        pieces = [s for s in one.signals() if s.name == "updates.grad_norm"]
        assert [s.step for s in pieces] == sorted({s.step for s in pieces})
        assert sum(len(s.values) for s in pieces) == 30
    joined = [
        np.concatenate([s.values for s in one.signals() if s.name == "updates.grad_norm"]) for one in (found, expected)
    ]
    np.testing.assert_array_equal(*joined)


def test_the_record_tells_the_time_of_probes_apart(planned: Plan, store: Store) -> None:
    probed, plain = (planned(record={"probes": list(probes)}, budget={"steps": 5}) for probes in (FEW, ()))
    first, second = execute([probed, plain], store, ONE)
    assert first.record is not None
    assert second.record is not None
    assert first.record.timings.probe_s > 0.0
    assert second.record.timings.probe_s == 0.0
    times = first.record.timings
    assert times.train_s + times.compile_s + times.eval_s + times.probe_s <= times.total_s + 1e-9


def test_the_record_says_which_probe_failed(planned: Plan, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Any, look: Any) -> Any:
        raise ValueError("no such number")

    monkeypatch.setattr("rnnbench.probes.points.Points.measure", fail)
    (outcome,) = execute([planned(record={"probes": list(FEW)}, budget={"steps": 2})], store, ONE)
    assert outcome.record is not None
    assert outcome.record.status == Status.COMPLETED
    assert outcome.record.notes == ("probe points failed at step 0 and was dropped: ValueError: no such number",)


MODELS = '''
import torch
from torch import nn

class Plain(nn.Module):
    """An LSTM with a linear readout of its last step."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.lstm = nn.LSTM(n_in, 4)
        self.readout = nn.Linear(4, n_out)

    def forward(self, x):
        return self.readout(self.lstm(x)[0][-1])

class Noisy(Plain):
    """What draws and what counts: dropout, and running statistics that training changes."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)

    def forward(self, x):
        return self.readout(self.norm(self.drop(self.lstm(x)[0][-1])))
'''

JAX_MODELS = """
import jax
import jax.numpy as jnp

def plain(n_in, n_out):
    def init(key):
        a, b, c = jax.random.split(key, 3)
        return {
            "in": jax.random.normal(a, (n_in, 4)) / 2,
            "cell": jax.random.normal(b, (4, 4)) / 4,
            "out": jax.random.normal(c, (4, n_out)),
        }

    def apply(params, x):
        def step(h, x):
            h = jnp.tanh(x @ params["in"] + h @ params["cell"])
            return h, h @ params["out"]
        return jax.lax.scan(step, jnp.zeros((x.shape[1], 4), x.dtype), x)[1]
    return init, apply
"""


@pytest.fixture
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the users' modules where they are looked for: in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probed_torch_models.py").write_text(MODELS)
    (tmp_path / "probed_jax_models.py").write_text(JAX_MODELS)


WHOLE = ["probed_torch_models:Plain", "probed_torch_models:Noisy", "probed_jax_models:plain"]


@pytest.mark.usefixtures("_models")
@pytest.mark.parametrize("model", WHOLE)
def test_of_a_whole_model_only_its_inputs_gradient_is_recorded(
    model: str, planned: Plan, store: Store, bits: Bits, folder_of: FolderOf, tmp_path: Path
) -> None:
    """And the run is the one that it would have been without."""
    backend = "jax" if "jax" in model else "torch"
    record = {"probes": [*(AT_REST if backend == "torch" else FEW), "updates"]}
    run = planned(model=model, backend=backend, record=record)
    plain = planned(model=model, backend=backend)
    first, second = execute([run, plain], store, ONE)
    assert first.error is None
    assert second.error is None
    signals = folder_of(run).signals()
    kinds = {s.kind for s in signals if s.kind.startswith(("adjoint", "points", "activity", "spectrum", "propagator"))}
    assert kinds == {"adjoint.loss_step", "adjoint.input_log_norm"}
    for s in signals:
        if s.kind == "adjoint.input_log_norm":
            assert s.values.shape == (5, 16)
            assert np.isfinite(s.values).any(axis=0).all() or model.endswith("Noisy")  # dropout may leave nothing
    assert bits(folder_of(run))[1:] == bits(folder_of(plain))[1:]


@pytest.mark.usefixtures("_models")
def test_the_inputs_gradient_of_a_whole_model_is_autograds(planned: Plan) -> None:
    import torch

    run = planned(model="probed_torch_models:Plain")
    probing = Probing(run.experiment, make_probes(refs("adjoint"), "probe"))
    found = at(probing.look(probing.model.initial(0), {}, 0), 0)
    batch = run.experiment.source().evaluation("valid").take(slice(0, 16)).cast("float32")
    inputs = torch.tensor(batch.inputs, requires_grad=True)
    loss = ((probing.model.module(inputs) - torch.tensor(batch.targets)) ** 2).mean()
    (gradient,) = torch.autograd.grad(loss, inputs)
    wanted = np.log(np.linalg.norm(gradient.double().numpy(), axis=-1))
    np.testing.assert_allclose(found["adjoint.input_log_norm"], wanted, rtol=0, atol=1e-5)  # in float32
    assert found["adjoint.loss_step"] == 4


@pytest.mark.usefixtures("_models")
def test_of_a_model_that_draws_the_same_is_measured_afterwards(
    planned: Plan, store: Store, folder_of: FolderOf
) -> None:
    run = planned(model="probed_torch_models:Noisy", record={"probes": ["adjoint", "noise"]}, budget={"steps": 4})
    execute([run], store, ONE)
    params = folder_of(run).parameters("final")
    assert params is not None
    measured = probe_run(run.experiment, params, 4, refs("noise", "adjoint"), threads=1)
    equal(at(measured, 4), at(folder_of(run).signals(), 4))


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_the_order_of_parameters_is_no_part_of_what_is_measured(backend: str, planned: Plan) -> None:
    """A checkpoint holds them by name, so that a resumed run has them in another order."""
    run = planned(backend=backend, cell={"name": "lstm", "hidden": 3})
    params = run.experiment.network().initial(0)
    turned = dict(reversed(params.items()))
    probes = refs(*(AT_REST if backend == "torch" else ("noise",)))
    one, other = (at(probe_run(run.experiment, given, 0, probes, threads=1), 0) for given in (params, turned))
    equal(other, one)


@pytest.mark.usefixtures("_models")
def test_a_model_that_draws_is_looked_at_the_same_whenever(
    planned: Plan, store: Store, folder_of: FolderOf, tmp_path: Path
) -> None:
    """Dropout takes its numbers from the step, not from what was drawn before: an interrupted run shows the same."""
    import torch

    run = planned(model="probed_torch_models:Noisy", record={"probes": ["adjoint", "noise"]})
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    sent: list[int] = []

    def strike(planned: Planned, event: Event) -> None:
        if event.step >= 14 and not sent:
            sent.append(event.step)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted):
        execute([run], store, ONE, Watcher(progress=strike))
    torch.manual_seed(12345)
    execute([run], store, ONE)
    expected = whole.folder(run.suite, run.experiment.digest).signals()
    for step in (0, 1, 10, 30):
        equal(at(folder_of(run).signals(), step), at(expected, step))
