"""Parts of graphs that OpenVINO executes, left to the native kernels.

To be imported once `import_openvino` has.
"""

from __future__ import annotations

from typing import Any

from runtime.backends.native_attention import native_attention
from runtime.backends.native_linear import native_linear
from runtime.backends.openvino_nodes.attention import AttentionNode, use_native_attention
from runtime.backends.openvino_nodes.base import NativeNodes
from runtime.backends.openvino_nodes.chain import chain_nodes
from runtime.backends.openvino_nodes.linear import LinearNode, use_native_linear

__all__ = ["NativeNodes", "names_of", "use_native_kernels"]

_NAMES = {AttentionNode: "attention", LinearNode: "products in 8 bits"}


def use_native_kernels(model: Any, threads: int) -> NativeNodes:
    """Leave to the native kernels what they do faster in bfloat16 on this processor, in place.

    Args:
        threads: the most that the kernels use.

    Returns:
        the nodes, which are `complete` once the graph is compiled.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    nodes = NativeNodes()
    attention = native_attention(threads)
    if attention is not None:
        use_native_attention(model, attention, nodes)
    # Without it, what converts tensors between products and OpenVINO's attention takes more than they save.
    if nodes and (linear := native_linear(threads)) is not None:
        use_native_linear(model, linear, nodes)
    if nodes:
        nodes.join()
        chain_nodes(model, nodes)
        model.validate_nodes_and_infer_types()
    return nodes


def names_of(nodes: NativeNodes) -> list[str]:
    """Return what nodes compute, in words."""
    return [name for kind, name in _NAMES.items() if nodes.count(kind)]
