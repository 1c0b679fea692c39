"""Files, cameras and URLs, opened and decoded by PyAV (`pip install 'patchcaption[video]'`).

What it may open is listed: a playlist in place of a video would play whatever it names.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import ImageError, VideoError
from runtime.image import max_pixels, require_within_limit

if TYPE_CHECKING:
    import av

_VIDEO_FORMATS = (
    "mov,matroska,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,mxf,nut,wtv,dv,gif,apng,ivf,obu,av1,h263,h264,hevc,vvc,m4v,mjpeg,"
    "yuv4mpegpipe,bmp_pipe,jpeg_pipe,jpegxl_pipe,png_pipe,tiff_pipe,webp_pipe"
)
"""FFmpeg's readers of one file, which name no others."""
_STREAM_FORMATS = f"{_VIDEO_FORMATS},hls,dash,live_flv,mpjpeg,mpegtsraw,rtp,rtsp,sdp"
_STREAM_PROTOCOLS = "http,https,httpproxy,tls,tcp,udp,udplite,rtp,rtmp,rtmps,rtmpt,rtmpts,srt,srtp,crypto,data"
"""All but those that read files of this machine."""

_CODEC_PADDING = 1 << 20
"""Codecs count the blocks and edges that they pad frames to; so they may have twice the limit, and this many pixels."""

Picture: TypeAlias = "tuple[float | None, npt.NDArray[np.uint8]]"
"""The time of a frame in seconds, and its RGB pixels (H, W, 3)."""


@dataclass(frozen=True)
class VideoAddress:
    """What FFmpeg opens, and how.

    Attributes:
        name: what errors call it.
        url: FFmpeg's name of it.
        container_format: the reader; None to find out.
        formats: the readers that may be found, by FFmpeg's names, separated by commas.
        protocols: the protocols that it may use.
        options: further options of FFmpeg.
    """

    name: str
    url: str
    container_format: str | None = None
    formats: str = _STREAM_FORMATS
    protocols: str = _STREAM_PROTOCOLS
    options: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_file(cls, path: str) -> VideoAddress:
        """Return the address of a file, which is only this file, whatever its name or content say."""
        return cls(path, f"file:{path}", formats=_VIDEO_FORMATS, protocols="file")

    @classmethod
    def of_camera(cls, device: str) -> VideoAddress:
        """Return the address of a camera of Video4Linux."""
        return cls(device, device, "v4l2", formats="v4l2,video4linux2", protocols="file")

    @classmethod
    def of_url(cls, url: str) -> VideoAddress:
        """Return the address of a URL, whose server can make FFmpeg open others, but no files."""
        return cls(url, url, options={"rtsp_transport": "tcp"} if url.startswith("rtsp") else {})


class VideoInput:
    """The first video stream behind an address, open. Frames that cannot be decoded are counted.

    Args:
        timeout_s: how long it may take to open, and be silent, until it counts as lost; None for as long as it takes.

    Raises:
        VideoError: it cannot be opened, has no video, or its frames have too many pixels.
    """

    def __init__(self, address: VideoAddress, timeout_s: float | None = None) -> None:
        try:
            import av
        except ImportError as error:
            raise VideoError(f"PyAV cannot be imported ({error}): pip install 'patchcaption[video]'") from None
        self._av, self._address, self._timeout_s = av, address, timeout_s
        self._container = self._open()
        try:
            self._stream = self._video_stream()
        except BaseException:
            self._container.close()
            raise

    @property
    def frame_count(self) -> int | None:
        """How many frames there are; None where that is not known."""
        return self._stream.frames or None

    @property
    def duration_s(self) -> float | None:
        """How long it is; None where that is not known, as of a camera."""
        duration = getattr(self._container, "duration", None)
        return None if duration is None or duration <= 0 else float(duration / self._av.time_base)

    @property
    def is_playlist(self) -> bool:
        """Whether the server says in a list where the video ends."""
        return {"hls", "dash"} & set(self._container.format.name.split(",")) != set()

    def pictures(self) -> Generator[Picture | None, None, None]:
        """Yield the frames in order, None for each that cannot be decoded; close the input at the end.

        Raises:
            VideoError: it is lost.
        """
        with self._container:
            for packet in self._packets():
                for decoded in self._decode(packet):
                    yield None if decoded is None else self._picture(decoded)

    def _open(self) -> av.container.InputContainer:
        options = {
            "format_whitelist": self._address.formats,
            "protocol_whitelist": self._address.protocols,
            **_codec_limit(),
            **self._address.options,
        }
        timeout = None if self._timeout_s is None else (self._timeout_s, self._timeout_s)
        try:
            return self._av.open(
                self._address.url,
                format=self._address.container_format,
                options=options,
                timeout=timeout,
                metadata_errors="replace",
            )
        except self._av.error.ExitError:
            raise VideoError(f"{self._address.name}: cannot be opened: no answer in {self._timeout_s:g} s") from None
        except Exception as error:  # whatever PyAV raises at what is no video, or a damaged one
            raise VideoError(f"{self._address.name}: cannot be opened: {self._reason(error)}") from None

    def _reason(self, error: Exception) -> str:
        if isinstance(error, self._av.error.ArgumentError):  # how FFmpeg refuses what is not on a list
            return f"{_message(error)}: it is no video, or a playlist, which is read from http:// and https:// only"
        return _message(error)

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
        codec.options = {**codec.options, **_codec_limit()}
        codec.thread_type = "AUTO"
        return stream

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except self._av.error.ExitError:
                raise VideoError(f"{self._address.name}: lost: silent for {self._timeout_s:g} s") from None
            except Exception as error:
                raise VideoError(f"{self._address.name}: lost: {_message(error)}") from None
            if packet is None:
                return
            yield packet

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame | None]:
        """Return the frames of a packet; None for one that cannot be decoded."""
        try:
            return list(packet.decode())
        except self._av.error.EOFError:
            return []
        except Exception:  # whatever a decoder raises at damaged data
            return [None]

    def _picture(self, decoded: av.VideoFrame) -> Picture | None:
        try:
            require_within_limit(self._address.name, decoded.width, decoded.height)
            return _seconds(decoded), _upright(decoded)
        except Exception:  # a size or format that FFmpeg cannot convert, or we do not
            return None


def _codec_limit() -> dict[str, str]:
    """Return the option that keeps codecs from large frames, also while the format is found out."""
    limit = max_pixels()
    return {} if limit is None else {"max_pixels": str(min(2 * limit + _CODEC_PADDING, 2**31 - 1))}


def _seconds(decoded: av.VideoFrame) -> float | None:
    with suppress(ArithmeticError):  # a time base of 0
        return decoded.time
    return None


def _upright(decoded: av.VideoFrame) -> npt.NDArray[np.uint8]:
    """Return RGB pixels (H, W, 3), rotated as players do: a phone stores how it was held beside the frames."""
    pixels = decoded.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    quarters = round(decoded.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _message(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
