"""Running the command line, inside this process and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rnnbench.cli import root

Invoke = Callable[..., Result]
Shell = Callable[..., "subprocess.CompletedProcess[str]"]
Failed = Callable[..., None]


@pytest.fixture
def invoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """Run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str) -> Result:
        return CliRunner().invoke(root, list(args))

    return run


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run ``python -m rnnbench`` as a process, in an empty folder."""

    def run(*args: str, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": path} if path else dict(os.environ)
        return subprocess.run(
            [sys.executable, "-m", "rnnbench", *args],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return run


@pytest.fixture
def failed() -> Failed:
    """Assert that a command ended with a status, said one line that holds some parts, and printed nothing."""

    def check(result: Result | subprocess.CompletedProcess[str], status: int, *parts: str) -> None:
        code = result.exit_code if isinstance(result, Result) else result.returncode
        assert code == status, result.stderr
        assert result.stdout == ""
        lines = result.stderr.splitlines()
        assert len(lines) == 1, result.stderr
        assert lines[0].startswith("rnnbench: ")
        for part in parts:
            assert part in lines[0]

    return check
