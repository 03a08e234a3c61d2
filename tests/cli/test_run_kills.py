"""The command, killed and started again as a process; a disk that is really full."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnbench.store import Store

SCRIPT = Path(__file__).parents[2] / "suites" / "speed" / "kill_and_resume.py"


@pytest.mark.slow
@pytest.mark.parametrize("scene", ["torch", "jax", "pool"])
def test_kills_at_random_instants_lose_nothing(scene: str) -> None:
    command = [sys.executable, str(SCRIPT), "--kills", "5", "--seed", "3", "--scene", scene]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 kills, nothing lost, every run equal to the bit" in done.stdout


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Put a file system of `size` there; skip where this is not allowed."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_disk_is_exit_status_5_and_the_run_goes_on_when_there_is_room(tmp_path: Path) -> None:
    command = [
        *(sys.executable, "-m", "rnnbench", "run", "--task", "adding", "--set", "task.T=5", "--cell", "rnn"),
        *("--set", "cell.hidden=64", "--set", "eval.n=20", "--steps", "400", "--jobs", "1", "--threads", "1"),
        *("--checkpoint-every", "0.02", "--no-figure"),
    ]
    with small_disk(tmp_path / "disk", "256k") as disk:
        filler = disk / "filler"
        filler.write_bytes(bytes(120 * 1024))  # of three checkpoints' worth, less than two are left
        full = subprocess.run([*command, "--results", str(disk / "r")], capture_output=True, text=True, check=False)
        assert full.returncode == 5, full.stderr
        assert "No space left on device" in full.stderr.splitlines()[-1]
        assert "Traceback" not in full.stderr
        filler.unlink()
        again = subprocess.run([*command, "--results", str(disk / "r")], capture_output=True, text=True, check=False)
        assert again.returncode == 0, again.stderr
        (folder,) = Store(disk / "r").folders()
        found = folder.parameters("final")
    whole = subprocess.run([*command, "--results", str(tmp_path / "r")], capture_output=True, text=True, check=False)
    assert whole.returncode == 0, whole.stderr
    (folder,) = Store(tmp_path / "r").folders()
    expected = folder.parameters("final")
    assert found is not None
    assert expected is not None
    assert {k: a.tobytes() for k, a in found.items()} == {k: a.tobytes() for k, a in expected.items()}
