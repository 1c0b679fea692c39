"""SIGTERM and SIGHUP end a program as Ctrl-C does: by an exception, after which files are whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

_ENDING = (signal.SIGTERM, signal.SIGHUP)


class Terminated(KeyboardInterrupt):
    """Raised in the main thread by a signal that asks the program to end.

    Attributes:
        exit_code: what shells give a program that the signal has ended.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"ended by {signal.Signals(number).name}")
        self.exit_code = 128 + number


@contextmanager
def terminating() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise `Terminated` in this block.

    A signal that is ignored stays so, as nohup and some services ask for; other threads than the main one get none.
    """

    def end(number: int, _: FrameType | None) -> None:
        raise Terminated(number)

    with _handled({number: end for number in _ENDING if signal.getsignal(number) is signal.SIG_DFL}):
        yield


@contextmanager
def keeping_handlers() -> Iterator[None]:
    """Undo what a library in this block lets SIGINT, SIGTERM and SIGHUP do."""
    numbers = (signal.SIGINT, *_ENDING)
    with _handled({number: handler for number in numbers if (handler := signal.getsignal(number)) is not None}):
        yield


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and SIGHUP wait until the end of this block: it must be short."""
    waiting: list[tuple[int, FrameType | None]] = []

    def wait(number: int, frame: FrameType | None) -> None:
        waiting.append((number, frame))

    numbers = [number for number in (signal.SIGINT, *_ENDING) if callable(signal.getsignal(number))]
    try:
        with _handled(dict.fromkeys(numbers, wait)):
            yield
    finally:
        for number, frame in waiting[:1]:
            handler = signal.getsignal(number)
            if callable(handler):
                handler(number, frame)


@contextmanager
def _handled(handlers: Mapping[signal.Signals, Any]) -> Iterator[None]:
    """Have signals handled so in this block; nothing in other threads than the main one, which Python does not ask."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
