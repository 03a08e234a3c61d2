"""Errors planted in torch alone: parity finds every one, tenfold over every tolerance that it used.

JAX keeps the right program, so it is compiled once for each base case.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from rnnbench.arrays import Array
from rnnbench.backends.base import Inspection, Program, StepLog, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.torch import trainer as torch_trainer
from rnnbench.backends.torch.trainer import TorchTrainer
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Forward
from rnnbench.cells.rnn import RNN
from rnnbench.objectives import loss_terms, weighted_mean
from rnnbench.parity import ParityReport, compare_trainers
from rnnbench.spec import NetworkSpec
from rnnbench.tasks.base import Batch
from rnnbench.tasks.copying import Copy
from rnnbench.techniques.gradient.clip import ClipNorm, ClipValue
from rnnbench.techniques.update.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp
from rnnbench.xp import Arrays, Ops

from .conftest import Build, Case

TASK = Copy(delay=6, symbols=3, alphabet=3, variable=True)
STEPS = 4


class Base(NamedTuple):
    """What an error is planted in."""

    cell: Cell = LSTM(hidden=5, biases=1)
    optimizer: Optimizer = SGD(lr=0.1)
    technique: Any = ClipNorm(threshold=0.05)
    network: NetworkSpec = NetworkSpec()


def against(
    build: Build, base: Base, plant: Callable[[Program], Program], trainer: type = TorchTrainer
) -> ParityReport:
    """Compare the right program on JAX with the planted one on torch."""
    case = build(TASK, base.cell, base.optimizer, (base.technique,), base.network, STEPS)
    right = JaxBackend().trainer(case.program, "cpu", "float64", "reference")
    wrong = trainer(plant(case.program), "cpu", "float64", "reference")
    return compare_trainers({"torch": wrong, "jax": right}, case.program, case.state, case.batches, "float64")


def assert_caught(report: ParityReport, *places: tuple[str, str]) -> None:
    """Every named quantity is over, and the worst exceeds every tolerance used tenfold."""
    assert not report.equal
    largest = max(row.tolerance for row in report.rows)
    for phase, quantity in places:
        row = report.row(phase, quantity)
        assert row.verdict == "over", row
        assert row.difference > 10 * row.tolerance, row
    worst = max(report.row(phase, quantity).difference for phase, quantity in places)
    assert worst > 10 * largest, (worst, largest)


STATES = (("step", "loss"), ("step", "states"), ("step", "adjoints"), ("step", "gradients"), ("step", "parameters"))
BACKWARD = (("step", "adjoints"), ("step", "gradients"), ("step", "parameters"), ("free", "parameters"))
LOSS = (("step", "loss"), ("step", "gradients"), ("free", "parameters"))
UPDATE = (("step", "parameters"), ("free", "parameters"))

BASES = {
    "lstm": Base(),
    "gru": Base(GRU(hidden=5)),
    "peepholes": Base(LSTM(hidden=5, peepholes=True)),
    "stacked": Base(RNN(hidden=5), network=NetworkSpec(layers=2)),
    "nesterov": Base(optimizer=SGD(lr=0.1, momentum=0.9, nesterov=True)),
    "rmsprop": Base(optimizer=RMSProp(lr=0.01, eps=1e-4, eps_inside=False)),
    "adam": Base(optimizer=Adam(lr=0.01)),
    "adamw": Base(optimizer=AdamW(lr=0.05, weight_decay=0.1)),
}


@pytest.mark.parametrize("base", BASES)
def test_without_an_error_nothing_is_found(build: Build, equal: Callable[[ParityReport], None], base: str) -> None:
    equal(against(build, BASES[base], lambda program: program))


class SwappedGates(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        c, h = states["c"], states["h"]
        f, i, g, o = xp.split(u + xp.linear(h, params["weight_hh"]), 4, axis=-1)
        c = xp.sigmoid(f) * c + xp.sigmoid(i) * xp.tanh(g)
        return {"c": c, "h": xp.sigmoid(o) * xp.tanh(c)}


class LateInput(LSTM):
    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return super().project(xp, params, xp.concat([0.0 * x[:1], x[:-1]], axis=0))


class DroppedBias(LSTM):
    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        return xp.linear(x, params["weight_ih"])


class DetachedState(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        return super().step(xp, params, {**states, "h": xp.stop_gradient(states["h"])}, u, context)


class Truncated(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        if context.t == 6:
            states = {name: xp.stop_gradient(state) for name, state in states.items()}
        return super().step(xp, params, states, u, context)


class Float32Leak(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        leaked = {name: state.to(torch.float32).to(torch.float64) for name, state in states.items()}
        return super().step(xp, params, leaked, u, context)


class TwiceTheForgetBias(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        i, f, g, o = xp.split(u, 4, axis=-1)
        return super().step(xp, params, states, xp.concat([i, f + 1.0, g, o], axis=-1), context)


class EarlyPeephole(LSTM):
    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        c, h = states["c"], states["h"]
        i, f, g, o = xp.split(u + xp.linear(h, params["weight_hh"]), 4, axis=-1)
        i, f = i + params["peephole_i"] * c, f + params["peephole_f"] * c
        o = o + params["peephole_o"] * c
        c = xp.sigmoid(f) * c + xp.sigmoid(i) * xp.tanh(g)
        return {"c": c, "h": xp.sigmoid(o) * xp.tanh(c)}


class LateBelow(RNN):
    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        if x.shape[-1] == self.hidden:
            x = xp.concat([0.0 * x[:1], x[:-1]], axis=0)
        return super().project(xp, params, x)


@pytest.mark.parametrize(
    ("base", "cell", "places"),
    [
        ("lstm", SwappedGates, STATES),
        ("lstm", LateInput, STATES),
        ("lstm", DroppedBias, STATES),
        ("lstm", DetachedState, BACKWARD),
        ("lstm", Truncated, BACKWARD),
        ("lstm", Float32Leak, ()),
        ("lstm", TwiceTheForgetBias, STATES),
        ("peepholes", EarlyPeephole, BACKWARD),
        ("stacked", LateBelow, STATES),
    ],
)
def test_a_wrong_equation(build: Build, base: str, cell: type[Cell], places: Any) -> None:
    fields = BASES[base].cell.model_dump()

    def plant(program: Program) -> Program:
        return replace(program, network=replace(program.network, cell=cell(**fields)))

    report = against(build, BASES[base], plant)
    if cell is Float32Leak:  # too small to exceed what an update may differ by in a sensitive case
        for quantity in ("states", "adjoints", "gradients"):
            row = report.row("step", quantity)
            assert row.verdict == "over"
            assert row.difference > 10 * row.tolerance
    else:
        assert_caught(report, *places)


def test_the_wrong_reset_variant(build: Build) -> None:
    def plant(program: Program) -> Program:
        return replace(program, network=replace(program.network, cell=GRU(hidden=5, reset="before")))

    assert_caught(against(build, BASES["gru"], plant), *STATES)


class LossOverSequences(Program):
    """Averages over each sequence first, then over sequences: the shorter ones count more."""

    def loss(self, xp: Ops, params: Any, buffers: Any, batch: Any, **options: Any) -> tuple[Array, Any]:
        forward = self.outputs(xp, params, buffers, batch, training=True, **options)
        terms = loss_terms(xp, self.task.loss, forward.outputs, batch["targets"])
        each = xp.sum(batch["mask"] * terms, axis=0) / xp.sum(batch["mask"], axis=0)
        return xp.mean(each), forward


class PermutedClasses(Program):
    def loss(self, xp: Ops, params: Any, buffers: Any, batch: Any, **options: Any) -> tuple[Array, Any]:
        return super().loss(xp, params, buffers, {**batch, "targets": (batch["targets"] + 1) % 4}, **options)


class LateReadout(Program):
    """Reads the state of the step before."""

    def outputs(self, xp: Ops, params: Any, buffers: Any, batch: Any, training: bool, **options: Any) -> Any:
        forward = super().outputs(xp, params, buffers, batch, training, **options)
        late = xp.concat([forward.outputs[:1], forward.outputs[:-1]], axis=0)
        return Forward(late, forward.states, forward.buffers)


class MaskOffByOne(Program):
    """Holds the state a step too early, and leaves the last step out of the loss."""

    def loss(self, xp: Ops, params: Any, buffers: Any, batch: Any, **options: Any) -> tuple[Array, Any]:
        return super().loss(xp, params, buffers, {**batch, "lengths": batch["lengths"] - 1}, **options)


class UnmaskedLoss(Program):
    def loss(self, xp: Ops, params: Any, buffers: Any, batch: Any, **options: Any) -> tuple[Array, Any]:
        forward = self.outputs(xp, params, buffers, batch, training=True, **options)
        terms = loss_terms(xp, self.task.loss, forward.outputs, batch["targets"])
        return weighted_mean(xp, terms, xp.ones(batch["mask"].shape)), forward


@pytest.mark.parametrize(
    ("program", "places"),
    [
        (LossOverSequences, LOSS),
        (PermutedClasses, LOSS),
        (LateReadout, (("step", "loss"), ("step", "outputs"), ("step", "adjoints"), ("step", "gradients"))),
        (MaskOffByOne, STATES),
        (UnmaskedLoss, LOSS),
    ],
)
def test_a_wrong_loss_or_mask(build: Build, program: type[Program], places: Any) -> None:
    report = against(build, BASES["lstm"], lambda right: program(**vars(right)))
    assert_caught(report, *places)


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ("rmsprop", {"optimizer": RMSProp(lr=0.01, eps=1e-4, eps_inside=True)}),
        ("nesterov", {"optimizer": SGD(lr=0.1, momentum=0.9)}),
        ("adam", {"optimizer": Adam(lr=0.01, eps=1e-4)}),
        ("adamw", {"optimizer": AdamW(lr=0.05, weight_decay=0.0)}),
        ("lstm", {"techniques": (ClipValue(threshold=0.05),)}),
        ("lstm", {"techniques": ()}),
    ],
    ids=["eps-inside", "no-nesterov", "eps", "no-decay", "clip-by-value", "no-clipping"],
)
def test_a_wrong_update(build: Build, base: str, change: dict[str, Any]) -> None:
    assert_caught(against(build, BASES[base], lambda program: replace(program, **change)), *UPDATE)


def test_no_bias_correction(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    load_slots = torch_trainer.load_slots
    monkeypatch.setattr(torch_trainer, "load_slots", lambda *given: load_slots(*given[:-1], given[-1] + 10**6))
    assert_caught(against(build, BASES["adam"], lambda program: program), *UPDATE)


def test_coupled_weight_decay(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    def coupled(spec: AdamW, params: Any) -> torch.optim.Optimizer:
        return torch.optim.Adam(params, lr=spec.lr, weight_decay=spec.weight_decay)

    monkeypatch.setattr(torch_trainer, "build", coupled)
    assert_caught(against(build, BASES["adamw"], lambda program: program), *UPDATE, ("step", "slots"))


def test_a_stale_slot(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    load_slots = torch_trainer.load_slots

    def forgetful(spec: Any, optimizer: Any, params: Any, slots: Any, step: int) -> None:
        load_slots(spec, optimizer, params, {}, step)

    monkeypatch.setattr(torch_trainer, "load_slots", forgetful)
    report = against(build, BASES["nesterov"], lambda program: program)
    assert_caught(report, ("step", "slots"), ("step", "parameters"))
    assert report.row("start", "state").verdict == "over"


class OneWrongElement(TorchTrainer):
    """One element of one gradient is a thousandth too large."""

    def inspect(self, batch: Batch, rate: float) -> Inspection:
        found = super().inspect(batch, rate)
        gradients = dict(found.gradients)
        gradients["layers.0.forward.weight_hh"][2, 3] *= 1.001
        return replace(found, gradients=gradients)


class OneWrongState(TorchTrainer):
    """One state at one step, not the last, is off in the seventh digit."""

    def inspect(self, batch: Batch, rate: float) -> Inspection:
        found = super().inspect(batch, rate)
        states = dict(found.states)
        states["layers.0.forward.c"][5, 1, 2] *= 1 + 1e-7
        return replace(found, states=states)


class WrongStart(TorchTrainer):
    """Starts from another forget bias."""

    def load(self, state: TrainState) -> None:
        params = {name: array.copy() for name, array in state.params.items()}
        params["layers.0.forward.bias"][5:10] = 0.0
        super().load(replace(state, params=params))


class WrongRate(TorchTrainer):
    """Trains, but does not inspect, at another learning rate: only the training loop shows it."""

    def train(self, batches: Any, rates: Any) -> StepLog:
        return super().train(batches, [rate * 1.01 for rate in rates])


class OtherBatch(TorchTrainer):
    """Sends something else to the device than it was given."""

    def _send(self, batch: Batch) -> dict[str, Array]:
        return super()._send(replace(batch, inputs=np.roll(batch.inputs, 1, axis=1)))


@pytest.mark.parametrize(
    ("trainer", "places"),
    [
        (OneWrongElement, (("step", "gradients"),)),
        (WrongStart, STATES),
        (WrongRate, (("train", "parameters"), ("free", "parameters"))),
        (OtherBatch, STATES),
    ],
)
def test_a_wrong_trainer(build: Build, trainer: type[TorchTrainer], places: Any) -> None:
    report = against(build, BASES["lstm"], lambda program: program, trainer)
    assert_caught(report, *places)
    if trainer is OneWrongElement:
        assert "layers.0.forward.weight_hh" in report.row("step", "gradients").at
    if trainer is WrongStart:
        assert report.row("start", "state").difference == math.inf
    if trainer is OtherBatch:
        assert report.row("start", "batch").difference == math.inf
        assert len(set(report.batch_sha256.values())) == 2


def test_a_wrong_state_is_found_where_it_is(build: Build) -> None:
    row = against(build, BASES["lstm"], lambda program: program, OneWrongState).row("step", "states")
    assert row.verdict == "over"
    assert row.difference > 10 * row.tolerance
    assert row.at.endswith("layers.0.forward.c, t=5")


def test_a_wrong_fused_layer_is_found(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused layer takes part in training only, so that the training loop has to be looked at too."""
    from rnnbench.backends.torch import fused
    from rnnbench.tasks.adding import Adding

    right = fused.fused_layer

    def without_bias(cell: Cell, params: Any, inputs: Array, start: Any) -> Any:
        return right(cell, {**params, "bias": 0.0 * params["bias"]}, inputs, start)

    monkeypatch.setattr(torch_trainer, "fused_layer", without_bias)
    case: Case = build(Adding(T=10), LSTM(hidden=5), SGD(lr=0.1), steps=STEPS)
    report = case.compare(path="fused")
    assert report.paths == {"torch": "fused", "jax": "reference"}
    assert report.row("step", "gradients").verdict == "equal"
    assert_caught(report, ("train", "loss"), ("train", "gradient norm"), ("train", "parameters"), ("free", "loss"))
