"""What gates, units and states do while a model runs: saturation, time constants, dead units, norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import NDArray
from rnnbench.backends.base import Program
from rnnbench.cells.network import Network, valid_steps
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import ACTIVITY
from rnnbench.signals import Signal, SignalKind
from rnnbench.xp import Arrays, Differentiable

EDGE = 0.05
"""The part of a range at either end that counts as saturated: a twentieth."""


AT_ONCE = 2**23
"""Numbers of gates and states that are kept at once (64 MiB); more sequences are run group after group."""


class Activity(Probe):
    """Saturation of gates and units, time constants of gates that keep a state, dead units and norms of states.

    The model runs as in evaluation. Steps that are padding count nowhere; a state's norm there, and a share at a step
    that no sequence has, is not a number, and neither is anything computed from a value that is none.

    The time constant of a gate f is -1 / mean(ln f), over steps and sequences: a unit that is multiplied by f_t at each
    step decays to exp(sum ln f_t) of itself. -1 / (1 - mean f), which is often printed, is the same only for a gate
    that stands still. It is infinite for a gate that is 1 throughout, and 0 for one that was ever 0.
    """

    name: ClassVar[str] = "activity"
    source: ClassVar[str] = (
        "saturation: Karpathy, Johnson & Fei-Fei, Visualizing and understanding recurrent networks, ICLR 2016 "
        "workshop; time constants: Tallec & Ollivier, ICLR 2018, s2"
    )
    equation: ClassVar[str] = "tau = -1 / mean_{t, sequences}(ln f_t)"
    signals: ClassVar[tuple[SignalKind, ...]] = ACTIVITY

    sequences: Annotated[int, Field(ge=1, le=65536, description="sequences to probe with")] = 64

    def measure(self, look: Look) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        network: Network = look.program.network
        kept = sum(math.prod(shape) for shape in network.state_shapes(1).values())
        kept *= 1 + len(network.cell.taps())  # a gate is about as wide as the states together, or less
        groups = -(-batch.size // max(1, AT_ONCE // kept))
        size = -(-batch.size // groups)
        function = partial(_watched, look.program)
        found = _added_up(
            [
                look.lab.compute(("activity", look.key), function, look.arrays(batch.take(slice(at, at + size))))
                for at in range(0, batch.size, size)
            ]
        )
        for full, values in found.items():
            kind, _, of = full.partition("/")
            if kind == "mean_log":
                # a mean of exactly zero, of either sign, is a gate that never lets go
                tau = np.where(values == 0, np.inf, -1.0 / np.where(values == 0, 1.0, values))
                yield recorded("activity.time_constant", tau, look.step, of)
            elif kind == "spread":
                dead = np.where(np.isfinite(values), (values == 0).astype(float), np.nan)
                yield recorded("activity.dead", dead, look.step, of)
            else:
                yield recorded(f"activity.{kind}", values, look.step, of)


def _added_up(groups: Sequence[Mapping[str, NDArray]]) -> dict[str, NDArray]:
    """Put what `_watched` found in groups of sequences together: low, high, mean_log, spread and state_norm."""
    found: dict[str, NDArray] = {}
    with np.errstate(invalid="ignore"):  # a step that no sequence has, and what is no number
        for full in groups[0]:
            kind, _, of = full.partition("/")
            each = [group[full] for group in groups]
            if kind in ("low", "high", "mean_log"):
                found[full] = np.sum(each, axis=0) / np.sum([g[f"count_{kind}/{of}"] for g in groups], axis=0)
            elif kind == "largest":
                found[f"spread/{of}"] = np.max(each, axis=0) - np.min([g[f"least/{of}"] for g in groups], axis=0)
            elif kind == "state_norm":
                found[full] = np.concatenate(each, axis=1)
    return found


def _watched(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return by ``<kind>/<tap or state>``: sums, and what they are to be divided by, largest and least, and norms.

    low, high, count_low, count_high [time]; mean_log [unit], count_mean_log []; largest, least [unit]; state_norm
    [time batch].
    """
    params, buffers, batch = unpacked(arrays)
    network: Network = program.network
    forward = program.outputs(xp, params, buffers, batch, False, watch=True, record=True)
    valid = valid_steps(xp, network.length, batch["lengths"])  # [time batch 1]
    weights = xp.floats(valid)
    found: Arrays = {}
    for scope in network.scopes():
        for tap in network.cell.taps():
            name = f"{scope.name}.{tap.name}"
            values = forward.taps[name]
            if tap.low is not None and tap.high is not None:
                # padding is brought inside; what is no number keeps its place in the sum, and shows
                values_inside = xp.where(valid, values, xp.zeros(values.shape) + 0.5 * (tap.low + tap.high))
                edge = EDGE * (tap.high - tap.low)
                count = xp.sum(weights, axis=(1, 2)) * int(values.shape[2])
                for kind, beyond in (
                    ("low", values_inside <= tap.low + edge),
                    ("high", values_inside >= tap.high - edge),
                ):
                    hits = xp.floats(beyond) * weights + 0.0 * values_inside
                    found |= {f"{kind}/{name}": xp.sum(hits, axis=(1, 2)), f"count_{kind}/{name}": count}
            if tap.keeps is not None:
                logs = xp.where(valid, xp.log(values), xp.zeros(values.shape))
                found |= {
                    f"mean_log/{name}": xp.sum(logs, axis=(0, 1)),
                    f"count_mean_log/{name}": xp.sum(weights),
                }
        for state in network.cell.states():
            name = f"{scope.name}.{state.name}"
            values = forward.states[name]
            rows = (-1, int(values.shape[2]))
            # every sequence has a first step, whose value stands in for its padding
            kept = xp.reshape(xp.where(valid, values, xp.broadcast_to(values[:1], values.shape)), rows)
            found |= {f"largest/{name}": -xp.amin(-kept, axis=0), f"least/{name}": xp.amin(kept, axis=0)}
            norm = xp.norm(values, axis=-1)
            found[f"state_norm/{name}"] = xp.where(valid[:, :, 0], norm, xp.zeros(norm.shape) + np.nan)
    return found
