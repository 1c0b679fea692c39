"""The shapes that TensorRT's parser finds: ONNX's own inference, and where the parser was seen to differ from it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

import onnx
import onnx_ir
from onnx_ir import DataType, serde

from export.lint.quantizers import quantizer_misfit
from export.lint.support_table import INTEGERS, REAL, TAKES_ALL_INPUTS
from export.lint.tensors import KnownTensors, Shape, Size, input_of, int_attribute

Inferred: TypeAlias = "tuple[list[Shape | None], str | None]"
"""The shapes of a node's outputs, and why its inputs do not fit each other if they do not."""

MAX_RANK = 8
_OLDEST_RULES, _MODERN_RULES = 13, 18
"""The opset from which on the parser goes by the attributes and inputs that a node has, and one that has them all."""
_LEGAL = (DataType.FLOAT, DataType.INT64, DataType.BOOL, DataType.INT8, DataType.FLOAT16, DataType.INT32)
"""Dtypes to put in where ONNX does not accept the actual one."""
_CHECKED_LATER = frozenset({"Range", "Tile", "TopK"})
"""Operators whose inputs the parser was seen not to compare; the builder does."""


def infer_shapes(known: KnownTensors, node: onnx_ir.Node, opset: int) -> Inferred:
    """Return the shapes of a node's outputs, and what does not fit."""
    by_parser = _PARSER_SHAPES.get(node.op_type)
    if by_parser is not None:
        return by_parser(known, node)
    return _infer_by_onnx(known, node, opset)


def is_checked_later(node: onnx_ir.Node) -> bool:
    """Return whether the builder, and not the parser, refuses a node's inputs if they do not fit each other."""
    return node.op_type in _CHECKED_LATER


@lru_cache(maxsize=1)
def _schemas() -> Mapping[str, Sequence[onnx.defs.OpSchema]]:
    """Return all versions of each of ONNX's operators, the oldest first."""
    found: dict[str, list[onnx.defs.OpSchema]] = {}
    for one in onnx.defs.get_all_schemas_with_history():
        if one.domain == "":
            found.setdefault(one.name, []).append(one)
    return {name: sorted(schemas, key=lambda one: one.since_version) for name, schemas in found.items()}


def schema_of(operator: str, opset: int) -> onnx.defs.OpSchema | None:
    """Return an operator's schema: of the opset, or its first, as the parser reads operators newer than the opset."""
    versions = _schemas().get(operator, ())
    fitting = [one for one in versions if one.since_version <= opset]
    return fitting[-1] if fitting else next(iter(versions), None)


def _infer_by_onnx(known: KnownTensors, node: onnx_ir.Node, opset: int) -> Inferred:
    unknown: list[Shape | None] = [None] * len(node.outputs)
    opset = _parser_opset(node, opset)
    schema = schema_of(node.op_type, opset)
    has_graphs = any(one.type == onnx_ir.AttributeType.GRAPH for one in node.attributes.values())
    if schema is None or not schema.has_type_and_shape_inference_function or has_graphs:
        return unknown, None
    proto = serde.serialize_node(node)
    proto.domain = ""
    if node.op_type not in TAKES_ALL_INPUTS:
        del proto.input[schema.max_input :]
    known_attributes = [one for one in proto.attribute if one.name in schema.attributes]
    del proto.attribute[:]
    proto.attribute.extend(known_attributes)
    types = _legal_types(known, schema, proto.input)
    data = {}
    for name, kind in types.items():
        constant = known.constants.get(name) or _known_numbers(known, name)
        if constant is not None and constant.data_type == kind.tensor_type.elem_type:
            data[name] = constant
    opsets = [onnx.helper.make_opsetid("", max(opset, schema.since_version))]
    try:
        inferred = onnx.shape_inference.infer_node_outputs(schema, proto, types, data, opset_imports=opsets)
    except onnx.shape_inference.InferenceError as failure:
        return unknown, " ".join(str(failure).split())[:300]
    except (onnx.checker.ValidationError, ValueError):
        return unknown, None  # of dtypes, which do not matter here
    return [_shape(inferred.get(str(value.name))) for value in node.outputs], None


def _known_numbers(known: KnownTensors, name: str) -> onnx.TensorProto | None:
    """Return the value of a tensor that was computed of shapes and constants, if all of it is known."""
    numbers, shape, dtype = known.numbers.get(name, (None,)), known.shapes.get(name), known.dtypes.get(name)
    if shape is None or dtype is None or dtype not in INTEGERS or not all(isinstance(one, int) for one in numbers):
        return None
    return onnx.helper.make_tensor(name, dtype.value, shape, numbers)


def _parser_opset(node: onnx_ir.Node, opset: int) -> int:
    """Return the opset by whose rules the parser reads a node."""
    if node.op_type.startswith("Reduce") and "axes" in node.attributes:
        return min(opset, _OLDEST_RULES)
    return max(opset, _MODERN_RULES) if opset >= _OLDEST_RULES or len(node.inputs) > 1 else opset


def _shape(kind: onnx.TypeProto | None) -> Shape | None:
    if kind is None or not kind.tensor_type.HasField("shape"):
        return None
    return tuple(
        one.dim_value if one.HasField("dim_value") else one.dim_param or None for one in kind.tensor_type.shape.dim
    )


def _legal_types(
    known: KnownTensors, schema: onnx.defs.OpSchema, inputs: Sequence[str]
) -> Mapping[str, onnx.TypeProto]:
    """Return the inputs' types with their shapes, and with dtypes that the operator takes by ONNX's rules."""
    chosen: dict[str, DataType] = {}
    types = {}
    for index, name in enumerate(inputs):
        if not name or not schema.inputs:
            continue
        formal = schema.inputs[min(index, len(schema.inputs) - 1)]
        actual = known.dtypes.get(name, DataType.FLOAT)
        wanted = (DataType.FLOAT if actual in REAL else actual, *_LEGAL)
        legal = next((one for one in wanted if f"tensor({one.name.lower()})" in formal.types), DataType.FLOAT)
        dtype = chosen.setdefault(formal.type_str, legal)
        types[name] = onnx.helper.make_tensor_type_proto(dtype.value, known.shapes.get(name))
    return types


def broadcast(*shapes: Shape | None) -> tuple[Shape | None, str | None]:
    """Return the shape that shapes are broadcast to, and why they cannot be if they cannot."""
    given = [shape for shape in shapes if shape is not None]
    if len(given) < len(shapes):
        return None, None
    rank = max(map(len, given), default=0)
    result = []
    for sizes in zip(*((1,) * (rank - len(shape)) + shape for shape in given), strict=True):
        numbers = {size for size in sizes if isinstance(size, int) and size != 1}
        if len(numbers) > 1:
            return None, f"{' and '.join(map(str, given))} cannot be broadcast to one shape"
        others = {size for size in sizes if not isinstance(size, int)}
        result.append(numbers.pop() if numbers else (others.pop() if len(others) == 1 else None if others else 1))
    return tuple(result), None


def _transposed(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Apply as much of the permutation as the input has dimensions, and keep the others, as the parser does."""
    shape = known.shape(input_of(node, 0))
    if shape is None:
        return [None], None
    if "perm" not in node.attributes:
        return [shape[::-1]], None
    order = [int(one) for one in node.attributes["perm"].as_ints()][: len(shape)]
    order += range(len(order), len(shape))
    order = [one + len(shape) if one < 0 else one for one in order]
    if sorted(order) != list(range(len(shape))):
        return [None], f"perm {order} is no order of {len(shape)} dimensions"
    return [tuple(shape[one] for one in order)], None


def _normalized(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Leave scale and bias to the builder, and give the output the highest rank among them."""
    shapes = [known.shape(value) for value in node.inputs]
    if not shapes or None in shapes:
        return [None], None
    rank, axis = len(shapes[0] or ()), int_attribute(node, "axis", -1)
    if not -rank <= axis < rank:
        return [None], f"axis is {axis}; its input has {rank} dimensions"
    highest = max(len(shape) for shape in shapes if shape is not None)
    return [(1,) * (highest - rank) + (shapes[0] or ())], None


def _squeezed(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Compare volumes where they are known: to the parser this is a reshape."""
    shape, axes = known.shape(input_of(node, 0)), input_of(node, 1)
    if axes is not None and len(known.shape(axes) or ()) > 1:
        return [None], f"takes axes of {len(known.shape(axes) or ())} dimensions; expected 1"
    if shape is None:
        return [None], None
    if axes is None:
        listed = node.attributes["axes"].as_ints() if "axes" in node.attributes else None
        numbers: Shape | None = tuple(listed) if listed is not None else _axes_of_ones(shape)
    else:
        numbers = known.elements(axes)
    if numbers is None or not all(isinstance(one, int) for one in numbers):
        return [None], None
    axes_left = [int(one) % max(len(shape), 1) for one in numbers if isinstance(one, int)]
    if any(not -len(shape) <= int(one) < len(shape) for one in numbers if isinstance(one, int)):
        return [None], f"axes are {list(numbers)}; its input has {len(shape)} dimensions"
    if len(set(axes_left)) < len(axes_left):
        return [None], f"axes {list(numbers)} are not all different"
    left = tuple(one for index, one in enumerate(shape) if index not in axes_left)
    before, after = _volume(shape), _volume(left)
    if before is not None and after is not None and before != after:
        return [None], f"removes dimensions of the sizes {[shape[one] for one in axes_left]}; expected 1"
    return [left], None


def _volume(shape: Shape) -> int | None:
    """Return how many elements a shape has; None if that depends on a size that is not known."""
    sizes = [size for size in shape if isinstance(size, int)]
    return math.prod(sizes) if len(sizes) == len(shape) or 0 in sizes else None


def _axes_of_ones(shape: Shape) -> Shape:
    return tuple(index for index, size in enumerate(shape) if size == 1)


def _reshaped(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Compare volumes, as far as names of sizes cancel out."""
    shape, wanted = known.shape(input_of(node, 0)), known.elements(input_of(node, 1))
    if wanted is None:
        length = known.shape(input_of(node, 1))
        if length is not None and len(length) != 1:
            is_constant = any(value.name in known.constants for value in node.inputs[1:2] if value is not None)
            return ([()], None) if is_constant else ([None], f"takes a shape of {len(length)} dimensions; expected 1")
        count = length[0] if length is not None and len(length) == 1 else None
        return [(None,) * count if isinstance(count, int) else None], None
    sizes = list(wanted)
    if not int_attribute(node, "allowzero", 0) and 0 in sizes:
        if shape is None:
            return [tuple(None if size in (0, -1) else size for size in sizes)], None
        if any(size == 0 and index >= len(shape) for index, size in enumerate(sizes)):
            return [None], f"copies a dimension that {shape} lacks"
        sizes = [shape[index] if size == 0 else size for index, size in enumerate(sizes)]
    if sizes.count(-1) > 1 or any(isinstance(size, int) and size < -1 for size in sizes):
        return [None], f"reshapes to {sizes}"
    return _with_volume(shape, sizes)


def _with_volume(shape: Shape | None, sizes: list[int | str | None]) -> Inferred:
    """Return the shape of these sizes, with the size -1 such that the volume stays."""
    inner = [size for size in sizes if size != -1]
    message = f"reshapes {shape} to {sizes}"
    if -1 in sizes and 0 in inner:
        return [None], message
    unknown: Inferred = [tuple(None if size == -1 else size for size in sizes)], None
    if shape is None or None in shape or None in inner:
        return unknown
    names = sorted(str(size) for size in shape if isinstance(size, str))
    rest = sorted(str(size) for size in inner if isinstance(size, str))
    before = math.prod(size for size in shape if isinstance(size, int))
    after = math.prod(size for size in inner if isinstance(size, int))
    if -1 not in sizes:
        return ([None], message) if not names and not rest and before != after else unknown
    if names != rest:
        left = list((Counter(names) - Counter(rest)).elements())
        is_that_size = len(left) == 1 and len(names) == len(rest) + 1 and before == after
        return ([tuple(left[0] if size == -1 else size for size in sizes)], None) if is_that_size else unknown
    if after == 0 or before % after:
        return [None], message
    return [tuple(before // after if size == -1 else size for size in sizes)], None


def _sliced(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Require parameters of one length; the parser's default for the steps of int32 starts has the input's."""
    shape = known.shape(input_of(node, 0))
    starts, ends, axes, steps = (input_of(node, index) for index in range(1, 5))
    lengths = {known.shape(value) for value in (starts, ends, axes, steps) if value is not None}
    if axes is None and shape is not None:
        lengths.add((len(shape),))
    if len(lengths) > 1 and None not in lengths:
        return [None], f"starts, ends, axes and steps have the shapes {sorted(map(str, lengths))}; expected one"
    is_static = shape is not None and all(isinstance(size, int) for size in shape)
    if steps is None and known.dtype(starts) == DataType.INT32 and is_static and (len(shape or ()),) not in lengths:
        return [None], "has int32 starts and no steps; make them int64"
    return _infer_by_onnx(known, node, 20)


def _gemm(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Compare the bias with the product, which ONNX does not."""
    shapes, misfit = _infer_by_onnx(known, node, 20)
    bias = input_of(node, 2)
    if misfit is None and bias is not None and shapes[0] is not None:
        whole, misfit = broadcast(shapes[0], known.shape(bias))
        shapes = [whole]
    return shapes, misfit


def _pooled(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    kernel = tuple(node.attributes["kernel_shape"].as_ints()) if "kernel_shape" in node.attributes else ()
    return _filtered(known, node, kernel)


def _convolved(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Compare the image's channels and the shape that is given of the filter with the filter, which ONNX does not."""
    image, weights = known.shape(input_of(node, 0)), known.shape(input_of(node, 1))
    if image is None or weights is None or len(weights) < 2:
        return _infer_by_onnx(known, node, 20)
    if len(weights) == 3 != len(image):  # the parser reads it as one of a single row
        return [None], None
    if len(image) != len(weights):
        return [None], f"has an image {image} and a filter {weights}; expected as many dimensions"
    channels, groups = weights[1], int_attribute(node, "group", 1)
    if isinstance(channels, int) and _differ(image[1], channels * groups):
        return [None], f"has an image of {image[1]} channels; expected {channels * groups}"
    kernel = node.attributes["kernel_shape"].as_ints() if "kernel_shape" in node.attributes else weights[2:]
    if any(_differ(given, width) for given, width in zip(kernel, weights[2:], strict=False)):
        return [None], f"says that its filter is {tuple(kernel)}; expected {weights[2:]}"
    return _filtered(known, node, weights[2:])


def _filtered(known: KnownTensors, node: onnx_ir.Node, kernel: Shape) -> Inferred:
    """Compare the image with the filter, which ONNX does not."""
    image, count = known.shape(input_of(node, 0)), len(kernel)
    pads = list(node.attributes["pads"].as_ints()) if "pads" in node.attributes else [0] * (2 * count)
    steps = list(node.attributes["dilations"].as_ints()) if "dilations" in node.attributes else [1] * count
    mode = node.attributes["auto_pad"].as_string() if "auto_pad" in node.attributes else "NOTSET"
    if image is not None and mode in ("NOTSET", "VALID") and len(pads) == 2 * count == 2 * len(steps):
        for index, (size, width) in enumerate(zip(image[2:], kernel, strict=False)):
            if isinstance(size, int) and isinstance(width, int):
                needed = (width - 1) * steps[index] + 1
                if size + pads[index] + pads[index + count] < needed:
                    return [None] * len(node.outputs), f"has an image {image} smaller than its filter {kernel}"
    return _infer_by_onnx(known, node, 20)


def _elementwise(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Broadcast any number of operands."""
    shape, misfit = broadcast(*(known.shape(value) for value in node.inputs if value is not None))
    return [shape], misfit


def _product(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Read a single value as the parser does, as a matrix of one element."""
    first, second = (known.shape(input_of(node, index)) for index in range(2))
    if first is None or second is None or (first != () and second != ()):
        return _infer_by_onnx(known, node, 20)
    other = first or second
    if len(other) < 2:
        return [None], None
    if _differ(other[-2] if first == () else other[-1], 1):
        return [None], f"multiplies {first} by {second}"
    return [(*other[:-2], 1, other[-1]) if first == () else (*other[:-1], 1)], None


def _unsqueezed(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Require axes in one dimension, which ONNX does not."""
    axes = known.shape(input_of(node, 1))
    if axes is not None and len(axes) > 1:
        return [None], f"takes axes of {len(axes)} dimensions; expected 1"
    return _infer_by_onnx(known, node, 20)


def _gathered(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Check the axis alone, and leave indices to the builder."""
    shape, axis = known.shape(input_of(node, 0)), int_attribute(node, "axis", 0)
    if shape is not None and not -len(shape) <= axis < len(shape):
        return [None], f"axis is {axis}; its input has {len(shape)} dimensions"
    return _infer_by_onnx(known, node, 20)[0], None


def _split(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Check the axis alone, and leave sizes to the builder."""
    shape, axis = known.shape(input_of(node, 0)), int_attribute(node, "axis", 0)
    if shape is not None and not -len(shape) <= axis < len(shape):
        return [None] * len(node.outputs), f"axis is {axis}; its input has {len(shape)} dimensions"
    return _infer_by_onnx(known, node, 20)[0], None


def _along_axis(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Check the axis, which ONNX does not; of a scatter the parser takes the rank for one too."""
    shape, axis = known.shape(input_of(node, 0)), int_attribute(node, "axis", 0)
    beyond = 1 if node.op_type == "GatherElements" else 0
    if shape is not None and not -len(shape) <= axis <= len(shape) - beyond:
        return [None], f"axis is {axis}; its input has {len(shape)} dimensions"
    return _infer_by_onnx(known, node, 20)


def _attended(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Compare more of queries, keys and values than ONNX does."""
    shapes = [known.shape(input_of(node, index)) for index in range(3)]
    queries, keys, values = shapes
    if None in shapes or queries is None or keys is None or values is None:
        return [None] * len(node.outputs), None
    if {len(queries), len(keys), len(values)} == {4}:
        if any(_differ(one, other) for one, other in zip(keys, values, strict=True)):
            return [None], f"has keys {keys} and values {values}; expected one shape"
        if _differ(queries[0], keys[0]) or _differ(queries[3], keys[3]):
            return [None], f"has queries {queries} and keys {keys}; expected one batch and one width"
        if isinstance(queries[1], int) and isinstance(keys[1], int) and queries[1] % keys[1]:
            return [None], f"has {queries[1]} heads of queries and {keys[1]} of keys; expected a multiple"
    shapes, misfit = _infer_by_onnx(known, node, 23)
    return shapes, misfit


def _quantized(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    shape = known.shape(input_of(node, 0))
    return [(1,) if shape == () else shape], quantizer_misfit(known, node)


def _differ(one: Size, other: Size) -> bool:
    return isinstance(one, int) and isinstance(other, int) and one != other


def _expanded(known: KnownTensors, node: onnx_ir.Node) -> Inferred:
    """Check the rank of the sizes alone, and leave the sizes to the builder."""
    wanted = known.shape(input_of(node, 1))
    if wanted is not None and len(wanted) != 1:
        return [None], f"takes a shape of {len(wanted)} dimensions; expected 1"
    sizes, shape = known.elements(input_of(node, 1)), known.shape(input_of(node, 0))
    if sizes is None or shape is None:
        return _infer_by_onnx(known, node, 20)[0], None
    rank = max(len(shape), len(sizes))
    pairs = list(zip((1,) * (rank - len(shape)) + shape, (1,) * (rank - len(sizes)) + sizes, strict=True))
    if any(isinstance(size, int) and isinstance(wanted, int) and wanted < 0 for size, wanted in pairs):
        return [None], f"expands {shape} to {sizes}"
    return [tuple(size if one == 1 or (one is None and size != 1) else one for size, one in pairs)], None


_PARSER_SHAPES: Mapping[str, Callable[[KnownTensors, onnx_ir.Node], Inferred]] = {
    **dict.fromkeys(("AveragePool", "LpPool", "MaxPool"), _pooled),
    "Attention": _attended,
    "Conv": _convolved,
    "Expand": _expanded,
    **dict.fromkeys(TAKES_ALL_INPUTS - {"Concat"}, _elementwise),
    "Gather": _gathered,
    **dict.fromkeys(("GatherElements", "Scatter", "ScatterElements"), _along_axis),
    "Gemm": _gemm,
    "LayerNormalization": _normalized,
    "MatMul": _product,
    **dict.fromkeys(("DequantizeLinear", "QuantizeLinear"), _quantized),
    "Reshape": _reshaped,
    "Slice": _sliced,
    "Split": _split,
    "Squeeze": _squeezed,
    "Transpose": _transposed,
    "Unsqueeze": _unsqueezed,
}
