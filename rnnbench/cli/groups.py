"""Command groups: near matches for misspelt commands, and commands that are imported only when they are invoked."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

import rich_click as click

from rnnbench.errors import unknown


class Group(click.RichGroup):
    """A group of commands that answers a misspelt one with the nearest."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Answer no arguments at all with the help, on stderr and with the status of a usage error."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            click.echo(ctx.get_help(), err=True)
            ctx.exit(2)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Look the command up; an unknown one is a usage error that names the nearest."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and self.get_command(ctx, name) is None:
            message = str(unknown("command", name, self.list_commands(ctx)))
            raise click.UsageError(message.replace("command: unknown name", "no such command"), ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(Group):
    """A group whose commands stand in a table and are imported when they are invoked, not to show the help.

    Args:
        table: from a command's name to (``module:attribute``, its help in one line).
    """

    def __init__(self, *args: Any, table: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.table = table

    def list_commands(self, _ctx: click.Context) -> list[str]:
        """Return the names in the table's order."""
        return list(self.table)

    def get_command(self, _ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a stand-in that knows the command's name and help; `resolve_command` brings the command itself."""
        if cmd_name not in self.table:
            return None
        return click.RichCommand(name=cmd_name, help=self.table[cmd_name][1])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Import the command that `args` begin with."""
        name, stand_in, rest = super().resolve_command(ctx, args)
        if stand_in is None or name is None:
            return name, stand_in, rest
        module, _, attribute = self.table[name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return name, command, rest
