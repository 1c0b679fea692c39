"""Images of ROS to arrays; only the messages' fields are used, so no ROS is imported."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.image import open_image

Pixels = npt.NDArray[np.uint8]
Array = npt.NDArray[Any]

_YUV_TO_RGB = np.array([[1.164, 0.0, 1.596], [1.164, -0.391, -0.813], [1.164, 2.018, 0.0]], np.float32)
"""ITU-R BT.601 with 16 to 235 for luma, as cameras send it and cv_bridge reads it."""


def image_of(message: Any) -> Pixels:
    """Return a sensor_msgs/Image or sensor_msgs/CompressedImage as RGB (H, W, 3), or as grey (H, W).

    Raises:
        ValueError: the encoding is one that is not known, there are fewer bytes than the image's size asks for, or
            compressed bytes are no image.
    """
    if hasattr(message, "format"):
        return np.asarray(open_image(bytes(message.data)))
    if message.encoding not in _DECODERS:
        raise ValueError(f"encoding {message.encoding!r}: expected one of {', '.join(_DECODERS)}")
    bytes_per_pixel, decode = _DECODERS[message.encoding]
    needed, row_bytes = message.height * message.step, message.width * bytes_per_pixel
    data = np.frombuffer(message.data, np.uint8)
    if len(data) < needed or message.step < row_bytes:
        raise ValueError(f"image of {message.width} x {message.height}: expected {needed} bytes, got {len(data)}")
    rows = data[:needed].reshape(message.height, message.step)[:, :row_bytes]
    return decode(rows.reshape(message.height, message.width, bytes_per_pixel), bool(message.is_bigendian))


def _channels(*order: int) -> Callable[[Array, bool], Pixels]:
    """Return a decoder that takes these bytes of each pixel as red, green and blue."""
    return lambda pixels, _: pixels[:, :, list(order)]


def _grey(pixels: Array, _: bool) -> Pixels:
    return pixels[:, :, 0]


def _grey_of_16_bits(pixels: Array, is_bigendian: bool) -> Pixels:
    return pixels[:, :, 0 if is_bigendian else 1]  # the upper byte


def _yuv(luma: int) -> Callable[[Array, bool], Pixels]:
    """Return a decoder of pairs of pixels that share their colour; ``luma`` is the byte of a pixel that is its own."""

    def decode(pixels: Array, _: bool) -> Pixels:
        if pixels.shape[1] % 2:
            raise ValueError(f"image of width {pixels.shape[1]}: pixels that share their colour come in pairs")
        pairs = pixels.reshape(len(pixels), -1, 2, 2).astype(np.float32)
        chroma = np.repeat(pairs[:, :, None, :, 1 - luma], 2, axis=2) - 128
        yuv = np.concatenate([pairs[..., luma, None] - 16, chroma], axis=3).reshape(len(pixels), -1, 3)
        return (yuv @ _YUV_TO_RGB.T + 0.5).clip(0, 255).astype(np.uint8)

    return decode


_DECODERS: Mapping[str, tuple[int, Callable[[Array, bool], Pixels]]] = {
    "rgb8": (3, _channels(0, 1, 2)),
    "bgr8": (3, _channels(2, 1, 0)),
    "8UC3": (3, _channels(2, 1, 0)),  # OpenCV's order
    "rgba8": (4, _channels(0, 1, 2)),
    "bgra8": (4, _channels(2, 1, 0)),
    "8UC4": (4, _channels(2, 1, 0)),
    "mono8": (1, _grey),
    "8UC1": (1, _grey),
    "mono16": (2, _grey_of_16_bits),
    "uyvy": (2, _yuv(luma=1)),
    "yuv422": (2, _yuv(luma=1)),
    "yuyv": (2, _yuv(luma=0)),
    "yuv422_yuy2": (2, _yuv(luma=0)),
}
"""For each encoding of sensor_msgs the bytes of a pixel, and what makes pixels of them."""
