"""Execute many runs: what is done already is left alone, the rest goes to this process or to a pool."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from rnnbench.engine.signals import catching
from rnnbench.engine.single import Settings, refuse_unsupported, run_one
from rnnbench.errors import Interrupted, Locked, RnnbenchError
from rnnbench.experiment import Experiment, resolve
from rnnbench.record import RunRecord, Status
from rnnbench.registry import one_line
from rnnbench.store import Store
from rnnbench.suite import Arm
from rnnbench.train import Event


@dataclass(frozen=True)
class Options:
    """How runs are executed.

    Attributes:
        jobs: processes at work; 1 is this one.
        threads: CPU threads for each run; by default the processors divided fairly.
        checkpoint_seconds: time between a run's checkpoints.
        checkpoint_steps: steps between them, in place of the time.
    """

    jobs: int = 1
    threads: int | None = None
    checkpoint_seconds: float = 30.0
    checkpoint_steps: int | None = None

    def settings(self) -> Settings:
        """Return what one run needs of this."""
        threads = self.threads or max(1, processors() // self.jobs)
        return Settings(threads, self.checkpoint_seconds, self.checkpoint_steps)


@dataclass(frozen=True)
class Planned:
    """A run that is to be there at the end.

    Attributes:
        suite: name of its suite, which is the folder its own folder lies in.
        label: what it is called.
        experiment: what it is.
    """

    suite: str
    label: str
    experiment: Experiment

    @property
    def title(self) -> str:
        """The label with backend and seed."""
        spec = self.experiment.spec
        return f"{self.label} · {spec.backend} · seed {spec.seed}"


@dataclass
class Outcome:
    """What came of a planned run.

    Attributes:
        planned: the run.
        record: its record; None when it could not be run at all.
        error: why it failed.
        already: whether it was done before.
    """

    planned: Planned
    record: RunRecord | None = None
    error: RnnbenchError | None = None
    already: bool = False

    @property
    def ok(self) -> bool:
        """Whether the run is there, done and sound (a diverged one is done, but not well)."""
        return self.record is not None and self.record.status.final and self.record.status != Status.DIVERGED


@dataclass
class Watcher:
    """What is told of progress; each field may be replaced."""

    started: Callable[[Planned], None] = field(default=lambda _planned: None)
    progress: Callable[[Planned, Event], None] = field(default=lambda _planned, _event: None)
    ended: Callable[[Outcome], None] = field(default=lambda _outcome: None)
    note: Callable[[str], None] = field(default=lambda _text: None)


def processors() -> int:
    """Return how many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not every system has it
        return os.cpu_count() or 1


def plan(arms: Sequence[Arm], suite: str) -> list[Planned]:
    """Resolve every arm, so that whatever is wrong with any of them is said before the first one starts.

    Raises:
        BadInput: for an arm that cannot be run.
        CorruptData: for data that are not what they should be.
    """
    return [Planned(suite, arm.label, resolve(arm.spec)) for arm in arms]


def execute(
    planned: Sequence[Planned], store: Store, options: Options, watcher: Watcher | None = None
) -> list[Outcome]:
    """Run what is not done yet, in order, and return an outcome for each run, in the same order.

    A run that another process works on is skipped when there are others, and is an error alone.

    Raises:
        BadInput: before anything is started, when a backend cannot run what is asked of it.
        Interrupted: after SIGINT or SIGTERM; the runs under way have written their checkpoints.
    """
    watcher = watcher or Watcher()
    outcomes = [Outcome(each) for each in planned]
    waiting: list[Outcome] = []
    seen: dict[tuple[str, str], Outcome] = {}
    for outcome in outcomes:
        key = (outcome.planned.suite, outcome.planned.experiment.digest)
        if key in seen:
            continue
        seen[key] = outcome
        folder = store.folder(*key)
        record = folder.record()
        if record is not None and record.status.final:
            outcome.record, outcome.already = record, True
        else:
            waiting.append(outcome)
    for outcome in waiting:
        refuse_unsupported(outcome.planned.experiment)
    watcher.note(f"{len(seen)} runs, {len(waiting)} to run")
    if waiting:
        if options.jobs == 1 or len(waiting) == 1:
            _inline(waiting, store, options, watcher)
        else:
            from rnnbench.engine.pool import pooled

            pooled(waiting, store, options, watcher)
    for outcome in outcomes:  # equal experiments under two labels share one run
        first = seen[outcome.planned.suite, outcome.planned.experiment.digest]
        outcome.record, outcome.error, outcome.already = first.record, first.error, first.already
    if len(planned) == 1 and isinstance(outcomes[0].error, Locked):
        raise outcomes[0].error
    return outcomes


def _inline(waiting: Sequence[Outcome], store: Store, options: Options, watcher: Watcher) -> None:
    settings = options.settings()
    with catching() as signals:
        for outcome in waiting:
            planned = outcome.planned
            watcher.started(planned)

            def report(event: Event, planned: Planned = planned) -> None:
                watcher.progress(planned, event)

            attempt(outcome, store, settings, signals, report)
            if signals.caught is not None:
                raise Interrupted(signals.caught, interruption(outcome))
            watcher.ended(outcome)


def attempt(
    outcome: Outcome,
    store: Store,
    settings: Settings,
    interrupted: Callable[[], bool],
    report: Callable[[Event], None],
) -> None:
    """Do one run and note in `outcome` what came of it; an unexpected error is noted with its last frame."""
    planned = outcome.planned
    try:
        folder = store.folder(planned.suite, planned.experiment.digest)
        outcome.record = run_one(planned.experiment, folder, settings, interrupted, report)
    except RnnbenchError as error:
        outcome.error = error
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        outcome.error = RnnbenchError(f"{one_line(error)} (in {frame.name}, line {frame.lineno} of {frame.filename})")


def interruption(outcome: Outcome) -> str:
    """Say what an interruption left of a run."""
    record, title = outcome.record, outcome.planned.title
    if record is not None and record.status.final:
        return f"interrupted after {title}, which is done; the same command goes on from there"
    kept = f"a checkpoint of step {record.steps} is kept" if record is not None else "what it had saved is kept"
    return f"interrupted in {title}; {kept}; the same command goes on from there"
