"""Turns at what several streams share, so that each gets as many as any other that wants them.

On a CPU the scheduler of the system sees to that. A GPU executes one call at a time, behind a lock that promises no
order.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock
from weakref import WeakKeyDictionary

from runtime.pipeline import Pipeline


class Party:
    """One that takes turns; it is forgotten when nobody holds it any more."""


class Turns:
    """Gives turns to parties: the next is whose last turn is longest ago, counted in turns.

    This is start-time fair queueing (Goyal, Vin and Cheng, 1997) with turns of equal weight: a party that was idle
    neither waits behind the others nor makes up for its idleness.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._at_once, self._running, self._arrivals = 1, 0, 0
        self._now = 0
        self._last_tags: WeakKeyDictionary[Party, int] = WeakKeyDictionary()
        self._waiting: list[tuple[int, int]] = []  # tags, and the order of arrival among equal ones

    def allow(self, at_once: int) -> None:
        """Let at least so many turns be taken at the same time."""
        with self._changed:
            self._at_once = max(self._at_once, at_once)
            self._changed.notify_all()

    @contextmanager
    def turn(self, party: Party) -> Iterator[None]:
        """Wait for a turn, and take it for the length of the block."""
        with self._changed:
            self._arrivals += 1
            place = (max(self._last_tags.get(party, -1) + 1, self._now), self._arrivals)
            self._last_tags[party] = place[0]
            self._waiting.append(place)
            self._changed.wait_for(lambda: self._running < self._at_once and min(self._waiting) == place)
            self._waiting.remove(place)
            self._running += 1
            self._now = place[0]
            self._changed.notify_all()
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()


@dataclass(frozen=True)
class StageTurns:
    """The turns of the two stages that streams share, which overlap."""

    encoding: Turns = field(default_factory=Turns)
    describing: Turns = field(default_factory=Turns)


def turns_of(pipeline: Pipeline) -> StageTurns | None:
    """Return the turns that all streams of a pipeline take; None where they need none."""
    if not _needs_turns(pipeline):
        return None
    with _lock:
        return _turns.setdefault(pipeline, StageTurns())


def _needs_turns(pipeline: Pipeline) -> bool:
    return pipeline.backend.device.type != "cpu"


_lock = Lock()
_turns: WeakKeyDictionary[Pipeline, StageTurns] = WeakKeyDictionary()
