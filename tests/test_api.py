"""`rnnbench.run`, as a Python program calls it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import rnnbench
from rnnbench.errors import BadInput, Locked
from rnnbench.record import Status
from rnnbench.store import Store

SPEC: dict[str, Any] = {
    "task": {"name": "adding", "T": 5},
    "cell": {"name": "rnn", "hidden": 3},
    "data": {"batch_size": 4},
    "eval": {"n": 20},
    "budget": {"steps": 3},
}


def test_a_spec_gives_a_record_and_several_give_a_list_in_their_order(tmp_path: Path) -> None:
    one = rnnbench.run(SPEC, results=tmp_path, threads=1)
    assert (one.status, one.steps) == (Status.COMPLETED, 3)
    several = rnnbench.run([SPEC | {"seed": 1}, rnnbench.RunSpec.parse(SPEC, "")], results=tmp_path, threads=1)
    assert [record.spec.get("seed", 0) for record in several] == [1, 0]
    assert several[1] == one
    assert rnnbench.run([], results=tmp_path) == []


def test_results_go_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RNNBENCH_RESULTS", str(tmp_path / "there"))
    record = rnnbench.run(SPEC, suite="mine", threads=1)
    assert [(f.suite, f.digest) for f in Store(tmp_path / "there").folders()] == [("mine", record.digest)]


@pytest.mark.parametrize(
    ("spec", "options", "part"),
    [
        ("quickstart", {}, "'quickstart' is text"),
        ({**SPEC, "sead": 1}, {}, "sead: unknown key; did you mean seed"),
        (SPEC, {"jobs": 0}, "jobs: 0 will not do"),
        (SPEC, {"threads": -1}, "threads: -1 will not do"),
        (SPEC, {"threads": 100_000}, "threads: 100000 will not do; from 1 to 1024"),
        (SPEC, {"suite": "../up"}, "'../up' cannot be a folder's name"),
    ],
)
def test_bad_input_is_raised_before_anything_is_written(
    spec: Any, options: dict[str, Any], part: str, tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        rnnbench.run(spec, results=tmp_path / "new", **options)
    assert part in str(caught.value)
    assert not (tmp_path / "new").exists()


def test_a_run_that_another_process_holds_is_raised(tmp_path: Path) -> None:
    record = rnnbench.run(SPEC, results=tmp_path, threads=1)
    folder = Store(tmp_path).folder("adhoc", record.digest)
    (folder.path / "run.json").unlink()
    with folder.lock(), pytest.raises(Locked, match="working on this run"):
        rnnbench.run(SPEC, results=tmp_path, threads=1)
