"""Messages to images and regions, and captions to JSON; only the messages' fields are used, so no ROS is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchcaption import Caption, Region, RegionError
from runtime.output.as_json import caption_as_json
from runtime.regions.detections import as_regions

_CHANNELS = {"rgb8": (3, [0, 1, 2]), "bgr8": (3, [2, 1, 0]), "rgba8": (4, [0, 1, 2]), "bgra8": (4, [2, 1, 0])}
"""For each encoding the bytes of a pixel, and which of them are red, green and blue."""


def image_of(message: Any) -> npt.NDArray[np.uint8]:
    """Return a sensor_msgs/Image as RGB (H, W, 3), or as grey (H, W) if it is mono8.

    Raises:
        ValueError: the encoding is another one, or there are fewer bytes than the image's size asks for.
    """
    channels, order = _CHANNELS.get(message.encoding, (1, [0]))
    if message.encoding not in _CHANNELS and message.encoding != "mono8":
        raise ValueError(f"encoding {message.encoding!r}: expected one of {', '.join((*_CHANNELS, 'mono8'))}")
    needed = message.height * message.step
    data = np.frombuffer(bytes(message.data), np.uint8)
    if len(data) < needed or message.step < message.width * channels:
        raise ValueError(f"image of {message.width} x {message.height}: expected {needed} bytes, got {len(data)}")
    rows = data[:needed].reshape(message.height, message.step)[:, : message.width * channels]
    pixels = rows.reshape(message.height, message.width, channels)[:, :, order]
    return pixels[:, :, 0] if message.encoding == "mono8" else pixels


def regions_of(message: Any, image_wh: tuple[int, int]) -> dict[int, Region]:
    """Return the boxes of a vision_msgs/Detection2DArray by their indices in it.

    They are cut off at the edges of the image; those that lie outside it are left out.
    """
    regions: dict[int, Region] = {}
    for index, detection in enumerate(message.detections):
        with suppress(RegionError):
            (regions[index],) = as_regions(SimpleNamespace(xyxy=[_corners(detection.bbox)]), image_wh)
    return regions


def captions_as_text(captions: Mapping[int, Caption], message: Any, seconds: float) -> str:
    """Return the JSON of a std_msgs/String: the image's time, and each detection's index, id and caption."""
    described = [
        {"detection": index, "id": message.detections[index].id, **caption_as_json(caption)}
        for index, caption in captions.items()
    ]
    return json.dumps({"seconds": seconds, "captions": described})


def _corners(box: Any) -> tuple[float, float, float, float]:
    """Return the corners (x1, y1, x2, y2) of a vision_msgs/BoundingBox2D, whose rotation is ignored."""
    centre = box.center.position
    half_width, half_height = box.size_x / 2, box.size_y / 2
    return centre.x - half_width, centre.y - half_height, centre.x + half_width, centre.y + half_height
