"""What the commands share: tables, JSON, warnings and the options that several of them take."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import rich_click as click

from rnnbench.errors import BadInput, quoted

if TYPE_CHECKING:
    from rich.console import Console

Command = TypeVar("Command", bound=Callable[..., Any])

RESULTS = "rnnbench-results"
_PIPED_WIDTH = 100_000

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for a program to read.")


def _data_directory(_context: click.Context, _parameter: click.Parameter, value: str | None) -> None:
    if value is None:
        return
    if not Path(value).is_dir():
        raise BadInput(f"--data-dir: there is no folder {quoted(value, 200)}")
    os.environ["RNNBENCH_DATA"] = str(Path(value).absolute())  # so that worker processes see it too


def data_dir_option(command: Command) -> Command:
    """Add ``--data-dir``, which does what the variable RNNBENCH_DATA does; the command itself gets nothing of it."""
    return click.option(
        "--data-dir",
        metavar="FOLDER",
        callback=_data_directory,
        expose_value=False,
        help="Where data sets are (RNNBENCH_DATA says it too).",
    )(command)


def results_option(command: Command) -> Command:
    """Add ``--results``: the folder that run folders stand in, as a `Path` called `results`."""
    return click.option(
        "--results",
        default=RESULTS,
        envvar="RNNBENCH_RESULTS",
        show_envvar=True,
        show_default=True,
        metavar="FOLDER",
        callback=_folder,
        help="Where results go and are looked for.",
    )(command)


def _folder(_context: click.Context, _parameter: click.Parameter, value: str) -> Path:
    if not value.strip():
        raise BadInput("--results: an empty name; give a folder")
    return Path(value)


def console(error: bool = False) -> Console:
    """Return a console on stdout (or stderr) that cuts nothing off when its output goes to a file or a pipe.

    Text is printed as it is: no markup, no highlighting, no emoji codes.
    """
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise  # rich calls this while handling the BrokenPipeError, which ends the command quietly

    stream = sys.stderr if error else sys.stdout
    terminal = stream is not None and stream.isatty()
    return PlainConsole(
        stderr=error, width=None if terminal else _PIPED_WIDTH, markup=False, highlight=False, emoji=False
    )


def emit_json(value: Any) -> None:
    """Print `value` as strict JSON, in ASCII: whatever the names in it hold, a terminal acts upon none of it, and a
    stream of any encoding carries it unchanged.

    Raises:
        ValueError: when it holds a NaN or an infinity, which JSON has no word for.
    """
    click.echo(json.dumps(value, indent=2, allow_nan=False, ensure_ascii=True))


def warn(message: str) -> None:
    """Say on stderr, in one line, what does not stop the command."""
    click.echo(f"rnnbench: warning: {printable(message)}", err=True)


def printable(value: object) -> str:
    """Return `value` as text on one line with control characters escaped; None as nothing."""
    return escaped("" if value is None else " ".join(str(value).split()))


def escaped(line: str) -> str:
    """Return a line with control characters escaped and its spaces kept."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)


Kind = Literal["name", "text", "number"]


def print_table(columns: Sequence[tuple[str, Kind]], rows: Iterable[Sequence[object]]) -> None:
    """Print a table on stdout: on a terminal as wide as that, in a pipe one line a row with nothing cut.

    Args:
        columns: heading and kind of each column; names are never cut, texts wrap, numbers stand to the right.
        rows: cells, shown as they are.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    out = console()
    table = Table(box=box.SIMPLE_HEAD if out.is_terminal else None, pad_edge=False, padding=(0, 1))
    for heading, kind in columns:
        table.add_column(
            heading,
            justify="right" if kind == "number" else "left",
            no_wrap=kind != "text",
            overflow="fold",
            min_width=12 if kind == "text" else None,
        )
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))
    if out.is_terminal:
        out.print(table)
        return
    with out.capture() as captured:
        out.print(table)
    click.echo("\n".join(line.rstrip() for line in captured.get().splitlines()))
