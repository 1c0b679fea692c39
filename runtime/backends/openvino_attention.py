"""Attention in graphs that OpenVINO executes, left to the native kernels.

To be imported once `import_openvino` has.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import ref

import openvino
from openvino import opset13

from runtime.backends.native_attention import QKV, WIDTH_MULTIPLE, AttentionShape, Heads, NativeAttention

MIN_TOKENS = 600
"""Of fewer OpenVINO itself is as fast or faster: it keeps their scores in the second-level cache."""
_PACKED_FORMS = (("Squeeze", "Slice", "Transpose", "Reshape"), ("Transpose", "Reshape", "Split"))
"""The operators between queries, keys or values (B, H, T, W) and the tensor of all three, the last first."""
_THIRDS_FIRST, _HEADS_FIRST = [2, 0, 3, 1, 4], [0, 2, 1, 3]


def _never_freed() -> object:
    """Return an object that references may be dropped to without Python's lock.

    OpenVINO's part of a node takes a reference, meant to be to the node, which it then drops in any thread, and when
    the interpreter ends. That of the last one would be fatal.
    """
    if sys.version_info >= (3, 12):
        return None  # its references are not counted
    handle = object()
    ctypes.c_ssize_t.from_address(id(handle)).value += 1 << 30  # whatever two threads miscount, some are left
    return handle


_HANDLE = _never_freed()


@dataclass(frozen=True)
class _Match:
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


class AttentionNodes:
    """The nodes of a graph that execute, to be kept as long as the compiled graph: OpenVINO calls Python's part."""

    def __init__(self) -> None:
        self._kept: list[AttentionNode] = []
        self._is_complete = False
        self.failures = 0
        """How many executions failed: OpenVINO does not tell where it has one thread."""

    def __len__(self) -> int:
        return len(self._kept)

    def add(self, node: AttentionNode) -> None:
        if not self._is_complete:
            self._kept.append(node)

    def complete(self) -> None:
        """Take no more: the graph is compiled, and what its runs make are nodes that are asked for their shape."""
        self._is_complete = True


class AttentionNode(openvino.Op):  # type: ignore[misc]  # the bindings have no type for it
    """softmax(scale * queries @ keys') @ values (B, T, D), in the native kernels.

    Its inputs are queries, keys and values (B, H, T, W), or one tensor of them (B, T, 3 * D).
    """

    def __init__(
        self, inputs: list[Any], heads: int, scale: float, attention: NativeAttention, nodes: AttentionNodes
    ) -> None:
        super().__init__(_HANDLE)
        self._heads, self._scale, self._attention = heads, scale, attention
        self._nodes = ref(nodes)  # they hold this node, and the garbage collector does not see into the bindings
        nodes.add(self)
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    def get_type_info(self) -> Any:
        return openvino.DiscreteTypeInfo("NativeAttention", "patchcaption")

    def validate_and_infer_types(self) -> None:
        shape = self.get_input_partial_shape(0)
        if self.get_input_size() == 1:
            batch, tokens, width = shape[0], shape[1], shape[2].get_length() // 3
        else:
            batch, tokens, width = shape[0], shape[2], self._heads * shape[3].get_length()
        self.set_output_type(0, self.get_input_element_type(0), openvino.PartialShape([batch, tokens, width]))

    def clone_with_new_inputs(self, new_inputs: list[Any]) -> AttentionNode:
        return AttentionNode(new_inputs, self._heads, self._scale, self._attention, self._owner())

    def visit_attributes(self, visitor: Any) -> bool:
        visitor.on_attributes({"heads": self._heads, "scale": self._scale})
        return True

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        if len(inputs) == 1:
            shape, heads = _packed_heads(inputs[0], self._heads)
        else:
            shape, heads = _separate_heads(inputs)
        number_format = inputs[0].get_element_type().get_type_name()
        try:
            self._attention.attend(heads, shape, self._scale, number_format, _address(outputs[0]))
        except BaseException:
            self._owner().failures += 1
            raise
        return True

    def _owner(self) -> AttentionNodes:
        nodes = self._nodes()
        assert nodes is not None, "it stays as long as the graph"
        return nodes


def use_native_attention(model: Any, attention: NativeAttention, min_tokens: int | None = None) -> AttentionNodes:
    """Leave each attention of a graph that the native kernels can compute to them, in place.

    Its tensors become bfloat16, as the kernels multiply them.

    Args:
        min_tokens: of how many tokens it must be; by default `MIN_TOKENS`.

    Returns:
        the nodes, which are `complete` once the graph is compiled.
    """
    nodes = AttentionNodes()
    least = MIN_TOKENS if min_tokens is None else min_tokens
    matches = [match for node in model.get_ordered_ops() if (match := _match(node)) and match.tokens >= least]
    for match in matches:
        packed = _packed_tensor(match)
        inputs = [match.queries, match.keys, match.values] if packed is None else [packed]
        halved = [opset13.convert(value, "bf16").output(0) for value in inputs]
        node = AttentionNode(halved, match.heads, match.scale, attention, nodes)
        match.attended.replace(opset13.convert(node.output(0), match.attended.get_element_type()).output(0))
    if nodes:
        model.validate_nodes_and_infer_types()
    return nodes


def _match(node: Any) -> _Match | None:
    """Return the attention whose softmax a node is or contains; None if the native kernels cannot compute it."""
    match = {"Softmax": _match_softmax, "ScaledDotProductAttention": _match_operator}.get(node.get_type_name())
    found = None if match is None else match(node)
    if found is None:
        return None
    shapes = [value.get_partial_shape() for value in (found.queries, found.keys, found.values)]
    static = all(size.is_static for shape in shapes for size in list(shape)[1:])
    takes = static and shapes[0] == shapes[1] == shapes[2] and found.head_width % WIDTH_MULTIPLE == 0
    return found if takes else None


def _match_softmax(softmax: Any) -> _Match | None:
    """Return what softmax((queries * scale) @ keys') @ values is, as torch exports it."""
    chain = _follow(softmax, ("MatMul", "Transpose", "Reshape"))
    scores = softmax.input_value(0).get_node()
    if chain is None or scores.get_type_name() != "MatMul":
        return None
    scaled, transposed = scores.input_value(0).get_node(), scores.input_value(1).get_node()
    if (scaled.get_type_name(), transposed.get_type_name()) != ("Multiply", "Transpose"):
        return None
    scale = _constant(scaled.input_value(1))
    if scale is None or scale.size != 1 or _order(transposed) != [0, 1, 3, 2] or _order(chain[1]) != _HEADS_FIRST:
        return None
    queries, keys, values = scaled.input_value(0), transposed.input_value(0), chain[0].input_value(1)
    return _Match(queries, keys, values, float(scale.ravel()[0]), chain[2].output(0))


def _match_operator(operator: Any) -> _Match | None:
    """Return what OpenVINO's own operator computes, if it has no mask."""
    chain = _follow(operator, ("Transpose", "Reshape"))
    if chain is None or operator.get_attributes()["causal"] or operator.get_input_size() != 5:
        return None
    mask, scale = _constant(operator.input_value(3)), _constant(operator.input_value(4))
    if mask is None or mask.size != 1 or scale is None or _order(chain[0]) != _HEADS_FIRST:
        return None
    queries, keys, values = (operator.input_value(index) for index in range(3))
    return _Match(queries, keys, values, float(scale.ravel()[0]), chain[1].output(0))


def _packed_tensor(match: _Match) -> Any | None:
    """Return the tensor (B, T, 3 * D) that queries, keys and values are the thirds of; None if there is none."""
    tensors = [_packed_third(value, third) for third, value in enumerate((match.queries, match.keys, match.values))]
    first = tensors[0]
    return first if first is not None and all(tensor == first for tensor in tensors[1:]) else None


def _packed_third(value: Any, third: int) -> Any | None:
    for form in _PACKED_FORMS:
        chain = list(_lead_back(value, form))
        if len(chain) == len(form):
            break
    else:
        return None
    if form[-1] == "Split":
        is_third = chain[1].input_value(0).get_index() == third and _order(chain[0]) == _HEADS_FIRST
    else:
        start = _constant(chain[1].input_value(1))
        is_third = start is not None and start.tolist() == [third] and _order(chain[2]) == _THIRDS_FIRST
    return chain[-1].input_value(0) if is_third else None


def _lead_back(value: Any, op_types: tuple[str, ...]) -> Iterator[Any]:
    """Yield the nodes that make a value, each from its first input, while they are of these types."""
    for op_type in op_types:
        node = value.get_node()
        if node.get_type_name() != op_type:
            return
        yield node
        value = node.input_value(0)


def _follow(node: Any, op_types: tuple[str, ...]) -> list[Any] | None:
    """Return the nodes of these types that follow one another after ``node``; None if others use what one makes."""
    chain = []
    for op_type in op_types:
        users = [port.get_node() for port in node.output(0).get_target_inputs()]
        if len(users) != 1 or users[0].get_type_name() != op_type:
            return None
        node = users[0]
        chain.append(node)
    return chain


def _order(transpose: Any) -> list[int] | None:
    order = _constant(transpose.input_value(1))
    return None if order is None else order.tolist()


def _constant(value: Any) -> Any | None:
    """Return the array of a constant, also through operators that only convert it; None if it is not one."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    return node.data if node.get_type_name() == "Constant" else None


def _packed_heads(tensor: Any, heads: int) -> tuple[AttentionShape, QKV]:
    """Return where the kernels find the thirds of a tensor (B, T, 3 * D)."""
    images, tokens, width = tensor.get_shape()
    third = width // 3
    head_width = third // heads
    addresses = [_address(tensor) + index * third * tensor.get_element_type().size for index in range(3)]
    strides = (tokens * width, head_width, width)
    return AttentionShape(images, tokens, heads, head_width), QKV(*(Heads(address, *strides) for address in addresses))


def _separate_heads(tensors: list[Any]) -> tuple[AttentionShape, QKV]:
    """Return where the kernels find queries, keys and values (B, H, T, W)."""
    images, heads, tokens, head_width = tensors[0].get_shape()
    strides = (heads * tokens * head_width, tokens * head_width, head_width)
    places = QKV(*(Heads(_address(tensor), *strides) for tensor in tensors))
    return AttentionShape(images, tokens, heads, head_width), places


def _address(tensor: Any) -> int:
    return int(tensor.data.ctypes.data)
