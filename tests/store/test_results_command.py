from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rnnbench.cli.results import results
from rnnbench.errors import BadInput, CorruptData, RnnbenchError, RunFailed
from rnnbench.record import Status
from rnnbench.store import RunFolder, Store

Finished = Callable[..., RunFolder]
Call = Callable[..., Result]


@pytest.fixture
def call(store: Store) -> Call:
    def invoke(command: str, *arguments: str, error: type[RnnbenchError] | None = None, **more: Any) -> Result:
        where = [] if "--results" in arguments else ["--results", str(store.root)]
        outcome = CliRunner().invoke(results, [command, *where, *arguments], **more)
        if error is None:
            assert outcome.exception is None, (outcome.output, outcome.exception)
        else:
            assert type(outcome.exception) is error, (outcome.output, outcome.exception)
            assert str(outcome.exception).isprintable()
        return outcome

    return invoke


@pytest.fixture
def several(finished: Finished, store: Store) -> dict[str, RunFolder]:
    runs = {
        "solved": finished("a", status=Status.SOLVED),
        "adding": finished("b", spec={"task": {"name": "adding"}, "cell": {"name": "gru"}, "backend": "jax"}),
        "failed": finished("c", suite="other", status=Status.FAILED, error="a layer\nbroke"),
        "killed": store.folder("other", "d" * 64),
    }
    with runs["killed"].lock():
        runs["killed"].writer().checkpoint({"w": np.ones(2)}, {"step": 41})
    return runs


def test_list_shows_every_run(call: Call, several: dict[str, RunFolder]) -> None:
    output = call("list").output
    for run in several.values():
        assert run.digest[:12] in output
    for text in (
        "copy",
        "adding",
        "lstm",
        "gru",
        "jax",
        "solved",
        "failed",
        "interrupted",
        "41",
        "loss 0.25",
        "a layer broke",
    ):
        assert text in output
    assert "4 runs: 1 completed, 1 failed, 1 interrupted, 1 solved" in output


def test_list_as_json(call: Call, several: dict[str, RunFolder]) -> None:
    rows = json.loads(call("list", "--json").output)
    assert {row["digest"] for row in rows} == {run.digest for run in several.values()}
    by_digest = {row["digest"]: row for row in rows}
    assert by_digest[several["adding"].digest]["cell"] == "gru"
    assert by_digest[several["killed"].digest] | {"steps": 41, "status": "interrupted"} == by_digest["d" * 64]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (["--task", "adding"], ["adding"]),
        (["--task", "adding", "--task", "copy", "--suite", "suite"], ["solved", "adding"]),
        (["--cell", "lstm"], ["solved", "failed"]),
        (["--backend", "jax"], ["adding"]),
        (["--status", "failed"], ["failed"]),
        (["--status", "interrupted"], ["killed"]),
        (["--suite", "other"], ["failed", "killed"]),
        (["--status", "diverged"], []),
    ],
)
def test_filters(arguments: list[str], kept: list[str], call: Call, several: dict[str, RunFolder]) -> None:
    rows = json.loads(call("list", "--json", *arguments).output)
    assert sorted(row["digest"] for row in rows) == sorted(several[name].digest for name in kept)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--task", "addding"], "did you mean adding"),
        (["--cell", "lsmt"], "did you mean lstm"),
        (["--suite", "suit"], "did you mean suite"),
        (["--status", "solvd"], "did you mean solved"),
        (["--backend", "\x1b[2J\n"], "known: jax, torch"),
    ],
)
def test_misspelt_filters(arguments: list[str], says: str, call: Call, several: dict[str, RunFolder]) -> None:
    assert says in str(call("list", *arguments, error=BadInput).exception)


def test_a_run_that_cannot_be_read_is_listed_as_corrupt(call: Call, several: dict[str, RunFolder]) -> None:
    (several["solved"].path / "run.json").write_bytes(b"")
    outcome = call("list", error=CorruptData)
    assert "corrupt" in outcome.output
    assert several["adding"].digest[:12] in outcome.output


def test_a_running_run_is_listed_as_such(call: Call, several: dict[str, RunFolder]) -> None:
    with several["killed"].lock():
        (row,) = json.loads(call("list", "--json", "--status", "running").output)
    assert row["digest"] == "d" * 64


def test_show(call: Call, several: dict[str, RunFolder]) -> None:
    run = several["solved"]
    output = call("show", run.digest[:8]).output
    for text in (run.digest, "task.delay", "lstm", "final.safetensors", "sha256", "A processor"):
        assert text in output
    facts = json.loads(call("show", run.digest, "--json").output)
    record = run.record()
    assert record is not None
    assert {key: facts[key] for key in record.model_dump()} == record.model_dump(mode="json")
    assert "41" in call("show", "dddd").output
    assert "fits none" in str(call("show", "zzzz", error=BadInput).exception)


def test_verify(call: Call, several: dict[str, RunFolder]) -> None:
    assert "4 runs, 0 faults" in call("verify").output
    run = several["solved"]
    for name, change in {
        "final.safetensors": lambda data: data[:-1] + b"!",
        "best.safetensors": lambda data: data[:-1],
        "metrics-00000.parquet": None,
    }.items():
        path = run.path / name
        path.write_bytes(change(path.read_bytes())) if change else path.unlink()
    (run.path / "stranger").write_text("")
    (several["adding"].path / "run.json").write_text("{")
    path = several["killed"].path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    outcome = call("verify", error=CorruptData)
    assert "6 faults in 3 of 4 runs" in str(outcome.exception)
    lines = outcome.output.splitlines()
    assert len(lines) == 7
    for text in ("final.safetensors: has sha256", "best.safetensors: holds", "metrics-00000.parquet: is missing"):
        assert text in outcome.output
    found = json.loads(call("verify", "--json", "--suite", "other", error=CorruptData).output)
    assert [fault["digest"] for fault in found["faults"]] == ["d" * 64]
    assert "1 runs, 0 faults" in call("verify", several["failed"].digest[:10]).output


def test_export_and_import(call: Call, several: dict[str, RunFolder], tmp_path: Path) -> None:
    target, there = str(tmp_path / "x.tgz"), str(tmp_path / "there")
    assert "packed 2 runs" in call("export", "-o", target).output  # failed and killed ones are passed over
    assert "2 runs added" in call("import", target, "--results", there).output
    assert "2 there already" in call("import", target, "--results", there).output
    assert json.loads(call("export", "-o", target, "--json", "--status", "failed").output)["runs"] == 1
    assert "packed 1 runs" in call("export", several["solved"].digest[:9], "--lean", "-o", target).output
    assert "there is nothing to pack" in str(call("export", "dddd", "-o", target, error=BadInput).exception)
    assert "is a folder" in str(call("export", "-o", str(tmp_path), error=BadInput).exception)
    assert "no folder" in str(call("export", "-o", str(tmp_path / "no" / "x"), error=BadInput).exception)


def test_a_refused_import_says_why(call: Call, finished: Finished, tmp_path: Path) -> None:
    run = finished("a")
    call("export", "-o", str(tmp_path / "x.tgz"))
    there = Store(tmp_path / "there").folder(run.suite, run.digest)
    record = run.record()
    assert record is not None
    with there.lock():
        there.writer().finish(record.model_copy(update={"steps": 1}))
    arguments = [str(tmp_path / "x.tgz"), "--results", str(tmp_path / "there")]
    outcome = call("import", *arguments, error=RunFailed)
    assert "1 refused" in outcome.output
    refused = json.loads(call("import", *arguments, "--json", error=RunFailed).stdout)["refused"]
    assert refused[0]["run"] == f"suite/{run.digest}"


def test_clean(call: Call, several: dict[str, RunFolder], store: Store) -> None:
    solved = several["solved"].path
    (solved / ".tmp-1-x").write_text("")
    (solved / "checkpoint.json").write_text("left by a kill just after the record")
    (store.root / "suite" / ("e" * 64)).mkdir()
    (several["adding"].path / "run.json").write_text("{")
    before = sorted(path for path in store.root.rglob("*"))
    output = call("clean", "--dry-run").output
    assert sorted(path for path in store.root.rglob("*")) == before
    assert len(output.splitlines()) == 4
    for text in ("failed, no checkpoint", "interrupted, checkpoint of step 41", "leftovers: .tmp-1-x, checkpoint.json"):
        assert text in output
    assert "give --yes" in str(call("clean", error=BadInput).exception)
    assert "did you mean failed" in str(call("clean", "--only", "faild", error=BadInput).exception)

    assert "1 removed" in call("clean", "--only", "interrupted", "--yes").output
    assert not several["killed"].path.exists()
    assert several["failed"].path.exists()
    removed = json.loads(call("clean", "--yes", "--json").output)["removed"]
    assert len(removed) == 3
    assert {path.name for path in solved.iterdir()} == {"run.json", *several["solved"].files()}
    assert several["solved"].is_done()
    assert several["adding"].path.exists()  # corrupt: only when asked for
    assert "corrupt" in call("clean", "--only", "corrupt", "--yes").output
    assert {folder.path for folder in store.folders()} == {solved}
    assert "nothing to clean" in call("clean").output


def test_clean_never_touches_a_locked_run(call: Call, several: dict[str, RunFolder], store: Store) -> None:
    with several["killed"].lock(), several["failed"].lock():
        assert "nothing to clean" in call("clean", "--yes").output
    assert several["killed"].checkpoint() is not None


def test_clean_looks_again_under_the_lock(several: dict[str, RunFolder]) -> None:
    from rnnbench.store.inspect import CLEANABLE, removable, remove

    plan = removable(several["failed"], CLEANABLE)
    assert plan is not None
    with several["failed"].lock():
        record = several["failed"].record()
        assert record is not None
        several["failed"].writer().finish(record.model_copy(update={"status": Status.SOLVED}))
    assert not remove(plan, CLEANABLE)
    assert several["failed"].is_done()


def test_clean_leaves_what_it_does_not_know(call: Call, several: dict[str, RunFolder]) -> None:
    (several["failed"].path / "notes").mkdir()
    (several["failed"].path / "notes" / "precious").write_text("")
    assert "1 left" in call("clean", "--only", "failed", "--yes").output
    assert (several["failed"].path / "notes" / "precious").exists()


def test_hostile_text_in_a_record_is_shown_escaped(call: Call, finished: Finished) -> None:
    evil = "\x1b[2J\x9b2J[bold red]x[/bold red]\u202e\nfake"
    finished(
        "a",
        spec={"task": {"name": evil}, "cell": {"name": "lstm"}},
        status=Status.FAILED,
        error=evil,
        summary={"metrics": {evil: 1.0}},
    )
    for command in (["list"], ["show", "c"], ["verify"], ["clean", "--dry-run"]):
        arguments = command if command != ["show", "c"] else ["show", "ca978112"]
        output = call(*arguments).output
        assert not re.search("[\x1b\x9b\u202e]", output)
        if command[0] in ("list", "show"):
            assert "[bold red]x[/bold red]" in output


def test_a_folder_that_is_not_there_or_none(call: Call, tmp_path: Path) -> None:
    for command in (["list"], ["show", "a"], ["verify"], ["clean"], ["export", "-o", "x"]):
        error = call(*command, "--results", str(tmp_path / "nowhere"), error=BadInput).exception
        assert "there is no folder" in str(error)
    (tmp_path / "file").write_text("")
    assert "is not a folder" in str(call("list", "--results", str(tmp_path / "file"), error=BadInput).exception)
    assert "no runs in" in call("list", "--results", str(tmp_path)).output


@pytest.mark.parametrize(
    ("arguments", "status"), [(["list"], 0), (["show", "zz"], 2), (["verify"], 3), (["list", "--task", "x"], 2)]
)
def test_the_command_itself(arguments: list[str], status: int, finished: Finished, store: Store) -> None:
    run = finished("a")
    if status == 3:
        (run.path / "final.safetensors").write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", "from rnnbench.cli import main; main()", "results", *arguments],
        env={**os.environ, "RNNBENCH_RESULTS": str(store.root)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == status
    assert done.stderr.count("\n") == (0 if status == 0 else 1)
    assert "Traceback" not in done.stderr
