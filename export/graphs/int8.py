"""Matrix products in int8: weights are rounded when a bundle is built, activations when its graphs run.

Weights have a scale for each output, activations one for each row, so that no row depends on the others of its batch.
All else stays float32: patch embedding, norms, softmax, and attention's products of activations with each other. The
product is an operator of ONNX Runtime's own, which OpenVINO reads too.

Shapes: K inputs, N outputs of a product; activations (..., K) have any axes before the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir
from onnx_ir.tape import Tape

from export.graphs.attention_fusion import CONTRIB

_WEIGHT_LEVELS = 63
"""Of 127: x86 CPUs without VNNI add two products of 8 bits in 16, which 2 * 255 * 127 overflows without a word. With 63
a graph gives the same on every CPU, and is as fast."""

_LEVELS, _ZERO = 127, 128
"""Activations are unsigned, with 128 for zero: the fast instructions take them so."""

_SMALLEST = 1e-20
"""A row's largest value, where the row is all zeros and would be divided by them."""


@dataclass(frozen=True)
class _Weight:
    """A rounded weight: what it was is ``levels`` (K, N) int8 times ``scales`` (N,)."""

    levels: onnx_ir.Value
    scales: onnx_ir.Value


def quantize(model: onnx_ir.Model) -> None:
    """Makes each product with a weight one of int8, and reads an embedding tied to such a weight from it; in place."""
    graph = model.graph
    constants = _Constants(graph)
    tied: dict[onnx_ir.Value, _Weight] = {}
    for node in list(_products(graph)):
        stored = node.inputs[1]
        weight = _rounded(constants, stored, _is_transposed(node))
        if _is_transposed(node):
            tied[stored] = weight
        _replace(graph, node, *_product(constants, node, weight))
    for node in list(graph):
        if node.op_type == "Gather" and node.inputs[0] in tied:
            _replace(graph, node, *_lookup(constants, node, tied[node.inputs[0]]))
    for value in list(graph.initializers.values()):
        if not value.uses():
            del graph.initializers[value.name]
    model.opset_imports[CONTRIB] = 1


class _Constants:
    """Makes constants of a graph; those that many nodes use, once."""

    def __init__(self, graph: onnx_ir.Graph) -> None:
        self._graph = graph

    def add(self, name: str, array: npt.NDArray[Any]) -> onnx_ir.Value:
        if name in self._graph.initializers:
            return self._graph.initializers[name]
        value = onnx_ir.Value(name=name, const_value=onnx_ir.tensor(array, name=name))
        value.type, value.shape = onnx_ir.TensorType(value.const_value.dtype), onnx_ir.Shape(array.shape)
        self._graph.initializers[name] = value
        return value

    def number(self, value: float) -> onnx_ir.Value:
        return self.add(f"number_{value:g}", np.array(value, np.float32))


def _products(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """MatMul and Gemm whose second input is a weight (K, N), or for Gemm (N, K)."""
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2:
                yield node


def _is_transposed(node: onnx_ir.Node) -> bool:
    return "transB" in node.attributes and bool(node.attributes["transB"].as_int())


def _rounded(constants: _Constants, stored: onnx_ir.Value, transposed: bool) -> _Weight:
    values = stored.const_value.numpy()
    values = values.T if transposed else values
    scales = np.maximum(np.abs(values).max(axis=0), _SMALLEST) / _WEIGHT_LEVELS
    levels = np.ascontiguousarray(np.rint(values / scales).astype(np.int8))
    name = f"{stored.name}.transposed" if transposed else stored.name
    return _Weight(constants.add(f"{name}.levels", levels), constants.add(f"{name}.scales", scales.astype(np.float32)))


def _product(constants: _Constants, node: onnx_ir.Node, weight: _Weight) -> tuple[Tape, onnx_ir.Value]:
    """``node`` on rounded activations: each row is divided by its largest value, and the product multiplied by it."""
    tape, activations = Tape(), node.inputs[0]
    last_axis = constants.add("last_axis", np.array([-1]))
    largest = tape.op("ReduceMax", [tape.op("Abs", [activations]), last_axis], {"keepdims": 1})
    largest = tape.op("Max", [largest, constants.number(_SMALLEST)])
    in_levels = tape.op("Mul", [activations, tape.op("Div", [constants.number(_LEVELS), largest])])
    above_zero = tape.op("Add", [in_levels, constants.number(_ZERO + 0.5)])  # a cast cuts off, so half more rounds
    levels = tape.op("Cast", [above_zero], {"to": onnx_ir.DataType.UINT8})
    one_level = constants.number(1 / _LEVELS)
    zero = constants.add("zero_level", np.array(_ZERO, np.uint8))
    product = tape.op("MatMulIntegerToFloat", [levels, weight.levels, one_level, weight.scales, zero], domain=CONTRIB)
    result = tape.op("Mul", [product, largest])
    bias = node.inputs[2] if len(node.inputs) == 3 else None
    return tape, result if bias is None else tape.op("Add", [result, bias])


def _lookup(constants: _Constants, node: onnx_ir.Node, weight: _Weight) -> tuple[Tape, onnx_ir.Value]:
    """Embeddings (R, K) of tokens (R,), which are columns of ``weight``."""
    tape, tokens = Tape(), node.inputs[1]
    levels = tape.op("Transpose", [tape.op("Gather", [weight.levels, tokens], {"axis": 1})], {"perm": [1, 0]})
    last_axis = constants.add("last_axis", np.array([-1]))
    scales = tape.op("Unsqueeze", [tape.op("Gather", [weight.scales, tokens]), last_axis])
    return tape, tape.op("Mul", [tape.op("Cast", [levels], {"to": onnx_ir.DataType.FLOAT}), scales])


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node, tape: Tape, result: onnx_ir.Value) -> None:
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])
