"""Signals of a run that has ended, measured after the fact: the experiment rebuilt, its parameters read, probes run."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, get_args

import numpy as np

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import TrainState
from rnnbench.engine.outcome import processors
from rnnbench.errors import BadInput, CorruptData, Interrupted, RnnbenchError, quoted
from rnnbench.experiment import ENGINE_VERSION, Experiment, file_hash, resolve
from rnnbench.probes.base import Probe
from rnnbench.record import RunRecord
from rnnbench.signals import Signal
from rnnbench.spec import Ref, RunSpec
from rnnbench.store import RunFolder
from rnnbench.store.probed import Keeper, key_of
from rnnbench.tasks.datasets import ENVIRONMENT, data_root
from rnnbench.train import starting_state

Parameters: TypeAlias = Literal["final", "best", "start", "checkpoint"]
PARAMETERS: tuple[str, ...] = get_args(Parameters)

LEAN = "lean records carry no parameters, so that only what they recorded is analyzed"


class Prober(Protocol):
    """What measures: `rnnbench.engine.probing.probe_run`."""

    def __call__(
        self,
        experiment: Experiment,
        params: Mapping[str, NDArray],
        step: int,
        probes: Sequence[Ref],
        *,
        device: str | None = None,
        threads: int = 1,
    ) -> list[Signal]:
        """Return what the probes record of the experiment's model with these parameters."""


class Unmeasurable(BadInput):
    """A run that cannot be measured, for a reason that lies in the run and not in what was asked."""


@dataclass(frozen=True)
class Point:
    """Which parameters of a run are meant.

    Attributes:
        step: training steps behind them.
        identity: changes with them.
        load: reads or draws them; None where there are none.
    """

    step: int
    identity: str
    load: Callable[[Experiment], Mapping[str, NDArray] | None]


def rebuild(record: RunRecord) -> Experiment:
    """Return the experiment that a record is of; data that are not on this machine are not fetched.

    Raises:
        Unmeasurable: when it cannot be had again: a file is gone or was edited, data are missing or other ones.
    """
    try:
        with data_at_hand():
            experiment = resolve(RunSpec.parse(record.spec, ""))
            if experiment.digest == record.digest:
                return experiment
            data = experiment.task.data_hash()
    except (BadInput, CorruptData) as error:
        raise Unmeasurable(f"it cannot be rebuilt; {error}") from error
    except Exception as error:  # a user's own task or cell may fail in any way
        raise Unmeasurable(f"it cannot be rebuilt; {registry.one_line(error)}") from error
    before, here = record.resolved.components, experiment.versions
    changed = [key for key in sorted({*before, *here}) if before.get(key) != here.get(key)]
    if data != record.resolved.data.get("sha256"):
        changed.append("data")
    raise Unmeasurable(f"it is another experiment by now; changed since: {', '.join(changed) or 'its description'}")


@contextlib.contextmanager
def data_at_hand() -> Iterator[None]:
    """With a directory named, a data set that is not on this machine is an error and not a download."""
    before = os.environ.get(ENVIRONMENT)
    os.environ[ENVIRONMENT] = before or str(data_root())
    try:
        yield
    finally:
        if before is None:
            del os.environ[ENVIRONMENT]
        else:
            os.environ[ENVIRONMENT] = before


def point_of(folder: RunFolder, record: RunRecord, which: str) -> Point:
    """Find out which parameters of a run are meant by ``final``, ``best``, ``start`` or ``checkpoint``.

    Raises:
        Unmeasurable: when the run has none of that name.
        CorruptData: when a checkpoint is damaged.
    """
    if which == "start":
        if "model" in record.spec:
            raise Unmeasurable("a user's whole model draws its own starting parameters, which are not kept")
        return Point(0, "start", _starting)
    if which == "checkpoint":
        facts = folder.progress()
        if facts is None:
            raise Unmeasurable("it has no checkpoint; a run that has ended keeps none")
        return Point(facts.step, facts.arrays.sha256, lambda _: _checkpointed(folder))
    name = f"{which}.safetensors"
    if name in record.left_out:
        raise Unmeasurable(LEAN)
    if name not in record.files:
        cure = "; it selects none (eval.select)" if which == "best" else ""
        raise Unmeasurable(f"it has no {which} parameters{cure}")
    step = record.steps if which == "final" or record.summary.step is None else record.summary.step
    return Point(step, record.files[name].sha256, lambda _: folder.parameters(which))


def _starting(experiment: Experiment) -> Mapping[str, NDArray]:
    return starting_state(experiment, experiment.network()).params


def _checkpointed(folder: RunFolder) -> Mapping[str, NDArray] | None:
    checkpoint = folder.checkpoint()
    return None if checkpoint is None else TrainState.from_arrays(checkpoint.arrays, checkpoint.step).params


def probe_class(ref: Ref, place: str = "probe") -> type[Probe]:
    """Return the class of a probe that can look at a model at rest, its parameters checked.

    Raises:
        BadInput: when there is no such probe (with the nearest), it follows training, or a parameter will not do.
    """
    found = registry.load("probes", ref.name, place)
    if not (isinstance(found, type) and issubclass(found, Probe)):
        raise BadInput(f"{place}: {quoted(ref.name)} is not a probe; a class derived from rnnbench's Probe is needed")
    if found.in_training:
        raise BadInput(f"{place}: {ref.name} follows training step by step; of a run that has ended it has nothing")
    found.parse(ref.params, f"{place} {ref.name}")
    return found


@dataclass(frozen=True)
class Measured:
    """What a run's signals came to.

    Attributes:
        signals: recorded and measured.
        lacks: why something was not measured: "not measured: ..." or "not measured by probe level: ...".
        served: whether anything was measured, or nothing had to be.
    """

    signals: list[Signal]
    lacks: tuple[str, ...] = ()
    served: bool = True


class OnDemand:
    """Measures what runs have not recorded, probe by probe: one that fails takes no other's signals along.

    Args:
        probes: what to measure, recorded or not; None for the usual probes as far as their signals were not recorded.
        which: of the parameters.
        keeper: where measured signals are kept and found again.
        device: to measure on; None for the run's own.
        prober: measures; by default `rnnbench.engine.probing.probe_run`.
    """

    def __init__(
        self,
        probes: Sequence[Ref] | None,
        which: str,
        keeper: Keeper,
        device: str | None = None,
        prober: Prober | None = None,
    ) -> None:
        self._explicit = probes is not None
        self._which, self._keeper, self._device = which, keeper, device
        if probes is None or prober is None:
            from rnnbench.engine import probing

            probes = probing.DEFAULT if probes is None else probes
            prober = prober or probing.probe_run
        self._prober = prober
        self._probes = [(ref, _version(ref)) for ref in probes]

    def signals(self, folder: RunFolder, record: RunRecord, recorded: Sequence[Signal]) -> Measured:
        """Return a run's signals, recorded and measured.

        What was recorded after the step of the parameters that are meant is left out.

        Raises:
            CorruptData: when the run's parameters are not what was written.
            KeyboardInterrupt: what was measured of other runs is kept.
        """
        kept = list(recorded)
        try:
            point = point_of(folder, record, self._which)
            kept = [signal for signal in recorded if signal.step <= point.step]
            there = {signal.kind for signal in kept if signal.step == point.step}
        except Unmeasurable as error:
            return Measured(kept, (f"not measured: {error}",), False)
        whole = "model" in record.spec
        wanted = [each for each in self._probes if self._explicit or _missing(probe_class(each[0]), there, whole)]
        measured, lacks = self._measured(record, point, wanted)
        new = {(signal.name, signal.step) for signal in measured}
        both = [signal for signal in kept if (signal.name, signal.step) not in new] + measured
        return Measured(both, tuple(lacks), bool(measured) or not lacks)

    def _measured(
        self, record: RunRecord, point: Point, wanted: Sequence[tuple[Ref, Mapping[str, Any]]]
    ) -> tuple[list[Signal], list[str]]:
        """Return what is kept of the probes that are wanted or measured now, and why something is not there."""
        measured: list[Signal] = []
        missing: list[tuple[Ref, str]] = []
        for ref, version in wanted:
            key = key_of(
                {
                    "engine": ENGINE_VERSION,
                    "probe": {"probe": ref.model_dump(mode="json"), **version},
                    "parameters": point.identity,
                    "step": point.step,
                }
            )
            found = self._keeper.signals(record.digest, key)
            if found is None:
                missing.append((ref, key))
            else:
                measured += found
        if not missing:
            return measured, []
        try:
            experiment, params = self._run(record, point)
        except Unmeasurable as error:
            return measured, [f"not measured: {error}"]
        lacks: list[str] = []
        for ref, key in missing:
            try:
                found = self._prober(experiment, params, point.step, [ref], device=self._device, threads=processors())
            except Interrupted:
                raise
            except RnnbenchError as error:  # of the data too, since the parameters are read by now
                lacks.append(f"not measured by probe {ref.name}: {error}")
            except Exception as error:  # one run's model, or a probe that was plugged in, must not end the analysis
                lacks.append(f"not measured by probe {ref.name}: measuring it failed; {_failure(error, ref)}")
            else:
                self._keeper.keep_signals(record.digest, key, found)
                measured += found
        return measured, lacks

    def _run(self, record: RunRecord, point: Point) -> tuple[Experiment, Mapping[str, NDArray]]:
        """Return the experiment and the parameters that are meant.

        Raises:
            Unmeasurable: when they cannot be had, or are not finite.
            CorruptData: when the parameters are not what was written.
        """
        experiment = rebuild(record)
        params = point.load(experiment)
        if params is None:
            raise Unmeasurable(f"it has no {self._which} parameters")
        if not all(np.isfinite(array).all() for array in params.values() if array.dtype.kind == "f"):
            raise Unmeasurable(f"its {self._which} parameters are not finite numbers")
        return experiment, params


def _missing(probe: type[Probe], there: set[str], whole: bool) -> bool:
    """Whether a probe has something to add to what was recorded; of a whole model it never has all that is wanted."""
    if probe.wanted and not whole:
        return not there.issuperset(probe.wanted)
    return there.isdisjoint(kind.name for kind in probe.signals)


def _failure(error: Exception, ref: Ref) -> str:
    from rnnbench.engine.probing import failure

    return failure(error, ref.name, "sequences" in probe_class(ref).model_fields)


def _version(ref: Ref) -> dict[str, Any]:
    """Return what identifies a probe's code: its version, and the hash of a user's own file."""
    found = probe_class(ref)
    own = {"file": file_hash(found, "probe")} if ":" in ref.name else {}
    return {"version": found.version, **own}
