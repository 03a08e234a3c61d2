"""Plans of small runs, and what must be equal of two runs that were executed differently."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rnnbench.engine import Options, Planned
from rnnbench.experiment import resolve
from rnnbench.spec import RunSpec
from rnnbench.store import RunFolder, Store

ONE = Options(threads=1)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def planned() -> Callable[..., Planned]:
    """Plan a run of one shape, so that JAX compiles for the first of them only."""

    def make(label: str = "run", suite: str = "suite", **changes: Any) -> Planned:
        values: dict[str, Any] = {
            "task": {"name": "adding", "T": 5},
            "data": {"batch_size": 4},
            "eval": {"n": 20, "every": 10, "select": "best_valid"},
            "budget": {"steps": 30},
        }
        if "model" not in changes:
            values["cell"] = {"name": "rnn", "hidden": 3}
        return Planned(suite, label, resolve(RunSpec.parse(values | changes, "")))

    return make


@pytest.fixture
def folder_of(store: Store) -> Callable[[Planned], RunFolder]:
    return lambda planned: store.folder(planned.suite, planned.experiment.digest)


@pytest.fixture
def bits() -> Callable[[RunFolder], Any]:
    """Return what must not depend on how a run was executed, comparable with ==."""

    def of(folder: RunFolder) -> Any:
        record = folder.record()
        assert record is not None
        assert record.status.final
        table = folder.metrics().drop_columns(["seconds"]).to_pylist()
        saved = {}
        for which in ("final", "best"):
            arrays = folder.parameters(which)
            saved[which] = arrays and {name: (a.dtype.str, a.tobytes()) for name, a in arrays.items()}
        facts = record.model_dump(
            mode="json",
            exclude={"timings", "created", "files", "resumed", "resumed_inexact", "environment"},
        )
        return facts, [{key: repr(value) for key, value in row.items()} for row in table], saved

    return of


@pytest.fixture
def snapshot() -> Callable[[Path], dict[str, tuple[int, int, bytes]]]:
    """Return the times and the bytes of every file below a folder, and the times of the folders."""

    def take(root: Path) -> dict[str, tuple[int, int, bytes]]:
        return {
            str(path.relative_to(root)): (
                path.stat().st_mtime_ns,
                path.stat().st_ino,
                path.read_bytes() if path.is_file() else b"",
            )
            for path in sorted(root.rglob("*"))
        }

    return take
