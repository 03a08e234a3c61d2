from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.record import Environment, Resolved, RunRecord, Status, Summary
from rnnbench.store import RunFolder, Store, checkpoints, files


def digest_of_name(name: str | int) -> str:
    return hashlib.sha256(str(name).encode()).hexdigest()


def row(step: int, value: float = 0.5, metric: str = "loss", split: str = "train") -> dict[str, Any]:
    return {
        "step": step,
        "sequences": 32 * step,
        "split": split,
        "metric": metric,
        "value": value,
        "seconds": 0.25 * step,
    }


ENVIRONMENT = Environment(
    python="CPython 3.11.7", system="Linux", machine="x86_64", cpu="A processor", threads=1, versions={"numpy": "2"}
)


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    def make(**changes: Any) -> RunRecord:
        values: dict[str, Any] = {
            "digest": digest_of_name("run"),
            "suite": "suite",
            "spec": {"task": {"name": "copy", "delay": 9}, "cell": {"name": "lstm"}, "seed": 3},
            "resolved": Resolved(device="cpu", path="fused", precision="float32", components={"task": 1}),
            "matched": True,
            "environment": ENVIRONMENT,
            "status": Status.COMPLETED,
            "steps": 3,
            "sequences": 96,
            "summary": Summary(metrics={"loss": 0.25}, step=3),
            "created": "2026-01-02T03:04:05Z",
        }
        return RunRecord(**{**values, **changes})

    return make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "results")


@pytest.fixture
def folder(store: Store) -> RunFolder:
    return store.folder("suite", digest_of_name("run"))


@pytest.fixture
def finished(store: Store, make_record: Callable[..., RunRecord]) -> Callable[..., RunFolder]:
    """Make a whole run, with metrics, a signal and both sets of parameters."""

    def finish(name: str | int = "run", suite: str = "suite", rows: int = 2, **changes: Any) -> RunFolder:
        run = store.folder(suite, digest_of_name(name))
        with run.lock():
            writer = run.writer()
            writer.metrics([row(step) for step in range(rows)])
            writer.signal("gradient_norm", ("time",), "", np.arange(4, dtype=np.float32), 1)
            writer.save_parameters("best", {"w": np.ones(3)})
            writer.save_parameters("final", {"w": np.zeros(3)})
            writer.finish(make_record(digest=digest_of_name(name), suite=suite, **changes))
        return run

    return finish


class Killed(BaseException):
    """The process would be dead: no handler of it may put anything in order."""


class FaultyOS:
    """Stands in for `os` in the store: counts what changes the disk, and at one of those operations strikes.

    Args:
        strike: at which operation, counted from 0; None never.
        code: the operating system's error to raise there; None kills instead, and then nothing works any more.
    """

    Killed = Killed
    CHANGES = ("open", "write", "fsync", "replace", "unlink", "makedirs")

    def __init__(self, strike: int | None = None, code: int | None = None) -> None:
        self.strike, self.code, self.count, self.dead = strike, code, 0, False
        self.log: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in self.CHANGES:
            return real

        def operation(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:  # reading changes nothing
                return real(*args, **kwargs)
            if self.dead:
                raise Killed
            now, self.count = self.count, self.count + 1
            if now == self.strike:
                if name == "write":  # half of it gets there
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                if self.code is not None:
                    raise OSError(self.code, os.strerror(self.code), str(args[0]))
                self.dead = True
                raise Killed
            result = real(*args, **kwargs)
            self.log.append((name, result if name == "open" else args[0], *map(str, args[:2])))
            return result

        return operation


@pytest.fixture
def faulty(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FaultyOS]:
    def install(strike: int | None = None, code: int | None = None) -> FaultyOS:
        fake = FaultyOS(strike, code)
        monkeypatch.setattr(files, "os", fake)
        monkeypatch.setattr(checkpoints, "os", fake)
        return fake

    return install
