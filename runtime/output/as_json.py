"""Captions and frames as JSON: the one form that the command line, the streams and the examples write."""

from __future__ import annotations

import math
from dataclasses import asdict

from runtime.errors import RegionError
from runtime.regions import Region, to_dict
from runtime.regions.serialization import kind_of
from runtime.results import Caption
from runtime.video.stream import FrameCaptions


def frame_as_json(described: FrameCaptions) -> dict[str, object]:
    """Return a frame with its captions as JSON values: one line of a JSON Lines file."""
    frame = described.frame
    values: dict[str, object] = {
        "frame": frame.number,
        "seconds": frame.seconds,
        "dropped": described.dropped,
        "latency_ms": round(described.latency_ms, 1),
        "captions": [caption_as_json(caption) | {"reused": caption.reused} for caption in described.captions],
    }
    if described.error is not None:
        values["error"] = described.error
    return values


def caption_as_json(caption: Caption) -> dict[str, object]:
    """Return a caption and its region as JSON values.

    ``score`` is null where there is none. ``detection`` is there if the region was given with an id, a class or a
    confidence, ``nearest`` if captions of the memory were asked for, ``error`` if there is no caption.

    Example:
        >>> caption_as_json(Caption("a red triangle", 0.5, (7, 8, 9), Point(350, 330)))
        {'text': 'a red triangle', 'score': 0.5, 'ids': [7, 8, 9], 'region': {'kind': 'point', 'x': 350.0, 'y': 330.0}}
    """
    values: dict[str, object] = {
        "text": caption.text,
        "score": None if math.isnan(caption.score) else caption.score,
        "ids": list(caption.ids),
        "region": region_as_json(caption.region),
    }
    if caption.detection is not None:
        said = asdict(caption.detection)
        values["detection"] = {name: value for name, value in said.items() if value is not None}
    if caption.nearest:
        values["nearest"] = [asdict(match) for match in caption.nearest]
    if caption.error is not None:
        values["error"] = caption.error
    return values


def region_as_json(region: Region | None) -> dict[str, object] | None:
    """Return a region as `runtime.regions.to_dict` does; of a class that it does not know, only the kind.

    Example:
        >>> region_as_json(Patch(7, 8))
        {'kind': 'patch', 'row': 7, 'column': 8}
    """
    if region is None:
        return None
    try:
        return to_dict(region)
    except RegionError:
        return {"kind": kind_of(region)}
