"""The frames of files, cameras and URLs, decoded by PyAV."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import suppress
from fractions import Fraction
from itertools import chain, dropwhile
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError, VideoError
from runtime.image import require_within_limit
from runtime.video.addresses import VideoAddress, codec_limit, reason_of, start_of

if TYPE_CHECKING:
    import av

Picture: TypeAlias = "tuple[float | None, npt.NDArray[np.uint8]]"
"""The time of a frame in seconds, and its RGB pixels (H, W, 3)."""

SAME_TIME_S = 0.0005
"""Times nearer than this are the same: those of containers are rounded to milliseconds or finer."""
_SEEK_BACK_S = (0.0, 10.0, math.inf)
"""How far before a time its key frame is looked for: some containers are searched without an index, and missed."""


class VideoInput:
    """The first video stream behind an address, open. Frames that cannot be decoded are counted.

    Times are counted from the start of the container, whose own may be any: a broadcast's clock, for example.

    Args:
        timeout_s: how long it may take to open, and be silent, until it counts as lost; None for as long as it takes.

    Raises:
        VideoError: it cannot be opened, has no video, or its frames have too many pixels.
    """

    def __init__(self, address: VideoAddress, timeout_s: float | None = None) -> None:
        self._address, self._timeout_s = address, timeout_s
        self._container = address.open(timeout_s)
        try:
            self._stream = self._video_stream()
        except BaseException:
            self._container.close()
            raise
        self._origin_s = start_of(self._container)

    @property
    def frame_count(self) -> int | None:
        """How many frames there are; None where that is not known."""
        return self._stream.frames or None

    @property
    def rate(self) -> Fraction | None:
        """Frames in a second, on average; None where that is not known."""
        return self._stream.average_rate or None

    @property
    def has_sound(self) -> bool:
        """Whether there is sound beside the video."""
        return bool(self._container.streams.audio)

    @property
    def duration_s(self) -> float | None:
        """How long it is; None where that is not known, as of a camera."""
        duration = getattr(self._container, "duration", None)
        return None if duration is None or duration <= 0 else duration / 1e6

    @property
    def is_playlist(self) -> bool:
        """Whether the server says in a list where the video ends."""
        return {"hls", "dash"} & set(self._container.format.name.split(",")) != set()

    def pictures(
        self, start_s: float = 0.0, end_s: float = math.inf
    ) -> Generator[tuple[int, Picture | None], None, None]:
        """Yield the frames from one time up to another in order, each with its number; close the input at the end.

        A frame that cannot be decoded is None. After a start, numbers are those of the container's index of frames, or
        where it has none, those of the frames' times at its average rate.

        Raises:
            VideoError: it is lost, or its frames have no times to find the start and the end by.
        """
        with self._container:
            number, packets = self._packets_from(start_s) if start_s > 0 else (0, self._packets())
            for packet in packets:
                for decoded in self._decode(packet):
                    seconds = None if decoded is None else self._seconds(decoded)
                    if decoded is None:
                        yield number, None
                    elif self._is_after(seconds, end_s):
                        return
                    elif start_s <= 0 or self._is_after(seconds, start_s):
                        yield number, self._picture(decoded, seconds)
                    number += 1

    def _video_stream(self) -> av.VideoStream:
        if not self._container.streams.video:
            raise VideoError(f"{self._address.name}: there is no video in it")
        stream = self._container.streams.video[0]
        codec = stream.codec_context
        if codec is None:
            raise VideoError(f"{self._address.name}: cannot be opened: FFmpeg has no decoder for its video")
        try:
            require_within_limit(self._address.name, codec.width, codec.height)
        except ImageError as error:
            raise VideoError(str(error)) from None
        codec.options = {**codec.options, **codec_limit()}
        codec.thread_type = "AUTO"
        return stream

    def _packets(self) -> Iterator[av.Packet[Any]]:
        import av

        packets = self._container.demux(self._stream)
        while True:
            asked = monotonic()
            try:
                packet = next(packets, None)
            except av.error.ExitError:
                raise self._silent() from None
            except Exception as error:
                raise VideoError(f"{self._address.name}: lost: {reason_of(error)}") from None
            if packet is None:
                return
            # A parser holds one packet back, and gives it out when the time is over.
            was_silent = self._timeout_s is not None and monotonic() - asked >= self._timeout_s
            yield packet
            if was_silent:
                raise self._silent()

    def _silent(self) -> VideoError:
        return VideoError(f"{self._address.name}: lost: silent for {self._timeout_s:g} s")

    def _packets_from(self, start_s: float) -> tuple[int, Iterator[av.Packet[Any]]]:
        """Return the packets from the last key frame up to a time, and the number of its frame."""
        for back_s in _SEEK_BACK_S:
            target_s = max(0.0, start_s - back_s)
            if not self._seek(target_s):
                break
            packets = dropwhile(lambda packet: not packet.is_keyframe, self._packets())
            first = next(packets, None)
            if first is not None and (target_s == 0 or self._packet_time(first) <= start_s):
                return self._number_of(first) if target_s else 0, chain([first], packets)
        return 0, self._packets()

    def _seek(self, seconds: float) -> bool:
        """Go to a time or before it; return False for a format in which that cannot be done."""
        try:
            self._container.seek(round((self._origin_s + seconds) * 1e6) if seconds else 0)
        except Exception:
            return False
        return True

    def _packet_time(self, packet: av.Packet[Any]) -> float:
        ticks = packet.dts if packet.pts is None else packet.pts
        return math.inf if ticks is None else float(ticks * packet.time_base) - self._origin_s

    def _number_of(self, packet: av.Packet[Any]) -> int:
        """Return the number of the frame that a key frame's packet holds."""
        entries = [entry for entry in self._stream.index_entries if not entry.is_discard]
        is_complete = len(entries) == self._stream.frames or self._container.format.name == "avi"
        if packet.dts is not None and is_complete:
            return sum(entry.timestamp < packet.dts for entry in entries)
        return max(0, round(self._packet_time(packet) * (self.rate or 0)))

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame | None]:
        """Return the frames of a packet; None for one that cannot be decoded."""
        import av

        try:
            return list(packet.decode())
        except av.error.EOFError:
            return []
        except Exception:  # whatever a decoder raises at damaged data
            return [None]

    def _seconds(self, decoded: av.VideoFrame) -> float | None:
        with suppress(ArithmeticError):  # a time base of 0
            return None if decoded.time is None else decoded.time - self._origin_s
        return None

    def _is_after(self, seconds: float | None, limit_s: float) -> bool:
        """Return whether a frame is at or after a time."""
        if seconds is None:
            if limit_s == math.inf:
                return False
            raise VideoError(f"{self._address.name}: its frames have no times: start_s and end_s cannot be found")
        return seconds >= limit_s - SAME_TIME_S

    def _picture(self, decoded: av.VideoFrame, seconds: float | None) -> Picture | None:
        try:
            require_within_limit(self._address.name, decoded.width, decoded.height)
            return seconds, _upright(decoded)
        except Exception:  # a size or format that FFmpeg cannot convert, or we do not
            return None


def _upright(decoded: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Return RGB pixels (H, W, 3), rotated as players do: a phone stores how it was held beside the frames."""
    pixels = decoded.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    quarters = round(decoded.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels
