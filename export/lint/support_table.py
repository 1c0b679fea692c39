"""The support of TensorRT's ONNX parser, version by version: operators, opsets and restrictions of single operators.

From NVIDIA's published tables; "will likely parse" is all that they can tell.
"""

from __future__ import annotations

from typing import TypeAlias

Version: TypeAlias = tuple[int, int]

NEWEST_OPSET: tuple[tuple[Version, int], ...] = (
    ((10, 0), 20),
    ((10, 9), 22),
    ((10, 13), 24),
)
"""The newest opset that a version reads, for each version where that changed."""

MAX_IR_VERSION = 10
MAX_K = 3839
"""The largest K of TopK."""

_ALWAYS = (
    *("Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "BatchNormalization", "Cast", "CastLike"),
    *("Ceil", "Celu", "Clip", "Concat", "Constant", "ConstantOfShape", "Conv", "ConvTranspose", "Cos"),
    *("CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand"),
    *("EyeLike", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm"),
    *("GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample", "GroupNormalization"),
    *("HardSigmoid", "HardSwish", "Identity", "If", "InstanceNormalization", "IsInf", "IsNaN"),
    *("LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax", "Loop", "LRN", "LSTM"),
    *("MatMul", "Max", "MaxPool", "Mean", "Min", "Mish", "Mod", "Mul", "Neg", "NonZero", "Not", "OneHot"),
    *("Or", "Pad", "Pow", "PRelu", "QuantizeLinear", "RandomNormal", "RandomUniform", "Range", "Reciprocal"),
    *("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum"),
    *("ReduceSumSquare", "Relu", "Reshape", "Resize", "Round", "Scan", "ScatterElements", "ScatterND"),
    *("Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax", "Softplus", "SpaceToDepth", "Split"),
    *("Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "ThresholdedRelu", "Tile", "TopK", "Transpose", "Trilu"),
    *("Unsqueeze", "Where", "Xor"),
)
_SINCE: dict[str, Version] = {
    **dict.fromkeys(_ALWAYS, (10, 0)),
    "Attention": (10, 14),
    "TensorScatter": (10, 15),
    "RotaryEmbedding": (10, 15),
    "RMSNormalization": (10, 15),
}

DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress"})
"""Operators whose output's shape depends on values, so that a run can't be captured as a CUDA graph."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""Operators that may read values on the host, so that a run can't be captured as a CUDA graph."""

CONSTANT_INPUTS: dict[str, tuple[int, str]] = {
    **{f"Reduce{kind}": (1, "axes") for kind in ["L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]},
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
    "OneHot": (1, "depth"),
    "CumSum": (1, "axis"),
    "TopK": (1, "K"),
}
"""The input of each operator that must be known when the engine is built: its index and its name."""


def supported_since(operator: str) -> Version | None:
    """Return the first version that has an operator of ONNX's own domain; None where none has."""
    return _SINCE.get(operator)


def newest_opset(version: Version) -> int:
    """Return the newest opset that a version reads."""
    return max(opset for since, opset in NEWEST_OPSET if since <= version)
