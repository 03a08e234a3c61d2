"""Every error is one line and the right status, in this process and as a process."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from rnnbench import errors
from rnnbench.cli.common import emit_json
from rnnbench.cli.exits import Terminated, describe_error

DISK_FULL = OSError(errno.ENOSPC, "No space left on device", "run.json")


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


@pytest.mark.parametrize(
    ("error", "status", "part"),
    [
        (errors.RunFailed("3 runs diverged"), 1, "3 runs diverged"),
        (errors.BadInput("lr: nan"), 2, "lr: nan"),
        (errors.CorruptData("run.json: empty"), 3, "run.json: empty"),
        (errors.Locked("run ab12"), 4, "run ab12"),
        (errors.OutOfResources("disk"), 5, "disk"),
        (errors.Interrupted(signal.SIGTERM, "stopped"), 143, "stopped"),
        (errors.Interrupted(signal.SIGINT, "stopped"), 130, "stopped"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (click.Abort(), 130, "interrupted"),
        (Terminated(), 143, "terminated"),
        (MemoryError(), 5, "out of memory"),
        (OutOfMemoryError("CUDA out of memory"), 5, "CUDA out of memory"),
        (RuntimeError("RESOURCE_EXHAUSTED: 3 GiB"), 5, "out of memory; RESOURCE_EXHAUSTED"),
        (DISK_FULL, 5, "'run.json': No space left on device"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 5, "Disk quota exceeded"),
        (PermissionError(errno.EACCES, "Permission denied", "/else/x"), 2, "'/else/x': Permission denied"),
        (OSError(errno.EIO, "Input/output error", "x"), 1, "a bug"),
        (RuntimeError("surprise"), 1, "RuntimeError: surprise (a bug in rnnbench or a plug-in; --debug shows where)"),
        (SystemExit(7), 7, ""),
        (click.exceptions.Exit(3), 3, ""),
    ],
)
def test_status_and_line_of_each_error(error: BaseException, status: int, part: str) -> None:
    found, line = describe_error(error)
    assert found == status
    assert part in line
    assert bool(line) == bool(part)


def test_a_line_stays_one_line_whatever_it_quotes() -> None:
    _, line = describe_error(errors.BadInput("name: a\nb\x1b[31mred\x00"))
    assert line == "name: a b\\x1b[31mred\\x00"


SCRIPT = """
import signal, sys
import rich_click as click
from rnnbench.cli import Root

signal.signal(signal.SIGINT, signal.default_int_handler)  # a background process may inherit that it is ignored

@click.command()
def act() -> None:
    {body}

sys.modules["acting"] = sys.modules["__main__"]
command = click.option("--debug", is_flag=True)(lambda debug: None)
Root(name="rnnbench", table={{"act": ("acting:act", "Act.")}}, callback=command, params=[
    click.Option(["--debug"], is_flag=True)]).main(sys.argv[1:], "rnnbench")
"""


Act = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def act(tmp_path: Path) -> Act:
    """Start a process whose one command runs the given code."""

    def start(body: str, *args: str, stdout: int = subprocess.PIPE) -> subprocess.Popen[str]:
        file = tmp_path / "script.py"
        file.write_text(SCRIPT.format(body=body))
        command = [sys.executable, str(file), *(args or ("act",))]
        return subprocess.Popen(command, stdout=stdout, stderr=subprocess.PIPE, text=True)

    return start


def test_no_traceback_without_debug(act: Act) -> None:
    out, err = act("1 / 0").communicate()
    assert (out, err) == (
        "",
        "rnnbench: ZeroDivisionError: division by zero (a bug in rnnbench or a plug-in; --debug shows where)\n",
    )


def test_debug_shows_the_traceback_and_then_the_line(act: Act) -> None:
    process = act("1 / 0", "--debug", "act")
    _, err = process.communicate()
    assert process.returncode == 1
    assert err.startswith("Traceback")
    assert "in act\n    1 / 0" in err
    assert err.splitlines()[-1].startswith("rnnbench: ZeroDivisionError")


@pytest.mark.parametrize(
    ("number", "status", "line"), [(signal.SIGTERM, 143, "terminated"), (signal.SIGINT, 130, "interrupted")]
)
def test_signals_end_a_command_in_order(act: Act, number: int, status: int, line: str) -> None:
    process = act(
        "import time\n"
        "    try: print('ready', flush=True), time.sleep(60)\n"
        "    finally: print('put in order', flush=True)"
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (status, "put in order\n", f"rnnbench: {line}\n")


def test_a_reader_that_goes_away_is_no_error_to_speak_of(act: Act) -> None:
    read, write = os.pipe()
    process = act("print('x' * 10**6)", stdout=write)
    os.close(write)
    os.close(read)
    assert process.communicate()[1] == ""
    assert process.returncode == 128 + signal.SIGPIPE


def test_another_pipe_that_breaks_is_an_error(act: Act) -> None:
    process = act("raise BrokenPipeError(32, 'Broken pipe')")
    assert "a bug" in process.communicate()[1]
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("size", [10, 10**6])
def test_a_full_disk_behind_stdout(act: Act, size: int) -> None:
    with open("/dev/full", "w") as full:
        process = act(f"print('x' * {size})", stdout=full.fileno())
        _, err = process.communicate()
    assert err == "rnnbench: No space left on device\n"
    assert process.returncode == 5


def test_stdout_that_was_closed_before_the_start(tmp_path: Path) -> None:
    line = f"exec {sys.executable} -m rnnbench --version >&-"
    process = subprocess.run(["sh", "-c", line], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (process.returncode, process.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_any_encoding_of_the_terminal_will_do(tmp_path: Path, encoding: str) -> None:
    process = subprocess.run(
        [sys.executable, "-m", "rnnbench", "show", "forecast"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONIOENCODING": encoding},
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout.startswith(b"task forecast")


def test_json_is_strict() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        emit_json({"loss": float("nan")})


def test_json_carries_hostile_names_and_a_terminal_acts_on_none_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    name = "a\x1b[2J\x7f\x9b31m\u202e\u2028\udcff·ñ😀"
    emit_json({name: [name]})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert shown.isascii()
    assert json.loads(shown) == {name: [name]}
