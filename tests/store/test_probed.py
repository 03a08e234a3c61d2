"""The cache of measured signals: whole or not at all, never in the way of records, gone when asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rnnbench.cli.results import results
from rnnbench.errors import CorruptData, OutOfResources
from rnnbench.signals import Signal
from rnnbench.store import RunFolder, Store
from rnnbench.store.inspect import verify_run
from rnnbench.store.probed import FOLDER, Keeper, Probed, key_of

DIGEST, OTHER = "a" * 64, "b" * 64
KEY = key_of({"probes": ["level"], "step": 3})


def signals() -> list[Signal]:
    return [
        Signal("a.b/h", ("time", "batch"), "ln", 3, np.array([[0.5, -np.inf], [np.nan, 2.0]])),
        Signal("a.step", (), "steps", 3, np.asarray(7, dtype=np.int64)),
    ]


def test_what_is_kept_comes_back_bit_for_bit(tmp_path: Path) -> None:
    cache = Probed(tmp_path)
    assert cache.signals(DIGEST, KEY) is None
    assert not (tmp_path / FOLDER).exists()
    cache.keep_signals(DIGEST, KEY, signals())
    found = cache.signals(DIGEST, KEY)
    assert found is not None
    for got, put in zip(found, signals(), strict=True):
        assert (got.name, got.axes, got.unit, got.step, got.values.dtype) == (
            put.name, put.axes, put.unit, put.step, put.values.dtype,
        )  # fmt: skip
        np.testing.assert_array_equal(got.values, put.values)
    assert cache.signals(OTHER, KEY) is None
    assert cache.signals(DIGEST, key_of({"probes": ["level"], "step": 4})) is None


def test_nothing_measured_is_kept_too(tmp_path: Path) -> None:
    Probed(tmp_path).keep_signals(DIGEST, KEY, [])
    assert Probed(tmp_path).signals(DIGEST, KEY) == []


def test_the_key_is_of_everything_and_of_no_order() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of(what) for what in ({"a": 1}, {"a": 2}, {"a": "1"}, {"b": 1}, {})}) == 5


def test_every_changed_byte_is_seen(tmp_path: Path) -> None:
    cache = Probed(tmp_path)
    cache.keep_signals(DIGEST, KEY, signals()[1:])
    for path in (tmp_path / FOLDER).iterdir():
        data = path.read_bytes()
        for at in range(0, len(data), 1 if path.suffix == ".json" else 5):
            path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
            if path.suffix == ".json" and path.read_bytes().split() == data.split():
                continue  # one kind of white space for another
            with pytest.raises(CorruptData):
                cache.signals(DIGEST, KEY)
        path.write_bytes(data)
    assert cache.signals(DIGEST, KEY) is not None


def test_a_kill_at_any_instant_leaves_all_or_nothing(tmp_path: Path, faulty: Callable[..., Any]) -> None:
    counting = faulty()
    Probed(tmp_path / "count").keep_signals(DIGEST, KEY, signals())
    assert counting.count > 8
    outcomes = set()
    for strike in range(counting.count):
        fake = faulty(strike)
        root = tmp_path / str(strike)
        with pytest.raises(fake.Killed):
            Probed(root).keep_signals(DIGEST, KEY, signals())
        faulty()
        found = Probed(root).signals(DIGEST, KEY)
        outcomes.add(found is None)
        assert found is None or len(found) == 2
        assert Store(root).folders() == []
    assert outcomes == {True, False}  # killed after the last rename, it is there


def test_context(tmp_path: Path) -> None:
    cache = Probed(tmp_path)
    assert cache.context(KEY) is None
    cache.keep_context(KEY, {"lags": [0, 1], "need": None, "model": "ridge"})
    assert cache.context(KEY) == {"lags": [0, 1], "need": None, "model": "ridge"}
    path = tmp_path / FOLDER / f"context-{KEY}.json"
    path.write_bytes(path.read_bytes().replace(b"ridge", b"bridg"))
    with pytest.raises(CorruptData, match="was changed"):
        cache.context(KEY)


def test_a_keeper_stands_in_no_ones_way(tmp_path: Path, faulty: Callable[..., Any]) -> None:
    notes: list[str] = []
    keeper = Keeper(Probed(tmp_path), notes.append)
    keeper.keep_signals(DIGEST, KEY, signals())
    assert keeper.signals(DIGEST, KEY) is not None
    table = next((tmp_path / FOLDER).glob("*.parquet"))
    table.write_bytes(b"")
    assert keeper.signals(DIGEST, KEY) is None
    assert len(notes) == 1
    faulty(0, code=28)  # no space left on the device
    with pytest.raises(OutOfResources):
        Probed(tmp_path).keep_signals(DIGEST, KEY, signals())
    faulty(0, code=28)
    for _ in range(3):
        keeper.keep_signals(DIGEST, KEY, signals())
    assert len(notes) == 2
    assert "No space left" in notes[1]


@pytest.fixture
def cached(finished: Callable[..., RunFolder], store: Store) -> RunFolder:
    """A finished run with measured signals beside it, those of another run, a context, and what a kill left."""
    run = finished("run")
    cache = Probed(store.root)
    for digest in (run.digest, OTHER):
        cache.keep_signals(digest, KEY, signals())
    cache.keep_context(KEY, {"need": 3})
    (store.root / FOLDER / ".tmp-1-x.parquet").write_bytes(b"half")
    (store.root / FOLDER / "notes.txt").write_text("mine")
    return run


def call(store: Store, command: str, *arguments: str) -> str:
    outcome = CliRunner().invoke(results, [command, "--results", str(store.root), *arguments])
    assert outcome.exception is None, outcome.output
    return outcome.output


def test_records_are_not_disturbed(cached: RunFolder, store: Store, tmp_path: Path) -> None:
    assert [folder.digest for folder in store.folders()] == [cached.digest]
    assert verify_run(cached) == []
    assert "1 runs, 0 faults" in call(store, "verify")
    assert len(json.loads(call(store, "list", "--json"))) == 1
    before = call(store, "export", "-o", str(tmp_path / "with.tar.gz"))
    assert "packed 1 runs" in before
    with_cache = (tmp_path / "with.tar.gz").read_bytes()
    assert "nothing to clean" in call(store, "clean", "--yes")
    Probed(store.root).remove(Probed(store.root).files())
    call(store, "export", "-o", str(tmp_path / "without.tar.gz"))
    assert (tmp_path / "without.tar.gz").read_bytes() == with_cache


def test_clean_drops_it_when_asked_for_and_leaves_strange_files(cached: RunFolder, store: Store) -> None:
    folder = store.root / FOLDER
    everything = set(folder.iterdir())
    call(store, "clean", "--yes")
    assert ".probed: probed, 6 files" in call(store, "clean", "--only", "probed", "--dry-run")
    assert set(folder.iterdir()) == everything
    found = json.loads(call(store, "clean", cached.digest[:12], "--only", "probed", "--yes", "--json"))
    assert {name[:64] for name in found["probed"]} == {cached.digest}
    assert Probed(store.root).signals(cached.digest, KEY) is None
    assert Probed(store.root).signals(OTHER, KEY) is not None
    assert "1 removed" in call(store, "clean", "--only", "probed", "--yes")
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    (folder / "notes.txt").unlink()
    Probed(store.root).keep_context(KEY, {})
    call(store, "clean", "--only", "probed", "--yes")
    assert not folder.exists()
    assert "nothing to clean" in call(store, "clean", "--only", "probed", "--yes")
    assert cached.is_done()
