"""The comparer itself, before anything is trusted that it lets pass: what it measures, and every verdict."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rnnbench.arrays import Array
from rnnbench.cells.base import Context, Param
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.cli import root
from rnnbench.errors import BadInput
from rnnbench.parity import KAPPA_LIMIT, TOLERANCES, Measured, ParityReport, _Tally, compare, measure
from rnnbench.spec import NetworkSpec
from rnnbench.tasks.adding import Adding
from rnnbench.techniques.gradient.clip import ClipNorm
from rnnbench.techniques.update.optimizers import SGD, Adam
from rnnbench.xp import Arrays, Ops

from .conftest import Build

Equal = Callable[[ParityReport], None]
TASK = Adding(T=10)


def test_measure_is_the_relative_norm() -> None:
    a, b = np.array([[3.0, 4.0], [1.0, 0.0]]), np.array([[3.0, 4.5], [1.0, 0.0]])
    assert measure(a, b).differences == pytest.approx([0.5 / math.sqrt(26)], rel=1e-15)
    assert measure(a, b, timed=True).differences == pytest.approx([0.1, 0.0], rel=1e-15)
    assert measure(a, b, timed=True).norms == pytest.approx([math.hypot(3.0, 4.5), 1.0], rel=1e-15)


def test_measure_knows_no_absolute_slack() -> None:
    zero, tiny = np.zeros(3), np.array([0.0, 1e-300, 0.0])
    assert measure(zero, zero).differences == [0.0]
    assert measure(zero, tiny).differences == [math.inf]
    assert measure(tiny, zero).differences == [1.0]
    assert measure(1e-200 * np.ones(3), 1.1e-200 * np.ones(3)).differences == pytest.approx([0.1], rel=1e-12)
    assert measure(5e-324 * np.ones(1), 1e-323 * np.ones(1)).differences == [1.0]
    assert measure(1e300 * np.ones(3), 1.1e300 * np.ones(3)).differences == pytest.approx([0.1], rel=1e-12)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_measure_never_calls_equal_what_is_not_finite(bad: float) -> None:
    sick, well = np.array([1.0, bad]), np.array([1.0, 2.0])
    for a, b in ((sick, well), (well, sick), (sick, sick)):
        assert np.isnan(measure(a, b).differences).all()
    one_step = np.ones((4, 2, 3))
    one_step[2, 1, 1] = bad
    assert np.isnan(measure(one_step, one_step, timed=True).differences).tolist() == [False, False, True, False]


def test_measure_refuses_another_shape() -> None:
    assert measure(np.ones((2, 3)), np.ones((3, 2))).differences == [math.inf]
    assert measure(np.ones((2, 3)), np.ones((1, 3))).differences == [math.inf]  # no broadcasting
    assert measure(np.ones((0, 3)), np.ones((0, 3))).differences == [0.0]


def tally(differences: Sequence[float], kappas: Sequence[float], norms: float = math.inf) -> tuple[str, str]:
    gauge = _Tally("step", "states", ("a", "b"), 1e-12)
    found = Measured(np.asarray(differences), np.full(len(differences), norms))
    gauge.add(3, "h", found, np.asarray(kappas), timed=True, least_normal=1e-290)
    return gauge.row().verdict, gauge.row().at


def test_the_worst_place_decides_not_the_last() -> None:
    assert tally([1e-13, 5e-12, 1e-13], [1.0, 1.0, 1.0]) == ("over", "step 3, h, t=1")
    assert tally([1e-13, 5e-13, 1e-13], [1.0, 1.0, 1.0]) == ("equal", "step 3, h, t=1")
    assert tally([5.0, math.nan, math.inf], [1.0, 1.0, 1.0]) == ("non-finite", "step 3, h, t=1")
    assert tally([math.inf, 0.0], [1.0, 1.0]) == ("over", "step 3, h, t=0")


def test_kappa_widens_a_tolerance_up_to_its_limit() -> None:
    assert tally([5e-12], [10.0])[0] == "equal"
    assert tally([5e-12], [0.1])[0] == "over"  # below 1 it does not narrow it either
    assert tally([5e-13], [0.1])[0] == "equal"
    assert tally([0.9e-12 * KAPPA_LIMIT], [KAPPA_LIMIT])[0] == "equal"
    assert tally([2e-12 * KAPPA_LIMIT], [KAPPA_LIMIT])[0] == "over"
    assert tally([2e-12 * KAPPA_LIMIT], [1e9])[0] == "inconclusive"
    assert tally([2e-12 * KAPPA_LIMIT], [math.nan])[0] == "inconclusive"
    assert tally([0.5], [1.0], norms=1e-300)[0] == "inconclusive"  # digits were lost to numbers below the normal ones


def test_a_whole_quantity_too_sensitive_is_not_concluded() -> None:
    gauge = _Tally("step", "states", ("a", "b"), 1e-12)
    gauge.add(0, "h", Measured.single(0.0), np.ones(1), timed=False)
    for kappa, verdict in (
        (1e3, "equal"),
        (1.1e3, "inconclusive"),
        (math.inf, "inconclusive"),
        (math.nan, "inconclusive"),
    ):
        gauge.kappa = kappa
        assert gauge.row().verdict == verdict


def test_numbers_that_are_not_finite_never_pass(build: Build) -> None:
    case = build(TASK, RNN(hidden=3), SGD(lr=0.1), steps=2)
    inputs = case.batches[0].inputs.copy()
    inputs[4, 0, 0] = np.nan
    report = compare(case.program, case.state, [replace(case.batches[0], inputs=inputs), case.batches[1]])
    assert not report.equal
    assert report.row("step", "loss").verdict == "non-finite"
    assert report.row("step", "states").verdict == "non-finite"
    assert report.row("step", "states").at == "step 0, layers.0.forward.h, t=4"
    assert report.row("free", "parameters").verdict == "non-finite"
    assert any(line.startswith("non-finite") for line in report.advice())
    json.dumps(report.as_json(), allow_nan=False)


def test_a_chaotic_case_is_not_concluded(build: Build) -> None:
    """Gain 3 and 60 steps: a change of one ulp grows by orders of magnitude (Sompolinsky et al. 1988)."""
    case = build(Adding(T=60), RNN(hidden=32), SGD(lr=1e-3), steps=1)
    case.state.params["layers.0.forward.weight_hh"] *= 3.0
    report = case.compare()
    assert report.kappa > KAPPA_LIMIT
    assert not report.equal
    assert report.row("step", "states").verdict == "inconclusive"
    assert any("calmer or shorter case" in line for line in report.advice())


def test_gradients_that_underflow_are_not_concluded(build: Build) -> None:
    """float32: torch keeps numbers down to 1.4e-45, jax on a CPU flushes below 1.2e-38."""
    case = build(Adding(T=60), RNN(hidden=3), SGD(lr=0.1), steps=1)
    case.state.params["layers.0.forward.weight_hh"] *= 0.05
    row = case.compare("float32").row("step", "adjoints")
    assert row.verdict == "inconclusive"
    assert case.compare("float64").row("step", "adjoints").verdict == "equal"


class Centred(RNN):
    """What goes into the nonlinearity is centred over the batch, so that the bias has no effect."""

    declared: bool = True

    def parameters(self, n_in: int) -> dict[str, Param]:
        found = super().parameters(n_in)
        return found | {"bias": Param((self.hidden,), zero_gradient="centred away" if self.declared else None)}

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        v = u + xp.linear(states["h"], params["weight_hh"])
        return {"h": xp.tanh(v - xp.mean(v, axis=0, keepdims=True))}


def test_gradients_that_are_zero_in_theory_are_bounded_by_the_others(build: Build, equal: Equal) -> None:
    case = build(TASK, Centred(hidden=3), Adam(lr=0.01), steps=3)
    report = case.compare()
    equal(report)
    assert report.zero_gradients == {"layers.0.forward.bias": "centred away"}
    row = report.row("step", "zero gradients")
    assert 0 < row.difference <= row.tolerance
    assert "layers.0.forward.bias" in row.at
    # undeclared, the rounding errors are compared with one another, and Adam makes full steps of them
    assert not build(TASK, Centred(hidden=3, declared=False), Adam(lr=0.01), steps=3).compare().equal


class Wishful(RNN):
    def parameters(self, n_in: int) -> dict[str, Param]:
        return super().parameters(n_in) | {"bias": Param((self.hidden,), zero_gradient="so it is said")}


def test_a_gradient_that_is_not_zero_is_not_taken_for_it(build: Build) -> None:
    row = build(TASK, Wishful(hidden=3), steps=1).compare().row("step", "zero gradients")
    assert row.verdict == "over"
    assert row.difference > 1e-3


class Declares(ClipNorm):
    def zero_gradients(self, parameters: Sequence[str]) -> Mapping[str, str]:
        return {name: "by technique" for name in parameters if name.endswith("forward.bias")}


def test_techniques_declare_zero_gradients_too(build: Build, equal: Equal) -> None:
    report = build(TASK, Centred(hidden=3, declared=False), Adam(lr=0.01), (Declares(),), steps=2).compare()
    equal(report)
    assert report.zero_gradients == {"layers.0.forward.bias": "by technique"}


def test_both_train_loops_are_compared_on_their_paths(build: Build, equal: Equal) -> None:
    case = build(TASK, LSTM(hidden=3), steps=2)
    for path, resolved in (("auto", "fused"), ("fused", "fused"), ("reference", "reference")):
        report = case.compare(path=path)
        equal(report)
        assert report.paths == {"torch": resolved, "jax": "reference"}
        assert {row.between for row in report.rows if row.phase == "train"} == {
            ("torch", f"torch {resolved}"),
            ("jax", "jax reference"),
        }


def test_the_first_batch_is_read_back(build: Build) -> None:
    case = build(TASK, RNN(hidden=3), steps=2)
    for precision in ("float64", "float32"):
        hashes = case.compare(precision).batch_sha256
        assert hashes == dict.fromkeys(("sent", "torch", "jax"), case.batches[0].cast(precision).sha256())


@pytest.mark.parametrize("network", [NetworkSpec(), NetworkSpec(layers=2, learned_state=True)])
def test_every_step_every_t_and_every_array_is_compared(build: Build, network: NetworkSpec) -> None:
    case = build(TASK, LSTM(hidden=3), Adam(lr=0.01), network=network, steps=3)
    report = case.compare()
    parameters = len(case.program.network.parameters())
    states = 2 * network.layers
    assert report.row("step", "states").compared == 3 * states * TASK.length
    assert report.row("step", "adjoints").compared == 3 * states * TASK.length
    assert report.row("step", "gradients").compared == 3 * parameters
    assert report.row("free", "slots").compared == 3 * 2 * parameters
    assert {row.between for row in report.rows if row.phase == "numpy"} == {("numpy", "torch"), ("numpy", "jax")}


def test_stated_tolerances() -> None:
    """The numbers to hold, so that nobody widens them by accident."""
    assert vars(TOLERANCES["float64"]) == {"states": 1e-12, "gradients": 1e-11, "updated": 1e-9, "unit": 2.0**-52}
    assert vars(TOLERANCES["float32"]) == {"states": 5e-6, "gradients": 2e-5, "updated": 1e-4, "unit": 2.0**-23}


def test_bad_input(build: Build) -> None:
    case = build(TASK, LSTM(hidden=3, peepholes=True), steps=1)
    for backends in (("torch",), ("torch", "torch"), ()):
        with pytest.raises(BadInput, match="at least two different backends"):
            compare(case.program, case.state, case.batches, backends=backends)
    with pytest.raises(BadInput, match="at least 1"):
        compare(case.program, case.state, [])
    with pytest.raises(BadInput, match="torch's LSTM has no peepholes"):
        case.compare(path="fused")
    with pytest.raises(BadInput, match="tf32 is a mode of NVIDIA GPUs"):
        case.compare("tf32")
    with pytest.raises(BadInput, match="numpy is the reference"):
        compare(case.program, case.state, case.batches, backends=("torch", "numpy"))


def run(*arguments: str) -> Any:
    return CliRunner().invoke(root, ["parity", *arguments])


SMALL = ("--task", "adding", "--cell", "rnn", "--set", "task.T=10", "--set", "cell.hidden=3", "--steps", "2")


def test_command_prints_a_table() -> None:
    result = run(*SMALL)
    assert result.exit_code == 0, result.output
    lines = [line.split() for line in result.stdout.splitlines()]
    assert ["step", "states"] in [line[:2] for line in lines]
    assert "as read back from torch and jax" in result.stdout
    assert "float64 on cpu, 2 steps" in result.stdout


def test_command_compares_several_cases_and_prints_json() -> None:
    result = run(*SMALL[:3], "rnn,lstm", *SMALL[4:], "--json")
    assert result.exit_code == 0, result.output
    cases = json.loads(result.stdout)
    assert [case["spec"]["cell"]["name"] for case in cases] == ["rnn", "lstm"]
    assert all(case["equal"] and case["steps"] == 2 and case["backends"] == ["torch", "jax"] for case in cases)
    table = run(*SMALL[:3], "rnn,lstm", *SMALL[4:])
    assert [line.split()[-1] for line in table.stdout.splitlines()[2:]] == ["equal", "equal"]


def test_command_ends_with_1_where_it_cannot_conclude() -> None:
    """A ReLU network with a rate that lets it explode."""
    exploding = ("--set", "cell.activation=relu", "--optimizer", "sgd", "--set", "optimizer.lr=1e6")
    result = run(*SMALL[:-1], "6", *exploding, "--precision", "float32")
    assert result.exit_code == 1
    assert "non-finite" in result.stdout
    assert result.stderr.splitlines() == ["rnnbench: parity: the case not shown equal (adding rnn)"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--steps", "0"), "--steps: 0 is not from 1 to 10000"),
        (("--backend", "torch"), "at least two different backends"),
        (("--backend", "torch,jaxx"), "did you mean jax?"),
        (("--precision", "float16"), "precision"),
        (("--path", "fast"), "path: fast is not to be had here"),
        (("--set", "optimizer.lr=nan"), "lr"),
    ],
)
def test_command_refuses_bad_input(arguments: tuple[str, ...], said: str) -> None:
    result = run(*SMALL[:-2], *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert said in result.stderr


def test_command_refuses_a_whole_model() -> None:
    result = run("--task", "adding", "--model", "package.module:build")
    assert result.exit_code == 2
    assert "one framework's own" in result.stderr
