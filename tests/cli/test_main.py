"""The command ``rnnbench`` itself: its help, its table of commands, its answers to misspelt ones."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from click.testing import Result

from rnnbench.cli import COMMANDS, root

Invoke = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Failed = Callable[..., None]
HEAVY = [
    "torch",
    "jax",
    "jaxlib",
    "optax",
    "seaborn",
    "matplotlib",
    "sklearn",
    "statsmodels",
    "pandas",
    "pyarrow",
    "scipy",
    "pydantic",
    "numpy",
    "pooch",
    "rnnbench.spec",
    "rnnbench.tasks",
    "rnnbench.cells",
]


def test_help_lists_every_command(invoke: Invoke) -> None:
    result = invoke("--help")
    assert result.exit_code == 0
    for name, (_, line) in COMMANDS.items():
        assert f"{name} " in result.stdout
        assert line.split()[0] in result.stdout


@pytest.mark.parametrize("args", [["--help"], ["--version"], []])
def test_help_and_version_import_nothing_heavy(args: list[str], tmp_path: Path) -> None:
    script = (
        "import sys\nfrom rnnbench.cli import root\n"
        f"try: root.main({args!r}, 'rnnbench')\nexcept SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_is_where_the_table_says(name: str, invoke: Invoke) -> None:
    module, _, attribute = COMMANDS[name][0].partition(":")
    command = getattr(importlib.import_module(module), attribute)
    assert isinstance(command, click.Command)
    assert command.name == name
    result = invoke(name, "--help")
    assert result.exit_code == 0
    assert f"rnnbench {name}" in result.stdout


@pytest.mark.parametrize("width", [60, 80, 200])
def test_help_fits_the_terminal(width: int, invoke: Invoke, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    assert max(map(len, invoke("--help").stdout.splitlines())) <= width


def test_version(invoke: Invoke) -> None:
    from importlib.metadata import version

    assert invoke("--version").stdout == f"rnnbench {version('rnnbench')}\n"


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["lst"], ["no such command 'lst'", "did you mean list?"]),
        (["results", "lst"], ["no such command 'lst'", "did you mean list?"]),
        (["x\ny"], ["no such command 'x\\ny'"]),
        (["../run"], ["no such command"]),
        (["r" * 300], ["no such command", "300 characters"]),
        (["--dbug"], ["no such option '--dbug'", "--debug"]),
        (["list", "--jsn"], ["list: no such option '--jsn'", "--json"]),
        (["list", "tasks", "cells"], ["list: got unexpected extra argument (cells)"]),
        (["data", "fetch"], ["data fetch: missing argument"]),
        (["results", "list", "--results"], ["option '--results' requires an argument"]),
        (["results", "list", "--results", ""], ["--results"]),
    ],
)
def test_misuse_is_one_line_and_status_2(args: list[str], parts: list[str], invoke: Invoke, failed: Failed) -> None:
    failed(invoke(*args), 2, *parts)


def test_a_process_ends_with_the_same_status(shell: Shell, failed: Failed) -> None:
    failed(shell("lst"), 2, "did you mean list?")
    failed(shell("show", "lstn"), 2, "did you mean lstm?")


@pytest.mark.parametrize("args", [[], ["data"], ["results"]])
def test_a_group_alone_shows_its_help_on_stderr(args: list[str], invoke: Invoke) -> None:
    result = invoke(*args)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "Usage: rnnbench" in result.stderr


def test_errors_come_out_as_raised_for_callers_in_python() -> None:
    with pytest.raises(click.UsageError, match="did you mean list"):
        root.main(["lst"], standalone_mode=False)


def test_shell_completion_knows_the_commands(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from rnnbench.cli import main; main()"],
        env={"_RNNBENCH_COMPLETE": "bash_complete", "COMP_WORDS": "rnnbench de", "COMP_CWORD": "1", "PATH": ""},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "plain,devices\n"
