"""The committed results: whole, of today's experiments, and what the README says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SUITES = sorted(path.name for path in (ROOT / "results").iterdir() if path.is_dir())


def rnnbench(*args: str) -> str:
    """Return what a command prints, once it has ended well."""
    command = [sys.executable, "-m", "rnnbench", *args]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_committed_file_is_whole() -> None:
    assert SUITES
    assert "0 faults" in rnnbench("results", "verify", "--results", str(ROOT / "results"))


@pytest.mark.parametrize("suite", SUITES)
def test_the_records_are_of_todays_experiments(suite: str) -> None:
    """A change that makes other numbers raises a version, and so changes digests: results must then be made anew."""
    plan = json.loads(rnnbench("run", suite, "--dry-run", "--json", "--results", str(ROOT / "results")))
    assert [run["run"] for run in plan if not run["done"]] == []
    folders = {path.name for path in (ROOT / "results" / suite).iterdir() if path.is_dir()}
    assert folders == {run["digest"] for run in plan}


def test_the_readme_shows_the_committed_table(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "results" / "quickstart", tmp_path / "quickstart")
    printed = rnnbench("run", "quickstart", "--results", str(tmp_path), "--no-figure")
    table = printed.partition("\nrecords:")[0].strip()
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_no_placeholder_is_left_in_the_readme() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert [word for word in ("QUICKSTART_TABLE", "MEASURED", "TESTMINUTES") if word in text] == []
