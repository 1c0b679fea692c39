"""Converts matrix products to int8: weights are rounded when a bundle is built, activations when its graphs run.

Weights have a scale for each output, activations one for each row, so that no row depends on the others of its batch.
All else stays float32: patch embedding, norms, softmax, and attention's products of activations with each other. The
product is an operator of ONNX Runtime's own, which OpenVINO reads too.

Shapes: K inputs, N outputs of a product; activations (..., K) have any axes before the last.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir
from onnx_ir.tape import Tape

from export.graphs.attention_fusion import CONTRIB
from export.graphs.constants import ConstantPool
from export.graphs.weight_layout import is_transposed

_MAX_WEIGHT = 63
"""The largest quantized weight, of 127: x86 CPUs without VNNI add two 8-bit products in 16 bits, which 2 * 255 * 127
overflows silently. With 63 a graph gives the same on every CPU, and is as fast."""

_MAX_ACTIVATION, _ZERO_POINT = 127, 128
"""Activations are unsigned, with 128 for zero: the fast instructions take them so."""

_MIN_ROW_MAX = 1e-20
"""Stands for the largest value of a row of zeros, which could not be divided by."""


@dataclass(frozen=True)
class _QuantizedWeight:
    """A rounded weight: ``values`` (K, N) int8 times ``scales`` (N,) is the weight."""

    values: onnx_ir.Value
    scales: onnx_ir.Value


def quantize(model: onnx_ir.Model) -> None:
    """Convert products with weights to int8, and embeddings tied to such weights to look-ups in them; in place."""
    graph = model.graph
    constants = ConstantPool(graph)
    tied: dict[onnx_ir.Value, _QuantizedWeight] = {}
    for node in list(_weight_products(graph)):
        stored = node.inputs[1]
        weight = _quantize_weight(constants, stored, is_transposed(node))
        if is_transposed(node):
            tied[stored] = weight
        _replace(graph, node, *_quantized_product(constants, node, weight))
    for node in list(graph):
        if node.op_type == "Gather" and node.inputs[0] in tied:
            _replace(graph, node, *_quantized_lookup(constants, node, tied[node.inputs[0]]))
    for value in list(graph.initializers.values()):
        if not value.uses():
            del graph.initializers[value.name]
    model.opset_imports[CONTRIB] = 1


def _weight_products(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Yield each MatMul and Gemm whose second input is a weight (K, N), or for Gemm (N, K)."""
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2:
                yield node


def _quantize_weight(constants: ConstantPool, stored: onnx_ir.Value, transposed: bool) -> _QuantizedWeight:
    weight = stored.const_value.numpy()
    weight = weight.T if transposed else weight
    scales = np.maximum(np.abs(weight).max(axis=0), _MIN_ROW_MAX) / _MAX_WEIGHT
    values = np.ascontiguousarray(np.rint(weight / scales).astype(np.int8))
    name = f"{stored.name}.transposed" if transposed else stored.name
    return _QuantizedWeight(
        constants.add(f"{name}.int8", values), constants.add(f"{name}.scales", scales.astype(np.float32))
    )


def _quantized_product(
    constants: ConstantPool, node: onnx_ir.Node, weight: _QuantizedWeight
) -> tuple[Tape, onnx_ir.Value]:
    """Return ``node`` on rounded activations: rows are divided by their largest value, products multiplied by it."""
    tape, activations = Tape(), node.inputs[0]
    last_axis = constants.add("last_axis", np.array([-1]))
    row_max = tape.op("ReduceMax", [tape.op("Abs", [activations]), last_axis], {"keepdims": 1})
    row_max = tape.op("Max", [row_max, constants.number(_MIN_ROW_MAX)])
    scaled = tape.op("Mul", [activations, tape.op("Div", [constants.number(_MAX_ACTIVATION), row_max])])
    shifted = tape.op("Add", [scaled, constants.number(_ZERO_POINT + 0.5)])  # a cast truncates, so half more rounds
    values = tape.op("Cast", [shifted], {"to": onnx_ir.DataType.UINT8})
    step = constants.number(1 / _MAX_ACTIVATION)
    zero_point = constants.add("zero_point", np.array(_ZERO_POINT, np.uint8))
    product = tape.op("MatMulIntegerToFloat", [values, weight.values, step, weight.scales, zero_point], domain=CONTRIB)
    result = tape.op("Mul", [product, row_max])
    bias = node.inputs[2] if len(node.inputs) == 3 else None
    return tape, result if bias is None else tape.op("Add", [result, bias])


def _quantized_lookup(
    constants: ConstantPool, node: onnx_ir.Node, weight: _QuantizedWeight
) -> tuple[Tape, onnx_ir.Value]:
    """Return the embeddings (..., K) of tokens (...), which are columns of ``weight``."""
    tape, tokens = Tape(), node.inputs[1]
    order = [*range(1, len(tokens.shape) + 1), 0]
    values = tape.op("Transpose", [tape.op("Gather", [weight.values, tokens], {"axis": 1})], {"perm": order})
    last_axis = constants.add("last_axis", np.array([-1]))
    scales = tape.op("Unsqueeze", [tape.op("Gather", [weight.scales, tokens]), last_axis])
    return tape, tape.op("Mul", [tape.op("Cast", [values], {"to": onnx_ir.DataType.FLOAT}), scales])


def _replace(graph: onnx_ir.Graph, node: onnx_ir.Node, tape: Tape, result: onnx_ir.Value) -> None:
    onnx_ir.convenience.replace_nodes_and_values(graph, node, [node], tape.nodes, node.outputs, [result])
