"""Bad input to the commands that run something: one line, the right status, and nothing written."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

Invoke = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Failed = Callable[..., None]

COPY = ["--task", "copy", "--cell", "rnn"]


@pytest.mark.parametrize("command", ["run", "parity"])
@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["give a suite"]),
        (["quickstrt"], ["'quickstrt'", "did you mean quickstart?"]),
        (["../x"], ["../x: there is no such file"]),
        (["x.toml"], ["x.toml: there is no such file"]),
        (["a\nb"], ["'a\\nb'"]),
        (["--", "-x"], ["'-x'"]),
        (["a" * 300], ["300 characters"]),
        (["--task", "cop", "--cell", "rnn"], ["'cop'", "did you mean copy?"]),
        (["--task", "copy", "--cell", "lstn"], ["'lstn'", "did you mean lstm?"]),
        (["--task", "copy"], ["--cell or --model"]),
        ([*COPY, "--optimizer", "adm"], ["'adm'", "did you mean adam"]),
        ([*COPY, "--technique", "clip_nrm"], ["'clip_nrm'", "did you mean clip_norm"]),
        ([*COPY, "--backend", "torhc,jax"], ["'torhc'", "did you mean torch?"]),
        ([*COPY, "--device", "gpu"], ["'gpu'", "cpu, cuda"]),
        ([*COPY, "--device", "cuda:-1"], ["'cuda:-1'"]),
        ([*COPY, "--precision", "float16"], ["'float16'"]),
        ([*COPY, "--steps", "0"], ["steps"]),
        ([*COPY, "--steps", "many"], ["--steps", "'many'"]),
        ([*COPY, "--seeds", "-1"], ["-1"]),
        ([*COPY, "--seeds", "0"], ["seeds"]),
        ([*COPY, "--seed", "3,3"], ["'3' is given twice"]),
        ([*COPY, "--seed", "-1"], ["seed -1"]),
        ([*COPY, "--seed", "4294967296"], ["seed 4294967296", "2**32 - 1"]),
        ([*COPY, "--seeds", "1000000000"], ["1,000,000,000 runs"]),
        ([*COPY, "--set", "task.delay=0"], ["delay", "0 will not do"]),
        ([*COPY, "--set", "task.dely=5"], ["dely", "did you mean delay?"]),
        ([*COPY, "--set", "cell.hidden=0"], ["hidden", "0 will not do"]),
        ([*COPY, "--set", "data.batch_size=0"], ["batch_size", "0 will not do"]),
        ([*COPY, "--set", "optimizer.lr=nan"], ["optimizer.lr", "nan"]),
        ([*COPY, "--set", "optimizer.lr=-0.1"], ["lr", "-0.1 will not do"]),
        ([*COPY, "--set", "optimizer.lr=x"], ["lr", "'x' will not do"]),
        ([*COPY, "--set", "eval.metric=acuracy"], ["'acuracy'", "accuracy"]),
        ([*COPY, "--set", "cell.hidden="], ["a value is missing"]),
        ([*COPY, "--set", "cel.hidden=3"], ["'cel'", "did you mean cell"]),
        (["--task", "copy", "--model", "nowhere:build"], [""]),
        (["--task", "no_such_module:Task", "--cell", "rnn"], ["no module named 'no_such_module'"]),
        (["--task", "json:nothing", "--cell", "rnn"], ["'nothing'"]),
        (["--task", "adding", "--cell", "rnn", "--set", "task.T=0"], ["T", "0 will not do"]),
        (["--task", "forecast", "--cell", "rnn", "--set", "task.file=none.csv"], ["none.csv"]),
    ],
)
def test_one_line_and_status_2(
    command: str, args: list[str], parts: list[str], invoke: Invoke, failed: Failed, tmp_path: Path
) -> None:
    failed(invoke(command, *args), 2, *parts)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "task: missing"),
        ("a = " + "[" * 20_000, "nested too deeply"),
        ("name = '../x'\nbase.task = 'copy'\nbase.cell = 'rnn'", "'../x'"),
        ("name = '-x'\nbase.task = 'copy'\nbase.cell = 'rnn'", "'-x'"),
        ("seeds = []\nbase.task = 'copy'\nbase.cell = 'rnn'", "nothing to run"),
        ("base.task = 'copy'\nbase.cell = 'rnn'\ngrid.cell.hidden = []", "nothing to run"),
        ("base.task = 'copy'\nbase.cell = 'rnn'\nbase.cell_ = 3", "cell_"),
    ],
)
def test_suite_files(text: str, part: str, invoke: Invoke, failed: Failed, tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(text)
    failed(invoke("run", "mine.toml"), 2, part)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_results_that_are_a_file(invoke: Invoke, failed: Failed, tmp_path: Path) -> None:
    (tmp_path / "results").write_text("mine")
    failed(invoke("run", *COPY, "--results", "results"), 2, "results")
    assert (tmp_path / "results").read_text() == "mine"


def test_a_dry_run_writes_nothing_whatever_the_folder_is_called(invoke: Invoke, tmp_path: Path) -> None:
    result = invoke("run", *COPY, "--dry-run", "--results", "odd\nname")
    assert result.exit_code in (0, 2)
    assert list(tmp_path.iterdir()) == []


def test_a_process_says_the_same(shell: Shell, failed: Failed) -> None:
    failed(shell("run", "--task", "copy", "--cell", "lstn"), 2, "did you mean lstm?")
    failed(shell("parity", *COPY, "--seed", "1,1"), 2, "given twice")
