"""Writes a stream's captions as JSON lines and as an annotated video.

Both grow as `Output.growing` says: a stream that breaks off, or is killed, leaves the frames that it came to.
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, cast

from runtime.errors import ImageError, PatchcaptionError
from runtime.image import open_image
from runtime.output.as_json import frame_as_json
from runtime.output.drawing import draw_captions
from runtime.system.outputs import Note, Output, write_whole
from runtime.system.signals import uninterrupted
from runtime.video.stream import FrameCaptions

if TYPE_CHECKING:
    import av

_TICKS_PER_SECOND = 90_000
_FRAMES_PER_SECOND = 10
"""The rate assumed of sources whose frames carry no time."""
_CODECS: Mapping[str, dict[str, str]] = {"libx264": {"tune": "zerolatency"}, "mpeg4": {}}
"""Encoders with options by which they hold no frames back, which would be lost when the program is killed."""
_SECONDS_PER_KEYFRAME = 5

_FORMATS: Mapping[str, str] = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
"""FFmpeg's containers by the endings of files."""
_STREAMED_FORMAT = "matroska"
"""The container for pipes and devices without an ending."""
_WITH_FRAGMENTS = frozenset({"mp4", "mov"})
_FRAGMENTED, _WHOLE_AT_THE_END = "frag_every_frame+empty_moov+default_base_moof", "frag_every_frame+hybrid_fragmented"
"""FFmpeg's flags for files that can be read as far as they are written; the second makes an ordinary one at the end."""


class Recorder(Protocol):
    """A file that grows by one frame at a time."""

    def add(self, described: FrameCaptions) -> None:
        """Append a frame and its captions.

        Raises:
            PatchcaptionError: it cannot be written.
            BrokenPipeError: the reader of a pipe has gone.
        """
        ...


@contextmanager
def json_lines(output: Output, note: Note) -> Iterator[Recorder]:
    """Write one JSON object a frame: number, seconds, dropped, latency_ms and captions.

    Each line is in the file once it is added, and there is no part of a line in it.
    """
    with output.growing(note) as file:
        yield _LineRecorder(output, file)


class _LineRecorder:
    def __init__(self, output: Output, file: BinaryIO) -> None:
        self._output, self._file, self._whole_bytes = output, file, 0

    def add(self, described: FrameCaptions) -> None:
        line = json.dumps(frame_as_json(described)).encode() + b"\n"
        with self._output.errors():
            try:
                write_whole(self._file, line)
            except BaseException:
                if self._output.is_file:
                    self._file.truncate(self._whole_bytes)
                raise
        self._whole_bytes += len(line)


def video_format(output: Output) -> str:
    """Return FFmpeg's name of the container for an output.

    Raises:
        PatchcaptionError: it has no ending of a video, or cannot be written.
    """
    if output.suffix in _FORMATS:
        return _FORMATS[output.suffix]
    if output.is_file:
        raise PatchcaptionError(f"{output}: expected a video's ending, .mp4 for example")
    return _STREAMED_FORMAT


@contextmanager
def annotated_video(output: Output, note: Note, rate: Fraction | None = None) -> Iterator[Recorder]:
    """Write a video of the frames with their captions drawn on them, each at its time.

    Args:
        output: the ending of its name chooses the container.
        note: as in `Output.growing`.
        rate: frames in a second, where they are known to come evenly.
    """
    container_format = video_format(output)
    with output.growing(note) as file:
        # The encoder's own small writes are gathered in C, where no signal's handler comes between them.
        buffer = file if output.is_stdout else io.BufferedWriter(cast(io.RawIOBase, file))
        recorder = _VideoRecorder(output, buffer, container_format, rate)
        try:
            yield recorder
        finally:
            with uninterrupted():
                recorder.end()


class _VideoRecorder:
    """An encoder of frames with their captions drawn on them."""

    def __init__(self, output: Output, file: Any, container_format: str, rate: Fraction | None) -> None:
        import av

        self._output, self._file, self._format, self._rate = output, file, container_format, rate
        self._stream: av.VideoStream | None = None
        self._last_tick, self._has_failed = -1, False
        self._frames, self._whole_bytes = 0, 0
        # What cannot seek is told by having no method for it.
        target = file if output.is_file else SimpleNamespace(write=file.write)
        with self._errors():
            self._container = av.open(
                target, "w", format=container_format, options=_container_options(container_format, output.is_file)
            )

    def add(self, described: FrameCaptions) -> None:
        import av

        found = [caption for caption in described.captions if caption.error is None]
        try:
            image = draw_captions(open_image(described.frame.image), found)
        except ImageError:  # the stream has passed over it
            return
        with self._errors():
            stream = self._stream or self._new_stream(image.size)
            frame = av.VideoFrame.from_image(image.resize((stream.width, stream.height)))  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = self._tick(described), stream.codec_context.time_base
            self._container.mux(stream.encode(frame))
            self._file.flush()
            self._frames += 1
            if self._output.is_file and self._frames > 1:  # a container may hold one back, so that one alone is none
                self._whole_bytes = self._file.tell()

    def end(self) -> None:
        """Write the frames that the encoder still holds, and what the container has at its end."""
        if self._has_failed:
            return
        with self._errors():
            if self._stream is not None:
                self._container.mux(self._stream.encode())
            self._container.close()
            self._file.flush()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        import av

        try:
            with self._output.errors():
                yield
        except (PatchcaptionError, BrokenPipeError):
            self._give_up()
            raise
        except (av.error.FFmpegError, ValueError) as error:
            self._give_up()
            raise PatchcaptionError(f"{self._output}: cannot be written: {error}") from None

    def _give_up(self) -> None:
        """Leave the file with the whole frames that are in it, and let nothing more come there."""
        self._has_failed = True
        if self._output.is_file:
            os.ftruncate(self._file.fileno(), self._whole_bytes)
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, self._file.fileno())
            os.close(nowhere)
        with suppress(Exception):  # the first error says why
            self._container.close()

    def _tick(self, described: FrameCaptions) -> int:
        """Return when a frame is shown, in the stream's unit of time, after the one before."""
        seconds = described.frame.seconds
        if seconds is None:
            seconds = described.frame.number / _FRAMES_PER_SECOND
        assert self._stream is not None
        self._last_tick = max(self._last_tick + 1, round(seconds / float(self._stream.codec_context.time_base)))
        return self._last_tick

    def _new_stream(self, size_wh: tuple[int, int]) -> av.VideoStream:
        import av

        codec = next(name for name in _CODECS if name in av.codecs_available)
        rate = self._rate or Fraction(_FRAMES_PER_SECOND)
        stream = cast("av.VideoStream", self._container.add_stream(codec, rate=rate, options=_CODECS[codec]))
        # Even sides: the colour planes of a video are half as large.
        stream.width, stream.height = (max(2, side // 2 * 2) for side in size_wh)
        stream.pix_fmt = "yuv420p"
        # Frames of AVI have no times, only a rate.
        stream.codec_context.time_base = 1 / rate if self._format == "avi" else Fraction(1, _TICKS_PER_SECOND)
        stream.codec_context.gop_size = max(1, round(rate * _SECONDS_PER_KEYFRAME))
        self._stream = stream
        return stream


def _container_options(container_format: str, can_seek: bool) -> dict[str, str]:
    options = {"flush_packets": "1"}
    if container_format in _WITH_FRAGMENTS:
        options["movflags"] = _WHOLE_AT_THE_END if can_seek else _FRAGMENTED
    elif container_format == "matroska":
        options["cluster_time_limit"] = "0"
    return options
