"""Stores the weights of products in 8 bits, for CPUs, where reading them is most of what a decoder's step does.

Blocks of 64 inputs of an output share a scale. A DequantizeLinear before each product makes float32 of them; OpenVINO
and ONNX Runtime do that inside the product, block by block, and may round the activations of a block to 8 bits for it.
Embeddings stay float32, those too that are tied to the product with the vocabulary.

Where samples show how large the values are that norms make, these are rounded by one scale, and the products that read
them have 8 bits on both sides, which CPUs do faster, above all for many rows. Some columns of what a norm makes may be
far larger than others; as much of that as evens out both sides is moved into the weight, and costs nothing there:
SmoothQuant (Xiao, Lin, Seznec, Wu, Demouth and Han, 2023). Other activations have no bounds, and for one scale too wide
a range: with GELU's too, log-probabilities would differ by three times as much.

Shapes: K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir
import torch
from torch import nn

from export.graphs.constants import ConstantPool, drop_unused_constants
from export.graphs.qdq import CPU_WEIGHT_STEPS, FORMATS, ProductQuantizer
from export.graphs.weight_layout import is_transposed
from export.models.gpt2 import Conv1D

BLOCK = 64
"""Inputs that share a scale: of 32, 64 and 128 the fastest in OpenVINO and near the fastest in ONNX Runtime."""
_BLOCKS_OPSET = 21
"""The first whose DequantizeLinear knows blocks; other operators differ from it in types alone."""
_MAX_WEIGHT = 127
_MIN_LARGEST = 1e-20
"""Stands for the largest weight of a block of zeros, which could not be divided by."""
_HEADROOM = 1.25
"""How much larger activations may be than those of samples before they are cut off."""
_MIN_COLUMN = 1e-5
"""Stands for the largest value of a column of zeros, or nearly: as far as columns are evened out."""


def normed_inputs(model: onnx_ir.Model) -> list[str]:
    """Return the names of the activations that norms make and products multiply by weights."""
    products = _weight_products(model.graph)
    return sorted({str(product.inputs[0].name) for product in products if _norm_before(product) is not None})


def compress_weights(model: onnx_ir.Model, columns: Mapping[str, npt.NDArray[np.float32]] | None = None) -> None:
    """Store the weights of products (K, N) in 8 bits, in place; those whose inputs are no whole blocks stay.

    Args:
        columns: the largest absolute value of each column (K,) of the `normed_inputs` on samples, by name; None where
            there are no samples.
    """
    graph = model.graph
    constants, quantizer = ConstantPool(graph), ProductQuantizer(graph, FORMATS["int8"], CPU_WEIGHT_STEPS)
    for product in list(_weight_products(graph)):
        largest = None if columns is None else columns.get(str(product.inputs[0].name))
        if largest is None:
            _compress(graph, constants, product)
        else:
            _round_both_sides(graph, constants, quantizer, product, largest * _HEADROOM)
    drop_unused_constants(graph)
    model.opset_imports[""] = max(model.opset_imports[""], _BLOCKS_OPSET)


@torch.no_grad()
def round_weights(module: nn.Module) -> None:
    """Round the weights of a module's layers to what their graph stores in 8 bits, in place."""
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, Conv1D)):
            columns = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight
            if len(columns) % BLOCK == 0:
                steps, scales = _rounded(columns.numpy())
                columns.copy_(torch.from_numpy(steps * scales.repeat(BLOCK, axis=0)))


def _weight_products(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Yield each MatMul and Gemm whose second input is a weight of whole blocks: (K, N), or for Gemm (N, K)."""
    for node in graph:
        if node.op_type in ("MatMul", "Gemm"):
            weight = node.inputs[1].const_value
            if weight is not None and len(weight.shape) == 2 and weight.shape[int(is_transposed(node))] % BLOCK == 0:
                yield node


def _round_both_sides(
    graph: onnx_ir.Graph,
    constants: ConstantPool,
    quantizer: ProductQuantizer,
    product: onnx_ir.Node,
    largest: npt.NDArray[np.float32],
) -> None:
    """Replace a product by one whose activations are rounded too, by a scale for columns up to ``largest`` (K,)."""
    columns = _columns(product)
    norm = _norm_before(product)
    if norm is not None and len(norm.outputs[0].uses()) == 1 and not _is_of_vocabulary(product):
        factors = _evening_factors(largest, columns)
        _divide_columns(constants, norm, factors)
        largest, columns = largest / factors, columns * factors[:, None]
    weight = constants.add(f"{product.inputs[1].name}.columns", np.ascontiguousarray(columns))
    rounded = onnx_ir.Node("", "MatMul", [product.inputs[0], weight])
    nodes, bias = [rounded], _bias(product)
    if bias is not None:
        # Of a product and a sum ONNX Runtime makes one Gemm, which it has in float32 only.
        negated = constants.add(f"{bias.name}.negated", -bias.const_value.numpy())
        nodes.append(onnx_ir.Node("", "Sub", [rounded.outputs[0], negated]))
    _replace(graph, product, nodes)
    quantizer.quantize_activations(rounded, float(largest.max()))
    quantizer.quantize_weight(rounded, weight, stores_steps=True)


def _norm_before(product: onnx_ir.Node) -> onnx_ir.Node | None:
    """Return the norm that makes a product's activations; None if another operator does."""
    producer = product.inputs[0].producer()
    return producer if producer is not None and producer.op_type == "LayerNormalization" else None


def _is_of_vocabulary(product: onnx_ir.Node) -> bool:
    """Return whether a product's weight is that of an embedding too.

    Of greedy steps, which share the weight with others, the choice of the token reads its states in float32 too.
    """
    return any(use.node.op_type == "Gather" for use in product.inputs[1].uses())


def _evening_factors(largest: npt.NDArray[np.float32], columns: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return by what (K,) activations are divided and a weight (K, N) multiplied, so that both have like columns."""
    return np.sqrt(np.maximum(largest, _MIN_COLUMN) / np.maximum(np.abs(columns).max(axis=1), _MIN_COLUMN))


def _divide_columns(constants: ConstantPool, norm: onnx_ir.Node, factors: npt.NDArray[np.float32]) -> None:
    """Divide the columns (K,) that a norm makes."""
    for number, parameter in enumerate(norm.inputs[1:], 1):
        if parameter is not None:
            divided = constants.add(f"{parameter.name}.evened", parameter.const_value.numpy() / factors)
            norm.replace_input_with(number, divided)


def _columns(product: onnx_ir.Node) -> npt.NDArray[np.float32]:
    """Return the weight of a product as (K, N)."""
    weight = product.inputs[1].const_value.numpy()
    return weight.T if is_transposed(product) else weight


def _compress(graph: onnx_ir.Graph, constants: ConstantPool, product: onnx_ir.Node) -> None:
    """Replace a product by one with a weight in 8 bits."""
    stored = product.inputs[1]
    steps, scales = _rounded(_columns(product))
    attributes = {"axis": onnx_ir.AttrInt64("axis", 0), "block_size": onnx_ir.AttrInt64("block_size", BLOCK)}
    inputs = constants.add(f"{stored.name}.int8", steps), constants.add(f"{stored.name}.scales", scales)
    weights = onnx_ir.Node("", "DequantizeLinear", inputs, attributes)
    weights.outputs[0].type, weights.outputs[0].shape = stored.type, onnx_ir.Shape(steps.shape)
    nodes, bias = [weights, onnx_ir.Node("", "MatMul", [product.inputs[0], weights.outputs[0]])], _bias(product)
    if bias is not None:
        nodes.append(onnx_ir.Node("", "Add", [nodes[-1].outputs[0], bias]))
    _replace(graph, product, nodes)


def _bias(product: onnx_ir.Node) -> onnx_ir.Value | None:
    return product.inputs[2] if len(product.inputs) == 3 else None


def _replace(graph: onnx_ir.Graph, product: onnx_ir.Node, nodes: list[onnx_ir.Node]) -> None:
    """Replace a product by nodes, the last of which makes what it made."""
    for node in nodes:
        if node.outputs[0].shape is None:
            node.outputs[0].type, node.outputs[0].shape = product.outputs[0].type, product.outputs[0].shape
    onnx_ir.convenience.replace_nodes_and_values(graph, product, [product], nodes, product.outputs, nodes[-1].outputs)


def _rounded(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return a weight (K, N) as steps (K, N) of scales (K / BLOCK, N)."""
    inputs, outputs = weight.shape
    blocks = weight.reshape(inputs // BLOCK, BLOCK, outputs)
    scales = np.maximum(np.abs(blocks).max(axis=1), _MIN_LARGEST) / _MAX_WEIGHT
    steps = np.rint(blocks / scales[:, None]).astype(np.int8)
    return np.ascontiguousarray(steps.reshape(inputs, outputs)), scales.astype(np.float32)
