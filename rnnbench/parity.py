"""Parity: do two backends compute the same training steps? Measured, not believed.

Step by step, each backend starts from the same bytes (parameters, slots, buffers, batch) and everything that the step
computes is compared; then both run freely. Differences are norm-relative, ||a - b|| / ||reference||, without absolute
slack. An array's tolerance is the stated one times its own kappa, the measured response to a one-ulp change of all
inputs and parameters, of which at least 1 and at most `KAPPA_LIMIT` counts. Where kappa of a whole quantity exceeds
that limit the case is too sensitive to conclude anything from.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import STORAGE, Backend, Inspection, Program, Trainer, TrainState
from rnnbench.backends.numpy import NumpyBackend
from rnnbench.cells.network import Network
from rnnbench.errors import BadInput
from rnnbench.spec import Precision
from rnnbench.streams import stream
from rnnbench.tasks.base import Batch, hash_arrays

KAPPA_LIMIT = 1e3

NUDGES = 4
"""Random one-ulp changes, of which the largest response counts: a single one may leave a single number where it was."""

Verdict = Literal["equal", "over", "inconclusive", "non-finite"]
Phase = Literal["start", "step", "numpy", "train", "free"]
Named = Mapping[str, NDArray]
Opened = dict[str, Named]
"""Arrays by quantity and name."""


@dataclass(frozen=True)
class Tolerance:
    """Largest norm-relative differences where kappa is 1.

    Attributes:
        states: of loss, outputs and hidden states.
        gradients: of adjoints and parameters' gradients.
        updated: of parameters, slots and buffers after the update, and of all that runs freely.
        unit: the relative step between neighbouring numbers of the precision (of a product's factors, where those are
            coarser than the results).
    """

    states: float
    gradients: float
    updated: float
    unit: float


TOLERANCES: dict[Precision, Tolerance] = {
    "float64": Tolerance(1e-12, 1e-11, 1e-9, 2.0**-52),
    "float32": Tolerance(5e-6, 2e-5, 1e-4, 2.0**-23),
    # A factor that lies next to a tie may be rounded the other way in one framework, which changes it by a unit; a
    # gradient's product has two such factors, each of which hangs on a product before it: four units.
    "tf32": Tolerance(2.0**-10, 2.0**-8, 2.0**-8, 2.0**-10),
    "bfloat16": Tolerance(2.0**-7, 2.0**-5, 2.0**-5, 2.0**-7),
}


@dataclass(frozen=True)
class Row:
    """One quantity compared over all steps, told by the place that comes nearest to its tolerance or exceeds it most.

    Attributes:
        phase: ``start`` (bytes before a step), ``step`` (one step from the same bytes), ``numpy`` (forward against the
            NumPy reference), ``train`` (a backend's training loop, on its path, against its inspected step), ``free``.
        quantity: what is compared.
        between: the two sides, the reference first.
        difference: norm-relative there; infinite where one side alone is zero, missing or of another shape.
        at: where that is: step (0-based), array, and t in a sequence.
        tolerance: the stated one times the array's kappa, at that place.
        kappa: the whole quantity's largest response to a one-ulp change, in units of that change.
        compared: how many arrays (each t counts) were compared.
        verdict: ``equal`` within tolerance; ``over``; ``inconclusive`` where kappa exceeds its limit or numbers
            underflow; ``non-finite``.
    """

    phase: Phase
    quantity: str
    between: tuple[str, str]
    difference: float
    at: str
    tolerance: float
    kappa: float
    compared: int
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """Return plain values; null for what is not finite."""
        values = {**vars(self), "between": list(self.between)}
        return {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in values.items()}


@dataclass(frozen=True)
class ParityReport:
    """The outcome of a comparison.

    Attributes:
        backends: compared, the reference first.
        paths: the path of each backend's training loop.
        precision: of the run.
        device: of the run.
        steps: how many steps, one by one and freely.
        rows: a row for each quantity.
        batch_sha256: of the first batch, as sent and as each backend read it back.
        zero_gradients: the reason for each gradient that theory says is zero.
    """

    backends: tuple[str, ...]
    paths: dict[str, str]
    precision: str
    device: str
    steps: int
    rows: tuple[Row, ...]
    batch_sha256: dict[str, str]
    zero_gradients: dict[str, str] = field(default_factory=dict)

    @property
    def equal(self) -> bool:
        """Whether every quantity is within its tolerance."""
        return bool(self.rows) and all(row.verdict == "equal" for row in self.rows)

    @property
    def kappa(self) -> float:
        """The largest kappa of any quantity."""
        return max((row.kappa for row in self.rows), default=0.0)

    def row(self, phase: str, quantity: str) -> Row:
        """Return the worst row of that phase and quantity."""
        rows = [row for row in self.rows if (row.phase, row.quantity) == (phase, quantity)]
        return max(rows, key=lambda row: (row.verdict != "equal", _ratio(row.difference, row.tolerance)))

    def advice(self) -> list[str]:
        """Return a sentence for each kind of verdict that is not `equal`, saying what it means."""
        found = {row.verdict for row in self.rows}
        calmer = ["fewer steps", "a smaller learning rate", "smaller T"]
        if self.precision != "float64":
            calmer.append("float64")
        sentences = {
            "over": "over tolerance: the backends do not compute the same",
            "non-finite": "non-finite numbers: nothing can be compared; take a smaller learning rate or clip",
            "inconclusive": f"not concluded: a one-ulp change grows more than {KAPPA_LIMIT:.0f}-fold, or numbers "
            f"underflow; choose a calmer or shorter case ({', '.join(calmer)})",
        }
        return [text for verdict, text in sentences.items() if verdict in found]

    def as_json(self) -> dict[str, Any]:
        """Return plain values for strict JSON."""
        return {
            "equal": self.equal,
            "backends": list(self.backends),
            "paths": self.paths,
            "precision": self.precision,
            "device": self.device,
            "steps": self.steps,
            "kappa": self.kappa if math.isfinite(self.kappa) else None,
            "kappa_limit": KAPPA_LIMIT,
            "batch_sha256": self.batch_sha256,
            "zero_gradients": self.zero_gradients,
            "advice": self.advice(),
            "rows": [row.as_json() for row in self.rows],
        }


@dataclass(frozen=True)
class Measured:
    """Differences of one array [1], or of a sequence at each t [time], and the larger of the two sides' norms there."""

    differences: NDArray
    norms: NDArray

    @classmethod
    def single(cls, difference: float) -> Measured:
        """Return one difference, of numbers of no particular size."""
        return cls(np.asarray([difference]), np.asarray([math.inf]))


def compare(
    program: Program,
    state: TrainState,
    batches: Sequence[Batch],
    precision: Precision = "float64",
    *,
    backends: Sequence[str] = ("torch", "jax"),
    device: str = "cpu",
    path: str = "auto",
) -> ParityReport:
    """Compare `backends` on one training step for each batch, from the same bytes, and on as many run freely.

    Args:
        program: what a step computes.
        state: where the first step starts.
        batches: one for each step.
        precision: of the run.
        backends: their names; the first is the reference.
        device: for all of them.
        path: of the training loops, for the backends that have it; the others take their reference path.

    Raises:
        BadInput: when fewer than two different backends are named, there is no batch, or a backend, a device, a
            precision or a path is not to be had.
    """
    if len(set(backends)) < 2 or len(set(backends)) != len(backends):
        raise BadInput(f"parity: at least two different backends are compared, not {', '.join(backends) or 'none'}")
    found: dict[str, Backend] = {name: registry.backend(name) for name in backends}
    return compare_trainers(
        _trainers(found, program, device, precision, path), program, state, batches, precision, device
    )


def _trainers(
    backends: Mapping[str, Backend], program: Program, device: str, precision: Precision, path: str
) -> dict[str, Trainer]:
    """Build a trainer on each backend; at least one must have the path, where a certain one is wanted."""
    trainers: dict[str, Trainer] = {}
    refused: list[BadInput] = []
    for name, backend in backends.items():
        try:
            trainers[name] = backend.trainer(program, device, precision, path)
        except BadInput as error:
            if path in ("auto", "reference"):
                raise
            refused.append(error)
            trainers[name] = backend.trainer(program, device, precision, "reference")
    if len(refused) == len(backends):
        raise refused[0]
    return trainers


def compare_trainers(
    trainers: Mapping[str, Trainer],
    program: Program,
    state: TrainState,
    batches: Sequence[Batch],
    precision: Precision,
    device: str = "cpu",
) -> ParityReport:
    """Compare trainers that are there already; see `compare`. Their states are overwritten."""
    if not batches:
        raise BadInput("parity: steps must be at least 1")
    if not isinstance(program.network, Network):
        raise BadInput("parity: a user's whole model is one framework's own; give a cell")
    storage = STORAGE[precision]
    batches = [batch.cast(storage) for batch in batches]
    zero = dict(program.network.zero_gradients())
    for technique in program.techniques:
        zero |= technique.zero_gradients(tuple(program.network.parameters()))
    comparison = _Comparison(dict(trainers), program, precision, zero)
    start = _cast(state, storage)
    here = start
    for batch in batches:
        here = comparison.step(here, batch)
    comparison.free(start, batches)
    return ParityReport(
        backends=tuple(trainers),
        paths={name: trainer.path for name, trainer in trainers.items()},
        precision=precision,
        device=device,
        steps=len(batches),
        rows=tuple(tally.row() for tally in comparison.tallies.values()),
        batch_sha256=comparison.first_batch,
        zero_gradients=zero,
    )


class _Comparison:
    """Drives the trainers and keeps a tally for each quantity."""

    def __init__(
        self, trainers: dict[str, Trainer], program: Program, precision: Precision, zero: Mapping[str, str]
    ) -> None:
        self.trainers = trainers
        self.program = program
        self.precision = precision
        self.tolerance = TOLERANCES[precision]
        self.zero = zero
        self.rate = program.optimizer.lr
        self.tallies: dict[tuple[str, str, tuple[str, str]], _Tally] = {}
        self.first_batch: dict[str, str] = {}
        self.reference = next(iter(trainers))
        self.probe = list(trainers)[-1]  # kappa is measured on one backend: jax, as a rule, is the quicker

    def step(self, state: TrainState, batch: Batch) -> TrainState:
        """Compare one step from `state`; return the reference's state after it."""
        step = state.step
        loaded: dict[str, Named] = {}
        inspected: dict[str, Opened] = {}
        trained: dict[str, Opened] = {}
        after = state
        for name, trainer in self.trainers.items():
            trainer.load(state)
            loaded[name] = trainer.state().arrays()
            self._sent(name, trainer, step, batch)
            inspection = trainer.inspect(batch, self.rate)
            if name == self.reference:
                after = inspection.updated
            inspected[name] = self._opened(inspection)
            trained[name] = self._trained(trainer, batch)
        # the first step's slots are each backend's own starting values, so the reference's stand for what was sent
        sent = {key: loaded[self.reference].get(key, array) for key, array in state.arrays().items()}
        sent |= {key: array for key, array in loaded[self.reference].items() if key not in sent}
        for name in self.trainers:
            self._exactly("state", step, ("sent", name), sent, loaded[name])

        kappa = self._kappa(state, batch, inspected[self.probe])
        for name in list(self.trainers)[1:]:
            self._compare("step", step, (self.reference, name), inspected[self.reference], inspected[name], kappa)
        if self.precision in ("float64", "float32"):  # the NumPy reference does not round the factors of products
            loss, outputs, states = NumpyBackend().forward(self.program, state.params, state.buffers, batch)
            forward: Opened = {"loss": {"": np.asarray([loss])}, "outputs": {"": outputs}, "states": states}
            for name in self.trainers:
                self._compare("numpy", step, ("numpy", name), forward, inspected[name], kappa)
        for name, trainer in self.trainers.items():
            between = (name, f"{name} {trainer.path}")
            self._compare("train", step, between, inspected[name], trained[name], kappa)
        return after

    def free(self, start: TrainState, batches: Sequence[Batch]) -> None:
        """Compare free runs from `start` after each step."""
        runs = {name: self._run(trainer, start, batches) for name, trainer in self.trainers.items()}
        moved: list[list[Opened]] = []
        for draw in range(NUDGES):
            nudged = [self._nudged_batch(batch, start.step + number, draw) for number, batch in enumerate(batches)]
            moved.append(self._run(self.trainers[self.probe], self._nudged_state(start, draw), nudged))
        for number, reference in enumerate(runs[self.reference]):
            kappa = _Kappa(runs[self.probe][number], [run[number] for run in moved], self.tolerance.unit)
            for name in list(self.trainers)[1:]:
                between = (self.reference, name)
                self._compare("free", start.step + number, between, reference, runs[name][number], kappa)

    def _run(self, trainer: Trainer, start: TrainState, batches: Sequence[Batch]) -> list[Opened]:
        """Train from `start` without interference, and return what each step left."""
        trainer.load(start)
        return [self._trained(trainer, batch) for batch in batches]

    def _trained(self, trainer: Trainer, batch: Batch) -> Opened:
        """Take a step of the training loop (fused, or compiled for many steps)."""
        log = trainer.train([batch], [self.rate]).fetch()
        scalars: Opened = {"loss": {"": log["loss"]}, "gradient norm": {"": log["grad_norm"]}}
        return scalars | self._updated(trainer.state())

    def _opened(self, inspection: Inspection) -> Opened:
        """Return an inspected step by quantity; gradients that are zero in theory stand apart."""
        gradients, zero = _parted(inspection.gradients, self.zero)
        norm = math.sqrt(sum(float(np.sum(np.square(g, dtype=np.float64))) for g in inspection.gradients.values()))
        opened: Opened = {
            "loss": {"": np.asarray([inspection.loss])},
            "outputs": {"": inspection.outputs},
            "states": inspection.states,
            "adjoints": inspection.adjoints,
            "gradients": gradients,
            "gradient norm": {"": np.asarray([norm])},
            "zero gradients": zero,
        }
        return opened | self._updated(inspection.updated)

    def _updated(self, state: TrainState) -> Opened:
        """Return a training state by quantity, without what follows from gradients that are zero in theory.

        Those gradients are rounding errors, and an optimizer may blow them up to full steps.
        """
        slots = {key: array for key, array in state.slots.items() if key.partition("/")[2] not in self.zero}
        return {"parameters": _parted(state.params, self.zero)[0], "slots": slots, "buffers": state.buffers}

    def _kappa(self, state: TrainState, batch: Batch, base: Opened) -> _Kappa:
        """Measure the response of one inspected step to a one-ulp change."""
        trainer = self.trainers[self.probe]
        moved: list[Opened] = []
        for draw in range(NUDGES):
            trainer.load(self._nudged_state(state, draw))
            moved.append(self._opened(trainer.inspect(self._nudged_batch(batch, state.step, draw), self.rate)))
        return _Kappa(base, moved, self.tolerance.unit)

    def _nudged_state(self, state: TrainState, draw: int) -> TrainState:
        params = {name: self._nudged(array, name, state.step, draw) for name, array in state.params.items()}
        return replace(state, params=params)

    def _nudged_batch(self, batch: Batch, step: int, draw: int) -> Batch:
        return replace(batch, inputs=self._nudged(batch.inputs, "inputs", step, draw))

    def _nudged(self, array: NDArray, name: str, step: int, draw: int) -> NDArray:
        """Move every number to a neighbour above or below, at random; zeros stay."""
        up = stream(draw, f"nudge/{name}", step).random(array.shape) < 0.5
        if self.precision in ("float64", "float32"):
            moved = np.nextafter(array, np.where(up, np.inf, -np.inf).astype(array.dtype))
        else:
            moved = array * (1 + np.where(up, self.tolerance.unit, -self.tolerance.unit)).astype(array.dtype)
        return np.where(array == 0, array, moved)

    def _sent(self, name: str, trainer: Trainer, step: int, batch: Batch) -> None:
        arrived = trainer.readback(batch)
        if not self.first_batch:
            self.first_batch["sent"] = batch.sha256()
        self.first_batch.setdefault(name, hash_arrays(arrived))
        self._exactly("batch", step, ("sent", name), batch.arrays(), arrived)

    def _exactly(self, quantity: str, step: int, between: tuple[str, str], reference: Named, other: Named) -> None:
        """Tally arrays that must be equal to the byte."""
        tally = self._tally("start", quantity, between, 0.0)
        for name in [*reference, *(name for name in other if name not in reference)]:
            same = name in reference and name in other and _same_bytes(reference[name], other[name])
            tally.add(step, name, Measured.single(0.0 if same else math.inf), np.ones(1), timed=False)

    def _compare(
        self, phase: Phase, step: int, between: tuple[str, str], reference: Opened, other: Opened, kappa: _Kappa
    ) -> None:
        """Tally every quantity that both sides have."""
        for quantity in reference:
            if quantity not in other or not (reference[quantity] or other[quantity]):
                continue
            if quantity == "zero gradients":
                if phase == "step" and reference[quantity]:
                    self._compare_zero(step, between, reference, other, kappa)
                continue
            tally = self._tally(phase, quantity, between, self._stated(phase, quantity))
            tally.kappa = max(tally.kappa, kappa.whole.get(quantity, 0.0))
            left, right = reference[quantity], other[quantity]
            for name in [*left, *(name for name in right if name not in left)]:
                if name not in left or name not in right:
                    tally.add(step, f"{name} (on one side only)", Measured.single(math.inf), np.ones(1), timed=False)
                    continue
                timed = _timed(quantity, left[name])
                measured = measure(left[name], right[name], timed)
                sensitivity = kappa.parts.get((quantity, name), np.ones(1))
                tally.add(step, name, measured, sensitivity, timed, self._least_normal)

    def _compare_zero(
        self, step: int, between: tuple[str, str], reference: Opened, other: Opened, kappa: _Kappa
    ) -> None:
        """Bound the gradients that are zero in theory by the scale of all the others."""
        tally = self._tally("step", "zero gradients", between, self.tolerance.gradients)
        scale = float(reference["gradient norm"][""][0])
        sensitivity = np.asarray([kappa.whole.get("gradients", 1.0)])
        for name, array in reference["zero gradients"].items():
            largest = max(_norm(array), _norm(other["zero gradients"].get(name, np.asarray([np.nan]))))
            relative = largest / scale if scale else math.inf if largest else 0.0
            tally.add(step, name, Measured.single(relative), sensitivity, timed=False)

    @property
    def _least_normal(self) -> float:
        """Norms below this have lost digits to numbers that are no longer normal."""
        limits = np.finfo(STORAGE[self.precision])
        return float(limits.smallest_normal) / float(limits.eps)

    def _stated(self, phase: Phase, quantity: str) -> float:
        if phase == "free" or quantity in ("parameters", "slots", "buffers"):
            return self.tolerance.updated
        return self.tolerance.states if quantity in ("loss", "outputs", "states") else self.tolerance.gradients

    def _tally(self, phase: Phase, quantity: str, between: tuple[str, str], stated: float) -> _Tally:
        return self.tallies.setdefault((phase, quantity, between), _Tally(phase, quantity, between, stated))


class _Kappa:
    """Largest responses to one-ulp changes: of each array (at each t of a sequence), and of whole quantities."""

    def __init__(self, base: Opened, moved: Sequence[Opened], unit: float) -> None:
        self.parts: dict[tuple[str, str], NDArray] = {}
        self.whole: dict[str, float] = {}
        for quantity, arrays in base.items():
            if not arrays:
                continue
            for name, array in arrays.items():
                timed = _timed(quantity, array)
                responses = [measure(array, other[quantity][name], timed).differences for other in moved]
                self.parts[quantity, name] = np.max(responses, axis=0) / unit
            timed = _timed(quantity, next(iter(arrays.values())))
            joined = _joined(quantity, arrays)
            responses = [measure(joined, _joined(quantity, other[quantity]), timed).differences for other in moved]
            self.whole[quantity] = float(np.max(responses)) / unit


class _Tally:
    """The worst place of one quantity so far."""

    def __init__(self, phase: Phase, quantity: str, between: tuple[str, str], stated: float) -> None:
        self.phase: Phase = phase
        self.quantity = quantity
        self.between = between
        self.stated = stated
        self.kappa = 0.0
        self.compared = 0
        self._worst: tuple[int, float] = (-1, -1.0)
        self._difference, self._tolerance, self._at = 0.0, stated, ""

    def add(
        self, step: int, name: str, found: Measured, kappa: NDArray, timed: bool, least_normal: float = 0.0
    ) -> None:
        """Take in the differences of one array, at each t where it is a sequence."""
        kappa = np.broadcast_to(np.where(np.isnan(kappa), np.inf, kappa), found.differences.shape)
        tolerances = self.stated * np.clip(kappa, 1.0, KAPPA_LIMIT)
        for t, difference in enumerate(found.differences):
            ratio = _ratio(float(difference), float(tolerances[t]))
            rank = 0
            if math.isnan(ratio):
                rank, ratio = 3, math.inf
            elif ratio > 1:
                rank = 1 if kappa[t] > KAPPA_LIMIT or found.norms[t] < least_normal else 2
            self.compared += 1
            if (rank, ratio) > self._worst:
                self._worst = (rank, ratio)
                self._difference, self._tolerance = float(difference), float(tolerances[t])
                self._at = ", ".join(part for part in (f"step {step}", name, f"t={t}" if timed else "") if part)

    def row(self) -> Row:
        """Return the outcome."""
        rank = max(self._worst[0], 0)
        if rank == 0 and not self.kappa <= KAPPA_LIMIT:
            rank = 1
        verdicts: tuple[Verdict, ...] = ("equal", "inconclusive", "over", "non-finite")
        return Row(
            self.phase,
            self.quantity,
            self.between,
            self._difference,
            self._at,
            self._tolerance,
            self.kappa,
            self.compared,
            verdicts[rank],
        )


def measure(reference: NDArray, other: NDArray, timed: bool = False) -> Measured:
    """Compare two arrays norm-relative: ||reference - other|| / ||reference||; for a sequence at each t of axis 0.

    There is no absolute slack: zero equals zero, and a zero against anything else is infinitely wrong, as is another
    shape. NaN where either side holds a number that is not finite.
    """
    if reference.shape != other.shape:
        return Measured.single(math.inf)
    rows = reference.shape[0] if timed else 1
    a = np.asarray(reference, np.float64).reshape(rows, -1)
    b = np.asarray(other, np.float64).reshape(rows, -1)
    if a.size == 0:
        return Measured(np.zeros(rows), np.zeros(rows))
    largest = np.maximum(np.abs(a).max(axis=1), np.abs(b).max(axis=1))
    finite = np.isfinite(largest)
    # squares of small numbers underflow, so both sides are scaled first
    scale = np.where(finite & (largest > 0), largest, 1.0)
    a, b = np.where(finite[:, None], a, 0.0) / scale[:, None], np.where(finite[:, None], b, 0.0) / scale[:, None]
    apart, norm_a, norm_b = (np.sqrt(np.sum(x * x, axis=1)) for x in (a - b, a, b))
    zero = norm_a == 0
    differences = np.where(zero, np.where(apart > 0, np.inf, 0.0), apart / np.where(zero, 1.0, norm_a))
    return Measured(np.where(finite, differences, np.nan), np.maximum(norm_a, norm_b) * scale)


def _timed(quantity: str, array: NDArray) -> bool:
    """Whether the array's first axis is time."""
    return quantity in ("states", "adjoints") or (quantity == "outputs" and array.ndim == 3)


def _joined(quantity: str, arrays: Named) -> NDArray:
    """Return all arrays of a quantity as one, time kept."""
    parts = [a.reshape(a.shape[0], -1) if _timed(quantity, a) else a.ravel() for a in arrays.values()]
    return np.concatenate(parts, axis=-1) if len({part.shape[:-1] for part in parts}) == 1 else parts[0]


def _parted(arrays: Named, names: Mapping[str, str]) -> tuple[dict[str, NDArray], dict[str, NDArray]]:
    """Return the arrays whose names are not among `names`, and those whose are."""
    inside = {name: array for name, array in arrays.items() if name in names}
    return {name: array for name, array in arrays.items() if name not in names}, inside


def _same_bytes(a: NDArray, b: NDArray) -> bool:
    alike = a.shape == b.shape and a.dtype == b.dtype
    return alike and np.ascontiguousarray(a).tobytes() == np.ascontiguousarray(b).tobytes()


def _norm(array: NDArray) -> float:
    return float(np.linalg.norm(np.asarray(array, np.float64)))


def _ratio(difference: float, tolerance: float) -> float:
    """Return difference / tolerance, also where the tolerance is zero."""
    if tolerance == 0:
        return 0.0 if difference == 0 else difference * math.inf
    return difference / tolerance


def _cast(state: TrainState, dtype: str) -> TrainState:
    """Return the state with its arrays in `dtype`, so that every backend is given the same bytes."""
    arrays = {name: np.ascontiguousarray(array, dtype=dtype) for name, array in state.arrays().items()}
    return TrainState.from_arrays(arrays, state.step)
