"""Writing one run: buffered metrics and signals, checkpoints, parameters, and last of all the record."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import JsonValue

from rnnbench.arrays import NDArray
from rnnbench.errors import OutOfResources
from rnnbench.record import FileHash, RunRecord
from rnnbench.signals import Signal
from rnnbench.store.arrays import pack_arrays, unpack_arrays
from rnnbench.store.checkpoints import (
    CHECKPOINT_FILES,
    Checkpoint,
    checkpoint_hashes,
    remove_checkpoints,
    save_checkpoint,
    settle,
)
from rnnbench.store.files import discard, disk_errors, read_file, shown, sync_folder, write_file
from rnnbench.store.folder import LOCK, RECORD, RunFolder
from rnnbench.store.tables import METRIC_KEYS, pack_metrics, pack_signals

SIGNAL_BUFFER = 64 << 20  # bytes of signals that are held in memory before they become a segment


class RunWriter:
    """Writes one run's folder; made by `RunFolder.writer`, while the lock is held.

    Rows are buffered and become a segment at each checkpoint. Only what a checkpoint or the record lists counts.
    """

    def __init__(self, folder: RunFolder, resume: Checkpoint | None) -> None:
        """Begin: discard what the checkpoint does not list, or everything when there is no checkpoint to go on from.

        Raises:
            RuntimeError: when the lock is not held, or the run is done.
        """
        if not folder.held:
            raise RuntimeError(f"{folder.path}: the writer is used inside the folder's lock")
        record = folder.record()
        if record is not None and record.status.final:
            raise RuntimeError(f"{folder.path}: the run is done; there is nothing to write")
        self.folder = folder
        self._files: dict[str, FileHash] = dict(resume.files) if resume is not None else {}
        self._rows: list[dict[str, Any]] = []
        self._signals: list[Signal] = []
        self._signal_bytes = 0
        self._best: dict[str, NDArray] | None = None
        self._step = resume.step if resume is not None else None
        with disk_errors(folder.path, "clearing the leftovers of an earlier try"):
            discard(folder.path / RECORD)  # first: it lists files that are about to go
            if resume is None:
                remove_checkpoints(folder.path)
            else:
                settle(folder.path, folder.digest)
            keep = {LOCK, *self._files, *(CHECKPOINT_FILES if resume is not None else ())}
            for path in sorted(folder.path.iterdir()):
                if path.name not in keep and (path.is_symlink() or not path.is_dir()):
                    discard(path)
            sync_folder(folder.path)

    def metrics(self, rows: Sequence[dict[str, Any]]) -> None:
        """Buffer rows of step, sequences, split, metric, value (may be NaN) and seconds.

        Raises:
            ValueError: when a row has other keys.
        """
        for row in rows:
            if len(row) != len(METRIC_KEYS) or any(key not in row for key in METRIC_KEYS):
                raise ValueError(f"a metrics row has the keys {METRIC_KEYS}, not {tuple(row)}")
        self._rows.extend(rows)

    def signal(self, name: str, axes: Iterable[str], unit: str, array: NDArray, step: int) -> None:
        """Buffer one named array.

        Args:
            name: what it is, e.g. ``adjoint_norm/h``.
            axes: one name an axis of `array`.
            unit: of its values, empty for a pure number.
            array: real numbers of any shape; kept as float64, given back in its own dtype.
            step: training steps done.

        Raises:
            ValueError: when `axes` and the array's dimensions differ in number, or it is not real.
        """
        values = np.array(array)  # a copy: the caller may reuse the memory
        names = tuple(axes)
        if len(names) != values.ndim:
            raise ValueError(f"signal {name!r} has {values.ndim} axes and {len(names)} names for them: {names}")
        if values.dtype.kind not in "fiub":
            raise ValueError(f"signal {name!r} is {values.dtype}; a complex signal is recorded as two real ones")
        self._signals.append(Signal(name, names, unit, step, values))
        self._signal_bytes += values.nbytes
        if self._signal_bytes > SIGNAL_BUFFER:
            self._flush_signals()

    def checkpoint(self, arrays: Mapping[str, NDArray], position: Mapping[str, JsonValue]) -> None:
        """Write all that is buffered, then a checkpoint; the one before it stays valid until this one is whole.

        Args:
            arrays: everything that the run needs to go on, by name.
            position: ``step``, and whatever else the loop counts; no NaN.

        Raises:
            OutOfResources: when the disk is full. The last checkpoint, and all that it lists, is whole.
            ValueError: when `position` has no step.
        """
        with self._surviving():
            self._flush()
            previous = self._best_segment()
            if self._best is not None:
                number = 0 if previous is None else int(previous[len("best-") : -len(".safetensors")]) + 1
                self._write(f"best-{number:05d}.safetensors", pack_arrays(self._best))
                self._best = None
                # Out of the list only: the file itself stays until the checkpoint that lists it is replaced.
                if previous is not None:
                    del self._files[previous]
            save_checkpoint(self.folder.path, self.folder.digest, arrays, position, self._files)
            self._step = int(position["step"])  # type: ignore[arg-type]  # save_checkpoint has checked it
            if previous is not None and previous not in self._files:
                with disk_errors(self.folder.path / previous, "removing"):
                    discard(self.folder.path / previous)

    def save_parameters(self, which: Literal["final", "best"], arrays: Mapping[str, NDArray]) -> None:
        """Keep a set of parameters under the name ``final`` or ``best``, in the place of an earlier one.

        The best so far is held in memory until the next checkpoint, so that a resumed run finds the best that its
        checkpoint knew of, not one from a future that is lost.
        """
        copies = {name: np.array(array) for name, array in arrays.items()}
        if which == "best":
            self._best = copies
        elif which == "final":
            with self._surviving():
                self._write("final.safetensors", pack_arrays(copies))
        else:
            raise ValueError(f"parameters are final or best, not {which!r}")

    def parameters(self, which: Literal["final", "best"]) -> dict[str, NDArray] | None:
        """Return what `save_parameters` was given last, also before an interruption, or None."""
        if which == "best" and self._best is not None:
            return {name: array.copy() for name, array in self._best.items()}
        name = self._best_segment() if which == "best" else "final.safetensors"
        if name is None or name not in self._files:
            return None
        path = self.folder.path / name
        data = read_file(path)
        return None if data is None else unpack_arrays(data, shown(path))

    def finish(self, record: RunRecord) -> RunRecord:
        """Write what is buffered and then, last, the record with the hash of every file; return it as written.

        A final status ends the run and removes its checkpoints. A failed or interrupted run keeps them.

        Raises:
            OutOfResources: when the disk is full. The last checkpoint, and all that it lists, is whole.
        """
        folder = self.folder.path
        with self._surviving():
            self._flush()
            segment = self._best_segment()
            best = self.parameters("best")
            files = {name: fact for name, fact in self._files.items() if name != segment}
            if record.status.final and best is not None:
                files["best.safetensors"] = write_file(folder / "best.safetensors", pack_arrays(best))
            elif not record.status.final:
                if segment is not None:
                    files[segment] = self._files[segment]
                files.update(checkpoint_hashes(folder))
            written = record.model_copy(
                update={
                    "suite": self.folder.suite,
                    "digest": self.folder.digest,
                    "files": dict(sorted(files.items())),
                    "left_out": {},
                }
            )
            write_file(folder / RECORD, written.to_json())
        if written.status.final:
            with disk_errors(folder, "removing the checkpoint"):
                remove_checkpoints(folder)
                for path in folder.glob("best-*.safetensors"):
                    discard(path)
        return written

    def _best_segment(self) -> str | None:
        return next((name for name in self._files if name.startswith("best-")), None)

    def _flush(self) -> None:
        if self._rows:
            self._write(self._next("metrics"), pack_metrics(self._rows))
            self._rows = []
        self._flush_signals()

    def _flush_signals(self) -> None:
        if self._signals:
            self._write(self._next("signals"), pack_signals(self._signals))
            self._signals, self._signal_bytes = [], 0

    def _next(self, kind: str) -> str:
        return f"{kind}-{sum(name.startswith(kind + '-') for name in self._files):05d}.parquet"

    def _write(self, name: str, data: bytes) -> None:
        self._files[name] = write_file(self.folder.path / name, data)

    @contextlib.contextmanager
    def _surviving(self) -> Iterator[None]:
        """Add to the news of a full disk what of the run is safe."""
        try:
            yield
        except OutOfResources as error:
            kept = "it has no checkpoint yet" if self._step is None else f"its checkpoint of step {self._step} is whole"
            raise OutOfResources(f"{error}; of this run, {kept}") from error
