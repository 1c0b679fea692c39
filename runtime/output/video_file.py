"""A described stream in files: one JSON line a frame, and the frames with their captions drawn on them.

Both are written beside their places and put there at the end, whole; a stream that breaks off leaves what it came to.
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
from runtime.video.stream import FrameCaptions

if TYPE_CHECKING:
    import av

_TICKS_PER_SECOND = 90_000
_FRAMES_PER_SECOND = 10
"""Of sources that do not say when a frame was."""
_CODECS = ("libx264", "mpeg4")


class Recorder(Protocol):
    def add(self, described: FrameCaptions) -> None:
        """
        Raises:
            PatchcaptionError: it cannot be written.
        """
        ...


@contextmanager
def json_lines(path: Path) -> Iterator[Recorder]:
    """One JSON object a frame: number, seconds, dropped, latency_ms and captions."""
    with _put_in_place(path) as part, part.open("w", encoding="utf-8") as file:

        class Lines:
            def add(self, described: FrameCaptions) -> None:
                file.write(json.dumps(frame_as_json(described)) + "\n")

        yield Lines()


@contextmanager
def pictures(path: Path) -> Iterator[Recorder]:
    """A video of the frames with their captions, each at its time."""
    import av

    with _put_in_place(path) as part:
        try:
            container = av.open(str(part), "w")
        except (av.error.FFmpegError, ValueError) as error:
            raise PatchcaptionError(f"{path}: cannot be written: {error}") from None
        with container:
            recorder = _Pictures(container)
            try:
                yield recorder
            finally:
                recorder.end()


class _Pictures:
    """Draws frames and encodes them."""

    def __init__(self, container: av.container.OutputContainer) -> None:
        self._container = container
        self._stream: av.VideoStream | None = None
        self._last_tick = -1

    def add(self, described: FrameCaptions) -> None:
        import av

        picture = draw_captions(open_image(described.frame.image), described.captions)
        stream = self._stream or self._new_stream(picture.size)
        frame = av.VideoFrame.from_image(picture.resize((stream.width, stream.height)))  # type: ignore[no-untyped-call]
        seconds = described.frame.seconds
        if seconds is None:
            seconds = described.frame.number / _FRAMES_PER_SECOND
        self._last_tick = max(self._last_tick + 1, round(seconds * _TICKS_PER_SECOND))
        frame.pts, frame.time_base = self._last_tick, Fraction(1, _TICKS_PER_SECOND)
        self._container.mux(stream.encode(frame))

    def end(self) -> None:
        """Writes what the encoder still holds."""
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
def _put_in_place(path: Path) -> Iterator[Path]:
    """A place beside ``path`` to write to; it becomes ``path`` at the end, also of a stream that breaks off."""
    if not path.parent.is_dir():
        raise PatchcaptionError(f"{path}: the folder {path.parent} does not exist")
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
    except OSError as error:
        part.unlink(missing_ok=True)
        raise PatchcaptionError(f"{path}: cannot be written: {error}") from None
    finally:
        if part.exists():
            part.replace(path)
