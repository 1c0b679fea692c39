"""Detections to regions, and captions to JSON; only the messages' fields are used, so no ROS is imported."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from patchcaption import Caption, Region, RegionError
from runtime.output.as_json import caption_as_json
from runtime.regions.detections import as_regions


def regions_of(message: Any, image_wh: tuple[int, int]) -> dict[int, Region]:
    """Return the boxes of a vision_msgs/Detection2DArray by their indices in it.

    They are cut off at the edges of the image; those that lie outside it, or have numbers that are not finite, are left
    out.
    """
    regions: dict[int, Region] = {}
    for index, detection in enumerate(message.detections):
        corners = _corners(detection.bbox)
        if all(map(math.isfinite, corners)):  # cut off, an infinite box would be the whole image
            with suppress(RegionError):
                (regions[index],) = as_regions(SimpleNamespace(xyxy=[corners]), image_wh)
    return regions


def captions_as_text(captions: Mapping[int, Caption], message: Any, seconds: float) -> str:
    """Return the JSON of a std_msgs/String: the image's time, and each detection's index, id, class and caption."""
    described = [
        {
            "detection": index,
            "id": message.detections[index].id,
            **_best_class(message.detections[index]),
            **caption_as_json(caption),
        }
        for index, caption in captions.items()
    ]
    return json.dumps({"seconds": seconds, "captions": described})


def _best_class(detection: Any) -> dict[str, Any]:
    """Return the class that a vision_msgs/Detection2D is most likely of, and how likely; nothing if it says none."""
    hypotheses = [result.hypothesis for result in getattr(detection, "results", ())]
    if not hypotheses:
        return {}
    best = max(hypotheses, key=lambda one: one.score)
    return {"class": best.class_id, "confidence": float(best.score)} if math.isfinite(best.score) else {}


def _corners(box: Any) -> tuple[float, float, float, float]:
    """Return the corners (x1, y1, x2, y2) of a vision_msgs/BoundingBox2D, whose rotation is ignored."""
    centre = box.center.position
    half_width, half_height = box.size_x / 2, box.size_y / 2
    return centre.x - half_width, centre.y - half_height, centre.x + half_width, centre.y + half_height
