"""Regions from the output of detectors and trackers, without depending on any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from runtime.errors import RegionError
from runtime.regions import Box, Mask, Region


@runtime_checkable
class Detections(Protocol):
    """The output of a detector, as `supervision.Detections` has it and others name it too.

    Attributes:
        xyxy: boxes (n, 4) in image pixels, x1, y1, x2, y2.
        mask: masks (n, H, W), which are taken instead of the boxes; optional, may be None.
    """

    xyxy: Any


RegionsLike: TypeAlias = "Sequence[Region] | Detections"


def as_regions(found: RegionsLike, image_wh: tuple[int, int]) -> list[Region]:
    """Return the regions of one image: a list as it is, or the masks or boxes of detections, one for each row.

    Boxes are cut off at the image's edges, beyond which detectors often reach.

    Raises:
        RegionError: it is neither, or a box or mask has no place on the image.
    """
    mask = getattr(found, "mask", None)
    if mask is not None and not isinstance(found, Sequence):
        return [Mask(np.asarray(row) != 0) for row in _as_numpy(mask)]
    if isinstance(found, Detections):
        return _boxes(_as_numpy(found.xyxy), image_wh)
    if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
        return list(found)
    raise RegionError(f"regions: expected a list of regions or something with xyxy or mask, got {type(found).__name__}")


def _boxes(xyxy: np.ndarray[Any, Any], image_wh: tuple[int, int]) -> list[Region]:
    if xyxy.size == 0:
        return []
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise RegionError(f"detections: expected xyxy of shape (n, 4), got {xyxy.shape}")
    clipped = xyxy.astype(float)
    clipped[:, 0::2] = clipped[:, 0::2].clip(0, image_wh[0])
    clipped[:, 1::2] = clipped[:, 1::2].clip(0, image_wh[1])
    regions: list[Region] = []
    for number, row in enumerate(clipped.tolist()):
        try:
            regions.append(Box(*row))
        except RegionError as error:
            raise RegionError(f"detections: row {number}: {error}") from None
    return regions


def _as_numpy(values: Any) -> np.ndarray[Any, Any]:
    """Return arrays, lists and tensors as NumPy arrays; tensors may be on a GPU."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
