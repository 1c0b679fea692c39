"""Captions as JSON has them."""

from __future__ import annotations

from dataclasses import asdict

from runtime.regions import Mask
from runtime.results import Caption
from runtime.video.stream import FrameCaptions


def frame_as_json(described: FrameCaptions) -> dict[str, object]:
    """What a line of JSON says of a frame."""
    frame = described.frame
    return {
        "frame": frame.number,
        "seconds": frame.seconds,
        "dropped": described.dropped,
        "latency_ms": round(described.latency_ms, 1),
        "captions": [caption_as_json(caption) | {"reused": caption.reused} for caption in described.captions],
    }


def caption_as_json(caption: Caption) -> dict[str, object]:
    """What JSON says of a caption and its region."""
    region: dict[str, object] = {"kind": type(caption.region).__name__}
    if isinstance(caption.region, Mask):
        region["pixels"] = int(caption.region.array.sum())
    elif caption.region is not None:
        region |= asdict(caption.region)  # type: ignore[call-overload]  # every kind but Mask is a plain dataclass
    shown: dict[str, object] = {"text": caption.text, "score": caption.score, "ids": caption.ids, "region": region}
    if caption.nearest:
        shown["nearest"] = [asdict(match) for match in caption.nearest]
    return shown
