"""The dtypes that the real ONNX parser refuses, observed with TensorRT-RTX 1.7.1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

_READS_UINT8 = ("Cast", "CastLike", "Shape", "Size", "Equal")
_REFUSES_BOOL = ("DepthToSpace", "ReduceMax", "ReduceMin", "SpaceToDepth")
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
_CONVERTS = ("Cast", "CastLike", "QuantizeLinear", "DequantizeLinear", "Shape")
_MAX_WEIGHT_SIZE = 1024
"""Weights of more values are left out where dtypes are inferred, which takes no values."""


def refusals(model: onnx.ModelProto) -> Iterator[str]:
    """Yield the parser's error for each node that it refuses, in its own words."""
    foreign = [node.op_type for node in model.graph.node if node.domain not in ("", "ai.onnx")]
    yield from (f"No importer registered for op: {kind}" for kind in foreign)
    dtypes = {} if foreign else _dtypes(model)  # nothing can be inferred through foreign operators
    outputs = {value.name for value in model.graph.output}
    for node in model.graph.node:
        name = f"node_of_{node.output[0]}"
        read = {dtypes.get(tensor) for tensor in node.input if tensor}
        if TensorProto.UINT8 in read and node.op_type not in _READS_UINT8:
            yield f"{name}: first input has type UInt8 but must have type Float, Half, BFloat16"
        elif TensorProto.BOOL in read and node.op_type in _REFUSES_BOOL:
            yield "Found unsupported input type of BOOL"
        elif len(read & set(_FLOATS)) > 1 and node.op_type not in _CONVERTS:
            yield f"{name}: the network is strongly typed, and its inputs have different types"
        elif any(dtypes.get(tensor) == TensorProto.UINT8 and tensor not in outputs for tensor in node.output):
            yield "legalUINT8: TensorRT does not support UINT8 types for intermediate tensors"


def _dtypes(model: onnx.ModelProto) -> dict[str, int]:
    """Return the dtype of every tensor, as ONNX infers it."""
    light = onnx.ModelProto()
    light.CopyFrom(model)
    dtypes = {weight.name: weight.data_type for weight in model.graph.initializer}
    for weight in model.graph.initializer:
        if int(np.prod(weight.dims)) > _MAX_WEIGHT_SIZE:
            light.graph.initializer.remove(weight)
            light.graph.input.append(onnx.helper.make_tensor_value_info(weight.name, weight.data_type, weight.dims))
    graph = onnx.shape_inference.infer_shapes(light).graph
    for value in (*graph.input, *graph.value_info, *graph.output):
        dtypes[value.name] = value.type.tensor_type.elem_type
    return dtypes
