"""What TensorRT's ONNX parser takes, version by version: operators, opsets and the restrictions of single operators.

From NVIDIA's published tables; "will likely parse" is all that it can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

Version: TypeAlias = tuple[int, int]

NEWEST_OPSET: tuple[tuple[Version, int], ...] = (
    ((10, 0), 20),
    ((10, 9), 22),
    ((10, 13), 24),
)
"""The newest opset that each version, and those after it, reads."""

NEWEST_IR = 10

_ALWAYS = [
    "Abs",
    "Add",
    "And",
    "ArgMax",
    "ArgMin",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Concat",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "CumSum",
    "DepthToSpace",
    "DequantizeLinear",
    "Div",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "Loop",
    "LRN",
    "LSTM",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "Pad",
    "Pow",
    "PRelu",
    "QuantizeLinear",
    "RandomNormal",
    "RandomUniform",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "Round",
    "Scan",
    "ScatterElements",
    "ScatterND",
    "Shape",
    "Sigmoid",
    "Sign",
    "Sin",
    "Size",
    "Slice",
    "Softmax",
    "Softplus",
    "SpaceToDepth",
    "Split",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
]
_SINCE: dict[str, Version] = {
    **dict.fromkeys(_ALWAYS, (10, 0)),
    "Attention": (10, 14),
    "TensorScatter": (10, 15),
    "RotaryEmbedding": (10, 15),
    "RMSNormalization": (10, 15),
}

DATA_DEPENDENT = frozenset({"NonZero", "Unique", "Compress"})
"""Their output's shape depends on values, so a run can't be captured as a CUDA graph."""

CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
"""They may look at values on the host, so a run can't be captured as a CUDA graph."""

CONSTANT_INPUTS: dict[str, tuple[int, str]] = {
    **{f"Reduce{kind}": (1, "axes") for kind in ["L1", "L2", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare"]},
    "Squeeze": (1, "axes"),
    "Unsqueeze": (1, "axes"),
    "OneHot": (1, "depth"),
    "CumSum": (1, "axis"),
    "TopK": (1, "K"),
}
"""Inputs that must be known when the engine is built: which, and what it is called."""

LARGEST_K = 3839


@dataclass(frozen=True)
class Support:
    """What a version makes of an operator.

    Attributes:
        is_there: it is in the table of that version.
        since: the first version that has it; None if none has.
    """

    is_there: bool
    since: Version | None


def support(operator: str, version: Version) -> Support:
    """Whether a version has an operator of ONNX's own domain."""
    since = _SINCE.get(operator)
    return Support(since is not None and since <= version, since)


def newest_opset(version: Version) -> int:
    """The newest opset that a version reads."""
    return max(opset for since, opset in NEWEST_OPSET if since <= version)
