"""Regions of one image in any form that people have them in: the one conversion that all callers use.

A list is of regions, each in a form of its own (`runtime.regions.inputs.entries`); an array, an object or a dictionary
is what a detector found (`runtime.regions.inputs.results`). docs/regions.md has the table and the rules.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy.typing as npt
from PIL import Image
from torch import Tensor

from runtime.errors import RegionError
from runtime.regions.canvas import Region
from runtime.regions.inputs.arrays import as_numpy, is_array, is_flat, is_list, is_points, is_row_of_numbers
from runtime.regions.inputs.coco import CocoAnnotations, is_dataset
from runtime.regions.inputs.entries import ImageSize, is_region, row_of
from runtime.regions.inputs.results import (
    is_results,
    rows_of_boxes,
    rows_of_masks,
    rows_of_polygons,
    rows_of_results,
)
from runtime.regions.rows import RegionRow


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


@runtime_checkable
class ModelResults(Protocol):
    """The results of a detector for one image, as ultralytics has them.

    Attributes:
        boxes: the boxes, an object with ``xyxy``; may be None where there are ``masks`` or ``obb``.
    """

    boxes: Any


RegionLike: TypeAlias = (
    "Region | Sequence[float] | Sequence[Sequence[float]] | npt.NDArray[Any] | Tensor | Image.Image | Mapping[str, Any]"
    " | RegionRow"
)
"""One region: ours, a box, a polygon, a mask, or a dictionary with one of these."""

RegionsLike: TypeAlias = (
    "Sequence[RegionLike] | Region | npt.NDArray[Any] | Tensor | Image.Image | Mapping[str, Any] | Detections"
    " | NormalizedDetections | ModelResults"
)
"""The regions of one image: a list, what a detector found, or a single one."""


def as_regions(found: RegionsLike, image_wh: tuple[int, int]) -> list[Region]:
    """Return the regions of one image.

    Boxes are cut off at the image's edges, beyond which detectors often reach.

    Raises:
        RegionError: it is in no form of regions, or a row is no region.
    """
    regions: list[Region] = []
    for number, row in enumerate(as_rows(found, image_wh)):
        if isinstance(row.region, RegionError):
            raise RegionError(f"detections: row {number}: {row.region}")
        regions.append(row.region)
    return regions


def checked_rows(found: RegionsLike) -> list[RegionRow]:
    """Return regions as `as_rows` does where no image is known yet, and refuse them all if one is none.

    Raises:
        RegionError: of the first that is none, by its number; or as `as_rows`.
    """
    rows = as_rows(found, None)
    for number, row in enumerate(rows):
        if isinstance(row.region, RegionError):
            raise RegionError(f"region {number}: {row.region}")
    return rows


def as_rows(found: RegionsLike, image_wh: ImageSize) -> list[RegionRow]:
    """Return the regions of one image as `as_regions` does, with what is said of each, or with the error of each.

    Args:
        image_wh: the image's size; None where it is not known yet, and boxes are not compared with it.

    Raises:
        RegionError: it is in no form of regions, or not of the form's shape.
    """
    given: Any = found
    if is_region(given) or isinstance(given, (RegionRow, Image.Image)):
        return [row_of(given, image_wh)]
    if is_dataset(given):
        return CocoAnnotations(given).rows(image_wh)
    if is_results(given) and not is_array(given):
        return rows_of_results(given, image_wh)
    if isinstance(given, Mapping):
        return _only(row_of(given, image_wh))
    if is_array(given):
        return _rows_of_array(given, image_wh)
    if is_list(given):
        return _rows_of_list(given, image_wh)
    raise RegionError(
        f"regions: expected a list of regions, got {type(found).__name__}; boxes (n, 4), masks, JSON and detections "
        "are taken too"
    )


def split_images(regions: Any, num_images: int) -> tuple[list[RegionsLike], bool]:
    """Return the regions of each image, and whether they were given as a list with an entry for each image.

    They were if each entry holds the regions of an image rather than being one region. A list of numbers or of points
    is one region, a list of anything else holds regions.

    Raises:
        RegionError: they are no list where there are several images, or not as many entries as images.
    """
    if is_list(regions) and len(regions) > 0 and all(_is_of_image(entry, num_images) for entry in regions):
        if len(regions) != num_images:
            raise RegionError(f"regions: expected {num_images} lists, one for each image, got {len(regions)}")
        return list(regions), True
    if num_images == 0 and is_list(regions) and not regions:
        return [], True
    if num_images != 1:
        if not is_list(regions):
            as_rows(regions, None)  # what is in no form at all is told so
        raise RegionError(f"regions: {num_images} images were encoded; give a list of regions for each of them")
    return [regions], False


def _rows_of_list(entries: Sequence[Any], image_wh: ImageSize) -> list[RegionRow]:
    if is_flat(entries):  # a single box or polygon
        return _only(row_of(entries, image_wh))
    if entries and all(_is_of_image(entry, 1) for entry in entries):
        if len(entries) > 1:
            raise RegionError(f"regions: expected those of one image, got a list of {len(entries)} for an image each")
        (only,) = entries
        if is_list(only) and any(_is_of_image(entry, 1) for entry in only):
            raise RegionError("regions: expected a list of regions, got lists of lists of lists")
        return as_rows(only, image_wh)
    if is_points(entries):
        raise RegionError(
            "regions: expected a list of regions, got a list of points (x, y): give Polygon(points), Trace(points) or "
            "a Point for each"
        )
    return [row_of(entry, image_wh) for entry in entries]


def _rows_of_array(array: Any, image_wh: ImageSize) -> list[RegionRow]:
    """Return the rows of boxes (n, 4) or (4,), masks (H, W), (n, H, W), (n, 1, H, W), polygons (n, P, 2), (P, 1, 2)."""
    shape = tuple(array.shape)
    if len(shape) <= 1:
        return [] if shape == (0,) else _only(row_of(array, image_wh))
    if 0 in shape:
        return []
    if len(shape) == 2:
        return _rows_of_matrix(array, image_wh)
    if shape[-1] == 4 and shape[:0:-1] != image_wh and "bool" not in str(array.dtype):
        raise RegionError(f"regions: expected boxes (n, 4), got shape {shape}: give those of one image")
    if _is_contour(array):
        return _only(row_of(array, image_wh))
    if shape[-1] == 2 and len(shape) == 3 and (image_wh is None or image_wh[0] != 2):
        return rows_of_polygons(as_numpy("polygons", array, "(n, P, 2)"))
    return rows_of_masks(array)


def _rows_of_matrix(array: Any, image_wh: ImageSize) -> list[RegionRow]:
    shape, is_bool = tuple(array.shape), "bool" in str(array.dtype)
    if shape[1] == 4 and not is_bool:
        if shape[::-1] == image_wh:
            raise RegionError(f"regions: {shape} is the shape of boxes and of a mask of this image: give Box or Mask")
        return rows_of_boxes("boxes", array, image_wh)
    if is_points(array) and not is_bool:
        raise RegionError(
            f"regions: expected boxes (n, 4) or masks (n, H, W), got shape {shape}, of points: give Polygon(points), "
            "Trace(points) or a Point for each"
        )
    if 5 <= shape[1] <= 7 and shape[::-1] != image_wh and not is_bool:
        raise RegionError(
            f"regions: expected boxes (n, 4), got shape {shape}: give the first four columns, and what else they hold "
            "as detections"
        )
    return _only(row_of(array, image_wh))


def _only(row: RegionRow) -> list[RegionRow]:
    """Return a single region that was given without a list; what is wrong with it is wrong with all."""
    if isinstance(row.region, RegionError):
        raise RegionError(f"regions: {row.region}")
    return [row]


def _is_of_image(entry: Any, num_images: int) -> bool:
    """Return whether an entry of a list holds the regions of an image, rather than being one region."""
    if is_region(entry) or isinstance(entry, (RegionRow, Image.Image)):
        return False
    if is_array(entry):
        return not _is_contour(entry) and _holds_regions(tuple(entry.shape), "bool" in str(entry.dtype), num_images)
    if is_list(entry):
        return not is_row_of_numbers(entry) and not is_points(entry)
    return is_dataset(entry) or is_results(entry)


def _is_contour(array: Any) -> bool:
    """Return whether an array is one of OpenCV's contours (P, 1, 2), which is no stack of masks."""
    return len(array.shape) == 3 and is_points(array) and "bool" not in str(array.dtype)


def _holds_regions(shape: tuple[int, ...], is_bool: bool, num_images: int) -> bool:
    """Return whether an array of this shape holds regions; (1, H, W) is one mask, unless there are several images."""
    if len(shape) == 2:
        return (shape[1] == 4 and not is_bool) or 0 in shape
    return len(shape) > 3 or (len(shape) == 3 and (shape[0] != 1 or num_images > 1)) or shape == (0,)
