"""Parts of graphs are found by what these functions read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

Pattern: TypeAlias = Any
"""See `is_made_by`."""


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


def is_made_by(value: Any, pattern: Pattern) -> bool:
    """Return whether a value is made as a pattern says.

    A pattern is the type of an operator with patterns of its first inputs, a condition of the value, or the value.
    """
    if callable(pattern):
        return bool(pattern(value))
    if not isinstance(pattern, tuple):
        return bool(value == pattern)
    op_type, *operands = pattern
    node = value.get_node()
    return node.get_type_name() == op_type and all(
        is_made_by(node.input_value(place), operand) for place, operand in enumerate(operands)
    )


class NamedValues:
    """The values that a pattern names; one that it names again must be the same."""

    def __init__(self) -> None:
        self._values: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def named(self, name: str) -> Pattern:
        return lambda value: self._values.setdefault(name, value) == value


def is_number(number: int) -> Callable[[Any], bool]:
    """Return the condition that a value is a constant of one number."""

    def holds(value: Any) -> bool:
        array = constant(value)
        return array is not None and array.size == 1 and array.ravel()[0] == number

    return holds


def is_list(numbers: list[int]) -> Callable[[Any], bool]:
    """Return the condition that a value is a constant list of whole numbers."""

    def holds(value: Any) -> bool:
        array = constant(value)
        return array is not None and array.ravel().tolist() == numbers

    return holds


def counts_up(value: Any) -> bool:
    """Return whether a value is a constant 0, 1, 2 and so on."""
    array = constant(value)
    return array is not None and array.ravel().tolist() == list(range(array.size))


def is_last_axis_of(rank: int) -> Callable[[Any], bool]:
    """Return the condition that a value names the last of some axes."""
    return lambda value: is_number(-1)(value) or is_number(rank - 1)(value)
