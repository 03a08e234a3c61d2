"""The adjoint once more, by three slower ways, and how far two sets of signals are apart.

`expected` runs plain torch loops over layers, directions and steps, equations and losses written out by hand, every
state a node of its own. `by_complex_step` and `by_differences` run the network's own forward pass in NumPy, once with
an imaginary, once with a small real number added to one state entry after another; they ask no framework for a
derivative.
"""

from __future__ import annotations

import itertools
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch

from rnnbench import registry
from rnnbench.arrays import Array, NDArray
from rnnbench.backends.numpy import NumpyOps
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.network import Network
from rnnbench.cells.rnn import RNN
from rnnbench.objectives import loss_terms
from rnnbench.probes.base import Look
from rnnbench.signals import Signal
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Task
from rnnbench.tasks.copying import Copy
from rnnbench.tasks.temporal_order import TemporalOrder

H = 3

TASKS: dict[str, Task] = {
    "last": TemporalOrder(T=10),
    "last-masked": Adding(T=20, markers="pascanu"),
    "each": Copy(delay=4, symbols=2, alphabet=3),
    "each-masked": Copy(delay=5, symbols=2, alphabet=3, variable=True),
}
NETWORKS: dict[str, NetworkSpec] = {
    "one": NetworkSpec(),
    "two": NetworkSpec(layers=2, learned_state=True),
    "both-ways": NetworkSpec(layers=2, bidirectional=True, learned_state=True),
}


def variants(names: Iterable[str]) -> dict[str, Cell]:
    """Return registered cells with every combination of their switches: fields that are booleans or choices."""
    found: dict[str, Cell] = {}
    for name in names:
        kind: type[Cell] = registry.load("cells", name)
        switches = {
            key: (False, True) if field.annotation is bool else typing.get_args(field.annotation)
            for key, field in kind.model_fields.items()
            if field.annotation is bool or typing.get_origin(field.annotation) is Literal
        }
        for values in itertools.product(*switches.values()):
            chosen = dict(zip(switches, values, strict=True))
            label = "-".join([name, *(f"{key}={value}" for key, value in chosen.items())])
            found[label] = kind.parse({"hidden": H, **chosen}, "cell")
    return found


CELLS = variants(registry.BUILT_IN["cells"])


def drawn(look: Look, spread: float = 0.5, of: str = "tests/probes") -> dict[str, NDArray]:
    """Draw every parameter anew, biases, peepholes and initial states too: nothing is zero by default."""
    named = look.program.network.parameters()
    return {name: stream(0, f"{of}/{name}").normal(0.0, spread, param.shape) for name, param in named.items()}


Tensors = dict[str, torch.Tensor]
Keep = Callable[[str, torch.Tensor], torch.Tensor]


def one_step(cell: Cell, p: Mapping[str, torch.Tensor], x: torch.Tensor, before: Tensors, keep: Keep) -> Tensors:
    """Write a step of each cell out by hand; `keep` notes a state that the same step goes on to use."""
    h = before["h"]
    first, second = (p["bias"], 0.0) if "bias" in p else (p["bias_ih"], p["bias_hh"])
    a = x @ p["weight_ih"].T + first
    if isinstance(cell, LSTM):
        i, f, g, o = (a + h @ p["weight_hh"].T + second).chunk(4, dim=-1)
        if cell.peepholes:
            i, f = i + p["peephole_i"] * before["c"], f + p["peephole_f"] * before["c"]
        c = keep("c", torch.sigmoid(f) * before["c"] + torch.sigmoid(i) * torch.tanh(g))
        if cell.peepholes:
            o = o + p["peephole_o"] * c
        return {"c": c, "h": torch.sigmoid(o) * torch.tanh(c)}
    if isinstance(cell, GRU):
        H = cell.hidden
        a_r, a_z, a_n = a.chunk(3, dim=-1)
        U = p["weight_hh"]
        late = second if isinstance(second, torch.Tensor) else torch.zeros(3 * H, dtype=h.dtype)
        r = torch.sigmoid(a_r + h @ U[:H].T + late[:H])
        z = torch.sigmoid(a_z + h @ U[H : 2 * H].T + late[H : 2 * H])
        if cell.reset == "after":
            n = torch.tanh(a_n + r * (h @ U[2 * H :].T + late[2 * H :]))
        else:
            n = torch.tanh(a_n + (r * h) @ U[2 * H :].T + late[2 * H :])
        return {"h": (1 - z) * n + z * h}
    assert type(cell) is RNN, f"write the equations of {cell.name} out here"
    summed = a + h @ p["weight_hh"].T + second
    return {"h": torch.tanh(summed) if cell.activation == "tanh" else summed.clamp(min=0.0)}


@dataclass
class Unrolled:
    """One pass of the loops.

    Attributes:
        outputs: [time batch n_out], or [batch n_out] where the end is read.
        states: by full name, a node for each t [batch size], with nothing else of its step behind it.
        inner: the same of what the step went on to use.
    """

    outputs: torch.Tensor
    states: dict[str, list[torch.Tensor]] = field(default_factory=dict)
    inner: dict[str, list[torch.Tensor]] = field(default_factory=dict)


def unroll(
    look: Look, params: Mapping[str, torch.Tensor], inputs: torch.Tensor, shifts: Mapping[str, torch.Tensor]
) -> Unrolled:
    """Run the loops; `shifts` [time batch size] are added to states by full name after each step."""
    network: Network = look.program.network
    cell, spec = network.cell, network.spec
    T, B = inputs.shape[:2]
    lengths = torch.tensor(look.batch.lengths)
    found = Unrolled(inputs)
    ends: list[torch.Tensor] = []
    below: list[torch.Tensor] = list(inputs)
    for layer in range(spec.layers):
        tops: list[list[torch.Tensor]] = [[] for _ in range(T)]
        ends = []
        for way in ("forward", "backward")[: 1 + spec.bidirectional]:
            prefix = f"layers.{layer}.{way}."
            own = {name.removeprefix(prefix): value for name, value in params.items() if name.startswith(prefix)}
            start = torch.zeros((B, cell.hidden), dtype=inputs.dtype)
            states = {s.name: own.get(f"initial.{s.name}", start) + start for s in cell.states()}
            for t in range(T) if way == "forward" else reversed(range(T)):

                def keep(name: str, value: torch.Tensor, t: int = t, prefix: str = prefix) -> torch.Tensor:
                    found.inner.setdefault(prefix + name, [value] * T)[t] = value
                    return value

                new = one_step(cell, own, below[t], states, keep)
                inside = (t < lengths)[:, None]
                states = {name: torch.where(inside, new[name], states[name]).clone() for name in states}
                states = {
                    name: value + shifts[prefix + name][t] if prefix + name in shifts else value
                    for name, value in states.items()
                }
                for name, value in states.items():
                    found.states.setdefault(prefix + name, [value] * T)[t] = value
                tops[t].append(states["h"])
            ends.append(states["h"])
        below = [torch.cat(parts, dim=-1) for parts in tops]
    top = torch.cat(ends, dim=-1) if network.read_last else torch.stack(below)
    found.outputs = top @ params["readout.weight"].T + params["readout.bias"]
    return found


def gradients(of: torch.Tensor, nodes: Sequence[torch.Tensor]) -> NDArray:
    """Return the derivative by each node, stacked; zero where nothing leads there."""
    found = torch.autograd.grad(of, list(nodes), retain_graph=True, allow_unused=True)
    rows = [torch.zeros_like(node) if g is None else g for node, g in zip(nodes, found, strict=True)]
    return torch.stack(rows).numpy()


def expected(look: Look, loss_step: int | None = None) -> dict[str, NDArray]:
    """Return what `Adjoint(vectors=True)` must record, by the signals' full names, for a run in float64."""
    network: Network = look.program.network
    task, batch = look.program.task, look.batch
    T, B = batch.inputs.shape[:2]
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in look.params.items()}
    inputs = torch.tensor(batch.inputs, requires_grad=True)
    leaves = {name: value.requires_grad_() for name, value in params.items()}
    run = unroll(look, leaves, inputs, {})
    targets, mask = torch.tensor(batch.targets), torch.tensor(batch.mask)
    if task.loss == "mse":
        terms = ((run.outputs - targets) ** 2).sum(dim=-1) / run.outputs.shape[-1]
    else:
        shares = run.outputs.exp() / run.outputs.exp().sum(dim=-1, keepdim=True)
        terms = -torch.gather(shares, -1, targets[..., None])[..., 0].log()
    terms = mask * terms / mask.sum()
    loss = terms.sum()

    ends = last_steps(look, loss_step)
    several = len(set(ends.tolist())) > 1
    result: dict[str, NDArray] = {"adjoint.loss_step": np.asarray(T - 1 if several else ends[0])}

    def put(kind: str, of: str, values: NDArray) -> None:
        result[f"adjoint.{kind}/{of}" if of else f"adjoint.{kind}"] = lined_up(values, ends, of)

    held = {name: gradients(loss, nodes) for name, nodes in run.states.items()}
    for name, vectors in held.items():
        put("vector", name, vectors)
        put("log_norm", name, logs(vectors))
        put("seen_log_norm", name, logs(vectors))
        put("censored", name, np.zeros((T, B)))
    for name, nodes in run.inner.items():
        through = gradients(loss, nodes)
        padded = np.arange(T)[:, None] >= batch.lengths  # there the state is handed on as it is
        put("total_log_norm", name, logs(np.where(padded[..., None], held[name], through)))
    put("input_log_norm", "", logs(gradients(loss, [inputs])[0]))
    if task.readout == "each":
        part = sum(terms[end, b] for b, end in enumerate(ends))
        assert isinstance(part, torch.Tensor)
        for name, nodes in run.states.items():
            put("step_log_norm", name, logs(gradients(part, nodes)))

    frobenius = outputs_jacobian(look, {name: value.detach() for name, value in params.items()}, ends)
    for scope in network.scopes():
        whole = np.zeros((T, B))
        own = {name: values for name, values in frobenius.items() if name.startswith(scope.name + ".")}
        for values in own.values():
            whole += values**2
        last = [0 if scope.reverse and network.read_last else end for end in ends]
        reference = np.sqrt(np.array([whole[last[b], b] for b in range(B)]))
        for name, values in own.items():
            with np.errstate(divide="ignore", invalid="ignore"):  # dead units may leave nothing to divide by
                put("logit_log_norm", name, np.log(values / reference))
    with np.errstate(divide="ignore"):
        put("logit_input_log_norm", "", np.log(frobenius["inputs"]))
    return result


def last_steps(look: Look, loss_step: int | None = None) -> NDArray:
    """Return the step [batch] whose loss is followed back."""
    batch, (T, B) = look.batch, look.batch.inputs.shape[:2]
    if look.program.task.readout == "last":
        return np.array([length - 1 for length in batch.lengths])
    if loss_step is not None:
        return np.full(B, loss_step)
    return np.array([max(t for t in range(T) if batch.mask[t, b] > 0) for b in range(B)])


def lined_up(values: NDArray, ends: NDArray, of: str) -> NDArray:
    """Move [time batch ...] to where each sequence ends at the last step, where they end apart."""
    if len(set(ends.tolist())) == 1:
        return values
    moved, T = np.full_like(values, np.nan), len(values)
    for b, end in enumerate(ends):
        for t in range(end + 1):
            moved[t if ".backward." in of else t + T - 1 - end, b] = values[t, b]
    return moved


def outputs_jacobian(look: Look, params: Mapping[str, torch.Tensor], ends: NDArray) -> dict[str, NDArray]:
    """Return Frobenius norms [time batch] of each sequence's Jacobian of its outputs at its `ends`."""
    network: Network = look.program.network
    B = look.batch.size
    shapes = network.state_shapes(B)
    given = torch.tensor(look.batch.inputs)

    def outputs(*shifts: torch.Tensor) -> torch.Tensor:
        found = unroll(look, params, given + shifts[-1], dict(zip(shapes, shifts, strict=False))).outputs
        return found if network.read_last else torch.stack([found[end, b] for b, end in enumerate(ends)])

    zeros = (*(torch.zeros(shape, dtype=torch.float64) for shape in shapes.values()), torch.zeros_like(given))
    blocks = torch.autograd.functional.jacobian(outputs, zeros)  # [batch n_out time batch size] each
    return {
        name: np.stack([block[b, :, :, b].square().sum(dim=(0, 2)).sqrt().numpy() for b in range(B)], axis=1)
        for name, block in zip([*shapes, "inputs"], blocks, strict=True)
    }


class ComplexOps(NumpyOps):
    """NumPy in complex128: with an imaginary part too small to act on the real one, f(x + ih) = f(x) + ih f'(x).

    What is decided is decided by real parts, and the derivatives at kinks are those that `rnnbench.xp.Ops` pins.
    """

    def asarray(self, value: object) -> Array:
        array = np.asarray(value)
        return array.astype(np.complex128) if array.dtype.kind in "fc" else array

    def zeros(self, shape: Sequence[int]) -> Array:
        return np.zeros(tuple(shape), np.complex128)

    def ones(self, shape: Sequence[int]) -> Array:
        return np.ones(tuple(shape), np.complex128)

    def floats(self, x: Array) -> Array:
        return np.asarray(x, np.complex128)

    def sigmoid(self, x: Array) -> Array:
        return 1.0 / (1.0 + np.exp(-x))

    def softplus(self, x: Array) -> Array:
        return np.where(x.real > 0, x, 0.0) + np.log1p(np.exp(np.where(x.real > 0, -x, x)))

    def relu(self, x: Array) -> Array:
        return np.where(x.real > 0, x, 0.0)

    def abs(self, x: Array) -> Array:
        return x * np.sign(x.real)

    def sign(self, x: Array) -> Array:
        return np.sign(x.real) + 0j

    def clip(self, x: Array, low: float, high: float) -> Array:
        return np.where(x.real < low, low, np.where(x.real > high, high, x))

    def maximum(self, x: Array, y: Array) -> Array:
        return np.where(x.real == y.real, (x + y) / 2, np.where(x.real > y.real, x, y))

    def minimum(self, x: Array, y: Array) -> Array:
        return -self.maximum(-x, -y)

    def norm(self, x: Array, axis: int | None = None) -> Array:
        square = np.sum(x * x, axis=axis)
        return np.where(square.real == 0, 0.0, np.sqrt(square))

    def log_softmax(self, x: Array) -> Array:
        shifted = x - x.real.max(axis=-1, keepdims=True)
        return shifted - np.log(np.sum(np.exp(shifted), axis=-1, keepdims=True))

    def argmax(self, x: Array) -> Array:
        return np.argmax(x.real, axis=-1)

    def stop_gradient(self, x: Array) -> Array:
        return x.real + 0j


def _losses_of_shifted(look: Look, xp: NumpyOps, name: str, b: int, by: complex) -> NDArray:
    """Return sequence `b`'s part of the loss [time size] with `by` added to one entry of a state at one t."""
    batch, network = look.batch, look.program.network
    T, _, size = network.state_shapes(1)[name]
    copies = batch.take(np.full(T * size, b))
    shift = np.zeros((T, T * size, size), np.result_type(type(by), float))
    t, unit = np.divmod(np.arange(T * size), size)
    shift[t, np.arange(T * size), unit] = by
    outputs = network.forward(
        xp, look.params, look.buffers, copies.inputs, copies.lengths, training=True, inject={name: shift}
    ).outputs
    terms = copies.mask * loss_terms(xp, look.program.task.loss, outputs, copies.targets)
    of_each = terms.sum(axis=0) if terms.ndim == 2 else terms
    found: NDArray = of_each.reshape(T, size) / batch.mask.sum()
    return found


def by_complex_step(look: Look, line_up: bool = True) -> dict[str, NDArray]:
    """Return ``adjoint.vector`` by full name, every entry from an imaginary 1e-30 of its own.

    Without `line_up` each stands at its own t also where sequences end apart.
    """
    xp, ends = ComplexOps(), last_steps(look)
    found: dict[str, NDArray] = {}
    for name in look.program.network.state_shapes(1):
        columns = [_losses_of_shifted(look, xp, name, b, 1e-30j).imag / 1e-30 for b in range(look.batch.size)]
        vectors = np.stack(columns, axis=1)
        found[f"adjoint.vector/{name}"] = lined_up(vectors, ends, name) if line_up else vectors
    return found


def by_differences(look: Look, first: float = 0.04) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Return ``adjoint.vector`` by central differences, extrapolated thrice (Richardson), and how far off it may be.

    The error is estimated by the last extrapolation's own step, and by rounding: each loss is off by some units in the
    last place of what it is computed from, and the smallest difference divides that by the smallest step.
    """
    xp, ends, batch = NumpyOps(), last_steps(look), look.batch
    plain = look.program.network.forward(xp, look.params, look.buffers, batch.inputs, batch.lengths, training=True)
    largest = np.abs(plain.outputs).max() / batch.mask.sum()
    found: dict[str, NDArray] = {}
    error: dict[str, NDArray] = {}
    for name in look.program.network.state_shapes(1):
        values, bounds = [], []
        for b in range(look.batch.size):
            steps = [first / 2**k for k in range(4)]
            pairs = [[_losses_of_shifted(look, xp, name, b, s * h) for s in (1, -1)] for h in steps]
            row = [(up - down) / (2 * h) for h, (up, down) in zip(steps, pairs, strict=True)]
            size = max(largest, *(np.abs(loss).max() for pair in pairs for loss in pair))
            for order in (2, 4, 6):
                before, row = (
                    row,
                    [(2**order * fine - rough) / (2**order - 1) for rough, fine in itertools.pairwise(row)],
                )
            values.append(row[0])
            bounds.append(np.abs(row[0] - before[-1]) + 32 * np.finfo(float).eps * size / steps[-1])
        found[f"adjoint.vector/{name}"] = lined_up(np.stack(values, axis=1), ends, name)
        error[f"adjoint.vector/{name}"] = lined_up(np.stack(bounds, axis=1), ends, name)
    return found, error


def logs(vectors: NDArray) -> NDArray:
    """Return ln of the norms over the last axis; squares must not underflow."""
    peak = np.abs(vectors).max(axis=-1)
    unit = vectors / np.where(peak == 0, 1.0, peak)[..., None]
    with np.errstate(divide="ignore"):
        found: NDArray = np.log(peak) + np.log(np.linalg.norm(unit, axis=-1))
    return found


def named(signals: Iterable[Signal]) -> dict[str, NDArray]:
    """Return signals' arrays by full name."""
    return {signal.name: np.asarray(signal.values) for signal in signals}


def errors(found: Mapping[str, NDArray], wanted: Mapping[str, NDArray]) -> dict[str, float]:
    """Return the largest error of each kind: relative of vectors, of a logarithm the difference, which is the norm's.

    It is infinite where a signal is missing or nobody asked for it, where a shape differs, and where one side alone is
    zero or not a number.
    """
    worst: dict[str, float] = {}
    for name in found.keys() | wanted.keys():
        kind = name.partition("/")[0]
        there = name in found and name in wanted and found[name].shape == wanted[name].shape
        apart = _apart(kind, found[name], wanted[name]) if there else np.inf
        worst[kind] = max(worst.get(kind, 0.0), apart)
    return worst


def _apart(kind: str, found: NDArray, wanted: NDArray) -> float:
    if not np.array_equal(np.isnan(found), np.isnan(wanted)):
        return np.inf
    if kind.endswith(".vector"):
        size = np.abs(wanted).max(axis=-1, keepdims=True)
        off = np.abs(found - wanted)
        if ((size == 0) & (off > 0)).any():
            return np.inf
        scale = np.where(size == 0, 1.0, size)  # squares must not underflow
        norms = np.linalg.norm(wanted / scale, axis=-1)
        relative = np.linalg.norm(off / scale, axis=-1) / np.where(norms == 0, 1.0, norms)
        return float(np.where(np.isnan(wanted).any(axis=-1), 0.0, relative).max(initial=0.0))
    same = (found == wanted) | np.isnan(wanted)
    with np.errstate(invalid="ignore"):
        return float(np.where(same, 0.0, np.abs(found - wanted)).max(initial=0.0))


def worst(found: Mapping[str, NDArray], wanted: Mapping[str, NDArray]) -> float:
    """Return the largest of all `errors`."""
    return max(errors(found, wanted).values())


def kinds(signals: Mapping[str, Any], *names: str) -> dict[str, Any]:
    """Return the signals of some kinds."""
    return {name: values for name, values in signals.items() if name.partition("/")[0] in names}
