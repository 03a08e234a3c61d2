"""The command line. This module knows each command's name and help line; a command's own module is imported when it is
invoked, so that ``rnnbench --help`` imports neither a framework nor a plotting library.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import rich_click as click

from rnnbench.cli.exits import exit_status
from rnnbench.cli.groups import LazyGroup

COMMANDS = {
    "run": ("rnnbench.cli.run:run", "Train: a suite, a TOML file, or a task with a cell or a model."),
    "list": ("rnnbench.cli.listing:list_things", "List what there is: tasks, cells, suites and so on."),
    "show": ("rnnbench.cli.show:show", "Show one thing: its equation, source and parameters."),
    "parity": ("rnnbench.cli.parity:parity", "Compare torch with JAX on the same run, step by step."),
    "analyze": ("rnnbench.cli.analyze:analyze", "Say what runs have to say: gradients, memory, dynamics, outcomes."),
    "results": ("rnnbench.cli.results:results", "List, show, export, import, verify and clean finished runs."),
    "data": ("rnnbench.cli.data:data", "Fetch, list and verify data sets."),
    "devices": ("rnnbench.cli.devices:devices", "Show which devices each backend sees, and what others would need."),
}


class Root(LazyGroup):
    """The command ``rnnbench`` itself, which turns whatever goes wrong into one line and an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run and exit with a status of `rnnbench.cli.exits`; with `standalone_mode` off, errors come out as raised."""
        name = prog_name or "rnnbench"
        if not standalone_mode:
            return super().main(args, name, complete_var, standalone_mode, **extra)
        self._main_shell_completion(extra, name, complete_var)
        wanted = list(sys.argv[1:] if args is None else args)
        options: dict[str, Any] = {}

        def invoke() -> None:
            with self.make_context(name, wanted, **extra) as context:
                options.update(context.params)
                self.invoke(context)

        sys.exit(exit_status(invoke, lambda: bool(options.get("debug"))))


def _show_version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"rnnbench {version('rnnbench')}")
        context.exit()


@click.command("rnnbench", cls=Root, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_show_version, help="Print the version."
)
def root(debug: bool) -> None:
    """Matched benchmarks and diagnosis for recurrent neural networks, on PyTorch and JAX."""


def main() -> NoReturn:
    """Run the command line and exit."""
    if sys.stdout is None:  # closed by whoever started us: what is printed goes nowhere
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # kept until the process ends
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # no stream at all, or one that cannot be set
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # TextIO does not declare it
    root.main(prog_name="rnnbench")
    raise AssertionError("unreachable: Root.main exits")
