from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rnnbench.errors import BadInput, CorruptData, OutOfResources
from rnnbench.record import RunRecord, Status, write_sealed
from rnnbench.store import RunFolder, Store, archive
from rnnbench.store.archive import check_archive, export_archive, import_archive
from rnnbench.store.files import hash_of
from rnnbench.store.inspect import verify_run

Finished = Callable[..., RunFolder]
Make = Callable[..., RunRecord]
Member = tuple[str, bytes]


@pytest.fixture
def packed(tmp_path: Path, store: Store, finished: Finished) -> Path:
    finished("a")
    finished("b", suite="other")
    export_archive(store.folders(), tmp_path / "results.tar.gz")
    return tmp_path / "results.tar.gz"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Store:
    return Store(tmp_path / "elsewhere")


def tree(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def members(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        return [(member.name, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]  # plain files


def pack(path: Path, entries: list[Member | tuple[tarfile.TarInfo, bytes]]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in entries:
            member = tarfile.TarInfo(name) if isinstance(name, str) else name
            if member.isreg():
                member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_out_and_in_again_is_the_same(packed: Path, store: Store, elsewhere: Store) -> None:
    outcome = import_archive(packed, elsewhere)
    assert [folder.suite for folder in outcome.added] == ["other", "suite"]
    assert tree(elsewhere.root) == tree(store.root)
    assert not [fault for folder in elsewhere.folders() for fault in verify_run(folder)]
    before = {path: path.stat().st_mtime_ns for path in elsewhere.root.rglob("*")}
    again = import_archive(packed, elsewhere)
    assert len(again.unchanged) == 2
    assert not again.added
    assert {path: path.stat().st_mtime_ns for path in elsewhere.root.rglob("*")} == before


def test_the_same_records_give_the_same_bytes(packed: Path, store: Store, tmp_path: Path) -> None:
    for folder in store.folders():
        os.utime(folder.path / "run.json", (1, 1))
    export_archive(store.folders()[::-1], tmp_path / "again.tgz")
    assert (tmp_path / "again.tgz").read_bytes() == packed.read_bytes()
    with tarfile.open(packed) as tar:
        assert {(m.uid, m.gid, m.uname, m.gname, m.mtime) for m in tar} == {(0, 0, "", "", 0)}


def test_lean_leaves_out_and_lists(store: Store, finished: Finished, tmp_path: Path, elsewhere: Store) -> None:
    run = finished("a")
    export_archive([run], tmp_path / "lean.tgz", lean=True)
    import_archive(tmp_path / "lean.tgz", elsewhere)
    (lean,) = elsewhere.folders()
    record, full = lean.record(), run.record()
    assert record is not None
    assert full is not None
    assert set(record.files) == {"metrics-00000.parquet"}
    assert {**record.files, **record.left_out} == full.files
    assert set(os.listdir(lean.path)) == {"run.json", "metrics-00000.parquet"}
    assert not verify_run(lean)
    assert lean.parameters("final") is None

    export_archive([run], tmp_path / "full.tgz")
    outcome = import_archive(tmp_path / "full.tgz", elsewhere)  # the full one completes the lean one
    assert [folder.path for folder in outcome.completed] == [lean.path]
    assert tree(elsewhere.root) == tree(store.root)
    outcome = import_archive(tmp_path / "lean.tgz", elsewhere)  # and the lean one takes nothing away
    assert len(outcome.unchanged) == 1
    assert tree(elsewhere.root) == tree(store.root)


def test_another_run_of_the_same_digest_is_refused_and_the_rest_comes(
    packed: Path, elsewhere: Store, make_record: Make
) -> None:
    (original,) = [r for r, _ in check_archive(packed, elsewhere) if r.suite == "suite"]
    there = elsewhere.folder(original.suite, original.digest)
    with there.lock():
        there.writer().finish(original.model_copy(update={"steps": 99}))
    before = tree(there.path)
    outcome = import_archive(packed, elsewhere)
    assert [folder.path for folder, _ in outcome.refused] == [there.path]
    assert "other content" in outcome.refused[0][1]
    assert tree(there.path) == before
    assert [folder.suite for folder in outcome.added] == ["other"]


def test_an_unfinished_run_a_locked_one_and_a_broken_one_are_left_alone(packed: Path, elsewhere: Store) -> None:
    first, second = (elsewhere.folder(r.suite, r.digest) for r, _ in check_archive(packed, elsewhere))
    with first.lock():
        first.writer().checkpoint({"w": np.ones(2)}, {"step": 1})
    with Store(elsewhere.root).folder(second.suite, second.digest).lock():
        outcome = import_archive(packed, elsewhere)
    assert ["unfinished" in why or "working on it" in why for _, why in outcome.refused] == [True, True]
    assert first.checkpoint() is not None
    second.path.mkdir()
    (second.path / "run.json").write_bytes(b"")
    outcome = import_archive(packed, elsewhere)
    assert "is empty" in {f.path: why for f, why in outcome.refused}[second.path]


def test_leftovers_in_a_runs_folder_give_way(packed: Path, store: Store, elsewhere: Store) -> None:
    for record, _ in check_archive(packed, elsewhere):
        folder = elsewhere.folder(record.suite, record.digest)
        folder.path.mkdir(parents=True)
        (folder.path / "metrics-00007.parquet").write_bytes(b"from a process that was killed")
    import_archive(packed, elsewhere)
    assert tree(elsewhere.root) == tree(store.root)


def test_an_import_that_was_killed_is_repeated(
    packed: Path, store: Store, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = archive.write_file
    for allowed in range(8):
        calls = iter(range(100))

        def write(path: Path, data: bytes, calls: Any = calls, allowed: int = allowed) -> Any:
            if next(calls) >= allowed:
                raise KeyboardInterrupt
            return real(path, data)

        monkeypatch.setattr(archive, "write_file", write)
        with pytest.raises(KeyboardInterrupt):
            import_archive(packed, elsewhere)
        for folder in elsewhere.folders():
            assert folder.record() is None or not verify_run(folder)
        shutil.rmtree(elsewhere.root, ignore_errors=allowed == 0)
    monkeypatch.setattr(archive, "write_file", real)
    import_archive(packed, elsewhere)
    assert tree(elsewhere.root) == tree(store.root)


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


RUN = f"suite/{'0' * 64}"
STRANGE: list[tuple[str, Callable[[list[Member]], list[Any]], str]] = [
    ("traversal", lambda m: [*m, ("../../evil", b"x")], "not the name of a file"),
    ("inner traversal", lambda m: [*m, (f"suite/../{'0' * 64}/x", b"x")], "not the name of a file"),
    ("absolute", lambda m: [*m, ("/etc/evil", b"x")], "not the name of a file"),
    ("newline", lambda m: [*m, (f"{RUN}/a\nb", b"x")], "not the name of a file"),
    ("dash", lambda m: [*m, (f"{RUN}/-rf", b"x")], "not the name of a file"),
    ("hidden", lambda m: [*m, (f"{RUN}/.lock", b"x")], "not the name of a file"),
    ("long", lambda m: [*m, (f"{RUN}/{'x' * 300}", b"x")], "not the name of a file"),
    ("symlink", lambda m: [*m, (link(f"{RUN}/x", tarfile.SYMTYPE), b"")], "no plain file"),
    ("hard link", lambda m: [*m, (link(f"{RUN}/x", tarfile.LNKTYPE), b"")], "no plain file"),
    ("device", lambda m: [*m, (link(f"{RUN}/x", tarfile.CHRTYPE, ""), b"")], "no plain file"),
    ("fifo", lambda m: [*m, (link(f"{RUN}/x", tarfile.FIFOTYPE, ""), b"")], "no plain file"),
    ("folder", lambda m: [*m, (link(f"{RUN}/x", tarfile.DIRTYPE, ""), b"")], "no plain file"),
    ("name twice", lambda m: [*m, m[-1]], "is in it twice"),
    ("list twice", lambda m: [m[0], *m], "is in it twice"),
    ("unlisted run", lambda m: [*m, (f"{RUN}/run.json", b"{}")], "does not have"),
    ("unlisted file", lambda m: [*m, (m[-1][0].rpartition("/")[0] + "/more", b"x")], "not what its run's record lists"),
    ("no list", lambda m: m[1:], "no archive of rnnbench"),
    ("nothing", lambda m: [], "is empty"),
    ("run missing", lambda m: [e for e in m if not e[0].startswith("suite/")], "cut short"),
    ("file missing", lambda m: m[:-1], "cut short"),
    ("record last", lambda m: [m[0], *m[2:], m[1]], "comes before its run's record"),
    ("changed file", lambda m: [*m[:-1], (m[-1][0], m[-1][1][:-1] + b"!")], "hash that its run's record gives"),
    ("longer file", lambda m: [*m[:-1], (m[-1][0], m[-1][1] + b"!")], "not what its run's record lists"),
    (
        "changed record",
        lambda m: [m[0], (m[1][0], m[1][1].replace(b"lstm", b"gruu")), *m[2:]],
        "hash that its list gives",
    ),
    ("other format", lambda m: [(m[0][0], m[0][1].replace(b"archive-1", b"archive-2")), *m[1:]], "its format is"),
    ("list is NaN", lambda m: [(m[0][0], b'{"format": NaN}'), *m[1:]], "not strict JSON"),
]


@pytest.mark.parametrize(("change", "says"), [(c, s) for _, c, s in STRANGE], ids=[name for name, _, _ in STRANGE])
def test_a_hostile_archive_is_refused_before_anything_is_written(
    change: Callable[[list[Member]], list[Any]], says: str, packed: Path, elsewhere: Store, tmp_path: Path
) -> None:
    bad = pack(tmp_path / "bad.tgz", change(members(packed)))
    with pytest.raises(CorruptData, match=says) as caught:
        import_archive(bad, elsewhere)
    assert str(caught.value).isprintable()
    assert not elsewhere.root.exists()


def with_record(packed: Path, change: Callable[[dict[str, Any]], object], target: Path) -> Path:
    """Repack with a record that was changed by someone who knows how hashes work."""
    found = members(packed)
    values = json.loads(found[1][1])
    del values["sha256"]
    change(values)
    data = write_sealed(values)
    listed = json.loads(found[0][1])
    listed["runs"][0]["record"] = hash_of(data).model_dump()
    return pack(target, [(found[0][0], json.dumps(listed).encode()), (found[1][0], data), *found[2:]])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda r: r.update(schema_version=999), "install a newer rnnbench"),
        (lambda r: r.update(suite="suite"), "record of another run"),
        (lambda r: r.update(suite="../up"), "suite"),
        (lambda r: r["files"].update({"../../x": {"sha256": "0" * 64, "bytes": 1}}), "files"),
        (lambda r: r["files"].update({"run.json": {"sha256": "0" * 64, "bytes": 1}}), "files"),
        (lambda r: r["files"].update({"ghost": {"sha256": "0" * 64, "bytes": 1}}), "cut short"),
        (lambda r: r.update(more=1), "more"),
    ],
)
def test_a_record_made_to_deceive(
    change: Callable[[dict[str, Any]], object], says: str, packed: Path, elsewhere: Store, tmp_path: Path
) -> None:
    bad = with_record(packed, change, tmp_path / "bad.tgz")
    with pytest.raises(CorruptData, match=says):
        import_archive(bad, elsewhere)
    assert not elsewhere.root.exists()


def test_an_archive_that_grows_without_end_is_refused(
    packed: Path, elsewhere: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(archive, "EXPANSION_FREE", 1 << 16)
    bomb = tmp_path / "bomb.tgz"
    with gzip.open(bomb, "wb") as file:
        for _ in range(40):
            file.write(bytes(1 << 20))
    with pytest.raises(CorruptData, match="grows to more than"):
        import_archive(bomb, elsewhere)
    import_archive(packed, elsewhere)  # an honest one still passes


def test_an_archive_that_does_not_fit_is_refused(
    packed: Path, elsewhere: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        f_bavail, f_frsize = 1, 1

    monkeypatch.setattr(archive.os, "statvfs", lambda path: Full)
    with pytest.raises(OutOfResources, match="nothing was imported"):
        import_archive(packed, elsewhere)
    assert not elsewhere.root.exists()


def test_no_archive_at_all(elsewhere: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read"):
        import_archive(tmp_path / "nowhere.tgz", elsewhere)
    with pytest.raises(BadInput, match="cannot be read"):
        import_archive(tmp_path, elsewhere)
    (tmp_path / "page.html").write_text("<html>not found</html>")
    with pytest.raises(CorruptData, match="no whole gzip file"):
        import_archive(tmp_path / "page.html", elsewhere)
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(CorruptData, match=r"empty|no whole"):
        import_archive(tmp_path / "empty", elsewhere)


def test_every_kind_of_damage_is_noticed(packed: Path, elsewhere: Store, tmp_path: Path) -> None:
    data, dice, bad = packed.read_bytes(), random.Random(0), tmp_path / "bad.tgz"
    for _ in range(150):
        place = dice.randrange(10, len(data))  # after gzip's header, whose time and flags carry nothing
        flipped = bytes([data[place] ^ (1 << dice.randrange(8))])
        bad.write_bytes(data[:place] + (flipped + data[place + 1 :] if dice.random() < 0.7 else b""))
        with pytest.raises(CorruptData):
            import_archive(bad, elsewhere)
    assert not elsewhere.root.exists()


def test_damage_below_a_sound_checksum_is_noticed_or_harmless(packed: Path, elsewhere: Store, tmp_path: Path) -> None:
    plain, dice, bad = gzip.decompress(packed.read_bytes()), random.Random(1), tmp_path / "bad.tgz"
    sound = check_archive(packed, elsewhere)
    refused = 0
    for _ in range(150):
        place = dice.randrange(len(plain))
        bad.write_bytes(gzip.compress(plain[:place] + bytes([dice.randrange(256)]) + plain[place + 1 :], 1))
        try:
            assert check_archive(bad, elsewhere) == sound  # padding, or a member's mode and time
        except CorruptData:
            refused += 1
    assert refused > 50


def test_export_checks_what_it_packs(store: Store, finished: Finished, tmp_path: Path, make_record: Make) -> None:
    run = finished("a")
    target = tmp_path / "out.tgz"
    target.write_text("earlier")
    path = run.path / "final.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CorruptData, match="nothing was exported"):
        export_archive([run], target)
    assert target.read_text() == "earlier"
    with pytest.raises(BadInput, match="no record yet"):
        export_archive([store.folder("suite", "0" * 64)], target)
    assert not list(tmp_path.glob(".tmp-*"))
    assert make_record(status=Status.SOLVED).status.final
