"""Errors that a user meets: one line each, naming the place, the value and what would be right.

Each class carries the exit status that the command line ends with.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, ClassVar


class RnnbenchError(Exception):
    """Base of every error that rnnbench raises on purpose."""

    exit_status: ClassVar[int] = 1


class RunFailed(RnnbenchError):
    """Something ran, and failed (exit status 1)."""

    exit_status = 1


class BadInput(RnnbenchError):
    """The user's input cannot be used (exit status 2)."""

    exit_status = 2


class CorruptData(RnnbenchError):
    """A data set, a checkpoint or a record is not what it says it is (exit status 3)."""

    exit_status = 3


class NewerSchema(CorruptData):
    """A file is of a schema that only a newer rnnbench reads; nothing is wrong with it (exit status 3)."""


class Locked(RnnbenchError):
    """Another process is working on the same run (exit status 4)."""

    exit_status = 4


class OutOfResources(RnnbenchError):
    """Out of disk space or memory (exit status 5)."""

    exit_status = 5


class Interrupted(RnnbenchError):
    """A signal ended the work; `exit_status` is 128 plus its number (130 SIGINT, 143 SIGTERM)."""

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number
        self.exit_status = 128 + signal_number  # type: ignore[misc]  # the one status that depends on the instance


OUT_OF_MEMORY = ("RESOURCE_EXHAUSTED", "can't allocate memory", "out of memory", "Out of memory", "Unable to allocate")
"""How the frameworks say it, in the text of a RuntimeError."""


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out, the interpreter's or a framework's, without importing the framework."""
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY)


def quoted(value: Any, limit: int = 60) -> str:
    """Show `value` on one line: control characters escaped, long values shortened in the middle."""
    text = ascii(value)
    if len(text) > limit:
        text = f"{text[: limit // 2]}…{text[-limit // 4 :]} ({len(str(value))} characters)"
    return text


def unknown(place: str, name: str, options: Iterable[str]) -> BadInput:
    """Build the error for a misspelt name, with the nearest options or all of them when they are few."""
    known = sorted(options)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.55)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    elif known and len(known) <= 24:
        hint = f"known: {', '.join(known)}"
    elif known:
        hint = f"there are {len(known)} to choose from"
    else:
        hint = "there are none"
    return BadInput(f"{place}: unknown name {quoted(name)}; {hint}")
