"""Parts of graphs that OpenVINO executes, left to the native kernels.

To be imported once `import_openvino` has.
"""

from __future__ import annotations

from typing import Any

from runtime.backends.native_attention import native_attention
from runtime.backends.native_linear import native_linear
from runtime.backends.openvino_nodes.attention import AttentionNode, use_native_attention
from runtime.backends.openvino_nodes.base import NativeNodes
from runtime.backends.openvino_nodes.linear import LinearNode, use_native_linear
from runtime.options import Precision

__all__ = ["NativeNodes", "names_of", "use_native_kernels"]

_NAMES = {AttentionNode: "attention", LinearNode: "products in 8 bits"}


def use_native_kernels(model: Any, precision: Precision, threads: int) -> NativeNodes:
    """Leave to the native kernels what they do faster on this processor, in place.

    Args:
        precision: of what the graph leaves in float32.
        threads: the most that the kernels use.

    Returns:
        the nodes, which are `complete` once the graph is compiled.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    nodes = NativeNodes()
    attention, linear = native_attention(threads), native_linear(threads)
    if precision == "bf16" and attention is not None:
        use_native_attention(model, attention, nodes)
        # Without it, what converts tensors between products and OpenVINO's attention takes more than they save.
        if linear is not None and nodes.count(AttentionNode):
            use_native_linear(model, linear, nodes)
    if nodes:
        nodes.join()
        model.validate_nodes_and_infer_types()
    return nodes


def names_of(nodes: NativeNodes) -> list[str]:
    """Return what nodes compute, in words."""
    return [name for kind, name in _NAMES.items() if nodes.count(kind)]
