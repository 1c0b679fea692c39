"""Regions from the output of detectors and trackers, without depending on any of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np

from runtime.errors import RegionError
from runtime.regions import Box, Mask, Region
from runtime.regions.boxes import check_on_image


@runtime_checkable
class Detections(Protocol):
    """The output of a detector, as `supervision.Detections` has it and others name it too.

    Attributes:
        xyxy: boxes (n, 4) in image pixels, x1, y1, x2, y2.
        mask: masks (n, H, W), which are taken instead of the boxes; optional, may be None.
    """

    xyxy: Any


@runtime_checkable
class NormalizedDetections(Protocol):
    """The output of a detector that gives its boxes in 0..1 of the image, as ultralytics names them.

    Attributes:
        xyxyn: boxes (n, 4), x1 and x2 in 0..1 of the width, y1 and y2 in 0..1 of the height.
    """

    xyxyn: Any


RegionsLike: TypeAlias = "Sequence[Region] | Detections | NormalizedDetections"


def as_regions(found: RegionsLike, image_wh: tuple[int, int]) -> list[Region]:
    """Return the regions of one image: a list as it is, or the masks or boxes of detections, one for each row.

    Boxes are cut off at the image's edges, beyond which detectors often reach.

    Raises:
        RegionError: it is neither, or a row is no box or mask.
    """
    regions: list[Region] = []
    for number, row in enumerate(as_rows(found, image_wh)):
        if isinstance(row, RegionError):
            raise RegionError(f"detections: row {number}: {row}")
        regions.append(row)
    return regions


def as_rows(found: RegionsLike, image_wh: tuple[int, int]) -> list[Region | RegionError]:
    """Return the regions of one image as `as_regions` does, with the error of each row that is no box or mask.

    Raises:
        RegionError: it is neither a list nor detections, or not of their shape.
    """
    if isinstance(found, Sequence) and not isinstance(found, (str, bytes)):
        return list(found)
    mask = getattr(found, "mask", None)
    if mask is not None:
        return [_made(Mask, row) for row in _as_numpy("mask", mask, "(n, H, W)", 3)]
    if isinstance(found, Detections):
        return _boxes(_corners("xyxy", found.xyxy), image_wh)
    if isinstance(found, NormalizedDetections):
        return _boxes(_corners("xyxyn", found.xyxyn) * np.tile(image_wh, 2), image_wh)
    raise RegionError(f"regions: expected a list of regions or something with xyxy or mask, got {type(found).__name__}")


def _corners(name: str, values: Any) -> np.ndarray[Any, Any]:
    """Return boxes (n, 4)."""
    corners = _as_numpy(name, values, "(n, 4)", 2)
    if corners.size == 0:
        return np.empty((0, 4))
    if corners.shape[1] != 4:
        raise RegionError(f"detections: expected {name} of shape (n, 4), got {corners.shape}")
    return corners


def _boxes(xyxy: np.ndarray[Any, Any], image_wh: tuple[int, int]) -> list[Region | RegionError]:
    return [_made(lambda row: _box_within(row.tolist(), image_wh), row) for row in xyxy]


def _box_within(corners: Sequence[float], image_wh: tuple[int, int]) -> Box:
    """Return a box without what reaches outside the image.

    Raises:
        RegionError: it is no box, or lies wholly outside.
    """
    x1, y1, x2, y2 = corners
    box, (width, height) = Box(x1, y1, x2, y2), image_wh
    check_on_image(box, image_wh)
    return Box(max(box.x1, 0), max(box.y1, 0), min(box.x2, width), min(box.y2, height))


def _made(make: Callable[[Any], Region], row: Any) -> Region | RegionError:
    try:
        return make(row)
    except RegionError as error:
        return error


def _as_numpy(name: str, values: Any, shape: str, ndim: int) -> np.ndarray[Any, Any]:
    """Return arrays, lists and tensors as NumPy arrays; tensors may be on a GPU and of any float type."""
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values
        array = np.asarray(values)
        array = array if array.dtype.kind in "biuf" else array.astype(float)
    except (TypeError, ValueError, RuntimeError) as error:
        raise RegionError(f"detections: expected {name} as numbers of shape {shape}: {error}") from None
    if array.ndim != ndim and array.size > 0:
        raise RegionError(f"detections: expected {name} of shape {shape}, got {array.shape}")
    return array
