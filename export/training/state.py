"""The state of a training on the disk, with which an interrupted run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, Protocol, cast

import torch

from export.checkpoint import CheckpointError
from runtime.system.files import part_name, write_atomically

_FILE = "state.pt"


class Restorable(Protocol):
    """A part of a training that can go on from where it was."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


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
        for part in self._path.parent.glob(part_name(self._path.with_stem("*"), "*").name):
            part.unlink(missing_ok=True)

    def load_into(self, **parts: Restorable) -> None:
        """Let parts of a training go on from the state that was saved last, if there is one.

        Args:
            parts: by their names in the state.

        Raises:
            CheckpointError: it cannot be read.
        """
        try:
            with self._path.open("rb") as file:
                state = torch.load(file, map_location="cpu", weights_only=True)
            for name, part in parts.items():
                part.load_state_dict(state[name])
        except FileNotFoundError:
            return
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
    with write_atomically(path) as part, part.open("wb") as file:
        watched = _Watched(file)
        try:
            torch.save(contents, cast(IO[bytes], watched))  # by the file's name, torch would name its records after it
            file.flush()
        except Exception:
            if watched.failure is None:
                raise
            raise watched.failure from None  # what torch makes of it says nothing


class _Watched:
    """A file that remembers how it failed.

    Attributes:
        failure: the first failure to write, or what interrupted it.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.failure: BaseException | None = None

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.failure = self.failure or error
            raise

    def flush(self) -> None:
        self._file.flush()
