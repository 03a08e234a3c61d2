"""A user's whole model: trained as its framework would, kept whole in checkpoints, or refused in one line."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rnnbench import train as loop
from rnnbench.cli import root
from rnnbench.engine import Options, Planned, Watcher, execute
from rnnbench.errors import BadInput, Interrupted
from rnnbench.store import RunFolder, Store
from rnnbench.train import Event

ONE = Options(threads=1)
Plan = Callable[..., Planned]
Bits = Callable[[RunFolder], Any]
FolderOf = Callable[[Planned], RunFolder]

TORCH = '''
import torch
from torch import nn

class Plain(nn.Module):
    """An LSTM with a linear readout, [time batch n_out]."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.lstm = nn.LSTM(n_in, 4)
        self.readout = nn.Linear(4, n_out)

    def forward(self, x):
        return self.readout(self.lstm(x)[0])

class Noisy(Plain):
    """Dropout, batch normalization, a buffer that is assigned anew, a parameter that is not trained, [batch n_out]."""

    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.drop = nn.Dropout(0.5)
        self.norm = nn.BatchNorm1d(4)
        self.fixed = nn.Parameter(torch.full((4,), 2.0), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        if self.training:
            self.calls = self.calls + 1
        return self.readout(self.norm(self.drop(self.lstm(x)[0][-1] * self.fixed)))

class Wide(Plain):
    def forward(self, x):
        return self.lstm(x)[0]

class Pair(Plain):
    def forward(self, x):
        return self.lstm(x)

class Bytes(Plain):
    def forward(self, x):
        return super().forward(x) > 0

class Empty(nn.Module):
    def forward(self, x):
        return x

class Half(Plain):
    def __init__(self, n_in, n_out):
        super().__init__(n_in, n_out)
        self.to(torch.bfloat16)

class Lazy(nn.Module):
    def __init__(self, n_in, n_out):
        super().__init__()
        self.readout = nn.LazyLinear(n_out)

def empty(n_in, n_out):
    return Empty()

def raising(n_in, n_out):
    raise RuntimeError("no such file")

def number(n_in, n_out):
    return 3

def nothing():
    return None

constant = 3
'''

JAX = """
import jax
import jax.numpy as jnp

def sizes(n_in, n_out):
    def init(key):
        a, b, c = jax.random.split(key, 3)
        return {
            "in": jax.random.normal(a, (n_in, 4)) / 2,
            "cell": [jax.random.normal(b, (4, 4)) / 4, jnp.zeros(4)],
            "out": jax.random.normal(c, (4, n_out)),
        }
    return init

def plain(n_in, n_out):
    def apply(params, x):
        recurrent, bias = params["cell"]
        def step(h, x):
            h = jnp.tanh(x @ params["in"] + h @ recurrent + bias)
            return h, h @ params["out"]
        return jax.lax.scan(step, jnp.zeros((x.shape[1], 4), x.dtype), x)[1]
    return sizes(n_in, n_out), apply

def last(n_in, n_out):
    init, apply = plain(n_in, n_out)
    return init, lambda params, x: apply(params, x)[-1]

def wide(n_in, n_out):
    init, apply = plain(n_in, n_out)
    return init, lambda params, x: jnp.concatenate([apply(params, x)] * 2, axis=-1)

def pair(n_in, n_out):
    init, apply = plain(n_in, n_out)
    return init, lambda params, x: (apply(params, x), 0)

def alone(n_in, n_out):
    return sizes(n_in, n_out)

def whole(n_in, n_out):
    return (lambda key: {"n": jnp.arange(3)}), (lambda params, x: x)

def bare(n_in, n_out):
    return (lambda key: {}), (lambda params, x: x)

def lost(n_in, n_out):
    return (lambda key: key["a"]), (lambda params, x: x)

def raising(n_in, n_out):
    raise RuntimeError("no such file")

def twins(n_in, n_out):
    init = lambda key: {"a.b": jnp.zeros((n_in, n_out)), "a": {"b": jnp.ones(n_out)}}
    return init, lambda params, x: x @ params["a.b"] + params["a"]["b"]
"""


@pytest.fixture(autouse=True)
def _models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the users' modules where they are looked for: in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "torch_models.py").write_text(TORCH)
    (tmp_path / "jax_models.py").write_text(JAX)
    monkeypatch.setattr(loop._Pace, "steps", lambda self: 3)


def naive(module: Any, run: Planned, seeded: Callable[[int], None]) -> list[float]:
    """Train a module the way a torch tutorial does, on the run's batches, and return the losses."""
    import torch

    torch.set_num_threads(1)
    source, spec = run.experiment.source(), run.experiment.spec
    optimizer = torch.optim.Adam(module.parameters(), lr=run.experiment.optimizer.lr)
    losses = []
    module.train()
    for step in range(spec.budget.steps or 0):
        batch = source.batch("train", step).cast("float32")
        seeded(step)
        outputs = module(torch.from_numpy(batch.inputs))
        outputs = outputs[-1] if outputs.ndim == 3 else outputs
        loss = ((outputs - torch.from_numpy(batch.targets)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("name", ["Plain", "Noisy"])
def test_a_torch_model_is_trained_as_torch_would(name: str, planned: Plan, store: Store, folder_of: FolderOf) -> None:
    import torch

    from rnnbench.backends.torch.model import TorchModel

    run = planned(model=f"torch_models:{name}")
    (outcome,) = execute([run], store, ONE)
    assert outcome.ok
    adopted = TorchModel(f"torch_models:{name}", run.experiment.task, 0)
    module = adopted.module
    losses = naive(module, run, adopted.before_step)
    for row in folder_of(run).metrics().to_pylist():
        if row["split"] == "train" and row["metric"] == "loss":
            # float32: weighted sums in another order, over 30 steps of training
            assert row["value"] == pytest.approx(losses[row["step"] - 1], rel=1e-5)
    final = folder_of(run).parameters("final")
    assert final is not None
    assert set(final) == {key for key, value in module.named_parameters() if value.requires_grad}
    for key, value in module.named_parameters():
        if value.requires_grad:
            assert not torch.equal(value, torch.from_numpy(adopted.initial(0)[key]))
            np.testing.assert_allclose(final[key], value.detach().numpy(), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("model", ["torch_models:Plain", "torch_models:Noisy", "jax_models:plain", "jax_models:last"])
def test_a_model_resumes_to_the_bit(
    model: str, planned: Plan, store: Store, tmp_path: Path, bits: Bits, folder_of: FolderOf
) -> None:
    run = planned(model=model, backend=model.partition("_")[0])
    whole = Store(tmp_path / "whole")
    execute([run], whole, ONE)
    for goal in (2, 14, 23):
        sent: list[int] = []

        def strike(planned: Planned, event: Event, goal: int = goal, sent: list[int] = sent) -> None:
            if event.step >= goal and not sent:
                sent.append(event.step)
                signal.raise_signal(signal.SIGTERM)

        with pytest.raises(Interrupted):
            execute([run], store, ONE, Watcher(progress=strike))
    checkpoint = folder_of(run).checkpoint()
    assert checkpoint is not None
    buffers = {key: value for key, value in checkpoint.arrays.items() if key.startswith("buffers/")}
    if model.endswith("Noisy"):
        assert int(buffers["buffers/calls"]) == int(buffers["buffers/norm.num_batches_tracked"]) == checkpoint.step
        assert np.abs(buffers["buffers/norm.running_mean"]).max() > 0
        np.testing.assert_array_equal(buffers["buffers/fixed"], np.full(4, 2.0, np.float32))
    else:
        assert not buffers
    (outcome,) = execute([run], store, ONE)
    assert outcome.record is not None
    assert len(outcome.record.resumed) == 3
    assert bits(folder_of(run)) == bits(whole.folder(run.suite, run.experiment.digest))


def test_both_ways_to_give_outputs_are_the_same(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    values = []
    for name in ("plain", "last"):
        run = planned(model=f"jax_models:{name}", backend="jax")
        execute([run], store, ONE)
        rows = folder_of(run).metrics().to_pylist()
        values.append([row["value"] for row in rows if (row["split"], row["metric"]) == ("valid", "mse")])
    np.testing.assert_allclose(values[0], values[1], rtol=1e-5)  # float32, the same sums in another order


def test_seeds_start_apart_and_share_what_is_compiled(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    plan = [planned(model="jax_models:plain", backend="jax", seed=seed) for seed in (5, 6)]
    first, second = execute(plan, store, ONE)
    assert first.record is not None
    assert second.record is not None
    assert second.record.timings.compile_s == 0.0
    assert first.record.summary.metrics != second.record.summary.metrics


def test_leaves_of_one_path_are_kept_apart(planned: Plan, store: Store, folder_of: FolderOf) -> None:
    run = planned(model="jax_models:twins", backend="jax", task={"name": "copy", "delay": 3})
    (outcome,) = execute([run], store, ONE)
    assert outcome.ok, outcome.error
    final = folder_of(run).parameters("final")
    assert final is not None
    assert sorted(array.ndim for array in final.values()) == [1, 2]


def test_a_model_is_unmatched_wherever_it_shows(tmp_path: Path) -> None:
    options = ["--task", "adding", "--set", "task.T=5", "--set", "eval.n=20", "--steps", "5", "--threads", "1"]
    command = ["run", *options, "--model", "torch_models:Plain"]
    shown = CliRunner().invoke(root, command)
    assert shown.exit_code == 0, shown.stderr
    assert "  torch_models:Plain (unmatched)" in shown.stdout
    assert "unmatched: a user's own model" in shown.stdout
    told = json.loads(CliRunner().invoke(root, [*command, "--json"]).stdout)
    assert told["runs"][0]["record"]["matched"] is False
    assert told["summary"][0]["matched"] is False
    listed = CliRunner().invoke(root, ["run", *options, "--cell", "rnn", "--json"])
    assert json.loads(listed.stdout)["summary"][0]["matched"] is True


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("torch_models:Wide", "its output has shape [5, 20, 4]; the task reads [time 20 1] or [20 1]"),
        ("torch_models:Pair", "its output is 'tuple', not one tensor of floats"),
        ("torch_models:Bytes", "its output is 'torch.bool', not one tensor of floats"),
        ("torch_models:Half", "'lstm.weight_ih_l0' cannot be kept; TypeError: Got unsupported ScalarType BFloat16"),
        ("torch_models:Lazy", "'readout.weight' cannot be kept"),
        ("torch_models:empty", "torch_models:empty has no parameters to train"),
        ("torch_models:raising", "torch_models:raising(2, 1) failed; RuntimeError: no such file"),
        ("torch_models:nothing", "torch_models:nothing(2, 1) failed; TypeError"),
        ("torch_models:number", "torch_models:number returned 'int', not a torch.nn.Module"),
        ("jax_models:wide", "its output has shape [5, 20, 2]; the task reads [time 20 1] or [20 1]"),
        ("jax_models:pair", "its output is 'tuple', not one array of floats"),
        ("jax_models:alone", "jax_models:alone returned 'function', not the functions (init, apply)"),
        ("jax_models:whole", "init of jax_models:whole gives 'n', which is no float"),
        ("jax_models:bare", "init of jax_models:bare gives no parameters"),
        ("jax_models:lost", "init of jax_models:lost failed; TypeError"),
        ("jax_models:raising", "jax_models:raising(2, 1) failed; RuntimeError: no such file"),
    ],
)
def test_a_model_that_will_not_do_is_refused_in_one_line(model: str, said: str, planned: Plan, store: Store) -> None:
    (outcome,) = execute([planned(model=model, backend=model.partition("_")[0])], store, ONE)
    assert isinstance(outcome.error, BadInput), outcome.error
    assert str(outcome.error).startswith("model: ")
    assert said in str(outcome.error)
    assert "\n" not in str(outcome.error)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("torch_models:Plian", "unknown name 'Plian'; did you mean Plain?"),
        ("torch_models:constant", "torch_models:constant is 'int', not a function of (n_in, n_out)"),
        ("no_such_models:build", "no module named 'no_such_models'"),
    ],
)
def test_a_model_that_is_not_there_is_refused_when_planned(model: str, said: str, planned: Plan) -> None:
    with pytest.raises(BadInput) as caught:
        planned(model=model)
    assert said in str(caught.value)


@pytest.mark.parametrize("changes", [{"techniques": ["clip_norm"]}, {"network": {"layers": 2}}, {"cell": "rnn"}])
def test_what_a_whole_model_cannot_take_is_refused(changes: dict[str, Any], planned: Plan) -> None:
    with pytest.raises(BadInput):
        planned(model="torch_models:Plain", **changes)


def test_a_model_of_the_other_framework_is_refused(planned: Plan, store: Store) -> None:
    (outcome,) = execute([planned(model="torch_models:Plain", backend="jax")], store, ONE)
    assert isinstance(outcome.error, BadInput)
    assert "returned 'Plain', not the functions (init, apply)" in str(outcome.error)
