"""Our optimizers on optax: a chain that turns gradients into directions; the learning rate is applied outside it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from rnnbench.arrays import Array
from rnnbench.errors import BadInput
from rnnbench.techniques.update.optimizers import SGD, Adam, AdamW, Optimizer, RMSProp
from rnnbench.xp import Arrays


def build(spec: Optimizer) -> optax.GradientTransformation:
    """Return the transformation from gradients to directions d, for the update p <- p - lr d."""
    if isinstance(spec, SGD):
        return optax.chain(optax.trace(spec.momentum, nesterov=spec.nesterov) if spec.momentum else optax.identity())
    if isinstance(spec, RMSProp):
        rms = optax.scale_by_rms(spec.decay, spec.eps, spec.accumulator, eps_in_sqrt=spec.eps_inside)
        return optax.chain(rms, optax.trace(spec.momentum)) if spec.momentum else optax.chain(rms)
    if isinstance(spec, Adam):
        adam = scale_by_adam(spec.beta1, spec.beta2, spec.eps)
        if isinstance(spec, AdamW):
            return optax.chain(adam, optax.add_decayed_weights(spec.weight_decay))
        return optax.chain(adam)
    raise BadInput(f"optimizer: jax has no mapping for {spec.name}")


def scale_by_adam(beta1: float, beta2: float, eps: float) -> optax.GradientTransformation:
    """Return optax.scale_by_adam with exact bias corrections.

    optax computes 1 - beta^t in the run's precision, where float32 leaves 1 - 0.999 with a relative error of 1e-5;
    torch computes it in double. Here it is -expm1(t log beta), which loses nothing.
    """

    def correction(beta: float, count: Array) -> Array:
        return -jnp.expm1(count * math.log(beta)) if beta > 0 else jnp.ones(())

    def update(gradients: Any, state: Any, _params: Any = None) -> tuple[Any, Any]:
        mean = optax.tree.update_moment(gradients, state.mu, beta1, 1)
        square = optax.tree.update_moment_per_elem_norm(gradients, state.nu, beta2, 2)
        count = state.count + 1
        first, second = correction(beta1, count), correction(beta2, count)
        directions = jax.tree.map(
            lambda m, v: (m / first.astype(m.dtype)) / (jnp.sqrt(v / second.astype(v.dtype)) + eps), mean, square
        )
        return directions, optax.ScaleByAdamState(count=count, mu=mean, nu=square)

    return optax.GradientTransformation(optax.scale_by_adam(beta1, beta2, eps).init, update)


def pack(spec: Optimizer, params: Arrays, slots: Mapping[str, Array], step: Array) -> Any:
    """Return optax's state holding our slots (``<slot>/<parameter>``); absent ones take their starting values."""

    def tree(slot: str) -> Arrays:
        start = spec.slots()[slot]
        return {name: slots.get(f"{slot}/{name}", jnp.full_like(param, start)) for name, param in params.items()}

    if isinstance(spec, SGD):
        return (optax.TraceState(tree("momentum")) if spec.momentum else optax.EmptyState(),)
    if isinstance(spec, RMSProp):
        rms = optax.ScaleByRmsState(nu=tree("square"))
        return (rms, optax.TraceState(tree("momentum"))) if spec.momentum else (rms,)
    adam = optax.ScaleByAdamState(count=jnp.asarray(step, jnp.int32), mu=tree("mean"), nu=tree("square"))
    return (adam, optax.EmptyState()) if isinstance(spec, AdamW) else (adam,)


def unpack(spec: Optimizer, state: Any) -> Arrays:
    """Return our slots from optax's state."""
    trees: dict[str, Arrays] = {}
    if isinstance(spec, SGD) and spec.momentum:
        trees = {"momentum": state[0].trace}
    elif isinstance(spec, RMSProp):
        trees = {"square": state[0].nu} | ({"momentum": state[1].trace} if spec.momentum else {})
    elif isinstance(spec, Adam):
        trees = {"mean": state[0].mu, "square": state[0].nu}
    return {f"{slot}/{name}": array for slot, tree in trees.items() for name, array in tree.items()}
