"""Records packed into one file, and unpacked again with distrust.

An archive is a gzipped tar. Its first member, ``rnnbench-archive.json``, lists every run with the hash of its record;
a run's record comes before its files and lists each of them by hash. The same records give the same bytes.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Annotated, Any, Literal

from pydantic import Field

from rnnbench.component import Frozen
from rnnbench.errors import BadInput, CorruptData, Locked, OutOfResources, RnnbenchError, quoted
from rnnbench.record import FileHash, RunRecord, Sha256, read_json, validated, write_json
from rnnbench.store.files import (
    TEMPORARY,
    discard,
    disk_errors,
    hash_file,
    hash_of,
    shown,
    sync_folder,
    write_file,
)
from rnnbench.store.folder import LOCK, RECORD, RECORD_LIMIT, RunFolder, Store

MANIFEST = "rnnbench-archive.json"
FORMAT = "rnnbench-archive-1"

# An archive of results shrinks by 2 to 20 when packed; one that grows by more than this was made to fill a disk.
EXPANSION = 100
EXPANSION_FREE = 64 << 20

_MEMBER = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.+-]{0,199})/([0-9a-f]{64})/([A-Za-z0-9][A-Za-z0-9_.-]{0,119})")


class PackedRun(Frozen):
    """One line of an archive's list."""

    suite: str
    digest: Sha256
    record: FileHash


class Manifest(Frozen):
    """What ``rnnbench-archive.json`` holds."""

    format: Literal["rnnbench-archive-1"] = "rnnbench-archive-1"
    lean: bool
    runs: Annotated[tuple[PackedRun, ...], Field(max_length=10**6)]


def is_lean_file(name: str) -> bool:
    """Whether a lean record carries the file: metrics it does; parameters, signals and checkpoints it does not."""
    return name.startswith("metrics-")


def export_archive(folders: Sequence[RunFolder], target: Path, *, lean: bool = False) -> int:
    """Pack the records of `folders`, with their files, into one file at `target`; return how many.

    Args:
        folders: runs that have a record.
        target: ends whole or not at all.
        lean: leave out parameters, signals and checkpoints, and list them with their hashes.

    Raises:
        CorruptData: when a file is not what its record says; nothing is written.
        BadInput: when a run has no record, or `target` may not be written.
        OutOfResources: when the disk is full; an earlier file at `target` is untouched.
    """
    records: list[tuple[RunFolder, RunRecord, bytes]] = []
    for folder in sorted(folders, key=lambda folder: (folder.suite, folder.digest)):
        record = folder.record()
        if record is None:
            raise BadInput(f"{shown(folder.path)}: has no record yet, so there is nothing to export")
        kept = record.lean(is_lean_file) if lean else record
        records.append((folder, kept, kept.to_json()))
    manifest = Manifest(
        lean=lean, runs=tuple(PackedRun(suite=f.suite, digest=f.digest, record=hash_of(text)) for f, _, text in records)
    )
    temporary = target.with_name(f"{TEMPORARY}{os.getpid()}-{target.name}")
    with disk_errors(target, "writing the archive", "--output"):
        try:
            with open(temporary, "wb") as raw:
                with (
                    gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=raw, mtime=0) as packed,
                    tarfile.open(fileobj=packed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
                ):
                    _add(tar, MANIFEST, write_json(manifest.model_dump(mode="json")))
                    for folder, record, text in records:
                        _add(tar, f"{folder.suite}/{folder.digest}/{RECORD}", text)
                        for name, fact in sorted(record.files.items()):
                            _add_file(tar, folder, name, fact)
                raw.flush()
                os.fsync(raw.fileno())
            os.replace(temporary, target)
        except BaseException:
            discard(temporary)
            raise
        sync_folder(target.absolute().parent)
    return len(records)


def _member(name: str, size: int) -> tarfile.TarInfo:
    """Name, size and nothing that tells of the machine or the moment."""
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = size, 0o644, 0
    return member


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    tar.addfile(_member(name, len(data)), io.BytesIO(data))


def _add_file(tar: tarfile.TarFile, folder: RunFolder, name: str, expected: FileHash) -> None:
    path = folder.path / name
    if hash_file(path) != expected:
        raise CorruptData(f"{shown(path)}: is missing or not what was written; nothing was exported")
    with open(path, "rb") as file:
        tar.addfile(_member(f"{folder.suite}/{folder.digest}/{name}", expected.bytes), file)


@dataclass
class Imported:
    """What became of each run of an archive."""

    added: list[RunFolder] = field(default_factory=list)
    completed: list[RunFolder] = field(default_factory=list)
    unchanged: list[RunFolder] = field(default_factory=list)
    refused: list[tuple[RunFolder, str]] = field(default_factory=list)


def import_archive(source: Path, store: Store) -> Imported:
    """Unpack an archive into `store`. Everything in it is checked before anything is written.

    A run that is there already is left as it is, or completed with files that it lacks. A different run of the same
    digest is refused, and so is one that some process is working on; the others are imported.

    Raises:
        BadInput: when there is no such file.
        CorruptData: when the archive is damaged or hostile, or of a newer schema; nothing is written.
        OutOfResources: when it does not fit on the disk; nothing is written, or each run whole or not at all.
    """
    records = check_archive(source, store)
    _check_room(records, store)
    result = Imported()
    wanted: dict[str, tuple[RunFolder, set[str]]] = {}
    for record, _ in records:
        folder = store.folder(record.suite, record.digest)
        try:
            missing = _missing(folder, record)
        except RnnbenchError as error:
            result.refused.append((folder, str(error)))
            continue
        if missing is None:
            result.unchanged.append(folder)
        else:
            wanted[f"{record.suite}/{record.digest}"] = (folder, missing)
    if wanted:
        _unpack(source, {f"{r.suite}/{r.digest}": r for r, _ in records}, wanted, result)
    return result


def check_archive(source: Path, store: Store) -> list[tuple[RunRecord, FileHash]]:
    """Read an archive to its end, every hash compared, and return its records; nothing is written.

    Raises:
        BadInput: when there is no such file.
        CorruptData: naming the member at fault.
    """
    place = shown(source)
    manifest: Manifest | None = None
    records: dict[str, tuple[RunRecord, FileHash]] = {}
    seen: set[str] = set()
    for name, size, file in _members(source):
        if name in seen:
            raise CorruptData(f"{place}: {quoted(name)} is in it twice")
        seen.add(name)
        if manifest is None:
            if name != MANIFEST:
                raise CorruptData(f"{place}: begins with {quoted(name)}, not with {MANIFEST}: no archive of rnnbench")
            manifest = _manifest(_read_small(file, size, place, name), place)
            listed = {f"{run.suite}/{run.digest}": run.record for run in manifest.runs}
            continue
        run, _, base = name.rpartition("/")
        if run not in listed:
            raise CorruptData(f"{place}: {quoted(name)} is of a run that its list does not have")
        if base == RECORD:
            data = _read_small(file, size, place, name)
            if hash_of(data) != listed[run]:
                raise CorruptData(f"{place}: {quoted(name)} does not have the hash that its list gives")
            record = RunRecord.from_json(data, f"{place}: {name}")
            if f"{record.suite}/{record.digest}" != run:
                raise CorruptData(f"{place}: {quoted(name)} is the record of another run")
            store.folder(record.suite, record.digest)
            records[run] = record, hash_of(data)
            continue
        if run not in records:
            raise CorruptData(f"{place}: {quoted(name)} comes before its run's record")
        expected = records[run][0].files.get(base)
        if expected is None or size != expected.bytes:
            raise CorruptData(f"{place}: {quoted(name)} ({size} bytes) is not what its run's record lists")
        if _hash_stream(file) != expected:
            raise CorruptData(f"{place}: {quoted(name)} does not have the hash that its run's record gives")
    if manifest is None:
        raise CorruptData(f"{place}: is empty, no archive of rnnbench")
    for run in listed:
        if run not in records:
            raise CorruptData(f"{place}: run {quoted(run)} is in its list but not in the archive (cut short?)")
        for base in records[run][0].files:
            if f"{run}/{base}" not in seen:
                raise CorruptData(f"{place}: {quoted(f'{run}/{base}')} is missing (cut short?)")
    return list(records.values())


def _manifest(data: bytes, place: str) -> Manifest:
    values = read_json(data, f"{place}: {MANIFEST}")
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        found = values.get("format") if isinstance(values, dict) else type(values).__name__
        raise CorruptData(f"{place}: its format is {quoted(found)}; this rnnbench reads {FORMAT}")
    manifest = validated(Manifest, data, f"{place}: {MANIFEST}")
    if len({(run.suite, run.digest) for run in manifest.runs}) != len(manifest.runs):
        raise CorruptData(f"{place}: {MANIFEST} lists a run twice")
    return manifest


class _Bounded:
    """A stream that refuses to yield more than `limit` bytes, so that a small file cannot fill memory or disk."""

    def __init__(self, source: gzip.GzipFile, limit: int, place: str) -> None:
        self.source, self.left, self.limit, self.place = source, limit, limit, place

    def read(self, size: int) -> bytes:
        """Return up to `size` bytes, none at the end."""
        data = self.source.read(min(size, self.left + 1))
        self.left -= len(data)
        if self.left < 0:
            raise CorruptData(
                f"{self.place}: grows to more than {self.limit} bytes when unpacked, over {EXPANSION} times its size"
            )
        return data


def _members(source: Path) -> Iterator[tuple[str, int, IO[bytes]]]:
    """Yield name, size and content of each member; only plain files with a run's own kind of name are let through."""
    place = shown(source)
    with contextlib.ExitStack() as stack:
        try:
            raw = stack.enter_context(open(source, "rb"))
            size = os.fstat(raw.fileno()).st_size
        except OSError as error:
            raise BadInput(f"{place}: cannot be read, {error.strerror}; give an archive that export wrote") from error
        try:
            limit = EXPANSION_FREE + EXPANSION * size
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb"))
            whole = _Bounded(unpacked, limit, place)
            while whole.read(1 << 20):  # gzip's own checksum is at the end: damage is found before tar meets it
                pass
            unpacked.seek(0)
            bounded: Any = _Bounded(unpacked, limit, place)  # all that tarfile needs of a stream is read
            tar = stack.enter_context(tarfile.open(fileobj=bounded, mode="r|"))
            for member in tar:
                if (
                    member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE)
                    or member.sparse is not None
                    or member.size < 0
                ):
                    raise CorruptData(f"{place}: {quoted(member.name)} is no plain file (a link, folder or device?)")
                if member.name != MANIFEST and not _MEMBER.fullmatch(member.name):
                    raise CorruptData(f"{place}: {quoted(member.name)} is not the name of a file of a run")
                content = tar.extractfile(member)
                assert content is not None  # it is a plain file
                yield member.name, member.size, content
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise CorruptData(f"{place}: no whole gzip file; {' '.join(str(error).split())}") from None
        except tarfile.TarError as error:
            raise CorruptData(f"{place}: no whole tar file; {' '.join(str(error).split())[:200]}") from None


def _read_small(file: IO[bytes], size: int, place: str, name: str) -> bytes:
    if size > RECORD_LIMIT:
        raise CorruptData(f"{place}: {quoted(name)} holds {size} bytes, more than a record can")
    return file.read()


def _hash_stream(file: IO[bytes]) -> FileHash:
    digest, size = hashlib.sha256(), 0
    while piece := file.read(1 << 20):
        digest.update(piece)
        size += len(piece)
    return FileHash(sha256=digest.hexdigest(), bytes=size)


def _check_room(records: Sequence[tuple[RunRecord, FileHash]], store: Store) -> None:
    needed = sum(
        fact.bytes
        for record, _ in records
        for name, fact in record.files.items()
        if not (store.root / record.suite / record.digest / name).exists()
    )
    place = next(path for path in (store.root.absolute(), *store.root.absolute().parents) if path.exists())
    free = os.statvfs(place)
    if needed > free.f_bavail * free.f_frsize:
        raise OutOfResources(
            f"{shown(store.root)}: {needed} bytes are to be written and {free.f_bavail * free.f_frsize} are free; "
            "nothing was imported"
        )


def _missing(folder: RunFolder, incoming: RunRecord) -> set[str] | None:
    """Return the incoming files that the folder lacks, or None when it lacks none.

    Raises:
        RnnbenchError: when the folder holds something else, or is being worked on.
    """
    if folder.is_locked():
        raise Locked("another process is working on it")
    present = folder.record()
    if present is None:
        if folder.progress() is not None:
            raise BadInput("an unfinished run of the same digest is there; finish it, or clean it away first")
        return set(incoming.files)
    if not present.same_run(incoming):
        raise BadInput("another run of the same digest is there, with other content; it was left as it is")
    return set(incoming.files) - set(present.files) or None


def _unpack(
    source: Path, records: dict[str, RunRecord], wanted: dict[str, tuple[RunFolder, set[str]]], result: Imported
) -> None:
    """Write each wanted run under its lock: files first, record last. Members of one run lie together."""
    members = _members(source)
    with contextlib.ExitStack() as held:
        open_run: str | None = None
        remaining: set[str] = set()
        for name, _, file in members:
            run, _, base = name.rpartition("/")
            if run not in wanted or (base != RECORD and base not in wanted[run][1]):
                continue
            folder, _ = wanted[run]
            if base == RECORD:
                held.close()
                open_run, remaining = None, set()
                try:
                    held.enter_context(folder.lock())
                    missing = _missing(folder, records[run])
                except RnnbenchError as error:
                    held.close()
                    result.refused.append((folder, str(error)))
                    continue
                if missing is None:
                    result.unchanged.append(folder)
                    continue
                if folder.record() is None:
                    _clear(folder)
                open_run, remaining = run, missing
            elif open_run == run and base in remaining:
                data = file.read()
                if hash_of(data) != records[run].files[base]:
                    raise CorruptData(f"{shown(source)}: {quoted(name)} changed while it was imported")
                write_file(folder.path / base, data)
                remaining.discard(base)
            if open_run == run and not remaining:
                _write_record(folder, records[run], result)
                open_run = None


def _clear(folder: RunFolder) -> None:
    """Remove what a killed process left in a folder that has neither record nor checkpoint."""
    with disk_errors(folder.path, "clearing leftovers"):
        for path in sorted(folder.path.iterdir()):
            if path.name != LOCK and (path.is_symlink() or not path.is_dir()):
                discard(path)


def _write_record(folder: RunFolder, incoming: RunRecord, result: Imported) -> None:
    present = folder.record()
    if present is None:
        write_file(folder.path / RECORD, incoming.to_json())
        result.added.append(folder)
        return
    every = {**present.left_out, **present.files, **incoming.left_out, **incoming.files}
    files = {name: every[name] for name in sorted({*present.files, *incoming.files})}
    left = {name: every[name] for name in sorted(every) if name not in files}
    write_file(folder.path / RECORD, present.model_copy(update={"files": files, "left_out": left}).to_json())
    result.completed.append(folder)
