from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.errors import BadInput, CorruptData, Locked, NewerSchema
from rnnbench.record import RunRecord, Status
from rnnbench.store import RunFolder, Store, files
from rnnbench.store.inspect import CLEANABLE, removable, standing

Make = Callable[..., RunRecord]
Finished = Callable[..., RunFolder]


def row(step: int, value: float = 0.5) -> dict[str, Any]:
    return {"step": step, "sequences": step, "split": "train", "metric": "loss", "value": value, "seconds": 0.5}


@pytest.mark.parametrize(
    "suite",
    [
        "",
        ".",
        "..",
        "../x",
        "a/b",
        "a\nb",
        "a\0b",
        "-rf",
        ".hidden",
        "x" * 201,
        "x" * 300,
        "a b",
        "ü",
        "a\x1b[2J",
        "a\\b",
    ],
)
def test_a_suite_that_cannot_be_a_folder_is_refused(suite: str, store: Store) -> None:
    with pytest.raises(BadInput, match="suite") as caught:
        store.folder(suite, "0" * 64)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "digest", ["", "..", "0" * 63, "0" * 65, "A" * 64, "0" * 63 + "\n", "0" * 64 + "\n", "../" + "0" * 61]
)
def test_a_digest_that_is_none_is_refused(digest: str, store: Store) -> None:
    with pytest.raises(BadInput, match="digest"):
        store.folder("suite", digest)


def test_names_that_are_fine(store: Store) -> None:
    for suite in ("quickstart", "a.b-c_d+e", "2024", "x" * 200):
        store.folder(suite, "0" * 64)
    assert not store.root.exists()  # nothing is created before it is needed


def test_a_root_that_is_a_file_or_below_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for root in (tmp_path / "file", tmp_path / "file" / "below" / "it"):
        with pytest.raises(BadInput, match="is not a folder"):
            Store(root)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    with pytest.raises(BadInput, match="is not a folder"):
        Store(tmp_path / "dangling")
    with pytest.raises(BadInput, match="NUL"):
        Store("a\0b")


def test_a_root_that_may_not_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write anywhere
    with pytest.raises(BadInput, match="may not be written to"):
        Store(tmp_path / "results")
    Store(tmp_path / "results", read_only=True)


def test_a_refusal_by_the_system_is_bad_input(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files.os, "makedirs", refuse)
    with pytest.raises(BadInput, match="Permission denied"), folder.lock():
        pass


def test_the_whole_of_a_run(folder: RunFolder, make_record: Make) -> None:
    assert folder.record() is None
    assert folder.checkpoint() is None
    assert not folder.is_done()
    with folder.lock():
        writer = folder.writer()
        writer.metrics([row(1), row(2, float("nan"))])
        writer.signal("norm", ("time", "batch"), "1/s", np.arange(6, dtype=np.float32).reshape(2, 3), 2)
        writer.signal("scalar", (), "", np.array(True), 2)
        writer.signal("none", ("time",), "", np.zeros(0), 2)
        writer.save_parameters("best", {"layer/w.0": np.ones((2, 2), np.float32)})
        writer.checkpoint({"w": np.ones(2)}, {"step": 2})
        writer.metrics([row(3)])
        writer.save_parameters("final", {"layer/w.0": np.zeros((2, 2), np.float32), "zero": np.zeros((0, 3))})
        written = writer.finish(make_record(status=Status.SOLVED))
    assert folder.is_done()
    assert folder.record() == written
    assert {path.name for path in folder.path.iterdir()} == {"run.json", *written.files}
    for name, fact in written.files.items():
        assert files.hash_file(folder.path / name) == fact
    assert [r["step"] for r in folder.metrics().to_pylist()] == [1, 2, 3]
    assert np.isnan(folder.metrics().column("value")[1].as_py())
    norm, scalar, none = folder.signals()
    assert (norm.name, norm.axes, norm.unit, norm.step, norm.values.dtype) == (
        "norm",
        ("time", "batch"),
        "1/s",
        2,
        np.float32,
    )
    np.testing.assert_array_equal(norm.values, np.arange(6).reshape(2, 3))
    assert scalar.values.shape == ()
    assert scalar.values.dtype == np.bool_
    assert none.values.shape == (0,)
    final = folder.parameters("final")
    assert final is not None
    assert final["zero"].shape == (0, 3)
    best = folder.parameters("best")
    assert best is not None
    np.testing.assert_array_equal(best["layer/w.0"], np.ones((2, 2)))


def test_the_same_rows_give_the_same_bytes(store: Store, finished: Finished) -> None:
    first, second = finished("a"), finished("b")
    for name in first.files():
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes()


@pytest.mark.parametrize(
    "array",
    [
        np.array(3.5),
        np.zeros((0,)),
        np.zeros((4, 0, 2), np.int64),
        np.arange(12, dtype=">f8").reshape(3, 4),
        np.arange(12.0).reshape(3, 4).T,
        np.arange(12.0)[::-2],
        np.array([True, False]),
        np.array([np.nan, -0.0, np.inf, 5e-324]),
        np.array([1 + 2j], np.complex64),
        np.array([2**64 - 1], np.uint64),
        np.float32(1.5),
    ],
    ids=lambda array: f"{array.dtype.str}{array.shape}",
)
def test_arrays_come_back_bit_for_bit(array: Any, folder: RunFolder) -> None:
    with folder.lock():
        folder.writer().checkpoint({"a/b.c": array, "": np.ones(1), "ünïcode \n": np.ones(1)}, {"step": 0})
    checkpoint = folder.checkpoint()
    assert checkpoint is not None
    back = checkpoint.arrays["a/b.c"]
    assert back.shape == array.shape
    assert back.dtype == array.dtype.newbyteorder("=")
    assert back.tobytes() == np.ascontiguousarray(array).astype(back.dtype).tobytes()
    assert back.flags.writeable
    assert set(checkpoint.arrays) == {"a/b.c", "", "ünïcode \n"}


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["a"]), np.array([object()]), [1.0]])
def test_arrays_that_cannot_be_kept_are_refused(array: Any, folder: RunFolder) -> None:
    with folder.lock(), pytest.raises(TypeError, match="array 'a' is"):
        folder.writer().checkpoint({"a": array}, {"step": 0})
    assert folder.checkpoint() is None


def test_misuse_is_told_apart_from_bad_luck(folder: RunFolder, finished: Finished) -> None:
    with pytest.raises(RuntimeError, match="inside the folder's lock"):
        folder.writer()
    with folder.lock():
        writer = folder.writer()
        with pytest.raises(ValueError, match="a metrics row has the keys"):
            writer.metrics([{"step": 1}])
        with pytest.raises(ValueError, match="needs a step"):
            writer.checkpoint({}, {})
        with pytest.raises(ValueError, match="2 axes and 1 names"):
            writer.signal("x", ("time",), "", np.zeros((2, 2)), 1)
        with pytest.raises(ValueError, match="complex"):
            writer.signal("x", ("time",), "", np.zeros(2, complex), 1)
        with pytest.raises(ValueError, match=r"not JSON compliant|finite"):
            writer.checkpoint({}, {"step": 1, "best": float("nan")})
    done = finished("done")
    with done.lock(), pytest.raises(RuntimeError, match="the run is done"):
        done.writer()


def test_a_resumed_writer_discards_the_future_that_was_lost(folder: RunFolder, make_record: Make) -> None:
    with folder.lock():
        writer = folder.writer()
        writer.metrics([row(1)])
        writer.checkpoint({"w": np.array(1)}, {"step": 1})
        writer.metrics([row(2)])
        writer.finish(make_record(status=Status.INTERRUPTED))
    assert not folder.is_done()
    interrupted = folder.record()
    assert interrupted is not None
    assert [r["step"] for r in folder.metrics().to_pylist()] == [1, 2]
    (folder.path / ".tmp-1-x").write_bytes(b"")
    with folder.lock():
        checkpoint = folder.checkpoint()
        assert checkpoint is not None
        writer = folder.writer(resume=checkpoint)
        assert {p.name for p in folder.path.iterdir()} == {
            ".lock",
            "checkpoint.json",
            "checkpoint.safetensors",
            "metrics-00000.parquet",
        }
        writer.metrics([row(2, 7.0)])
        writer.finish(make_record())
    assert [(r["step"], r["value"]) for r in folder.metrics().to_pylist()] == [(1, 0.5), (2, 7.0)]
    assert not list(folder.path.glob("checkpoint*"))


def test_a_failed_run_is_tried_anew(folder: RunFolder, make_record: Make) -> None:
    with folder.lock():
        writer = folder.writer()
        writer.metrics([row(1)])
        writer.finish(make_record(status=Status.FAILED, error="it broke"))
        assert not folder.is_done()
        folder.writer()
        assert {p.name for p in folder.path.iterdir()} == {".lock"}


def test_large_signals_do_not_wait_for_a_checkpoint(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rnnbench.store.writer.SIGNAL_BUFFER", 100)
    with folder.lock():
        writer = folder.writer()
        for step in range(5):
            writer.signal("x", ("time",), "", np.full(8, float(step)), step)
        writer.checkpoint({}, {"step": 5})
    assert len(list(folder.path.glob("signals-*.parquet"))) == 3
    assert [signal.values[0] for signal in folder.signals()] == [0, 1, 2, 3, 4]


@pytest.fixture
def checkpointed(folder: RunFolder) -> RunFolder:
    with folder.lock():
        writer = folder.writer()
        writer.metrics([row(1)])
        writer.checkpoint({"w": np.arange(50.0)}, {"step": 7})
    return folder


def _flip(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "checkpoint.json", "metrics-00000.parquet"])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "other"])
def test_a_damaged_checkpoint_is_named(name: str, damage: str, checkpointed: RunFolder) -> None:
    path = checkpointed.path / name
    data = path.read_bytes()
    path.write_bytes({"flip": _flip(data), "truncate": data[:-9], "empty": b"", "other": b"not this"}[damage])
    with pytest.raises(CorruptData) as caught:
        checkpointed.checkpoint()
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    if name != "checkpoint.json":
        assert "results clean --only corrupt" in str(caught.value)


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "metrics-00000.parquet"])
def test_a_checkpoint_with_a_part_missing_is_named(name: str, checkpointed: RunFolder) -> None:
    (checkpointed.path / name).unlink()
    with pytest.raises(CorruptData, match=f"{name}: is missing"):
        checkpointed.checkpoint()


def test_every_flipped_byte_of_a_checkpoint_is_noticed(checkpointed: RunFolder) -> None:
    path = checkpointed.path / "checkpoint.safetensors"
    data = path.read_bytes()
    for place in range(0, len(data), 7):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])
        with pytest.raises(CorruptData, match=r"checkpoint\.safetensors"):
            checkpointed.checkpoint()


def test_another_runs_checkpoint_is_refused(checkpointed: RunFolder, store: Store) -> None:
    other = store.folder("suite", "1" * 64)
    checkpointed.path.rename(other.path)
    with pytest.raises(CorruptData, match="belongs to the run"):
        other.checkpoint()


def test_a_checkpoint_of_a_newer_schema_is_refused(checkpointed: RunFolder) -> None:
    path = checkpointed.path / "checkpoint.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(CorruptData, match="install a newer rnnbench"):
        checkpointed.checkpoint()


@pytest.mark.parametrize("name", ["checkpoint.json", "run.json"])
def test_what_a_newer_rnnbench_wrote_is_refused_but_never_cleaned_away(
    name: str, checkpointed: RunFolder, finished: Finished
) -> None:
    folder = finished() if name == "run.json" else checkpointed
    path = folder.path / name
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 2'))
    with pytest.raises(NewerSchema) as caught:
        folder.record() or folder.checkpoint()
    assert "clean" not in str(caught.value)
    assert standing(folder).status == "corrupt"
    assert removable(folder, CLEANABLE) is None
    path.write_text("{")
    with pytest.raises(CorruptData, match="results clean --only corrupt"):
        folder.record() or folder.checkpoint()
    assert removable(folder, CLEANABLE) is not None


@pytest.mark.parametrize("content", [b"", b"{", b"null", b'{"schema_version": 999}', b'{"a": NaN}'])
def test_a_record_that_is_none_is_corrupt(content: bytes, finished: Finished) -> None:
    run = finished()
    (run.path / "run.json").write_bytes(content)
    for look in (run.record, run.is_done):
        with pytest.raises(CorruptData, match=r"run\.json"):
            look()


def test_a_record_in_another_runs_folder_is_corrupt(finished: Finished, store: Store) -> None:
    run, other = finished(), store.folder("suite", "1" * 64)
    run.path.rename(other.path)
    with pytest.raises(CorruptData, match="not of this folder"):
        other.record()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_record_that_is_no_file_is_refused_and_not_waited_for(
    make: Callable[[Path], None], folder: RunFolder
) -> None:
    folder.path.mkdir(parents=True)
    make(folder.path / "run.json")
    with pytest.raises((CorruptData, BadInput), match=r"run\.json"):
        folder.record()


def test_damaged_metrics_are_not_read(finished: Finished) -> None:
    run = finished()
    path = run.path / "metrics-00000.parquet"
    path.write_bytes(_flip(path.read_bytes()))
    with pytest.raises(CorruptData, match="is not what was written"):
        run.metrics()


HOLDER = """
import sys
from rnnbench.store import Store
with Store(sys.argv[1]).folder("suite", sys.argv[2]).lock():
    print("held", flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def holder(folder: RunFolder) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-c", HOLDER, str(folder.path.parent.parent), folder.digest]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        if process.poll() is None:
            process.kill()


def test_a_run_that_another_process_holds(folder: RunFolder, holder: subprocess.Popen[str]) -> None:
    assert folder.is_locked()
    with pytest.raises(Locked, match=rf"another process \({holder.pid}\)") as caught, folder.lock():
        pass
    assert caught.value.exit_status == 4
    assert not folder.held
    assert holder.stdin is not None
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.wait(20) == 0
    assert not folder.is_locked()
    with folder.lock():
        assert not folder.is_locked()  # by anyone else


def test_the_kernel_lets_go_of_a_dead_processs_lock(folder: RunFolder, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait(20)
    assert (folder.path / ".lock").exists()
    with folder.lock():
        pass
    assert not folder.path.exists()  # an empty folder is not left lying about


def test_a_lock_holds_within_one_process_too(folder: RunFolder, store: Store) -> None:
    with folder.lock(), pytest.raises(Locked), store.folder(folder.suite, folder.digest).lock():
        pass
    with folder.lock():
        pass


def test_a_lock_is_let_go_when_the_work_fails(folder: RunFolder) -> None:
    with pytest.raises(ZeroDivisionError), folder.lock():
        raise ZeroDivisionError
    with folder.lock():
        pass


def test_what_lies_about_in_the_results_is_passed_over(store: Store, finished: Finished, tmp_path: Path) -> None:
    run = finished()
    (store.root / ".hidden" / ("0" * 64)).mkdir(parents=True)
    (store.root / "suite" / "notes").mkdir()
    (store.root / "suite" / ("1" * 64)).write_text("a file")
    (store.root / "suite" / ("2" * 64)).symlink_to(run.path)
    (store.root / "a\nb" / ("0" * 64)).mkdir(parents=True)
    (store.root / "README").write_text("")
    assert [folder.path for folder in store.folders()] == [run.path]
    assert Store(tmp_path / "nowhere").folders() == []


def test_finding_a_run_by_the_beginning_of_its_digest(store: Store, finished: Finished) -> None:
    runs = [finished(name) for name in range(20)]
    for run in runs:
        assert store.find(run.digest[:12]).path == run.path
        assert store.find(run.digest.upper()).path == run.path
    twice = next(d for d in "0123456789abcdef" if sum(run.digest.startswith(d) for run in runs) > 1)
    with pytest.raises(BadInput, match=r"fits \d+ runs"):
        store.find(twice)
    with pytest.raises(BadInput, match=r"fits (none|\d+ runs)"):
        store.find("")
    near = runs[0].digest[:11] + ("0" if runs[0].digest[11] != "0" else "1")
    with pytest.raises(BadInput, match=f"did you mean {runs[0].digest[:12]}"):
        store.find(near)
    with pytest.raises(BadInput, match="fits none"):
        store.find("zz\n\x1b")


def test_one_digest_in_two_suites_is_told_apart_by_the_suite(tmp_path: Path) -> None:
    store = Store(tmp_path / "two")
    for suite in ("one", "other"):
        folder = store.folder(suite, "ab" * 32)
        folder.path.mkdir(parents=True)
        (folder.path / "run.json").write_bytes(b"{}")
    with pytest.raises(BadInput, match=r"fits 2 runs \(one/abab.*, other/abab.*\); name one so"):
        store.find("ab" * 32)
    assert store.find("other/abab").suite == "other"
    with pytest.raises(BadInput, match="fits no run"):
        store.find("third/abab")
