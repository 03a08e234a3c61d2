"""``rnnbench data``: data sets on this machine."""

from __future__ import annotations

from typing import Any

import rich_click as click

from rnnbench.cli.common import Kind, console, data_dir_option, emit_json, json_option, print_table, printable
from rnnbench.cli.groups import Group
from rnnbench.errors import BadInput, RnnbenchError, RunFailed, unknown

SETS = {
    "mnist": "70,000 handwritten digits (LeCun, Cortes & Burges)",
    "digits": "1,797 handwritten digits of 8 by 8 pixels (UCI; part of scikit-learn)",
    "elnino": "sea-surface temperature, Niño 1+2, monthly 1950-2010 (NOAA ERSST; part of rnnbench)",
}
_DOWNLOADED = ("mnist",)


@click.group(cls=Group)
def data() -> None:
    """Fetch, list and verify data sets."""


@data.command()
@click.argument("name", metavar="mnist")
@data_dir_option
@json_option
def fetch(name: str, as_json: bool) -> None:
    """Download a data set; each file is checked against its sha256 before it is kept."""
    from rnnbench.tasks import datasets

    if name not in _DOWNLOADED:
        _refuse_bundled(name)
    with _Progress() as progress:
        folder = datasets.fetch(name, progress.advance)
    if as_json:
        emit_json({"name": name, "folder": str(folder)})
    else:
        click.echo(f"{name}: in {printable(folder)}")


@data.command(name="list")
@data_dir_option
@json_option
def list_sets(as_json: bool) -> None:
    """List the data sets, and which of them are on this machine."""
    rows = [_state(name) for name in SETS]
    if as_json:
        emit_json(rows)
        return
    columns: list[tuple[str, Kind]] = [("name", "name"), ("state", "text"), ("what it is", "text")]
    print_table(columns, [[row["name"], row["state"], row["summary"]] for row in rows])


@data.command()
@click.argument("name", metavar="[mnist]", default="mnist")
@data_dir_option
@json_option
def verify(name: str, as_json: bool) -> None:
    """Read a data set's files and compare them with the canonical bytes.

    Ends with status 3 when a file is damaged, and with 1 when all can be read but some are not the canonical bytes.
    """
    if name not in _DOWNLOADED:
        _refuse_bundled(name)
    from rnnbench.tasks.datasets import MNIST_FILES, load_mnist

    _never_download()
    found = load_mnist()
    rows: list[dict[str, Any]] = [
        {"file": file.name, "canonical": found.sha256[key] == file.sha256, "sha256": found.sha256[key]}
        for key, file in MNIST_FILES.items()
    ]
    if as_json:
        emit_json(rows)
    else:
        columns: list[tuple[str, Kind]] = [("file", "name"), ("canonical", "name"), ("sha256 when unpacked", "name")]
        cells = [[row["file"], "yes" if row["canonical"] else "no", row["sha256"]] for row in rows]
        print_table(columns, cells)
    if not found.canonical:
        raise RunFailed(f"{name}: readable, but not the canonical bytes; runs on them say so in their records")


def _refuse_bundled(name: str) -> None:
    if name not in SETS:
        raise unknown("data", name, SETS)
    raise BadInput(
        f"data: {name} comes with the installation: nothing to fetch or verify; give {' or '.join(_DOWNLOADED)}"
    )


def _state(name: str) -> dict[str, Any]:
    row: dict[str, Any] = {"name": name, "summary": SETS[name], "state": "comes with the installation"}
    if name in _DOWNLOADED:
        from rnnbench.tasks.datasets import data_root, load_mnist

        _never_download()
        try:
            found = load_mnist()
            row["state"] = f"in {data_root()}" + ("" if found.canonical else ", not the canonical bytes")
        except RnnbenchError as error:
            row["state"] = str(error)
    return row


def _never_download() -> None:
    """Name the directory that is used anyway: data that are not there are then an error, and not a download."""
    import os

    from rnnbench.tasks.datasets import ENVIRONMENT, data_root

    os.environ.setdefault(ENVIRONMENT, str(data_root()))


class _Progress:
    """A progress bar on a terminal, one line a file elsewhere, on stderr."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        self._console = console(error=True)
        self._terminal = self._console.is_terminal
        columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bars = Progress(*columns, console=self._console, disable=not self._terminal)
        self._known: dict[str, Any] = {}

    def __enter__(self) -> _Progress:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def advance(self, name: str, received: int, total: int) -> None:
        """Show that `received` of `total` bytes of a file have come."""
        if name not in self._known:
            self._known[name] = self._bars.add_task(name, total=total)
            if not self._terminal:
                self._console.print(f"{name}: {total:,} bytes")
        self._bars.update(self._known[name], completed=received)
