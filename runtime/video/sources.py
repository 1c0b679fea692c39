"""Frames of a file, a camera, a URL, a folder or an iterable."""

from __future__ import annotations

import math
import os
from collections.abc import Generator, Iterable, Sized
from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TypeAlias
from urllib.parse import urlsplit
from urllib.request import url2pathname

import numpy as np
import torch
from PIL import Image

from runtime.errors import ImageError, VideoError
from runtime.image import IMAGE_SUFFIXES, ImageSource, in_rgb, max_pixels, open_image
from runtime.options import Channels, StreamOptions
from runtime.video.addresses import VideoAddress
from runtime.video.frames import Frame, Source
from runtime.video.pyav import VideoInput
from runtime.video.sound import Sound

FrameSource: TypeAlias = "str | os.PathLike[str] | int | Iterable[ImageSource | Frame]"

_URL_SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
"""Before the first attempt to reconnect, and the most that the doubled pauses come to."""
_SINGLE = (bytes, np.ndarray, torch.Tensor, Image.Image, dict)
"""Types that can be iterated over but are one image, or none."""


def open_source(source: FrameSource, options: StreamOptions | None = None) -> Source:
    """Open a folder of images, a camera by its number, a URL (with "://"), a file, or an iterable of images or frames.

    Args:
        options: how long a camera or URL may be silent, for how long it is tried again, and which part is read.

    Raises:
        VideoError: there is nothing to read, or no part of it can be chosen.
    """
    options = options or StreamOptions()
    if options.channels != "rgb" and isinstance(source, (str, os.PathLike, int)):
        raise VideoError(f"{source}: its frames are decoded as RGB: leave out channels={options.channels!r}")
    if isinstance(source, int) and not isinstance(source, bool):
        return LiveVideo(VideoAddress.of_camera(f"/dev/video{source}"), options)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        return _open_url(name, options) if "://" in name else _open_path(name, options)
    if isinstance(source, Iterable) and not isinstance(source, _SINGLE):
        _refuse_part("an iterable", "has no times before it is read; leave the others out of it", options)
        return IterableSource(source, options.channels)
    raise VideoError(
        "source: expected a file, a folder, a camera's number, a URL or an iterable of images, got "
        f"{type(source).__name__}"
    )


def _open_path(name: str, options: StreamOptions) -> Source:
    path = Path(name)
    try:
        if path.is_dir():
            _refuse_part(f"{path}", "a folder of images has no times; name one with the images that you want", options)
            return ImageFolder(path)
        if not path.exists():
            raise VideoError(f"{path}: no such file or folder")
        if not path.is_file():
            raise VideoError(f"{path}: expected a file or a folder; a camera is named by its number, 0 for /dev/video0")
        with path.open("rb"):
            pass
    except (OSError, ValueError) as error:  # a ValueError for a name with a zero in it
        raise VideoError(f"{name!r}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    address = VideoAddress.of_file(name)
    return FiniteVideo(address, options, VideoInput(address))


def _open_url(url: str, options: StreamOptions) -> Source:
    scheme = url.split("://", 1)[0].lower()
    if scheme == "file":
        return _open_path(url2pathname(urlsplit(url).path), options)
    if scheme not in _URL_SCHEMES:
        raise VideoError(f"{url}: expected a URL that begins with file, {', '.join(_URL_SCHEMES)}, got {scheme!r}")
    address = VideoAddress.of_url(url)
    if scheme not in ("http", "https"):
        return LiveVideo(address, options)
    opened = VideoInput(address, options.timeout_s)
    if opened.duration_s is not None:
        return FiniteVideo(address, options, opened, options.timeout_s)
    return LiveVideo(address, options, opened)


def _refuse_part(name: str, reason: str, options: StreamOptions) -> None:
    if options.start_s or options.end_s is not None:
        raise VideoError(f"{name}: start_s and end_s choose a part of a file: {reason}")


class IterableSource:
    """An iterable of images or frames; its own exceptions are passed on. A generator is closed at the end."""

    decode_errors = reconnects = 0
    is_live = False
    rate = sound = None
    has_sound = False

    def __init__(self, images: Iterable[ImageSource | Frame], channels: Channels = "rgb") -> None:
        self._images, self._channels = images, channels
        self.frame_count = len(images) if isinstance(images, Sized) else None

    def frames(self) -> Generator[Frame, None, None]:
        try:
            for number, image in enumerate(self._images):
                frame = image if isinstance(image, Frame) else Frame(number, None, image)
                yield replace(frame, image=in_rgb(frame.image, self._channels))
        finally:
            if isinstance(self._images, Generator):
                self._images.close()

    def stop(self) -> None:
        pass


class ImageFolder:
    """The images in a folder, in order of their names. Unreadable ones are skipped and counted."""

    is_live = False
    reconnects = 0
    rate = sound = None
    has_sound = False

    def __init__(self, folder: Path) -> None:
        self._files = sorted(file for file in folder.iterdir() if file.suffix.lower() in IMAGE_SUFFIXES)
        self.frame_count = len(self._files)
        self.decode_errors = 0
        if not self._files:
            raise VideoError(f"{folder}: no images in it")

    def frames(self) -> Generator[Frame, None, None]:
        for number, file in enumerate(self._files):
            try:
                image = open_image(file)
            except ImageError:
                self.decode_errors += 1
                continue
            yield Frame(number, None, image)
        if self.decode_errors == len(self._files):
            raise VideoError(f"{self._files[0].parent}: none of its {self.decode_errors} images can be read")

    def stop(self) -> None:
        pass


class FiniteVideo:
    """A video of known end: a file, or a URL of one, which waits while it is not read.

    Args:
        opened: it, open.
        timeout_s: how long a URL may be silent.
    """

    is_live = False
    reconnects = 0

    def __init__(
        self, address: VideoAddress, options: StreamOptions, opened: VideoInput, timeout_s: float | None = None
    ) -> None:
        self._name, self._input, self.decode_errors = address.name, opened, 0
        self._start_s, self._end_s = options.start_s, math.inf if options.end_s is None else options.end_s
        duration_s = math.inf if opened.duration_s is None else opened.duration_s
        if self._start_s >= duration_s:
            raise VideoError(f"{self._name}: start_s {self._start_s:g}: it is only {duration_s:g} s long")
        self.rate, self.has_sound = opened.rate, opened.has_sound
        self.sound = Sound(address, timeout_s, self._start_s, self._end_s) if self.has_sound else None
        self.frame_count = opened.frame_count
        if self._is_part:
            part_s = min(self._end_s, duration_s) - self._start_s
            self.frame_count = None if self.rate is None or part_s == math.inf else max(1, round(part_s * self.rate))

    def frames(self) -> Generator[Frame, None, None]:
        is_empty = True
        for number, picture in self._input.pictures(self._start_s, self._end_s):
            if picture is None:
                self.decode_errors += 1
            else:
                is_empty = False
                yield Frame(number, *picture)
        if not is_empty:
            return
        if self._is_part and not self.decode_errors:
            until = "on" if self._end_s == math.inf else f"up to {self._end_s:g} s"
            raise VideoError(f"{self._name}: there is no frame from {self._start_s:g} s {until}")
        raise VideoError(
            f"{self._name}: no frame of it can be decoded: they are damaged, or have more pixels than the "
            f"{max_pixels()} of PIL.Image.MAX_IMAGE_PIXELS"
        )

    def stop(self) -> None:
        pass

    @property
    def _is_part(self) -> bool:
        return self._start_s > 0 or self._end_s < math.inf


class LiveVideo:
    """A camera or a URL that sends until it is lost; it is opened, and opened again, for as long as the options say.

    Frames are numbered on, and their times go on by the clock.

    Args:
        opened: it is open already; None to open it.

    Raises:
        VideoError: it cannot be opened, and is not to be tried again.
    """

    is_live = True
    frame_count = rate = sound = None

    def __init__(self, address: VideoAddress, options: StreamOptions, opened: VideoInput | None = None) -> None:
        _refuse_part(address.name, "a camera or a URL without a known length cannot be sought in", options)
        self._address, self._timeout_s, self._reconnect_s = address, options.timeout_s, options.reconnect_s
        self.decode_errors = self.reconnects = 0
        self._stopping = Event()
        self._input, self._lost = opened, VideoError(f"{address.name}: lost: the other side has closed it")
        if opened is None:
            try:
                self._input = VideoInput(address, self._timeout_s)
            except VideoError as error:
                if self._reconnect_s < _FIRST_PAUSE_S:
                    raise
                self._lost = error
        self.has_sound = self._input is not None and self._input.has_sound

    def frames(self) -> Generator[Frame, None, None]:
        if self._input is None:
            self._input = self._reopen(self._lost)
            self.reconnects = 0
        began, number = monotonic(), 0
        while self._input is not None:
            connected_s = last_s = monotonic() - began if self.reconnects else 0.0
            lost = VideoError(f"{self._address.name}: lost: the other side has closed it")
            try:
                for _, picture in self._input.pictures():
                    if picture is None:
                        self.decode_errors += 1
                    else:
                        seconds, pixels = picture
                        # Cameras leave the first frames of a connection without a time.
                        last_s = max(last_s, monotonic() - began if seconds is None else connected_s + seconds)
                        yield Frame(number, last_s, pixels)
                    number += 1
                if self._input.is_playlist:
                    return
            except VideoError as error:
                lost = error
            self._input = self._reopen(lost)

    def stop(self) -> None:
        self._stopping.set()

    def _reopen(self, lost: VideoError) -> VideoInput | None:
        """Return the source opened again, after pauses; None if it was stopped meanwhile.

        Raises:
            VideoError: it could not be opened in the time that there is.
        """
        pause_s, until = _FIRST_PAUSE_S, monotonic() + self._reconnect_s
        while monotonic() + pause_s <= until:
            if self._stopping.wait(pause_s):
                return None
            try:
                opened = VideoInput(self._address, self._timeout_s)
            except VideoError as error:
                lost = error
            else:
                self.reconnects += 1
                self.has_sound = opened.has_sound
                return opened
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        if self._stopping.is_set():
            return None
        raise lost
