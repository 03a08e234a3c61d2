"""``rnnbench devices``: what each backend can compute on, and what the rest would need."""

from __future__ import annotations

import rich_click as click

from rnnbench.cli.common import emit_json, json_option, print_table


@click.command()
@json_option
def devices(as_json: bool) -> None:
    """Show which devices each backend sees, and for those that it does not see, why, and what would cure it."""
    print_devices(as_json)


def print_devices(as_json: bool) -> None:
    """Print every backend's devices as a table or as JSON."""
    from rnnbench.cli.catalog import device_rows

    rows = device_rows()
    if as_json:
        emit_json(rows)
        return
    print_table(
        [("backend", "name"), ("device", "name"), ("usable", "name"), ("what it is, or what it would need", "text")],
        [[row["backend"], row["device"], "yes" if row["available"] else "no", row["detail"]] for row in rows],
    )
