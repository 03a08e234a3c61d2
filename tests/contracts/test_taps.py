"""What a cell lets probes see inside its step, and what it says of its recurrent weights; a third party's cell too."""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import pytest

from rnnbench import registry
from rnnbench.arrays import Array, NDArray
from rnnbench.backends.numpy import NumpyOps
from rnnbench.cells.base import Cell, Context
from rnnbench.cells.network import Network, recur
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Ops

T, B, H, N_IN = 6, 3, 4, 2
LENGTHS = np.array([6, 4, 5])


def variants() -> Iterator[tuple[str, Cell]]:
    """Yield every registered cell as it is by default, and with each of its switches at each other value."""
    for name in registry.names("cells"):
        kind: type[Cell] = registry.load("cells", name)
        base = kind.parse({"hidden": H}, "cell")
        yield name, base
        for key, field in kind.model_fields.items():
            values: tuple[Any, ...] = (False, True) if field.annotation is bool else ()
            if typing.get_origin(field.annotation) is Literal:
                values = typing.get_args(field.annotation)
            for value in values:
                if value != getattr(base, key):
                    yield f"{name}-{key}={value}", kind.parse({"hidden": H, key: value}, "cell")


CELLS = dict(variants())
BUILT_IN = [registry.load("cells", name) for name in registry.BUILT_IN["cells"]]


@pytest.fixture(params=CELLS)
def cell(request: pytest.FixtureRequest) -> Cell:
    return CELLS[request.param]


def network_of(cell: Cell, masked: bool = False) -> Network:
    return Network(cell, NetworkSpec(layers=2, bidirectional=True), N_IN, 2, T, read_last=False, masked=masked)


def parameters(network: Network, spread: float = 0.7) -> dict[str, NDArray]:
    named = network.parameters()
    return {name: stream(0, f"tests/taps/{name}").normal(0.0, spread, param.shape) for name, param in named.items()}


INPUTS = stream(0, "tests/taps").normal(size=(T, B, N_IN))


def forward(cell: Cell, xp: Ops, spread: float = 0.7, masked: bool = False, **options: Any) -> Any:
    network = network_of(cell, masked)
    params = {name: xp.asarray(value) for name, value in parameters(network, spread).items()}
    buffers = {name: xp.asarray(value) for name, value in network.initial_buffers(0).items()}
    return network.forward(xp, params, buffers, xp.asarray(INPUTS), xp.asarray(LENGTHS), training=False, **options)


def test_every_declared_tap_is_tapped_at_every_step_and_no_other(cell: Cell) -> None:
    declared = [tap.name for tap in cell.taps()]
    assert len(set(declared)) == len(declared)
    scopes = [scope.name for scope in network_of(cell).scopes()]
    taps = forward(cell, NumpyOps(), watch=True).taps
    assert set(taps) == {f"{scope}.{name}" for scope in scopes for name in declared}
    for name, values in taps.items():
        assert values.shape[:2] == (T, B), name
        assert values.ndim == 3, name
        assert np.isfinite(values).all(), name
        assert len(np.unique(values)) > T, f"{name} is the same at every step"


@pytest.mark.parametrize("spread", [0.7, 30.0])
def test_taps_stay_within_their_range(cell: Cell, spread: float) -> None:
    """Also where they are driven into their ends."""
    with np.errstate(over="ignore"):
        taps = forward(cell, NumpyOps(), spread, watch=True).taps
    reached = 0
    for tap in cell.taps():
        assert (tap.low is None) == (tap.high is None), "a range has two ends"
        if tap.low is None or tap.high is None:
            continue
        assert tap.low < tap.high
        values = np.stack([value for name, value in taps.items() if name.endswith(f".{tap.name}")])
        assert values.min() >= tap.low
        assert values.max() <= tap.high
        middle = (tap.low + tap.high) / 2
        assert values.min() < middle < values.max(), f"{tap.name} uses half of its range"
        twentieth = (tap.high - tap.low) / 20
        reached += int((values < tap.low + twentieth).any() and (values > tap.high - twentieth).any())
    if spread > 1:
        assert reached == sum(tap.low is not None for tap in cell.taps()), "a range that is never filled is not one"


def test_what_is_kept_and_what_is_inner_are_states(cell: Cell) -> None:
    states = {state.name: state.size for state in cell.states()}
    for tap in cell.taps():
        if tap.keeps is not None:
            assert tap.keeps in states
            assert (tap.low, tap.high) == (0.0, 1.0), "a part is kept"
        if tap.inner:
            assert tap.name in states
    ran = forward(cell, NumpyOps(), watch=True, record=True)
    for scope in network_of(cell).scopes():
        for tap in cell.taps():
            values = ran.taps[f"{scope.name}.{tap.name}"]
            if tap.inner:
                np.testing.assert_array_equal(values, ran.states[f"{scope.name}.{tap.name}"])
            if tap.keeps is not None:
                assert values.shape[-1] == states[tap.keeps]


def test_an_inner_state_is_used_by_a_later_one(cell: Cell) -> None:
    """What is added to it at one step reaches other states of that same step; else it need not be called inner."""
    inner = [tap.name for tap in cell.taps() if tap.inner]
    for name in inner:
        plain, shifted = one_layer(cell, {}), one_layer(cell, {name: np.full((T, B, H), 0.25)})
        others = [state.name for state in cell.states() if state.name != name]
        assert any(np.abs(plain[other][0] - shifted[other][0]).max() > 1e-3 for other in others)
        np.testing.assert_allclose(shifted[name][0] - plain[name][0], 0.25, rtol=1e-12)


def one_layer(cell: Cell, added: Mapping[str, NDArray]) -> Arrays:
    xp, rng = NumpyOps(), stream(1, "tests/taps")
    params = {name: rng.normal(0.0, 0.7, param.shape) for name, param in cell.parameters(N_IN).items()}
    buffers = {name: item.init(rng, item.shape) for name, item in cell.buffers(N_IN, T).items()}
    start = {state.name: np.zeros((B, state.size)) for state in cell.states()}
    context = Context(0, None, False, buffers)
    _, ys = recur(xp, cell, params, INPUTS, start, None, context, False, {}, True, True, added=added)
    return ys


def test_what_is_added_to_a_tap_is_gone_on_with(cell: Cell) -> None:
    plain = one_layer(cell, {})
    for tap in cell.taps():
        there = one_layer(cell, {tap.name: np.zeros((T, B, H))})
        shifted = one_layer(cell, {tap.name: np.full((T, B, H), 0.125)})
        output = cell.output.name
        np.testing.assert_array_equal(there[output], plain[output])
        assert np.abs(shifted[output] - plain[output]).max() > 1e-3, f"{tap.name} is shown and not used"


def test_where_nobody_looks_a_tap_is_the_value_itself() -> None:
    value = object()
    context = Context(0, None, False)
    assert context.tap("f", value) is value
    assert not context.tapped
    watching = Context(0, None, False, watching=True)
    assert watching.tap("f", value) is value
    assert watching.tapped == {"f": value}


def on_backend(cell: Cell, backend: str, masked: bool, **options: Any) -> dict[str, NDArray]:
    """Run forward as probes do: in JAX compiled as a whole."""

    def compute(xp: Any, arrays: Arrays) -> Arrays:
        ran = forward(cell, xp, masked=masked, **options)
        return {"outputs": ran.outputs, **{f"state {name}": value for name, value in ran.states.items()}}

    if backend == "numpy":
        return {name: np.asarray(value) for name, value in compute(NumpyOps(), {}).items()}
    lab = registry.backend(backend).lab("cpu", "float64")
    return lab.compute(("tests/taps", repr(cell), masked, str(options)), compute, {})


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_watching_changes_no_bit(cell: Cell, backend: str, masked: bool) -> None:
    plain, watched = (on_backend(cell, backend, masked, watch=watch, record=True) for watch in (False, True))
    assert set(plain) == set(watched)
    for name, value in plain.items():
        assert value.tobytes() == watched[name].tobytes(), name


@pytest.mark.parametrize("record", [False, True])
@pytest.mark.parametrize("name", registry.names("cells"))
def test_watching_changes_no_bit_on_jax(name: str, record: bool) -> None:
    plain, watched = (on_backend(CELLS[name], "jax", False, watch=watch, record=record) for watch in (False, True))
    for of, value in plain.items():
        assert value.tobytes() == watched[of].tobytes(), of


def test_recurrent_blocks_are_squares_that_act_on_a_state(cell: Cell) -> None:
    sizes = {state.size for state in cell.states()}
    for name, param in cell.parameters(N_IN).items():
        if not param.recurrent:
            continue
        assert len(set(param.recurrent)) == len(param.recurrent), name
        assert len(param.shape) == 2, name
        rows, columns = param.shape
        assert rows == len(param.recurrent) * columns, name
        assert columns in sizes, name


def test_recurrent_weights_are_declared_and_no_input_weights(cell: Cell) -> None:
    """A recurrent matrix keeps its shape where the input is wider, and an input's does not."""
    narrow, wide = cell.parameters(N_IN), cell.parameters(N_IN + 1)
    for name, param in narrow.items():
        assert not param.recurrent or param.shape == wide[name].shape, f"{name} acts on the input"
    if type(cell) in BUILT_IN:
        assert {name for name, param in narrow.items() if param.recurrent} == {"weight_hh"}


class Undeclared(registry.load("cells", "rnn")):  # type: ignore[misc]  # a class found by name
    """Taps what it has not declared."""

    def step(self, xp: Ops, params: Mapping[str, Array], states: Arrays, u: Array, context: Context) -> Arrays:
        new: Arrays = super().step(xp, params, states, u, context)
        context.tap("secret", new["h"])
        return new


def test_the_contract_can_fail() -> None:
    with pytest.raises(AssertionError):
        test_every_declared_tap_is_tapped_at_every_step_and_no_other(Undeclared(hidden=H))
