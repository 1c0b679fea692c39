"""Sizes of tensors' axes: products of a number and of the axes whose sizes are chosen at run time.

The exporter writes no others (no sums, no quotients of such axes), so that equal sizes look equal, none shrinks while
an axis grows, and what a graph needs at the largest sizes of its contract is the most that it can need.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import reduce


@dataclass(frozen=True)
class AxisSize:
    """A size: ``factor`` times the sizes of some named axes, sorted by name; one that is squared is there twice."""

    factor: int
    axes: tuple[str, ...] = ()

    def __mul__(self, other: AxisSize) -> AxisSize:
        axes = tuple(sorted(self.axes + other.axes)) if self.axes and other.axes else self.axes or other.axes
        return AxisSize(self.factor * other.factor, axes)

    def __str__(self) -> str:
        if not self.axes:
            return str(self.factor)
        return " * ".join(([str(self.factor)] if self.factor != 1 else []) + list(self.axes))

    def divided_by(self, other: AxisSize) -> AxisSize | None:
        """Return the quotient; None where it is none for some sizes of the axes."""
        if other.factor == 0 or self.factor % other.factor or Counter(other.axes) - Counter(self.axes):
            return None
        left = Counter(self.axes) - Counter(other.axes)
        return AxisSize(self.factor // other.factor, tuple(sorted(left.elements())))

    def at(self, sizes: Mapping[str, int]) -> int:
        """Return the number that it is at some sizes of the axes."""
        number = self.factor
        for axis in self.axes:
            number *= sizes[axis]
        return number


TensorShape = tuple[AxisSize, ...]

NONE, ONE = AxisSize(0), AxisSize(1)


def product(sizes: Iterable[AxisSize]) -> AxisSize:
    """Return the product of sizes, 1 where there are none."""
    return reduce(AxisSize.__mul__, sizes, ONE)


def as_text(shape: TensorShape) -> str:
    """Return a shape as it is written: (images, 261, 192)."""
    return f"({', '.join(map(str, shape))})"
