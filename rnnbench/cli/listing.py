"""``rnnbench list``: what there is of one kind."""

from __future__ import annotations

import rich_click as click

from rnnbench import registry
from rnnbench.cli.common import Kind, console, emit_json, json_option, print_table, warn
from rnnbench.errors import BadInput, unknown

_KINDS = (*registry.KINDS, "devices")
_WIDE = 120  # columns of a terminal from which on there is room for the sources


@click.command(name="list")
@click.argument("kind", metavar=f"[{'|'.join(_KINDS)}]", required=False)
@json_option
def list_things(kind: str | None, as_json: bool) -> None:
    """List what there is of one kind, with version, source and a line about each.

    What cannot be loaded is listed with the reason, on stderr too, and hides nothing else.
    """
    if kind is None:
        raise BadInput(f"list: say what: {', '.join(_KINDS)}")
    if kind not in _KINDS:
        raise unknown("list", kind, _KINDS)
    if kind == "devices":
        from rnnbench.cli.devices import print_devices

        print_devices(as_json)
        return
    from rnnbench import registry
    from rnnbench.cli.catalog import entries

    found = entries(kind)
    for distribution, reason in registry.unreadable().items():
        warn(f"the entry points of {distribution} cannot be read, so its plug-ins are passed over; {reason}")
    for entry in found:
        if entry.error is not None:
            warn(entry.error)
    if as_json:
        emit_json([entry.as_json() for entry in found])
        return
    if not found:
        click.echo(f"no {kind} are installed")
        return
    columns: list[tuple[str, Kind]] = [("name", "name")]
    if kind == "suites":
        columns += [("arms", "number"), ("runs", "number")]
    else:
        columns += [("version", "text" if kind == "backends" else "number")]
    columns.append(("what it is", "text"))
    out = console()
    narrow = out.is_terminal and out.width < _WIDE
    if any(entry.source for entry in found) and not narrow:
        columns.append(("source", "text"))
    if any(entry.origin != "built in" for entry in found):
        columns.append(("from", "text"))
    rows = []
    for entry in found:
        details = entry.details or {}
        cells = {
            "name": entry.name,
            "version": entry.version,
            "arms": details.get("arms"),
            "runs": details.get("runs"),
            "what it is": f"cannot be loaded: {entry.error}" if entry.error else entry.summary,
            "source": entry.source,
            "from": entry.origin,
        }
        rows.append([cells[heading] for heading, _ in columns])
    print_table(columns, rows)
    if out.is_terminal:
        out.print(f"rnnbench show {found[0].name} tells more")
