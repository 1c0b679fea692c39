"""Frames of a file, a camera, an address, a folder or anything that can be iterated over.

Files, cameras and addresses are read by PyAV (`pip install 'patchcaption[video]'`).
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

from runtime.errors import ImageError, PatchcaptionError
from runtime.image import ImageSource, open_image

if TYPE_CHECKING:
    import av

FrameSource: TypeAlias = "str | os.PathLike[str] | int | Iterable[ImageSource | Frame]"

_SECONDS_TO_OPEN, _SECONDS_TO_READ = 10.0, 10.0
"""After which an address or camera that says nothing is lost."""
_SINGLE = (bytes, np.ndarray, torch.Tensor, Image.Image, dict)
"""What can be iterated over and is one image, or none."""
_PICTURES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class VideoError(PatchcaptionError):
    """A source that cannot be opened, has no frames, or is lost.

    Example:
        >>> captioner.stream("nowhere.mp4", [WholeImage()])
        Traceback (most recent call last):
            ...
        runtime.video.sources.VideoError: nowhere.mp4: no such file or folder
    """


@dataclass(frozen=True, eq=False)
class Frame:
    """One image of a stream.

    Attributes:
        number: its place in the source, from 0; of those that were dropped or broken too.
        seconds: when it was, from the start of the source; None where the source does not say.
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
    """What frames come from."""

    @property
    def is_live(self) -> bool:
        """Whether frames are lost while nobody reads."""
        ...

    @property
    def frame_count(self) -> int | None:
        """How many there will be, if that is known."""
        ...

    @property
    def broken(self) -> int:
        """How many could not be decoded so far."""
        ...

    def frames(self) -> Iterator[Frame]:
        """All of them, in order; closing the iterator gives the source back."""
        ...


def open_source(source: FrameSource) -> Source:
    """What ``source`` is: a folder of images, the number of a camera, an address with "://", a file, or an iterable of
    images or frames.

    Raises:
        VideoError: there is nothing to read.
    """
    if isinstance(source, int) and not isinstance(source, bool):
        return _Video(f"/dev/video{source}", "v4l2", is_live=True)
    if isinstance(source, (str, os.PathLike)):
        if "://" in str(source):
            return _Video(str(source), None, is_live=True)
        path = Path(source)
        if path.is_dir():
            return _Folder(path)
        if not path.exists():
            raise VideoError(f"{path}: no such file or folder")
        return _Video(str(path), None, is_live=False)
    if isinstance(source, Iterable) and not isinstance(source, _SINGLE):
        return _Images(source)
    raise VideoError(
        "source: expected a file, a folder, a camera's number, an address or an iterable of images, got "
        f"{type(source).__name__}"
    )


class _Images:
    """Whatever is iterated over; its own exceptions are passed on. A generator is closed at the end."""

    broken = 0

    def __init__(self, images: Iterable[ImageSource | Frame]) -> None:
        self._images = images
        self.is_live = isinstance(images, Iterator)  # what can be iterated over once may be a camera
        self.frame_count = len(images) if isinstance(images, Sized) else None

    def frames(self) -> Iterator[Frame]:
        try:
            for number, image in enumerate(self._images):
                yield image if isinstance(image, Frame) else Frame(number, None, image)
        finally:
            if isinstance(self._images, Generator):
                self._images.close()


class _Folder:
    """The images in a folder, in order of their names. One that cannot be read is counted as broken."""

    is_live = False

    def __init__(self, folder: Path) -> None:
        self._files = sorted(file for file in folder.iterdir() if file.suffix.lower() in _PICTURES)
        self.frame_count = len(self._files)
        self.broken = 0
        if not self._files:
            raise VideoError(f"{folder}: no images in it")

    def frames(self) -> Iterator[Frame]:
        for number, file in enumerate(self._files):
            try:
                image = open_image(file)
            except ImageError:
                self.broken += 1
                continue
            yield Frame(number, None, image)
        if self.broken == len(self._files):
            raise VideoError(f"{self._files[0].parent}: none of its {self.broken} images can be read")


class _Video:
    """What PyAV opens. A packet that cannot be decoded is counted as broken, and reading goes on behind it."""

    def __init__(self, place: str, container_format: str | None, is_live: bool) -> None:
        try:
            import av
        except ImportError as error:
            raise VideoError(f"PyAV cannot be imported ({error}): pip install 'patchcaption[video]'") from None
        self._av, self._place, self.is_live, self.broken = av, place, is_live, 0
        options = {"rtsp_transport": "tcp"} if place.startswith("rtsp") else {}
        timeout = (_SECONDS_TO_OPEN, _SECONDS_TO_READ) if is_live else None
        try:
            self._container = av.open(place, format=container_format, options=options, timeout=timeout)
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{place}: cannot be opened: {_said(error)}") from None
        if not self._container.streams.video:
            self._container.close()
            raise VideoError(f"{place}: there is no video in it")
        self._stream = self._container.streams.video[0]
        self._stream.thread_type = "AUTO"
        self.frame_count = self._stream.frames or None

    def frames(self) -> Iterator[Frame]:
        number = -1
        with self._container:
            for packet in self._packets():
                for decoded in self._decoded(packet):
                    number += 1
                    if decoded is not None:
                        yield Frame(number, decoded.time, _upright(decoded))
        if number + 1 == self.broken:
            raise VideoError(f"{self._place}: no frame of it can be decoded")

    def _packets(self) -> Iterator[av.Packet[Any]]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except (self._av.error.FFmpegError, OSError) as error:
                raise VideoError(f"{self._place}: lost: {_said(error)}") from None
            if packet is None:
                return
            yield packet

    def _decoded(self, packet: av.Packet[Any]) -> list[av.VideoFrame | None]:
        """The frames of a packet; None for what cannot be decoded."""
        try:
            return list(packet.decode())
        except self._av.error.EOFError:
            return []
        except (self._av.error.FFmpegError, OSError):
            self.broken += 1
            return [None]


def _upright(decoded: av.VideoFrame) -> np.ndarray[Any, Any]:
    """RGB (H, W, 3), turned as a player turns it: a phone writes how it was held beside the frames."""
    pixels = decoded.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    quarters = round(decoded.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, quarters)) if quarters else pixels


def _said(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip()
