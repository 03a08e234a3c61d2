"""Whole files only: every write goes to a temporary name, reaches the disk, and is then renamed.

A process killed at any instant, or a machine that loses power, leaves either the old file or the new one. All of the
store's changes to the disk go through this module's few functions.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rnnbench.errors import BadInput, CorruptData, OutOfResources, RnnbenchError, RunFailed, quoted
from rnnbench.record import FileHash

TEMPORARY = ".tmp-"

_NO_SPACE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}


MAKING = "making the folder"


def shown(path: Path) -> str:
    """Show a path on one line, without quotes where it has nothing odd in it."""
    text = str(path)
    return text if text.isascii() and text.isprintable() and len(text) <= 300 else quoted(text, 200)


@contextlib.contextmanager
def disk_errors(path: Path, doing: str, option: str = "--results") -> Iterator[None]:
    """Turn the operating system's errors into rnnbench's, with one line and the right exit status.

    Args:
        path: what is read or written.
        doing: what is done to it.
        option: with which another place can be chosen.
    """
    try:
        yield
    except OSError as error:
        raise _translated(error, path, doing, option) from error


def _translated(error: OSError, path: Path, doing: str, option: str = "--results") -> RnnbenchError:
    reason = error.strerror or type(error).__name__
    if error.errno in _NO_SPACE:
        return OutOfResources(
            f"{shown(path)}: {doing} failed, {reason}; what was written before is whole: free some space, then run "
            "the same command again"
        )
    if error.errno in _NOT_ALLOWED or (error.errno == errno.ENOENT and doing == MAKING):
        return BadInput(f"{shown(path)}: {doing} failed, {reason}; choose another place with {option}")
    return RunFailed(f"{shown(path)}: {doing} failed, {reason}")


def write_file(path: Path, data: bytes, option: str = "--results") -> FileHash:
    """Write `data` to `path` so that it is there whole or not at all, and return its hash.

    Args:
        path: where.
        data: what.
        option: with which another place can be chosen.

    Raises:
        OutOfResources: when the disk or the quota is full; an earlier file at `path` is untouched.
        BadInput: when the place may not be written to.
    """
    with disk_errors(path, "writing", option):
        temporary = write_temporary(path, data)
        try:
            os.replace(temporary, path)
        except OSError:
            discard(temporary)
            raise
        sync_folder(path.parent)
    return hash_of(data)


def write_temporary(path: Path, data: bytes) -> Path:
    """Write `data` to a temporary name beside `path`, through to the disk; on failure leave nothing behind."""
    temporary = path.with_name(f"{TEMPORARY}{os.getpid()}-{path.name}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    handle = os.open(temporary, flags, 0o666)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(handle, view) :]
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        discard(temporary)
        raise
    return temporary


def sync_folder(folder: Path) -> None:
    """Make the folder's names reach the disk: a rename that a power loss forgets has not happened."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(path: Path) -> None:
    """Remove a file, whether or not it is there."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def make_folders(path: Path) -> None:
    """Create a folder and those above it."""
    with disk_errors(path, MAKING):
        os.makedirs(path, exist_ok=True)


def read_file(path: Path, limit: int | None = None) -> bytes | None:
    """Return a file's bytes, or None when there is no such file.

    Raises:
        CorruptData: when it is no plain file, cannot be read through, or is larger than `limit` bytes.
        BadInput: when reading it is not allowed.
    """
    try:
        # O_NONBLOCK: opening a FIFO that someone put there must not wait for a writer.
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translated(error, path, "reading") from error
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            raise CorruptData(f"{shown(path)}: is not a plain file")
        if limit is not None and facts.st_size > limit:
            raise CorruptData(f"{shown(path)}: holds {facts.st_size} bytes, more than the {limit} that it may")
        with disk_errors(path, "reading"), open(handle, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(handle)


def hash_of(data: bytes) -> FileHash:
    """Return the size and SHA-256 of bytes in memory."""
    return FileHash(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))


def hash_file(path: Path) -> FileHash | None:
    """Return the size and SHA-256 of a file, reading it in pieces, or None when there is no such file."""
    digest, size = hashlib.sha256(), 0
    try:
        with open(path, "rb") as file:
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _translated(error, path, "reading") from error
    return FileHash(sha256=digest.hexdigest(), bytes=size)
