from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import rnnbench
from rnnbench.errors import BadInput, CorruptData
from rnnbench.record import RunRecord, Status, Summary, Timings
from rnnbench.store import RunFolder, Store
from rnnbench.store.frames import SPEC_COLUMNS, flat_spec

Finished = Callable[..., RunFolder]
Make = Callable[..., RunRecord]


@pytest.fixture
def three(finished: Finished) -> list[RunFolder]:
    runs = [
        finished("a", spec={"task": {"name": "copy", "delay": 9}, "cell": {"name": "lstm", "hidden": 8}}),
        finished(
            "b",
            rows=3,
            spec={
                "task": {"name": "adding"},
                "model": "pkg.mod:build",
                "backend": "jax",
                "seed": 7,
                "techniques": [{"name": "clip_norm", "max_norm": 1.0}, {"name": "zoneout"}],
                "eval": {"every": 10},
            },
            matched=False,
            status=Status.DIVERGED,
            summary=Summary(metrics={"loss": float("nan"), "accuracy": 0.5}),
            baselines={"loss": {"memoryless": 0.167}},
            timings=Timings(total_s=2.5),
            steps_to_solve=2,
        ),
        finished("c", suite="other", rows=0, status=Status.FAILED, error="it broke"),
    ]
    return sorted(runs, key=lambda run: (run.suite, run.digest))


def naive(runs: list[RunFolder]) -> list[dict[str, Any]]:
    """The obvious reading: every row of every run, one by one."""
    records = [(run, run.record()) for run in runs]
    return [
        {"suite": record.suite, "digest": record.digest, "status": str(record.status), **row}
        for run, record in records
        if record is not None
        for row in run.metrics().to_pylist()
    ]


def test_metrics_are_what_reading_run_by_run_gives(three: list[RunFolder], store: Store) -> None:
    frame = rnnbench.load_results(store.root)
    expected = naive(three)
    assert len(frame) == len(expected) == 5
    assert frame[list(expected[0])].to_dict("records") == expected
    assert set(SPEC_COLUMNS) <= set(frame.columns)
    assert frame.columns[-6:].tolist() == ["step", "sequences", "split", "metric", "value", "seconds"]
    a = frame[frame["task"] == "copy"]
    assert (a["task.delay"] == 9).all()
    assert (a["backend"] == "torch").all()
    assert (a["seed"] == 0).all()
    b = frame[frame["task"] == "adding"]
    assert b[
        ["backend", "seed", "techniques", "clip_norm.max_norm", "eval.every"]
    ].drop_duplicates().values.tolist() == [["jax", 7, "clip_norm+zoneout", 1.0, 10]]
    assert b["task.delay"].isna().all()
    assert not b["matched"].any()
    assert frame["step"].dtype == np.int64
    assert frame["value"].dtype == np.float64


def test_runs_have_one_row_each(three: list[RunFolder], store: Store) -> None:
    frame = rnnbench.load_results(store.root, kind="runs").set_index("digest")
    assert frame.index.tolist() == [run.digest for run in three]
    failed = frame[frame["status"] == "failed"].iloc[0]
    assert failed["suite"] == "other"
    assert failed["error"] == "it broke"
    diverged = frame[frame["status"] == "diverged"].iloc[0]
    assert np.isnan(diverged["summary.loss"])
    assert diverged["summary.accuracy"] == 0.5
    assert diverged["baseline.loss.memoryless"] == 0.167
    assert diverged["total_s"] == 2.5
    assert diverged["steps_to_solve"] == 2
    assert frame["steps_to_solve"].isna().sum() == 2
    assert frame["steps_to_solve"].dtype == pd.Int64Dtype()


def test_a_suites_and_a_runs_own_folder_can_be_read(three: list[RunFolder], store: Store) -> None:
    assert len(rnnbench.load_results(store.root / "suite", kind="runs")) == 2
    one = next(run for run in three if run.suite == "suite")
    assert rnnbench.load_results(str(one.path), kind="runs")["digest"].tolist() == [one.digest]


def test_nothing_to_read_is_an_empty_frame(tmp_path: Path) -> None:
    for kind in ("metrics", "runs"):
        frame = rnnbench.load_results(tmp_path, kind=kind)  # type: ignore[arg-type]  # both are right
        assert len(frame) == 0
        assert {"suite", "digest", "status", *SPEC_COLUMNS} <= set(frame.columns)


def test_what_cannot_be_read(finished: Finished, store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        rnnbench.load_results(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="neither metrics nor runs"):
        rnnbench.load_results(tmp_path, kind="run")  # type: ignore[arg-type]  # the mistake under test
    run = finished("a")
    (run.path / "metrics-00000.parquet").write_bytes(b"PAR1")
    assert len(rnnbench.load_results(store.root, kind="runs")) == 1
    with pytest.raises(CorruptData, match=r"metrics-00000\.parquet"):
        rnnbench.load_results(store.root)
    (run.path / "run.json").write_bytes(b"")
    with pytest.raises(CorruptData, match=r"run\.json"):
        rnnbench.load_results(store.root, kind="runs")


def test_runs_in_progress_are_left_out(finished: Finished, store: Store) -> None:
    finished("a")
    going = store.folder("suite", "0" * 64)
    with going.lock():
        writer = going.writer()
        writer.checkpoint({}, {"step": 1})
        assert len(rnnbench.load_results(store.root, kind="runs")) == 1


def test_flattening() -> None:
    assert flat_spec({"task": {"name": "copy", "sizes": [1, 2], "deep": {"x": None}}, "device": "cuda"}) == {
        "task": "copy",
        "task.sizes": "[1,2]",
        "task.deep.x": None,
        "device": "cuda",
    }


def test_importing_rnnbench_is_light_and_its_names_are_there() -> None:
    code = "import sys, rnnbench; print([m for m in ('numpy', 'pandas', 'pydantic', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert "load_results" in dir(rnnbench)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rnnbench.nonsense
