"""SIGINT and SIGTERM as a flag that loops look at, so that a run ends between two steps with a checkpoint written."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Signals:
    """Which signal, if any, has asked this process to stop."""

    def __init__(self) -> None:
        self.caught: int | None = None

    def __call__(self) -> bool:
        """Whether a signal has come."""
        return self.caught is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Note a signal; a second one of SIGINT ends the process at once, for those who will not wait."""
        if self.caught is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.caught = number


@contextmanager
def catching() -> Iterator[Signals]:
    """Catch SIGINT and SIGTERM for the length of a block; in a thread that is not the main one, catch nothing."""
    signals = Signals()
    if threading.current_thread() is not threading.main_thread():
        yield signals
        return
    before = {number: signal.signal(number, signals.handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
