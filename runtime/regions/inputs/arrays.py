"""Arrays, tensors, lists and numbers of any library, as NumPy's."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from runtime.errors import RegionError

AnyArray: TypeAlias = npt.NDArray[Any]


def is_array(value: object) -> bool:
    """Return whether a value is an array or a tensor of some library."""
    return hasattr(value, "__array__") and hasattr(value, "shape")


def is_list(value: object) -> bool:
    """Return whether a value is a sequence in order that is no text."""
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def is_number(value: object) -> bool:
    """Return whether a value is one number, perhaps as an array or a tensor without axes; truth values are none."""
    if is_array(value):
        return getattr(value, "ndim", 1) == 0 and "bool" not in str(getattr(value, "dtype", ""))
    return isinstance(value, (Real, Decimal)) and not isinstance(value, bool)


def is_row_of_numbers(values: Sequence[object]) -> bool:
    """Return whether a list holds nothing but numbers and what may stand in the place of some: texts, nothing."""
    numbers = [isinstance(value, bool) or is_number(value) for value in values]
    return any(numbers) and all(
        is_one or value is None or isinstance(value, str) for is_one, value in zip(numbers, values, strict=True)
    )


def is_flat(value: object) -> bool:
    """Return whether a value is a list of numbers, or an array with one axis; at least one number."""
    if is_array(value):
        return getattr(value, "ndim", 0) == 1 and len(value) > 0  # type: ignore[arg-type]
    return is_list(value) and len(value) > 0 and all(map(is_number, value))  # type: ignore[arg-type, call-overload]


def is_points(value: object) -> bool:
    """Return whether a value is a list of at least three points (x, y), or an array (P, 2) or OpenCV's (P, 1, 2)."""
    if is_array(value):
        shape = tuple(value.shape)  # type: ignore[attr-defined]
        return len(shape) in (2, 3) and shape[0] >= 3 and shape[1:] in ((2,), (1, 2))
    if not is_list(value) or len(value) < 3:  # type: ignore[arg-type]
        return False
    return all(is_flat(point) and len(point) == 2 for point in value)  # type: ignore[attr-defined]


def as_numpy(name: str, values: Any, shape: str) -> AnyArray:
    """Return arrays, lists and tensors as an array of numbers; tensors may be on a GPU and of any type.

    Args:
        name: what they are, for the message.
        shape: the shape that is expected, for the message.

    Raises:
        RegionError: they are no numbers, or boxes in another form than corners.
    """
    _check_box_format(name, values)
    try:
        if hasattr(values, "detach"):
            values = values.detach().cpu()
            values = values.float() if values.is_floating_point() else values
        elif is_list(values):
            values = [as_numpy(name, one, shape) if is_array(one) else one for one in values]
        array = np.asarray(values)
        array = array.astype(float) if array.dtype.kind == "O" else array
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:  # the last of integers beyond every float
        raise RegionError(f"detections: expected {name} as numbers of shape {shape}: {error}") from None
    if array.dtype.kind not in "biuf":
        raise RegionError(f"detections: expected {name} as numbers of shape {shape}, got {array.dtype}")
    return array


def numbers_of(value: Any) -> list[Any]:
    """Return the numbers of a flat list or array, which need not be finite; none of anything else."""
    if not is_flat(value):
        return []
    return list(as_numpy("numbers", value, "(n,)").tolist() if is_array(value) else value)


def _check_box_format(name: str, values: object) -> None:
    """Raise if a tensor says, as torchvision's `BoundingBoxes` does, that its numbers are not corners."""
    form = getattr(getattr(values, "format", None), "name", None)
    if isinstance(form, str) and hasattr(values, "canvas_size") and form != "XYXY":
        raise RegionError(f"detections: expected {name} in the format XYXY, got {form}: convert them first")
