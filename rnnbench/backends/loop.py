"""Scan as a Python loop, for the frameworks that run step by step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rnnbench.arrays import Array
from rnnbench.xp import Arrays, Body


def loop_scan(
    body: Body,
    carry: Arrays,
    columns: Mapping[str, Sequence[Array]],
    length: int,
    reverse: bool,
    stack: Callable[[Sequence[Array]], Array],
) -> tuple[Arrays, Arrays]:
    """Run ``carry, y = body(carry, {name: column[t], "t": t})`` over t; see `rnnbench.xp.Ops.scan`."""
    collected: dict[str, list[Array]] = {}
    for t in reversed(range(length)) if reverse else range(length):
        x = {name: column[t] for name, column in columns.items()}
        x["t"] = t
        carry, y = body(carry, x)
        for name, value in y.items():
            collected.setdefault(name, []).append(value)
    if reverse:
        for values in collected.values():
            values.reverse()
    return carry, {name: stack(values) for name, values in collected.items()}
