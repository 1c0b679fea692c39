"""The time that measuring may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeAlias

Clock: TypeAlias = Callable[[], float]
"""Returns seconds."""


class Budget:
    """Seconds that may be spent from now on. Who measures asks before each run whether it still fits.

    Attributes:
        clock: what the seconds are counted by.
    """

    def __init__(self, seconds: float, clock: Clock = time.perf_counter) -> None:
        self.clock, self._seconds = clock, seconds
        self._start = clock()

    def until(self, share: float) -> Budget:
        """Return the part that ends when a share of the whole, in 0..1, is over, however much of it is spent."""
        left = self._start + share * self._seconds - self.clock()
        return Budget(left, self.clock)

    def allows(self, seconds: float = 0.0) -> bool:
        """Return whether something that takes so long would end in time."""
        return self.clock() + seconds < self._start + self._seconds
