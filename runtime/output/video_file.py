"""Writes a stream's captions as an annotated video, with the sound of its source."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from fractions import Fraction
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from runtime.errors import ImageError, OptionError, PatchcaptionError, VideoError
from runtime.image import open_image
from runtime.output.drawing import draw_captions
from runtime.output.recording import FRAMES_PER_SECOND, seconds_of
from runtime.output.sound_track import SoundTrack
from runtime.system.outputs import Note, Output
from runtime.system.signals import uninterrupted
from runtime.video.sound import Sound
from runtime.video.stream import FrameCaptions

if TYPE_CHECKING:
    import av

_TICKS_PER_SECOND = 90_000
_CODECS: Mapping[str, dict[str, str]] = {"libx264": {"tune": "zerolatency"}, "mpeg4": {}}
"""Encoders with options by which they hold no frames back, which would be lost when the program is killed."""
_CODECS_OF_AVI = ("mpeg4", "libx264")
"""Players show H.264 in AVI a frame late, behind the sound."""
_SECONDS_PER_KEYFRAME = 5
_LARGEST_FRAME_BYTES = 2**20
_SOUND_AT_ONCE_S = 10.0
"""How much sound after the last frame is read at a time."""

_FORMATS: Mapping[str, str] = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska", ".avi": "avi"}
"""FFmpeg's containers by the endings of files."""
_STREAMED_FORMAT = "matroska"
"""The container for pipes and devices without an ending."""
_WITH_FRAGMENTS = frozenset({"mp4", "mov"})
_FRAGMENTED, _WHOLE_AT_THE_END = "empty_moov+default_base_moof", "hybrid_fragmented"
"""FFmpeg's flags for files that can be read as far as they are written; the second makes an ordinary one at the end."""
_HEAD_AT_ONCE = "+empty_moov"
"""Else the file begins when there is something of each stream."""
_LEAST_FRAGMENT_US = "1"
"""A fragment ends at the next packet of a stream that it has one of. With frag_every_frame it ends at the next of any
stream, and beside sound, FFmpeg 8 then gives frames the times of their successors."""


def video_format(output: Output) -> str:
    """Return FFmpeg's name of the container for an output.

    Raises:
        OptionError: it has no ending of a video.
    """
    if output.suffix in _FORMATS:
        return _FORMATS[output.suffix]
    if output.is_file:
        raise OptionError(f"{output}: expected a video's ending, .mp4 for example")
    return _STREAMED_FORMAT


@contextmanager
def annotated_video(
    output: Output, note: Note, rate: Fraction | None = None, sound: Sound | None = None, start_s: float = 0.0
) -> Iterator[AnnotatedVideo]:
    """Write a video of the frames with their captions drawn on them, each at its time.

    Args:
        output: the ending of its name chooses the container.
        note: as in `Output.growing`; also told why there is no sound.
        rate: frames in a second, where they are known to come evenly.
        sound: goes with the frames.
        start_s: the time of the source at which the video, and the part of its sound, begin.
    """
    container_format = video_format(output)
    with ExitStack() as stack:
        track = None
        if sound is not None:
            try:
                track = SoundTrack(stack.enter_context(sound.open()))
            except VideoError as error:
                note(f"{output}: without sound: {error}")
        if track is not None and track.is_at_end:  # the part has none
            track = None
        file = stack.enter_context(output.growing(note))
        # The encoder's own small writes are gathered in C, where no signal's handler comes between them, and where a
        # frame is in the file whole or not at all.
        buffer = file if output.is_stdout else io.BufferedWriter(cast(io.RawIOBase, file), _LARGEST_FRAME_BYTES)
        video = AnnotatedVideo(output, buffer, container_format, rate, track, start_s, note)
        try:
            yield video
        finally:
            with uninterrupted():
                video.end()


class AnnotatedVideo:
    """A video of frames with their captions drawn on them, that is being written. Made by `annotated_video`."""

    def __init__(
        self,
        output: Output,
        file: Any,
        container_format: str,
        rate: Fraction | None,
        sound: SoundTrack | None,
        start_s: float,
        note: Note,
    ) -> None:
        import av

        self._output, self._file, self._format = output, file, container_format
        self._rate = rate or Fraction(FRAMES_PER_SECOND)
        self._sound, self._start_s, self._note = sound, start_s, note
        self._stream: av.VideoStream | None = None
        self._last_tick, self._has_failed = -1, False
        self._frames, self._whole_bytes, self._sound_s = 0, 0, 0.0
        # What cannot seek is told by having no method for it.
        target = file if output.is_file else SimpleNamespace(write=file.write)
        with self._errors():
            self._container = av.open(
                target,
                "w",
                format=container_format,
                options=_container_options(container_format, output.is_file, sound is not None),
            )

    def add(self, described: FrameCaptions) -> None:
        """Append a frame, and the sound before it; see `Recorder.add`."""
        import av

        found = [caption for caption in described.captions if caption.error is None]
        try:
            image = draw_captions(open_image(described.frame.image), found)
        except ImageError:  # the stream has passed over it
            return
        # An interruption between a frame and the sound before it would leave sound alone where it is the first.
        with self._errors(), uninterrupted():
            stream = self._stream or self._new_streams(image.size)
            frame = av.VideoFrame.from_image(image.resize((stream.width, stream.height)))  # type: ignore[no-untyped-call]
            frame.pts, frame.time_base = self._tick(described), stream.codec_context.time_base
            self._mux_sound(float(frame.pts * frame.time_base))
            self._container.mux(stream.encode(frame))
            self._file.flush()
            self._frames += 1
            if self._output.is_file and self._frames > 1:  # a container may hold one back, so that one alone is none
                self._whole_bytes = self._file.tell()

    def add_rest_of_sound(self) -> None:
        """Append the sound after the last frame: to be called where that was the last of the source."""
        with self._errors():
            while self._stream is not None and self._sound is not None and not self._sound.is_at_end:
                self._sound_s += _SOUND_AT_ONCE_S
                self._mux_sound(self._sound_s)

    def end(self) -> None:
        """Write the sound of the last frame, what the encoder still holds, and what the container has at its end."""
        if self._has_failed:
            return
        with self._errors():
            if self._stream is not None:
                self._mux_sound(self._sound_s + float(1 / self._rate))
                self._container.mux(self._stream.encode())
            self._container.close()
            self._file.flush()

    def _mux_sound(self, seconds: float) -> None:
        """Write the sound up to a time."""
        import av

        self._sound_s = seconds
        if self._sound is None:
            return
        try:
            for packet in self._sound.packets_until(seconds):
                self._container.mux(packet)
        except (VideoError, av.error.ArgumentError, av.error.InvalidDataError) as error:  # the last two for the packet
            self._sound = None
            self._note(f"{self._output}: without the rest of the sound: {error}")

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
        seconds = seconds_of(described) - self._start_s
        assert self._stream is not None
        self._last_tick = max(self._last_tick + 1, round(seconds / float(self._stream.codec_context.time_base)))
        return self._last_tick

    def _new_streams(self, size_wh: tuple[int, int]) -> av.VideoStream:
        import av

        is_avi = self._format == "avi"
        codec = next(name for name in (_CODECS_OF_AVI if is_avi else _CODECS) if name in av.codecs_available)
        stream = cast("av.VideoStream", self._container.add_stream(codec, rate=self._rate, options=_CODECS[codec]))
        # Even sides: the colour planes of a video are half as large.
        stream.width, stream.height = (max(2, side // 2 * 2) for side in size_wh)
        stream.pix_fmt = "yuv420p"
        # Frames of AVI have no times, only a rate.
        stream.codec_context.time_base = 1 / self._rate if is_avi else Fraction(1, _TICKS_PER_SECOND)
        stream.codec_context.gop_size = max(1, round(self._rate * _SECONDS_PER_KEYFRAME))
        self._stream = stream
        if self._sound is not None:
            try:
                self._sound.add_to(self._container, self._format)
            except (VideoError, av.error.FFmpegError, ValueError) as error:
                self._sound = None
                self._note(f"{self._output}: without sound: {error}")
        return stream


def _container_options(container_format: str, can_seek: bool, has_sound: bool) -> dict[str, str]:
    options = {"flush_packets": "1", "max_interleave_delta": "1"}
    if container_format in _WITH_FRAGMENTS:
        options |= {"movflags": _WHOLE_AT_THE_END if can_seek else _FRAGMENTED, "frag_duration": _LEAST_FRAGMENT_US}
        if can_seek and has_sound:
            options["movflags"] += _HEAD_AT_ONCE
    elif container_format == "matroska":
        options["cluster_time_limit"] = "0"
    return options
