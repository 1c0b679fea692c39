"""One region as others have it: a box, a polygon, a mask, or a dictionary with one of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from PIL import Image

from runtime.errors import RegionError
from runtime.regions.boxes import Box, check_on_image
from runtime.regions.canvas import Region
from runtime.regions.inputs.arrays import as_numpy, is_array, is_flat, is_list, is_points, numbers_of
from runtime.regions.inputs.masks import mask_of, mask_of_runs, polygon_of, polygons_of
from runtime.regions.rows import RegionRow
from runtime.regions.serialization import from_dict

ImageSize: TypeAlias = "tuple[int, int] | None"
"""The width and height of the image in pixels; None where it is not known yet, and boxes are not compared with it."""

_IDS = ("track_id", "tracker_id", "id")
_CLASS_IDS = ("class_id", "category_id", "label_id")
_CLASS_NAMES = ("class_name", "category_name", "name")
_CONFIDENCES = ("confidence", "score", "predicted_iou")
_EITHER = ("label", "class")
"""Keys that hold the name of a class in some libraries, and its number in others."""

_SIDES = ("x_min", "y_min", "x_max", "y_max")
"""Keys of the corners in what supervision's sinks write."""
_EDGE = 8
"""Pixels by which data sets and detectors may reach outside an image."""

DETECTION_KEYS = ("id", "class_id", "class_name", "confidence")
"""Keys of `Detection` that may stand beside those of a region's own JSON form."""


def is_region(value: object) -> bool:
    """Return whether a value is a region of ours, or of a class that a user has made; the class itself is none."""
    return not isinstance(value, type) and callable(getattr(value, "weights", None))


def row_of(entry: object, image_wh: ImageSize) -> RegionRow:
    """Return one region in any form that is one region, or why it is none."""
    if isinstance(entry, RegionRow):
        return entry
    if is_region(entry):
        return RegionRow(entry)  # type: ignore[arg-type]  # as was just asked
    if isinstance(entry, Mapping):
        return RegionRow.made(lambda: _of_mapping(entry, image_wh), **said_of(entry))
    return RegionRow.made(lambda: _of_numbers(entry, image_wh))


def said_of(entry: Mapping[str, Any]) -> dict[str, object]:
    """Return the arguments of `detection_of` that a dictionary of one region holds."""
    label = _first(entry, _EITHER)
    is_name = isinstance(label, str)
    class_id, class_name = _first(entry, _CLASS_IDS), _first(entry, _CLASS_NAMES)
    return {
        "id": _first(entry, _IDS),
        "class_id": class_id if is_name or class_id is not None else label,
        "class_name": class_name if not is_name or class_name is not None else label,
        "confidence": _first(entry, _CONFIDENCES),
    }


def box_within(corners: Any, image_wh: ImageSize) -> Box:
    """Return the box of corners (x1, y1, x2, y2) without what reaches outside the image.

    Raises:
        RegionError: it is no box, or lies wholly outside.
    """
    numbers = numbers_of(corners)
    if len(numbers) != 4:
        raise RegionError(f"box: expected the 4 numbers x1, y1, x2, y2, got {len(numbers) or type(corners).__name__}")
    x1, y1, x2, y2 = numbers
    box = Box(x1, y1, x2, y2)
    return box if image_wh is None else cut_off(box, image_wh)


def cut_off(box: Box, image_wh: tuple[int, int]) -> Box:
    """Return a box without what reaches outside the image, beyond which detectors often reach.

    Raises:
        RegionError: it lies wholly outside.
    """
    check_on_image(box, image_wh)
    width, height = image_wh
    return Box(max(box.x1, 0), max(box.y1, 0), min(box.x2, width), min(box.y2, height), box.pool, box.variance)


def _of_numbers(entry: object, image_wh: ImageSize) -> Region:
    if isinstance(entry, Image.Image):
        return mask_of(entry)
    if is_flat(entry):
        return _of_flat(numbers_of(entry), image_wh)
    if is_points(entry):
        return polygon_of(entry)
    if is_array(entry):
        if tuple(entry.shape) == (1, 4):  # type: ignore[attr-defined]
            return box_within(as_numpy("box", entry, "(1, 4)")[0], image_wh)
        return mask_of(entry)
    kind = f"the class {entry.__name__} itself" if isinstance(entry, type) else type(entry).__name__
    got = f"{kind} of {len(entry)}" if is_list(entry) else kind  # type: ignore[arg-type]
    raise RegionError(f"expected a Box, Mask, Trace or another region kind, or a box of 4 numbers, got {got}")


def _of_flat(numbers: list[Any], image_wh: ImageSize) -> Region:
    """Return the box of 4 numbers, or the polygon of an even number from 6 on.

    Two points have no area, so that 4 numbers are never a polygon.
    """
    if len(numbers) == 4:
        return box_within(numbers, image_wh)
    if len(numbers) == 6 and _may_be_scored(numbers):
        raise RegionError(
            "6 numbers, which may be a triangle, or a box with its confidence and class; give Polygon([...]), or the "
            "box as 4 numbers"
        )
    if len(numbers) < 6 or len(numbers) % 2:
        raise RegionError(
            f"expected a box as x1, y1, x2, y2 or a polygon as x, y, x, y, x, y, ..., got {len(numbers)} numbers"
        )
    return polygon_of(numbers)


def _may_be_scored(numbers: list[Any]) -> bool:
    """Return whether 6 numbers look like a detector's row: x1, y1, x2, y2, confidence, class."""
    x1, y1, x2, y2, confidence, number = map(float, numbers)
    return x1 < x2 and y1 < y2 and 0 <= confidence <= 1 and number >= 0 and number.is_integer()


def _of_mapping(entry: Mapping[str, Any], image_wh: ImageSize) -> Region:
    for key, make in _GEOMETRIES.items():
        if entry.get(key) is not None and not (key == "segmentation" and _is_empty(entry[key])):
            return make(entry, image_wh)
    raise RegionError(f"expected a region with one of the keys {', '.join(_GEOMETRIES)}, got {_keys(entry)}")


def _of_kind(entry: Mapping[str, Any], _: ImageSize) -> Region:
    return from_dict({key: value for key, value in entry.items() if key not in DETECTION_KEYS})


def _of_box(entry: Mapping[str, Any], image_wh: ImageSize) -> Region:
    """Return the box or rotated box of named corners, as Hugging Face's pipelines and ultralytics' summaries have."""
    box = entry["box"]
    for names in (("xmin", "ymin", "xmax", "ymax"), ("x1", "y1", "x2", "y2")):
        if isinstance(box, Mapping) and set(names) == set(box):
            return box_within([box[name] for name in names], image_wh)
    if isinstance(box, Mapping) and set(box) == {f"{axis}{corner}" for axis in "xy" for corner in (1, 2, 3, 4)}:
        return polygon_of([(box[f"x{corner}"], box[f"y{corner}"]) for corner in (1, 2, 3, 4)])
    got = _keys(box) if isinstance(box, Mapping) else type(box).__name__
    raise RegionError(f"box: expected a dictionary of xmin, ymin, xmax and ymax, got {got}")


def _of_segments(entry: Mapping[str, Any], _: ImageSize) -> Region:
    segments = entry["segments"]
    x, y = ([], []) if not isinstance(segments, Mapping) else (numbers_of(segments.get(axis)) for axis in "xy")
    if not x or len(x) != len(y):
        raise RegionError('segments: expected {"x": [...], "y": [...]}, as many of each')
    return polygon_of(list(zip(x, y, strict=True)))


def _of_segmentation(entry: Mapping[str, Any], _: ImageSize) -> Region:
    segmentation = entry["segmentation"]
    is_mask = isinstance(segmentation, (Mapping, Image.Image)) or (
        is_array(segmentation) and getattr(segmentation, "ndim", 0) > 1
    )
    return mask_of(segmentation) if is_mask else polygons_of(segmentation)


def _of_bbox(entry: Mapping[str, Any], image_wh: ImageSize) -> Region:
    numbers = numbers_of(entry["bbox"])
    if len(numbers) != 4:
        raise RegionError("bbox: expected the 4 numbers x, y, width, height, as COCO has them")
    x, y, width, height = numbers
    box = Box.from_xywh(x, y, width, height)
    if image_wh is not None and _are_corners(box, (width, height), image_wh):
        raise RegionError(
            f"bbox: {numbers} reaches outside the image of {image_wh[0]} x {image_wh[1]} pixels as x, y, width and "
            "height; give corners as xyxy"
        )
    return box if image_wh is None else cut_off(box, image_wh)


def _are_corners(box: Box, second: tuple[float, float], image_wh: tuple[int, int]) -> bool:
    """Return whether a corner and a size, which do not fit into the image, would as two corners."""
    fits_as_size = box.x2 <= image_wh[0] + _EDGE and box.y2 <= image_wh[1] + _EDGE
    fits_as_corners = box.x1 < second[0] <= image_wh[0] and box.y1 < second[1] <= image_wh[1]
    return fits_as_corners and not fits_as_size


def _of_sides(entry: Mapping[str, Any], image_wh: ImageSize) -> Region:
    missing = [side for side in _SIDES if side not in entry]
    if missing:
        raise RegionError(f"x_min: expected {', '.join(_SIDES)}, got no {missing[0]}")
    return box_within([entry[side] for side in _SIDES], image_wh)


_GEOMETRIES: Mapping[str, Callable[[Mapping[str, Any], ImageSize], Region]] = {
    "kind": _of_kind,
    "segmentation": _of_segmentation,
    "segments": _of_segments,
    "mask": lambda entry, _: mask_of(entry["mask"]),
    "counts": lambda entry, _: mask_of_runs(entry),
    "xyxy": lambda entry, image_wh: box_within(entry["xyxy"], image_wh),
    "box": _of_box,
    "bbox": _of_bbox,
    "x_min": _of_sides,
}
"""What makes the region of a dictionary, by the key that it takes it from; the first that is there counts."""


def _is_empty(value: object) -> bool:
    return is_list(value) and len(value) == 0  # type: ignore[arg-type]


def _first(entry: Mapping[str, Any], names: tuple[str, ...]) -> object:
    return next((entry[name] for name in names if entry.get(name) is not None), None)


def _keys(entry: Mapping[str, Any]) -> str:
    return ", ".join(list(map(str, entry))[:8]) or "none"
