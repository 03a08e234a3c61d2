"""A pool of spawned processes, each serving many runs.

Runs that differ by seed only prefer the same worker, which has compiled for them already. A worker that dies (killed for
memory, say) takes down the run that it was at, which keeps its checkpoint, and is replaced; the others go on.
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
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

from rnnbench import errors
from rnnbench.engine.execute import Options, Outcome, Planned, Watcher, attempt, interruption
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
                        if not worker.process.is_alive():
                            workers[workers.index(worker)] = worker = _start(store.root, settings)
                        _give(worker, queue, workers, waiting, watcher)
        finally:
            for worker in workers:
                worker.pipe.close()
            for worker in workers:
                worker.process.join(5.0)
                if worker.process.is_alive():
                    worker.process.kill()


def _start(root: Path, settings: Settings) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, str(root), settings), daemon=True)
    with _thread_limits(settings.threads):
        process.start()
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
        worker.pipe.send((planned.suite, planned.label, planned.experiment.spec.model_dump(mode="json")))


def _hear(worker: _Worker, waiting: Sequence[Outcome], watcher: Watcher) -> bool:
    """Take one message of a worker; return whether its run has ended."""
    assert worker.at is not None
    outcome = waiting[worker.at]
    try:
        message: Any = worker.pipe.recv()
    except (EOFError, OSError):
        worker.process.join(5.0)
        code = worker.process.exitcode
        how = f"signal {-code} ({signal.Signals(-code).name})" if code is not None and code < 0 else f"exit status {code}"
        hint = "; the machine may be out of memory" if code == -signal.SIGKILL else ""
        outcome.error = RunFailed(f"the process that ran it died with {how}{hint}; its last checkpoint is kept")
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
                    worker.at = None
            elif not worker.process.is_alive() and not worker.pipe.poll(0):
                break
    count = f"{len(kept)} runs under way have written their checkpoints" if len(kept) != 1 else kept[0]
    raise Interrupted(signals.caught, count if len(kept) == 1 else f"interrupted; {count}; the same command goes on")


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
    with catching() as signals:
        store = Store(Path(root))
        while signals.caught is None:
            try:
                suite, label, values = pipe.recv()
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
                except OSError:  # nobody listens any more: stop as if asked to
                    signals.caught = signals.caught or signal.SIGTERM

            error: tuple[str, str] | None = None
            record: bytes | None = None
            try:
                outcome = Outcome(Planned(suite, label, resolve(RunSpec.parse(values, label))))
                attempt(outcome, store, settings, signals, report)
                record = None if outcome.record is None else outcome.record.to_json()
                if outcome.error is not None:
                    error = type(outcome.error).__name__, str(outcome.error)
            except RnnbenchError as failure:
                error = type(failure).__name__, str(failure)
            with suppress(OSError):
                pipe.send((record, error))
