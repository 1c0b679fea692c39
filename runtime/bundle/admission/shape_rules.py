"""What each admitted operator makes of shapes, and of whole numbers: their bounds, and shapes that are computed.

A rule returns the shapes of a node's outputs, or refuses what the operator would not take for all sizes of the axes
that are chosen at run time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import TypeAlias

from runtime.bundle.admission.onnx_file import MAX_RANK, AttributeValue, NotAdmittedError
from runtime.bundle.admission.sizes import NONE, ONE, AxisSize, TensorShape, as_text, product

_INT64_MAX = 2**63 - 1
_LARGEST_NUMBER = 2**62
"""Of computed whole numbers, so that none overflows."""

Bounds: TypeAlias = "tuple[int, int]"


@dataclass(frozen=True)
class TensorFacts:
    """What is known of a tensor before anything runs.

    Attributes:
        dtype: its element type, by its short name in `operators.ELEMENT_TYPES`.
        bounds: the least and the largest of its values, if it is of int64.
        entries: its values, if it is a constant or a shape of few numbers.
    """

    dtype: str
    shape: TensorShape
    bounds: Bounds | None = None
    entries: TensorShape | None = None


@dataclass(frozen=True)
class Made:
    """What a rule knows of a node's outputs.

    Attributes:
        shapes: one for each output.
        multiply_adds: the terms of all its sums of products.
    """

    shapes: tuple[TensorShape, ...]
    bounds: Bounds | None = None
    entries: TensorShape | None = None
    multiply_adds: AxisSize = NONE


@dataclass(frozen=True)
class OperatorCall:
    """One use of an operator: its inputs and attributes, and the largest sizes of the axes chosen at run time."""

    inputs: tuple[TensorFacts, ...]
    attributes: Mapping[str, AttributeValue]
    num_outputs: int
    largest: Mapping[str, int]

    @property
    def shape(self) -> TensorShape:
        """The shape of the first input."""
        return self.inputs[0].shape

    def number(self, name: str, default: int = 0) -> int:
        """Return an attribute that is a whole number."""
        value = self.attributes.get(name, default)
        assert isinstance(value, int)
        return value

    def numbers(self, name: str) -> tuple[int, ...]:
        """Return an attribute that is a list of whole numbers."""
        value = self.attributes[name]
        assert isinstance(value, tuple)
        return value

    def entries(self, index: int) -> TensorShape:
        """Return the values of an input, which must be known before anything runs."""
        found = self.inputs[index].entries
        if found is None or len(self.inputs[index].shape) != 1:
            raise NotAdmittedError(f"its input {index} decides on shapes and is not a list of constants or sizes")
        return found

    def constants(self, index: int) -> tuple[int, ...]:
        """Return the values of an input, which must be constants."""
        found = self.entries(index)
        if any(one.axes for one in found):
            raise NotAdmittedError(f"its input {index} is not a constant")
        return tuple(one.factor for one in found)


ShapeRule: TypeAlias = Callable[[OperatorCall], Made]


def _require(holds: bool, expected: str, call: OperatorCall) -> None:
    if not holds:
        got = ", ".join(as_text(one.shape) for one in call.inputs)
        raise NotAdmittedError(f"expected {expected}, got inputs of shapes {got}")


def _axis(axis: int, rank: int) -> int:
    if not -rank <= axis < rank:
        raise NotAdmittedError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank


def _axes(axes: Sequence[int], rank: int) -> set[int]:
    found = {_axis(axis, rank) for axis in axes}
    if len(found) != len(axes):
        raise NotAdmittedError(f"axes {tuple(axes)} of a tensor with {rank} axes")
    return found


def broadcast(*shapes: TensorShape) -> TensorShape:
    """Return the shape that some shapes have together: along each axis they are equal, or 1."""
    result = list[AxisSize]()
    for sizes in zip_longest(*(reversed(shape) for shape in shapes), fillvalue=ONE):
        wide = {one for one in sizes if one != ONE}
        if len(wide) > 1:
            raise NotAdmittedError(f"shapes {', '.join(map(as_text, shapes))} do not fit each other")
        result.append(wide.pop() if wide else ONE)
    return tuple(reversed(result))


def _hull(call: OperatorCall) -> Bounds | None:
    """Return the bounds of values that are moved from the first input."""
    return call.inputs[0].bounds


def same_shape(call: OperatorCall) -> Made:
    """Compute each value from the one in its place."""
    return Made((call.shape,))


def elementwise(call: OperatorCall) -> Made:
    """Compute each value from those in its place, repeated along axes of size 1."""
    return Made((broadcast(*(one.shape for one in call.inputs)),))


def add(call: OperatorCall) -> Made:
    """Add; sums of whole numbers stay within int64."""
    return _arithmetic(call, lambda one, other: one + other)


def multiply(call: OperatorCall) -> Made:
    """Multiply; products of whole numbers stay within int64."""
    return _arithmetic(call, lambda one, other: one * other)


def minimum(call: OperatorCall) -> Made:
    """Take the smaller of two whole numbers."""
    shape = broadcast(*(one.shape for one in call.inputs))
    first, second = (one.bounds for one in call.inputs)
    if first is None or second is None:
        return Made((shape,))
    return Made((shape,), bounds=(min(first[0], second[0]), min(first[1], second[1])))


def _arithmetic(call: OperatorCall, compute: Callable[[int, int], int]) -> Made:
    shape = broadcast(*(one.shape for one in call.inputs))
    first, second = (one.bounds for one in call.inputs)
    if first is None or second is None:
        return Made((shape,))
    ends = [compute(one, other) for one in first for other in second]
    if max(map(abs, ends)) > _LARGEST_NUMBER:
        raise NotAdmittedError("computes whole numbers that int64 may not hold")
    return Made((shape,), bounds=(min(ends), max(ends)))


def softmax(call: OperatorCall) -> Made:
    """Normalise along an axis."""
    _axis(call.number("axis"), len(call.shape))
    return Made((call.shape,))


def layer_normalization(call: OperatorCall) -> Made:
    """Normalise the last axis; a scale and a bias for each of its places."""
    scale, bias = call.inputs[1].shape, call.inputs[2].shape
    _require(len(call.shape) > 0 and scale == bias == call.shape[-1:], "a scale and a bias for the last axis", call)
    return Made((call.shape,))


def matmul(call: OperatorCall) -> Made:
    """Multiply matrices (..., M, K) and (..., K, N)."""
    first, second = call.shape, call.inputs[1].shape
    _require(len(first) > 1 and len(second) > 1 and first[-1] == second[-2], "(..., M, K) and (..., K, N)", call)
    shape = (*broadcast(first[:-2], second[:-2]), first[-2], second[-1])
    return Made((shape,), multiply_adds=product(shape) * first[-1])


def gemm(call: OperatorCall) -> Made:
    """Multiply matrices (M, K) and (K, N), or (N, K) with transB, and add (N,)."""
    first, second = call.shape, call.inputs[1].shape
    _require(len(first) == len(second) == 2, "two matrices", call)
    inner, outer = reversed(second) if call.number("transB") else second
    _require(first[1] == inner, "(M, K) and (K, N)", call)
    _require(all(one.shape == (outer,) for one in call.inputs[2:]), "a bias (N,)", call)
    shape = (first[0], outer)
    return Made((shape,), multiply_adds=product(shape) * inner)


def convolution(call: OperatorCall) -> Made:
    """Sum (B, O, H', W') over windows of images (B, C, H, W) by a weight (O, C, k, k) and, maybe, a bias (O,)."""
    image, weight, *biases = (one.shape for one in call.inputs)
    _require(len(image) == len(weight) == 4 and image[1] == weight[1], "(B, C, H, W), (O, C, k, k)", call)
    _require(all(bias == weight[:1] for bias in biases), "a bias (O,)", call)
    kernel = tuple(AxisSize(one) for one in call.numbers("kernel_shape"))
    _require(kernel == weight[2:], "a weight of its kernel's size", call)
    shape = (image[0], weight[0], *_windows(call))
    return Made((shape,), multiply_adds=product(shape) * product(weight[1:]))


def average(call: OperatorCall) -> Made:
    """Average (B, C, H / k, W / k) the squares of maps (B, C, H, W)."""
    _require(len(call.shape) == 4, "(B, C, H, W)", call)
    _require(call.numbers("strides") == call.numbers("kernel_shape"), "whole squares", call)
    return Made(((*call.shape[:2], *_windows(call)),))


def at_least(call: OperatorCall) -> Made:
    """Raise values to a number."""
    _require(call.inputs[1].shape == (), "a number", call)
    return Made((call.shape,))


def _windows(call: OperatorCall) -> tuple[AxisSize, AxisSize]:
    """Return how many windows of a kernel fit into an image: without padding all of it, by whole windows."""
    kernels, strides, pads = (call.numbers(name) for name in ("kernel_shape", "strides", "pads"))
    _require(len(kernels) == len(strides) == 2 and min(*kernels, *strides) > 0, "whole patches", call)
    if kernels == strides and not any(pads):
        counts = [size.divided_by(AxisSize(one)) for size, one in zip(call.shape[2:], kernels, strict=True)]
        grid = [one for one in counts if one is not None]
        _require(len(grid) == len(counts), "whole patches", call)
    else:
        _require(all(not size.axes for size in call.shape[2:]), "an image of one size", call)
        _require(pads == tuple(one // 2 for one in (*kernels, *kernels)), "windows around places", call)
        grid = [
            AxisSize((size.factor + 2 * (kernel // 2) - kernel) // stride + 1)
            for size, kernel, stride in zip(call.shape[2:], kernels, strides, strict=True)
        ]
    height, width = grid
    return height, width


def attention(call: OperatorCall) -> Made:
    """Attend by queries, keys and values (B, T, D) of one shape, in heads that divide D."""
    shape, heads = call.shape, call.number("num_heads")
    _require(len(shape) == 3 and all(one.shape == shape for one in call.inputs), "three tensors (B, T, D)", call)
    _require(heads > 0 and shape[2].divided_by(AxisSize(heads)) is not None, "heads that divide D", call)
    return Made((shape,), multiply_adds=product(shape) * shape[1] * AxisSize(2))


def concat(call: OperatorCall) -> Made:
    """Join tensors along an axis, whose sizes are numbers; whole numbers are shapes."""
    axis = _axis(call.number("axis"), len(call.shape))
    joined = [one.shape[axis : axis + 1] for one in call.inputs]
    others = {one.shape[:axis] + one.shape[axis + 1 :] for one in call.inputs}
    _require(len(others) == 1 and all(len(one) == 1 for one in joined), "shapes that differ along the axis only", call)
    _require(not any(one[0].axes for one in joined), "an axis of fixed sizes", call)
    shape = (*call.shape[:axis], AxisSize(sum(one[0].factor for one in joined)), *call.shape[axis + 1 :])
    if call.inputs[0].bounds is None:
        return Made((shape,))
    bounds = [one.bounds for one in call.inputs if one.bounds is not None]
    entries = sum((call.entries(index) for index in range(len(call.inputs))), ())
    _require(len(entries) <= MAX_RANK, f"a shape of at most {MAX_RANK} axes", call)
    return Made((shape,), (min(low for low, _ in bounds), max(high for _, high in bounds)), entries)


def split(call: OperatorCall) -> Made:
    """Divide an axis into equal parts."""
    axis, parts = _axis(call.number("axis"), len(call.shape)), call.number("num_outputs")
    part = call.shape[axis].divided_by(AxisSize(parts))
    _require(parts == call.num_outputs and part is not None, "equal parts, one for each output", call)
    assert part is not None
    return Made(((*call.shape[:axis], part, *call.shape[axis + 1 :]),) * parts)


def slice_axes(call: OperatorCall) -> Made:
    """Take ranges of axes, whole ones or of fixed sizes, one place after another."""
    starts, ends, axes = (call.constants(index) for index in (1, 2, 3))
    steps = call.constants(4) if len(call.inputs) > 4 else (1,) * len(axes)
    _require(len(starts) == len(ends) == len(axes) and set(steps) == {1}, "ranges of steps of 1", call)
    _require(len(steps) == len(axes), "a step for each axis", call)
    _axes(axes, len(call.shape))
    shape = list(call.shape)
    for start, end, axis in zip(starts, ends, axes, strict=True):
        if (start, end) == (0, _INT64_MAX):
            continue
        _require(not shape[axis].axes, "a range of an axis of fixed size", call)
        size = shape[axis].factor
        taken = len(range(size)[start:end])
        _require(taken > 0, "a range that is not empty", call)
        shape[axis] = AxisSize(taken)
    return Made((tuple(shape),), bounds=_hull(call))


def squeeze(call: OperatorCall) -> Made:
    """Drop axes of size 1."""
    axes = _axes(call.constants(1), len(call.shape))
    _require(all(call.shape[axis] == ONE for axis in axes), "axes of size 1", call)
    return Made((tuple(size for axis, size in enumerate(call.shape) if axis not in axes),), bounds=_hull(call))


def unsqueeze(call: OperatorCall) -> Made:
    """Insert axes of size 1."""
    added = call.constants(1)
    rank = len(call.shape) + len(added)
    axes, sizes = _axes(added, rank), iter(call.shape)
    return Made((tuple(ONE if axis in axes else next(sizes) for axis in range(rank)),), bounds=_hull(call))


def transpose(call: OperatorCall) -> Made:
    """Put axes in another order."""
    order = call.numbers("perm")
    _require(sorted(order) == list(range(len(call.shape))), "an order of all axes", call)
    return Made((tuple(call.shape[axis] for axis in order),), bounds=_hull(call))


def reshape(call: OperatorCall) -> Made:
    """Give the same values other axes; one of them may be computed (-1)."""
    target = call.entries(1)
    computed = AxisSize(-1)
    given = product(one for one in target if one != computed)
    rest = product(call.shape).divided_by(given)
    _require(all(one == computed or one.factor > 0 for one in target) and rest is not None, "as many values", call)
    assert rest is not None
    _require(target.count(computed) == 1 or (target.count(computed) == 0 and rest == ONE), "as many values", call)
    return Made((tuple(rest if one == computed else one for one in target),), bounds=_hull(call))


def expand(call: OperatorCall) -> Made:
    """Repeat along axes of size 1."""
    target = call.entries(1)
    _require(all(one.factor > 0 for one in target), "sizes of at least 1", call)
    return Made((broadcast(call.shape, target),), bounds=_hull(call))


def shape_of(call: OperatorCall) -> Made:
    """Return the sizes of a range of axes."""
    entries = call.shape[call.number("start") : call.number("end")]
    _require(len(entries) > 0, "a range of axes", call)
    largest = max(one.at(call.largest) for one in entries)
    return Made(((AxisSize(len(entries)),),), bounds=(1, largest), entries=entries)


def gather(call: OperatorCall) -> Made:
    """Take the places of an axis that whole numbers name, all of which are there."""
    axis = _axis(call.number("axis"), len(call.shape))
    _check_places(call, axis)
    return Made(((*call.shape[:axis], *call.inputs[1].shape, *call.shape[axis + 1 :]),), bounds=_hull(call))


def gather_elements(call: OperatorCall) -> Made:
    """Take one place of an axis for each whole number, all of which are there."""
    axis, places = _axis(call.number("axis"), len(call.shape)), call.inputs[1].shape
    others = call.shape[:axis], call.shape[axis + 1 :]
    _require(len(places) == len(call.shape) and (places[:axis], places[axis + 1 :]) == others, "places", call)
    _check_places(call, axis)
    return Made((places,), bounds=_hull(call))


def _check_places(call: OperatorCall, axis: int) -> None:
    """Raise unless whole numbers are places of an axis: not every executor looks before it reads there.

    An axis whose size is chosen at run time has at least as many as its factor.
    """
    bounds, size = call.inputs[1].bounds, call.shape[axis]
    if bounds is None or not -size.factor <= bounds[0] <= bounds[1] < size.factor:
        raise NotAdmittedError(f"takes places {bounds} of an axis of size {size}")


def arg_max(call: OperatorCall) -> Made:
    """Find the place of the largest value along an axis of fixed size, and drop the axis."""
    axis = _axis(call.number("axis"), len(call.shape))
    _require(not call.shape[axis].axes, "an axis of fixed size", call)
    return Made((call.shape[:axis] + call.shape[axis + 1 :],), bounds=(0, call.shape[axis].factor - 1))


def top_k(call: OperatorCall) -> Made:
    """Find the largest values along the last axis, which has a fixed size, and their places."""
    *others, size = call.shape
    (count,) = call.constants(1)
    _require(not size.axes and 0 < count <= size.factor, "an axis of fixed size, of at least as many values", call)
    return Made(((*others, AxisSize(count)),) * 2, bounds=(0, size.factor - 1))


def reduce_axes(call: OperatorCall) -> Made:
    """Reduce axes to one value."""
    axes = _axes(call.constants(1), len(call.shape))
    _require(len(axes) > 0, "axes to reduce", call)
    if call.number("keepdims"):
        return Made((tuple(ONE if axis in axes else size for axis, size in enumerate(call.shape)),))
    return Made((tuple(size for axis, size in enumerate(call.shape) if axis not in axes),))


def quantize(call: OperatorCall) -> Made:
    """Convert to or from 8 bits, by one scale and zero point or by one for each place of an axis."""
    _require(len(call.inputs) == 3, "a scale and a zero point", call)
    scale, zero_point = (one.shape for one in call.inputs[1:])
    per_axis: TensorShape = ()
    if "axis" in call.attributes:
        axis = _axis(call.number("axis"), len(call.shape))
        per_axis = call.shape[axis : axis + 1]
    _require(scale == zero_point == per_axis, "a scale and zero point for all, or for each place of an axis", call)
    return Made((call.shape,))


def dequantize(call: OperatorCall) -> Made:
    """Convert from 8 bits as `quantize` does to them, or by a scale for each block of values along the first axis."""
    if "block_size" not in call.attributes:
        return quantize(call)
    blocks = call.shape[0].divided_by(AxisSize(call.number("block_size"))) if len(call.shape) == 2 else None
    # Without an axis it would be the second.
    _require(blocks is not None and call.attributes.get("axis") == 0, "a matrix of whole blocks", call)
    scales = [one.shape for one in call.inputs[1:]]
    _require(scales == [(blocks, call.shape[1])], "a scale for each block, and no zero point", call)
    return Made((call.shape,))


def is_positive(value: AttributeValue) -> bool:
    """Return whether an attribute is a number above 0."""
    return isinstance(value, float) and value > 0
