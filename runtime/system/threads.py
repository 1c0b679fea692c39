"""Threads: their end before the interpreter is finalized, and errors that pass from one to another.

A daemon thread that is in native code at the end is unwound by force, and C++ ends the whole process for it.
"""

from __future__ import annotations

import asyncio
import atexit
from collections.abc import Callable, Sequence
from threading import Thread, current_thread
from time import monotonic
from typing import TypeVar
from weakref import WeakSet

from runtime.system.closeable import Closeable
from runtime.system.forks import is_forked

T = TypeVar("T")


def close_at_exit(owner: Closeable) -> None:
    """Close an object that has threads at the end of the program, if it is still there then."""
    _owners.add(owner)


def join_all(threads: Sequence[Thread], timeout_s: float) -> bool:
    """Wait until threads have ended, together at most ``timeout_s``; return whether they have."""
    until = monotonic() + timeout_s
    for thread in threads:
        if thread is not current_thread() and thread.ident is not None:
            thread.join(max(0.0, until - monotonic()))
    return not any(thread.is_alive() for thread in threads)


def passable(error: BaseException) -> BaseException:
    """Return an error of one thread as another may raise it.

    A StopIteration would end an iterator as if it were complete, and no future of asyncio takes one.
    """
    if not isinstance(error, StopIteration):
        return error
    replacement = RuntimeError("StopIteration was raised where no iterator is")
    replacement.__cause__ = error
    return replacement


async def call_in_thread(function: Callable[[], T]) -> T:
    """Do what `asyncio.to_thread` does, for functions that may raise anything."""

    def call() -> T:
        try:
            return function()
        except StopIteration as error:
            raise passable(error) from error

    return await asyncio.to_thread(call)


def _close_all() -> None:
    if not is_forked():  # its threads are the parent's
        for owner in list(_owners):
            owner.close()


_owners: WeakSet[Closeable] = WeakSet()
atexit.register(_close_all)
