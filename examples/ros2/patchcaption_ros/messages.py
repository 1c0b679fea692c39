"""Messages to images and regions, and captions to JSON; of messages only the fields are used, so no ROS is imported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime import Box, Caption

_CHANNELS = {"rgb8": (3, [0, 1, 2]), "bgr8": (3, [2, 1, 0]), "rgba8": (4, [0, 1, 2]), "bgra8": (4, [2, 1, 0])}


def image_of(message: Any) -> npt.NDArray[np.uint8]:
    """A sensor_msgs/Image as RGB (H, W, 3), or grey (H, W) of mono8.

    Raises:
        ValueError: another encoding, or fewer bytes than its sides ask for.
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


def regions_of(message: Any, image_wh: tuple[int, int]) -> dict[int, Box]:
    """The boxes of a vision_msgs/Detection2DArray by their places in it, cut off at the image; those that are not on it
    are left out."""
    regions: dict[int, Box] = {}
    for place, detection in enumerate(message.detections):
        box = detection.bbox
        centre = box.center.position
        corners = (
            max(0.0, centre.x - box.size_x / 2),
            max(0.0, centre.y - box.size_y / 2),
            min(float(image_wh[0]), centre.x + box.size_x / 2),
            min(float(image_wh[1]), centre.y + box.size_y / 2),
        )
        if corners[0] < corners[2] and corners[1] < corners[3]:
            regions[place] = Box(*corners)
    return regions


def captions_as_text(captions: Mapping[int, Caption], message: Any, seconds: float) -> str:
    """What goes into a std_msgs/String: the image's time, and the words of each detection by its place and id."""
    described = [
        {"detection": place, "id": message.detections[place].id, "text": caption.text, "score": round(caption.score, 4)}
        for place, caption in captions.items()
    ]
    return json.dumps({"seconds": seconds, "captions": described})
