"""Results with the time that they took."""

from __future__ import annotations

from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Timed(Generic[T]):
    """A result, and how long it took.

    Attributes:
        ms: of the work; where it was done together with others', of all of it.
    """

    value: T
    ms: float


def ms_since(start: float) -> float:
    """Return the milliseconds since a time of `perf_counter`."""
    return round((perf_counter() - start) * 1000, 2)
