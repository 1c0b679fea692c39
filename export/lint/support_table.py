"""The support of TensorRT's ONNX parser: operators, dtypes, and restrictions of single versions.

Operators and dtypes were read off the parser of TensorRT-RTX 1.7.1, whose rules are TensorRT 11's; a test asks it again
about each row that is `verified`. What older versions lack is from NVIDIA's published tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from onnx_ir import DataType

Version: TypeAlias = tuple[int, int]
Dtypes: TypeAlias = frozenset[DataType]

NEWEST_OPSET: tuple[tuple[Version, int], ...] = (
    ((10, 0), 20),
    ((10, 9), 22),
    ((10, 13), 24),
)
"""The newest opset that a version documents, for each version where that changed."""
MAX_IR_VERSION = 10
MAX_K = 3839
"""The largest K of TopK that versions before 11 document."""
LENIENT_SINCE: Version = (11, 0)
"""From this version on the parser was seen to read any opset and IR version, and what older documents restrict."""

FLOATS: Dtypes = frozenset({DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16})
INTEGERS: Dtypes = frozenset({DataType.INT32, DataType.INT64})
QUANTIZED: Dtypes = frozenset({DataType.INT8, DataType.FLOAT8E4M3FN, DataType.INT4, DataType.FLOAT4E2M1})
REAL = FLOATS | QUANTIZED
NUMBERS = REAL | INTEGERS
MOVABLE = NUMBERS | {DataType.BOOL}
READABLE = MOVABLE | {DataType.UINT8, DataType.DOUBLE}
"""What inputs and outputs may be, and casts make; float64 is truncated to float32."""

_BOOL, _FP32, _INT8 = (frozenset({one}) for one in (DataType.BOOL, DataType.FLOAT, DataType.INT8))
_FP32_FP16 = _FP32 | {DataType.FLOAT16}
PARAMETERS: Mapping[str, tuple[Dtypes, Dtypes, str]] = {
    "b": (_BOOL, _BOOL, "bool"),
    "d": (INTEGERS, MOVABLE - QUANTIZED, "an integer"),
    "f": (FLOATS, FLOATS, "a float"),
    "h": (_FP32_FP16, _FP32_FP16, "float32"),
    "i": (INTEGERS, INTEGERS, "an integer"),
    "k": (FLOATS | _BOOL, FLOATS | _BOOL, "a float or bool"),
    "l": (frozenset({DataType.INT64}), INTEGERS, "int64"),
    "m": (frozenset({DataType.INT64}), frozenset({DataType.INT64}), "int64"),
    "n": (MOVABLE, MOVABLE, "a number"),
    "q": (READABLE, FLOATS, "a float"),
    "s": (_FP32, _FP32, "float32"),
}
"""What inputs that are no operands may be: when computed, when constant, and in words."""


@dataclass(frozen=True)
class OperatorSupport:
    """An operator of ONNX's own domain that TensorRT's parser has.

    Attributes:
        dtypes: what its operands may be, all of them the same.
        inputs: a letter for each input, the last for all that follow: an operand (x), any dtype (a), or one of
            `PARAMETERS`.
        output: the dtype of its first output; None for the operands' or one that the node chooses.
        since: the first version that has it.
        verified: whether the real parser confirms the row; if not, it is from documents alone.
    """

    dtypes: Dtypes
    inputs: str = "x"
    output: DataType | None = None
    since: Version = (10, 0)
    verified: bool = True


def _rows(
    names: str,
    dtypes: Dtypes,
    inputs: str = "x",
    output: DataType | None = None,
    since: Version = (10, 0),
    verified: bool = True,
) -> dict[str, OperatorSupport]:
    return dict.fromkeys(names.split(), OperatorSupport(dtypes, inputs, output, since, verified))


_OPERATORS: Mapping[str, OperatorSupport] = {
    **_rows("Acos Acosh Asin Asinh Atan Atanh AveragePool Ceil Conv ConvTranspose Cos Cosh Einsum Elu Erf Exp", REAL),
    **_rows("Floor Gelu Gemm GridSample GroupNormalization HardSigmoid InstanceNormalization LRN", REAL),
    **_rows("LayerNormalization LeakyRelu Log LogSoftmax MatMul MaxPool PRelu Reciprocal Round Selu Sigmoid", REAL),
    **_rows("Sin Sinh Softmax Softplus Softsign Sqrt Tan Tanh ThresholdedRelu", REAL),
    **_rows("ReduceL2 ReduceLogSum ReduceLogSumExp", REAL, "xi"),
    **_rows("Resize", REAL, "xahi"),
    **_rows("Upsample", REAL, "xs"),
    **_rows("IsInf IsNaN", REAL, output=DataType.BOOL),
    **_rows("Swish", REAL, since=(11, 0)),
    **_rows("Abs Add Clip DepthToSpace Div GlobalAveragePool GlobalMaxPool Max Min Mul Neg Sign", NUMBERS),
    **_rows("SpaceToDepth Sub Sum", NUMBERS),
    **_rows("ReduceL1 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare TopK", NUMBERS, "xi"),
    **_rows("ArgMax ArgMin", NUMBERS, output=DataType.INT64),
    **_rows("Greater GreaterOrEqual Less LessOrEqual", NUMBERS, output=DataType.BOOL),
    **_rows("RMSNormalization", NUMBERS, "xa", since=(10, 15)),
    **_rows("Relu", REAL | {DataType.INT64}),
    **_rows("Shrink", _FP32_FP16 | {DataType.INT8} | INTEGERS),
    **_rows("HardSwish", _FP32_FP16 | {DataType.INT8}),
    **_rows("Concat EyeLike Transpose", MOVABLE),
    **_rows("Gather GatherElements GatherND Reshape ReverseSequence Slice Split Squeeze Trilu", MOVABLE, "xi"),
    **_rows("Unsqueeze", MOVABLE, "xi"),
    **_rows("Expand Tile", MOVABLE, "xl"),
    **_rows("Pad", MOVABLE, "xlai"),
    **_rows("Scatter ScatterElements ScatterND", MOVABLE, "xix"),
    **_rows("ConstantOfShape", MOVABLE, "i"),
    **_rows("Where", MOVABLE, "bx"),
    **_rows("OneHot", MOVABLE, "ndx"),
    **_rows("Constant Dropout Flatten Identity", MOVABLE | {DataType.UINT8}, "xa"),
    **_rows("Cast", MOVABLE | {DataType.UINT8}),
    **_rows("CastLike", MOVABLE | {DataType.UINT8}, "xa"),
    **_rows("Equal", MOVABLE | {DataType.UINT8}, output=DataType.BOOL),
    **_rows("Shape Size", MOVABLE | {DataType.UINT8}, output=DataType.INT64),
    **_rows("Pow", MOVABLE | {DataType.UINT8}, "xa"),
    **_rows("And Not Or Xor", _BOOL, output=DataType.BOOL),
    **_rows("Mean", FLOATS),
    **_rows("Hardmax LSTM RNN", FLOATS),
    **_rows("BatchNormalization", REAL, "xa"),
    **_rows("CumSum", FLOATS | INTEGERS, "xi"),
    **_rows("NonMaxSuppression", FLOATS, "xxmss", output=DataType.INT64),
    **_rows("QuantizeLinear", FLOATS, "xqa"),
    **_rows("DequantizeLinear", QUANTIZED, "xfa"),
    **_rows("STFT", FLOATS, "xifi"),
    **_rows("Attention", FLOATS, "fffka", since=(10, 14)),
    **_rows("RotaryEmbedding", FLOATS, "xxxi", since=(10, 15)),
    **_rows("TensorScatter", FLOATS, "xxa", since=(10, 15)),
    **_rows("Celu MeanVarianceNormalization", _FP32),
    **_rows("GlobalLpPool GRU LpNormalization LpPool Mish", _FP32_FP16),
    **_rows("RandomNormal RandomNormalLike RandomUniform RandomUniformLike", _FP32_FP16),
    **_rows("BlackmanWindow HammingWindow HannWindow", _FP32, "i"),
    **_rows("Mod", NUMBERS),
    **_rows("Range", _FP32 | INTEGERS),
    **_rows("If", MOVABLE, "b"),
    **_rows("Loop", MOVABLE, "iba"),
    **_rows("Scan", MOVABLE, "a"),
    **_rows("NonZero", NUMBERS | {DataType.BOOL}, output=DataType.INT64, verified=False),
    **_rows("RoiAlign", _FP32_FP16, "xxi", verified=False),
    **_rows("DeformConv", _FP32_FP16, since=(10, 15), verified=False),
}

NEEDS_PLUGIN = frozenset({"CausalConvWithState", "DeformConv", "LinearAttention", "NonZero", "RoiAlign"})
"""Operators that the parser makes by plug-ins, which TensorRT-RTX does not have; refused for all versions."""

DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress"})
"""Operators whose output's shape depends on values, so that a run can't be captured as a CUDA graph."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators that may read values on the host, so that a run can't be captured as a CUDA graph."""

CONSTANT_INPUTS: dict[str, tuple[int, str, Version | None]] = {
    **{
        f"Reduce{kind}": (1, "axes", None)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Squeeze": (1, "axes", None),
    "Unsqueeze": (1, "axes", None),
    "OneHot": (1, "depth", (11, 0)),
    "CumSum": (1, "axis", (11, 0)),
    "TopK": (1, "K", (11, 0)),
}
"""The input of each operator that must be known when the graph is parsed: its index, its name, and the version from
which on it may be computed."""


@dataclass(frozen=True)
class AttributeRestriction:
    """The values that TensorRT takes of an attribute, or of each element of a list.

    Attributes:
        expected: the fix, where the values do not say it.
    """

    allowed: tuple[int | float | str, ...]
    expected: str = ""


_ACTIVATIONS = (
    *("Relu", "LeakyRelu", "ThresholdedRelu", "Tanh", "ScaledTanh", "Sigmoid", "HardSigmoid", "Elu", "Softsign"),
    "Softplus",
)
_RANDOM = ("Normal", "NormalLike", "Uniform", "UniformLike")
_WINDOWS = ("Blackman", "Hamming", "Hann")
ATTRIBUTES: Mapping[tuple[str, str], AttributeRestriction] = {
    ("Attention", "softcap"): AttributeRestriction((0.0,), "none; compute it in primitives"),
    ("Attention", "softmax_precision"): AttributeRestriction((), "it to be left out"),
    **{(f"{kind}Pool", "dilations"): AttributeRestriction((1,)) for kind in ("Average", "Lp", "Max")},
    ("BatchNormalization", "training_mode"): AttributeRestriction((0,)),
    ("Gelu", "approximate"): AttributeRestriction(("none", "tanh")),
    ("LpNormalization", "p"): AttributeRestriction((1, 2)),
    ("LpPool", "p"): AttributeRestriction((1, 2)),
    ("LSTM", "input_forget"): AttributeRestriction((0,)),
    **{(operator, "activations"): AttributeRestriction(_ACTIVATIONS) for operator in ("GRU", "LSTM", "RNN")},
    **{(f"Random{kind}", "dtype"): AttributeRestriction((DataType.FLOAT, DataType.FLOAT16)) for kind in _RANDOM},
    ("Resize", "antialias"): AttributeRestriction((0,), "0; resize before the graph, or bake the result into it"),
    ("Resize", "coordinate_transformation_mode"): AttributeRestriction(
        ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
    ),
    ("Resize", "keep_aspect_ratio_policy"): AttributeRestriction(("stretch",)),
    ("Resize", "mode"): AttributeRestriction(("nearest", "linear", "cubic")),
    ("ScatterElements", "reduction"): AttributeRestriction(("none",)),
    ("ScatterND", "reduction"): AttributeRestriction(("none",)),
    **{(f"{kind}Window", "output_datatype"): AttributeRestriction((DataType.FLOAT,)) for kind in _WINDOWS},
}

OUTPUTS: Mapping[str, tuple[int, int]] = {
    **{"TopK": (2, 2), "Dropout": (1, 2), "LSTM": (1, 3), "GRU": (1, 2), "RNN": (1, 2)},
    **dict.fromkeys(("If", "Loop", "Scan", "Split"), (1, 1 << 31)),
}
"""The fewest and the most outputs of operators that do not have exactly one."""

TAKES_ONE_INPUT = frozenset({"Add", "And", "Div", "Equal", "Greater", "Less", "Mul", "Or", "Sub", "Xor"})
"""Operators of two operands that the parser also reads with one."""
TAKES_NO_MORE_INPUTS = frozenset(
    {
        "GridSample",
        "Pow",
        "PRelu",
        "RandomNormalLike",
        "RandomUniformLike",
        "ReverseSequence",
        "TopK",
        "Unsqueeze",
        "Upsample",
    }
)
"""Operators that the parser refuses with inputs that they do not have; others leave them out."""
TAKES_ALL_INPUTS = frozenset(
    {"Add", "And", "Concat", "Div", "Equal", "Greater", "Less", "Max", "Mean", "Min", "Mul", "Or", "Sub", "Sum", "Xor"}
)
"""Operators of which the parser takes any number of inputs as operands."""

OPTIONAL_INPUTS = frozenset({("TensorScatter", 2), ("NonMaxSuppression", 2)})
OPTIONAL_ATTRIBUTES = frozenset({("GroupNormalization", "num_groups"), ("TensorScatter", "axis")})
"""What ONNX requires and the parser does not."""
REQUIRED_ATTRIBUTES = frozenset({("LSTM", "hidden_size"), ("GRU", "hidden_size"), ("RNN", "hidden_size")})
"""What the parser requires and ONNX does not."""

MIN_RANKS: Mapping[str, int] = {
    **dict.fromkeys(("ArgMax", "ArgMin", "Hardmax", "LogSoftmax", "Softmax", "Trilu"), 2),
    **dict.fromkeys(("ConstantOfShape", "Flatten", "LpNormalization"), 1),
    **dict.fromkeys(
        ("GlobalAveragePool", "GlobalLpPool", "GlobalMaxPool", "GroupNormalization", "InstanceNormalization"), 3
    ),
    **dict.fromkeys(("LRN", "MeanVarianceNormalization"), 4),
}
"""The fewest dimensions of the first input, where that is not left to ONNX's inference."""
MAX_RANKS: Mapping[str, int] = dict.fromkeys(("BlackmanWindow", "HammingWindow", "HannWindow"), 0)
"""The most dimensions of the first input, likewise."""

FOLDS_SHAPES = frozenset({"Squeeze", "Unsqueeze"})
"""Operators whose constant input may also be computed of constants and shapes that are known."""


def operator_support(operator: str) -> OperatorSupport | None:
    """Return the row of an operator of ONNX's own domain; None where no version has it."""
    return _OPERATORS.get(operator)


def operators() -> Mapping[str, OperatorSupport]:
    """Return all rows."""
    return _OPERATORS


def supported_since(operator: str) -> Version | None:
    """Return the first version that has an operator of ONNX's own domain; None where none has."""
    row = _OPERATORS.get(operator)
    return row.since if row else None


def newest_opset(version: Version) -> int:
    """Return the newest opset that a version documents."""
    return max(opset for since, opset in NEWEST_OPSET if since <= version)
