"""Attention as one operator, which runs through keys in blocks and never holds the scores of a whole image.

At 518 pixels those are 90 MB a layer for ViT-B: writing, norming and reading them is a tenth of the time of a float32
graph. The operator is ONNX Runtime's own, so a graph with it is for runtimes that read it (OpenVINO does).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import onnx_ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

CONTRIB = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""


@dataclass(frozen=True)
class _Attention:
    """Attention without a mask over one tensor (B, T, 3 * D) of queries, keys and values, as torch exports it.

    Attributes:
        qkv: that tensor.
        mixed: the node that makes the mixed values (B, T, D).
        heads: the number of heads H.
        head_width: D / H, whose root the scores are divided by.
    """

    qkv: onnx_ir.Value
    mixed: onnx_ir.Node
    heads: int
    head_width: int


def fuse_attention(model: onnx_ir.Model) -> int:
    """Makes each attention without a mask one node, in place; returns how many there were."""
    graph = model.graph
    found = [attention for node in graph if node.op_type == "Softmax" for attention in _attention_around(node)]
    for attention in found:
        thirds = {"axis": onnx_ir.AttrInt64("axis", -1), "num_outputs": onnx_ir.AttrInt64("num_outputs", 3)}
        split = onnx_ir.Node("", "Split", [attention.qkv], thirds, num_outputs=3)
        numbers = {
            "num_heads": onnx_ir.AttrInt64("num_heads", attention.heads),
            "scale": onnx_ir.AttrFloat32("scale", attention.head_width**-0.5),
        }
        fused = onnx_ir.Node(CONTRIB, "MultiHeadAttention", split.outputs, numbers)
        old = attention.mixed
        onnx_ir.convenience.replace_nodes_and_values(graph, old, [old], [split, fused], old.outputs, fused.outputs)
    if found:
        model.opset_imports[CONTRIB] = 1
        RemoveUnusedNodesPass()(model)
    return len(found)


def _attention_around(softmax: onnx_ir.Node) -> Iterable[_Attention]:
    """The attention that a softmax is part of, if it is one that can be fused."""
    after = _follow(softmax, ("MatMul", "Transpose", "Reshape"))
    if after is None:
        return []
    product, _, mixed = after
    values = product.inputs[1]
    qkv = _trace(values, ("Squeeze", "Slice", "Transpose", "Reshape"))
    if qkv is None or qkv is not _trace(
        softmax.inputs[0], ("MatMul", "Mul", "Squeeze", "Slice", "Transpose", "Reshape")
    ):
        return []
    return [_Attention(qkv, mixed, heads=values.shape[1], head_width=values.shape[3])]


def _follow(node: onnx_ir.Node, kinds: tuple[str, ...]) -> list[onnx_ir.Node] | None:
    """The nodes of these kinds that come one after another from ``node``, each with no other user."""
    nodes = []
    for kind in kinds:
        users = [use.node for use in node.outputs[0].uses()]
        if len(users) != 1 or users[0].op_type != kind:
            return None
        node = users[0]
        nodes.append(node)
    return nodes


def _trace(value: onnx_ir.Value, kinds: tuple[str, ...]) -> onnx_ir.Value | None:
    """What ``value`` was made of by nodes of these kinds, latest first, going back by their first input."""
    for kind in kinds:
        node = value.producer()
        if node is None or node.op_type != kind:
            return None
        value = node.inputs[0]
    return value
