"""float16 and bfloat16 in a graph: products and what lies between them become narrow, all that would suffer stays.

float32 stay norms, softmax outside of plain attention, sums of exponentials, the residual stream with what is added to
it, the normalisation of pixels, and whatever was measured to leave the range of float16. Inputs and outputs stay
float32 but for the decoder's cache, which is much of what a step moves. The product with the vocabulary is always
float16: between words near each other bfloat16 cannot tell.

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

from runtime.bundle.graph_io import is_cache

HalfPrecision: TypeAlias = Literal["fp16", "bf16"]

DATA_TYPES: dict[HalfPrecision, DataType] = {"fp16": DataType.FLOAT16, "bf16": DataType.BFLOAT16}

_LARGEST_IN_FP16 = 65504.0
_MARGIN = 4.0
"""By how much real images may go beyond those that ranges were measured on."""
_LARGEST_SCORE = 64.0
"""Of attention: float16 is right to 3% of its weight there, and fused kernels take its exponential in float32."""

_MATMUL_OPS = frozenset({"MatMul", "Gemm", "Conv"})
_ELEMENTWISE_OPS = frozenset({"Gelu", "Sigmoid", "Add", "Mul"})
"""Narrow where they come from products and nothing else."""
_LAYOUT_OPS = frozenset(
    {"Transpose", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze", "Concat", "Gather", "Expand"}
)
"""As narrow as what they move."""
_ARRAYS = {DataType.FLOAT16: np.float16, DataType.BFLOAT16: ml_dtypes.bfloat16}


def convert_to_half(model: onnx_ir.Model, to: HalfPrecision, ranges: Mapping[str, float] | None = None) -> None:
    """Makes a float32 graph narrow, in place.

    Args:
        ranges: the largest absolute value of each tensor that was measured (`export.graphs.value_ranges`); without it
            only the operators decide.
    """
    graph = model.graph
    dtypes = _DtypeAssignment(graph, DATA_TYPES[to], ranges or {}).of_nodes()
    for value in _cache(graph):
        value.type = onnx_ir.TensorType(DATA_TYPES[to])
    for node, dtype in dtypes.items():
        for output in node.outputs:
            output.type = onnx_ir.TensorType(dtype)
    casts = _Casts(graph)
    for node in list(graph):
        if _is_of_floats(node):
            casts.fit(node, dtypes.get(node, DataType.FLOAT))
    casts.fit_outputs(_cache(graph), DATA_TYPES[to])
    RemoveUnusedNodesPass()(model)
    for initializer in list(graph.initializers.values()):
        if not initializer.uses():
            del graph.initializers[initializer.name]


def emulate_bf16(model: onnx_ir.Model) -> onnx_ir.Model:
    """Returns the same graph with bfloat16 emulated as float32 rounded to it, for runtimes without bfloat16."""
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
                _round_after(graph, node, output)
    return copy


def _round_after(graph: onnx_ir.Graph, node: onnx_ir.Node, output: onnx_ir.Value) -> None:
    to_narrow = onnx_ir.Node("", "Cast", [output], {"to": onnx_ir.AttrInt64("to", DataType.BFLOAT16)})
    back = onnx_ir.Node("", "Cast", to_narrow.outputs, {"to": onnx_ir.AttrInt64("to", DataType.FLOAT)})
    users = [(use.node, use.idx) for use in output.uses() if use.node is not to_narrow]
    graph.insert_after(node, [to_narrow, back])
    to_narrow.outputs[0].type = onnx_ir.TensorType(DataType.BFLOAT16)
    back.outputs[0].type = onnx_ir.TensorType(DataType.FLOAT)
    for user, place in users:
        user.replace_input_with(place, back.outputs[0])


@dataclass
class _DtypeAssignment:
    """Which nodes are narrow.

    Attributes:
        narrow: the dtype.
        ranges: largest absolute values by tensor.
    """

    graph: onnx_ir.Graph
    narrow: DataType
    ranges: Mapping[str, float]
    _chosen: dict[onnx_ir.Node, DataType] = field(default_factory=dict)

    def of_nodes(self) -> dict[onnx_ir.Node, DataType]:
        """The dtype of each narrow node."""
        cache = set(_cache(self.graph))
        for node in self.graph:
            dtype = self._dtype(node, cache)
            if dtype is not None and _has_type(node, dtype) and self._is_in_range(node, dtype):
                self._chosen[node] = dtype
        self._drop_what_only_widens()
        return self._chosen

    def _dtype(self, node: onnx_ir.Node, cache: Collection[onnx_ir.Value]) -> DataType | None:
        if node.op_type in _MATMUL_OPS:
            if any(_leads_out(output, cache) for output in node.outputs):
                return None
            return DataType.FLOAT16 if _is_vocabulary(node) else self.narrow
        floats = [value for value in _float_inputs(node) if value.const_value is None]
        if node.op_type in _LAYOUT_OPS and not floats:  # of a weight: words of the tied vocabulary
            return DataType.FLOAT16 if any(map(_is_tied, _float_inputs(node))) else None
        if not floats or not all(self._is_narrow(value, cache) for value in floats):
            return None
        is_narrow = (
            node.op_type in _LAYOUT_OPS
            or (node.op_type in _ELEMENTWISE_OPS and not _is_scale_of_channels(node))
            or (node.op_type == "Softmax" and self._is_plain_attention(node))
        )
        return self._dtype_of(floats[0]) if is_narrow else None

    def _dtype_of(self, value: onnx_ir.Value) -> DataType:
        node = value.producer()
        return self.narrow if node is None else self._chosen.get(node, self.narrow)

    def _is_narrow(self, value: onnx_ir.Value, cache: Collection[onnx_ir.Value]) -> bool:
        return value in cache or value.producer() in self._chosen

    def _is_plain_attention(self, softmax: onnx_ir.Node) -> bool:
        """Scores right from a product, weights right into one, no larger than a fused kernel should see."""
        scores = softmax.inputs[0]
        users = [use.node.op_type for use in softmax.outputs[0].uses()]
        largest = self.ranges.get(scores.name, 0.0)
        return scores.producer().op_type == "MatMul" and users == ["MatMul"] and largest <= _LARGEST_SCORE

    def _is_in_range(self, node: onnx_ir.Node, dtype: DataType) -> bool:
        if dtype != DataType.FLOAT16:
            return True
        values = [*node.outputs, *_float_inputs(node)]
        return all(_MARGIN * self.ranges.get(value.name, 0.0) <= _LARGEST_IN_FP16 for value in values) and all(
            float(np.abs(value.const_value.numpy()).max(initial=0)) <= _LARGEST_IN_FP16
            for value in values
            if value.const_value is not None
        )

    def _drop_what_only_widens(self) -> None:
        """Widens narrow elementwise nodes all of whose users are wide: the cast would only come later."""
        for node in reversed(list(self.graph)):
            if node in self._chosen and node.op_type == "Mul":
                users = {use.node for output in node.outputs for use in output.uses()}
                is_output = any(output.is_graph_output() for output in node.outputs)
                if users and not is_output and not any(user in self._chosen for user in users):
                    del self._chosen[node]


@dataclass
class _Casts:
    """Casts of a graph's tensors, each made once, and each weight stored in the dtype of its users."""

    graph: onnx_ir.Graph
    _made: dict[tuple[onnx_ir.Value, DataType], onnx_ir.Value] = field(default_factory=dict)

    def fit(self, node: onnx_ir.Node, dtype: DataType) -> None:
        """Makes all float inputs of a node of one dtype."""
        for place, value in enumerate(node.inputs):
            if value is not None and value.dtype in _FLOATS and value.dtype != dtype:
                node.replace_input_with(place, self._of(value, dtype))

    def fit_outputs(self, cache: Collection[onnx_ir.Value], narrow: DataType) -> None:
        """Outputs of the graph as its users expect them: float32, and narrow in the cache."""
        for place, value in enumerate(self.graph.outputs):
            wanted = narrow if value in cache else DataType.FLOAT
            producer = value.producer()
            if producer is None or value.dtype not in _FLOATS or value.dtype == wanted:
                continue
            name, value.name = value.name, f"{value.name}.narrow"
            made = self._of(value, wanted)
            made.name = name
            self.graph.outputs[place] = made

    def _of(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        if (value, dtype) not in self._made:
            self._made[value, dtype] = (
                self._weight(value, dtype) if value.is_initializer() else self._cast(value, dtype)
            )
        return self._made[value, dtype]

    def _weight(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        assert value.const_value is not None
        if dtype == DataType.FLOAT:
            raise AssertionError(f"{value.name}: weights are stored wide and made narrow, never the other way")
        array = value.const_value.numpy().astype(_ARRAYS[dtype])
        name = f"{value.name}.{'fp16' if dtype == DataType.FLOAT16 else 'bf16'}"
        made = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, dtype, name=name))
        made.type, made.shape = onnx_ir.TensorType(dtype), value.shape
        self.graph.initializers[name] = made
        return made

    def _cast(self, value: onnx_ir.Value, dtype: DataType) -> onnx_ir.Value:
        node = onnx_ir.Node("", "Cast", [value], {"to": onnx_ir.AttrInt64("to", dtype)})
        made = node.outputs[0]
        made.type, made.shape = onnx_ir.TensorType(dtype), value.shape
        producer = value.producer()
        if producer is None:
            self.graph.insert_before(self.graph[0], node)
        else:
            self.graph.insert_after(producer, node)
        return made


_FLOATS = (DataType.FLOAT, DataType.FLOAT16, DataType.BFLOAT16)


def _cache(graph: onnx_ir.Graph) -> list[onnx_ir.Value]:
    """The decoder's keys and values, in and out."""
    return [value for value in (*graph.inputs, *graph.outputs) if is_cache(str(value.name))]


def _float_inputs(node: onnx_ir.Node) -> Iterator[onnx_ir.Value]:
    return (value for value in node.inputs if value is not None and value.dtype in _FLOATS)


def _is_of_floats(node: onnx_ir.Node) -> bool:
    return node.op_type not in ("Cast", "Shape") and any(True for _ in _float_inputs(node))


def _has_type(node: onnx_ir.Node, dtype: DataType) -> bool:
    """Whether an operator takes a dtype: in opset 20 a convolution does not take bfloat16."""
    schema = onnx.defs.get_schema(node.op_type, 20)
    name = {DataType.FLOAT16: "tensor(float16)", DataType.BFLOAT16: "tensor(bfloat16)"}[dtype]
    return all(
        name in constraint.allowed_type_strs
        for constraint in schema.type_constraints
        if constraint.type_param_str == "T"
    )


def _is_tied(value: onnx_ir.Value) -> bool:
    """Whether a weight is both the embedding of words and what finds them."""
    return {"Gather", "Gemm"} <= {use.node.op_type for use in value.uses()}


def _is_vocabulary(node: onnx_ir.Node) -> bool:
    return any(_is_tied(value) for value in _float_inputs(node) if value.is_initializer())


def _is_scale_of_channels(node: onnx_ir.Node) -> bool:
    """Whether a node multiplies by a weight, as LayerScale does on the way into the residual stream."""
    return node.op_type == "Mul" and any(
        value.const_value is not None and value.const_value.size > 1 for value in _float_inputs(node)
    )


def _leads_out(value: onnx_ir.Value, cache: Collection[onnx_ir.Value]) -> bool:
    """Whether a tensor goes out of the graph as it is, and not into the cache: scores of attention, region vectors."""
    if value.is_graph_output():
        return value not in cache
    moves = [use.node for use in value.uses() if use.node.op_type in _LAYOUT_OPS]
    return any(_leads_out(output, cache) for move in moves for output in move.outputs)
