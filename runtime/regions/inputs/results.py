"""What a detector found on one image: objects and dictionaries of boxes, masks, classes and scores by columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from runtime.errors import RegionError
from runtime.regions.canvas import Region
from runtime.regions.inputs.arrays import AnyArray, as_numpy, is_array, is_flat, is_list
from runtime.regions.inputs.entries import ImageSize, box_within
from runtime.regions.inputs.masks import mask_of, masks_of, polygon_of, without_padding
from runtime.regions.rows import RegionRow

_OBJECT_KEYS = ("xyxy", "xyxyn", "mask", "boxes", "masks", "obb")
"""Attributes of supervision's detections, of ultralytics' results, and of what is in these."""
_MAPPING_KEYS = ("boxes", "masks", "segments_info")
"""Keys of the results of torchvision, Hugging Face and SAM for one image."""

Column = Sequence[Any]


def is_results(value: object) -> bool:
    """Return whether a value holds what a detector found on one image."""
    if isinstance(value, Mapping):
        is_of_rows = value.get("xyxy") is not None and not is_flat(value["xyxy"])
        return "kind" not in value and (is_of_rows or any(key in value for key in _MAPPING_KEYS))
    return any(hasattr(value, name) for name in _OBJECT_KEYS) or _is_masks(value)


def rows_of_results(found: Any, image_wh: ImageSize) -> list[RegionRow]:
    """Return a row for each thing that a detector found, of its mask if there are masks, or of its box.

    Raises:
        RegionError: it holds neither boxes nor masks, they are of another shape or of another image, or there are not
            as many classes, confidences or ids.
    """
    if isinstance(found, Mapping):
        return _of_segments(found) if "segments_info" in found else _of_columns(found, image_wh)
    return _of_object(found, image_wh)


def rows_of_boxes(name: str, corners: Any, image_wh: ImageSize, **columns: Any) -> list[RegionRow]:
    """Return a row for each of boxes (n, 4).

    Raises:
        RegionError: they have another shape.
    """
    xyxy = as_numpy(name, corners, "(n, 4)")
    if xyxy.size == 0:
        return []
    if xyxy.ndim != 2 or xyxy.shape[1] != 4:
        raise RegionError(f"detections: expected {name} of shape (n, 4), got {xyxy.shape}")
    return _rows([partial(box_within, row, image_wh) for row in xyxy.tolist()], **columns)


def rows_of_masks(masks: Any, **columns: Any) -> list[RegionRow]:
    """Return a row for each of masks (n, H, W).

    Raises:
        RegionError: they have another shape.
    """
    return _rows([partial(mask_of, mask) for mask in masks_of(masks)], **columns)


def rows_of_polygons(polygons: Any, **columns: Any) -> list[RegionRow]:
    """Return a row for each of a list of polygons, or of an array (n, P, 2).

    Raises:
        RegionError: they are neither.
    """
    if not is_list(polygons) and not (is_array(polygons) and len(polygons.shape) == 3):
        raise RegionError(f"detections: expected polygons, one for each region, got {type(polygons).__name__}")
    return _rows([partial(polygon_of, points) for points in polygons], **columns)


def _of_object(found: Any, image_wh: ImageSize) -> list[RegionRow]:
    boxes, masks = _first(found, "boxes", "obb"), found if _is_masks(found) else _first(found, "masks")
    _check_image(found, image_wh)
    if boxes is None and masks is None:
        if not any(hasattr(found, name) for name in ("xyxy", "xyxyn", "mask")):
            raise RegionError("detections: expected boxes or masks, got neither")
        boxes = found
    columns = _columns_of(boxes, found)
    if masks is not None:
        return _as_many(_of_model_masks(masks, image_wh, columns), _first(boxes, "xyxy"))
    if _first(boxes, "mask") is not None:
        return _as_many(rows_of_masks(boxes.mask, **columns), _first(boxes, "xyxy"))
    if _first(boxes, "xyxyxyxy") is not None:
        return rows_of_polygons(as_numpy("xyxyxyxy", boxes.xyxyxyxy, "(n, 4, 2)"), **columns)
    return _of_corners(boxes, image_wh, columns)


def _of_corners(boxes: Any, image_wh: ImageSize, columns: Mapping[str, Any]) -> list[RegionRow]:
    if _first(boxes, "xyxy") is not None:
        return rows_of_boxes("xyxy", boxes.xyxy, image_wh, **columns)
    if _first(boxes, "xyxyn") is None:
        raise RegionError(f"detections: expected xyxy or mask, got {type(boxes).__name__} with neither")
    shares = as_numpy("xyxyn", boxes.xyxyn, "(n, 4)")
    if shares.size and (shares.ndim != 2 or shares.shape[1] != 4):
        raise RegionError(f"detections: expected xyxyn of shape (n, 4), got {shares.shape}")
    return rows_of_boxes("xyxyn", shares * np.tile(image_wh or (1, 1), 2) if shares.size else [], image_wh, **columns)


def _of_model_masks(masks: Any, image_wh: ImageSize, columns: Mapping[str, Any]) -> list[RegionRow]:
    """Return the rows of masks as ultralytics has them: at the size of the model's input, or as outlines."""
    data = _first(masks, "data")
    if data is None and _first(masks, "xy") is not None:
        return rows_of_polygons(masks.xy, **columns)
    array: AnyArray = as_numpy("masks", masks if data is None else data, "(n, H, W)")
    if array.size and array.ndim == 3 and data is not None and image_wh is not None:
        array = without_padding(array, image_wh)
    return rows_of_masks(array, **columns)


def _of_columns(found: Mapping[str, Any], image_wh: ImageSize) -> list[RegionRow]:
    """Return the rows of a dictionary of boxes, masks, labels and scores, as torchvision and Hugging Face have it."""
    labels, names = found.get("labels"), found.get("text_labels")
    if _is_of_names(labels):
        labels, names = None, labels if names is None else names
    columns = {
        "id": found.get("tracker_id"),
        "confidence": found.get("scores", found.get("confidence")),
        "class_id": found.get("class_id") if labels is None else labels,
        "class_name": found.get("class_name") if names is None else names,
    }
    if found.get("masks") is not None:
        return _as_many(rows_of_masks(found["masks"], **columns), found.get("boxes"))
    return rows_of_boxes("boxes", found.get("boxes", found.get("xyxy")), image_wh, **columns)


def _of_segments(found: Mapping[str, Any]) -> list[RegionRow]:
    """Return the rows of a map of ids and what is known of each, as Hugging Face's segmentation has it."""
    segmentation, segments = found.get("segmentation"), found["segments_info"]
    if is_list(segments) and len(segments) == 0:
        return []
    if not is_list(segments) or not all(isinstance(segment, Mapping) and "id" in segment for segment in segments):
        raise RegionError("segments_info: expected a list of dictionaries with an id each")
    if not is_array(segmentation):
        raise RegionError(
            "segmentation: expected a map of ids (H, W) beside segments_info, got "
            f"{type(segmentation).__name__}; leave out return_coco_annotation"
        )
    ids = as_numpy("segmentation", segmentation, "(H, W)")
    if ids.ndim == 3 and len(ids) == len(segments):  # return_binary_maps
        masks: list[Callable[[], Region]] = [partial(mask_of, mask) for mask in ids]
    else:
        masks = [partial(_segment, ids, segment["id"]) for segment in segments]
    return _rows(
        masks,
        id=[segment["id"] for segment in segments],
        class_id=[segment.get("label_id", segment.get("category_id")) for segment in segments],
        class_name=[segment.get("label") for segment in segments],
        confidence=[segment.get("score") for segment in segments],
    )


def _segment(ids: AnyArray, number: Any) -> Region:
    inside = ids == number
    if not inside.any():
        raise RegionError(f"segmentation: no pixel has the id {number}")
    return mask_of(inside)


def _columns_of(boxes: Any, found: Any) -> dict[str, Any]:
    """Return the arguments of `detection_of` for all rows, by the names of supervision and ultralytics."""
    class_ids = _first(boxes, "class_id", "cls")
    data = _first(boxes, "data")
    names: Any = data.get("class_name") if isinstance(data, Mapping) else None
    if names is None and class_ids is not None and _first(found, "names") is not None:
        names = [_name(found.names, number) for number in _column("cls", class_ids)]
    return {
        "id": _first(boxes, "tracker_id", "id"),
        "class_id": class_ids,
        "class_name": names,
        "confidence": _first(boxes, "confidence", "conf"),
    }


def _is_masks(value: Any) -> bool:
    """Return whether a value is the masks of ultralytics' results alone; its keypoints have nearly the same names."""
    return hasattr(value, "xyn") and hasattr(value, "data") and not hasattr(value, "has_visible")


def _name(names: Any, number: Any) -> str | None:
    try:
        key = int(number)
        return str(names[str(key) if isinstance(names, Mapping) and key not in names else key])  # names from JSON
    except (LookupError, TypeError, ValueError, OverflowError):
        return None


def _check_image(found: Any, image_wh: ImageSize) -> None:
    """Raise if results say, as ultralytics' do, that they are of an image of another size."""
    shape = _first(found, "orig_shape")
    if shape is None or image_wh is None:
        return
    sides = as_numpy("orig_shape", shape, "(2,)").ravel()
    if len(sides) < 2 or not np.isfinite(sides[:2].astype(float)).all():
        raise RegionError("detections: expected orig_shape as height and width")
    height, width = (int(side) for side in sides[:2])
    if (width, height) != image_wh:
        raise RegionError(
            f"detections: they are of an image of {width} x {height} pixels, and this one has {image_wh[0]} x "
            f"{image_wh[1]}: give the detector and the captioner the same image"
        )


def _rows(makers: Sequence[Callable[[], Region]], **columns: Any) -> list[RegionRow]:
    """Return a row for each region that is to be made, with its values of the columns.

    Raises:
        RegionError: a column has another number of values.
    """
    values = {name: _column(name, column) for name, column in columns.items() if column is not None}
    for name, column in values.items():
        if len(column) != len(makers):
            raise RegionError(f"detections: expected {len(makers)} of {name}, one for each region, got {len(column)}")
    return [
        RegionRow.made(make, **{name: column[number] for name, column in values.items()})
        for number, make in enumerate(makers)
    ]


def _as_many(rows: list[RegionRow], boxes: Any) -> list[RegionRow]:
    """Return the rows of masks after comparing their number with that of the boxes beside them, if there are any."""
    is_counted = is_list(boxes) or (is_array(boxes) and len(boxes.shape) > 0)
    if is_counted and len(boxes) != len(rows):
        raise RegionError(f"detections: expected as many masks as boxes, got {len(rows)} and {len(boxes)}")
    return rows


def _column(name: str, values: Any) -> Column:
    if is_list(values):
        return list(values)
    if is_array(values) and getattr(getattr(values, "dtype", None), "kind", "") in "OUS":
        return list(values.tolist())
    array = as_numpy(name, values, "(n,)")
    if array.ndim != 1:
        raise RegionError(f"detections: expected {name} of shape (n,), got {array.shape}")
    return list(array.tolist())


def _is_of_names(labels: Any) -> bool:
    return is_list(labels) and any(isinstance(label, str) for label in labels)


def _first(owner: Any, *names: str) -> Any:
    return next((value for name in names if (value := getattr(owner, name, None)) is not None), None)
