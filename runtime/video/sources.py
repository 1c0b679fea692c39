"""Frames of a file, a camera, a URL, a folder or an iterable.

Files, cameras and URLs are read by PyAV (`pip install 'patchcaption[video]'`).
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
from PIL import Image

from runtime.errors import ImageError, VideoError
from runtime.image import ImageSource, open_image

if TYPE_CHECKING:
    import av

FrameSource: TypeAlias = "str | os.PathLike[str] | int | Iterable[ImageSource | Frame]"

_SECONDS_TO_OPEN, _SECONDS_TO_READ = 10.0, 10.0
"""Timeouts after which a silent URL or camera counts as lost."""
_SINGLE = (bytes, np.ndarray, torch.Tensor, Image.Image, dict)
"""Types that can be iterated over but are one image, or none."""
_IMAGE_SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Attributes:
        number: its index in the source, from 0; dropped and undecodable frames count too.
        seconds: its time from the start of the source; None where the source does not give it.
        image: anything that `Captioner.encode` takes.

    Example:
        >>> frames = [Frame(number, number / 30, scene) for number in range(3)]
        >>> [result.frame.seconds for result in captioner.stream(frames, [WholeImage()])]
        [0.0, 0.03333333333333333, 0.06666666666666667]
    """

    number: int
    seconds: float | None
    image: ImageSource


class Source(Protocol):
    """A source of frames."""

    @property
    def is_live(self) -> bool:
        """Whether frames are lost while they are not read."""
        ...

    @property
    def frame_count(self) -> int | None:
        """How many frames there are; None where that is not known."""
        ...

    @property
    def decode_errors(self) -> int:
        """How many frames could not be decoded so far."""
        ...

    def frames(self) -> Iterator[Frame]:
        """Yield all frames, in order; closing the iterator closes the source."""
        ...


def open_source(source: FrameSource) -> Source:
    """Open a folder of images, a camera by its number, a URL (with "://"), a file, or an iterable of images or frames.

    Raises:
        VideoError: there is nothing to read.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        return PyAvSource(f"/dev/video{source}", "v4l2", is_live=True)
    if isinstance(source, (str, os.PathLike)):
        if "://" in str(source):
            return PyAvSource(str(source), None, is_live=True)
        path = Path(source)
        if path.is_dir():
            return ImageFolder(path)
        if not path.exists():
            raise VideoError(f"{path}: no such file or folder")
        return PyAvSource(str(path), None, is_live=False)
    if isinstance(source, Iterable) and not isinstance(source, _SINGLE):
        return IterableSource(source)
    raise VideoError(
        "source: expected a file, a folder, a camera's number, a URL or an iterable of images, got "
        f"{type(source).__name__}"
    )


class IterableSource:
    """An iterable of images or frames; its own exceptions are passed on. A generator is closed at the end."""

    decode_errors = 0

    def __init__(self, images: Iterable[ImageSource | Frame]) -> None:
        self._images = images
        self.is_live = isinstance(images, Iterator)  # an iterator may be a camera
        self.frame_count = len(images) if isinstance(images, Sized) else None

    def frames(self) -> Iterator[Frame]:
        try:
            for number, image in enumerate(self._images):
                yield image if isinstance(image, Frame) else Frame(number, None, image)
        finally:
            if isinstance(self._images, Generator):
                self._images.close()


class ImageFolder:
    """The images in a folder, in order of their names. Unreadable ones are skipped and counted."""

    is_live = False

    def __init__(self, folder: Path) -> None:
        self._files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
        self.frame_count = len(self._files)
        self.decode_errors = 0
        if not self._files:
            raise VideoError(f"{folder}: no images in it")

    def frames(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            try:
                image = open_image(file)
            except ImageError:
                self.decode_errors += 1
                continue
            yield Frame(number, None, image)
        if self.decode_errors == len(self._files):
            raise VideoError(f"{self._files[0].parent}: none of its {self.decode_errors} images can be read")


class PyAvSource:
    """A file, camera or URL that PyAV opens. Packets that cannot be decoded are skipped and counted."""

    def __init__(self, url: str, container_format: str | None, is_live: bool) -> None:
        try:
            import av
        except ImportError as error:
            raise VideoError(f"PyAV cannot be imported ({error}): pip install 'patchcaption[video]'") from None
        self._av, self._url, self.is_live, self.decode_errors = av, url, is_live, 0
        options = {"rtsp_transport": "tcp"} if url.startswith("rtsp") else {}
        timeout = (_SECONDS_TO_OPEN, _SECONDS_TO_READ) if is_live else None
        try:
            self._container = av.open(url, format=container_format, options=options, timeout=timeout)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{url}: cannot be opened: {_message(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{url}: there is no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.frame_count = self._stream.frames or None

    def frames(self) -> Iterator[Frame]:
        number = -1
        with self._container:
            for packet in self._packets():
                for decoded in self._decode(packet):
                    number += 1
                    if decoded is not None:
                        yield Frame(number, decoded.time, _upright(decoded))
        if number + 1 == self.decode_errors:
            raise VideoError(f"{self._url}: no frame of it can be decoded")

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.error.FFmpegError, OSError) as error:
                raise VideoError(f"{self._url}: lost: {_message(error)}") from None
            if packet is None:
                return
            yield packet

    def _decode(self, packet: av.Packet[Any]) -> list[av.VideoFrame | None]:
        """Return the frames of a packet; None for one that cannot be decoded."""
        try:
            return list(packet.decode())
        except self._av.error.EOFError:
            return []
        except (self._av.error.FFmpegError, OSError):
            self.decode_errors += 1
            return [None]


def _upright(decoded: av.VideoFrame) -> np.ndarray[Any, Any]:
    """Return RGB pixels (H, W, 3), rotated as players do: a phone stores how it was held beside the frames."""
    pixels = decoded.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    quarters = round(decoded.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _message(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip()
