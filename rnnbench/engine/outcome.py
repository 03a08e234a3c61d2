"""What is to be run, what came of it, and one try at it: shared by the ways to execute."""

from __future__ import annotations

import math
import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from rnnbench.engine.single import Settings, run_one
from rnnbench.errors import BadInput, RnnbenchError, quoted
from rnnbench.experiment import Experiment
from rnnbench.record import RunRecord, Status
from rnnbench.registry import one_line
from rnnbench.store import Store
from rnnbench.train import Event

MOST_JOBS = 10_000
MOST_THREADS = 1024
"""Far beyond this, OpenMP takes the process down with it."""


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

    def __post_init__(self) -> None:
        """Refuse what leaves nothing to run with.

        Raises:
            BadInput: naming the number that will not do.
        """
        for name, most in (("jobs", MOST_JOBS), ("threads", MOST_THREADS), ("checkpoint_steps", 10**12)):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= most:
                raise BadInput(f"{name}: {quoted(value)} will not do; from 1 to {most}")
        if not 0 < self.checkpoint_seconds < math.inf:
            raise BadInput(f"checkpoint_seconds: {self.checkpoint_seconds} will not do; a time above 0")

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
