"""Ctrl-C and SIGTERM: they end a command with a status of their own, whatever becomes of the exception."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType
from typing import Any


class Interrupts:
    """The signals that a command was interrupted by.

    A signal raises `KeyboardInterrupt` and is remembered: the code that it is raised in, a library's or a user's, may
    swallow it or turn it into another error.

    Attributes:
        status: the exit status, 128 + the signal's number; 0 where there was none.
        remedy: how to go on, for the message.
    """

    def __init__(self) -> None:
        self.status, self.remedy = 0, ""

    def check(self) -> None:
        """Raise `KeyboardInterrupt` again if there was a signal."""
        if self.status:
            raise KeyboardInterrupt

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Catch the signals; those that the process was started to ignore stay ignored."""
        self.status, self.remedy = 0, ""
        before: dict[signal.Signals, Any] = {}
        if current_thread() is main_thread():
            before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
            before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, self._note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.status = 128 + number
        raise KeyboardInterrupt


interrupts = Interrupts()
"""Those of the command that runs."""
