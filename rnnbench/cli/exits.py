"""How a command ends: every error is one line on stderr and an exit status, with a traceback only if asked for.

0 well · 1 it ran, and something in it failed · 2 bad input · 3 corrupt data or results · 4 locked by another process ·
5 out of disk or memory · 130 and 143 interrupted · 141 the reader of the output has gone.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from types import FrameType

import click

from rnnbench.errors import RnnbenchError, is_out_of_memory, quoted

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.ENOMEM)
_USERS_PATH = (
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.EROFS,
    errno.ENAMETOOLONG,
    errno.ELOOP,
)


class Terminated(KeyboardInterrupt):
    """SIGTERM arrived; whatever puts things in order on Ctrl-C does so here too."""


def exit_status(action: Callable[[], None], debug: Callable[[], bool]) -> int:
    """Run `action` and return the status to exit with, having said on stderr what went wrong.

    Args:
        action: what to do.
        debug: asked after an error whether a traceback is wanted.
    """
    with _sigterm_raises():
        try:
            action()
            sys.stdout.flush()
        except BaseException as error:  # everything, so that nothing reaches the user as a bare traceback
            return _ending(error, debug)
    return 0


def _ending(error: BaseException, debug: Callable[[], bool]) -> int:
    if _reader_gone(error):
        _discard(sys.stdout)
        return 128 + signal.SIGPIPE
    status, line = describe_error(error)
    with contextlib.suppress(OSError, ValueError):
        if debug() and not isinstance(error, (click.exceptions.Exit, SystemExit)):
            traceback.print_exception(error)
        if line:
            print(f"rnnbench: {line}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _discard(sys.stdout)
    return status


def describe_error(error: BaseException) -> tuple[int, str]:
    """Return the exit status and the line for an error; an empty line for what says nothing."""
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code, ""
    if isinstance(error, SystemExit):
        return (error.code, "") if isinstance(error.code, int) else (int(bool(error.code)), _clean(error.code or ""))
    if isinstance(error, RnnbenchError):
        return error.exit_status, _clean(error)
    if isinstance(error, click.ClickException):
        return error.exit_code, _usage(error)
    if isinstance(error, Terminated):
        return 128 + signal.SIGTERM, "terminated"
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return 128 + signal.SIGINT, "interrupted"
    if is_out_of_memory(error):
        return 5, f"out of memory; {_clean(error)}" if str(error) else "out of memory"
    if isinstance(error, OSError) and error.errno in _NO_SPACE:
        return 5, _os_error(error)
    if isinstance(error, OSError) and error.errno in _USERS_PATH and error.filename is not None:
        return 2, _os_error(error)
    return 1, f"{type(error).__name__}: {_clean(error)[:300]} (a bug in rnnbench or a plug-in; --debug shows where)"


def _usage(error: click.ClickException) -> str:
    """One line for click's own complaints, with the command that they are about."""
    context = getattr(error, "ctx", None)
    command = context.command_path.partition(" ")[2] if context else ""
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities or []
        hint = f"did you mean {' or '.join(sorted(near))}?" if near else f"see rnnbench {command} --help"
        message = f"no such option {quoted(error.option_name)}; {' '.join(hint.split())}"
    else:
        message = error.format_message().rstrip(".")
        message = message[:1].lower() + message[1:]
    return _clean(f"{command}: {message}" if command else message)


def _os_error(error: OSError) -> str:
    names = [quoted(name, 200) for name in (error.filename, error.filename2) if name is not None]
    return ": ".join([" -> ".join(names), error.strerror or str(error)]) if names else str(error.strerror or error)


def _clean(message: object) -> str:
    """Return a message on one line, with whatever a terminal would act upon escaped."""
    text = " ".join(str(message).split())
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def _reader_gone(error: BaseException) -> bool:
    """Whether the error is that nobody reads stdout any longer, and not some other pipe that broke."""
    if not isinstance(error, BrokenPipeError):
        return False
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
    except (AttributeError, OSError, ValueError):
        return False


def _discard(stream: object) -> None:
    """Point a stream that cannot be written to at nothing, so that the interpreter's last flush succeeds."""
    with contextlib.suppress(AttributeError, OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())  # type: ignore[attr-defined]  # guarded above


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Turn SIGTERM into `Terminated` while in here, unless someone else already handles it."""

    def raise_terminated(_number: int, _frame: FrameType | None) -> None:
        raise Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, raise_terminated)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
