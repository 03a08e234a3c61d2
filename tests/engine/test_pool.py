"""The pool: the same numbers as in one process, and what happens when processes die."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rnnbench.engine import Options, Outcome, Planned, Watcher, execute, pool
from rnnbench.record import Status
from rnnbench.store import RunFolder, Store

Plan = Callable[..., Planned]
Bits = Callable[[RunFolder], Any]
WAIT = 90.0


def until(condition: Callable[[], Any], what: str) -> Any:
    """Wait until something is true, and return it."""
    end = time.monotonic() + WAIT
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError(f"never: {what}")


@pytest.mark.slow
def test_processes_change_no_bit(planned: Plan, store: Store, tmp_path: Path, bits: Bits) -> None:
    """Both backends, seeds and shapes mixed, in two processes; then each alone and in another order in this one."""
    plan = [
        planned(backend=backend, seed=seed, cell={"name": "rnn", "hidden": hidden})
        for hidden in (3, 4)
        for backend in ("jax", "torch")
        for seed in (0, 1)
    ]
    ended: list[Outcome] = []
    outcomes = execute(plan, store, Options(jobs=2, threads=1), Watcher(ended=ended.append))
    assert all(outcome.ok for outcome in outcomes)
    assert len(ended) == len(plan)
    other = Store(tmp_path / "other")
    execute(plan[::-1], other, Options(threads=1))
    for each in plan:
        digest = each.experiment.digest
        assert bits(store.folder(each.suite, digest)) == bits(other.folder(each.suite, digest))
        record = store.folder(each.suite, digest).record()
        assert record is not None
        assert record.environment.threads == 1
    compiling = [o for o in outcomes if o.record and o.record.timings.compile_s > 0]
    assert len(compiling) <= 4  # of four runs on JAX; two where seeds met in the process of their group
    assert execute(plan, store, Options(jobs=2, threads=1))[0].already


def test_runs_of_a_group_go_to_the_worker_that_has_compiled_for_it() -> None:
    queue = pool._Queue()
    for index, group in enumerate("aaabbb"):
        queue.add(group, index)
    workers: list[Any] = [pool._Worker(None, None), pool._Worker(None, None)]  # type: ignore[arg-type]  # no process is asked
    first = queue.next_for(workers[0], set())
    second = queue.next_for(workers[1], {workers[0].last_group})
    assert (first, second) == (0, 3)
    assert [queue.next_for(workers[0], {"b"}) for _ in range(2)] == [1, 2]
    assert queue.next_for(workers[0], {"b"}) == 4  # its own are done: help with the longest
    assert queue
    assert queue.next_for(workers[1], set()) == 5
    assert not queue
    assert queue.next_for(workers[1], set()) is None


SWEEP = """
import signal
import sys
from pathlib import Path
from rnnbench.engine import Options, Planned, Watcher, execute
from rnnbench.errors import Interrupted
from rnnbench.experiment import resolve
from rnnbench.spec import RunSpec
from rnnbench.store import Store

def main() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process inherits that it is ignored
    plan = [
        Planned("suite", f"run {seed}", resolve(RunSpec.parse({
            "task": {"name": "adding", "T": 5}, "cell": {"name": "rnn", "hidden": 3}, "data": {"batch_size": 4},
            "eval": {"n": 20, "every": 1000}, "budget": {"steps": int(sys.argv[2])}, "seed": seed}, "")))
        for seed in range(int(sys.argv[3]))
    ]
    watcher = Watcher(progress=lambda planned, event: print(f"{planned.label}: {event.step}", flush=True))
    try:
        outcomes = execute(plan, Store(Path(sys.argv[1])), Options(jobs=2, threads=1, checkpoint_seconds=0.2), watcher)
    except Interrupted as interrupted:
        print("interrupted:", interrupted.exit_status, interrupted, flush=True)
        raise SystemExit(interrupted.exit_status)
    for outcome in outcomes:
        print("outcome:", outcome.planned.label, outcome.record and outcome.record.status, outcome.error, flush=True)

if __name__ == "__main__":
    main()
"""

LONG = 10**6
"""More steps than a test has time for."""


class Sweep:
    """A process that runs a sweep in two workers."""

    def __init__(self, folder: Path, steps: int, runs: int = 2) -> None:
        file = folder / "sweep.py"
        file.write_text(SWEEP)
        self.root = folder / "results"
        self.out = folder / "out.txt"
        with open(self.out, "a") as out:
            self.process = subprocess.Popen(
                [sys.executable, str(file), str(self.root), str(steps), str(runs)],
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C of ours is for its group alone
            )

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children()
        return [child for child in children if "spawn_main" in " ".join(child.cmdline())]

    def text(self) -> str:
        return self.out.read_text()

    def checkpoints(self) -> list[Path]:
        return list(self.root.glob("suite/*/checkpoint.json"))

    def under_way(self) -> list[psutil.Process]:
        """Wait until both workers are at it and have saved something, and return them."""
        until(lambda: self.process.poll() is not None or len(self.checkpoints()) == 2, "two checkpoints")
        assert self.process.poll() is None, self.text()
        return self.workers()


@pytest.fixture
def sweep(tmp_path: Path) -> Iterator[Callable[..., Sweep]]:
    started: list[Sweep] = []

    def start(steps: int, runs: int = 2) -> Sweep:
        started.append(Sweep(tmp_path, steps, runs))
        return started[-1]

    yield start
    for each in started:
        if each.process.poll() is None:
            os.killpg(each.process.pid, signal.SIGKILL)
        each.process.wait()


def statuses(root: Path) -> list[Status | None]:
    records = [folder.record() for folder in Store(root).folders()]
    return [record and record.status for record in records]


@pytest.mark.slow
def test_a_worker_that_is_killed_takes_one_run_down(sweep: Callable[..., Sweep]) -> None:
    run = sweep(8_000, 3)
    run.under_way()[0].kill()
    assert run.process.wait(WAIT) == 0, run.text()
    told = re.findall(r"outcome: run \d (.*)", run.text())
    assert sorted(line.partition(" ")[0] for line in told) == ["None", "completed", "completed"]
    assert "died with signal 9 (SIGKILL); the machine may be out of memory" in run.text()
    assert "Traceback" not in run.text()
    again = sweep(8_000, 3)
    assert again.process.wait(WAIT) == 0
    assert statuses(run.root) == [Status.COMPLETED] * 3
    records = [folder.record() for folder in Store(run.root).folders()]
    assert sum(bool(record and record.resumed) for record in records) == 1


@pytest.mark.slow
def test_workers_stop_when_their_parent_is_killed(sweep: Callable[..., Sweep]) -> None:
    run = sweep(LONG)
    workers = run.under_way()
    run.process.kill()
    run.process.wait()
    _, alive = psutil.wait_procs(workers, timeout=WAIT)
    assert not alive
    assert statuses(run.root) == [Status.INTERRUPTED] * 2  # they have put things in order
    assert "Traceback" not in run.text()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_whole_group_saves_every_run(sweep: Callable[..., Sweep], number: int, status: int) -> None:
    run = sweep(LONG, 4)
    workers = run.under_way()
    os.killpg(run.process.pid, number)  # as a terminal does on Ctrl-C
    assert run.process.wait(WAIT) == status, run.text()
    assert "2 runs under way have kept what they had; the same command goes on from there" in run.text()
    assert "Traceback" not in run.text()
    assert statuses(run.root) == [Status.INTERRUPTED] * 2
    _, alive = psutil.wait_procs(workers, timeout=WAIT)
    assert not alive


@pytest.mark.slow
def test_a_second_interrupt_ends_at_once(sweep: Callable[..., Sweep]) -> None:
    run = sweep(LONG)
    workers = run.under_way()
    for worker in workers:
        worker.suspend()  # they will never answer
    run.process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGINT)
    assert run.process.wait(WAIT) not in (0, 143)
    _, alive = psutil.wait_procs(workers, timeout=WAIT)
    assert not alive
    assert len(run.checkpoints()) == 2
