"""Kill it at every single change of the disk; fill the disk at every single one. Nothing may be lost or wrong."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.errors import OutOfResources
from rnnbench.record import RunRecord, Status
from rnnbench.store import RunFolder, Store
from rnnbench.store.inspect import verify_run

STEPS = 3


def arrays_at(step: int) -> dict[str, Any]:
    return {"w/x.y": np.full((2, 3), float(step)), "count": np.array(step)}


def row_at(step: int) -> dict[str, Any]:
    return {"step": step, "sequences": step, "split": "train", "metric": "loss", "value": 1 / step, "seconds": 0.0}


def train(run: RunFolder, record: RunRecord) -> None:
    """A training loop in small: go on from the checkpoint, improve at odd steps, end with a record."""
    if run.is_done():
        return
    with run.lock():
        checkpoint = run.checkpoint()
        if checkpoint is not None:
            for name, array in arrays_at(checkpoint.step).items():
                np.testing.assert_array_equal(checkpoint.arrays[name], array)
            assert checkpoint.position["best"] == (checkpoint.step - 1) // 2 * 2 + 1
        writer = run.writer(resume=checkpoint)
        for step in range(1 if checkpoint is None else checkpoint.step + 1, STEPS + 1):
            writer.metrics([row_at(step)])
            if step % 2:
                writer.save_parameters("best", arrays_at(step))
            writer.signal("norm", ("time",), "", np.arange(step, dtype=np.float32), step)
            writer.checkpoint(arrays_at(step), {"step": step, "best": (step - 1) // 2 * 2 + 1})
        best = writer.parameters("best")
        assert best is not None
        np.testing.assert_array_equal(best["count"], 3)
        writer.save_parameters("final", arrays_at(STEPS))
        writer.finish(record)


def contents(run: RunFolder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.path.iterdir()}


def test_a_kill_at_any_two_instants_changes_nothing(
    tmp_path: Path, make_record: Callable[..., RunRecord], faulty: Callable[..., Any]
) -> None:
    record = make_record()
    whole = Store(tmp_path / "whole").folder(record.suite, record.digest)
    count = faulty()
    train(whole, record)
    total, expected = count.count, contents(whole)
    assert total > 60
    assert set(expected) == {
        "run.json",
        "best.safetensors",
        "final.safetensors",
        *(f"{kind}-0000{n}.parquet" for kind in ("metrics", "signals") for n in range(STEPS)),
    }

    for strike in range(total):
        run = Store(tmp_path / f"{strike}").folder(record.suite, record.digest)
        for attempt in (strike, strike * 7 % total, None):
            fake = faulty(attempt)
            with contextlib.suppress(fake.Killed):
                train(run, record)
        faulty()
        found = contents(run)
        # What a kill after the record leaves is swept up by `clean`, and is no part of the run.
        extra = set(found) - set(expected)
        assert all(name.startswith(("checkpoint.", "best-0")) for name in extra), (strike, extra)
        assert {name: found[name] for name in expected} == expected, strike


def test_every_rename_is_of_bytes_that_have_reached_the_disk(
    tmp_path: Path, make_record: Callable[..., RunRecord], faulty: Callable[..., Any]
) -> None:
    record = make_record()
    fake = faulty()
    train(Store(tmp_path / "whole").folder(record.suite, record.digest), record)
    opened: dict[str, int] = {}
    synced: set[int] = set()
    renames = 0
    for name, first, *texts in fake.log:
        if name == "open":
            opened[texts[0]] = first
            synced.discard(first)
        elif name == "fsync":
            synced.add(first)
        elif name == "replace" and ".tmp-" in texts[0]:
            renames += 1
            assert opened[texts[0]] in synced, texts
    assert renames >= 3 * STEPS


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_at_any_instant_keeps_the_last_checkpoint(
    code: int, tmp_path: Path, faulty: Callable[..., Any]
) -> None:
    def begin(name: object) -> tuple[RunFolder, Any]:
        faulty()
        run = Store(tmp_path / str(name)).folder("suite", "0" * 64)
        lock = run.lock()
        lock.__enter__()
        writer = run.writer()
        writer.metrics([row_at(1)])
        writer.save_parameters("best", arrays_at(1))
        writer.checkpoint(arrays_at(1), {"step": 1})
        writer.metrics([row_at(2)])
        writer.save_parameters("best", arrays_at(2))
        return run, writer

    run, writer = begin("count")
    counting = faulty()
    writer.checkpoint(arrays_at(2), {"step": 2})
    for strike in range(counting.count):
        run, writer = begin(strike)
        faulty(strike, code)
        with pytest.raises(OutOfResources) as caught:
            writer.checkpoint(arrays_at(2), {"step": 2})
        message = str(caught.value)
        assert caught.value.exit_status == 5
        assert "\n" not in message
        promised = re.search(r"checkpoint of step (\d) is whole", message)
        assert promised, message
        assert not list(run.path.glob(".tmp-*")), strike
        checkpoint = run.checkpoint()
        assert checkpoint is not None
        assert checkpoint.step >= int(promised[1])
        for name, array in arrays_at(checkpoint.step).items():
            np.testing.assert_array_equal(checkpoint.arrays[name], array)
        faulty()
        writer.checkpoint(arrays_at(3), {"step": 3})  # space was made: the same writer goes on
        checkpoint = run.checkpoint()
        assert checkpoint is not None
        assert checkpoint.step == 3
        assert [r["step"] for r in run.metrics().to_pylist()] == [1, 2]


def test_a_real_limit_on_file_size_is_out_of_resources(tmp_path: Path) -> None:
    code = """
import resource, signal, sys
import numpy as np
from rnnbench.errors import OutOfResources
from rnnbench.store import Store
run = Store(sys.argv[1]).folder("suite", "0" * 64)
with run.lock():
    writer = run.writer()
    writer.checkpoint({"w": np.zeros(8)}, {"step": 1})
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        writer.checkpoint({"w": np.zeros(100_000)}, {"step": 2})
    except OutOfResources as error:
        print(error)
    assert run.checkpoint().step == 1
    assert not list(run.path.glob(".tmp-*"))
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    assert "File too large" in done.stdout


LOOP = """
import sys
import numpy as np
from rnnbench.store import Store
run = Store(sys.argv[1]).folder("suite", "0" * 64)
with run.lock():
    checkpoint = run.checkpoint()
    step = 0 if checkpoint is None else checkpoint.step
    if checkpoint is not None:
        assert checkpoint.arrays["w"].tolist() == [step] * 20_000, "arrays of another step"
        assert [r["step"] for r in run.metrics().to_pylist()] == list(range(1, step + 1)), "rows lost or doubled"
    writer = run.writer(resume=checkpoint)
    begun = step
    while True:
        step += 1
        writer.metrics([dict(step=step, sequences=0, split="train", metric="loss", value=0.0, seconds=0.0)])
        writer.checkpoint({"w": np.full(20_000, step)}, {"step": step})
        if step == begun + 1:
            print("ready", begun, flush=True)
"""


@pytest.mark.slow
def test_sigkill_at_random_instants(tmp_path: Path) -> None:
    instants = random.Random(0)
    reached = []
    for _ in range(12):
        with subprocess.Popen(
            [sys.executable, "-c", LOOP, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert line.startswith("ready"), process.stderr.read()
            reached.append(int(line.split()[1]))
            time.sleep(instants.uniform(0.0, 0.05))
            process.send_signal(signal.SIGKILL)
    assert all(later > earlier for earlier, later in itertools.pairwise(reached))
    assert os.listdir(tmp_path) == ["suite"]


@pytest.mark.parametrize("status", [Status.INTERRUPTED, Status.FAILED])
def test_a_kill_while_a_try_is_begun_anew_leaves_no_record_that_lies(
    status: Status, tmp_path: Path, make_record: Callable[..., RunRecord], faulty: Callable[..., Any]
) -> None:
    record = make_record(status=status)
    for strike in itertools.count():
        run = Store(tmp_path / f"{strike}").folder(record.suite, record.digest)
        faulty()
        with run.lock():
            writer = run.writer()
            writer.metrics([row_at(1)])
            writer.checkpoint(arrays_at(1), {"step": 1})
            writer.metrics([row_at(2)])
            writer.finish(record)
        fake = faulty(strike)
        with contextlib.suppress(fake.Killed), run.lock():
            run.writer(resume=run.checkpoint() if status is Status.INTERRUPTED else None)
        faulty()
        assert run.record() is None or not verify_run(run), strike
        if status is Status.INTERRUPTED:
            checkpoint = run.checkpoint()
            assert checkpoint is not None
            assert checkpoint.step == 1
        if not fake.dead:
            break
    assert strike > 2
