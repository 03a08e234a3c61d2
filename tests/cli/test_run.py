"""``rnnbench run`` as a user meets it: what it prints, what it refuses, and how it ends."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from rnnbench import engine
from rnnbench.store import Store
from rnnbench.tasks.adding import Adding

TINY = (
    *("run", "--task", "adding", "--cell", "rnn", "--steps", "20", "--jobs", "1", "--threads", "1"),
    *("--set", "task.T=5", "--set", "cell.hidden=3", "--set", "data.batch_size=4", "--set", "eval.n=20"),
)


def changed(*arguments: str) -> list[str]:
    """Return the small run's arguments with some settings replaced and others added."""
    keys = {text.partition("=")[0] for text in arguments if "=" in text}
    kept = list(TINY)
    for index in reversed(range(len(kept) - 1)):
        if kept[index] == "--set" and kept[index + 1].partition("=")[0] in keys:
            del kept[index : index + 2]
    return [*kept, *arguments]


Invoke = Callable[..., Result]
Failed = Callable[..., None]


def test_a_run_from_start_to_table(invoke: Invoke) -> None:
    result = invoke(*TINY)
    assert result.exit_code == 0, result.stderr
    lines = result.stderr.splitlines()
    assert lines[0] == "adhoc: 1 runs, 1 to run"
    assert re.fullmatch(
        r"\[1/1\] adding rnn · torch · seed 0: completed after 20 steps, mse [\d.]+, [\d.]+ s", lines[1]
    )
    title, heading, row, *_ = result.stdout.splitlines()
    assert title == "adding: mse, lower is better; baseline 0.167 (constant)"
    assert heading.split() == ["backend", "median", "[range]", "solved", "seconds"]
    assert re.fullmatch(r"rnn torch [\d.]+ - [\d.]+", " ".join(row.split()))
    assert "records: rnnbench-results/adhoc" in result.stdout
    assert Path("rnnbench-results/adhoc/learning-curves.png").read_bytes()[:4] == b"\x89PNG"


def test_again_means_nothing_to_do(invoke: Invoke) -> None:
    first = invoke(*TINY, "--seeds", "2")
    files = {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(Path().rglob("*"))}
    second = invoke(*TINY, "--seeds", "2")
    assert second.exit_code == 0
    assert second.stderr == "adhoc: 2 runs, 0 to run\n"
    assert second.stdout == first.stdout
    assert {path: (path.stat().st_mtime_ns, path.stat().st_ino) for path in sorted(Path().rglob("*"))} == files


def test_what_is_to_run_can_be_asked_for(invoke: Invoke) -> None:
    invoke(*TINY)
    result = invoke(*TINY, "--seeds", "2", "--dry-run", "--json")
    rows = json.loads(result.stdout)
    assert [(row["run"], row["done"]) for row in rows] == [
        ("adding rnn · torch · seed 0", True),
        ("adding rnn · torch · seed 1", False),
    ]
    shown = invoke(*TINY, "--seeds", "2", "--dry-run").stdout
    assert [line.split()[-1] for line in shown.splitlines()[1:]] == ["done", "run"]
    assert len(Store("rnnbench-results").folders()) == 1


def test_json_says_it_all_and_nothing_else(invoke: Invoke) -> None:
    result = invoke(*TINY, "--json", "--no-figure")
    assert (result.exit_code, result.stderr) == (0, "")
    told = json.loads(result.stdout)
    assert (told["suite"], told["figure"]) == ("adhoc", None)
    (run,) = told["runs"]
    assert (run["record"]["status"], run["error"], run["already"]) == ("completed", None, False)
    assert run["record"]["digest"] == run["digest"]


def test_the_picture_is_of_the_runs_that_were_asked_for(invoke: Invoke) -> None:
    picture = Path("rnnbench-results/adhoc/learning-curves.png")
    invoke(*TINY)
    mine = picture.read_bytes()
    assert "learning curves" not in invoke(*TINY, "--seed", "1", "--no-figure").stdout
    assert picture.read_bytes() == mine
    invoke(*TINY, "--seed", "1")
    assert picture.read_bytes() != mine
    assert "learning curves: rnnbench-results/adhoc" in invoke(*TINY).stdout  # done, but the picture is of seed 1
    assert picture.read_bytes() == mine


def test_another_run_that_is_damaged_is_no_concern_of_this_one(invoke: Invoke, failed: Failed) -> None:
    invoke(*TINY, "--no-figure")
    (folder,) = Store("rnnbench-results").folders()
    (folder.path / "run.json").write_text("")
    result = invoke(*TINY, "--no-figure", "--seed", "1")
    assert (result.exit_code, "  rnn  torch" in result.stdout) == (0, True)
    failed(
        invoke(*TINY, "--no-figure"),
        3,
        "run.json: is empty",
        f"rnnbench results clean --only corrupt {folder.digest[:12]}",
    )


DIVERGING = ("--optimizer", "sgd", "--set", "optimizer.lr=1e6", "--set", "cell.activation=relu")


@pytest.mark.filterwarnings("ignore:overflow encountered")
def test_a_run_that_diverges_is_a_result_and_exit_status_1(invoke: Invoke) -> None:
    result = invoke(*TINY, *DIVERGING)
    assert result.exit_code == 1
    assert "diverged at step 2 after 2 steps" in result.stderr
    assert result.stderr.splitlines()[-1] == "rnnbench: the run diverged"
    assert "(1 diverged)" in result.stdout
    again = invoke(*TINY, *DIVERGING)
    assert (again.exit_code, again.stderr.splitlines()[0]) == (1, "adhoc: 1 runs, 0 to run")
    told = json.loads(invoke(*TINY, *DIVERGING, "--json").stdout)
    assert told["runs"][0]["record"]["first_bad_step"] == 2


def test_a_locked_run_alone_is_exit_status_4(invoke: Invoke) -> None:
    invoke(*TINY)
    (folder,) = Store("rnnbench-results").folders()
    (folder.path / "run.json").unlink()
    with folder.lock():
        alone = invoke(*TINY)
        among = invoke(*TINY, "--seeds", "2")
        rest = invoke(*TINY, "--seeds", "2")
    assert alone.exit_code == 4
    assert alone.stderr.splitlines()[1].endswith("is working on this run; wait for it, or stop it")
    assert len(alone.stderr.splitlines()) == 2
    # among others it is skipped, and they are done
    assert among.exit_code == 0
    assert among.stderr.splitlines()[-1] == "skipped, since another process works on them: 1 runs"
    assert "  rnn  torch" in among.stdout
    # when it is all that is left, that is said
    assert rest.exit_code == 4
    assert rest.stderr.splitlines()[-1].startswith("rnnbench: all 1 runs that are left are being worked on by other")


CELL = """
from rnnbench.cells.rnn import RNN
class Broken(RNN):
    name = "broken"
    def step(self, xp, params, states, u, context):
        raise RuntimeError("it broke")
"""


def test_one_run_that_fails_is_one_line_and_among_others_one_more(invoke: Invoke) -> None:
    Path("broken_cell.py").write_text(CELL)
    alone = invoke(*TINY, "--cell", "broken_cell:Broken")
    assert alone.exit_code == 1
    _, line = alone.stderr.splitlines()
    assert line.startswith("rnnbench: RuntimeError: it broke (in step, line 6 of ")
    assert alone.stdout == ""
    both = invoke(*TINY, "--cell", "rnn,broken_cell:Broken")
    assert both.exit_code == 1
    assert both.stderr.splitlines()[-1].startswith(
        "rnnbench: 1 of 2 runs failed; adding broken_cell:Broken · torch · seed 0: RuntimeError: it broke"
    )
    assert "  rnn  torch" in both.stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--set", "task.T=0"), ("task.T: 0 will not do",)),
        (("--set", "data.batch_size=0"), ("data.batch_size: 0 will not do",)),
        (("--set", "optimizer.lr=nan"), ("optimizer.lr",)),
        (("--set", "optimizer.lr=-0.1"), ("optimizer.lr: -0.1 will not do",)),
        (("--set", "optimizer.lr=0"), ("optimizer.lr",)),
        (("--set", "eval.metric=accuracy"), ("eval.metric: unknown name 'accuracy'", "mse")),
        (("--set", "stop.metric=msee", "--set", "stop.threshold=0.1"), ("stop.metric: unknown name 'msee'", "mse")),
        (("--set", "eval.n=0"), ("eval.n: 0 will not do",)),
        (("--set", "budget.seconds=-1"), ("budget.seconds",)),
        (("--steps", "0"), ("budget.steps: 0 will not do",)),
        (("--task", "addign"), ("unknown name 'addign'; did you mean adding?",)),
        (("--cell", "lsmt"), ("unknown name 'lsmt'; did you mean lstm",)),
        (("--backend", "pytorch"), ("unknown name 'pytorch'; did you mean torch?",)),
        (("--backend", "numpy"), ("numpy is the reference for forward passes and does not train",)),
        (("--optimizer", "adma"), ("unknown name 'adma'; did you mean adam",)),
        (("--technique", "clip"), ("unknown name 'clip'",)),
        (("--device", "gpu"), ("device: 'gpu' will not do; a device is cpu, cuda, cuda:N, tpu or tpu:N",)),
        (("--device", "cuda:99"), ("device: torch cannot use cuda:99",)),
        (("--precision", "tf32"), ("precision: tf32 is a mode of NVIDIA GPUs",)),
        (("--path", "fast"), ("path: fast is not to be had here",)),
        (("--seed", "-1"), ("seed",)),
        (("--seed", "4294967296"), ("4294967296 is not an integer from 0 to 2**32 - 1",)),
        (("--seed", "3,3"), ("3",)),
        (("--jobs", "0"), ("jobs",)),
        (("--checkpoint-every", "0"), ("checkpoint-every",)),
        (("--checkpoint-every", "nan"), ("checkpoint_seconds: nan will not do; a time above 0",)),
        (("--threads", "100000"), ("threads: 100000 will not do; from 1 to 1024",)),
        (("--model", "torch_model:build"), ("give either --cell or --model, not both",)),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(
    arguments: tuple[str, ...], parts: tuple[str, ...], invoke: Invoke
) -> None:
    result = invoke(*changed(*arguments))
    lines = result.stderr.splitlines()
    if "--path" in arguments:  # known when the run is made ready, after the first line of progress
        assert lines.pop(0) == "adhoc: 1 runs, 1 to run"
    assert result.exit_code == 2, result.stderr
    assert result.stdout == ""
    (line,) = lines
    assert line.startswith("rnnbench: ")
    for part in parts:
        assert part in line
    assert not list(Path().rglob("run.json"))


def test_more_sequences_than_memory_holds_is_exit_status_5(invoke: Invoke, failed: Failed) -> None:
    failed(
        invoke(*changed("--set", "eval.n=1000000000000")),
        5,
        "eval.n: 1000000000000 sequences need",
        "GiB of memory are free",
    )


def test_more_training_data_than_there_is(invoke: Invoke) -> None:
    result = invoke("run", "--task", "digits", "--cell", "rnn", "--steps", "1", "--set", "data.train_n=5000")
    assert result.exit_code == 2
    assert "data.train_n: 5000 sequences asked for, the set has" in result.stderr.splitlines()[-1]


def test_reading_backwards_is_refused_where_it_gives_the_answer_away(
    invoke: Invoke, failed: Failed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Adding, "bidirectional_allowed", False)
    failed(invoke(*TINY, "--set", "network.bidirectional=true"), 2, "network.bidirectional: task adding would be given")


def test_results_that_are_a_file(invoke: Invoke, failed: Failed) -> None:
    Path("taken").write_text("")
    failed(invoke(*TINY, "--results", "taken"), 2, "results: taken is not a folder")


def test_a_budget_of_seconds_takes_the_place_of_steps(invoke: Invoke) -> None:
    arguments = [text for text in TINY if text not in ("--steps", "20")]
    result = invoke(*arguments, "--set", "budget.seconds=0.2")
    assert result.exit_code == 0, result.stderr
    assert "time_limit after" in result.stderr


def on_terminal(folder: Path, *arguments: str) -> tuple[int, str]:
    """Run the command with stdout and stderr on a terminal of its own, and return its status and what it showed."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "rnnbench", *arguments],
        cwd=folder,
        stdout=theirs,
        stderr=theirs,
        stdin=subprocess.DEVNULL,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "150", "LINES": "40"},
    )
    os.close(theirs)
    shown = b""
    while True:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        if not piece:
            break
        shown += piece
    os.close(ours)
    return process.wait(), shown.decode()


@pytest.mark.slow
@pytest.mark.parametrize("budget", [("--steps", "3000"), ("--set", "budget.seconds=2")])
def test_a_terminal_shows_bars(tmp_path: Path, budget: tuple[str, str]) -> None:
    arguments = [text for text in TINY if text not in ("--steps", "20")]
    status, shown = on_terminal(tmp_path, *arguments, *budget, "--seeds", "2")
    assert status == 0, shown
    assert "adhoc: 2 runs, 2 to run" in shown
    assert "adding rnn · torch · seed 1" in shown
    assert re.search(r"\d+/3000" if budget[0] == "--steps" else r"\d+/\?", shown)
    assert re.search(r"loss [\d.e-]+, mse [\d.e-]+, [\d.e+]+ steps/s", shown)
    assert ("left" in shown) == (budget[0] == "--steps") or "about" in shown
    assert "Traceback" not in shown
    assert "records: rnnbench-results/adhoc" in shown


@pytest.mark.slow
def test_a_terminal_shows_what_went_wrong(tmp_path: Path) -> None:
    (tmp_path / "broken_cell.py").write_text(CELL)
    status, shown = on_terminal(tmp_path, *TINY, "--cell", "broken_cell:Broken,rnn")
    assert status == 1
    assert "adding broken_cell:Broken · torch · seed 0: RuntimeError: it broke" in shown
    assert "Traceback" not in shown


def test_lines_of_progress_come_now_and_then(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    from rnnbench.cli import progress

    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    lines = invoke(*TINY).stderr.splitlines()[1:-1]
    assert lines
    facts = r"(loss [\d.]+, )?mse [\d.]+, [\d.e+]+ steps/s(, \d+ s left)?"
    pattern = rf"adding rnn · torch · seed 0: step \d+ of 20, {facts}"
    for line in lines:
        assert re.fullmatch(pattern, line), line


def test_the_default_number_of_processes(invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def fake(planned: Any, store: Any, options: Any, watcher: Any) -> list[Any]:
        seen.append(options.jobs)
        raise KeyboardInterrupt

    monkeypatch.setattr(engine, "execute", fake)
    monkeypatch.setattr(sys.modules["rnnbench.engine.outcome"], "processors", lambda: 3)
    without = [text for text in TINY if text not in ("--jobs", "1", "--threads")]
    invoke(*without, "--seeds", "2")
    invoke(*without, "--seeds", "5")
    invoke(*without, "--seeds", "5", "--device", "cuda")
    assert seen == [2, 3, 1]
