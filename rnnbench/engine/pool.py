"""A pool of spawned processes, each serving many runs.

Runs that differ by seed only prefer the same worker, which has compiled for them already. A worker that dies (killed
for memory, say) takes down the run that it was at, which keeps its checkpoint, and is replaced; the others go on.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rnnbench import errors
from rnnbench.engine.outcome import Options, Outcome, Planned, Watcher, attempt, interruption
from rnnbench.engine.signals import Signals, catching
from rnnbench.engine.single import Settings
from rnnbench.errors import Interrupted, RnnbenchError, RunFailed
from rnnbench.experiment import resolve
from rnnbench.record import RunRecord
from rnnbench.spec import RunSpec
from rnnbench.store import Store
from rnnbench.train import Event

REPORT_SECONDS = 0.25
"""Least time between two reports of progress by one worker."""

GRACE_SECONDS = 120.0
"""How long interrupted workers have to write their checkpoints before they are killed."""


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    at: int | None = None
    last_group: str = ""


@dataclass
class _Queue:
    """The runs still to be given out, by group."""

    groups: dict[str, deque[int]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.groups.values())

    def add(self, group: str, index: int) -> None:
        self.groups.setdefault(group, deque()).append(index)

    def next_for(self, worker: _Worker, busy: set[str]) -> int | None:
        """Return a run of the worker's last group; else of one that nobody is at; else of the longest one."""
        there = {name: runs for name, runs in self.groups.items() if runs}
        if not there:
            return None
        free = [name for name in there if name not in busy]
        if worker.last_group in there:
            chosen = worker.last_group
        elif free:
            chosen = free[0]
        else:
            chosen = max(there, key=lambda name: len(there[name]))
        worker.last_group = chosen
        return self.groups[chosen].popleft()


def pooled(waiting: Sequence[Outcome], store: Store, options: Options, watcher: Watcher) -> None:
    """Do all runs of `waiting` in `options.jobs` processes; see `rnnbench.engine.execute.execute`.

    Raises:
        Interrupted: after SIGINT or SIGTERM, once every worker has written its checkpoint.
    """
    queue = _Queue()
    for index, outcome in enumerate(waiting):
        queue.add(outcome.planned.experiment.group(), index)
    settings = options.settings()
    workers: list[_Worker] = []
    with catching() as signals:
        try:
            for _ in range(min(options.jobs, len(waiting))):
                worker = _start(store.root, settings)
                workers.append(worker)
                _give(worker, queue, workers, waiting, watcher)
            while any(worker.at is not None for worker in workers):
                if signals.caught is not None:
                    _wind_down(workers, waiting, signals)
                ready = wait([worker.pipe for worker in workers if worker.at is not None], timeout=0.2)
                for worker in [worker for worker in workers if worker.pipe in ready]:
                    if _hear(worker, waiting, watcher):
                        if queue and not worker.process.is_alive():
                            worker.pipe.close()
                            workers[workers.index(worker)] = worker = _start(store.root, settings)
                        _give(worker, queue, workers, waiting, watcher)
        except KeyboardInterrupt:  # the second Ctrl-C: whoever presses it twice will not wait for checkpoints
            for worker in workers:
                worker.process.kill()
            raise
        finally:
            for worker in workers:
                worker.pipe.close()  # a worker at rest ends by this, one at work saves a checkpoint and ends
            until = time.monotonic() + GRACE_SECONDS
            for worker in workers:
                worker.process.join(max(0.0, until - time.monotonic()))
                if worker.process.is_alive():
                    worker.process.kill()
                    worker.process.join()


def _start(root: Path, settings: Settings) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, str(root), settings), daemon=True)
    # multiprocessing's own helper process, started at first need, would unblock the signal again
    resource_tracker.ensure_running()
    # Ctrl-C reaches the whole group of processes; a worker inherits the block and waits for this one to tell it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        with _thread_limits(settings.threads):
            process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _give(
    worker: _Worker, queue: _Queue, workers: Sequence[_Worker], waiting: Sequence[Outcome], watcher: Watcher
) -> None:
    """Give a worker its next run, if there is one."""
    busy = {other.last_group for other in workers if other is not worker and other.at is not None}
    worker.at = queue.next_for(worker, busy)
    if worker.at is None:
        return
    planned = waiting[worker.at].planned
    watcher.started(planned)
    with suppress(OSError):  # a worker that has died is noticed when it is next listened to
        experiment = planned.experiment
        worker.pipe.send((planned.suite, planned.label, experiment.spec.model_dump(mode="json"), experiment.digest))


def _hear(worker: _Worker, waiting: Sequence[Outcome], watcher: Watcher) -> bool:
    """Take one message of a worker; return whether its run has ended."""
    assert worker.at is not None
    outcome = waiting[worker.at]
    try:
        message: Any = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5.0)
        code = worker.process.exitcode
        how = (
            f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit status {code}"
        )
        hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        outcome.error = RunFailed(f"the process that ran it died with {how}{hint}; the same command goes on with it")
        worker.at = None
        watcher.ended(outcome)
        return True
    if isinstance(message, Event):
        watcher.progress(outcome.planned, message)
        return False
    record, error = message
    outcome.record = None if record is None else RunRecord.from_json(record, outcome.planned.title)
    outcome.error = None if error is None else _rebuilt(*error)
    worker.at = None
    watcher.ended(outcome)
    return True


def _rebuilt(kind: str, text: str) -> RnnbenchError:
    """Make a worker's error again, in this process."""
    found = getattr(errors, kind, RnnbenchError)
    return found(text) if found is not Interrupted else RunFailed(text)


def _wind_down(workers: Sequence[_Worker], waiting: Sequence[Outcome], signals: Signals) -> None:
    """Ask all workers to stop, wait for their checkpoints, and raise."""
    assert signals.caught is not None
    for worker in workers:
        if worker.process.is_alive():
            worker.process.terminate()
    until = time.monotonic() + GRACE_SECONDS
    kept: list[str] = []
    for worker in workers:
        while worker.at is not None and time.monotonic() < until:
            if worker.pipe.poll(0.2):
                outcome = waiting[worker.at]
                if _hear(worker, waiting, Watcher()):
                    kept.append(interruption(outcome))
    raise Interrupted(
        signals.caught,
        kept[0]
        if len(kept) == 1
        else f"interrupted; {len(kept)} runs under way have kept what they had; the same command goes on from there",
    )


@contextmanager
def _thread_limits(threads: int) -> Iterator[None]:
    """Set, for a process about to be started, the limits that libraries read when they are loaded."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(pipe: Connection, root: str, settings: Settings) -> None:
    """Be a worker: run what comes through the pipe until it is closed."""
    parent = os.getppid()
    with catching() as signals:

        def interrupted() -> bool:
            return signals.caught is not None or os.getppid() != parent  # killed: stop as if asked to

        store = Store(Path(root))
        while not interrupted():
            try:
                suite, label, values, digest = pipe.recv()
            except (EOFError, OSError):
                return
            last_report = 0.0

            def report(event: Event) -> None:
                nonlocal last_report
                if time.monotonic() - last_report < REPORT_SECONDS:
                    return
                last_report = time.monotonic()
                try:
                    pipe.send(event)
                except OSError:  # nobody listens any more: the same
                    signals.caught = signals.caught or signal.SIGTERM

            error: tuple[str, str] | None = None
            record: bytes | None = None
            try:
                experiment = resolve(RunSpec.parse(values, label))
                if experiment.digest != digest:
                    raise RunFailed(
                        "a file that defines the run was changed after the command was given; give it again"
                    )
                outcome = Outcome(Planned(suite, label, experiment))
                attempt(outcome, store, settings, interrupted, report)
                record = None if outcome.record is None else outcome.record.to_json()
                if outcome.error is not None:
                    error = type(outcome.error).__name__, str(outcome.error)
            except RnnbenchError as failure:
                error = type(failure).__name__, str(failure)
            with suppress(OSError):
                pipe.send((record, error))
