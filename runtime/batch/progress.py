"""Says how far a run is: a bar on a terminal, elsewhere a line now and then."""

from __future__ import annotations

import sys
from collections.abc import Callable
from time import monotonic

from runtime.batch.extras import import_extra
from runtime.system.closeable import Closeable

_SECONDS_A_LINE = 60.0


class BatchProgress(Closeable):
    """How many images are done, and the time that is left.

    Args:
        total: images, of which ``done`` were by an earlier run.
        note: takes a line where no terminal does.
    """

    def __init__(self, total: int, done: int, note: Callable[[str], None]) -> None:
        self._tqdm = import_extra("tqdm", "batch", "progress").tqdm
        self._total, self._before, self._done, self._note = total, done, done, note
        self._start = self._last_line = monotonic()
        is_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar = self._tqdm(total=total, initial=done, unit=" images", dynamic_ncols=True) if is_terminal else None

    def add(self, images: int) -> None:
        """Count images that are done."""
        self._done += images
        if self._bar is not None:
            self._bar.update(images)
        elif monotonic() - self._last_line >= _SECONDS_A_LINE:
            self._last_line = monotonic()
            self._note(self._line())

    def close(self) -> None:
        """End the bar."""
        if self._bar is not None:
            self._bar.close()

    def _line(self) -> str:
        elapsed = monotonic() - self._start
        line: str = self._tqdm.format_meter(
            self._done, self._total, elapsed, ncols=0, unit=" images", initial=self._before
        )
        return line.strip()
