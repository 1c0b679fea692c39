"""The operators that the exporter writes: their element types and attributes. A graph with any other is refused.

`tests/bundle/test_admission.py` holds this table equal to what exported graphs have: an operator, type or value that
the exporter begins to write fails there until it has its place here, and so does one that it no longer writes.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from runtime.bundle.admission import shape_rules as rules
from runtime.bundle.admission.onnx_file import AttributeValue
from runtime.bundle.admission.shape_rules import ShapeRule

ELEMENT_TYPES: Mapping[int, str] = {
    1: "f32",
    2: "u8",
    3: "i8",
    7: "i64",
    9: "bool",
    10: "f16",
    16: "bf16",
    17: "f8",
}
"""The element types of exported graphs, by their numbers in onnx.TensorProto.DataType; f8 is FLOAT8E4M3FN."""
ELEMENT_BYTES: Mapping[str, int] = {
    **{"f32": 4, "u8": 1, "i8": 1, "i64": 8},
    **{"bool": 1, "f16": 2, "bf16": 2, "f8": 1},
}

IR_VERSIONS = frozenset({10})
OPSETS: Mapping[str, frozenset[int]] = {"": frozenset({20, 21}), "com.microsoft": frozenset({1})}
"""The versions of ONNX's own operators, and of ONNX Runtime's."""


@dataclass(frozen=True)
class AdmittedAttribute:
    """An attribute of an operator.

    Attributes:
        kind: the type of its value.
        values: those that the exporter writes; None where the operator's rule knows which are right.
        test: what a value must pass besides.
        optional: whether the exporter leaves it out of some nodes.
    """

    kind: type
    values: Collection[AttributeValue] | None = None
    test: Callable[[AttributeValue], bool] | None = None
    optional: bool = False

    def admits(self, value: AttributeValue) -> bool:
        """Return whether a node may have this value."""
        return (
            type(value) is self.kind
            and (self.values is None or value in self.values)
            and (self.test is None or self.test(value))
        )


def _one_of(*values: AttributeValue, optional: bool = False) -> AdmittedAttribute:
    return AdmittedAttribute(type(values[0]), values, optional=optional)


_POSITIVE = AdmittedAttribute(float, test=rules.is_positive)
_WHOLE_NUMBER, _WHOLE_NUMBERS = AdmittedAttribute(int), AdmittedAttribute(tuple)


@dataclass(frozen=True)
class AdmittedOperator:
    """An operator of exported graphs.

    Attributes:
        rule: what it makes of shapes.
        types: the element types of its inputs and of what it makes of them: "f32 f32 -> f32"; several where its outputs
            differ.
        attributes: all that its nodes have.
    """

    rule: ShapeRule
    types: tuple[str, ...]
    attributes: Mapping[str, AdmittedAttribute] = field(default_factory=dict)

    @cached_property
    def made_of(self) -> Mapping[str, tuple[str, ...]]:
        """The element types that it makes, by those of its inputs; only casts have several."""
        pairs = [one.split(" -> ") for one in self.types]
        return {taken: tuple(made for other, made in pairs if other == taken) for taken, _ in pairs}


def _each(*types: str, inputs: int = 1, made: str = "") -> tuple[str, ...]:
    """Return the rows of an operator whose inputs have one element type, which it keeps unless ``made`` is given."""
    return tuple(f"{' '.join([one] * inputs)} -> {made or one}" for one in types)


_FLOATS = ("f32", "f16", "bf16")

OPERATORS: Mapping[tuple[str, str], AdmittedOperator] = {
    # of values in the same place
    ("", "And"): AdmittedOperator(rules.elementwise, ("bool bool -> bool",)),
    ("", "Add"): AdmittedOperator(rules.add, _each(*_FLOATS, "i64", inputs=2)),
    ("", "Cast"): AdmittedOperator(
        rules.same_shape,
        (
            *("bool -> f32", "u8 -> f32"),
            *("f32 -> f16", "f32 -> bf16", "f16 -> f32", "bf16 -> f32"),
        ),
        {"to": _WHOLE_NUMBER},
    ),
    ("", "Div"): AdmittedOperator(rules.elementwise, _each("f32", inputs=2)),
    ("", "Equal"): AdmittedOperator(rules.elementwise, _each("i64", inputs=2, made="bool")),
    ("", "Exp"): AdmittedOperator(rules.same_shape, _each("f32")),
    ("", "Gelu"): AdmittedOperator(rules.same_shape, _each(*_FLOATS), {"approximate": _one_of("none", "tanh")}),
    ("", "Less"): AdmittedOperator(rules.elementwise, _each("f32", "i64", inputs=2, made="bool")),
    ("", "Log"): AdmittedOperator(rules.same_shape, _each("f32")),
    ("", "Max"): AdmittedOperator(rules.elementwise, _each("f32", inputs=2)),
    ("", "Min"): AdmittedOperator(rules.minimum, _each("i64", inputs=2)),
    ("", "Mul"): AdmittedOperator(rules.multiply, _each(*_FLOATS, "i64", inputs=2)),
    ("", "Clip"): AdmittedOperator(rules.at_least, _each("f32", inputs=2)),
    ("", "Relu"): AdmittedOperator(rules.same_shape, _each("f32")),
    ("", "Sigmoid"): AdmittedOperator(rules.same_shape, _each(*_FLOATS)),
    ("", "Sub"): AdmittedOperator(rules.elementwise, _each("f32", inputs=2)),
    ("", "Tanh"): AdmittedOperator(rules.same_shape, _each(*_FLOATS)),
    ("", "Where"): AdmittedOperator(rules.elementwise, ("bool f32 f32 -> f32",)),
    # along an axis
    ("", "ArgMax"): AdmittedOperator(
        rules.arg_max,
        _each("f32", "f16", made="i64"),
        {"axis": _one_of(-1), "keepdims": _one_of(0), "select_last_index": _one_of(0)},
    ),
    ("", "LayerNormalization"): AdmittedOperator(
        rules.layer_normalization,
        _each("f32", inputs=3),
        {"axis": _one_of(-1), "epsilon": _POSITIVE, "stash_type": _one_of(1)},
    ),
    ("", "ReduceL2"): AdmittedOperator(
        rules.reduce_axes, ("f32 i64 -> f32",), {"keepdims": _one_of(1), "noop_with_empty_axes": _one_of(0)}
    ),
    ("", "ReduceMean"): AdmittedOperator(
        rules.reduce_axes, ("f32 i64 -> f32",), {"keepdims": _one_of(1), "noop_with_empty_axes": _one_of(0)}
    ),
    ("", "ReduceMax"): AdmittedOperator(
        rules.reduce_axes,
        ("f32 i64 -> f32", "f16 i64 -> f16"),
        {"keepdims": _one_of(0, 1), "noop_with_empty_axes": _one_of(0, optional=True)},
    ),
    ("", "ReduceSum"): AdmittedOperator(
        rules.reduce_axes, ("f32 i64 -> f32",), {"keepdims": _one_of(0, 1), "noop_with_empty_axes": _one_of(0)}
    ),
    ("", "Softmax"): AdmittedOperator(rules.softmax, _each(*_FLOATS), {"axis": _one_of(-1)}),
    ("", "TopK"): AdmittedOperator(
        rules.top_k, ("f32 i64 -> f32 i64",), {"axis": _one_of(-1), "largest": _one_of(1), "sorted": _one_of(1)}
    ),
    # products
    ("", "Conv"): AdmittedOperator(
        rules.convolution,
        (*_each("f32", "f16", inputs=2), *_each("f32", "f16", inputs=3)),
        {
            **{"auto_pad": _one_of("NOTSET"), "dilations": _one_of((1, 1)), "group": _one_of(1)},
            **{"kernel_shape": _WHOLE_NUMBERS, "pads": _one_of((0, 0, 0, 0), (1, 1, 1, 1)), "strides": _WHOLE_NUMBERS},
        },
    ),
    ("", "AveragePool"): AdmittedOperator(
        rules.average,
        _each("f32"),
        {
            **{"auto_pad": _one_of("NOTSET"), "ceil_mode": _one_of(0), "count_include_pad": _one_of(1)},
            **{"kernel_shape": _WHOLE_NUMBERS, "pads": _one_of((0, 0, 0, 0)), "strides": _WHOLE_NUMBERS},
        },
    ),
    ("", "Gemm"): AdmittedOperator(
        rules.gemm,
        (*_each("f32", "f16", inputs=2), *_each(*_FLOATS, inputs=3)),
        {"alpha": _one_of(1.0), "beta": _one_of(1.0), "transA": _one_of(0), "transB": _one_of(0, 1)},
    ),
    ("", "MatMul"): AdmittedOperator(rules.matmul, _each(*_FLOATS, inputs=2)),
    ("com.microsoft", "MultiHeadAttention"): AdmittedOperator(
        rules.attention, _each("f16", inputs=3), {"num_heads": _WHOLE_NUMBER, "scale": _POSITIVE}
    ),
    # of 8 bits
    ("", "DequantizeLinear"): AdmittedOperator(
        rules.dequantize,
        ("i8 f32 -> f32", "i8 f32 i8 -> f32", "i8 f16 i8 -> f16", "f8 f16 f8 -> f16"),
        {"axis": _one_of(0, 1, optional=True), "block_size": _one_of(64, optional=True)},
    ),
    ("", "QuantizeLinear"): AdmittedOperator(
        rules.quantize,
        ("f32 f32 i8 -> i8", "f16 f16 i8 -> i8", "f16 f16 f8 -> f8"),
        {"axis": _one_of(1, optional=True)},
    ),
    # of places and shapes
    ("", "Concat"): AdmittedOperator(
        rules.concat,
        (*_each(*_FLOATS, inputs=2), *_each("f32", "i64", inputs=3), *_each("i64", inputs=5)),
        {"axis": _WHOLE_NUMBER},
    ),
    ("", "Expand"): AdmittedOperator(rules.expand, ("f32 i64 -> f32",)),
    ("", "Gather"): AdmittedOperator(
        rules.gather,
        tuple(f"{one} i64 -> {one}" for one in ("f32", "f16")),
        {"axis": AdmittedAttribute(int)},
    ),
    ("", "GatherElements"): AdmittedOperator(
        rules.gather_elements, tuple(f"{one} i64 -> {one}" for one in ("f32", "f16", "i64")), {"axis": _one_of(1)}
    ),
    ("", "Reshape"): AdmittedOperator(
        rules.reshape, tuple(f"{one} i64 -> {one}" for one in (*_FLOATS, "i64")), {"allowzero": _one_of(1)}
    ),
    ("", "Shape"): AdmittedOperator(
        rules.shape_of, _each("f32", "u8", "i64", "bool", made="i64"), {"start": _WHOLE_NUMBER, "end": _WHOLE_NUMBER}
    ),
    ("", "Slice"): AdmittedOperator(
        rules.slice_axes,
        (
            *(f"{one}{' i64' * parameters} -> {one}" for one in _FLOATS for parameters in (3, 4)),
            "bool i64 i64 i64 i64 -> bool",
        ),
    ),
    ("", "Split"): AdmittedOperator(
        rules.split, _each(*_FLOATS), {"axis": _one_of(-1, 2), "num_outputs": _one_of(2, 3)}
    ),
    ("", "Squeeze"): AdmittedOperator(rules.squeeze, tuple(f"{one} i64 -> {one}" for one in _FLOATS)),
    ("", "Transpose"): AdmittedOperator(rules.transpose, _each(*_FLOATS), {"perm": _WHOLE_NUMBERS}),
    ("", "Unsqueeze"): AdmittedOperator(
        rules.unsqueeze, tuple(f"{one} i64 -> {one}" for one in ("f32", "f16", "i64", "bool"))
    ),
}
