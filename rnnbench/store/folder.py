"""Run folders, ``RESULTS/<suite>/<digest>/``: where they are, who holds them, and what is in them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput, CorruptData, Locked, quoted
from rnnbench.record import SUITE_NAME, FileHash, RunRecord, validated, write_json
from rnnbench.signals import Signal
from rnnbench.store.arrays import unpack_arrays
from rnnbench.store.checkpoints import Checkpoint, CheckpointFacts, curable, load_checkpoint, read_facts
from rnnbench.store.files import disk_errors, hash_of, make_folders, read_file, shown
from rnnbench.store.tables import read_metrics, read_signals

if TYPE_CHECKING:
    from rnnbench.store.writer import RunWriter

RECORD = "run.json"
LOCK = ".lock"
RECORD_LIMIT = 64 << 20  # a record that does not fit in this was not written by rnnbench

_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_suite(suite: str, place: str = "suite") -> str:
    """Return `suite` if it can be a folder's name.

    Raises:
        BadInput: when it holds a separator, a control character or a space, starts with a dot or a dash, is empty or
            has more than 200 characters.
    """
    if not isinstance(suite, str) or not SUITE_NAME.fullmatch(suite):
        raise BadInput(
            f"{place}: {quoted(suite)} cannot be a folder's name; use letters, digits and _ . + -, at most 200, "
            "starting with a letter, a digit or _"
        )
    return suite


class Store:
    """A folder of results: one folder a suite, in it one folder a run. Nothing is created before it is needed."""

    def __init__(self, root: str | Path, *, read_only: bool = False) -> None:
        """Open the results at `root`, which need not exist yet.

        Raises:
            BadInput: when `root` is a file, lies below one, or (unless `read_only`) may not be written to.
        """
        self.root = Path(root)
        if "\0" in str(root):
            raise BadInput(f"results: {quoted(str(root))} has a NUL in it; give a folder's path")
        existing = next((path for path in (self.root, *self.root.absolute().parents) if os.path.lexists(path)), None)
        if existing is not None and not existing.is_dir():
            raise BadInput(f"results: {shown(existing)} is not a folder; give a folder with --results")
        if not read_only and existing is not None and not os.access(existing, os.W_OK | os.X_OK):
            raise BadInput(f"results: {shown(existing)} may not be written to; give another folder with --results")

    def folder(self, suite: str, digest: str) -> RunFolder:
        """Return the folder of one run, whether or not it exists.

        Raises:
            BadInput: when the suite's name cannot be a folder's, or `digest` is not 64 hexadecimal digits.
        """
        check_suite(suite)
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise BadInput(f"digest: {quoted(digest)} is not 64 hexadecimal digits")
        return RunFolder(self.root / suite / digest, suite, digest)

    def folders(self) -> list[RunFolder]:
        """Return every run's folder, sorted by suite and digest; whatever else lies about is passed over."""
        return [
            RunFolder(run, suite.name, run.name)
            for suite in _subfolders(self.root)
            if SUITE_NAME.fullmatch(suite.name)
            for run in _subfolders(suite)
            if _DIGEST.fullmatch(run.name)
        ]

    def find(self, prefix: str) -> RunFolder:
        """Return the one run whose digest starts with `prefix`; ``suite/prefix`` looks in one suite only.

        Raises:
            BadInput: when none does, or several do (they are named).
        """
        return find_run(prefix, self.folders(), self.root)


def find_run(prefix: str, among: Sequence[RunFolder], root: Path) -> RunFolder:
    """Return the one run of `among` whose digest starts with `prefix`; see `Store.find`.

    Args:
        prefix: of a digest, perhaps with a suite's name and a slash before it.
        among: the runs to look at.
        root: where they are, for the message.

    Raises:
        BadInput: when none does, or several do (they are named).
    """
    suite, slash, start = prefix.rpartition("/")
    folders = [folder for folder in among if not slash or folder.suite == suite]
    found = [folder for folder in folders if folder.digest.startswith(start.lower())] if start else []
    if len(found) == 1:
        return found[0]
    if found:
        some = ", ".join(f"{folder.suite}/{folder.digest[:16]}" for folder in found[:4])
        more = ", …" if len(found) > 4 else ""
        cure = "name one so" if len({folder.digest for folder in found}) == 1 else "give more of it"
        raise BadInput(f"digest: {quoted(prefix)} fits {len(found)} runs ({some}{more}); {cure}")
    if not folders:
        raise BadInput(f"digest: {quoted(prefix)} fits no run; there are none in {shown(root)}")
    import difflib

    digests = sorted({folder.digest[: max(len(start), 8)] for folder in folders})
    near = difflib.get_close_matches(start.lower(), digests, n=3, cutoff=0.55)
    hint = f"did you mean {' or '.join(near)}?" if near else "`rnnbench results list` shows them"
    raise BadInput(f"digest: {quoted(prefix)} fits none of the {len(folders)} runs; {hint}")


def _subfolders(path: Path) -> list[Path]:
    """Return the real folders in `path`, sorted; links are not followed, and one that vanishes is passed over."""
    try:
        with os.scandir(path) as entries:
            return sorted(Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise BadInput(f"{shown(path)}: cannot be listed, {error.strerror}") from error


class RunFolder:
    """One run's folder. Reading needs no lock; writing happens inside `lock`."""

    def __init__(self, path: Path, suite: str, digest: str) -> None:
        self.path, self.suite, self.digest = path, suite, digest
        self.held = False

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r})"

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run against every other process; the kernel lets go when this one dies.

        Raises:
            Locked: when another process holds it.
            BadInput: when the folder cannot be made or written to.
        """
        handle = self._acquire()
        self.held = True
        try:
            yield
        finally:
            self.held = False
            # Removed while it is held, so that no folder is littered; who waits at the old name notices (see below).
            with contextlib.suppress(OSError):
                os.unlink(self.path / LOCK)
            with contextlib.suppress(OSError):
                os.rmdir(self.path)  # only if nothing was written
            # Unlocked by name: a forked child that still has the handle open would otherwise keep the lock.
            fcntl.flock(handle, fcntl.LOCK_UN)
            os.close(handle)

    def _acquire(self) -> int:
        path = self.path / LOCK
        patience = 5  # an onlooker's `is_locked` holds the lock for an instant
        while True:
            make_folders(self.path)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:
                continue  # another process has just removed the empty folder
            except OSError as error:
                with disk_errors(path, "locking"):
                    raise error from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                with contextlib.suppress(FileNotFoundError):
                    if os.path.samestat(os.fstat(handle), os.stat(path)):
                        os.truncate(handle, 0)
                        os.write(handle, f"{os.getpid()}\n".encode())
                        return handle
            except BlockingIOError:
                holder = _holder(handle)
                os.close(handle)
                patience -= 1
                if patience:
                    time.sleep(0.01)
                    continue
                raise Locked(
                    f"{shown(self.path)}: another process{holder} is working on this run; wait for it, or stop it"
                ) from None
            except OSError as error:
                os.close(handle)
                if error.errno in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise BadInput(
                        f"{shown(path)}: this file system has no locks; choose another place with --results"
                    ) from error
                with disk_errors(path, "locking"):
                    raise error from None
            os.close(handle)  # the file was removed between opening and locking it: the lock on it means nothing

    def is_locked(self) -> bool:
        """Whether someone else holds the run at this moment."""
        if self.held:
            return False
        try:
            handle = os.open(self.path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError:
            return False
        try:
            # A shared lock: two onlookers do not take each other for a worker.
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def record(self) -> RunRecord | None:
        """Return the run's record, or None when it has none yet.

        Raises:
            CorruptData: when ``run.json`` is empty, truncated, no strict JSON, of a newer schema, or another run's.
        """
        path = self.path / RECORD
        data = read_file(path, RECORD_LIMIT)
        if data is None:
            return None
        with curable(self.path):
            record = RunRecord.from_json(data, shown(path))
        if (record.suite, record.digest) != (self.suite, self.digest):
            raise CorruptData(
                f"{shown(path)}: is the record of {record.suite}/{record.digest[:12]}, not of this folder"
            )
        return record

    def described(self) -> RunRecord | None:
        """Return the run's record, or, of a run that has none yet, what its newest checkpoint says in its place.

        Raises:
            CorruptData: when what there is cannot be read.
        """
        record = self.record()
        facts = self.progress() if record is None else None
        if facts is None or "record" not in facts.position:
            return record
        return validated(
            RunRecord, write_json(facts.position["record"]), f"{shown(self.path)}: the checkpoint's record"
        )

    def is_done(self) -> bool:
        """Whether the run has ended for good, so that running it again does nothing.

        Raises:
            CorruptData: as `record` does.
        """
        record = self.record()
        return record is not None and record.status.final

    def checkpoint(self) -> Checkpoint | None:
        """Return the checkpoint to go on from, every byte of it checked, or None when there is none.

        Raises:
            CorruptData: naming the file that is not what it was, and how to go on.
        """
        return load_checkpoint(self.path, self.digest)

    def progress(self) -> CheckpointFacts | None:
        """Return the facts of the newest checkpoint, its arrays unread, or None.

        Raises:
            CorruptData: when they cannot be read.
        """
        return read_facts(self.path)

    def writer(self, resume: Checkpoint | None = None) -> RunWriter:
        """Start writing: anew, or on from `resume`. What was written after that checkpoint is discarded.

        Raises:
            RuntimeError: when the lock is not held, or the run is done.
        """
        from rnnbench.store.writer import RunWriter

        return RunWriter(self, resume)

    def files(self) -> dict[str, FileHash]:
        """Return the files that count: those of the record, else those of the newest checkpoint."""
        record = self.record()
        if record is not None:
            return dict(record.files)
        progress = self.progress()
        return {} if progress is None else dict(progress.files)

    def metrics(self) -> Any:
        """Return all recorded metrics as one Arrow table, in the order of recording.

        Raises:
            CorruptData: when a segment is missing or not what it was.
        """
        import pyarrow as pa

        from rnnbench.store.tables import metrics_schema

        tables = [read_metrics(data, place) for place, data in self._segments("metrics-")]
        return pa.concat_tables(tables) if tables else metrics_schema().empty_table()

    def signals(self) -> list[Signal]:
        """Return all recorded signals, in the order of recording.

        Raises:
            CorruptData: when a segment is missing or not what it was.
        """
        return [signal for place, data in self._segments("signals-") for signal in read_signals(data, place)]

    def parameters(self, which: str) -> dict[str, NDArray] | None:
        """Return the ``final`` or ``best`` parameters of a run that has ended, or None when there are none.

        Raises:
            CorruptData: when the file is missing or not what it was.
        """
        name = f"{which}.safetensors"
        expected = self.files().get(name)
        if expected is None:
            return None
        return unpack_arrays(self._checked(name, expected), shown(self.path / name))

    def _segments(self, start: str) -> Iterator[tuple[str, bytes]]:
        for name, expected in sorted(self.files().items()):
            if name.startswith(start):
                yield shown(self.path / name), self._checked(name, expected)

    def _checked(self, name: str, expected: FileHash) -> bytes:
        data = read_file(self.path / name)
        if data is None:
            raise CorruptData(f"{shown(self.path / name)}: is missing; `rnnbench results verify` lists every fault")
        if hash_of(data) != expected:
            raise CorruptData(
                f"{shown(self.path / name)}: is not what was written (sha256 {hash_of(data).sha256[:12]}, recorded "
                f"{expected.sha256[:12]}); `rnnbench results verify` lists every fault"
            )
        return data


def _holder(handle: int) -> str:
    """Return the process that says it holds the lock, for the message alone."""
    with contextlib.suppress(OSError, ValueError):
        return f" ({int(os.pread(handle, 20, 0))})"
    return ""
