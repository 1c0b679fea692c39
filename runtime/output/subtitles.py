"""Writes a stream's captions as subtitles, SubRip (.srt) or WebVTT (.vtt)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from runtime.output.recording import FRAMES_PER_SECOND, Recorder, RecordFile, seconds_of
from runtime.system.outputs import Note, Output
from runtime.video.stream import FrameCaptions

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]+")
_ARROW = re.compile("-{2,}>")
_MARKUP = re.compile(r"(?<=[<{])")
_WORD_JOINER = "\u2060"
"""Has no width. Behind a bracket it keeps players of SubRip from reading a tag there; that format has no escapes."""
_LEAST_CUE_S = 0.001


@dataclass(frozen=True)
class SubtitleFormat:
    """How cues are written.

    Attributes:
        header: what the file begins with.
        decimal_mark: between seconds and milliseconds.
        is_numbered: whether each cue has a number before it.
        escape: makes a line of text harmless.
    """

    header: str
    decimal_mark: str
    is_numbered: bool
    escape: Callable[[str], str]

    def cue(self, number: int, start_s: float, end_s: float, lines: tuple[str, ...]) -> str:
        """Return a cue; numbers begin with 1."""
        times = f"{self._time(start_s)} --> {self._time(end_s)}"
        heading = [str(number)] if self.is_numbered else []
        return "\n".join([*heading, times, *map(self.escape, lines), "", ""])

    def _time(self, seconds: float) -> str:
        minutes, milliseconds = divmod(round(1000 * seconds), 60_000)
        whole, fraction = divmod(milliseconds, 1000)
        return f"{minutes // 60:02}:{minutes % 60:02}:{whole:02}{self.decimal_mark}{fraction:03}"


def _escape_srt(text: str) -> str:
    return _MARKUP.sub(_WORD_JOINER, _ARROW.sub("->", text))


def _escape_vtt(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


SUBRIP = SubtitleFormat("", ",", True, _escape_srt)
WEBVTT = SubtitleFormat("WEBVTT\n\n", ".", False, _escape_vtt)


@contextmanager
def subtitles(
    output: Output, note: Note, style: SubtitleFormat, rate: Fraction | None = None, start_s: float = 0.0
) -> Iterator[Recorder]:
    """Write a cue for as long as the captions of a frame stay the same, one line a region.

    A cue is written when its end is known, at the first frame with other captions; the last ends with its last frame.

    Args:
        note: as in `Output.growing`.
        rate: frames in a second, where they are known to come evenly.
        start_s: the time of the source that the subtitles count from.
    """
    with output.growing(note) as file:
        recorder = _SubtitleRecorder(
            RecordFile(output, file), style, 1 / (rate or Fraction(FRAMES_PER_SECOND)), start_s
        )
        try:
            yield recorder
        finally:
            recorder.end()


class _SubtitleRecorder:
    def __init__(self, file: RecordFile, style: SubtitleFormat, frame_s: Fraction, start_s: float) -> None:
        self._file, self._style, self._start_s = file, style, start_s
        self._lines: tuple[str, ...] = ()
        self._since = self._last = 0.0
        self._frame_s = float(frame_s)
        self._frames = self._cues = 0

    def add(self, described: FrameCaptions) -> None:
        """Go on with the cue, or write it and begin the next."""
        seconds = max(seconds_of(described) - self._start_s, self._last)
        lines = tuple(filter(None, (_one_line(caption.text) for caption in described.captions)))
        if lines != self._lines or not self._frames:
            self._write_cue(seconds)
            self._lines, self._since = lines, seconds
        self._last = seconds
        self._frames += 1

    def end(self) -> None:
        """Write the last cue; a file of frames without captions is not empty either."""
        self._write_cue(self._last + self._frame_s)
        self._lines = ()
        if self._frames and not self._file.has_content:
            self._file.append(self._style.header or "\n")

    def _write_cue(self, end_s: float) -> None:
        if not self._lines:
            return
        self._cues += 1
        cue = self._style.cue(self._cues, self._since, max(end_s, self._since + _LEAST_CUE_S), self._lines)
        self._file.append(cue if self._file.has_content else self._style.header + cue)


def _one_line(text: str) -> str:
    return " ".join(_CONTROLS.sub(" ", text).split())
