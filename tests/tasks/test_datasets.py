"""MNIST's files: strict reading, where they are looked for, and fetching from a server on this machine."""

from __future__ import annotations

import errno
import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.errors import BadInput, CorruptData, OutOfResources, RunFailed
from rnnbench.tasks import datasets
from rnnbench.tasks.datasets import IdxFile, fetch, fetch_mnist, load_mnist, read_idx

SHAPE = (5, 4, 4)
ARRAY = np.arange(80, dtype=np.uint8).reshape(SHAPE)


def idx(array: Any = ARRAY, shape: tuple[int, ...] | None = None, magic: bytes | None = None) -> bytes:
    shape = array.shape if shape is None else shape
    return (magic or bytes([0, 0, 8, len(shape)])) + np.array(shape, dtype=">u4").tobytes() + bytes(array.tobytes())


def pack(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_good_file(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / "images"  # what the file is follows from its bytes, not from its name
    path.write_bytes(pack(idx()) if packed else idx())
    array, sha256 = read_idx(path, SHAPE)
    assert np.array_equal(array, ARRAY)
    assert array.dtype == np.uint8
    assert sha256 == hashlib.sha256(idx()).hexdigest()


def damaged(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :]


BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "empty gzip": (pack(b""), "empty"),
    "half a header": (pack(idx()[:9]), "truncated within its header"),
    "half a magic number": (b"\x00\x00", "truncated within its header"),
    "HTML": (b"<!DOCTYPE html><html><body>403</body></html>" * 9, "HTML"),
    "packed HTML": (pack(b"\n  <html>sign in</html>" * 9), "HTML"),
    "magic of labels": (pack(idx(magic=b"\x00\x00\x08\x01")), "0x00000801"),
    "magic of floats": (pack(idx(magic=b"\x00\x00\x0d\x03")), "0x00000d03"),
    "magic backwards": (pack(idx(magic=b"\x03\x08\x00\x00")), "0x03080000"),
    "other dimensions": (pack(idx(shape=(5, 2, 8))), "5x2x8.*5x4x4"),
    "huge dimensions": (pack(idx(shape=(2**32 - 1,) * 3)), "4294967295"),
    "one value missing": (pack(idx()[:-1]), "79 of 80"),
    "no values": (pack(idx()[:16]), "0 of 80"),
    "one value more": (pack(idx() + b"\x00"), "goes on after"),
    "unpacked, one value more": (idx() + b"\x00", "goes on after"),
    "unpacked, one value missing": (idx()[:-1], "79 of 80"),
    "gzip cut": (pack(idx())[:-20], "truncated"),
    "gzip cut before its checksum": (pack(idx())[:-8], "truncated"),
    "checksum": (damaged(pack(idx()), len(pack(idx())) - 6), "CRC"),
    "size in the trailer": (damaged(pack(idx()), len(pack(idx())) - 1), "damaged gzip"),
    "damaged stream": (damaged(pack(idx()), 12), "damaged gzip|CRC|0x|holds|truncated"),
    "two gzip members": (pack(idx()) + pack(b"\x00"), "goes on after"),
    "rubbish after the gzip": (pack(idx()) + b"rubbish", "damaged gzip"),
    "not gzip at all": (b"PK\x03\x04" + bytes(100), "0x504b0304"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named(tmp_path: Path, case: str) -> None:
    content, message = BAD[case]
    path = tmp_path / "images.gz"
    path.write_bytes(content)
    with pytest.raises(CorruptData, match=message) as caught:
        read_idx(path, SHAPE)
    assert "images.gz" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 3


def test_every_flipped_byte_is_noticed(tmp_path: Path) -> None:
    whole = pack(idx())
    path = tmp_path / "images.gz"
    for place in range(len(whole)):
        path.write_bytes(damaged(whole, place))
        try:
            array, sha256 = read_idx(path, SHAPE)
        except CorruptData:
            continue
        # time, extra flags and operating system in gzip's header say nothing of the content
        assert 4 <= place < 10
        assert np.array_equal(array, ARRAY)
        assert sha256 == hashlib.sha256(idx()).hexdigest()


def test_a_gzip_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(idx() + bytes(20_000_000)))
    taken = []

    class Counting(gzip.GzipFile):
        def read(self, size: int | None = -1) -> bytes:
            got = super().read(size)
            taken.append(len(got))
            return got

    monkeypatch.setattr("gzip.GzipFile", Counting)
    with pytest.raises(CorruptData, match="goes on after"):
        read_idx(path, SHAPE)
    assert sum(taken) == 16 + 80 + 1


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        read_idx(tmp_path / "none", SHAPE)


@dataclass
class Server:
    """Answers by path: (status, body, the length that the headers claim)."""

    url: str = ""
    answers: dict[str, tuple[int, bytes, int | None]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.asked.append(self.path)
            status, body, claimed = state.answers.get(self.path, (404, b"not here", None))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the standard library's name
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    state.url = f"http://127.0.0.1:{running.server_address[1]}"
    yield state
    running.shutdown()
    thread.join()
    running.server_close()


CONTENT = {
    "train_images": np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2),
    "train_labels": np.arange(6, dtype=np.uint8),
    "test_images": np.arange(3 * 4, dtype=np.uint8).reshape(3, 2, 2),
    "test_labels": np.arange(3, dtype=np.uint8),
}


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """A data set of a few bytes in MNIST's place; returns the packed files by name."""
    files, packed = {}, {}
    for key, array in CONTENT.items():
        name = datasets.MNIST_FILES[key].name
        content = idx(array)
        packed[name] = pack(content)
        files[key] = IdxFile(
            name,
            array.shape,
            len(packed[name]),
            hashlib.sha256(packed[name]).hexdigest(),
            hashlib.sha256(content).hexdigest(),
        )
    monkeypatch.setattr(datasets, "MNIST_FILES", files)
    datasets._read_mnist.cache_clear()
    return packed


def serve(server: Server, packed: dict[str, bytes], prefix: str = "/good/") -> str:
    server.answers |= {prefix + name: (200, body, None) for name, body in packed.items()}
    return server.url + prefix


def test_fetch_and_load(
    server: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (serve(server, small),))
    heard: list[tuple[str, int, int]] = []
    directory = fetch("mnist", progress=lambda *told: heard.append(told))
    assert sorted(path.name for path in directory.iterdir()) == sorted(small)
    assert all((directory / name).read_bytes() == body for name, body in small.items())
    assert [told for told in heard if told[1] == told[2]] == [(n, len(small[n]), len(small[n])) for n in small]
    data = load_mnist()
    assert data.canonical
    assert data.arrays["train_images"].tolist() == CONTENT["train_images"].reshape(6, 4).tolist()
    assert data.arrays["test_labels"].tolist() == [0, 1, 2]
    asked = len(server.asked)
    fetch("mnist")  # everything is there: nothing is asked for again
    assert len(server.asked) == asked


FAULTS: dict[str, tuple[int, bytes | None, int | None, type[Exception], str]] = {
    "404": (404, b"gone", None, RunFailed, "HTTP status 404"),
    "500": (500, b"", None, RunFailed, "HTTP status 500"),
    "HTML page": (200, b"<html>log in to the wireless network</html>", None, CorruptData, "HTML page"),
    "empty": (200, b"", None, CorruptData, "sent 0 of"),
    "cut": (200, None, None, CorruptData, "of .* bytes"),
    "endless": (200, b"\x1f\x8b" + bytes(10**6), None, CorruptData, "more than"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_mirror_is_named_and_the_next_one_used(
    server: Server, small: dict[str, bytes], tmp_path: Path, fault: str
) -> None:
    status, body, claimed, kind, message = FAULTS[fault]
    good = serve(server, small)
    for name, content in small.items():
        server.answers["/bad/" + name] = (status, content[: len(content) // 2] if body is None else body, claimed)
    with pytest.raises(kind, match=message) as caught:
        fetch_mnist(tmp_path / "a", mirrors=[server.url + "/bad/"])
    assert server.url in str(caught.value)
    assert list((tmp_path / "a").iterdir()) == []  # nothing half-written stays behind
    fetch_mnist(tmp_path / "b", mirrors=[server.url + "/bad/", good])
    assert sorted(path.name for path in (tmp_path / "b").iterdir()) == sorted(small)


def test_wrong_hash(server: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    name = next(iter(small))
    mirror = serve(server, small | {name: damaged(small[name], len(small[name]) // 2)})
    with pytest.raises(CorruptData, match="not the canonical bytes"):
        fetch_mnist(tmp_path, mirrors=[mirror])
    assert list(tmp_path.iterdir()) == []


def test_connection_that_breaks_off(server: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    name, body = next(iter(small.items()))
    server.answers["/bad/" + name] = (200, body[:10], len(body))
    with pytest.raises((CorruptData, RunFailed), match="10 "):
        fetch_mnist(tmp_path, mirrors=[server.url + "/bad/"])
    assert list(tmp_path.iterdir()) == []


def test_no_mirror_answers(small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mirror = "http://127.0.0.1:9/"  # the discard port: nothing listens
    with pytest.raises(RunFailed, match=r"127\.0\.0\.1:9"):
        fetch_mnist(tmp_path, mirrors=[mirror])
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (mirror,))
    monkeypatch.delenv("RNNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(BadInput, match=r"rnnbench data fetch mnist.*--data-dir") as caught:
        load_mnist()
    assert "\n" not in str(caught.value)


def test_without_a_named_directory_it_is_fetched_into_the_cache(
    server: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (serve(server, small),))
    monkeypatch.delenv("RNNBENCH_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert load_mnist().canonical
    assert (tmp_path / "rnnbench" / "mnist").is_dir()


def test_a_named_directory_is_never_filled_by_itself(
    server: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "MNIST_MIRRORS", (serve(server, small),))
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path / "typo"))
    with pytest.raises(BadInput, match=r"typo.*rnnbench data fetch mnist"):
        load_mnist()
    assert server.asked == []


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST/raw"])
@pytest.mark.parametrize("packed", [True, False])
def test_where_files_are_looked_for(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, packed: bool
) -> None:
    directory = tmp_path / folder
    directory.mkdir(parents=True, exist_ok=True)
    for name, body in small.items():
        (directory / (name if packed else name.removesuffix(".gz"))).write_bytes(
            body if packed else gzip.decompress(body)
        )
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    data = load_mnist()
    assert data.canonical
    assert data.hash == hashlib.sha256("\n".join(f.sha256 for f in datasets.MNIST_FILES.values()).encode()).hexdigest()


def test_other_bytes_work_and_are_said_to_be_other(
    small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changed = CONTENT["train_images"].copy()
    changed[0, 0, 0] += 1
    for name, body in small.items():
        (tmp_path / name).write_bytes(body)
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    canonical = load_mnist().hash
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(pack(idx(changed)))
    data = load_mnist()  # a changed file is read anew
    assert not data.canonical
    assert data.hash != canonical
    assert data.arrays["train_images"][0, 0] == 1


def test_label_out_of_range(small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, body in small.items():
        (tmp_path / name).write_bytes(body)
    labels = np.array([0, 9, 1, 10, 2, 255], dtype=np.uint8)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(pack(idx(labels)))
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    with pytest.raises(CorruptData, match=r"train-labels.*label 10 at place 3"):
        load_mnist()


def test_some_files_missing(small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, body = next(iter(small.items()))
    (tmp_path / name).write_bytes(body)
    monkeypatch.setenv("RNNBENCH_DATA", str(tmp_path))
    with pytest.raises(BadInput, match="no train-labels"):
        load_mnist()


def test_fetching_overwrites_nothing(server: Server, small: dict[str, bytes], tmp_path: Path) -> None:
    mine = tmp_path / "t10k-labels-idx1-ubyte.gz"
    mine.write_bytes(b"mine")
    with pytest.raises(BadInput, match="move it away"):
        fetch_mnist(tmp_path, mirrors=[serve(server, small)])
    assert mine.read_bytes() == b"mine"


def test_a_directory_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot be written"):
        fetch_mnist(tmp_path / "file" / "mnist", mirrors=[])


def test_full_disk(server: Server, small: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "_download", full)
    with pytest.raises(OutOfResources, match="disk is full"):
        fetch_mnist(tmp_path, mirrors=[serve(server, small)])


def test_unknown_data_set() -> None:
    with pytest.raises(BadInput, match="did you mean mnist"):
        fetch("mnits")
