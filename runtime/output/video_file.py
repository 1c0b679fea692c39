"""Writes a stream's captions as JSON lines and as an annotated video.

Both files are written beside their paths and moved there at the end; a stream that breaks off leaves the frames that it
came to.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from runtime.errors import PatchcaptionError
from runtime.image import open_image
from runtime.output.as_json import frame_as_json
from runtime.output.drawing import draw_captions
from runtime.system.files import move_into_place, temporary_beside
from runtime.video.stream import FrameCaptions

if TYPE_CHECKING:
    import av

_TICKS_PER_SECOND = 90_000
_FRAMES_PER_SECOND = 10
"""The rate assumed of sources whose frames carry no time."""
_CODECS = ("libx264", "mpeg4")


class Recorder(Protocol):
    """A file that grows by one frame at a time."""

    def add(self, described: FrameCaptions) -> None:
        """Append a frame and its captions.

        Raises:
            PatchcaptionError: it cannot be written.
        """
        ...


@contextmanager
def json_lines(path: Path) -> Iterator[Recorder]:
    """Write one JSON object a frame: number, seconds, dropped, latency_ms and captions."""
    with _keeping_what_was_written(path) as part, part.open("w", encoding="utf-8") as file:

        class Lines:
            def add(self, described: FrameCaptions) -> None:
                file.write(json.dumps(frame_as_json(described)) + "\n")

        yield Lines()


@contextmanager
def annotated_video(path: Path) -> Iterator[Recorder]:
    """Write a video of the frames with their captions drawn on them, each at its time."""
    import av

    with _keeping_what_was_written(path) as part:
        part.unlink()  # FFmpeg makes it again with the first frame; a stream without frames leaves no video
        try:
            container = av.open(str(part), "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise PatchcaptionError(f"{path}: cannot be written: {error}") from None
        with container:
            recorder = _VideoRecorder(container)
            try:
                yield recorder
            finally:
                recorder.end()


class _VideoRecorder:
    """An encoder of frames with their captions drawn on them."""

    def __init__(self, container: av.container.OutputContainer) -> None:
        self._container = container
        self._stream: av.VideoStream | None = None
        self._last_tick = -1

    def add(self, described: FrameCaptions) -> None:
        import av

        image = draw_captions(open_image(described.frame.image), described.captions)
        stream = self._stream or self._new_stream(image.size)
        frame = av.VideoFrame.from_image(image.resize((stream.width, stream.height)))  # type: ignore[no-untyped-call]
        seconds = described.frame.seconds
        if seconds is None:
            seconds = described.frame.number / _FRAMES_PER_SECOND
        self._last_tick = max(self._last_tick + 1, round(seconds * _TICKS_PER_SECOND))
        frame.pts, frame.time_base = self._last_tick, Fraction(1, _TICKS_PER_SECOND)
        self._container.mux(stream.encode(frame))

    def end(self) -> None:
        """Write the frames that the encoder still holds."""
        if self._stream is not None:
            self._container.mux(self._stream.encode())

    def _new_stream(self, size_wh: tuple[int, int]) -> av.VideoStream:
        import av

        codec = next(name for name in _CODECS if name in av.codecs_available)
        stream = cast("av.VideoStream", self._container.add_stream(codec, rate=30))
        # Even sides: the colour planes of a video are half as large.
        stream.width, stream.height = (max(2, side // 2 * 2) for side in size_wh)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_SECOND)
        self._stream = stream
        return stream


@contextmanager
def _keeping_what_was_written(path: Path) -> Iterator[Path]:
    """Yield a file beside ``path``, which replaces ``path`` at the end, also that of a stream that breaks off.

    Only a file that itself could not be written leaves ``path`` as it was.
    """
    if not path.parent.is_dir():
        raise PatchcaptionError(f"{path}: the folder {path.parent} does not exist")
    try:
        with temporary_beside(path) as part:
            try:
                yield part
            except OSError:
                part.unlink(missing_ok=True)
                raise
            finally:
                if part.exists():
                    move_into_place(part, path)
    except OSError as error:
        raise PatchcaptionError(f"{path}: cannot be written: {error.strerror or error}") from None
