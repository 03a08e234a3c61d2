"""One run from its spec to its record: lock, resume or start, train, write."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from rnnbench import registry
from rnnbench.backends.base import Backend, Program, Trainer, TrainState
from rnnbench.engine.probing import Probing
from rnnbench.errors import BadInput, CorruptData, OutOfResources, RnnbenchError, is_out_of_memory
from rnnbench.experiment import Experiment
from rnnbench.record import Environment, Resolved, RunRecord, Status, Summary, Timings, now
from rnnbench.registry import one_line
from rnnbench.store import RunFolder, RunWriter
from rnnbench.store.checkpoints import Checkpoint
from rnnbench.tasks.base import StoredTask, hash_arrays
from rnnbench.train import Event, Hooks, Progress, starting_state, train


@dataclass(frozen=True)
class Settings:
    """How a run is executed; none of it is part of the experiment.

    Attributes:
        threads: CPU threads for the backend.
        checkpoint_seconds: time between checkpoints.
        checkpoint_steps: steps between checkpoints, in place of the time.
    """

    threads: int
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int | None = None


def run_one(
    experiment: Experiment,
    folder: RunFolder,
    settings: Settings,
    interrupted: Callable[[], bool],
    report: Callable[[Event], None],
) -> RunRecord:
    """Bring one run to its end, or to the next interruption, and return its record.

    A run that is done is left alone. A failure is recorded as such before its error is raised again.

    Raises:
        Locked: when another process works on the same run.
        BadInput: when the backend cannot run it.
        CorruptData: when its checkpoint is damaged.
        OutOfResources: out of disk or memory.
    """
    with folder.lock():
        done = folder.record()
        if done is not None and done.status.final:
            return done
        checkpoint = folder.checkpoint()
        run: _Run | None = None
        writer: RunWriter | None = None
        try:
            run = _Run(experiment, settings, checkpoint)
            writer = folder.writer(resume=checkpoint)
            hooks = Hooks(
                interrupted,
                report,
                run.probing(),
                run.describe,
                settings.checkpoint_seconds,
                settings.checkpoint_steps,
            )
            status = train(experiment, run.trainer, run.source, writer, run.progress, hooks)
            return writer.finish(run.record(status))
        except RnnbenchError:
            raise
        except Exception as error:
            if (shortage := out_of_resources(error)) is not None:
                raise shortage from error
            if run is not None and writer is not None:
                writer.finish(run.record(Status.FAILED, one_line(error)))
            raise


class _Run:
    """A run made ready: backend, trainer and source, at its start or at its checkpoint."""

    def __init__(self, experiment: Experiment, settings: Settings, checkpoint: Checkpoint | None) -> None:
        spec = experiment.spec
        self.experiment = experiment
        self.backend: Backend = registry.backend(spec.backend)
        position: dict[str, Any] = dict(checkpoint.position) if checkpoint else {}
        # a checkpoint's number of threads is part of what makes its numbers; go on with it
        self.threads = self.backend.set_threads(int(position.get("threads", settings.threads)))
        self.source = experiment.source()
        self.model = self._model()
        program = Program(
            experiment.task,
            self.model,
            experiment.optimizer,
            experiment.techniques,
            _watched(experiment),
            any(probe.in_training for probe in experiment.probes),
        )
        self.trainer: Trainer = self.backend.trainer(program, spec.device, spec.precision, spec.path)
        self.environment = Environment.capture(self.threads, self.backend.facts(spec.device, spec.precision))
        self.first_batch = self._first_batch()
        self.resumed: list[int] = list(position.get("resumed", []))
        self.resumed_inexact: list[str] = list(position.get("resumed_inexact", []))
        if checkpoint is None:
            self.progress = Progress()
            state = starting_state(experiment, self.model)
        else:
            self.progress = _progress(position, checkpoint)
            state = TrainState.from_arrays(checkpoint.arrays, self.progress.step)
            self.resumed.append(self.progress.step)
            self.resumed_inexact += self._differences(position)
        self.trainer.load(state)
        # the loop's own progress is plain numbers; what the checkpoint must hold beside it is known here
        self.progress.extra = {
            "threads": self.threads,
            "identity": self._identity(),
            "resumed": self.resumed,
            "resumed_inexact": self.resumed_inexact,
        }

    @cached_property
    def _baselines(self) -> dict[str, dict[str, float | None]]:
        found: dict[str, dict[str, float | None]] = {}
        experiment = self.experiment
        for name, baseline in experiment.task.baselines(self.source, experiment.spec.eval.split).items():
            found.setdefault(baseline.metric, {})[name] = baseline.value
        return found

    def describe(self) -> dict[str, Any]:
        """Return the record of the run as it stands, which a checkpoint holds for those who look at it meanwhile."""
        return {"record": self.record(Status.INTERRUPTED).model_dump(mode="json")}

    def probing(self) -> Probing | None:
        """Return what looks at the model under way, where the spec asks for that."""
        probes = [probe for probe in self.experiment.probes if not probe.in_training]
        return Probing(self.experiment, probes, source=self.source, model=self.model) if probes else None

    def record(self, status: Status, error: str | None = None) -> RunRecord:
        """Return the record of the run as it stands."""
        experiment, spec, progress = self.experiment, self.experiment.spec, self.progress
        scored, step = progress.scored.get(spec.eval.split, {}), progress.scored_step
        if spec.eval.select != "last" and progress.best:
            scored, step = progress.best["scored"].get(spec.eval.split, {}), progress.best["step"]
        return RunRecord(
            digest=experiment.digest,
            suite="unset",  # the writer puts the folder's own
            spec=experiment.canonical(),
            resolved=Resolved(
                device=spec.device_kind,
                path=self.trainer.path,
                precision=spec.precision,
                components=dict(experiment.versions),
                data={"sha256": experiment.task.data_hash(), **experiment.task.data_facts()},
            ),
            first_batch_sha256=self.first_batch,
            matched=spec.matched,
            parameters=self.model.count(),
            environment=self.environment,
            status=status,
            error=error,
            first_bad_step=progress.first_bad_step,
            steps=progress.step,
            sequences=progress.step * spec.data.batch_size,
            steps_to_solve=progress.steps_to_solve,
            timings=Timings(
                compile_s=progress.compile_seconds,
                train_s=max(
                    0.0,
                    progress.seconds - progress.compile_seconds - progress.eval_seconds - progress.probe_seconds,
                ),
                eval_s=progress.eval_seconds,
                data_s=progress.data_seconds,
                probe_s=progress.probe_seconds,
                total_s=progress.seconds,
            ),
            summary=Summary(
                metrics=scored,
                metric=experiment.metric,
                better=experiment.metric_of(experiment.metric).better,
                select=spec.eval.select,
                step=step,
            ),
            baselines=self._baselines,
            resumed=tuple(self.resumed),
            resumed_inexact=tuple(dict.fromkeys(self.resumed_inexact)),
            notes=tuple(progress.dropped.values()),
            created=now(),
        )

    def _model(self) -> Any:
        spec = self.experiment.spec
        if spec.model is not None:
            return self.backend.adopt(spec.model, self.experiment.task, spec.seed)
        return self.experiment.network()

    def _first_batch(self) -> str:
        """Hash the first training batch as the device gives it back: what was really fed."""
        from rnnbench.backends.base import STORAGE

        batch = self.source.batch("train", 0).cast(STORAGE[self.experiment.spec.precision])
        return hash_arrays(self.trainer.readback(batch))

    def _identity(self) -> dict[str, str]:
        """Return what must be equal for a resumed run to be bit-equal to one that was never interrupted."""
        environment = self.environment
        kept = {
            "machine": environment.machine,
            "cpu": environment.cpu,
            "python": environment.python,
            "gpu": str(environment.gpu),
            "path": self.trainer.path,
            "threads": str(self.threads),
        }
        kept |= {f"precision {name}": str(value) for name, value in sorted(environment.precision.items())}
        return kept | {f"version of {name}": text for name, text in sorted(environment.versions.items())}

    def _differences(self, position: dict[str, Any]) -> list[str]:
        before = position.get("identity")
        if not isinstance(before, dict):
            return ["the checkpoint does not say where it was made"]
        here = self._identity()
        return [
            f"{key}: {before.get(key)} before step {self.progress.step}, {here.get(key)} after"
            for key in sorted(before.keys() | here.keys())
            if before.get(key) != here.get(key)
        ]


def _progress(position: dict[str, Any], checkpoint: Checkpoint) -> Progress:
    """Read the loop's progress out of a checkpoint's position."""
    known = Progress.__dataclass_fields__.keys() - {"extra"}
    try:
        return replace(Progress(), **{key: position[key] for key in known})
    except KeyError as error:
        raise CorruptData(
            f"checkpoint of step {checkpoint.step}: lacks {error}; it was written by another version of rnnbench, "
            "and the run has to start anew (rnnbench results clean)"
        ) from None


def _watched(experiment: Experiment) -> tuple[str, ...]:
    """Return the metrics that the stopping rule wants of every training batch."""
    stop = experiment.spec.stop
    return (stop.metric,) if stop is not None and stop.split == "train" and stop.metric != "loss" else ()


def out_of_resources(error: BaseException) -> OutOfResources | None:
    """Recognize the frameworks' ways of saying that memory or disk is full."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return OutOfResources(f"the disk is full; {one_line(error)}")
    if is_out_of_memory(error):
        return OutOfResources(f"out of memory; {one_line(error)}; a smaller data.batch_size or eval.n needs less")
    return None


def refuse_unsupported(experiment: Experiment) -> None:
    """Refuse, before anything is started, what the backend or this machine cannot run.

    Raises:
        BadInput: when the device is absent, or the precision is not to be had on it.
        OutOfResources: when a set of sequences is larger than the memory that is free.
    """
    spec = experiment.spec
    if spec.backend == "numpy":
        raise BadInput("backend: numpy is the reference for forward passes and does not train; use torch or jax")
    registry.backend(spec.backend).check(spec.device, spec.precision)
    _refuse_oversized(experiment)


def _refuse_oversized(experiment: Experiment) -> None:
    """A set that memory cannot hold would end with the process killed and no word about why."""
    import psutil

    spec, task = experiment.spec, experiment.task
    free = psutil.virtual_memory().available
    limit = sum(task.sizes().values()) if isinstance(task, StoredTask) else None
    wanted = {"eval.n": spec.eval.n, "data.train_n": spec.data.train_n or 0, "data.batch_size": spec.data.batch_size}
    for place, count in wanted.items():
        drawn = count if limit is None or place == "data.batch_size" else min(count, limit)
        size = drawn * task.length * task.n_in * 8
        if size > free:
            raise OutOfResources(
                f"{place}: {count} sequences need {size / 2**30:.3g} GiB; {free / 2**30:.3g} GiB of memory are free"
            )
