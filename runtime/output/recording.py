"""Files that grow by one described frame at a time, as `Output.growing` says.

A stream that breaks off, or is killed, leaves the frames that it came to.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol

from runtime.system.outputs import Output, write_whole
from runtime.video.stream import FrameCaptions

FRAMES_PER_SECOND = 10
"""The rate assumed of sources whose frames carry no time."""


class Recorder(Protocol):
    """A file that grows by one frame at a time."""

    def add(self, described: FrameCaptions) -> None:
        """Append a frame and its captions.

        Raises:
            PatchcaptionError: it cannot be written.
            BrokenPipeError: the reader of a pipe has gone.
        """
        ...


class RecordFile:
    """A file of records, which are in it once they are appended, and never in part."""

    def __init__(self, output: Output, file: BinaryIO) -> None:
        self._output, self._file = output, file
        self._whole_bytes, self._has_failed = 0, False

    @property
    def has_content(self) -> bool:
        return self._whole_bytes > 0

    def append(self, text: str) -> None:
        """Write a record, in UTF-8; halves of characters, which it cannot express, become question marks.

        After a failure nothing more is written, so that there is no gap.

        Raises:
            PatchcaptionError: it cannot be written.
            BrokenPipeError: the reader of a pipe has gone.
        """
        if self._has_failed:
            return
        record = text.encode(errors="replace")
        with self._output.errors():
            try:
                write_whole(self._file, record)
            except BaseException:
                self._has_failed = True
                if self._output.is_file:
                    self._file.truncate(self._whole_bytes)
                raise
        self._whole_bytes += len(record)


def seconds_of(described: FrameCaptions) -> float:
    """Return the time of a frame; where it carries none, that of its number at an assumed rate."""
    seconds = described.frame.seconds
    return described.frame.number / FRAMES_PER_SECOND if seconds is None else seconds
