"""Masks as others have them: arrays, pictures, run lengths, polygons, maps of ids."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from runtime.errors import RegionError
from runtime.regions.canvas import Region
from runtime.regions.inputs.arrays import AnyArray, as_numpy, is_array, is_flat, is_list, is_points, numbers_of
from runtime.regions.serialization import from_dict
from runtime.regions.shapes import Mask, Polygon, PolygonSet, check_mask_size

_HALF = 0.5
"""From this share on, a pixel of a mask of probabilities is inside, as for torchvision and COCO's masks."""


def mask_of(values: Any) -> Mask:
    """Return a mask of an array (H, W) or (1, H, W), of a picture, or of COCO's run lengths.

    Of floats in 0..1, those from 0.5 on are inside; of other numbers those that are not 0.

    Raises:
        RegionError: it is none of these, empty, a map of several labels, or of floats that are no probabilities.
    """
    if isinstance(values, Image.Image):
        return Mask(_picture(values))
    if isinstance(values, Mapping):
        return mask_of_runs(values)
    if is_array(values) and len(values.shape) in (2, 3):
        check_mask_size(values.shape)
    array = as_numpy("mask", values, "(H, W)")
    if array.ndim == 3 and array.shape[0] == 1:
        array = array[0]
    if array.ndim != 2:
        raise RegionError(f"mask: expected an array (H, W) or (1, H, W), got shape {array.shape}")
    return Mask(_inside(array))


def masks_of(values: Any) -> list[Any]:
    """Return what `mask_of` takes for each mask of an array (n, H, W) or (n, 1, H, W), or of a list.

    Raises:
        RegionError: they are neither.
    """
    if is_list(values):
        return list(values)
    array = as_numpy("mask", values, "(n, H, W)")
    if array.size == 0:
        return []
    if array.ndim == 4 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 3:
        hint = "; take one mask of each" if array.ndim == 4 else ""
        raise RegionError(f"detections: expected mask of shape (n, H, W), got {array.shape}{hint}")
    return list(array)


def mask_of_runs(runs: Mapping[str, Any]) -> Mask:
    """Return the mask of COCO's run lengths: {"size": [H, W], "counts": list, string or bytes}.

    Raises:
        RegionError: a key is missing, or they are no run lengths.
    """
    values = {key: _plain(runs[key]) for key in ("size", "counts") if key in runs}
    mask = from_dict({"kind": "mask", **values})
    assert isinstance(mask, Mask)
    return mask


def polygons_of(values: Any) -> Region:
    """Return the region of one polygon, or of a list of polygons that are one thing.

    Args:
        values: each polygon is a flat list [x, y, x, y, ...] or a list of points.

    Raises:
        RegionError: they are none.
    """
    if is_flat(values) or is_points(values):
        return polygon_of(values)
    if not is_list(values):
        raise RegionError(f"segmentation: expected polygons, run lengths or a mask, got {type(values).__name__}")
    parts = [polygon_of(part) for part in values]
    return parts[0] if len(parts) == 1 else PolygonSet(parts)


def polygon_of(values: Any) -> Polygon:
    """Return the polygon of a flat list [x, y, x, y, ...], of a list or an array of points (P, 2), or of (P, 1, 2).

    Raises:
        RegionError: it is neither, or has fewer than three points.
    """
    if is_points(values):
        return Polygon(as_numpy("points", values, "(P, 2)").reshape(-1, 2).tolist() if is_array(values) else values)
    if not is_flat(values):
        raise RegionError(f"polygon: expected [x, y, x, y, ...] or points (x, y), got {type(values).__name__}")
    numbers = numbers_of(values)
    if len(numbers) % 2:
        raise RegionError(f"polygon: expected x and y of each point in turn, got {len(numbers)} numbers")
    return Polygon(list(zip(numbers[::2], numbers[1::2], strict=True)))


def without_padding(masks: AnyArray, image_wh: tuple[int, int]) -> AnyArray:
    """Return masks (n, h, w) of a model's size without what ultralytics pads an image by on its way into the model.

    The image was made as large as it fits into the model's size, and put into the middle.
    """
    (height, width), (image_width, image_height) = masks.shape[-2:], image_wh
    gain = min(height / image_height, width / image_width)
    down, right = (height - image_height * gain) / 2, (width - image_width * gain) / 2
    # Half a pixel more goes below and to the right.
    top, left = round(down - 0.1), round(right - 0.1)
    return masks[..., top : height - round(down + 0.1), left : width - round(right + 0.1)]


def _inside(array: AnyArray) -> AnyArray:
    if array.dtype.kind == "f" and np.isfinite(array).all():
        return _inside_of_floats(array)
    if array.dtype.kind in "iu" and array.dtype.itemsize > 1 and array.size and array.max() > 1:
        labels = len(np.unique(array))
        if labels > 2:
            raise RegionError(
                f"mask: expected 0 outside and one other number inside, got {labels} numbers; of a map of labels, give "
                '{"segmentation": map, "segments_info": [{"id": 1}, ...]}'
            )
    return array


def _inside_of_floats(array: AnyArray) -> AnyArray:
    least, most = (array.min(), array.max()) if array.size else (0, 0)
    if least >= 0 and most <= 1:
        return array >= _HALF
    if least >= 0 and not ((array != 0) & (array != most)).any():
        return array != 0
    raise RegionError(f"mask: expected floats in 0..1, got {least:g} to {most:g}; of logits, give logits > 0")


def _picture(picture: Image.Image) -> AnyArray:
    """Return what is inside of a mask that is a picture: what is neither black nor transparent."""
    if picture.mode in ("1", "L", "F", "I") or picture.mode.startswith("I;16"):
        return _inside(np.asarray(picture))
    try:
        rgba = np.asarray(picture.convert("RGBA"))
    except (OSError, ValueError) as error:  # a mode without a way to RGB, or a file that breaks off
        raise RegionError(f"mask: a picture of mode {picture.mode} cannot be read: {error}") from None
    return rgba[:, :, :3].any(axis=2) & (rgba[:, :, 3] > 0)


def _plain(value: Any) -> Any:
    if isinstance(value, (bytes, bytearray)):
        return value.decode("latin-1")  # what is no character of run lengths is refused as such
    return as_numpy("counts", value, "(n,)").tolist() if is_array(value) else value
