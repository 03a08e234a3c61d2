"""Names, plug-ins and what is broken about them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from rnnbench import registry
from rnnbench.errors import BadInput


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages: a sound plug-in, and ones whose entry points cannot be read."""
    good = tmp_path / "sound-1.0.dist-info"
    good.mkdir()
    (good / "METADATA").write_text("Metadata-Version: 2.1\nName: sound\nVersion: 1.0\n")
    (good / "entry_points.txt").write_text("[rnnbench.cells]\nmine = rnnbench.cells.rnn:RNN\n")
    for name, content in (("pair", b"[rnnbench.cells]\nno equals sign\n"), ("bytes", b"\xff\xfe[rnnbench.cells]\n")):
        bad = tmp_path / f"{name}-1.0.dist-info"
        bad.mkdir()
        (bad / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (bad / "entry_points.txt").write_bytes(content)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    registry._entry_points.cache_clear()
    registry.plugins.cache_clear()
    yield tmp_path
    registry._entry_points.cache_clear()
    registry.plugins.cache_clear()


@pytest.mark.usefixtures("site")
def test_entry_points_that_cannot_be_read_break_no_other() -> None:
    assert "mine" in registry.names("cells")
    assert registry.load("cells", "mine").name == "rnn"
    assert set(registry.unreadable()) == {"pair", "bytes"}
    assert all(registry.unreadable().values())


@pytest.mark.parametrize("name", ["rnnbench.errors:OUT_OF_MEMORY", "rnnbench.cells.rnn:RNN", "rnnbench.streams:stream"])
def test_what_is_no_backend_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="is not a backend"):
        registry.backend(name)
