"""Stores the weights of products as GPU kernels read them, so that a TensorRT plan holds each weight once.

A plan has a copy of a weight for every layout that one of its kernels reads: of a weight (in, out) a transposed one
too, if one of its profiles is of a single row.
"""

from __future__ import annotations

import numpy as np
import onnx_ir


def transpose_weights(model: onnx_ir.Model) -> None:
    """Store the weight of each Gemm as (out, in), in place; those that other nodes use too stay as they are."""
    for node in model.graph:
        if node.op_type != "Gemm" or is_transposed(node):
            continue
        weight = node.inputs[1]
        if weight.is_initializer() and len(weight.uses()) == 1:
            array = np.ascontiguousarray(weight.const_value.numpy().T)
            weight.const_value = onnx_ir.tensor(array, weight.dtype, name=weight.name)
            weight.shape = onnx_ir.Shape(array.shape)
            node.attributes["transB"] = onnx_ir.AttrInt64("transB", 1)


def is_transposed(product: onnx_ir.Node) -> bool:
    """Return whether the weight of a product is stored (out, in)."""
    return "transB" in product.attributes and bool(product.attributes["transB"].as_int())
