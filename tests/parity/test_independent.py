"""The cells against independent implementations that carry the same weights: torch.nn, flax and equinox.

Each comparison runs our equation through a backend's own trainer, and the other implementation through that
framework's own modules and loss, in float64: states within 1e-12 and gradients within 1e-11, norm-relative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Inspection, TrainState
from rnnbench.backends.jax import JaxBackend
from rnnbench.backends.torch import TorchBackend
from rnnbench.cells.base import Cell
from rnnbench.cells.gru import GRU
from rnnbench.cells.lstm import LSTM
from rnnbench.cells.rnn import RNN
from rnnbench.parity import measure
from rnnbench.spec import NetworkSpec
from rnnbench.streams import stream
from rnnbench.tasks.adding import Adding
from rnnbench.tasks.base import Batch, Task
from rnnbench.tasks.copying import Copy

from .conftest import Build

COPY, ADDING = Copy(delay=3, symbols=2, alphabet=3), Adding(T=8)
H = 5
Params = dict[str, NDArray]


def random_params(case: Any) -> Params:
    """Draw every parameter anew, so that no bias is zero."""
    return {
        name: stream(3, name).normal(0.0, 0.4, param.shape) for name, param in case.program.network.parameters().items()
    }


def inspected(backend: Any, case: Any, params: Params) -> tuple[Inspection, Batch]:
    trainer = backend.trainer(case.program, "cpu", "float64", "reference")
    trainer.load(TrainState(params))
    batch = case.batches[0].cast("float64")
    return trainer.inspect(batch, 0.1), batch


def assert_close(ours: NDArray, theirs: Any, tolerance: float, what: str) -> None:
    difference = measure(np.asarray(theirs), ours).differences[0]
    assert difference <= tolerance, f"{what}: {difference}"


def torch_module(cell: Cell, task: Task, network: NetworkSpec) -> torch.nn.RNNBase:
    options = {"num_layers": network.layers, "bidirectional": network.bidirectional, "dtype": torch.float64}
    if isinstance(cell, LSTM):
        return torch.nn.LSTM(task.n_in, H, **options)
    if isinstance(cell, GRU):
        return torch.nn.GRU(task.n_in, H, **options)
    assert isinstance(cell, RNN)
    return torch.nn.RNN(task.n_in, H, nonlinearity=cell.activation, **options)


def torch_name(module: torch.nn.RNNBase, name: str) -> torch.nn.Parameter | None:
    """Return the module's parameter that ours is called `name`, if it is one of the recurrence."""
    if not name.startswith("layers."):
        return None
    _, layer, direction, own = name.split(".")
    own = {"bias": "bias_ih"}.get(own, own)
    parameter: torch.nn.Parameter = getattr(module, f"{own}_l{layer}" + ("_reverse" if direction == "backward" else ""))
    return parameter


@pytest.mark.parametrize("task", [COPY, ADDING], ids=["each", "last"])
@pytest.mark.parametrize(
    "network",
    [NetworkSpec(), NetworkSpec(layers=2), NetworkSpec(layers=2, bidirectional=True)],
    ids=["plain", "stacked", "bidirectional"],
)
@pytest.mark.parametrize(
    "cell",
    [
        RNN(hidden=H),
        RNN(hidden=H, activation="relu", biases=2),
        LSTM(hidden=H),
        LSTM(hidden=H, biases=2),
        GRU(hidden=H, biases=2),
        GRU(hidden=H, biases=1),
    ],
    ids=["tanh", "relu-2", "lstm", "lstm-2", "gru-2", "gru"],
)
def test_torch_nn(build: Build, cell: Cell, network: NetworkSpec, task: Task) -> None:
    case = build(task, cell, network=network, steps=1)
    params = random_params(case)
    ours, batch = inspected(TorchBackend(), case, params)

    module = torch_module(cell, task, network)
    readout = torch.nn.Linear((1 + network.bidirectional) * H, task.n_out, dtype=torch.float64)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.zero_()
        for name, value in params.items():
            target = torch_name(module, name)
            (getattr(readout, name.split(".")[1]) if target is None else target).copy_(torch.from_numpy(value))
    sequence, last = module(torch.from_numpy(batch.inputs))
    if task.readout == "each":
        outputs = readout(sequence)
        loss = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.from_numpy(batch.targets).flatten())
    else:
        ends = last[0] if isinstance(cell, LSTM) else last
        outputs = readout(torch.cat(list(ends[-(1 + network.bidirectional) :]), dim=-1))
        loss = torch.nn.functional.mse_loss(outputs, torch.from_numpy(batch.targets))
    loss.backward()

    assert_close(np.asarray(ours.loss), loss.detach(), 1e-12, "loss")
    assert_close(ours.outputs, outputs.detach(), 1e-12, "outputs")
    top = [f"layers.{network.layers - 1}.{way}.h" for way in ("forward", "backward")[: 1 + network.bidirectional]]
    assert_close(np.concatenate([ours.states[name] for name in top], axis=-1), sequence.detach(), 1e-12, "states")
    for name, gradient in ours.gradients.items():
        target = torch_name(module, name)
        theirs = getattr(readout, name.split(".")[1]).grad if target is None else target.grad
        assert_close(gradient, theirs, 1e-11, name)


Step = Callable[[Mapping[str, Any], Any, Any], tuple[Any, Any]]
"""(our parameters by their own names, carry, inputs of one step [batch n_in]) -> (carry, h)"""


def compare_with_jax(build: Build, cell: Cell, carry: Any, step: Step) -> None:
    """Compare a cell, forward and backward, with another step under the same weights."""
    case = build(COPY, cell, steps=1)
    params = random_params(case)
    if isinstance(cell, GRU):  # neither flax nor equinox has these two, which only add to the input's bias
        params["layers.0.forward.bias_hh"][: 2 * H] = 0.0
    ours, batch = inspected(JaxBackend(), case, params)

    def loss_of(params: Mapping[str, Any]) -> tuple[Any, Any]:
        own = {name.rpartition(".")[2]: value for name, value in params.items() if name.startswith("layers.")}
        _, sequence = jax.lax.scan(lambda carry, x: step(own, carry, x), carry(batch.size), jnp.asarray(batch.inputs))
        outputs = sequence @ params["readout.weight"].T + params["readout.bias"]
        chosen = jnp.take_along_axis(jax.nn.log_softmax(outputs), jnp.asarray(batch.targets)[..., None], axis=-1)
        return -jnp.mean(chosen), (sequence, outputs)

    with jax.enable_x64(True):
        (loss, (sequence, outputs)), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(
            {name: jnp.asarray(value) for name, value in params.items()}
        )
        assert outputs.dtype == jnp.float64
    assert_close(np.asarray(ours.loss), loss, 1e-12, "loss")
    assert_close(ours.outputs, outputs, 1e-12, "outputs")
    assert_close(ours.states["layers.0.forward.h"], sequence, 1e-12, "states")
    for name, gradient in ours.gradients.items():
        theirs = np.asarray(gradients[name])
        if name.endswith("bias_hh"):
            assert_close(gradient[: 2 * H], ours.gradients[name.replace("_hh", "_ih")][: 2 * H], 1e-11, name)
            gradient, theirs = gradient[2 * H :], theirs[2 * H :]
        assert_close(gradient, theirs, 1e-11, name)


def zeros(batch: int) -> Any:
    return jnp.zeros((batch, H), jnp.float64)


def dense(weight: Any, bias: Any = None) -> dict[str, Any]:
    return {"kernel": weight.T} | ({} if bias is None else {"bias": bias})


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_flax_simple_cell(build: Build, activation: str) -> None:
    import flax.linen as nn

    module = nn.SimpleCell(H, activation_fn=getattr(jax.nn, activation), param_dtype=jnp.float64)

    def step(own: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        params = {"i": dense(own["weight_ih"], own["bias"]), "h": dense(own["weight_hh"])}
        return module.apply({"params": params}, carry, x)

    compare_with_jax(build, RNN.parse({"hidden": H, "activation": activation}, "cell"), zeros, step)


@pytest.mark.parametrize("optimized", [False, True])
def test_flax_lstm(build: Build, optimized: bool) -> None:
    import flax.linen as nn

    module = (nn.OptimizedLSTMCell if optimized else nn.LSTMCell)(H, param_dtype=jnp.float64)

    def step(own: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        parts = {name: jnp.split(own[name], 4) for name in ("weight_ih", "weight_hh", "bias")}
        params = {f"i{gate}": dense(parts["weight_ih"][k]) for k, gate in enumerate("ifgo")}
        params |= {f"h{gate}": dense(parts["weight_hh"][k], parts["bias"][k]) for k, gate in enumerate("ifgo")}
        return module.apply({"params": params}, carry, x)

    compare_with_jax(build, LSTM(hidden=H), lambda batch: (zeros(batch), zeros(batch)), step)  # carry is (c, h)


def test_flax_gru(build: Build) -> None:
    import flax.linen as nn

    module = nn.GRUCell(H, param_dtype=jnp.float64)

    def step(own: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        parts = {name: jnp.split(value, 3) for name, value in own.items()}
        params = {f"i{g}": dense(parts["weight_ih"][k], parts["bias_ih"][k]) for k, g in enumerate("rzn")}
        params |= {"hr": dense(parts["weight_hh"][0]), "hz": dense(parts["weight_hh"][1])}
        params["hn"] = dense(parts["weight_hh"][2], parts["bias_hh"][2])
        return module.apply({"params": params}, carry, x)

    compare_with_jax(build, GRU(hidden=H), zeros, step)


def test_flax_gru_has_a_bias_inside_the_reset_product() -> None:
    """As torch has; what flax leaves out are the recurrent biases of r and z, which only add to the input's."""
    import flax.linen as nn

    shapes = jax.eval_shape(nn.GRUCell(H).init, jax.random.key(0), jnp.zeros((1, H)), jnp.zeros((1, 3)))
    assert {name for name, entry in shapes["params"].items() if "bias" in entry} == {"ir", "iz", "in", "hn"}


def test_equinox_lstm(build: Build) -> None:
    import equinox as eqx

    module = eqx.nn.LSTMCell(COPY.n_in, H, key=jax.random.key(0))

    def step(own: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        filled = eqx.tree_at(
            lambda m: (m.weight_ih, m.weight_hh, m.bias), module, (own["weight_ih"], own["weight_hh"], own["bias"])
        )
        carry = jax.vmap(filled)(x, carry)
        return carry, carry[0]

    compare_with_jax(build, LSTM(hidden=H), lambda batch: (zeros(batch), zeros(batch)), step)  # carry is (h, c)


def test_equinox_gru(build: Build) -> None:
    import equinox as eqx

    module = eqx.nn.GRUCell(COPY.n_in, H, key=jax.random.key(0))

    def step(own: Mapping[str, Any], carry: Any, x: Any) -> tuple[Any, Any]:
        filled = eqx.tree_at(
            lambda m: (m.weight_ih, m.weight_hh, m.bias, m.bias_n),
            module,
            (own["weight_ih"], own["weight_hh"], own["bias_ih"], own["bias_hh"][2 * H :]),
        )
        h = jax.vmap(filled)(x, carry)
        return h, h

    compare_with_jax(build, GRU(hidden=H), zeros, step)
