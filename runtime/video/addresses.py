"""What FFmpeg may open, and how it is opened, by PyAV (`pip install 'patchcaption[video]'`).

Formats and protocols are listed: a playlist in place of a video would play whatever it names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from runtime.errors import VideoError
from runtime.image import max_pixels

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

    def open(self, timeout_s: float | None = None) -> av.container.InputContainer:
        """Open it.

        Args:
            timeout_s: how long it may take to open, and each packet to come; None for as long as it takes.

        Raises:
            VideoError: it cannot be opened.
        """
        try:
            import av
        except ImportError as error:
            raise VideoError(f"PyAV cannot be imported ({error}): pip install 'patchcaption[video]'") from None
        options = {
            "format_whitelist": self.formats,
            "protocol_whitelist": self.protocols,
            **codec_limit(),
            **self.options,
        }
        timeout = None if timeout_s is None else (timeout_s, timeout_s)
        try:
            return av.open(
                self.url, format=self.container_format, options=options, timeout=timeout, metadata_errors="replace"
            )
        except av.error.ExitError:
            raise VideoError(f"{self.name}: cannot be opened: no answer in {timeout_s:g} s") from None
        except av.error.ArgumentError as error:  # how FFmpeg refuses what is not on a list
            reason = "it is no video, or a playlist, which is read from http:// and https:// only"
            raise VideoError(f"{self.name}: cannot be opened: {reason_of(error)}: {reason}") from None
        except Exception as error:  # whatever PyAV raises at what is no video, or a damaged one
            raise VideoError(f"{self.name}: cannot be opened: {reason_of(error)}") from None


def codec_limit() -> dict[str, str]:
    """Return the option that keeps codecs from large frames, also while the format is found out."""
    limit = max_pixels()
    return {} if limit is None else {"max_pixels": str(min(2 * limit + _CODEC_PADDING, 2**31 - 1))}


def start_of(container: av.container.InputContainer) -> float:
    """Return when a container's streams start, by its own clock, in seconds: 0 or later."""
    return max(0, getattr(container, "start_time", None) or 0) / 1e6


def reason_of(error: Exception) -> str:
    """Return what an error of FFmpeg or PyAV says."""
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).strip()
