"""Ends a command that is interrupted while it imports what it needs, which takes seconds."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

INTERRUPTED = 130
"""The code that shells give a program which Ctrl-C has ended."""


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let Ctrl-C end the process at once and in words: nothing was begun that is to be finished.

    As an exception it would pass through other packages, which report it as their own failure, or with a traceback.
    """
    is_mine = threading.current_thread() is threading.main_thread()
    if not is_mine or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # ignored, or another's
        yield
        return
    signal.signal(signal.SIGINT, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(_number: int, _frame: FrameType | None) -> None:
    try:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, b"patchcaption: error: interrupted\n")
    finally:
        os._exit(INTERRUPTED)
