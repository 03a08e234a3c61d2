"""Signals measured on demand, kept in ``RESULTS/.probed`` so that the next analysis need not measure them again.

Nothing here is part of a record: it can be removed at any time and is made anew from the record. An entry is
``<digest>-<key>.parquet`` (or ``context-<key>.json``), and beside a Parquet file ``<digest>-<key>.json`` with its hash,
written last: without it, or when a byte of either is not what was written, there is no entry.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rnnbench.errors import CorruptData, OutOfResources, RnnbenchError
from rnnbench.record import read_sealed, write_sealed
from rnnbench.signals import Signal
from rnnbench.spec import digest_of
from rnnbench.store.files import TEMPORARY, discard, disk_errors, hash_of, make_folders, read_file, shown, write_file
from rnnbench.store.tables import pack_signals, read_signals

Kept = TypeVar("Kept")

FOLDER = ".probed"
SCHEMA = 1

_ENTRY = re.compile(r"(?:(?P<digest>[0-9a-f]{64})-[0-9a-f]{64}\.(?:parquet|json)|context-[0-9a-f]{64}\.json)")


def key_of(what: Mapping[str, Any]) -> str:
    """Return the key of what is measured: whatever can change the numbers, as JSON values.

    Raises:
        ValueError: when it holds a NaN or an infinity.
    """
    return digest_of({"schema": SCHEMA, **what})


class Probed:
    """The cache of one folder of results. Nothing is created before something is written."""

    def __init__(self, root: str | Path) -> None:
        self.folder = Path(root) / FOLDER

    def signals(self, digest: str, key: str) -> list[Signal] | None:
        """Return what was measured of a run under `key`, or None when nothing is kept of it.

        Raises:
            CorruptData: when it is not what was written.
        """
        table, facts = self._files(digest, key)
        sealed = read_file(facts)
        if sealed is None:
            return None
        values, _ = read_sealed(sealed, shown(facts), SCHEMA)
        data = read_file(table)
        if data is None or hash_of(data).model_dump() != values.get("signals"):
            raise CorruptData(f"{shown(table)}: is missing or not what was written")
        return read_signals(data, shown(table))

    def keep_signals(self, digest: str, key: str, signals: Sequence[Signal]) -> None:
        """Keep what was measured of a run.

        Raises:
            BadInput: when the folder may not be written to.
            OutOfResources: when the disk is full.
        """
        table, facts = self._files(digest, key)
        make_folders(self.folder)
        written = write_file(table, pack_signals(signals))
        write_file(facts, write_sealed({"schema_version": SCHEMA, "signals": written.model_dump()}))

    def context(self, key: str) -> dict[str, Any] | None:
        """Return what reference models made of a task under `key`, or None.

        Raises:
            CorruptData: when it is not what was written.
        """
        path = self.folder / f"context-{key}.json"
        data = read_file(path)
        if data is None:
            return None
        values, _ = read_sealed(data, shown(path), SCHEMA)
        found = values.get("context")
        if not isinstance(found, dict):
            raise CorruptData(f"{shown(path)}: holds no table of a task's context")
        return found

    def keep_context(self, key: str, context: Mapping[str, Any]) -> None:
        """Keep what reference models made of a task; JSON values without NaN.

        Raises:
            BadInput: when the folder may not be written to.
            OutOfResources: when the disk is full.
            ValueError: when `context` is not what JSON can hold.
        """
        data = write_sealed({"schema_version": SCHEMA, "context": dict(context)})
        make_folders(self.folder)
        write_file(self.folder / f"context-{key}.json", data)

    def files(self, digests: Collection[str] | None = None) -> list[str]:
        """Return the names of what is kept, of the runs with these digests or of all; strange files are passed over.

        What a killed process left half written counts when all is asked for.
        """
        try:
            names = sorted(os.listdir(self.folder))
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            with disk_errors(self.folder, "listing"):
                raise error from None
        found = [(name, _ENTRY.fullmatch(name)) for name in names]
        if digests is None:
            return [name for name, entry in found if entry or name.startswith(TEMPORARY)]
        return [name for name, entry in found if entry and entry["digest"] in digests]

    def remove(self, names: Collection[str]) -> int:
        """Remove files that `files` has named, and the folder if nothing is left in it; return how many went.

        Raises:
            RnnbenchError: when the folder may not be written to.
        """
        gone = 0
        with disk_errors(self.folder, "cleaning"):
            # the facts first: a kill in between leaves a table that counts for nothing
            for name in sorted(names, key=lambda name: not name.endswith(".json")):
                path = self.folder / name
                if path.is_symlink() or not path.is_dir():
                    discard(path)
                    gone += 1
        with contextlib.suppress(OSError):
            os.rmdir(self.folder)
        return gone

    def _files(self, digest: str, key: str) -> tuple[Path, Path]:
        return self.folder / f"{digest}-{key}.parquet", self.folder / f"{digest}-{key}.json"


class Keeper:
    """A cache that never stands in the way: what cannot be read or kept is said once, and done without.

    Args:
        cache: where things are kept.
        note: is told in one line what did not work.
    """

    def __init__(self, cache: Probed, note: Callable[[str], None]) -> None:
        self._cache, self._note = cache, note
        self._reading = self._writing = True

    def signals(self, digest: str, key: str) -> list[Signal] | None:
        """Return what is kept of a run, or None; a damaged entry is noted and counts for nothing."""
        return self._read(lambda cache: cache.signals(digest, key))

    def context(self, key: str) -> dict[str, Any] | None:
        """Return what is kept of a task, or None; a damaged entry is noted and counts for nothing."""
        return self._read(lambda cache: cache.context(key))

    def keep_signals(self, digest: str, key: str, signals: Sequence[Signal]) -> None:
        """Keep what was measured of a run, if that is possible."""
        self._write(lambda cache: cache.keep_signals(digest, key, signals))

    def keep_context(self, key: str, context: Mapping[str, Any]) -> None:
        """Keep what reference models made of a task, if that is possible."""
        self._write(lambda cache: cache.keep_context(key, context))

    def _read(self, ask: Callable[[Probed], Kept | None]) -> Kept | None:
        if not self._reading:
            return None
        try:
            return ask(self._cache)
        except CorruptData as error:
            self._note(f"what was kept of an earlier analysis cannot be used and is measured anew; {error}")
        except RnnbenchError:
            self._reading = False
            self._note(f"{shown(self._cache.folder)}: cannot be read; what an earlier analysis kept is measured anew")
        return None

    def _write(self, ask: Callable[[Probed], None]) -> None:
        if not self._writing:
            return
        try:
            ask(self._cache)
        except RnnbenchError as error:
            self._writing = False
            reason = error if isinstance(error, OutOfResources) else "it may not be written to"
            self._note(f"{shown(self._cache.folder)}: what is measured is not kept for the next time; {reason}")
