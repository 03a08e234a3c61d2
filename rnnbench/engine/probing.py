"""Running probes: what a look needs is put together here, for a run under way and for one that has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from rnnbench import registry
from rnnbench.arrays import NDArray
from rnnbench.backends.base import Backend, Program, TrainState
from rnnbench.cells.network import Network
from rnnbench.errors import BadInput, Interrupted, is_out_of_memory
from rnnbench.experiment import Experiment, make_probes
from rnnbench.probes.base import Look, Probe
from rnnbench.signals import Signal
from rnnbench.spec import Precision, Ref
from rnnbench.tasks.base import Batch, Source
from rnnbench.train import starting_state

DEFAULT = tuple(Ref(name=name) for name in ("adjoint", "spectrum", "propagator", "lags", "activity", "use", "noise"))
"""What is measured of a model at rest unless something else is asked for."""


class Probing:
    """Looks at one experiment's model, as often as asked, with the same sequences each time.

    Args:
        experiment: the experiment.
        probes: what to record.
        source: the experiment's batches, where they are open already.
        model: the network, or a user's whole model, where it is built already.
        device: where to compute; None for the run's own.
    """

    def __init__(
        self,
        experiment: Experiment,
        probes: Sequence[Probe],
        *,
        source: Source | None = None,
        model: Any = None,
        device: str | None = None,
    ) -> None:
        self.experiment = experiment
        self.probes = tuple(probe for probe in probes if not probe.in_training)
        spec = experiment.spec
        self._source = source
        self._device = device or spec.device
        self._backend: Backend = registry.backend(spec.backend)
        if model is None:
            model = self._backend.adopt(spec.model, experiment.task, spec.seed) if spec.model else experiment.network()
        self.model = model
        self._program = Program(experiment.task, model, experiment.optimizer, experiment.techniques)
        precision = spec.precision
        self._own = self._backend.lab(self._device, precision)
        # a user's whole model computes in the precision that it was built in; a TPU has no float64
        wide: Precision = "float64" if isinstance(model, Network) and not self._device.startswith("tpu") else precision
        self._lab = self._backend.lab(self._device, wide)

    @cached_property
    def _batch(self) -> Batch:
        """The sequences of the evaluation set that is scored, so that every arm and seed is probed with the same."""
        return self.source.evaluation(self.experiment.spec.eval.split).cast("float64")

    @cached_property
    def source(self) -> Source:
        """The task's batches."""
        return self._source or self.experiment.source()

    def look(self, params: Mapping[str, NDArray], buffers: Mapping[str, NDArray], step: int) -> list[Signal]:
        """Run every probe; those that look inside a cell are passed over for a user's whole model.

        Raises:
            Exception: whatever a probe fails with.
        """
        look = self._look(params, buffers, step)
        return [signal for probe in self._serving for signal in _measured(probe, look)]

    @property
    def _serving(self) -> list[Probe]:
        whole = not isinstance(self.model, Network)
        return [probe for probe in self.probes if not (whole and probe.needs_cell)]

    def _look(self, params: Mapping[str, NDArray], buffers: Mapping[str, NDArray], step: int) -> Look:
        spec = self.experiment.spec
        return Look(
            program=self._program,
            params=params,
            buffers=buffers,
            batch=self._batch,
            source=self.source,
            lab=self._lab,
            own=self._own,
            step=step,
            seed=spec.seed,
            key=self.experiment.group(),
        )

    @property
    def compile_seconds(self) -> float:
        """Spent compiling so far."""
        return float(self._lab.compile_seconds + self._own.compile_seconds)

    def __call__(
        self, state: TrainState, interrupted: Callable[[], bool], dropped: dict[str, str]
    ) -> list[Signal] | None:
        """Look at a run under way. A probe that fails is dropped: observing must not end what is observed.

        Args:
            state: of the run.
            interrupted: asked before each probe; True breaks the look off.
            dropped: why probes are not run any more, by name; those that fail are put there.

        Returns:
            The signals of the probes that did not fail; None where an interruption broke the look off.

        Raises:
            BadInput: at the start of a run, when a probe cannot serve it.
        """
        look = self._look(state.params, state.buffers, state.step)
        found: list[Signal] = []
        for probe in self._serving:
            if interrupted():
                return None
            if probe.name in dropped:
                continue
            try:
                found += _measured(probe, look)
            except Interrupted:
                raise
            except Exception as error:
                if isinstance(error, BadInput) and state.step == 0:
                    raise
                reason = failure(error, probe.name, "sequences" in type(probe).model_fields)
                dropped[probe.name] = f"probe {probe.name} failed at step {state.step} and was dropped: {reason}"
        return found


def failure(error: Exception, probe: str, sequences: bool) -> str:
    """Return in one line what a probe failed with, and the cure where memory ran out.

    Args:
        error: what it raised.
        probe: its name.
        sequences: whether it can be told to look at fewer of them.
    """
    cure = f"; fewer `sequences` of probe {probe} need less memory" if sequences and is_out_of_memory(error) else ""
    return f"{registry.one_line(error)}{cure}"


def _measured(probe: Probe, look: Look) -> list[Signal]:
    """Return what a probe records, each an array that can be kept.

    Raises:
        TypeError: when it is none.
        ValueError: when its axes are not those of its array.
    """
    found: list[Signal] = []
    for signal in probe.measure(look):
        if not isinstance(signal, Signal):
            raise TypeError(f"it returned {type(signal).__name__} where a Signal belongs")
        values = np.asarray(signal.values)
        if values.dtype.kind not in "fiub":
            raise TypeError(f"its signal {signal.name!r} is {values.dtype}, no real numbers")
        if values.ndim != len(signal.axes):
            raise ValueError(f"its signal {signal.name!r} has {values.ndim} axes and {len(signal.axes)} names for them")
        found.append(replace(signal, values=values))
    return found


def probe_run(
    experiment: Experiment,
    params: Mapping[str, NDArray],
    step: int,
    probes: Sequence[Ref] = DEFAULT,
    *,
    device: str | None = None,
    threads: int = 1,
) -> list[Signal]:
    """Return what probes record of an experiment's model with the given parameters.

    Args:
        experiment: the experiment.
        params: by full name.
        step: training steps behind them.
        probes: by name.
        device: where to compute; None for the run's own.
        threads: CPU threads.

    Raises:
        BadInput: when a probe cannot serve, or the device is absent.
    """
    spec = experiment.spec
    if device is not None:
        experiment = replace(experiment, spec=spec.model_copy(update={"device": device}))
    registry.backend(spec.backend).set_threads(threads)
    probing = Probing(experiment, make_probes(probes, "probe"), device=device)
    buffers = starting_state(experiment, probing.model).buffers
    return probing.look(params, buffers, step)
