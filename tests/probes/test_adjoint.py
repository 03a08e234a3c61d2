"""The adjoint at every step: against loops by hand, complex steps and differences; and what must not pass for it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rnnbench import registry
from rnnbench.arrays import Array, NDArray
from rnnbench.backends.numpy import NumpyOps
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.errors import BadInput
from rnnbench.probes import adjoint as module
from rnnbench.probes import replay
from rnnbench.probes.adjoint import Adjoint, loss_ends
from rnnbench.probes.base import Look
from rnnbench.spec import NetworkSpec, Precision
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.tasks.copying import Copy
from rnnbench.xp import Arrays, Ops

from . import twin
from .twin import CELLS, NETWORKS, TASKS, H, errors, kinds, named, worst

MakeLook = Callable[..., Look]
Drawn = Callable[..., Look]
Found = dict[str, NDArray]

EXACT = 1e-9
"""Relative error allowed to any signal; what an error planted on purpose must exceed tenfold."""

PARITY = 1e-11
"""Of derivatives in float64, between the backends."""

FULL = Adjoint(vectors=True, segment=4)
"""Several segments in every case, and in some a rest."""

LOSSES = Adjoint(vectors=True, segment=4, logits=False, seen=False)
ROTATION = [(cell, task, list(NETWORKS)[(i + j) % 3]) for i, cell in enumerate(CELLS) for j, task in enumerate(TASKS)]


def measure(look: Look, probe: Adjoint = FULL) -> Found:
    return named(probe.measure(look))


def without_extras(wanted: Found) -> Found:
    """Leave out what `LOSSES` does not measure."""
    return {
        name: v for name, v in wanted.items() if not name.startswith(("adjoint.logit", "adjoint.seen", "adjoint.cens"))
    }


def check_by_numbers(look: Look, found: Found, relu: bool) -> None:
    """Compare every entry of the derivatives with a complex step and with differences of its own."""
    vectors = kinds(found, "adjoint.vector")
    assert worst(vectors, twin.by_complex_step(look)) <= EXACT
    # close to a kink only a short step has none between, and rounding then costs some digits
    estimate, error = twin.by_differences(look, 4e-6 if relu else 0.04)
    assert set(vectors) == set(estimate)
    for name, vector in vectors.items():
        there = ~np.isnan(vector)
        assert np.array_equal(there, ~np.isnan(estimate[name]))
        assert np.all(np.abs(vector - estimate[name])[there] <= error[name][there]), name
        assert error[name][there].max() <= (1e-6 if relu else 1e-8) * np.abs(vector[there]).max(), "no test"


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("cell", CELLS)
def test_every_signal_is_that_of_a_loop_by_hand(cell: str, task: str, network: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS[task], NETWORKS[network])
    assert (len(set(look.batch.lengths.tolist())) > 1) == task.endswith("masked")
    assert worst(measure(look), twin.expected(look)) <= EXACT


@pytest.mark.parametrize(("cell", "task", "network"), ROTATION)
def test_every_entry_is_that_of_a_complex_step_and_of_differences(
    cell: str, task: str, network: str, drawn_look: Drawn
) -> None:
    look = drawn_look(CELLS[cell], TASKS[task], NETWORKS[network])
    check_by_numbers(look, measure(look, LOSSES), "relu" in cell)


@pytest.mark.parametrize("name", registry.names("cells"))
def test_any_registered_cell_agrees_with_a_complex_step(name: str, make_look: MakeLook) -> None:
    """Also a cell that nobody has written out by hand here."""
    cell: Cell = registry.load("cells", name).parse({"hidden": 4}, "cell")
    look = make_look(TASKS["each"], cell, network=NetworkSpec(layers=2), sequences=2)
    assert worst(kinds(measure(look, LOSSES), "adjoint.vector"), twin.by_complex_step(look)) <= EXACT


ONE_OF_EACH = [("rnn-activation=tanh-biases=1", "last"), ("lstm-peepholes=True-biases=1", "each-masked")]
ONE_OF_EACH += [("gru-reset=before-biases=2", "each")]


@pytest.mark.parametrize(("cell", "task"), ONE_OF_EACH)
def test_jax_and_torch_agree_with_the_loop_and_with_each_other(cell: str, task: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS[task], backend="jax")
    found = measure(look)
    assert worst(found, twin.expected(look)) <= EXACT
    assert worst(found, measure(drawn_look(CELLS[cell], TASKS[task]))) <= PARITY


def on_jax() -> Iterator[Any]:
    """Yield every cell with a task; of cells that differ by their biases alone one is in the fast tier."""
    for number, cell in enumerate(CELLS):
        task, again = ("each-masked", "each")[:: 1 if number % 4 < 2 else -1], number % 2
        yield pytest.param(cell, task[again], marks=[pytest.mark.slow] if again else [])


@pytest.mark.parametrize(("cell", "name"), list(on_jax()))
def test_the_losses_derivatives_on_jax(cell: str, name: str, drawn_look: Drawn) -> None:
    task = TASKS[name]
    look = drawn_look(CELLS[cell], task, backend="jax")
    found = measure(look, LOSSES)
    assert worst(found, without_extras(twin.expected(look))) <= EXACT
    assert worst(found, measure(drawn_look(CELLS[cell], task), LOSSES)) <= PARITY
    check_by_numbers(look, found, "relu" in cell)


@pytest.mark.slow
@pytest.mark.parametrize(("cell", "task", "network"), [each for each in ROTATION if each[2] != "one"])
def test_deep_networks_on_jax(cell: str, task: str, network: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS[task], NETWORKS[network], backend="jax")
    found = measure(look)
    assert worst(found, twin.expected(look)) <= EXACT
    assert worst(found, measure(drawn_look(CELLS[cell], TASKS[task], NETWORKS[network]))) <= PARITY


@pytest.mark.parametrize("cell", ["rnn-activation=tanh-biases=2", "lstm-peepholes=True-biases=1"])
def test_segments_of_any_length_come_to_the_same(cell: str, drawn_look: Drawn) -> None:
    look = drawn_look(CELLS[cell], TASKS["each-masked"], NETWORKS["two"])
    T, wanted = look.program.network.length, twin.expected(look)
    assert T % 3
    assert T > 8
    assert T % 8
    for segment in (1, 3, 8, T, T + 5):
        assert worst(measure(look, Adjoint(vectors=True, segment=segment)), wanted) <= EXACT, segment


def test_segments_of_any_length_come_to_the_same_on_jax(drawn_look: Drawn) -> None:
    look = drawn_look(RNN(hidden=H), TASKS["each"], backend="jax")
    T, wanted = look.program.network.length, without_extras(twin.expected(look))
    for segment in (1, 3, T):  # the other tests use 4
        probe = Adjoint(vectors=True, segment=segment, logits=False, seen=False)
        assert worst(measure(look, probe), wanted) <= EXACT, segment


@pytest.mark.slow
@pytest.mark.parametrize("segment", [1, 3, 8, 9])
def test_segments_of_an_lstm_on_jax(segment: int, drawn_look: Drawn) -> None:
    look = drawn_look(LSTM(hidden=H), TASKS["each"], NETWORKS["two"], backend="jax")
    assert worst(measure(look, Adjoint(vectors=True, segment=segment)), twin.expected(look)) <= EXACT


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "widths", "batches"), [(LSTM, range(1, 10), (2, 4, 5)), (GRU, (1, 4, 5, 8), (3, 4))], ids=["lstm", "gru"]
)
def test_no_width_is_miscompiled(
    kind: type[Cell], widths: Sequence[int], batches: Sequence[int], make_look: MakeLook
) -> None:
    """Two losses side by side: under vmap both cells, with 5 units and 4 sequences, come out wrong on a CPU."""
    task = Copy(delay=1, symbols=1, alphabet=2)
    probe = Adjoint(logits=False, seen=False, segment=3)
    for width, sequences in itertools.product(widths, batches):
        cell = kind(hidden=width)
        looks = [make_look(task, cell, backend=backend, sequences=sequences) for backend in ("jax", "torch")]
        assert worst(*(measure(look, probe) for look in looks)) <= PARITY, (width, sequences)


@pytest.mark.parametrize("loss_step", [0, 3, 7])
@pytest.mark.parametrize("cell", [RNN(hidden=H), LSTM(hidden=H, peepholes=True), GRU(hidden=H)], ids=lambda c: c.name)
def test_a_loss_step_of_ones_own(cell: Cell, loss_step: int, drawn_look: Drawn) -> None:
    look = drawn_look(cell, TASKS["each"], NETWORKS["both-ways"])
    found = measure(look, Adjoint(vectors=True, loss_step=loss_step, segment=3))
    assert worst(found, twin.expected(look, loss_step)) <= EXACT
    assert found["adjoint.loss_step"] == loss_step
    top = found["adjoint.step_log_norm/layers.1.forward.h"]  # read forward, what comes later can have no part in it
    assert np.isneginf(top[loss_step + 1 :]).all()
    assert np.isfinite(top[: loss_step + 1]).all()


@pytest.mark.parametrize(
    ("task", "loss_step", "said"),
    [
        (Adding(T=8), 7, "probe adjoint.loss_step: task adding has its loss at the end only"),
        (TASKS["each"], 8, "at step 8 of task copy (T = 8) no loss is taken of every sequence"),
        (Copy(delay=4, symbols=2, loss_over="recall"), 2, "at step 2 of task copy"),
        (TASKS["each-masked"], 8, "no loss is taken of every sequence"),
    ],
    ids=["last", "outside", "not-counted", "padding"],
)
def test_a_loss_step_where_there_is_no_loss_is_refused(
    task: Task, loss_step: int, said: str, make_look: MakeLook
) -> None:
    look = make_look(task, RNN(hidden=2))
    with pytest.raises(BadInput) as caught:
        list(Adjoint(loss_step=loss_step).measure(look))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_by_default_the_last_loss_that_counts_is_followed(make_look: MakeLook) -> None:
    look = make_look(TASKS["each-masked"], RNN(hidden=2), sequences=7)
    ends = loss_ends(look.program, look.batch)
    assert len(set(ends.tolist())) > 1
    for b, end in enumerate(ends):
        counted = np.flatnonzero(look.batch.mask[:, b])
        assert end == counted[-1]
    np.testing.assert_array_equal(ends, look.batch.lengths - 1)


@pytest.mark.parametrize("network", ["one", "both-ways"])
@pytest.mark.parametrize("peepholes", [False, True])
def test_the_total_derivative_by_c_is_the_held_one_and_the_way_through_h(
    peepholes: bool, network: str, drawn_look: Drawn
) -> None:
    """dL/dc + dL/dh (o (1 - tanh(c)^2) [+ tanh(c) o (1 - o) p_o]), both held, where a sequence has not ended."""
    look = drawn_look(LSTM(hidden=H, peepholes=peepholes), TASKS["last"], NETWORKS[network])
    found = measure(look)
    ran = look.program.network.forward(
        NumpyOps(), look.params, {}, look.batch.inputs, look.batch.lengths, training=True, record=True, watch=True
    )
    for scope in look.program.network.scopes():
        c, o = np.tanh(ran.states[f"{scope.name}.c"]), ran.taps[f"{scope.name}.o"]
        by_h, by_c = (found[f"adjoint.vector/{scope.name}.{name}"] for name in "hc")
        through = o * (1 - c**2)
        if peepholes:
            through = through + c * o * (1 - o) * look.params[f"{scope.name}.peephole_o"]
        total = {f"adjoint.total_log_norm/{scope.name}.c": twin.logs(by_c + by_h * through)}
        assert worst({name: found[name] for name in total}, total) <= EXACT
    assert sum(name.startswith("adjoint.total") for name in found) == len(list(look.program.network.scopes()))


def test_only_as_many_sequences_as_asked_for(drawn_look: Drawn) -> None:
    look = drawn_look(GRU(hidden=H), TASKS["each"], sequences=5)
    found = measure(look, Adjoint(sequences=2, logits=False))
    fewer = replace(look, batch=look.batch.take(slice(0, 2)))
    assert found["adjoint.input_log_norm"].shape == (look.program.network.length, 2)
    assert worst(found, measure(fewer, Adjoint(logits=False))) == 0.0


def test_random_directions_are_unbiased(drawn_look: Drawn) -> None:
    """Of 10 outputs 3 random directions: the mean of the squared norms is that of the whole Jacobian."""
    task = Copy(delay=1, symbols=1, alphabet=9)
    look = drawn_look(LSTM(hidden=2), task, sequences=2)
    assert look.program.network.n_out == 10
    few = Adjoint(directions=3, seen=False)
    exact = measure(look)["adjoint.logit_input_log_norm"]
    rows = [measure(replace(look, seed=seed), few)["adjoint.logit_input_log_norm"] for seed in range(150)]
    ratios = np.exp(2 * (np.stack(rows) - exact))
    off = np.abs(ratios.mean(axis=0) - 1)
    error = ratios.std(axis=0, ddof=1) / np.sqrt(len(rows))
    assert np.all(off <= 4 * error)
    assert error.max() <= 0.1, "too few draws to tell"
    assert np.array_equal(rows[0], measure(look, few)["adjoint.logit_input_log_norm"])  # the seed alone decides
    assert not np.array_equal(rows[0], rows[1])
    assert not np.array_equal(rows[0], measure(replace(look, step=1), few)["adjoint.logit_input_log_norm"])


def test_random_directions_are_drawn_alike_on_jax(drawn_look: Drawn) -> None:
    task = Copy(delay=1, symbols=1, alphabet=3)
    probe = Adjoint(directions=2, seen=False)
    found = [measure(drawn_look(RNN(hidden=2), task, backend=name), probe) for name in ("torch", "jax")]
    assert worst(*found) <= PARITY


@pytest.mark.parametrize("backend", ["torch", "jax"])
def test_what_plain_backpropagation_sees_is_the_runs_own_precision(backend: str, drawn_look: Drawn) -> None:
    found = {}
    of: dict[Precision, float] = {"float64": 1e-13, "float32": 2e-5}
    for precision in of:
        found[precision] = measure(drawn_look(RNN(hidden=H), TASKS["each"], backend=backend, precision=precision))
    for name, truth in kinds(found["float64"], "adjoint.log_norm").items():
        state = name.partition("/")[2]
        for precision, tolerance in of.items():
            seen = found[precision][f"adjoint.seen_log_norm/{state}"]
            assert np.abs(seen - truth).max() <= tolerance
            assert not found[precision][f"adjoint.censored/{state}"].any()
        assert np.abs(found["float32"][f"adjoint.seen_log_norm/{state}"] - truth).max() > 1e-9
        np.testing.assert_array_equal(found["float32"][name], truth)  # the replay is in float64 all the same


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("batch_size", [4, 256])
def test_what_is_seen_is_what_a_run_with_its_own_batch_size_sees(
    batch_size: int, backend: str, make_look: MakeLook
) -> None:
    """Four sequences are probed: a gradient that halves every step is lost log2(batch size / 4) steps sooner."""
    task, cell, name = Adding(T=200), RNN(hidden=1, activation="relu"), "layers.0.forward.h"
    params = {
        "layers.0.forward.weight_hh": np.full((1, 1), 0.5),
        "layers.0.forward.weight_ih": np.full((1, 2), 1.0),
        "layers.0.forward.bias": np.ones(1),  # never at the kink
    }
    look = make_look(task, cell, params=params, batch_size=batch_size, precision="float32", backend=backend)
    found = measure(look, Adjoint(logits=False))
    truth = found[f"adjoint.log_norm/{name}"][::-1]
    seen, censored = found[f"adjoint.seen_log_norm/{name}"][::-1], found[f"adjoint.censored/{name}"][::-1]
    np.testing.assert_allclose(truth, truth[0] + np.log(0.5) * np.arange(200)[:, None], rtol=0, atol=1e-9)
    in_training = truth[0] - np.log(batch_size / 4)
    first = np.floor((in_training - np.log(np.finfo(np.float32).tiny)) / np.log(2)).astype(int) + 1  # [batch]
    np.testing.assert_array_equal(np.argmax(censored, axis=0), first)
    assert np.array_equal(censored > 0, np.arange(200)[:, None] >= first)
    np.testing.assert_allclose(seen[censored == 0], truth[censored == 0], rtol=0, atol=1e-4)  # of a float32's losses
    # the same as a run's own batch holds it, the probed sequences first in it
    if batch_size > 4:
        whole = look.source.batch("train", 0).cast("float64")
        few = replace(look, batch=whole.take(slice(0, 4)))
        own = make_look(task, cell, params=params, batch=whole, batch_size=batch_size, precision="float32")
        every = measure(own, Adjoint(logits=False, sequences=batch_size))
        lost = every[f"adjoint.censored/{name}"][:, :4]
        np.testing.assert_array_equal(measure(few, Adjoint(logits=False))[f"adjoint.censored/{name}"], lost)


@pytest.mark.parametrize("backend", ["torch", "jax"])
@pytest.mark.parametrize("directions", [16, 3])
def test_directions_in_groups_come_to_the_same(
    directions: int, backend: str, drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = drawn_look(LSTM(hidden=H), TASKS["each-masked"], NETWORKS["both-ways"], backend=backend)
    probe = Adjoint(seen=False, segment=4, directions=directions)
    whole = measure(look, probe)
    T, B = look.batch.inputs.shape[:2]
    monkeypatch.setattr(module, "SPREAD", 2 * T * B * 2 * H)
    calls: list[int] = []
    jacobian = module._outputs_jacobian

    def counted(program: Any, segment: int, xp: Any, arrays: Any) -> Any:
        calls.append(int(arrays["seeds"].shape[0]))
        return jacobian(program, segment, xp, arrays)

    monkeypatch.setattr(module, "_outputs_jacobian", counted)
    assert worst(measure(look, probe), whole) <= PARITY
    followed = look.program.network.n_out if look.program.network.n_out <= directions else directions
    assert set(calls) <= {2}
    assert len(calls) <= 1 if backend == "jax" else len(calls) == -(-followed // 2)  # compiled once for all groups


def test_every_signal_is_declared(make_look: MakeLook) -> None:
    """Kind, axes and unit are those of the catalogue; the last axis of nothing is empty."""
    declared = {kind.name: kind for kind in Adjoint.signals}
    for task in TASKS.values():
        look = make_look(task, LSTM(hidden=H), step=17)
        recorded = list(FULL.measure(look))
        assert len({signal.name for signal in recorded}) == len(recorded)
        for signal in recorded:
            kind = declared[signal.kind]
            assert (signal.axes, signal.unit, signal.step) == (kind.axes, kind.unit, 17)
            assert bool(signal.of) == bool(kind.of)
            sizes = {"time": task.length, "batch": 4, "unit": H}
            assert signal.values.shape == tuple(sizes[axis] for axis in kind.axes)
        missing = declared.keys() - {signal.kind for signal in recorded}
        assert missing == (set() if task.readout == "each" else {"adjoint.step_log_norm"})


MODELS = '''
import torch
from torch import nn

class Stack(nn.Module):
    """Two LSTM layers and a linear readout of the last step."""

    def __init__(self, n_in, n_out):
        super().__init__()
        self.lstm = nn.LSTM(n_in, 4, num_layers=2)
        self.readout = nn.Linear(4, n_out)
        self.double()

    def forward(self, x):
        return self.readout(self.lstm(x)[0][-1])
'''


def test_of_a_whole_model_the_input_alone_is_known(
    make_look: MakeLook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "probed_models.py").write_text(MODELS)
    task = Adding(T=9)
    look = make_look(task, None, model="probed_models:Stack", precision="float64")
    found = measure(look)
    assert set(found) == {"adjoint.loss_step", "adjoint.input_log_norm"}
    inputs = torch.tensor(look.batch.inputs, requires_grad=True)
    outputs = look.program.network.module(inputs)
    loss = ((outputs - torch.tensor(look.batch.targets)) ** 2).mean()
    (gradient,) = torch.autograd.grad(loss, inputs)
    wanted = {"adjoint.loss_step": np.asarray(8), "adjoint.input_log_norm": twin.logs(gradient.numpy())}
    assert worst(found, wanted) <= EXACT


def planted_is_caught(look: Look, found: Found) -> None:
    wanted = twin.expected(look)
    assert worst(measure(look), wanted) <= EXACT, "the case is wrong without the planted error"
    assert worst(found, wanted) > 10 * EXACT


@pytest.mark.parametrize("way", ["left out", "taken for all"])
def test_gradients_of_the_last_layer_only_are_caught(way: str, drawn_look: Drawn) -> None:
    look = drawn_look(LSTM(hidden=H), TASKS["last"], NETWORKS["two"])
    found = measure(look)
    if way == "left out":
        planted_is_caught(look, {name: v for name, v in found.items() if "layers.0" not in name})
    else:
        planted_is_caught(look, {name: found[name.replace("layers.0", "layers.1")] for name in found})


@pytest.mark.parametrize("task", ["last", "each"])
def test_the_gradient_of_a_fused_layers_output_is_caught(task: str, drawn_look: Drawn) -> None:
    """What `output.retain_grad()` gives of torch.nn.LSTM lacks all that goes through time inside the layer."""
    look = drawn_look(LSTM(hidden=H), TASKS[task])
    layer = torch.nn.LSTM(look.program.network.n_in, H).double()
    tensors = {name: torch.tensor(value) for name, value in look.params.items()}
    with torch.no_grad():
        layer.weight_ih_l0.copy_(tensors["layers.0.forward.weight_ih"])
        layer.weight_hh_l0.copy_(tensors["layers.0.forward.weight_hh"])
        layer.bias_ih_l0.copy_(tensors["layers.0.forward.bias"])
        layer.bias_hh_l0.zero_()
    output, _ = layer(torch.tensor(look.batch.inputs))
    output.retain_grad()
    read = output[-1] if task == "last" else output
    outputs = read @ tensors["readout.weight"].T + tensors["readout.bias"]
    targets, mask = torch.tensor(look.batch.targets), torch.tensor(look.batch.mask)
    terms = -torch.gather(torch.log_softmax(outputs, dim=-1), -1, targets[..., None])[..., 0]
    ((mask * terms).sum() / mask.sum()).backward()
    naive = output.grad.numpy()
    if task == "last":
        assert np.all(naive[:-1] == 0.0)
    found, name = measure(look), "layers.0.forward.h"
    np.testing.assert_allclose(naive[-1], found[f"adjoint.vector/{name}"][-1], rtol=1e-12)  # the one step it has right
    planted_is_caught(look, found | {f"adjoint.vector/{name}": naive})
    planted_is_caught(look, found | {f"adjoint.log_norm/{name}": twin.logs(naive)})


class Detached(RNN):
    """Cuts the gradient at one step; the numbers going forward are the same."""

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        h = xp.where(context.t == xp.asarray(5), xp.stop_gradient(states["h"]), states["h"])
        return super().step(xp, params, {"h": h}, u, context)


class Swapped(LSTM):
    """Takes the input gate for the forget gate."""

    def project(self, xp: Ops, params: Mapping[str, Array], x: Array) -> Array:
        i, f, g, o = xp.split(super().project(xp, params, x), 4, axis=-1)
        return xp.concat([f, i, g, o], axis=-1)


class Turned(GRU):
    """Keeps what it should renew."""

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        new = super().step(xp, params, states, u, context)
        return {"h": new["h"] + 1e-6 * states["h"]}


@pytest.mark.parametrize(("wrong", "right"), [(Detached, RNN), (Swapped, LSTM), (Turned, GRU)])
@pytest.mark.parametrize("backend", ["torch", pytest.param("jax", marks=pytest.mark.slow)])
def test_another_equation_is_caught(wrong: type[Cell], right: type[Cell], backend: str, drawn_look: Drawn) -> None:
    look = drawn_look(right(hidden=H), TASKS["each"], backend=backend)
    planted_is_caught(look, measure(drawn_look(wrong(hidden=H), TASKS["each"], backend=backend)))


@pytest.mark.parametrize("by", [-1, 1])
def test_a_step_taken_for_its_neighbour_is_caught(by: int, drawn_look: Drawn) -> None:
    look = drawn_look(RNN(hidden=H), TASKS["last"])
    found = measure(look)
    for kind in ("vector", "log_norm", "seen_log_norm", "logit_log_norm"):
        name = f"adjoint.{kind}/layers.0.forward.h"
        planted_is_caught(look, found | {name: np.roll(found[name], by, axis=0)})
    name = "adjoint.input_log_norm"
    planted_is_caught(look, found | {name: np.roll(found[name], by, axis=0)})


def test_held_and_total_derivatives_are_told_apart(drawn_look: Drawn) -> None:
    look = drawn_look(LSTM(hidden=H), TASKS["each"])
    found, c = measure(look), "layers.0.forward.c"
    planted_is_caught(look, found | {f"adjoint.log_norm/{c}": found[f"adjoint.total_log_norm/{c}"]})
    planted_is_caught(look, found | {f"adjoint.total_log_norm/{c}": found[f"adjoint.log_norm/{c}"]})


def _direct_dropped(carry: Any, x: Any) -> tuple[Any, Any]:
    """Forget the loss at the last step of each segment."""
    if "direct" not in x:
        return carry, x
    keep = torch.ones_like(x["direct"])
    keep[-1] = 0.0
    return carry, {**x, "direct": x["direct"] * keep}


def _scale_dropped(carry: Any, x: Any) -> tuple[Any, Any]:
    """Forget how much smaller the cotangent was before it was brought to norm one."""
    return {**carry, "log_scale": torch.zeros_like(carry["log_scale"])}, x


def _second_state_dropped(carry: Any, x: Any) -> tuple[Any, Any]:
    """Carry h alone from segment to segment."""
    return {name: 0.0 * value if name == "state.c" else value for name, value in carry.items()}, x


@pytest.mark.parametrize("plant", [_direct_dropped, _scale_dropped, _second_state_dropped])
@pytest.mark.parametrize("task", ["last", "each"])
def test_an_error_between_two_segments_is_caught(
    plant: Callable[..., Any], task: str, drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = drawn_look(LSTM(hidden=H), TASKS[task])
    segment = replay.Replay._segment

    def planted(self: Any, scope: Any, local: Any, carry: Any, x: Any, many: int) -> Any:
        carry, x = plant(carry, x)
        return segment(self, scope, local, carry, x, many)

    right = measure(look)
    with monkeypatch.context() as patch:
        patch.setattr(replay.Replay, "_segment", planted)
        wrong = measure(look)
    if task == "last" and plant is _direct_dropped:  # there is no loss on the way that could be dropped
        assert worst(wrong, right) == 0.0
    else:
        planted_is_caught(look, wrong)


def test_a_direction_left_out_is_caught(drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    look = drawn_look(GRU(hidden=H), TASKS["each"], NETWORKS["both-ways"])
    with monkeypatch.context() as patch:
        patch.setattr(replay, "_sum", lambda xp, first, second: first)
        wrong = measure(look)
    planted_is_caught(look, wrong)


def test_the_wrong_normalization_of_the_outputs_is_caught(drawn_look: Drawn, monkeypatch: pytest.MonkeyPatch) -> None:
    """By another sequence's norm, or with one output counted twice."""
    look = drawn_look(LSTM(hidden=H), TASKS["each"])
    found, name = measure(look), "adjoint.logit_log_norm/layers.0.forward.h"
    planted_is_caught(look, found | {name: found[name] - found[name].mean(axis=1, keepdims=True)})
    with monkeypatch.context() as patch:
        plain = module._log_sum_squares
        patch.setattr(module, "_log_sum_squares", lambda v, axis: plain(np.concatenate([v, v[:, :1]], axis), axis))
        wrong = measure(look)
    planted_is_caught(look, wrong)


def test_the_comparison_itself() -> None:
    """A missing signal, a shape, a zero and a gap are all infinitely far off."""
    a = {"adjoint.log_norm/h": np.array([[0.0, -np.inf, np.nan]]), "adjoint.vector/h": np.array([[[1.0, 0.0]]])}
    assert worst(a, a) == 0.0
    assert worst(a, {}) == np.inf
    assert worst({**a, "adjoint.x": np.zeros(1)}, a) == np.inf
    for log in ([[0.0, -np.inf]], [[0.0, -np.inf, 0.0]], [[0.0, -700.0, np.nan]], [[-np.inf, -np.inf, np.nan]]):
        assert errors(a | {"adjoint.log_norm/h": np.array(log)}, a)["adjoint.log_norm"] == np.inf, log
    assert errors(a | {"adjoint.vector/h": np.array([[[1.0, 0.5]]])}, a)["adjoint.vector"] == 0.5
    zero = {"adjoint.vector/h": np.zeros((1, 1, 2))}
    assert worst({"adjoint.vector/h": np.array([[[0.0, 1e-300]]])}, zero) == np.inf
