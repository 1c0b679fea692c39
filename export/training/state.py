"""The state of a training on the disk, with which an interrupted run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from export.checkpoint import CheckpointError
from runtime.system.files import part_name, write_atomically

_FILE = "state.pt"


class SavedState:
    """A file in the folder of unfinished work; it is replaced as a whole, or not at all.

    Args:
        seconds: the least time between two of them.
        note: is told what went wrong while training goes on.
    """

    def __init__(self, work_dir: Path, seconds: float, note: Callable[[str], object]) -> None:
        self._path, self._seconds, self._note = work_dir / _FILE, seconds, note
        self._saved = time.monotonic()

    def remove_parts(self) -> None:
        """Remove what runs that were killed while they saved have left."""
        for part in self._path.parent.glob(part_name(self._path, "*").name):
            part.unlink(missing_ok=True)

    def load(self) -> Mapping[str, Any] | None:
        """Return the state that was saved last; None for a run that begins.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch raises many kinds
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise CheckpointError(
                f"{self._path}: cannot be read: {reason}; remove it to train from the beginning"
            ) from None

    def save_if_due(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Save the state if the last one is old enough. A disk that is full is told, and training goes on."""
        if time.monotonic() - self._saved < self._seconds:
            return
        try:
            self.save(state())
        except OSError as error:
            self._note(f"{self._path}: cannot be saved: {error.strerror or error}; training goes on, and tries again")
        self._saved = time.monotonic()

    def save(self, state: Mapping[str, Any]) -> None:
        """Save a state.

        Raises:
            OSError: it cannot be written.
        """
        save_whole(self._path, state)


def save_whole(path: Path, contents: Mapping[str, Any]) -> None:
    """Write a file of torch whole or not at all; the same contents make the same bytes.

    Raises:
        OSError: it cannot be written.
    """
    with write_atomically(path) as part, part.open("wb") as file:  # by its name, torch would name its records after it
        try:
            torch.save(contents, file)
        except RuntimeError as error:  # what torch makes of a full disk
            raise OSError(f"{error.__cause__ or error}".splitlines()[0]) from error
