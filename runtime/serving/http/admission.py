"""The queue at the door: so many requests at a time, of so many bytes together."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from runtime.serving.http.errors import BUSY, RequestError
from runtime.serving.http.settings import ServiceLimits

_NEWEST = 0.1
"""What the last request counts in the mean time of one."""


class Ticket:
    """A place in the queue, and the bytes of the body that it has read."""

    def __init__(self, queue: Admission) -> None:
        self._queue, self.num_bytes = queue, 0

    def read(self, count: int) -> None:
        """Count bytes of the body.

        Raises:
            RequestError: the bodies of all requests are too large together.
        """
        self._queue.add_bytes(count)
        self.num_bytes += count


class Admission:
    """Counts the requests that are being answered; it belongs to the event loop's thread.

    Attributes:
        waiting: requests inside.
        num_bytes: of their bodies.
    """

    def __init__(self, limits: ServiceLimits) -> None:
        self._limits = limits
        self.waiting, self.num_bytes, self._mean_s = 0, 0, 0.0

    @contextmanager
    def ticket(self) -> Iterator[Ticket]:
        """Give a request a place until the end of the block.

        Raises:
            RequestError: there is none; it says when to come again.
        """
        if self.waiting >= self._limits.queue:
            raise self._busy(f"{self.waiting} requests wait already")
        self.waiting += 1
        ticket, start = Ticket(self), monotonic()
        try:
            yield ticket
        finally:
            self.waiting -= 1
            self.num_bytes -= ticket.num_bytes
            self._mean_s += _NEWEST * (monotonic() - start - self._mean_s)

    def add_bytes(self, count: int) -> None:
        """Count bytes of a body.

        Raises:
            RequestError: they are too many together with the others'.
        """
        if self.num_bytes + count > self._limits.queue_bytes:
            raise self._busy(f"the requests that wait have {self.num_bytes} bytes")
        self.num_bytes += count

    def _busy(self, reason: str) -> RequestError:
        """Return the refusal: by the time that one takes, a place is likely to be free."""
        seconds = max(1, math.ceil(self._mean_s))
        return RequestError(BUSY, f"{reason}; try again in {seconds} s", {"Retry-After": str(seconds)})
