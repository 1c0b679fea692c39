"""A bounded queue between two threads, which may drop its oldest items."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Condition
from typing import Any, Generic, TypeVar

from runtime.system.threads import passable

T = TypeVar("T")


class BoundedQueue(Generic[T]):
    """Holds at most ``capacity`` items between two threads.

    Args:
        drops: whether the oldest item is dropped where the queue is full; else the producer waits.
    """

    def __init__(self, capacity: int, drops: bool) -> None:
        self._capacity, self._drops = capacity, drops
        self._items: deque[T] = deque()
        self._changed = Condition()
        self._has_ended, self._is_stopped = False, False
        self._error: BaseException | None = None
        self.dropped = 0
        self.dropped_at_get = 0

    def put(self, item: T) -> bool:
        """Add an item; return False once the consumer has stopped."""
        with self._changed:
            while len(self._items) >= self._capacity and not self._is_stopped:
                if self._drops:
                    self._items.popleft()
                    self.dropped += 1
                else:
                    self._changed.wait()
            if not self._is_stopped:
                self._items.append(item)
                self._changed.notify_all()
            return not self._is_stopped

    def end(self, error: BaseException | None = None) -> None:
        """Mark the end of the items; ``error``, of whatever class, is raised after those that are there."""
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify_all()

    def stop(self) -> None:
        """Discard all items: the consumer takes no more."""
        with self._changed:
            self._is_stopped = True
            self._items.clear()
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """Wait until `get` returns at once, at most for a time; return whether it does."""
        with self._changed:
            return self._changed.wait_for(lambda: bool(self._items) or self._has_ended or self._is_stopped, timeout_s)

    def get(self) -> T | None:
        """Wait for the oldest item and return it; None when there are no more, or `stop` was called.

        Raises:
            BaseException: the one that the items ended with, once.
        """
        with self._changed:
            while not self._items and not self._has_ended and not self._is_stopped:
                self._changed.wait()
            self.dropped_at_get = self.dropped
            if self._is_stopped:
                return None
            if self._items:
                item = self._items.popleft()
                self._changed.notify_all()
                return item
            error, self._error = self._error, None
            if error is not None:
                raise passable(error)
            return None


@contextmanager
def propagate_end(upstream: BoundedQueue[Any], downstream: BoundedQueue[Any]) -> Iterator[None]:
    """End the downstream queue when a stage ends, with the stage's error, and stop the upstream one."""
    try:
        yield
        downstream.end()
    except BaseException as error:  # also what is no Exception: nobody else hears of it in this thread
        downstream.end(error)
    finally:
        upstream.stop()
