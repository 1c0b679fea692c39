"""Attention."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import openvino
from openvino import opset13

from runtime.backends.native_attention import QKV, WIDTH_MULTIPLE, AttentionShape, Heads, NativeAttention
from runtime.backends.openvino_nodes.base import KernelNode, NativeNodes, address
from runtime.backends.openvino_nodes.reading import constant, follow, lead_back, order

MIN_TOKENS = 600
"""Of fewer OpenVINO itself is as fast or faster: it keeps their scores in the second-level cache."""
_PACKED_FORMS = (("Squeeze", "Slice", "Transpose", "Reshape"), ("Transpose", "Reshape", "Split"))
"""The operators between queries, keys or values (B, H, T, W) and the tensor of all three, the last first."""
_THIRDS_FIRST, _HEADS_FIRST = [2, 0, 3, 1, 4], [0, 2, 1, 3]


@dataclass(frozen=True)
class _AttentionInGraph:
    """Attention without a mask in a graph: ports of queries, keys, values (B, H, T, W) and of the result (B, T, D)."""

    queries: Any
    keys: Any
    values: Any
    scale: float
    attended: Any

    @property
    def heads(self) -> int:
        return int(self.values.get_partial_shape()[1].get_length())

    @property
    def tokens(self) -> int:
        return int(self.values.get_partial_shape()[2].get_length())

    @property
    def head_width(self) -> int:
        return int(self.values.get_partial_shape()[3].get_length())


class AttentionNode(KernelNode):
    """softmax(scale * queries @ keys') @ values (B, T, D), in the native kernels.

    Its inputs are queries, keys and values (B, H, T, W), or one tensor of them (B, T, 3 * D).
    """

    kind = "NativeAttention"

    def __init__(
        self, inputs: list[Any], heads: int, scale: float, attention: NativeAttention, nodes: NativeNodes
    ) -> None:
        self._heads, self._scale, self._attention = heads, scale, attention
        super().__init__(inputs, nodes, (heads, scale, attention))

    @property
    def attributes(self) -> dict[str, Any]:
        return {"heads": self._heads, "scale": self._scale}

    def output_shape(self, inputs: list[Any]) -> Any:
        shape = inputs[0]
        if len(inputs) == 1:
            batch, tokens, width = shape[0], shape[1], shape[2].get_length() // 3
        else:
            batch, tokens, width = shape[0], shape[2], self._heads * shape[3].get_length()
        return openvino.PartialShape([batch, tokens, width])

    def prepare(self, outputs: list[Any], inputs: list[Any]) -> Callable[[], None]:
        if len(inputs) == 1:
            shape, heads = _packed_heads(inputs[0], self._heads)
        else:
            shape, heads = _separate_heads(inputs)
        number_format = inputs[0].get_element_type().get_type_name()
        attended = address(outputs[0])
        return lambda: self._attention.attend(heads, shape, self._scale, number_format, attended)


def use_native_attention(
    model: Any, attention: NativeAttention, nodes: NativeNodes, min_tokens: int | None = None
) -> None:
    """Leave each attention of a graph that the native kernels can compute to them, in place.

    Its tensors become bfloat16, as the kernels multiply them.

    Args:
        nodes: what keeps the new nodes.
        min_tokens: of how many tokens it must be; by default `MIN_TOKENS`.
    """
    least = MIN_TOKENS if min_tokens is None else min_tokens
    matches = [match for node in model.get_ordered_ops() if (match := _match(node)) and match.tokens >= least]
    for match in matches:
        packed = _packed_tensor(match)
        inputs = [match.queries, match.keys, match.values] if packed is None else [packed]
        halved = [opset13.convert(value, "bf16").output(0) for value in inputs]
        node = AttentionNode(halved, match.heads, match.scale, attention, nodes)
        match.attended.replace(opset13.convert(node.output(0), match.attended.get_element_type()).output(0))


def _match(node: Any) -> _AttentionInGraph | None:
    """Return the attention whose softmax a node is or contains; None if the native kernels cannot compute it."""
    match = {"Softmax": _match_softmax, "ScaledDotProductAttention": _match_operator}.get(node.get_type_name())
    found = None if match is None else match(node)
    if found is None:
        return None
    shapes = [value.get_partial_shape() for value in (found.queries, found.keys, found.values)]
    static = all(size.is_static for shape in shapes for size in list(shape)[1:])
    takes = static and shapes[0] == shapes[1] == shapes[2] and found.head_width % WIDTH_MULTIPLE == 0
    return found if takes else None


def _match_softmax(softmax: Any) -> _AttentionInGraph | None:
    """Return what softmax((queries * scale) @ keys') @ values is, as torch exports it."""
    chain = follow(softmax, ("MatMul", "Transpose", "Reshape"))
    scores = softmax.input_value(0).get_node()
    if chain is None or scores.get_type_name() != "MatMul":
        return None
    scaled, transposed = scores.input_value(0).get_node(), scores.input_value(1).get_node()
    if (scaled.get_type_name(), transposed.get_type_name()) != ("Multiply", "Transpose"):
        return None
    scale = constant(scaled.input_value(1))
    if scale is None or scale.size != 1 or order(transposed) != [0, 1, 3, 2] or order(chain[1]) != _HEADS_FIRST:
        return None
    queries, keys, values = scaled.input_value(0), transposed.input_value(0), chain[0].input_value(1)
    return _AttentionInGraph(queries, keys, values, float(scale.ravel()[0]), chain[2].output(0))


def _match_operator(operator: Any) -> _AttentionInGraph | None:
    """Return what OpenVINO's own operator computes, if it has no mask."""
    chain = follow(operator, ("Transpose", "Reshape"))
    if chain is None or operator.get_attributes()["causal"] or operator.get_input_size() != 5:
        return None
    mask, scale = constant(operator.input_value(3)), constant(operator.input_value(4))
    if mask is None or mask.size != 1 or scale is None or order(chain[0]) != _HEADS_FIRST:
        return None
    queries, keys, values = (operator.input_value(index) for index in range(3))
    return _AttentionInGraph(queries, keys, values, float(scale.ravel()[0]), chain[1].output(0))


def _packed_tensor(match: _AttentionInGraph) -> Any | None:
    """Return the tensor (B, T, 3 * D) that queries, keys and values are the thirds of; None if there is none."""
    tensors = [_packed_third(value, third) for third, value in enumerate((match.queries, match.keys, match.values))]
    first = tensors[0]
    return first if first is not None and all(tensor == first for tensor in tensors[1:]) else None


def _packed_third(value: Any, third: int) -> Any | None:
    for form in _PACKED_FORMS:
        chain = list(lead_back(value, form))
        if len(chain) == len(form):
            break
    else:
        return None
    if form[-1] == "Split":
        is_third = chain[1].input_value(0).get_index() == third and order(chain[0]) == _HEADS_FIRST
    else:
        start = constant(chain[1].input_value(1))
        is_third = start is not None and start.tolist() == [third] and order(chain[2]) == _THIRDS_FIRST
    return chain[-1].input_value(0) if is_third else None


def _packed_heads(tensor: Any, heads: int) -> tuple[AttentionShape, QKV]:
    """Return where the kernels find the thirds of a tensor (B, T, 3 * D)."""
    images, tokens, width = tensor.get_shape()
    third = width // 3
    head_width = third // heads
    addresses = [address(tensor) + index * third * tensor.get_element_type().size for index in range(3)]
    strides = (tokens * width, head_width, width)
    return AttentionShape(images, tokens, heads, head_width), QKV(*(Heads(address, *strides) for address in addresses))


def _separate_heads(tensors: list[Any]) -> tuple[AttentionShape, QKV]:
    """Return where the kernels find queries, keys and values (B, H, T, W)."""
    images, heads, tokens, head_width = tensors[0].get_shape()
    strides = (heads * tokens * head_width, tokens * head_width, head_width)
    places = QKV(*(Heads(address(tensor), *strides) for tensor in tensors))
    return AttentionShape(images, tokens, heads, head_width), places
