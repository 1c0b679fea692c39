"""Parts of graphs are found by what these functions read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def constant(value: Any) -> Any | None:
    """Return the array of a constant, also through operators that only convert it; None if it is not one."""
    node = value.get_node()
    while node.get_type_name() in ("Convert", "ConvertLike"):
        node = node.input_value(0).get_node()
    return node.data if node.get_type_name() == "Constant" else None


def order(transpose: Any) -> list[int] | None:
    """Return the axes of a transposition; None where they are chosen at run time."""
    axes = constant(transpose.input_value(1))
    return None if axes is None else axes.tolist()


def size(value: Any, axis: int) -> int | None:
    """Return the size of an axis; None where it is chosen at run time, or is not there."""
    shape = value.get_partial_shape()
    sizes = [] if shape.rank.is_dynamic else list(shape)
    is_known = -len(sizes) <= axis < len(sizes) and sizes[axis].is_static
    return int(sizes[axis].get_length()) if is_known else None


def users(value: Any) -> list[Any]:
    """Return the nodes that read a value."""
    return [port.get_node() for port in value.get_target_inputs()]


def follow(node: Any, op_types: tuple[str, ...]) -> list[Any] | None:
    """Return the nodes of these types that follow one another after ``node``; None if others use what one makes."""
    chain = []
    for op_type in op_types:
        following = users(node.output(0))
        if len(following) != 1 or following[0].get_type_name() != op_type:
            return None
        node = following[0]
        chain.append(node)
    return chain


def lead_back(value: Any, op_types: tuple[str, ...]) -> Iterator[Any]:
    """Yield the nodes that make a value, each from its first input, while they are of these types."""
    for op_type in op_types:
        node = value.get_node()
        if node.get_type_name() != op_type:
            return
        yield node
        value = node.input_value(0)
