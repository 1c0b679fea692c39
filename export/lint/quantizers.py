"""QuantizeLinear and DequantizeLinear as TensorRT's parser reads them, which compares more of them than ONNX does."""

from __future__ import annotations

import math

import onnx_ir
from onnx_ir import DataType

from export.lint.support_table import QUANTIZED
from export.lint.tensors import KnownTensors, Shape, Size, input_of, int_attribute

_OF_4_BITS = frozenset({DataType.INT4, DataType.FLOAT4E2M1})


def quantized_dtype(known: KnownTensors, node: onnx_ir.Node) -> DataType:
    """Return the dtype that a node rounds to or expands: that of its zero point, where that is one; else int8."""
    zero_point = input_of(node, 2)
    chosen = known.dtype(zero_point)
    if zero_point is None and node.op_type == "QuantizeLinear":
        chosen = DataType(int_attribute(node, "output_dtype", 0))
    return chosen if chosen is not None and chosen in QUANTIZED else DataType.INT8


def quantizer_misfit(known: KnownTensors, node: onnx_ir.Node) -> str | None:
    """Return why data, scales and zero point do not fit each other; None if they do, or not all is known."""
    shape, scales, zeros = (known.shape(input_of(node, index)) for index in range(3))
    if shape is None or scales is None or None in (*shape, *scales):
        return None
    dtype = quantized_dtype(known, node)
    is_compared = zeros is not None and dtype != DataType.FLOAT8E4M3FN and _is_static(scales)
    if is_compared and _volume(zeros or ()) != _volume(scales):
        return f"has scales {scales} and zero points {zeros}; expected as many"
    if dtype in _OF_4_BITS and _is_static(shape) and _volume(shape) % 2:
        return f"rounds {shape} to 4 bits; expected an even number of elements"
    return None if scales in ((), (1,)) else _scales_misfit(shape, scales, int_attribute(node, "axis", 1))


def _scales_misfit(shape: Shape, scales: Shape, axis: int) -> str | None:
    """Return why scales do not fit data: they are of each index along the axis, or of blocks along it."""
    rank = len(shape)
    place = axis + rank if axis < 0 else axis
    if not 0 <= place <= rank:  # the parser takes the rank for one too
        return f"axis is {axis}; its input has {rank} dimensions"
    count = shape[place] if place < rank else 0
    if len(scales) == 1:
        return None if scales[0] == count else f"has {scales[0]} scales for a dimension of {count}"
    scale_count = scales[place] if len(scales) == rank and place < rank else None
    if not isinstance(scale_count, int) or scale_count == 0:
        return f"has scales {scales} for {shape}, axis {axis}"
    is_known = _is_static(shape) and _is_static(scales)
    has_blocks = not isinstance(count, int) or (count % scale_count == 0 and (count > scale_count or not is_known))
    others = [pair for index, pair in enumerate(zip(shape, scales, strict=True)) if index != place]
    if not has_blocks or any(_differ(*pair) for pair in others) or place < rank - 2 or _volume(scales) == 1:
        return f"has scales {scales} for {shape}; expected blocks along axis {axis} alone, one of the last two"
    return None


def _differ(one: Size, other: Size) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _is_static(shape: Shape) -> bool:
    return all(isinstance(size, int) for size in shape)


def _volume(shape: Shape) -> int:
    """Return how many elements a shape has; as to the parser, a size that is not known counts as -1."""
    return math.prod(size if isinstance(size, int) else -1 for size in shape)
