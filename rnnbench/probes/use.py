"""How much of the past a model uses: what becomes of its output when its history is exchanged for another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field

from rnnbench.arrays import Array, NDArray
from rnnbench.backends.base import Program
from rnnbench.errors import BadInput
from rnnbench.objectives import loss_terms, weighted_mean
from rnnbench.probes.adjoint import loss_ends
from rnnbench.probes.base import Look, Probe, recorded, unpacked
from rnnbench.probes.kinds import USE
from rnnbench.signals import Signal, SignalKind
from rnnbench.streams import stream
from rnnbench.xp import Arrays, Differentiable


class Use(Probe):
    """Change of a model's output at one loss step when inputs at some lags come from another sequence.

    Unlike a gradient this is no matter of small changes: inputs are exchanged for such as the model may as well have
    met. The lag of an input is its distance to the step whose output is looked at, which is the adjoint probe's: the
    last step with a loss, or the last step of each sequence. An input is exchanged for the one at the same lag of the
    donor; one for which the donor is too short stays, and so do padding and what comes after the loss step. Donors are
    other sequences of the probed batch, the same at every look. An exchange of equal inputs changes nothing, so that a
    symbol that all sequences share at a lag counts as not used.

    Changes are root mean squares over outputs, sequences and `draws` of donors, and losses, those at the loss step
    alone, means over them. Where exchanging the whole history changes nothing, the quotients are not numbers.
    """

    name: ClassVar[str] = "use"
    source: ClassVar[str] = (
        "intervention by resampling: Fisher, Rudin & Dominici, JMLR 2019 (permuted inputs); on a model's context: "
        "Khandelwal, He, Qi & Jurafsky, ACL 2018"
    )
    equation: ClassVar[str] = (
        "change_k = rms(y(x with x_{lag >= k} from x') - y(x)) / rms(y(x with all from x') - y(x))"
    )
    signals: ClassVar[tuple[SignalKind, ...]] = USE
    needs_cell: ClassVar[bool] = False

    sequences: Annotated[int, Field(ge=2, le=65536, description="sequences to probe with")] = 16
    draws: Annotated[int, Field(ge=1, le=1024, description="donors of each sequence that are averaged over")] = 4
    points: Annotated[int, Field(ge=2, le=65536)] = Field(24, description="lags at most, evenly in their logarithm")
    loss_step: Annotated[int, Field(ge=0)] | None = Field(
        None, description="step of the loss whose output is looked at; by default the last one that counts"
    )

    def measure(self, look: Look) -> Iterator[Signal]:
        batch = look.batch.take(slice(0, self.sequences))
        if batch.size < 2:
            raise BadInput(
                f"probe use: {batch.size} sequence has no other to exchange inputs with; at least 2 are needed"
            )
        ends = loss_ends(look.program, batch, self.loss_step, "use")
        lags = log_lags(int(ends.max()), self.points)
        rng = stream(look.seed, "probe/use/donors")
        drawn = [exchanged(batch.inputs, ends, derangement(rng, batch.size)) for _ in range(self.draws)]
        arrays = look.arrays(batch.take(np.tile(np.arange(batch.size), self.draws))) | {
            "donors": np.concatenate([donors for donors, _ in drawn], axis=1),
            "lags": np.concatenate([found for _, found in drawn], axis=1),
            "ends": np.tile(ends, self.draws),
            # nothing; then from each lag on; then each lag alone
            "from": np.concatenate([[1], lags, lags]),
            "to": np.concatenate([[0], np.full_like(lags, ends.max()), lags]),
        }
        found = look.lab.compute(("use", look.key), partial(_interventions, look.program), arrays)
        outputs = found["outputs"].reshape(len(found["loss"]), -1)
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):  # of a model that has diverged
            change = np.sqrt(np.mean((outputs[1:] - outputs[0]) ** 2, axis=1))
            change = np.where(change[0] > 0, change / change[0], np.nan)
        count, step = len(lags), look.step
        yield recorded("use.lags", lags, step)
        yield recorded("use.output_change", change[:count], step)
        yield recorded("use.single_change", change[count:], step)
        yield recorded("use.loss", found["loss"][1 : count + 1], step)
        yield recorded("use.base_loss", found["loss"][0], step)


def log_lags(last: int, points: int) -> NDArray:
    """Return 0 and up to `points` - 1 further lags, evenly spread in their logarithm from 1 to `last`, as integers."""
    if last == 0:
        return np.zeros(1, dtype=np.int64)
    spread = np.geomspace(1, last, points - 1) if points > 2 else np.array([last])
    return np.unique(np.concatenate([[0], np.round(spread)])).astype(np.int64)


def derangement(rng: np.random.Generator, size: int) -> NDArray:
    """Draw for each of `size` sequences another one, each once: along a random cycle through all of them."""
    order = rng.permutation(size)
    found = np.empty(size, dtype=np.int64)
    found[order] = np.roll(order, -1)
    return found


def exchanged(inputs: NDArray, ends: NDArray, donor: NDArray) -> tuple[NDArray, NDArray]:
    """Return each step's input by a donor, and the lag of the step.

    Args:
        inputs: [time batch n_in].
        ends: [batch], each sequence's loss step.
        donor: [batch], the sequence that gives.

    Returns:
        The donor's input at the same lag [time batch n_in], and the lag [time batch], -1 where nothing is exchanged.
    """
    length = inputs.shape[0]
    lags = ends[None, :] - np.arange(length)[:, None]
    source = ends[donor][None, :] - lags
    there = (lags >= 0) & (source >= 0)
    given = inputs[np.clip(source, 0, length - 1), donor[None, :]]
    return np.where(there[:, :, None], given, inputs), np.where(there, lags, -1)


def _interventions(program: Program, xp: Differentiable, arrays: Arrays) -> Arrays:
    """Return outputs [intervention sequence n_out] and losses [intervention] at the loss step."""
    params, buffers, batch = unpacked(arrays)
    last = program.task.readout == "last"
    steps = xp.asarray(list(range(int(batch["inputs"].shape[0]))))
    chosen = xp.floats(steps[:, None] == arrays["ends"][None, :])  # [time sequence]

    def body(carry: Arrays, here: Mapping[str, Array]) -> tuple[Arrays, Arrays]:
        swap = (arrays["lags"] >= here["from"]) & (arrays["lags"] <= here["to"])
        inputs = xp.where(swap[:, :, None], arrays["donors"], batch["inputs"])
        outputs = program.outputs(xp, params, buffers, {**batch, "inputs": inputs}, False).outputs
        terms = loss_terms(xp, program.task.loss, outputs, batch["targets"])
        weights = batch["mask"] if last else batch["mask"] * chosen
        read = outputs if last else xp.sum(outputs * chosen[:, :, None], axis=0)
        return carry, {"outputs": read, "loss": weighted_mean(xp, terms, weights)}

    count = int(arrays["from"].shape[0])
    _, found = xp.scan(body, {}, {"from": arrays["from"], "to": arrays["to"]}, count)
    return found
