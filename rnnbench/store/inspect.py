"""What state a run's folder is in, whether its bytes are what was written, and what of it can go."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from rnnbench.errors import CorruptData, Locked, NewerSchema, RnnbenchError
from rnnbench.record import RunRecord
from rnnbench.store.checkpoints import CHECKPOINT_FILES, CheckpointFacts
from rnnbench.store.files import TEMPORARY, discard, disk_errors, hash_file
from rnnbench.store.folder import LOCK, RECORD, RunFolder


class State(StrEnum):
    """What a run's folder is, beyond the statuses that a record can have."""

    RUNNING = "running"
    INTERRUPTED = "interrupted"
    LEFTOVER = "leftover"
    CORRUPT = "corrupt"
    RECORDED = "recorded"


@dataclass(frozen=True)
class Standing:
    """A run's folder at one moment. Others may be writing to it: only one process at a time holds its lock.

    Attributes:
        folder: which.
        state: RECORDED when there is a record, whatever its status.
        record: the record, if there is one.
        progress: the newest checkpoint's facts, if there is no record but a checkpoint.
        described: the record, or what the checkpoint says in its place.
        reason: why it is corrupt.
        newer: whether it is not damaged at all, but of a schema that only a newer rnnbench reads.
    """

    folder: RunFolder
    state: State
    record: RunRecord | None = None
    progress: CheckpointFacts | None = None
    reason: str | None = None
    newer: bool = False
    described: RunRecord | None = None

    @property
    def status(self) -> str:
        """The record's status, or the state where there is no record."""
        return str(self.record.status if self.record is not None else self.state)


@dataclass(frozen=True)
class Fault:
    """One thing that is not as it was written."""

    folder: RunFolder
    file: str
    problem: str


def standing(folder: RunFolder) -> Standing:
    """Look at a folder without locking it and without reading more than its facts."""
    try:
        record = folder.record()
        if record is not None and record.status.final:
            return Standing(folder, State.RECORDED, record=record, described=record)
        progress = folder.progress() if record is None else None
        described = folder.described()
    except RnnbenchError as error:
        return Standing(folder, State.CORRUPT, reason=str(error), newer=isinstance(error, NewerSchema))
    if folder.is_locked():
        return Standing(folder, State.RUNNING, progress=progress, described=described)
    if record is not None:
        return Standing(folder, State.RECORDED, record=record, described=record)
    if progress is not None:
        return Standing(folder, State.INTERRUPTED, progress=progress, described=described)
    return Standing(folder, State.LEFTOVER)


def verify_run(folder: RunFolder) -> list[Fault]:
    """Hash every file of a run and return what is missing, changed or not listed; nothing is written."""
    faults: list[Fault] = []
    try:
        record = folder.record()
    except RnnbenchError as error:
        return [Fault(folder, RECORD, str(error))]
    if record is None:
        try:
            if not folder.is_locked():
                folder.checkpoint()
        except CorruptData as error:
            faults.append(Fault(folder, "checkpoint", str(error)))
        return faults
    for name, expected in sorted(record.files.items()):
        path = folder.path / name
        try:
            actual = hash_file(path) if _is_plain(path) else None
        except RnnbenchError as error:
            faults.append(Fault(folder, name, str(error)))
            continue
        if actual is None:
            faults.append(Fault(folder, name, "is missing, or no plain file"))
        elif actual.bytes != expected.bytes:
            faults.append(Fault(folder, name, f"holds {actual.bytes} bytes where {expected.bytes} were written"))
        elif actual != expected:
            faults.append(Fault(folder, name, f"has sha256 {actual.sha256[:16]}, recorded {expected.sha256[:16]}"))
    known = {*record.files, RECORD, LOCK, *CHECKPOINT_FILES}
    strange = [n for n in sorted(os.listdir(folder.path)) if n not in known and not _is_leftover(n, record)]
    return faults + [Fault(folder, name, "is in the folder but not in the record") for name in strange]


def _is_plain(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def _is_leftover(name: str, record: RunRecord) -> bool:
    """Whether a file beside a record is one that rnnbench would have removed, had it not been killed."""
    stray_best = name.startswith("best-") and name.endswith(".safetensors")
    return name not in record.files and (name.startswith(TEMPORARY) or stray_best)


@dataclass(frozen=True)
class Removal:
    """Something that `clean` would remove: a whole run's folder, or single files of a finished run."""

    folder: RunFolder
    kind: str
    files: tuple[str, ...]
    whole: bool
    note: str = ""


CLEANABLE = ("failed", "interrupted", "leftovers", "corrupt")


def removable(folder: RunFolder, kinds: Collection[str]) -> Removal | None:
    """Say what of a folder can go, by kind; None when nothing can, or when a process holds it.

    Kinds: ``failed`` and ``interrupted`` runs, ``leftovers`` (temporary files, and folders with neither record nor
    checkpoint), and ``corrupt`` runs, whose record or checkpoint is not what was written. What a newer rnnbench wrote
    is none of these.
    """
    if folder.is_locked():
        return None
    now = standing(folder)
    if now.newer:
        return None
    if now.state is State.RECORDED and now.record is not None and now.record.status.final:
        extra = {LOCK, *CHECKPOINT_FILES} - set(now.record.files)
        files = tuple(n for n in sorted(os.listdir(folder.path)) if n in extra or _is_leftover(n, now.record))
        return Removal(folder, "leftovers", files, whole=False) if files and "leftovers" in kinds else None
    kind, note = now.status, now.reason or ""
    if now.state is State.LEFTOVER:
        kind = "leftovers"
    elif now.state is not State.CORRUPT:
        try:
            checkpoint = folder.checkpoint()
            note = "no checkpoint" if checkpoint is None else f"checkpoint of step {checkpoint.step}"
        except NewerSchema:
            return None
        except CorruptData as error:
            kind, note = "corrupt", str(error)
    if kind not in kinds:
        return None
    return Removal(folder, kind, tuple(sorted(os.listdir(folder.path))), whole=True, note=note)


def remove(planned: Removal, kinds: Collection[str]) -> bool:
    """Remove what was planned, if under the lock it still is what it was; return whether it went.

    The record goes first and the facts of a checkpoint next, so that a kill in between leaves less, never a lie.
    """
    folder = planned.folder
    try:
        with folder.lock():
            # Looked at again: since the plan was made a process may have come, finished the run and gone.
            current = removable(folder, kinds)
            if current is None or current.kind != planned.kind or current.whole != planned.whole:
                return False
            first = [name for name in (RECORD, *CHECKPOINT_FILES) if name in current.files]
            with disk_errors(folder.path, "cleaning"):
                for name in [*first, *(n for n in current.files if n not in first and n != LOCK)]:
                    path = folder.path / name
                    if path.is_symlink() or not path.is_dir():
                        discard(path)
    except Locked:
        return False
    return not (planned.whole and folder.path.exists())
