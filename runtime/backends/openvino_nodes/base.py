"""A node of a graph that the native kernels execute inside of OpenVINO."""

from __future__ import annotations

import ctypes
import sys
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Any, ClassVar
from weakref import ref

import openvino


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


class NativeNodes:
    """The nodes of a graph that execute, to be kept as long as the compiled graph: OpenVINO calls Python's part."""

    def __init__(self) -> None:
        self._kept: list[NativeNode] = []
        self._is_complete = False
        self.failures = 0
        """How many executions failed."""
        self.last_failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[NativeNode]:
        return iter(tuple(self._kept))

    def count(self, kind: type[NativeNode]) -> int:
        """Return how many nodes are of a kind."""
        return sum(isinstance(node, kind) for node in self._kept)

    def add(self, node: NativeNode) -> None:
        if not self._is_complete:
            self._kept.append(node)

    def join(self) -> None:
        """Let nodes read each other's outputs where only conversions to other formats, and back, lie between."""
        for node in self._kept:
            for port in node.inputs():
                source = port.get_source_output()
                while source.get_node().get_type_name() == "Convert" and source.get_element_type().is_real():
                    source = source.get_node().input_value(0)
                if source.get_element_type() == port.get_element_type():
                    port.replace_source_output(source)

    def complete(self) -> None:
        """Take no more: the graph is compiled, and what its runs make are nodes that are asked for their shape."""
        self._is_complete = True


class NativeNode(openvino.Op):  # type: ignore[misc]  # the bindings have no type for it
    """A node that `execute` computes.

    Args:
        inputs: its ports.
        nodes: what keeps it.
        described: the arguments between ``inputs`` and ``nodes`` that make a node like it of other inputs.
    """

    kind: ClassVar[str]

    @property
    @abstractmethod
    def attributes(self) -> dict[str, Any]:
        """What tells this node from others of its kind and inputs, which OpenVINO takes for one."""

    def __init__(self, inputs: list[Any], nodes: NativeNodes, described: tuple[Any, ...]) -> None:
        super().__init__(_HANDLE)
        self._described = described
        self._nodes = ref(nodes)  # they hold this node, and the garbage collector does not see into the bindings
        nodes.add(self)
        self.set_arguments(inputs)
        self.constructor_validate_and_infer_types()

    @abstractmethod
    def execute(self, outputs: list[Any], inputs: list[Any]) -> None:
        """Write the outputs' memory."""

    def get_type_info(self) -> Any:
        return openvino.DiscreteTypeInfo(self.kind, "patchcaption")

    def clone_with_new_inputs(self, new_inputs: list[Any]) -> NativeNode:
        like: Callable[..., NativeNode] = type(self)
        return like(new_inputs, *self._described, self._owner())

    def visit_attributes(self, visitor: Any) -> bool:
        visitor.on_attributes(self.attributes)
        return True

    def has_evaluate(self) -> bool:
        return True

    def evaluate(self, outputs: list[Any], inputs: list[Any]) -> bool:
        """Execute; whoever runs the graph finds a failure in the nodes.

        OpenVINO must not see it. With one thread it leaves a run that failed in the queue of an executor that other
        graphs take over, which begin with that run, whatever has become of its memory.
        """
        try:
            self.execute(outputs, inputs)
        except BaseException as failure:
            nodes = self._owner()
            nodes.last_failure = failure
            nodes.failures += 1
        return True

    def _owner(self) -> NativeNodes:
        nodes = self._nodes()
        assert nodes is not None, "it stays as long as the graph"
        return nodes


class KernelNode(NativeNode):
    """A node whose one output, of its first input's element type, one call of the kernels computes."""

    @abstractmethod
    def output_shape(self, inputs: list[Any]) -> Any:
        """Return the shape of the output for inputs of these shapes."""

    @abstractmethod
    def prepare(self, outputs: list[Any], inputs: list[Any]) -> Callable[[], None]:
        """Return what writes the output's memory: it knows addresses, and keeps none of the tensors."""

    def validate_and_infer_types(self) -> None:
        shapes = [self.get_input_partial_shape(place) for place in range(self.get_input_size())]
        self.set_output_type(0, self.get_input_element_type(0), self.output_shape(shapes))

    def execute(self, outputs: list[Any], inputs: list[Any]) -> None:
        self.prepare(outputs, inputs)()


def address(tensor: Any) -> int:
    """Return where a tensor's memory begins."""
    return int(tensor.data.ctypes.data)
