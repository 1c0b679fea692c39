"""Compares a graph with the table of operators and with the contract of its engine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import cycle

from runtime.bundle.admission.contract import EngineContract
from runtime.bundle.admission.onnx_file import (
    MAX_RANK,
    ExternalBytes,
    GraphTensor,
    GraphWeight,
    NotAdmittedError,
    OnnxGraph,
    StoredNode,
    read_onnx_file,
)
from runtime.bundle.admission.operators import (
    ELEMENT_BYTES,
    ELEMENT_TYPES,
    IR_VERSIONS,
    OPERATORS,
    OPSETS,
    AdmittedOperator,
)
from runtime.bundle.admission.shape_rules import Made, OperatorCall, TensorFacts
from runtime.bundle.admission.sizes import AxisSize, as_text, product
from runtime.bundle.graph_io import TensorSpec
from runtime.bundle.held_file import HeldFile
from runtime.errors import BundleError

_MAX_CONSTANT_BYTES = 2**16
"""Of whole numbers, which are read."""
_MAX_WEIGHT_COPIES = 4
"""The tensors of a weight's size that a graph may compute for each weight: its rounded form and that converted back."""


def admit(file: HeldFile, contract: EngineContract, files: Mapping[str, HeldFile]) -> OnnxGraph:
    """Return a graph that is what the exporter writes for an engine.

    Args:
        file: the graph's.
        contract: the engine's.
        files: those of the bundle by their names; the graph's weights may lie in these.

    Raises:
        BundleError: it is not, and where.
    """
    graph = read_onnx_file(file)
    try:
        _check_header(graph)
        weights = _Weights(files)
        _Inference(contract, {one.name: weights.facts(one) for one in graph.weights}).run(graph)
    except NotAdmittedError as error:
        raise BundleError(f"{file.path}: not a graph of the exporter's: {error}; build the bundle again") from None
    return graph


def _check_header(graph: OnnxGraph) -> None:
    known = all(version in OPSETS.get(domain, ()) for domain, version in graph.opsets.items())
    if graph.ir_version not in IR_VERSIONS or "" not in graph.opsets or not known:
        raise NotAdmittedError(f"version {graph.ir_version} of ONNX with operators of versions {dict(graph.opsets)}")
    names = [one.name for one in graph.weights] + [one.name for one in graph.inputs]
    names += [name for node in graph.nodes for name in node.outputs]
    if len(set(names)) != len(names) or "" in names:
        raise NotAdmittedError("two tensors have one name, or one has none")
    named = [node.name for node in graph.nodes if node.name]
    if len(set(named)) != len(named):
        raise NotAdmittedError("two nodes have one name")


class _Weights:
    """Checks weights and constants against the files that they lie in."""

    def __init__(self, files: Mapping[str, HeldFile]) -> None:
        self._files = files
        self._left = {name: file.size for name, file in files.items()}
        self._constant_bytes = 0

    def facts(self, weight: GraphWeight) -> TensorFacts:
        """Return what is known of a weight, or refuse it."""
        dtype = ELEMENT_TYPES.get(weight.dtype)
        if dtype is None:
            raise NotAdmittedError(f"tensor {weight.name!r}: element type {weight.dtype}")
        if not all(size > 0 for size in weight.dims):
            raise NotAdmittedError(f"tensor {weight.name!r}: shape {weight.dims}")
        shape = tuple(map(AxisSize, weight.dims))
        expected = product(shape).factor * ELEMENT_BYTES[dtype]
        stored = weight.values
        length = stored.length if isinstance(stored, ExternalBytes) else len(stored)
        if length != expected:
            raise NotAdmittedError(f"tensor {weight.name!r}: {length} bytes, expected {expected}")
        if isinstance(stored, ExternalBytes):
            self._check_place(weight.name, stored)
        if dtype != "i64":
            return TensorFacts(dtype, shape)
        numbers = self._numbers(weight)
        is_short = len(shape) < 2 and len(numbers) <= MAX_RANK
        entries = tuple(map(AxisSize, numbers)) if is_short else None
        return TensorFacts(dtype, shape, (min(numbers), max(numbers)), entries)

    def _check_place(self, name: str, place: ExternalBytes) -> None:
        """Raise unless values lie in a file of the bundle, no more of them in all than it has bytes."""
        file = self._files.get(place.file)
        if file is None:
            raise NotAdmittedError(f"its weights are in {place.file!r}, which is no file of the bundle")
        self._left[place.file] -= place.length
        if place.offset + place.length > file.size or self._left[place.file] < 0:
            raise NotAdmittedError(f"tensor {name!r}: more bytes than {place.file} has")

    def _numbers(self, weight: GraphWeight) -> Sequence[int]:
        stored = weight.values
        if isinstance(stored, ExternalBytes):
            self._constant_bytes += stored.length
            if self._constant_bytes > _MAX_CONSTANT_BYTES:
                raise NotAdmittedError(f"tensor {weight.name!r}: more than {_MAX_CONSTANT_BYTES} bytes of constants")
            content = bytearray(stored.length)
            self._files[stored.file].read_into(memoryview(content), stored.offset)
            stored = bytes(content)
        return memoryview(stored).cast("q")


class _Inference:
    """Follows shapes and types from a contract's inputs through the nodes to its outputs."""

    def __init__(self, contract: EngineContract, weights: Mapping[str, TensorFacts]) -> None:
        self._contract = contract
        self._facts = dict(weights)
        largest = max((product(one.shape).factor for one in weights.values()), default=0)
        all_weights = sum(product(one.shape).factor for one in weights.values())
        self._largest_tensor = max(contract.limits.tensor, largest)
        self._values_left = contract.limits.total + _MAX_WEIGHT_COPIES * all_weights
        self._multiply_adds_left = contract.limits.multiply_adds

    def run(self, graph: OnnxGraph) -> None:
        """Raise unless the graph is as the contract says."""
        io = self._contract.io
        _check_names("inputs", graph.inputs, io.input_names)
        _check_names("outputs", graph.outputs, io.output_names)
        self._facts |= {spec.name: self._contract.input_facts(spec) for spec in io.inputs}
        for node in graph.nodes:
            try:
                self._run_node(node)
            except NotAdmittedError as error:
                raise NotAdmittedError(f"{node}: {error}") from None
        for declared in (*graph.inputs, *graph.outputs, *graph.declared):
            self._check_declaration(declared)
        for spec in io.outputs:
            self._check_output(spec)

    def _run_node(self, node: StoredNode) -> None:
        operator = OPERATORS.get((node.domain, node.op_type))
        if operator is None:
            raise NotAdmittedError("the exporter does not write this operator")
        _check_attributes(operator, node)
        missing = [name for name in node.inputs if name not in self._facts]
        if missing:
            raise NotAdmittedError(f"its input {missing[0]!r} is not there before it")
        inputs = tuple(self._facts[name] for name in node.inputs)
        made_types = _made_types(operator, node, inputs)
        made = operator.rule(OperatorCall(inputs, node.attributes, len(node.outputs), self._contract.largest))
        if len(made.shapes) != len(node.outputs):
            raise NotAdmittedError(f"expected {len(made.shapes)} outputs, got {len(node.outputs)}")
        self._charge(made)
        for name, dtype, shape in zip(node.outputs, cycle(made_types), made.shapes, strict=False):
            bounds = made.bounds if dtype == "i64" else None
            self._facts[name] = TensorFacts(dtype, shape, bounds, made.entries)

    def _charge(self, made: Made) -> None:
        """Raise if a node makes the graph more work than the model of the manifest is."""
        largest = self._contract.largest
        for shape in made.shapes:
            count = product(shape).at(largest)
            self._values_left -= count
            if count > self._largest_tensor or len(shape) > MAX_RANK:
                raise NotAdmittedError(
                    f"makes a tensor {as_text(shape)} of {count} values at the largest sizes of its axes, where the "
                    f"model of the manifest has at most {self._largest_tensor}"
                )
        self._multiply_adds_left -= made.multiply_adds.at(largest)
        if self._values_left < 0 or self._multiply_adds_left < 0:
            raise NotAdmittedError("up to here the graph computes more than the model of the manifest does")

    def _check_declaration(self, declared: GraphTensor) -> None:
        """Raise unless what a graph says of a tensor is so; names of axes have no meaning."""
        known = self._facts.get(declared.name)
        if known is None:
            raise NotAdmittedError(f"tensor {declared.name!r} is declared, but nothing makes it")
        fits = len(declared.dims) == len(known.shape) and all(
            bool(size.axes) if isinstance(dim, str) else size == AxisSize(dim)
            for dim, size in zip(declared.dims, known.shape, strict=True)
        )
        if not fits or ELEMENT_TYPES.get(declared.dtype) != known.dtype:
            raise NotAdmittedError(
                f"tensor {declared.name!r} is declared as {declared.dims} of type {declared.dtype}, but is "
                f"{as_text(known.shape)} of {known.dtype}"
            )

    def _check_output(self, spec: TensorSpec) -> None:
        got, contract = self._facts[spec.name], self._contract
        expected = tuple(self._output_axes(spec, got))
        last = contract.last_ids.get(spec.name)
        in_range = last is None or (got.bounds is not None and 0 <= got.bounds[0] <= got.bounds[1] <= last)
        if got.shape != expected or got.dtype != contract.element_type(spec) or not in_range:
            raise NotAdmittedError(
                f"output {spec.name!r}: the manifest says {as_text(expected)} of {contract.element_type(spec)}"
                f"{'' if last is None else f' from 0 to {last}'}, got {as_text(got.shape)} of {got.dtype}"
                f"{'' if got.bounds is None else f' from {got.bounds[0]} to {got.bounds[1]}'}"
            )

    def _output_axes(self, spec: TensorSpec, got: TensorFacts) -> Iterator[AxisSize]:
        """Yield the sizes that an output must have; of an axis that the graph fixes, its own where that may be."""
        contract = self._contract
        for index, axis in enumerate(spec.axes):
            if isinstance(axis, int):
                yield AxisSize(axis)
            elif axis in contract.largest:
                yield AxisSize(1, (axis,))
            elif axis in contract.fixed:
                yield AxisSize(contract.fixed[axis])
            else:
                found = got.shape[index : index + 1]
                most = contract.at_most[axis]
                yield found[0] if found and not found[0].axes and found[0].factor <= most else AxisSize(most)


def _check_names(kind: str, declared: Sequence[GraphTensor], expected: Sequence[str]) -> None:
    names = [one.name for one in declared]
    if names != expected:
        wrong = next((name for name in names if name not in expected), None)
        detail = f"got {wrong!r}" if wrong is not None else f"got {', '.join(names)}"
        raise NotAdmittedError(f"the manifest says {kind} {', '.join(expected)}, {detail}")


def _check_attributes(operator: AdmittedOperator, node: StoredNode) -> None:
    for name, value in node.attributes.items():
        admitted = operator.attributes.get(name)
        if admitted is None or not admitted.admits(value):
            raise NotAdmittedError(f"the exporter does not write its attribute {name} = {value!r}")
    for name, admitted in operator.attributes.items():
        if name not in node.attributes and not admitted.optional:
            raise NotAdmittedError(f"its attribute {name} is missing")


def _made_types(operator: AdmittedOperator, node: StoredNode, inputs: Sequence[TensorFacts]) -> list[str]:
    """Return the element types of a node's outputs: of each its own, or one for all."""
    taken = " ".join(one.dtype for one in inputs)
    made = operator.made_of.get(taken, ())
    if "to" in node.attributes:
        to = node.attributes["to"]
        made = tuple(one for one in made if isinstance(to, int) and ELEMENT_TYPES.get(to) == one)
    if not made:
        raise NotAdmittedError(f"the exporter does not write it with inputs of the types {taken}")
    return made[0].split()
