"""Kernels' nodes that follow one another, as one node.

What OpenVINO does around each node, the way into Python, and the preparation of each call come once a run or less.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import openvino
from openvino import opset13

from runtime.backends.openvino_nodes.base import KernelNode, NativeNode, NativeNodes, address

_ALIGNMENT = 64
"""Of values in memory, in bytes: a line of the processor's caches."""
_PAGE, _STAGGER = 4096, 640
"""In bytes. The processor takes addresses that are whole pages apart for one when it reads what may be being written:
buffers begin at different places of a page."""
_MOST_TIMES_TOO_LARGE = 8
"""Memory of so many times what a run needs serves it; larger memory, as of a huge batch, is given back."""
_Value: TypeAlias = tuple[Any, Any]
"""A value's element type and shape."""
_Place: TypeAlias = tuple[int, Any, Any]
"""A tensor's address, element type and shape."""


@dataclass(frozen=True)
class _Member:
    """A node of a chain, and the numbers of the values that it reads and makes: the chain's inputs are the first."""

    node: KernelNode
    reads: tuple[int, ...]
    makes: int


class Chain:
    """What a `ChainNode` and its copies share. Runs may be concurrent.

    Args:
        outputs: the numbers of the values that others read.
    """

    def __init__(self, members: Sequence[_Member], outputs: Sequence[int]) -> None:
        self.members, self.outputs = members, outputs
        self._last_values: list[_Value] = []
        self._bindings: list[_Binding] = []  # that no run has now, the one used least recently first
        self._taking = Lock()

    def values(self, inputs: list[_Value]) -> list[_Value]:
        """Return all values for these inputs."""
        last = self._last_values
        if last[: len(inputs)] == inputs:  # asked when the node is copied, which each run does, and when it is bound
            return last
        values = list(inputs)
        for member in self.members:
            read = [values[number] for number in member.reads]
            values.append((read[0][0], member.node.output_shape([shape for _, shape in read])))
        self._last_values = values
        return values

    def run(self, outputs: list[Any], inputs: list[Any]) -> None:
        """Execute the members; a failure of one ends the run."""
        places = [_place(tensor) for tensor in (*inputs, *outputs)]
        binding = self._take(places)
        try:
            if binding.places != places:
                binding.bind(self, places, outputs, inputs)
            for call in binding.calls:
                call()
        finally:
            with self._taking:
                self._bindings.append(binding)

    def _take(self, places: list[_Place]) -> _Binding:
        """Return a binding for one run, one to these places if there is one."""
        with self._taking:
            if not self._bindings:
                return _Binding()
            bound = (index for index, binding in enumerate(self._bindings) if binding.places == places)
            return self._bindings.pop(next(bound, 0))


class ChainNode(NativeNode):
    """Nodes that are executed one after another."""

    kind = "NativeChain"

    def __init__(self, inputs: list[Any], chain: Chain, nodes: NativeNodes) -> None:
        self._chain = chain
        super().__init__(inputs, nodes, (chain,))

    @property
    def attributes(self) -> dict[str, Any]:
        return {"chain": id(self._chain)}

    def validate_and_infer_types(self) -> None:
        places = range(self.get_input_size())
        values = self._chain.values([(self.get_input_element_type(n), self.get_input_partial_shape(n)) for n in places])
        for place, number in enumerate(self._chain.outputs):
            self.set_output_type(place, *values[number])

    def execute(self, outputs: list[Any], inputs: list[Any]) -> None:
        self._chain.run(outputs, inputs)


class _Binding:
    """The members' calls with the addresses of all that they read and write, and memory of the values between them.

    OpenVINO's tensors mostly stay where they are from run to run, and so do the calls. The memory stays in any case:
    to be given new pages by the system takes longer than much of what is written to them.
    """

    def __init__(self) -> None:
        self.places: list[_Place] = []
        self.calls: list[Callable[[], None]] = []
        self.memory = np.empty(0, np.uint8)

    def bind(self, chain: Chain, places: list[_Place], outputs: list[Any], inputs: list[Any]) -> None:
        """Bind the calls to OpenVINO's tensors.

        Raises:
            MemoryError: there is too little memory.
        """
        self.places, self.calls = [], []
        described = [(element_type, openvino.PartialShape(shape)) for _, element_type, shape in places[: len(inputs)]]
        values = [(element_type, shape.to_shape()) for element_type, shape in chain.values(described)]
        tensors: list[Any] = [*inputs, *[None] * len(chain.members)]
        for number, tensor in zip(chain.outputs, outputs, strict=True):
            tensors[number] = tensor
        between = [member.makes for member in chain.members if tensors[member.makes] is None]
        sizes = {number: values[number][0].size * math.prod(values[number][1]) for number in between}
        starts, size = _layout(chain.members, sizes)
        memory = self._memory_of(size)
        for number in between:
            element_type, shape = values[number]
            start = starts[number]
            tensors[number] = openvino.Tensor(memory[start : start + sizes[number]], shape, element_type)
        self.calls = [
            member.node.prepare([tensors[member.makes]], [tensors[number] for number in member.reads])
            for member in chain.members
        ]
        self.places = places

    def _memory_of(self, size: int) -> Any:
        """Return the memory, which is large enough and begins with a line of the caches."""
        needed = size + _ALIGNMENT
        if not needed <= self.memory.size <= _MOST_TIMES_TOO_LARGE * needed:
            self.memory = np.empty(0, np.uint8)  # frees it before there is another
            self.memory = np.empty(needed, np.uint8)
        return self.memory[-self.memory.ctypes.data % _ALIGNMENT :]


def _place(tensor: Any) -> _Place:
    return address(tensor), tensor.get_element_type(), tensor.get_shape()


def _layout(members: Iterable[_Member], sizes: dict[int, int]) -> tuple[dict[int, int], int]:
    """Return where in one memory each value begins that has a size, and the size of the memory, in bytes.

    A value has its buffer there until the last member that reads it has been executed.
    """
    last_readers = {number: member.makes for member in members for number in member.reads}
    buffers: dict[int, int] = {}  # by value
    capacities: list[int] = []
    free: list[int] = []
    for member in members:
        if (size := sizes.get(member.makes)) is not None:
            # The smallest that is large enough, or the largest, which grows.
            free.sort(key=lambda buffer: (capacities[buffer] < size, abs(capacities[buffer] - size)))
            if not free:
                free.append(len(capacities))
                capacities.append(0)
            buffers[member.makes] = free.pop(0)
            capacities[buffers[member.makes]] = max(capacities[buffers[member.makes]], size)
        read = {number for number in member.reads if number in buffers and last_readers[number] == member.makes}
        free += [buffers[number] for number in read]
    starts, end = [], 0
    for buffer, capacity in enumerate(capacities):
        end += (buffer * _STAGGER - end) % _PAGE
        starts.append(end)
        end += capacity
    return {number: starts[buffer] for number, buffer in buffers.items()}, end


def chain_nodes(model: Any, nodes: NativeNodes) -> None:
    """Let one node stand for all those that follow one another with no operator of OpenVINO between them, in place."""
    for chained in _chained(model, nodes):
        if len(chained) > 1:
            _replace(chained, nodes)


def _chained(model: Any, nodes: NativeNodes) -> list[list[KernelNode]]:
    """Return the nodes of each chain, in the order in which they are executed.

    No operator of OpenVINO may lie between two nodes of a chain. Each node is in the first chain that it can be in: the
    one after those that lie behind such operators.
    """
    kernels = {node.get_name(): node for node in nodes if isinstance(node, KernelNode)}
    behind: dict[str, int] = {}  # by operator: how many chains come before what it makes
    chained: list[list[KernelNode]] = []
    for operator in model.get_ordered_ops():
        name = operator.get_name()
        sources = [port.get_source_output().get_node().get_name() for port in operator.inputs()]
        if name not in kernels:
            behind[name] = max((behind[source] for source in sources), default=0)
            continue
        behind[name] = max(behind[source] + (source not in kernels) for source in sources)
        if behind[name] > len(chained):
            chained.append([])
        chained[behind[name] - 1].append(kernels[name])
    return chained


def _replace(chained: list[KernelNode], nodes: NativeNodes) -> None:
    """Put a `ChainNode` in the place of nodes."""
    made = [node.output(0) for node in chained]
    read = [[port.get_source_output() for port in node.inputs()] for node in chained]
    inputs = list(dict.fromkeys(value for values in read for value in values if value not in made))
    numbers = {value: number for number, value in enumerate([*inputs, *made])}
    members = [
        _Member(node, tuple(numbers[value] for value in values), numbers[node.output(0)])
        for node, values in zip(chained, read, strict=True)
    ]
    names = {node.get_name() for node in chained}
    readers = {
        numbers[value]: ports
        for value in made
        if (ports := [port for port in value.get_target_inputs() if port.get_node().get_name() not in names])
    }
    node = ChainNode(inputs, Chain(members, list(readers)), nodes)
    for place, ports in enumerate(readers.values()):
        for port in ports:
            port.replace_source_output(node.output(place))
    for port in (port for one in chained for port in one.inputs()):  # they are kept, and must not keep the graph
        port.replace_source_output(opset13.parameter(port.get_partial_shape(), port.get_element_type()).output(0))
