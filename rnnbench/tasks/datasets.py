"""MNIST's four files: where they are looked for, how they are fetched, and a strict reader of their format.

The directory is `RNNBENCH_DATA` where that is set (what ``--data-dir`` does), else the user's cache. Files that are not
the canonical bytes are read all the same, and said to be so.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import http.client
import math
import os
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO

import numpy as np

from rnnbench.arrays import NDArray
from rnnbench.errors import BadInput, CorruptData, OutOfResources, RnnbenchError, RunFailed, quoted, unknown

ENVIRONMENT = "RNNBENCH_DATA"
TIMEOUT = 20.0  # seconds without a byte
Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes received so far, and the bytes to come in all."""


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set in IDX format, and what its canonical bytes are.

    Attributes:
        name: the packed file's name.
        shape: the array's, images as [number 28 28].
        packed_size: bytes of the gzip file.
        packed_sha256: of the gzip file.
        sha256: of what it unpacks to.
    """

    name: str
    shape: tuple[int, ...]
    packed_size: int
    packed_sha256: str
    sha256: str

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the file goes by, packed or not."""
        plain = self.name.removesuffix(".gz")
        return self.name, plain, plain.replace("-idx", ".idx")


MNIST_FILES: dict[str, IdxFile] = {
    "train_images": IdxFile(
        "train-images-idx3-ubyte.gz",
        (60000, 28, 28),
        9912422,
        "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    "train_labels": IdxFile(
        "train-labels-idx1-ubyte.gz",
        (60000,),
        28881,
        "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    "test_images": IdxFile(
        "t10k-images-idx3-ubyte.gz",
        (10000, 28, 28),
        1648877,
        "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    "test_labels": IdxFile(
        "t10k-labels-idx1-ubyte.gz",
        (10000,),
        4542,
        "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
}
MNIST_MIRRORS: tuple[str, ...] = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)


@dataclass(frozen=True)
class Mnist:
    """MNIST in memory.

    Attributes:
        arrays: uint8 by the names of `MNIST_FILES`; images as [number 784].
        sha256: of each file's unpacked bytes.
    """

    arrays: Mapping[str, NDArray]
    sha256: Mapping[str, str]

    @property
    def canonical(self) -> bool:
        """Whether all four files unpack to the canonical bytes."""
        return all(self.sha256[key] == file.sha256 for key, file in MNIST_FILES.items())

    @property
    def hash(self) -> str:
        """SHA-256 of the four files' SHA-256, the same for packed and unpacked files."""
        return hashlib.sha256("\n".join(self.sha256[key] for key in MNIST_FILES).encode()).hexdigest()


def data_root() -> Path:
    """Return the directory for data sets: `RNNBENCH_DATA`, or the user's cache."""
    named = os.environ.get(ENVIRONMENT)
    if named:
        return Path(named)
    import pooch

    return Path(pooch.os_cache("rnnbench"))


def load_mnist() -> Mnist:
    """Return MNIST, read once a process; fetched into the cache when no directory is named and it is not there.

    Raises:
        BadInput: when there are no files, or some are missing or unreadable.
        CorruptData: when a file is not what it should be.
    """
    found = _find_mnist()
    if found is None and not os.environ.get(ENVIRONMENT):
        try:
            found = _complete(fetch_mnist())
        except (RunFailed, CorruptData) as error:
            raise BadInput(
                f"mnist: not on this machine, and it could not be fetched ({error}); `rnnbench data fetch mnist` tries "
                "again, --data-dir names a directory that holds its four files"
            ) from error
    if found is None:
        raise BadInput(
            f"mnist: no {MNIST_FILES['train_images'].name} in {quoted(str(data_root()), 120)}; "
            "`rnnbench data fetch mnist` downloads the four files, --data-dir names a directory that holds them"
        )
    stamps = tuple((path.stat().st_mtime_ns, path.stat().st_size) for path in found.values())
    return _read_mnist(tuple(found.items()), stamps)


@lru_cache(maxsize=1)
def _read_mnist(paths: tuple[tuple[str, Path], ...], _stamps: tuple[tuple[int, int], ...]) -> Mnist:
    arrays, hashes = {}, {}
    for key, path in paths:
        array, hashes[key] = read_idx(path, MNIST_FILES[key].shape)
        arrays[key] = array.reshape(len(array), -1) if array.ndim > 1 else array
        if array.ndim == 1 and int(array.max()) > 9:
            place = int(np.argmax(array > 9))
            raise CorruptData(
                f"{quoted(str(path), 120)}: label {int(array[place])} at place {place}; labels are 0 to 9"
            )
    return Mnist(arrays, hashes)


def _find_mnist() -> dict[str, Path] | None:
    """Return the four files' paths, or None when there is none of them."""
    root = data_root()
    for directory in (root, root / "mnist", root / "MNIST" / "raw"):
        if any((directory / name).is_file() for file in MNIST_FILES.values() for name in file.names):
            return _complete(directory)
    return None


def _complete(directory: Path) -> dict[str, Path]:
    """Return the paths of all four files in `directory`."""
    found: dict[str, Path] = {}
    for key, file in MNIST_FILES.items():
        here = [directory / name for name in file.names if (directory / name).is_file()]
        if not here:
            raise BadInput(f"mnist: {quoted(str(directory), 120)} holds some of the four files but no {file.name}")
        found[key] = here[0]
    return found


def read_idx(path: Path, shape: tuple[int, ...]) -> tuple[NDArray, str]:
    """Read an IDX file of unsigned bytes, packed with gzip or not, that must hold an array of `shape`.

    At most one byte more than the shape asks for is ever unpacked.

    Returns:
        The array, read-only uint8, and the SHA-256 of the unpacked file.

    Raises:
        CorruptData: on anything else than that array and nothing after it.
        BadInput: when the file cannot be opened.
    """
    place = quoted(str(path), 120)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            content = _unpack(gzip.GzipFile(fileobj=raw) if packed else raw, shape, place)
    except (gzip.BadGzipFile, zlib.error) as error:
        raise CorruptData(f"{place}: damaged gzip file ({error})") from None
    except EOFError:
        raise CorruptData(f"{place}: the gzip file is truncated") from None
    except OSError as error:
        raise BadInput(f"{place}: cannot be read; {error.strerror or error}") from None
    array = np.frombuffer(content, dtype=np.uint8, offset=_header(shape)).reshape(shape)
    return array, hashlib.sha256(content).hexdigest()


def _header(shape: tuple[int, ...]) -> int:
    return 4 + 4 * len(shape)


def _unpack(stream: IO[bytes] | gzip.GzipFile, shape: tuple[int, ...], place: str) -> bytes:
    """Return header and body, both checked."""
    header = stream.read(_header(shape))
    if not header:
        raise CorruptData(f"{place}: the file is empty")
    if header.lstrip()[:1] == b"<":
        raise CorruptData(f"{place}: an HTML page, not an IDX file; delete it and fetch it again")
    magic = bytes([0, 0, 8, len(shape)])
    if header[:4] != magic[: len(header[:4])]:
        raise CorruptData(
            f"{place}: starts with 0x{header[:4].hex()}, an IDX file of {len(shape)} dimensions with 0x{magic.hex()}"
        )
    if len(header) < _header(shape):
        raise CorruptData(f"{place}: truncated within its header")
    declared = tuple(int(n) for n in np.frombuffer(header, dtype=">u4", offset=4))
    if declared != shape:
        raise CorruptData(
            f"{place}: holds {'x'.join(map(str, declared))} values, where {'x'.join(map(str, shape))} are expected"
        )
    size = math.prod(shape)
    body = stream.read(size + 1)
    if len(body) < size:
        raise CorruptData(f"{place}: truncated; {len(body)} of {size} values")
    if len(body) > size:
        raise CorruptData(f"{place}: goes on after its {size} values")
    return header + body


def fetch(name: str, progress: Progress | None = None) -> Path:
    """Download the data set called `name` into `data_root()` and return its directory.

    Raises:
        BadInput: when there is no data set of that name, or the directory cannot be used.
        CorruptData: when every mirror sent something else than the canonical bytes.
        OutOfResources: when the disk is full.
        RunFailed: when no mirror could be reached.
    """
    if name != "mnist":
        raise unknown("data", name, ["mnist"])
    return fetch_mnist(progress=progress)


def fetch_mnist(
    directory: Path | None = None, mirrors: Sequence[str] | None = None, progress: Progress | None = None
) -> Path:
    """Download MNIST's four files, each from the first mirror that sends the canonical bytes; see `fetch`.

    Files that are there already are kept; one that is not canonical is never overwritten.
    """
    directory = data_root() / "mnist" if directory is None else directory
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file in MNIST_FILES.values():
            target = directory / file.name
            if not target.exists():
                _fetch_file(file, directory, MNIST_MIRRORS if mirrors is None else mirrors, progress)
            elif hashlib.sha256(target.read_bytes()).hexdigest() != file.packed_sha256:
                raise BadInput(
                    f"{quoted(str(target), 120)}: there already, and not the canonical file; move it away to fetch it"
                )
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OutOfResources(f"{quoted(str(directory), 120)}: the disk is full") from None
        raise BadInput(f"{quoted(str(directory), 120)}: cannot be written; {error.strerror or error}") from None
    return directory


class _UnreachableError(Exception):
    """A mirror did not answer, or answered with an error."""


class _WrongBytesError(Exception):
    """A mirror sent something else."""


def _fetch_file(file: IdxFile, directory: Path, mirrors: Sequence[str], progress: Progress | None) -> None:
    import pooch

    def download(url: str, output_file: str, _pooch: object) -> None:
        _download(url, Path(output_file), file, progress)

    logger = pooch.get_logger()
    level = logger.level
    failures: list[Exception] = []
    logger.setLevel("ERROR")  # the caller reports progress; pooch would write on stderr beside it
    try:
        for mirror in mirrors:
            try:
                pooch.retrieve(
                    mirror + file.name, "sha256:" + file.packed_sha256, file.name, directory, downloader=download
                )
                return
            except (_UnreachableError, _WrongBytesError) as error:
                failures.append(error)
            except ValueError:  # how pooch reports a hash that does not match
                failures.append(_WrongBytesError(f"{mirror + file.name}: not the canonical bytes (sha256 differs)"))
    finally:
        logger.setLevel(level)
    kind: type[RnnbenchError] = CorruptData if any(isinstance(e, _WrongBytesError) for e in failures) else RunFailed
    raise kind("; ".join(map(str, failures)) or f"{file.name}: no mirrors to fetch it from")


def _download(url: str, target: Path, file: IdxFile, progress: Progress | None) -> None:
    """Write what `url` sends to `target`, stopping one byte after the size that is expected."""
    size = 0
    request = urllib.request.Request(url, headers={"User-Agent": "rnnbench"})
    try:
        reply = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        raise _UnreachableError(f"{url}: HTTP status {error.code}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _UnreachableError(f"{url}: {getattr(error, 'reason', None) or error}") from None
    with reply, target.open("wb") as out:
        while size <= file.packed_size:
            try:
                chunk = reply.read(min(1 << 16, file.packed_size + 1 - size))
            except (OSError, http.client.HTTPException) as error:
                raise _UnreachableError(f"{url}: broke off after {size} bytes ({error})") from None
            if not chunk:
                break
            if size == 0 and chunk.lstrip()[:1] == b"<":
                raise _WrongBytesError(f"{url}: sent an HTML page")
            out.write(chunk)
            size += len(chunk)
            if progress is not None:
                progress(file.name, size, file.packed_size)
    if size != file.packed_size:
        more = "more than " if size > file.packed_size else f"{size} of "
        raise _WrongBytesError(f"{url}: sent {more}{file.packed_size} bytes")
