"""How a training shows on the terminal: embedding, then steps, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from export.command_line import print_note
from export.training.losses import LossHistory
from export.training.processes import Processes

_STEPS_BETWEEN_REPORTS = 10


class TrainingProgress:
    """Shows a training on the terminal."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._embedding = progress.add_task("captions", visible=False, loss="")
        self._steps = progress.add_task("steps", visible=False, loss="")

    def embedded(self, done: int, captions: int) -> None:
        """Take the number of captions that have an embedding, of all of them."""
        self._progress.update(self._embedding, completed=done, total=captions, visible=done < captions)

    def step(self, done: int, steps: int, history: LossHistory) -> None:
        """Take the number of steps that are done, of all of them."""
        self._progress.update(self._steps, completed=done, total=steps, visible=True)
        if done % _STEPS_BETWEEN_REPORTS == 0 or done == steps:
            self._progress.update(self._steps, loss=f"loss {history.recent_loss():.3f}")

    def note(self, text: str) -> None:
        """Print a line for the user above the bars."""
        print_note(text, self._progress.console)


class _Stderr:
    """Stderr for what nothing depends on: if its disk is full or its terminal has gone, training goes on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            sys.stderr.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(sys.stderr, name)


@contextmanager
def show_training(processes: Processes) -> Iterator[TrainingProgress]:
    """Show a training until the end of the block, if this is the first of its processes."""
    console = Console(file=cast(IO[str], _Stderr()), quiet=not processes.is_first)
    times = (TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"))
    columns = (
        TextColumn("{task.description}"),
        MofNCompleteColumn(),
        BarColumn(),
        *times,
        TextColumn("{task.fields[loss]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield TrainingProgress(progress)
