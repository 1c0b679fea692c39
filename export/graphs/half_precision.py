"""Converts graphs to float16 or bfloat16: products and what lies between them, but nothing that would suffer.

float32 stay norms, softmax outside of plain attention, sums of exponentials, the residual stream with what is added to
it, the normalisation of pixels, and whatever was measured to leave the range of float16. Inputs and outputs stay
float32 but for the decoder's cache, which is much of what a step moves. The product with the vocabulary is always
float16: bfloat16 cannot tell words near each other apart.

Shapes: R regions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import onnx
import onnx_ir
from onnx_ir import DataType
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.graphs.constants import drop_unused_constants
from runtime.bundle.graph_io import SOFT_PROMPT, is_cache

HalfPrecision: TypeAlias = Literal["fp16", "bf16"]

DATA_TYPES: dict[HalfPrecision, DataType] = {"fp16": DataType.FLOAT16, "bf16": DataType.BFLOAT16}

_FP16_MAX = 65504.0
_RANGE_MARGIN = 4.0
"""The multiple of the measured ranges that real images may reach."""
_MAX_FP16_SCORE = 64.0
"""The largest attention score whose softmax is float16: there it is right to 3%, and fused kernels exponentiate in
float32."""

_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)
_MATMUL_OPS = frozenset({"MatMul", "Gemm", "Conv"})
_ELEMENTWISE_OPS = frozenset({"Gelu", "Sigmoid", "Tanh", "Add", "Mul"})
"""Operators in half precision where all their inputs are."""
_LAYOUT_OPS = frozenset(
    {"Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Concat", "Gather", "Expand"}
)
"""Operators that have the dtype of what they move."""
_SELECTIONS = frozenset({"ArgMax", "GatherElements", "ReduceMax"})
"""Operators that select values or their places, the same in half precision where the values are."""
_NUMPY_DTYPES = {DataType.FLOAT16: np.float16, DataType.BFLOAT16: ml_dtypes.bfloat16}
_TYPE_NAMES = {DataType.FLOAT16: "tensor(float16)", DataType.BFLOAT16: "tensor(bfloat16)"}
_SUFFIXES = {DataType.FLOAT16: "fp16", DataType.BFLOAT16: "bf16"}


def convert_to_half(model: onnx_ir.Model, to: HalfPrecision, ranges: Mapping[str, float] | None = None) -> None:
    """Convert a float32 graph to half precision, in place.

    Args:
        ranges: the largest absolute value of each tensor that was measured (`export.graphs.value_ranges`); without it
            only the operators decide.
    """
    graph = model.graph
    dtypes = _DtypeAssignment(graph, DATA_TYPES[to], ranges or {}).assign()
    for value in _cache_values(graph):
        value.type = onnx_ir.TensorType(DATA_TYPES[to])
    for node, dtype in dtypes.items():
        for output in node.outputs:
            if output.dtype in _FLOATS:
                output.type = onnx_ir.TensorType(dtype)
    casts = _CastInserter(graph)
    for node in list(graph):
        if _computes_on_floats(node):
            casts.cast_inputs(node, dtypes.get(node, DataType.FLOAT))
    casts.cast_outputs(_cache_values(graph), DATA_TYPES[to])
    RemoveUnusedNodesPass()(model)
    drop_unused_constants(graph)


def fits_fp16(largest: float) -> bool:
    """Return whether float16 holds values that were measured to be up to ``largest``, with a margin for others."""
    return _RANGE_MARGIN * largest <= _FP16_MAX


def emulate_bf16(model: onnx_ir.Model) -> onnx_ir.Model:
    """Return the same graph with bfloat16 emulated as float32 rounded to it, for runtimes without bfloat16."""
    copy = model.clone()
    graph = copy.graph
    for initializer in list(graph.initializers.values()):
        if initializer.dtype == DataType.BFLOAT16:
            array = initializer.const_value.numpy().astype(np.float32)
            initializer.const_value = onnx_ir.tensor(array, name=initializer.name)
            initializer.type = onnx_ir.TensorType(DataType.FLOAT)
    for value in graph.inputs:
        if value.dtype == DataType.BFLOAT16:
            value.type = onnx_ir.TensorType(DataType.FLOAT)
    for node in list(graph):
        if node.op_type == "Cast" and node.attributes["to"].as_int() == DataType.BFLOAT16:
            node.attributes["to"] = onnx_ir.AttrInt64("to", DataType.FLOAT)
        for output in node.outputs:
            if output.dtype == DataType.BFLOAT16:
                output.type = onnx_ir.TensorType(DataType.FLOAT)
                _round_to_bf16(graph, node, output)
    return copy


def _round_to_bf16(graph: onnx_ir.Graph, node: onnx_ir.Node, output: onnx_ir.Value) -> None:
    """Insert casts to bfloat16 and back between an output and its users."""
    to_bf16 = onnx_ir.Node("", "Cast", [output], {"to": onnx_ir.AttrInt64("to", DataType.BFLOAT16)})
    to_fp32 = onnx_ir.Node("", "Cast", to_bf16.outputs, {"to": onnx_ir.AttrInt64("to", DataType.FLOAT)})
    users = [(use.node, use.idx) for use in output.uses() if use.node is not to_bf16]
    graph.insert_after(node, [to_bf16, to_fp32])
    to_bf16.outputs[0].type = onnx_ir.TensorType(DataType.BFLOAT16)
    to_fp32.outputs[0].type = onnx_ir.TensorType(DataType.FLOAT)
    for user, index in users:
        user.replace_input_with(index, to_fp32.outputs[0])


@dataclass
class _DtypeAssignment:
    """The dtype of each node that is converted to half precision.

    Attributes:
        half: the dtype to convert to.
        ranges: the largest absolute values, by tensor.
    """

    graph: onnx_ir.Graph
    half: DataType
    ranges: Mapping[str, float]
    _assigned: dict[onnx_ir.Node, DataType] = field(default_factory=dict)

    def assign(self) -> dict[onnx_ir.Node, DataType]:
        """Return the dtype of each node in half precision; all others stay float32."""
        cache = set(_cache_values(self.graph))
        for node in self.graph:
            dtype = self._choose_dtype(node, cache)
            if dtype is not None and _accepts_dtype(node, dtype) and self._is_in_range(node, dtype):
                self._assigned[node] = dtype
        self._drop_early_multiplications()
        return self._assigned

    def _choose_dtype(self, node: onnx_ir.Node, cache: Collection[onnx_ir.Value]) -> DataType | None:
        """Return the dtype that a node should have if its values fit; None for float32."""
        if node.op_type in _MATMUL_OPS:
            if any(becomes_output(output, cache) for output in node.outputs) and not self._is_weighed_in_fp16(node):
                return None
            return DataType.FLOAT16 if _is_vocabulary_product(node) else self.half
        computed = [value for value in _float_inputs(node) if value.const_value is None]
        if node.op_type in _LAYOUT_OPS and not computed:  # it moves a weight, such as rows of the tied embedding
            return DataType.FLOAT16 if any(map(_is_tied_embedding, _float_inputs(node))) else None
        if not computed or not all(self._is_half(value, cache) for value in computed):
            return None
        becomes_half = (
            node.op_type in _LAYOUT_OPS | _SELECTIONS
            or (node.op_type in _ELEMENTWISE_OPS and not _is_channel_scale(node))
            or (node.op_type == "Softmax" and self._is_plain_attention(node))
        )
        return self._dtype_of(computed[0]) if becomes_half else None

    def _is_weighed_in_fp16(self, node: onnx_ir.Node) -> bool:
        """Return whether a product is with a weight and would be float16, which rounds it no more than those before it.

        Turing has no products in float32; bfloat16, which it lacks too, would round an output too much.
        """
        return self.half == DataType.FLOAT16 and any(value.is_initializer() for value in _float_inputs(node))

    def _dtype_of(self, value: onnx_ir.Value) -> DataType:
        node = value.producer()
        return self.half if node is None else self._assigned.get(node, self.half)

    def _is_half(self, value: onnx_ir.Value, cache: Collection[onnx_ir.Value]) -> bool:
        return value in cache or value.producer() in self._assigned

    def _is_plain_attention(self, softmax: onnx_ir.Node) -> bool:
        """Return whether a softmax is right between two products, its scores small enough for a fused kernel."""
        scores = softmax.inputs[0]
        users = [use.node.op_type for use in softmax.outputs[0].uses()]
        largest = self.ranges.get(scores.name, 0.0)
        return scores.producer().op_type == "MatMul" and users == ["MatMul"] and largest <= _MAX_FP16_SCORE

    def _is_in_range(self, node: onnx_ir.Node, dtype: DataType) -> bool:
        if dtype != DataType.FLOAT16:
            return True
        values = [*node.outputs, *_float_inputs(node)]
        return all(fits_fp16(self.ranges.get(value.name, 0.0)) for value in values) and all(
            float(np.abs(value.const_value.numpy()).max(initial=0)) <= _FP16_MAX
            for value in values
            if value.const_value is not None
        )

    def _drop_early_multiplications(self) -> None:
        """Leave multiplications in float32 whose users all are: in half precision the cast would only come later."""
        for node in reversed(list(self.graph)):
            if node in self._assigned and node.op_type == "Mul":
                users = {use.node for output in node.outputs for use in output.uses()}
                is_output = any(output.is_graph_output() for output in node.outputs)
                if users and not is_output and not any(user in self._assigned for user in users):
                    del self._assigned[node]


@dataclass
class _CastInserter:
    """The casts between nodes of different dtypes, each inserted once, and weights in the dtypes of their users."""

    graph: onnx_ir.Graph
    _converted: dict[tuple[onnx_ir.Value, DataType], onnx_ir.Value] = field(default_factory=dict)

    def cast_inputs(self, node: onnx_ir.Node, dtype: DataType) -> None:
        """Give all float inputs of a node one dtype."""
        for index, value in enumerate(node.inputs):
            if value is not None and value.dtype in _FLOATS and value.dtype != dtype:
                node.replace_input_with(index, self._convert(value, dtype))

    def cast_outputs(self, cache: Collection[onnx_ir.Value], cache_dtype: DataType) -> None:
        """Give the graph's outputs the dtype of their contract: that of the cache for its entries, else float32."""
        for index, value in enumerate(self.graph.outputs):
            dtype = cache_dtype if value in cache else DataType.FLOAT
            producer = value.producer()
            if producer is None or value.dtype not in _FLOATS or value.dtype == dtype:
                continue
            name, value.name = value.name, f"{value.name}.before_cast"
            converted = self._convert(value, dtype)
            converted.name = name
            self.graph.outputs[index] = converted

    def _convert(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        if (value, dtype) not in self._converted:
            convert = self._convert_weight if value.is_initializer() else self._insert_cast
            self._converted[value, dtype] = convert(value, dtype)
        return self._converted[value, dtype]

    def _convert_weight(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        assert value.const_value is not None
        if dtype == DataType.FLOAT:
            raise AssertionError(f"{value.name}: weights are only converted from float32, never to it")
        array = value.const_value.numpy().astype(_NUMPY_DTYPES[dtype])
        name = f"{value.name}.{_SUFFIXES[dtype]}"
        converted = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, dtype, name=name))
        converted.type, converted.shape = onnx_ir.TensorType(dtype), value.shape
        self.graph.initializers[name] = converted
        return converted

    def _insert_cast(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        node = cast_node(value, dtype)
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return node.outputs[0]


def cast_node(value: onnx_ir.Value, to: DataType) -> onnx_ir.Node:
    """Return a node that converts a tensor, not yet in a graph."""
    node = onnx_ir.Node("", "Cast", [value], {"to": onnx_ir.AttrInt64("to", to)})
    node.outputs[0].type, node.outputs[0].shape = onnx_ir.TensorType(to), value.shape
    return node


def _cache_values(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """Return the decoder's keys and values among a graph's inputs and outputs."""
    return [value for value in (*graph.inputs, *graph.outputs) if is_cache(str(value.name))]


def _float_inputs(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    return (value for value in node.inputs if value is not None and value.dtype in _FLOATS)


def _computes_on_floats(node: onnx_ir.Node) -> bool:
    return node.op_type not in ("Cast", "Shape") and any(True for _ in _float_inputs(node))


def _accepts_dtype(node: onnx_ir.Node, dtype: DataType) -> bool:
    """Return whether an operator accepts a dtype: in opset 20 a convolution does not accept bfloat16."""
    schema = onnx.defs.get_schema(node.op_type, 20)
    return all(
        _TYPE_NAMES[dtype] in constraint.allowed_type_strs
        for constraint in schema.type_constraints
        if constraint.type_param_str == "T"
    )


def _is_tied_embedding(value: onnx_ir.Value) -> bool:
    """Return whether a weight is both the embedding of tokens and the head that scores them."""
    return {"Gather", "Gemm"} <= {use.node.op_type for use in value.uses()}


def _is_vocabulary_product(node: onnx_ir.Node) -> bool:
    return any(_is_tied_embedding(value) for value in _float_inputs(node) if value.is_initializer())


def _is_channel_scale(node: onnx_ir.Node) -> bool:
    """Return whether a node multiplies by a weight, as LayerScale does on the way into the residual stream."""
    return node.op_type == "Mul" and any(
        value.const_value is not None and value.const_value.size > 1 for value in _float_inputs(node)
    )


def becomes_output(value: onnx_ir.Value, cache: Collection[onnx_ir.Value] = ()) -> bool:
    """Return whether a tensor leaves the graph as it is, or converted: attention logits, region vectors.

    Entries of the cache and soft tokens do not count: what reads them does so in half precision.
    """
    if value.is_graph_output():
        return value not in cache and value.name != SOFT_PROMPT
    moves = [use.node for use in value.uses() if use.node.op_type in (*_LAYOUT_OPS, "Cast")]
    return any(becomes_output(output, cache) for move in moves for output in move.outputs)
