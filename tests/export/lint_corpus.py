"""Small graphs for the linter and NVIDIA's parser to judge: every operator, every restriction, good and bad.

Nothing here says what the verdict is: the parser does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT, HALF, BFLOAT16, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
INT8, UINT8, INT32, INT64, BOOL = (
    *(TensorProto.INT8, TensorProto.UINT8, TensorProto.INT32, TensorProto.INT64, TensorProto.BOOL),
)
DTYPES: Mapping[str, int] = {
    **{"float32": FLOAT, "float16": HALF, "bfloat16": BFLOAT16, "float64": DOUBLE},
    **{"int8": INT8, "uint8": UINT8, "int32": INT32, "int64": INT64, "bool": BOOL},
}
_INTEGERS = (INT8, UINT8, INT32, INT64, BOOL)

Size: TypeAlias = "int | str"
Weight: TypeAlias = "tuple[Any, int]"
"""Values and dtype."""
Value: TypeAlias = "tuple[str, int, Sequence[Size] | None]"


def tensor(name: str, values: Any, dtype: int) -> onnx.TensorProto:
    array = np.asarray(values, np.int64 if dtype in _INTEGERS else np.float64)
    return helper.make_tensor(name, dtype, array.shape, array.flatten().tolist())


def graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Value],
    outputs: Sequence[Value] = (("y", FLOAT, None),),
    weights: Mapping[str, Weight] | None = None,
    opset: int = 20,
    ir_version: int = 10,
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [tensor(name, *weight) for name, weight in (weights or {}).items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)


@dataclass(frozen=True)
class Sample:
    """A graph of one operator, in any dtype.

    Attributes:
        inputs: the names of the node's inputs: tensors of the dtype (2, 8) unless said otherwise.
        shapes: other shapes of tensors.
        dtypes: tensors whose dtype is fixed.
        weights: which of the inputs are constants of the dtype, with their values.
        parameters: the same for constants of a fixed dtype.
        dtype_attribute: the attribute that chooses the dtype.
    """

    operator: str
    inputs: tuple[str, ...] = ("x",)
    shapes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    dtypes: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Weight] = field(default_factory=dict)
    outputs: int = 1
    opset: int = 20
    attributes: Mapping[str, Any] = field(default_factory=dict)
    dtype_attribute: str = ""

    def model(self, dtype: int) -> onnx.ModelProto:
        attributes = dict(self.attributes)
        if self.dtype_attribute == "value":
            attributes["value"] = tensor("value", np.ones(1), dtype)
        elif self.dtype_attribute:
            attributes[self.dtype_attribute] = dtype
        names = [f"y{index}" for index in range(self.outputs)]
        node = helper.make_node(self.operator, self.inputs, names, **attributes)
        given = [
            name for name in dict.fromkeys(self.inputs) if name and name not in {**self.weights, **self.parameters}
        ]
        weights = {name: (values, dtype) for name, values in self.weights.items()}
        model = graph(
            [node],
            [(name, self.dtypes.get(name, dtype), self.shapes.get(name, (2, 8))) for name in given],
            [(name, TensorProto.UNDEFINED, None) for name in names],
            {**weights, **self.parameters},
            self.opset,
        )
        return with_output_dtypes(model, dtype)


def with_output_dtypes(model: onnx.ModelProto, default: int) -> onnx.ModelProto:
    """Declare the dtypes of outputs that ONNX infers."""
    try:
        inferred = onnx.shape_inference.infer_shapes(model).graph.output
    except onnx.shape_inference.InferenceError:
        inferred = model.graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        value.type.tensor_type.elem_type = found.type.tensor_type.elem_type or default
    return model


def _unary(names: str, **more: Any) -> dict[str, Sample]:
    return {name: Sample(name, **more) for name in names.split()}


def _binary(names: str, **more: Any) -> dict[str, Sample]:
    return {name: Sample(name, ("x", "z"), **more) for name in names.split()}


def _ints(*values: Any) -> Weight:
    return np.array(values), INT64


_IMAGE = {"x": (1, 4, 8, 8)}
_FILTER, _CHANNELS = np.ones((4, 4, 3, 3)), np.ones(4)
_SEQUENCE = {"x": (3, 2, 8)}
_QKV = dict.fromkeys("qkv", (1, 2, 8, 64))
_SIZES = {"sizes": _ints(1, 4, 16, 16)}
_PADS = {"pads": _ints(0, 1, 0, 1)}
_AXES = {"axes": _ints(1)}
_ROWS = {"indices": ([[0] * 8], INT64)}


def _recurrent(operator: str, gates: int) -> Sample:
    weights = {"w": np.ones((1, gates * 4, 8)), "r": np.ones((1, gates * 4, 4))}
    return Sample(operator, ("x", "w", "r"), _SEQUENCE, weights=weights, attributes={"hidden_size": 4})


SAMPLES: Mapping[str, Sample] = {
    **_unary("Abs Acos Acosh ArgMax ArgMin Asin Asinh Atan Atanh Ceil Celu Clip Cos Cosh Dropout Elu Erf Exp Flatten"),
    **_unary("Floor Gelu HardSigmoid HardSwish Hardmax Identity IsInf IsNaN LeakyRelu Log LogSoftmax LpNormalization"),
    **_unary("Mish Neg Not RandomNormalLike RandomUniformLike Reciprocal Relu Round Selu Shape Shrink Sigmoid Sign"),
    **_unary("Sin Sinh Size Softmax Softplus Softsign Sqrt Squeeze Tan Tanh ThresholdedRelu Transpose Trilu"),
    **_unary("Bernoulli BitwiseNot Det NonZero Unique"),
    **_unary("Swish", opset=24),
    **_unary("GlobalAveragePool GlobalLpPool GlobalMaxPool MeanVarianceNormalization", shapes=_IMAGE),
    **_unary("AveragePool LpPool MaxPool", shapes=_IMAGE, attributes={"kernel_shape": [2, 2]}),
    **_unary("DepthToSpace SpaceToDepth", shapes=_IMAGE, attributes={"blocksize": 2}),
    **_unary("LRN", shapes=_IMAGE, attributes={"size": 3}),
    **_unary("EyeLike", shapes={"x": (4, 4)}),
    **_unary("Split", outputs=2, attributes={"num_outputs": 2, "axis": 1}),
    **_binary("Add And BitwiseAnd Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or Pow PRelu"),
    **_binary("Sub Sum Xor"),
    **_binary("BitShift", attributes={"direction": "LEFT"}),
    **_binary("Concat", attributes={"axis": 0}),
    **_binary("MatMul MatMulInteger", shapes={"z": (8, 4)}),
    **_binary("Einsum", shapes={"z": (8, 3)}, attributes={"equation": "ij,jk->ik"}),
    **_binary("GridSample", shapes={**_IMAGE, "z": (1, 5, 5, 2)}),
    "Mod of floats": Sample("Mod", ("x", "z"), attributes={"fmod": 1}),
    "BatchNormalization": Sample(
        "BatchNormalization", tuple("xsbmv"), _IMAGE, weights=dict.fromkeys("sbmv", _CHANNELS)
    ),
    "InstanceNormalization": Sample(
        "InstanceNormalization", tuple("xsb"), _IMAGE, weights=dict.fromkeys("sb", _CHANNELS)
    ),
    "GroupNormalization": Sample(
        "GroupNormalization",
        tuple("xsb"),
        _IMAGE,
        weights=dict.fromkeys("sb", np.ones(2)),
        attributes={"num_groups": 2},
    ),
    "LayerNormalization": Sample("LayerNormalization", tuple("xsb"), weights=dict.fromkeys("sb", np.ones(8))),
    "RMSNormalization": Sample("RMSNormalization", tuple("xs"), weights={"s": np.ones(8)}, opset=23),
    "Cast": Sample("Cast", attributes={"to": FLOAT}),
    "Cast from float32": Sample("Cast", dtypes={"x": FLOAT}, dtype_attribute="to"),
    "CastLike": Sample("CastLike", ("x", "like"), dtypes={"like": FLOAT}),
    "CastLike from float32": Sample("CastLike", ("x", "like"), dtypes={"x": FLOAT}),
    "Constant": Sample("Constant", (), dtype_attribute="value"),
    "ConstantOfShape": Sample("ConstantOfShape", ("s",), parameters={"s": _ints(2, 8)}, dtype_attribute="value"),
    "Conv": Sample("Conv", ("x", "w"), _IMAGE, weights={"w": _FILTER}),
    "Conv with a bias": Sample("Conv", ("x", "w", "b"), _IMAGE, weights={"w": _FILTER, "b": _CHANNELS}),
    "ConvTranspose": Sample("ConvTranspose", ("x", "w"), _IMAGE, weights={"w": _FILTER}),
    "CumSum": Sample("CumSum", ("x", "axis"), parameters={"axis": (1, INT64)}),
    "QuantizeLinear": Sample("QuantizeLinear", ("x", "s"), weights={"s": 1}),
    "QuantizeLinear, symmetric": Sample("QuantizeLinear", tuple("xsz"), weights={"s": 1}, parameters={"z": (0, INT8)}),
    "QuantizeLinear, asymmetric": Sample("QuantizeLinear", tuple("xsz"), weights={"s": 1}, parameters={"z": (3, INT8)}),
    "DequantizeLinear": Sample("DequantizeLinear", ("x", "s"), parameters={"s": (1, FLOAT)}),
    "DequantizeLinear to any": Sample("DequantizeLinear", ("x", "s"), dtypes={"x": INT8}, weights={"s": 1}),
    "Expand": Sample("Expand", ("x", "s"), parameters={"s": _ints(3, 2, 8)}),
    "Gather": Sample("Gather", ("x", "indices"), parameters={"indices": _ints(0, 1)}),
    "Gather by any": Sample("Gather", ("t", "x"), shapes={"x": (2,)}, dtypes={"t": FLOAT}),
    "GatherElements": Sample("GatherElements", ("x", "indices"), parameters=_ROWS),
    "GatherND": Sample("GatherND", ("x", "indices"), parameters={"indices": _ints([0, 1])}),
    "Gemm": Sample("Gemm", tuple("xwb"), weights={"w": np.ones((8, 4)), "b": np.ones(4)}),
    "MatMul by weights": Sample("MatMul", ("x", "w"), weights={"w": np.ones((8, 4))}),
    "LSTM": _recurrent("LSTM", 4),
    "GRU": _recurrent("GRU", 3),
    "RNN": _recurrent("RNN", 1),
    "OneHot": Sample(
        "OneHot", tuple("xdv"), {"x": (2,)}, {"x": INT64}, weights={"v": [0, 1]}, parameters={"d": (5, INT64)}
    ),
    "OneHot of any": Sample("OneHot", tuple("xdv"), {"x": (2,)}, parameters={"d": (5, INT64), "v": ([0, 1], FLOAT)}),
    "Pad": Sample("Pad", ("x", "pads"), parameters=_PADS),
    "Pad with a value": Sample("Pad", ("x", "pads", "v"), weights={"v": 1}, parameters=_PADS),
    "Pad with float32": Sample("Pad", ("x", "pads", "v"), parameters={**_PADS, "v": (1, FLOAT)}),
    "RandomNormal": Sample("RandomNormal", (), attributes={"shape": [2, 8]}, dtype_attribute="dtype"),
    "RandomUniform": Sample("RandomUniform", (), attributes={"shape": [2, 8]}, dtype_attribute="dtype"),
    **{
        f"{kind}Window": Sample(
            f"{kind}Window", ("s",), parameters={"s": (8, INT64)}, dtype_attribute="output_datatype"
        )
        for kind in ("Blackman", "Hamming", "Hann")
    },
    "Range": Sample("Range", tuple("abc"), weights={"a": 0, "b": 8, "c": 1}),
    "Range, computed": Sample("Range", tuple("abc"), shapes=dict.fromkeys("abc", ())),
    **{
        f"Reduce{kind}": Sample(f"Reduce{kind}", ("x", "axes"), parameters=_AXES)
        for kind in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "Sum", "SumSquare")
    },
    "Reshape": Sample("Reshape", ("x", "s"), parameters={"s": _ints(4, 4)}),
    **{
        f"Resize, {mode}": Sample(
            "Resize", ("x", "", "", "sizes"), _IMAGE, parameters=_SIZES, attributes={"mode": mode}
        )
        for mode in ("nearest", "linear", "cubic")
    },
    "Resize by scales": Sample("Resize", ("x", "", "scales"), _IMAGE, parameters={"scales": ([1, 1, 2, 2], FLOAT)}),
    "Upsample": Sample("Upsample", ("x", "scales"), _IMAGE, parameters={"scales": ([1, 1, 2, 2], FLOAT)}, opset=9),
    "ReverseSequence": Sample("ReverseSequence", ("x", "l"), {"x": (4, 2)}, parameters={"l": _ints(4, 3)}),
    "RoiAlign": Sample("RoiAlign", tuple("xri"), {**_IMAGE, "r": (2, 4)}, parameters={"i": _ints(0, 0)}),
    "RotaryEmbedding": Sample(
        "RotaryEmbedding", tuple("xcs"), {"x": (1, 2, 4, 8), "c": (1, 4, 4), "s": (1, 4, 4)}, opset=23
    ),
    "Scatter": Sample("Scatter", ("x", "indices", "u"), {"u": (1, 8)}, parameters=_ROWS, opset=9),
    "ScatterElements": Sample("ScatterElements", ("x", "indices", "u"), {"u": (1, 8)}, parameters=_ROWS),
    "ScatterND": Sample("ScatterND", ("x", "indices", "u"), parameters={"indices": _ints([0], [1])}),
    "Slice": Sample("Slice", tuple("xbea"), parameters={"b": _ints(1), "e": _ints(3), "a": _ints(1)}),
    "Squeeze by axes": Sample("Squeeze", ("x", "axes"), {"x": (2, 1, 8)}, parameters=_AXES),
    "Unsqueeze": Sample("Unsqueeze", ("x", "axes"), parameters=_AXES),
    "TensorScatter": Sample(
        *("TensorScatter", tuple("puw"), {"p": (1, 2, 8, 4), "u": (1, 2, 1, 4), "w": (1,)}, {"w": INT64}),
        opset=24,
        attributes={"axis": -2},
    ),
    "Tile": Sample("Tile", ("x", "r"), parameters={"r": _ints(2, 1)}),
    "TopK": Sample("TopK", ("x", "k"), parameters={"k": _ints(2)}, outputs=2),
    "Where": Sample("Where", tuple("cxz"), dtypes={"c": BOOL}),
    "Where on any": Sample("Where", tuple("xab"), dtypes={"a": FLOAT, "b": FLOAT}),
    "Attention": Sample("Attention", tuple("qkv"), _QKV, opset=23),
    "Attention with a mask": Sample("Attention", tuple("qkvm"), {**_QKV, "m": (8, 8)}, opset=23),
    "NonMaxSuppression": Sample(
        *("NonMaxSuppression", tuple("bsmit"), {"b": (1, 6, 4), "s": (1, 2, 6)}),
        parameters={"m": (3, INT64), "i": (0.5, FLOAT), "t": (0.1, FLOAT)},
    ),
    "STFT": Sample("STFT", tuple("xfw"), {"x": (1, 64, 1)}, weights={"w": np.ones(16)}, parameters={"f": (8, INT64)}),
    "DeformConv": Sample("DeformConv", tuple("xwo"), {**_IMAGE, "o": (1, 18, 6, 6)}, weights={"w": _FILTER}),
    "Compress": Sample("Compress", ("x", "c"), {"c": (16,)}, {"c": BOOL}),
    "CumProd": Sample("CumProd", ("x", "axis"), parameters={"axis": (1, INT64)}, opset=26),
}
"""At least one graph of every operator of the support table, and some that TensorRT does not have."""


def dtype_graphs(name: str) -> Iterator[tuple[str, onnx.ModelProto]]:
    """Yield a sample in every dtype, and with each further operand in each other dtype."""
    sample = SAMPLES[name]
    for first_name, first in DTYPES.items():
        yield first_name, sample.model(first)
        for operand in (one for one in dict.fromkeys(sample.inputs[1:]) if one and one not in sample.parameters):
            for second_name, second in DTYPES.items():
                model = sample.model(first)
                retype(model, operand, second)
                yield f"{first_name}, {operand} {second_name}", with_output_dtypes(model, first)


def retype(model: onnx.ModelProto, name: str, dtype: int) -> None:
    """Give an input or weight another dtype."""
    for value in model.graph.input:
        if value.name == name:
            value.type.tensor_type.elem_type = dtype
    for weight in model.graph.initializer:
        if weight.name == name:
            values = onnx.numpy_helper.to_array(weight).astype(np.float64)
            weight.CopyFrom(tensor(name, values, dtype))


def one(
    operator: str,
    *inputs: str,
    tensors: Mapping[str, tuple[int, Sequence[Size] | None]] | None = None,
    weights: Mapping[str, Weight] | None = None,
    outputs: Sequence[Value] = (("y", FLOAT, None),),
    opset: int = 20,
    **attributes: Any,
) -> onnx.ModelProto:
    """A graph of one operator on x, which is float32 (2, 3, 8) unless said otherwise."""
    node = helper.make_node(operator, inputs, [value[0] for value in outputs], **attributes)
    given = {"x": (FLOAT, (2, 3, 8)), **(tensors or {})}
    values = [(name, *kind) for name, kind in given.items() if name in inputs]
    return graph([node], values, outputs, weights, opset)


def chain(
    *nodes: onnx.NodeProto,
    tensors: Mapping[str, tuple[int, Sequence[Size] | None]] | None = None,
    weights: Mapping[str, Weight] | None = None,
    dtype: int = FLOAT,
    opset: int = 20,
) -> onnx.ModelProto:
    """A graph from x, which is float32 (2, 3, 8) unless said otherwise, to y."""
    given = {"x": (FLOAT, (2, 3, 8)), **(tensors or {})}
    return graph(nodes, [(name, *kind) for name, kind in given.items()], [("y", dtype, None)], weights, opset)


def node(operator: str, inputs: str, output: str = "y", **attributes: Any) -> onnx.NodeProto:
    """A node whose inputs are named by one letter each."""
    return helper.make_node(operator, list(inputs), [output], **attributes)


def _branch(operator: str, output: str, dtype: int = FLOAT, **attributes: Any) -> onnx.GraphProto:
    inner = helper.make_node(operator, ["x"], [output], **attributes)
    return helper.make_graph([inner], output, [], [helper.make_tensor_value_info(output, dtype, None)])


def _loop_body(dtype: int) -> onnx.GraphProto:
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in _LOOP_VALUES]
    nodes = [helper.make_node("Add", ["a", "a"], ["b"]), helper.make_node("Identity", ["c"], ["d"])]
    for value in (values[2], values[4]):
        value.type.tensor_type.elem_type = dtype
    return helper.make_graph(nodes, "body", values[:3], values[3:])


_LOOP_VALUES: Sequence[Value] = (
    ("i", INT64, ()),
    ("c", BOOL, ()),
    ("a", FLOAT, (2, 3, 8)),
    ("d", BOOL, ()),
    ("b", FLOAT, (2, 3, 8)),
)
_HALF_QKV = dict.fromkeys("qkv", (HALF, (1, 2, 8, 64)))
_HALF_Y: Sequence[Value] = (("y", HALF, None),)
_MASK = {**_HALF_QKV, "m": (HALF, (1, 2, 8, 8))}
_PAST = {**_HALF_QKV, "p": (HALF, (1, 2, 8, 64)), "r": (HALF, (1, 2, 8, 64))}
_X4 = {"x": (FLOAT, (1, 4, 8, 8))}
_X2 = {"x": (FLOAT, (2, 8))}
_DYNAMIC = {"x": (FLOAT, ("rows", 3, 8))}
_TO_16 = {"s": _ints(1, 4, 16, 16)}
_LSTM_WEIGHTS: Mapping[str, Weight] = {"w": (np.ones((1, 16, 8)), FLOAT), "r": (np.ones((1, 16, 4)), FLOAT)}


def _attention_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    def attention(inputs: str, tensors: Mapping[str, Any] = _HALF_QKV, **attributes: Any) -> onnx.ModelProto:
        names = [name.strip() for name in inputs]
        return one("Attention", *names, tensors=tensors, outputs=_HALF_Y, opset=24, **attributes)

    yield "plain", attention("qkv")
    yield "masked", attention("qkvm", _MASK)
    yield "causal", attention("qkv", is_causal=1)
    yield "causal and masked", attention("qkvm", _MASK, is_causal=1)
    yield "with a scale", attention("qkv", scale=0.5)
    yield "with a softcap", attention("qkv", softcap=2.0)
    yield "with a softcap of 0", attention("qkv", softcap=0.0)
    yield "with a precision of the softmax", attention("qkv", softmax_precision=1)
    yield "with past keys", attention("qkv pr", _PAST)
    yield "with lengths", attention("qkv   n", {**_HALF_QKV, "n": (INT64, (1,))})
    yield "of other heads", attention("qkv", {**_HALF_QKV, "k": (HALF, (1, 2, 8, 32))})
    outputs = [(name, HALF, None) for name in ("y", "k2", "v2")]
    yield "with several outputs", one("Attention", *"qkv", tensors=_HALF_QKV, outputs=outputs, opset=24)


def _quantization_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    def quantized(scale: Any = 0.1, zero: Weight = (0, INT8), **attributes: Any) -> onnx.ModelProto:
        nodes = (node("QuantizeLinear", "xsz", "q", **attributes), node("DequantizeLinear", "qsz", **attributes))
        return chain(*nodes, weights={"s": (scale, FLOAT), "z": zero}, opset=21)

    yield "symmetric", quantized()
    yield "asymmetric", quantized(zero=(3, INT8))
    yield "to uint8", quantized(zero=(0, UINT8))
    yield "to float8", quantized(zero=(0, TensorProto.FLOAT8E4M3FN))
    yield "to int16", quantized(zero=(0, TensorProto.INT16))
    yield "with a negative scale", quantized(scale=-0.1)
    yield "with a scale of 0", quantized(scale=0)
    yield "by row", quantized(scale=np.ones(3), zero=(np.zeros(3), INT8), axis=1)
    nodes = node("QuantizeLinear", "xs", "q"), node("DequantizeLinear", "qs")
    yield "without a zero point", chain(*nodes, weights={"s": (0.1, FLOAT)})
    yield "with a computed scale", chain(*nodes, tensors={"s": (FLOAT, ())})
    for dtype in (INT32, INT64, HALF, TensorProto.FLOAT8E4M3FN):
        yield f"with a zero point of dtype {dtype}", quantized(zero=(0, dtype))
        yield f"with a computed scale of dtype {dtype}", _quantizer(scale_dtype=dtype, weights="")
    yield "to float8, asymmetric", quantized(zero=(2, TensorProto.FLOAT8E4M3FN))
    for operator in ("QuantizeLinear", "DequantizeLinear"):
        for case, parts in _QUANTIZERS.items():
            yield f"{operator}, {case}", _quantizer(operator, **parts)
        for dtype in (FLOAT, HALF, INT8, INT32, UINT8, BOOL, TensorProto.FLOAT8E4M3FN):
            yield f"{operator}, output_dtype {dtype}", _quantizer(operator, output_dtype=dtype)
            yield (
                f"{operator}, output_dtype {dtype}, zero point",
                _quantizer(operator, weights="sz", zero=(), output_dtype=dtype),
            )
            yield f"{operator}, precision {dtype}", _quantizer(operator, precision=dtype, opset=23)


_QUANTIZERS: Mapping[str, Mapping[str, Any]] = {
    **{f"axis {axis}": {"axis": axis} for axis in (-3, -2, -1, 0, 1, 2, 3)},
    **{f"axis {axis}, by column": {"scale": (8,), "axis": axis} for axis in (-3, -2, -1, 0, 1, 2, 3)},
    **{f"axis {axis}, by row": {"scale": (2,), "axis": axis} for axis in (-2, -1, 0, 1)},
    **{
        f"scales {scale}": {"scale": scale} for scale in ((1,), (0,), (1, 1), (2, 8), (2, 4), (2, 3), (1, 4), (1, 1, 4))
    },
    **{f"scales {scale} of rows": {"scale": scale, "axis": 0} for scale in ((1, 8), (2, 8), (1, 4))},
    **{
        f"computed scales {scale}": {"scale": scale, "weights": ""}
        for scale in ((8,), (3,), ("n",), ("n", 8), (2, "n"))
    },
    **{f"zero points {zero}": {"weights": "sz", "zero": zero} for zero in ((), (1,), (8,))},
    **{f"computed zero points {zero}": {"zero": zero} for zero in ((), (4,), ("n",))},
    "a number": {"shape": ()},
    "a vector": {"shape": (8,)},
    "a vector, by element": {"shape": (8,), "scale": (8,), "axis": 0},
    "unknown columns": {"shape": (2, "n"), "scale": (8,)},
    "unknown rows": {"shape": ("n", 8), "scale": (8,)},
    "unknown rows, in blocks": {"shape": ("n", 8), "scale": (4, 8), "axis": 0},
    "unknown rows, in blocks of both": {"shape": ("n", 8), "scale": (4, 4), "axis": 0},
    "blocks of the first of three": {"shape": (4, 8, 4), "scale": (2, 8, 4), "axis": 0},
    "blocks of the second of three": {"shape": (4, 8, 4), "scale": (4, 2, 4), "axis": 1},
    "blocks of the second of four": {"shape": (2, 8, 4, 4), "scale": (2, 2, 4, 4), "axis": 1},
    "an odd number in 4 bits": {"shape": (3, 5), "weights": "sz", "zero": (), "zero_dtype": TensorProto.INT4},
    "an even number in 4 bits": {"shape": (2, 5), "weights": "sz", "zero": (), "zero_dtype": TensorProto.INT4},
}
"""What is rounded, (2, 8) if nothing is said, and the shapes of scales and zero points."""


def _quantizer(
    operator: str = "QuantizeLinear",
    shape: Sequence[Size] = (2, 8),
    scale: Sequence[Size] = (),
    scale_dtype: int = FLOAT,
    zero: Sequence[Size] | None = None,
    zero_dtype: int = INT8,
    weights: str = "s",
    opset: int = 21,
    **attributes: Any,
) -> onnx.ModelProto:
    """Return a graph of one node, whose scales "s" and zero points "z" are inputs or among its ``weights``."""
    rounds = operator == "QuantizeLinear"
    inputs = {"x": (FLOAT if rounds else zero_dtype, shape), "s": (scale_dtype, scale)}
    if zero is not None:
        inputs["z"] = (zero_dtype, zero)
    constants = {name: (np.full(list(map(int, inputs[name][1])), name == "s"), inputs[name][0]) for name in weights}
    given = [(name, *of_input) for name, of_input in inputs.items() if name not in constants]
    output = attributes.get("output_dtype", zero_dtype if rounds else FLOAT)
    made = node(operator, "".join(inputs), "y", **attributes)
    return graph([made], given, [("y", output, None)], constants, opset)


def _resize_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    def resize(**attributes: Any) -> onnx.ModelProto:
        return one("Resize", "x", "", "", "s", tensors=_X4, weights=_TO_16, **attributes)

    for mode in ("nearest", "linear", "cubic", "lanczos"):
        yield mode, resize(mode=mode)
    for mode in ("linear", "cubic"):
        yield f"{mode}, antialiased", resize(mode=mode, antialias=1)
    for mode in (
        *("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "tf_half_pixel_for_nn"),
        *("half_pixel_symmetric", "tf_crop_and_resize"),
    ):
        yield mode, resize(mode="linear", coordinate_transformation_mode=mode)
    yield "ceil", resize(nearest_mode="ceil")
    mode = "tf_half_pixel_for_nn"
    yield "ceil with tf_half_pixel_for_nn", resize(nearest_mode="ceil", coordinate_transformation_mode=mode)
    yield "keeping the aspect ratio", resize(keep_aspect_ratio_policy="not_larger")


def _dtype_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    uint8, boolean = {"x": (UINT8, (2, 8))}, {"x": (BOOL, (2, 8))}
    cast_last = node("Cast", "t", to=FLOAT)
    yield "uint8 cast at once", chain(node("Cast", "x", "t", to=FLOAT), node("Transpose", "t"), tensors=uint8)
    for operator in ("Transpose", "Identity", "Flatten", "Relu", "Dropout"):
        yield f"uint8 through {operator}", chain(node(operator, "x", "t"), cast_last, tensors=uint8)
    yield "uint8 cast back at the end", chain(node("Cast", "x", to=UINT8), tensors=_X2, dtype=UINT8)
    yield "uint8 inside", chain(node("Cast", "x", "t", to=UINT8), cast_last)
    yield "uint8 made and not used", chain(node("Cast", "x", "t", to=UINT8), node("Relu", "x"))
    yield (
        "uint8 weights, cast",
        chain(node("Cast", "w", "t", to=FLOAT), node("Add", "xt"), weights={"w": ([1] * 8, UINT8)}),
    )
    yield "uint8 weights as indices", one("Gather", "x", "w", weights={"w": ([0, 1], UINT8)})
    yield "uint8 weights with floats", one("Add", "x", "w", weights={"w": ([1] * 8, UINT8)})
    for operator in ("Transpose", "Not", "Relu", "Add"):
        inputs = "xx" if operator == "Add" else "x"
        yield f"bool through {operator}", chain(node(operator, inputs), tensors=boolean, dtype=BOOL)
    yield "float64", one("Relu", "x", tensors={"x": (DOUBLE, (2, 8))}, outputs=[("y", DOUBLE, None)])
    yield (
        "LayerNormalization of float16 with float32 scales",
        chain(node("LayerNormalization", "xs"), tensors={"x": (HALF, (2, 8)), "s": (FLOAT, (8,))}, dtype=HALF),
    )
    foreign = ("INT16", "UINT16", "UINT32", "UINT64", "STRING", "FLOAT8E5M2", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1")
    for name in (*foreign, "UNDEFINED"):
        dtype = TensorProto.DataType.Value(name)
        yield f"an input of {name}", one("Cast", "x", tensors={"x": (dtype, (2, 8))}, to=FLOAT)
        yield f"an output of {name}", one("Cast", "x", outputs=[("y", dtype, None)], to=FLOAT)
        yield f"a cast to {name}", one("Cast", "x", outputs=[("y", FLOAT, None)], to=dtype)
    for name in ("INT16", "UINT32", "INT4", "FLOAT8E4M3FN"):
        dtype = TensorProto.DataType.Value(name)
        yield f"unused weights of {name}", one("Relu", "x", weights={"w": ([1, 1], dtype)})
    for actual in DTYPES.values():
        for declared in DTYPES.values():
            name = f"{TensorProto.DataType.Name(actual)} declared {TensorProto.DataType.Name(declared)}"
            yield name, one("Cast", "x", outputs=[("y", declared, None)], to=actual)


def _shape_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    def weight(*shape: int) -> dict[str, Weight]:
        return {"w": (np.ones(shape), FLOAT)}

    for rank in range(10):
        yield f"Relu of {rank} dimensions", one("Relu", "x", tensors={"x": (FLOAT, (2,) * rank)})
        for operator in ("Softmax", "ArgMax", "GlobalAveragePool", "Trilu", "Flatten", "LpNormalization"):
            name = f"{operator} of {rank} dimensions"
            yield name, one(operator, "x", tensors={"x": (FLOAT, (2,) * rank)}, outputs=[("y", FLOAT, None)])
    yield "Relu of unknown rank", one("Relu", "x", tensors={"x": (FLOAT, None)})
    for axis in (-4, -3, 2, 3, 4):
        for operator in ("Softmax", "LayerNormalization", "Concat", "Split"):
            inputs = {"LayerNormalization": "xw", "Concat": "xx"}.get(operator, "x")
            given = weight(8) if operator == "LayerNormalization" else {}
            attributes: dict[str, Any] = {"num_outputs": 1} if operator == "Split" else {}
            yield f"{operator} on axis {axis}", one(operator, *inputs, weights=given, axis=axis, **attributes)
        places: dict[str, Weight] = {"i": (np.zeros((2, 3, 8)), INT64)}
        yield f"GatherElements on axis {axis}", one("GatherElements", *"xi", weights=places, axis=axis)
        yield f"ScatterElements on axis {axis}", one("ScatterElements", *"xix", weights=places, axis=axis)
        yield f"ReduceMax on axis {axis}", one("ReduceMax", *"xa", weights={"a": _ints(axis)})
        yield f"Unsqueeze on axis {axis}", one("Unsqueeze", *"xa", weights={"a": _ints(axis)})
        yield (
            f"Squeeze on axis {axis}",
            one("Squeeze", *"xa", tensors={"x": (FLOAT, (1, 1, 1))}, weights={"a": _ints(axis)}),
        )
    for permutation in ([2, 1, 0], [0, 0, 1], [0, 1], [1, 0], [0, 2, 1, 3], [-1, 0, 1]):
        nodes = node("Transpose", "x", "t", perm=permutation), node("MatMul", "tw")
        yield f"a product after Transpose by {permutation}", chain(*nodes, weights=weight(8, 2))
    yield "Conv wider than its image, padded", one("Conv", *"xw", tensors=_X4, weights=weight(4, 4, 9, 9), pads=[1] * 4)
    for mode in ("NOTSET", "VALID", "SAME_UPPER"):
        model = one("Conv", *"xw", tensors=_X4, weights=weight(4, 4, 9, 9), auto_pad=mode)
        yield f"Conv wider than its image, {mode}", model
    for operator in ("Squeeze", "Unsqueeze", "ReduceMax"):
        for one_axis in (1, [1], [[1]]):
            listed: dict[str, Weight] = {"a": (one_axis, INT64)}
            yield f"{operator} on {one_axis}", one(operator, *"xa", tensors={"x": (FLOAT, (2, 1, 8))}, weights=listed)
    for scale in ((8,), (2, 3, 8), (5, 1, 1, 8), (7,)):
        normed = node("LayerNormalization", "xs", "n"), node("Gemm", "nw")
        weights = {**weight(8, 2), "s": (np.ones(scale), FLOAT)}
        yield f"Gemm after LayerNormalization by {scale}", chain(*normed, tensors=_X2, weights=weights)
    yield "MatMul by a single value", one("MatMul", *"wx", weights={"w": (2, FLOAT)})
    yield "MatMul that fits", one("MatMul", *"xw", weights=weight(8, 2))
    yield "MatMul that does not fit", one("MatMul", *"xw", weights=weight(7, 2))
    yield "Add that fits", one("Add", *"xw", weights=weight(3, 1))
    yield "Add that does not fit", one("Add", *"xw", weights=weight(7))
    yield "Add that does not fit, of dynamic rows", one("Add", *"xw", tensors=_DYNAMIC, weights=weight(7))
    yield "Where that does not fit", one("Where", *"cxw", tensors={"c": (BOOL, (7,))}, weights=weight(8))
    yield "Concat that does not fit", one("Concat", *"xw", weights=weight(1, 3, 7), axis=0)
    for rank in (3, 5):
        yield f"Conv by rank {rank}", one("Conv", *"xw", tensors=_X4, weights=weight(*(4, 4, 2, 2, 2)[:rank]))
    yield "Conv of too few channels", one("Conv", *"xw", tensors=_X4, weights=weight(4, 3, 2, 2))
    for kernel in ([2, 2], [2, 3], [3, 2]):
        said = one("Conv", *"xw", tensors=_X4, weights=weight(4, 4, 2, 2), kernel_shape=kernel)
        yield f"Conv that says its filter is {kernel}", said
    yield "Conv wider than its image", one("Conv", *"xw", tensors=_X4, weights=weight(4, 4, 9, 9))
    yield "LayerNormalization that does not fit", one("LayerNormalization", *"xw", weights=weight(7))
    nodes = node("LayerNormalization", "wx", "n"), node("MatMul", "nv")
    yield (
        "a product after LayerNormalization of its scale",
        chain(*nodes, weights={**weight(8), "v": (np.ones((8, 2)), FLOAT)}),
    )
    for shape in ((4,), (1,), (3,), (2, 1), (3, 1), (1, 1, 4)):
        yield (
            f"Gemm with a bias {shape}",
            one("Gemm", *"xwb", tensors=_X2, weights={**weight(8, 4), "b": (np.ones(shape), FLOAT)}),
        )
    yield "Gemm of 3 dimensions", one("Gemm", *"xw", weights=weight(8, 4))
    for sizes in ([6, 8], [5, -1], [5, 9], [-1, -1], [0, -1], [-2, 8], [2, 3, 8, 0], [0, 0, 0], [6, -1, 4]):
        for name, tensors in (("", {}), (" of dynamic rows", _DYNAMIC)):
            model = one("Reshape", *"xs", tensors=tensors, weights={"s": _ints(*sizes)})
            yield f"Reshape to {sizes}{name}", model
        model = one("Reshape", *"xs", weights={"s": _ints(*sizes)}, allowzero=1)
        yield f"Reshape to {sizes}, zeros allowed", model
    for rest in ([4, 6], [5, 6], [-1, 6], [-1, 5]):
        cut = node("Shape", "x", "d", end=1), node("Concat", "dw", "s", axis=0), node("Reshape", "xs")
        yield f"Reshape to the rows and {rest}", chain(*cut, tensors=_DYNAMIC, weights={"w": _ints(*rest)})
    squeezed: Sequence[tuple[list[int], Sequence[Size]]] = (
        ([1], (2, 3, 8)),
        ([1], (2, 1, 8)),
        ([1], ("rows", 3, 8)),
        ([1, 1], (2, 1, 8)),
        ([1], (0, 3, 8)),
    )
    for removed, from_shape in squeezed:
        yield (
            f"Squeeze {removed} of {from_shape}",
            one("Squeeze", *"xa", tensors={"x": (FLOAT, from_shape)}, weights={"a": _ints(*removed)}),
        )
    yield (
        "a product after Squeeze of all",
        chain(
            node("Squeeze", "x", "t"),
            node("MatMul", "tw"),
            tensors={"x": (FLOAT, ("rows", 1, 7))},
            weights=weight(8, 2),
        ),
    )
    for without in ((3, 0, 2), (0, 3, 1), (3, 1, 0), ("rows", 0, 1), ("rows", 0, 3), ("rows", 1, 0)):
        for axes in ([1], [0, 1]):
            empty = {"x": (FLOAT, without)}
            yield f"Squeeze {axes} of {without}", one("Squeeze", *"xa", tensors=empty, weights={"a": _ints(*axes)})
    for axes in ([0, 0], [0, 5]):
        yield f"Unsqueeze {axes}", one("Unsqueeze", *"xa", weights={"a": _ints(*axes)})
    eight = {"x": (FLOAT, (1,) * 8)}
    yield "Unsqueeze to 9 dimensions", one("Unsqueeze", *"xa", tensors=eight, weights={"a": _ints(0)})
    for sizes in ([2, 3, 8], [5, 3, 8], [8], [4, 2, 3, 8], [2, 3, -1], [2, 3, -8], [2, 3, 0]):
        yield f"Expand to {sizes}", one("Expand", *"xs", weights={"s": _ints(*sizes)})
    yield "Expand the rows to a negative size", one("Expand", *"xs", tensors=_DYNAMIC, weights={"s": _ints(-8, 3, 8)})
    yield "Expand to a matrix of sizes", one("Expand", *"xs", weights={"s": ([[2, 3, 8]], INT64)})
    yield "Gather out of range", one("Gather", *"xi", weights={"i": _ints(9)})
    yield "Tile of one dimension less", one("Tile", *"xr", weights={"r": _ints(1, 2)})
    for equation in ("ij,jk->ik", "...ij,...kj->...ik", "aIj,akj->aIk"):
        yield f"Einsum {equation}", one("Einsum", *"xx", equation=equation)


def _computed_shape_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    sizes = node("Shape", "x", "s"), node("Reshape", "xt")
    for operator in ("Identity", "Neg", "Abs", "Relu", "Size"):
        yield f"Reshape to {operator} of a shape", chain(sizes[0], node(operator, "s", "t"), sizes[1], tensors=_DYNAMIC)
    for operator in ("Identity", "Cast", "Neg", "Transpose", "Add", "Concat", "Gather", "Size", "Relu", "Not"):
        inputs = {"Add": "wv", "Gather": "vi"}.get(operator, "w")
        attributes = {"Cast": {"to": INT64}, "Concat": {"axis": 0}}.get(operator, {})
        made = node(operator, inputs, "a", **attributes)
        weights = {"w": _ints(1), "v": _ints(0), "i": _ints(0)}
        used = {name: weights[name] for name in inputs}
        for reader in ("ReduceMax", "Unsqueeze"):
            yield f"{reader} by {operator} of constants", chain(made, node(reader, "xa"), weights=used)
    for opset in (13, 18, 20):
        cut = node("Shape", "x", "d", start=0, end=1), node("Concat", "dw", "s", axis=0), node("Reshape", "xs")
        yield f"Shape of the rows in opset {opset}", chain(*cut, weights={"w": _ints(24)}, opset=opset)
        lost = node("ReduceMax", "xa", "r", keepdims=0), node("Unsqueeze", "ra")
        yield f"ReduceMax by axes in opset {opset}", chain(*lost, weights={"a": _ints(1)}, opset=opset)
        for axis in (-4, -3, 2, 3):
            model = one("Gather", *"xi", weights={"i": _ints(0)}, axis=axis, opset=opset)
            yield f"Gather on axis {axis} in opset {opset}", model
    for shape in ((8,), (7,), (3, 1)):
        weights = {"w": (np.ones(8), FLOAT), "v": (np.ones(shape), FLOAT)}
        yield f"Mul of three, the last {shape}", one("Mul", *"xwv", weights=weights)
    for value in (1, [1]):
        number: dict[str, Weight] = {"n": (value, INT64)}
        for operator in ("HannWindow", "ConstantOfShape"):
            yield f"{operator} of {value}", one(operator, "n", weights=number)
        for operator in ("CumSum", "Trilu", "Tile"):
            yield f"{operator} by {value}", one(operator, *"xn", tensors={"x": (FLOAT, (2, 8))}, weights=number)
        yield f"Range to {value}", one("Range", *"nnn", weights=number, outputs=[("y", INT64, None)])
        pair: Sequence[Value] = (("y", FLOAT, None), ("z", INT64, None))
        yield f"TopK by {value}", one("TopK", *"xn", weights=number, outputs=pair)
    for start, end in ((0, 0), (5, 9), (0, 1), (-1, 3), (0, -2)):
        for rest in ((3, 8), (2, 3, 8)):
            for operator in ("Expand", "Reshape"):
                joined = node("Slice", "dbe", "c"), node("Concat", "cw", "s", axis=0), node(operator, "xs")
                bounds = {"b": _ints(start), "e": _ints(end), "w": _ints(*rest)}
                name = f"{operator} to {rest} after [{start}:{end}] of "
                yield f"{name}a shape", chain(node("Shape", "x", "d"), *joined, weights=bounds)
                yield f"{name}constants", chain(*joined, weights={**bounds, "d": _ints(2, 3, 8)})
    for steps in (1, 2, -1):
        stepped = node("Slice", "dbeai", "s"), node("Reshape", "xs")
        bounds = {"d": _ints(2, 3, 24, 8), "b": _ints(0), "e": _ints(4), "a": _ints(0), "i": _ints(steps)}
        yield f"Reshape to every element by {steps} of four", chain(*stepped, weights=bounds)
    negative = node("Neg", "w", "n"), node("Slice", "xben", "t"), node("MatMul", "tv")
    values = {"w": _ints(1), "b": _ints(0), "e": _ints(1), "v": (np.ones((8, 2)), FLOAT)}
    yield "Slice by computed axes that fits", chain(*negative, weights=values)
    yield (
        "Slice by computed axes that does not fit",
        chain(*negative, weights={**values, "v": (np.ones((7, 2)), FLOAT)}),
    )
    yield (
        "weights cast to uint8",
        chain(
            node("Cast", "w", "u", to=UINT8),
            node("Cast", "u", "v", to=FLOAT),
            node("Add", "xv"),
            weights={"w": _ints(1)},
        ),
    )


def _slice_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    def slices(tensors: Mapping[str, Any], dtypes: Sequence[int], *lists: Sequence[int]) -> onnx.ModelProto:
        weights = {name: (values, dtype) for name, values, dtype in zip("beas", lists, dtypes, strict=False)}
        return one("Slice", "x", *weights, tensors=tensors, weights=weights)

    long, short = (INT64,) * 4, (INT32,) * 4
    for name, lists in {
        "one axis": ([0], [2], [2]),
        "an axis that is not there": ([0], [2], [7]),
        "nothing": ([5], [2], [2]),
        "an axis twice": ([0, 0], [2, 2], [1, 1]),
        "more ends than starts": ([0], [2, 2], [2]),
        "no axes for some": ([0], [2]),
        "no axes for all": ([0, 0, 0], [2, 2, 2]),
        "by steps": ([0], [2], [2], [1]),
        "by steps of 0": ([0], [2], [2], [0]),
    }.items():
        yield name, slices({}, long, *lists)
        yield f"{name}, int32", slices({}, short, *lists)
        yield f"{name}, int32, of dynamic rows", slices(_DYNAMIC, short, *lists)
    for dtypes in ((INT32, INT64, INT64), (INT64, INT32, INT64), (INT64, INT64, INT32)):
        yield f"of dtypes {dtypes}", slices({}, dtypes, [0], [2], [2])
    computed_axes = {"a": (INT64, (1,))}
    yield "computed axes", one("Slice", *"xbea", tensors=computed_axes, weights={"b": _ints(0), "e": _ints(1)})


def _constant_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    numbers = {"a": (INT64, (1,))}
    number = {"a": (INT64, ())}
    for operator in (
        *("ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin"),
        *("ReduceProd", "ReduceSum", "ReduceSumSquare", "Squeeze", "Unsqueeze"),
    ):
        tensors = {"x": (FLOAT, (2, 1, 8))}
        axes = {"w": _ints(1)}
        yield f"{operator}, axes given", one(operator, *"xw", tensors=tensors, weights=axes)
        yield f"{operator}, axes computed", one(operator, *"xa", tensors={**tensors, **numbers})
        fold = node("Identity", "w", "a"), node(operator, "xa")
        yield f"{operator}, axes folded", chain(*fold, tensors=tensors, weights=axes)
        constant = helper.make_node("Constant", [], ["a"], value_ints=[1])
        yield f"{operator}, axes of a node", chain(constant, node(operator, "xa"), tensors=tensors)
        shape = node("Shape", "z", "a"), node(operator, "xa")
        yield f"{operator}, axes from a shape", chain(*shape, tensors={**tensors, "z": (FLOAT, (1,))})
    topk: Sequence[Value] = (("y", FLOAT, None), ("i", INT64, None))
    wide = {"x": (FLOAT, (2, 5000))}
    yield "CumSum, axis computed", one("CumSum", *"xa", tensors=number)
    yield "TopK, K computed", one("TopK", *"xa", tensors=numbers, outputs=topk)
    for k in (3839, 3840, 4000, 6000):
        yield f"TopK, K {k}", one("TopK", *"xk", tensors=wide, weights={"k": _ints(k)}, outputs=topk)
    indices = {"x": (INT64, (2,))}
    values: Mapping[str, Weight] = {"v": ([0, 1], FLOAT)}
    yield "OneHot, depth computed", one("OneHot", *"xav", tensors={**indices, **number}, weights=values)
    yield "Dropout for training", one("Dropout", *"xrt", weights={"r": (0.5, FLOAT), "t": (True, BOOL)})
    yield "Dropout not for training", one("Dropout", *"xrt", weights={"r": (0.5, FLOAT), "t": (False, BOOL)})
    yield "Dropout, computed", one("Dropout", *"xrt", tensors={"t": (BOOL, ())}, weights={"r": (0.5, FLOAT)})


def _attribute_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    for operator in ("AveragePool", "LpPool", "MaxPool"):
        variants: dict[str, dict[str, Any]] = {
            "dilated by 1": {"dilations": [1, 1]},
            "dilated": {"dilations": [2, 2]},
            "with a ceiling": {"ceil_mode": 1},
            "padded": {"auto_pad": "SAME_UPPER"},
        }
        for name, attributes in variants.items():
            yield f"{operator} {name}", one(operator, "x", tensors=_X4, kernel_shape=[2, 2], **attributes)
        yield f"{operator} without a kernel", one(operator, "x", tensors=_X4)
    for p in (1, 2, 3):
        yield f"LpNormalization by {p}", one("LpNormalization", "x", p=p)
        yield f"LpPool by {p}", one("LpPool", "x", tensors=_X4, kernel_shape=[2, 2], p=p)
    channels: Mapping[str, Weight] = {"s": (np.ones(4), FLOAT)}
    for mode in (0, 1):
        yield (
            f"BatchNormalization in training mode {mode}",
            one("BatchNormalization", *"xssss", tensors=_X4, weights=channels, training_mode=mode),
        )
        yield (
            f"LSTM with input_forget {mode}",
            one("LSTM", *"xwr", weights=_LSTM_WEIGHTS, hidden_size=4, input_forget=mode),
        )
    yield "LSTM without a size", one("LSTM", *"xwr", weights=_LSTM_WEIGHTS)
    yield (
        "LSTM of an unknown activation",
        one("LSTM", *"xwr", weights=_LSTM_WEIGHTS, hidden_size=4, activations=["Foo", "Tanh", "Tanh"]),
    )
    for approximate in ("none", "tanh", "exact"):
        yield f"Gelu, {approximate}", one("Gelu", "x", approximate=approximate)
    for reduction in ("none", "add", "mul", "max"):
        yield (
            f"ScatterND, {reduction}",
            one("ScatterND", *"xix", weights={"i": ([[0], [1]], INT64)}, reduction=reduction),
        )
        yield (
            f"ScatterElements, {reduction}",
            one("ScatterElements", *"xix", weights={"i": (np.zeros((2, 3, 8)), INT64)}, reduction=reduction),
        )
    yield "Cast to nothing", one("Cast", "x")
    yield "Concat on no axis", one("Concat", "x", "x")
    yield "an attribute that Relu does not have", one("Relu", "x", color=3)
    text = helper.make_node("Constant", [], ["t"], value_string="text")
    yield "a constant text", chain(text, node("Relu", "x"))


def _arity_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    yield "no input", one("Relu")
    for operator in ("Add", "Equal", "GreaterOrEqual", "MatMul", "Mean", "Pow", "PRelu", "Where", "Gather", "Concat"):
        attributes: dict[str, Any] = {"axis": 0} if operator == "Concat" else {}
        yield f"{operator} of one input", one(operator, "x", **attributes)
        yield f"{operator} of one input and none", one(operator, "x", "", **attributes)
    for operator in ("Relu", "Add", "MatMul", "Pow", "PRelu", "Less", "Equal", "RandomNormalLike"):
        yield f"{operator} of three inputs", one(operator, *"xxx", tensors={"x": (FLOAT, (8, 8))})
    pair: Sequence[Value] = (("y", FLOAT, None), ("z", FLOAT, None))
    for operator in ("Relu", "LayerNormalization", "Dropout", "TopK", "MaxPool", "Split"):
        given = {"LayerNormalization": "xw", "TopK": "xk"}.get(operator, "x")
        weights: Mapping[str, Weight] = {"w": (np.ones(8), FLOAT), "k": _ints(2)}
        needed: dict[str, dict[str, Any]] = {"MaxPool": {"kernel_shape": [2, 2]}, "Split": {"axis": 2}}
        attributes = needed.get(operator, {})
        tensors = _X4 if operator == "MaxPool" else {}
        for count in (1, 2):
            yield (
                f"{operator} of {count} outputs",
                one(operator, *given, tensors=tensors, weights=weights, outputs=pair[:count], **attributes),
            )
    yield "a tensor that nothing makes", chain(node("Add", "xq"))
    yield "an output that nothing makes", chain(node("Relu", "x", "t"))
    yield "a tensor made later", chain(node("Relu", "t"), node("Abs", "x", "t"))
    yield "an operator that is not used", chain(node("Relu", "x"), node("Unique", "x", "t"))


def _operator_cases() -> Iterator[tuple[str, onnx.ModelProto]]:
    for opset in (13, 17, 20, 22, 24, 25, 26, 30):
        yield f"opset {opset}", one("Relu", "x", opset=opset)
    yield "Gelu of opset 13", one("Gelu", "x", opset=13)
    yield "Swish of opset 20", one("Swish", "x")
    for version in (3, 10, 12, 13):
        yield f"IR version {version}", graph([node("Relu", "x")], [("x", FLOAT, (2,))], ir_version=version)
    for operator in ("FusedGelu", "Gelu", "QuantizeLinear", "DynamicQuantizeLinear"):
        model = one(operator, "x", domain="com.microsoft")
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        yield f"com.microsoft {operator}", model
    yield "relu", one("relu", "x")
    condition = {"c": (BOOL, ())}
    for name, then in {
        "good": _branch("Relu", "t"),
        "bad inside": _branch("Unique", "t"),
        "of two dtypes": _branch("Cast", "t", HALF, to=HALF),
    }.items():
        branches = {"then_branch": then, "else_branch": _branch("Abs", "e")}
        yield f"If, {name}", chain(node("If", "c", **branches), tensors=condition)
    for name, dtype in {"good": FLOAT, "of bools": BOOL}.items():
        loop = node("Loop", "ncx", body=_loop_body(dtype))
        weights: Mapping[str, Weight] = {"n": (3, INT64), "c": (True, BOOL)}
        yield f"Loop, {name}", chain(loop, tensors={"x": (dtype, (2, 3, 8))}, weights=weights, dtype=dtype)
    values = [helper.make_tensor_value_info(name, FLOAT, (8,)) for name in ("s", "e", "t", "f")]
    inner = [helper.make_node("Add", ["s", "e"], ["t"]), helper.make_node("Identity", ["t"], ["f"])]
    body = helper.make_graph(inner, "body", values[:2], values[2:])
    scan = helper.make_node("Scan", ["i", "x"], ["y", "z"], body=body, num_scan_inputs=1)
    yield "Scan", chain(scan, tensors={"x": (FLOAT, (3, 8)), "i": (FLOAT, (8,))})


RESTRICTIONS: Mapping[str, Callable[[], Iterator[tuple[str, onnx.ModelProto]]]] = {
    "Attention": _attention_cases,
    "quantization": _quantization_cases,
    "Resize": _resize_cases,
    "dtypes": _dtype_cases,
    "shapes": _shape_cases,
    "computed shapes": _computed_shape_cases,
    "Slice": _slice_cases,
    "constants": _constant_cases,
    "attributes": _attribute_cases,
    "arity": _arity_cases,
    "operators": _operator_cases,
}
"""By topic, graphs that keep and that break each rule."""
