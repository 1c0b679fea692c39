"""What was passed over in a command that goes on after a bad item: each named, and counted at the end."""

from __future__ import annotations

from runtime.cli import exits
from runtime.errors import PatchcaptionError


class Reasons:
    """Why items were passed over. What nothing has come of yet is said only once something has."""

    def __init__(self) -> None:
        self._count, self._has_worked = 0, False
        self._waiting: list[PatchcaptionError] = []

    def add(self, reason: PatchcaptionError) -> None:
        """Count an item that was passed over, and name it."""
        self._count += 1
        if self._has_worked:
            exits.note(str(reason))
        else:
            self._waiting.append(reason)

    def worked(self) -> None:
        """Say that an item has a result."""
        self._has_worked = True
        for reason in self._waiting:
            exits.note(str(reason))
        self._waiting = []

    def report(self) -> None:
        """Say on stderr how many were passed over.

        Raises:
            PatchcaptionError: it was all that there was.
        """
        if self._waiting:
            first = self._waiting[0]
            others = f"; and {self._count - 1} more" if self._count > 1 else ""
            raise type(first)(f"{first}{others}")
        if self._count > 1:
            exits.note(f"{self._count} without a caption")
