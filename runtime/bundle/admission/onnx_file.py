"""Reads the file of an ONNX graph strictly: the fields of onnx.proto that the exporter writes, and no others.

The ONNX package is not there where bundles run, so protobuf's wire format is read by its rules, in one pass over a
file of bounded size. No field is skipped: what is not in `FIELDS` (subgraphs, functions, sparse tensors, strings) or is
there more often than there has no meaning that a parser of ONNX could give it, for none gets to see it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from runtime.bundle.held_file import HeldFile
from runtime.errors import BundleError

MAX_FILE_BYTES = 2**20
"""Weights lie in files of their own: a graph of 40 blocks, with 8-bit products, has 0.4 MB."""
MAX_NODES = 4096
"""Such a graph has 2100."""
MAX_TENSORS = 2 * MAX_NODES
MAX_BINDINGS = 1024
"""Inputs, and outputs: a decoder has two for each layer."""
MAX_TEXT_BYTES = 256
MAX_INLINE_BYTES = 1024
"""Of a tensor in the graph itself."""
MAX_RANK = 8

AttributeValue: TypeAlias = "int | float | str | tuple[int, ...]"
_SeenMessages: TypeAlias = "Mapping[str, dict[bytes, dict[str, Any]]]"
"""Of some messages, those of a file that were read, by their bytes."""
FieldContent: TypeAlias = Literal["number", "float", "text", "bytes", "message"]


@dataclass(frozen=True, slots=True)
class WireField:
    """A field of a message.

    Attributes:
        most: how often it may be there; once is a value, more is a list.
        message: the name of the message that it holds.
    """

    name: str
    content: FieldContent = "message"
    most: int = 1
    message: str = ""


def _text(name: str, most: int = 1) -> WireField:
    return WireField(name, "text", most)


def _number(name: str, most: int = 1) -> WireField:
    return WireField(name, "number", most)


def _message(name: str, message: str, most: int = 1) -> WireField:
    return WireField(name, most=most, message=message)


FIELDS: Mapping[str, Mapping[int, WireField]] = {
    "ModelProto": {
        1: _number("ir_version"),
        2: _text("producer_name"),
        3: _text("producer_version"),
        7: _message("graph", "GraphProto"),
        8: _message("opset_import", "OperatorSetIdProto", 2),
    },
    "OperatorSetIdProto": {1: _text("domain"), 2: _number("version")},
    "GraphProto": {
        1: _message("node", "NodeProto", MAX_NODES),
        2: _text("name"),
        5: _message("initializer", "TensorProto", MAX_TENSORS),
        11: _message("input", "ValueInfoProto", MAX_BINDINGS),
        12: _message("output", "ValueInfoProto", MAX_BINDINGS),
        13: _message("value_info", "ValueInfoProto", MAX_TENSORS),
    },
    "NodeProto": {
        1: _text("input", MAX_RANK),
        2: _text("output", MAX_RANK),
        3: _text("name"),
        4: _text("op_type"),
        5: _message("attribute", "AttributeProto", MAX_RANK),
        7: _text("domain"),
    },
    "AttributeProto": {
        1: _text("name"),
        2: WireField("f", "float"),
        3: _number("i"),
        4: _text("s"),
        8: _number("ints", MAX_RANK),
        20: _number("type"),
    },
    "TensorProto": {
        1: _number("dims", MAX_RANK),
        2: _number("data_type"),
        8: _text("name"),
        9: WireField("raw_data", "bytes"),
        13: _message("external_data", "StringStringEntryProto", 3),
        14: _number("data_location"),
    },
    "StringStringEntryProto": {1: _text("key"), 2: _text("value")},
    "ValueInfoProto": {1: _text("name"), 2: _message("type", "TypeProto")},
    "TypeProto": {1: _message("tensor_type", "TypeProto.Tensor")},
    "TypeProto.Tensor": {1: _number("elem_type"), 2: _message("shape", "TensorShapeProto")},
    "TensorShapeProto": {1: _message("dim", "TensorShapeProto.Dimension", MAX_RANK)},
    "TensorShapeProto.Dimension": {1: _number("dim_value"), 2: _text("dim_param")},
}
"""All that the exporter writes of onnx.proto: the fields of its messages, by their numbers."""

_WIRE_TYPES: Mapping[FieldContent, int] = {"number": 0, "text": 2, "bytes": 2, "message": 2, "float": 5}
_BY_TAG = {
    message: {number << 3 | _WIRE_TYPES[one.content]: one for number, one in fields.items()}
    for message, fields in FIELDS.items()
}
_OFTEN_ALIKE = ("TypeProto", "AttributeProto", "StringStringEntryProto")
"""Messages of which a graph has many that are equal: reading each once saves up to a quarter of a file's time."""
_ATTRIBUTE_TYPES = {1: "f", 2: "i", 3: "s", 7: "ints"}
_IN_THE_GRAPH, _EXTERNAL = 0, 1


class NotAdmittedError(ValueError):
    """A graph that the exporter would not have written, and where it differs."""


@dataclass(frozen=True)
class StoredNode:
    """A node as its file has it."""

    name: str
    domain: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, AttributeValue]

    def __str__(self) -> str:
        return f"node {self.name!r} ({self.domain}{'.' if self.domain else ''}{self.op_type})"


@dataclass(frozen=True)
class ExternalBytes:
    """The place of a tensor's values in a file beside the graph."""

    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class GraphWeight:
    """A weight or constant: its values, or where they are.

    Attributes:
        dtype: a number of onnx.TensorProto.DataType.
    """

    name: str
    dtype: int
    dims: tuple[int, ...]
    values: bytes | ExternalBytes


@dataclass(frozen=True)
class GraphTensor:
    """What a graph says of an input, an output or a tensor between them; an axis without a number has a name."""

    name: str
    dtype: int
    dims: tuple[int | str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """A graph as its file has it.

    Attributes:
        opsets: the version of each domain of operators.
        declared: what it says of tensors that are neither inputs nor outputs.
    """

    ir_version: int
    opsets: Mapping[str, int]
    nodes: tuple[StoredNode, ...]
    weights: tuple[GraphWeight, ...]
    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    declared: tuple[GraphTensor, ...] = field(repr=False)

    @property
    def files(self) -> frozenset[str]:
        """The files that its weights lie in, as it names them."""
        return frozenset(one.values.file for one in self.weights if isinstance(one.values, ExternalBytes))


def read_onnx_file(file: HeldFile) -> OnnxGraph:
    """Read a graph's file.

    Raises:
        BundleError: it cannot be read, or has something that the exporter does not write.
    """
    try:
        if file.size > MAX_FILE_BYTES:
            raise NotAdmittedError(f"larger than {MAX_FILE_BYTES} bytes")
        return parse_graph(bytes(file.read()))
    except NotAdmittedError as error:
        raise BundleError(f"{file.path}: not a graph of the exporter's: {error}; build the bundle again") from None


def parse_graph(content: bytes) -> OnnxGraph:
    """Return the graph that a file's bytes are.

    Raises:
        NotAdmittedError: they have something that the exporter does not write.
    """
    model = _read_message("ModelProto", content, 0, len(content), {message: {} for message in _OFTEN_ALIKE})
    graph = model.get("graph", {})
    return OnnxGraph(
        ir_version=model.get("ir_version", 0),
        opsets=_unique((one.get("domain", ""), one.get("version", 0)) for one in model.get("opset_import", ())),
        nodes=tuple(map(_node, graph.get("node", ()))),
        weights=tuple(map(_tensor, graph.get("initializer", ()))),
        inputs=tuple(map(_declared, graph.get("input", ()))),
        outputs=tuple(map(_declared, graph.get("output", ()))),
        declared=tuple(map(_declared, graph.get("value_info", ()))),
    )


def _read_message(message: str, content: bytes, position: int, end: int, seen: _SeenMessages) -> dict[str, Any]:
    """Return the fields of a message by their names."""
    fields, found = _BY_TAG[message], dict[str, Any]()
    while position < end:
        start = position
        tag = content[position]
        if tag < 0x80:  # nearly all are, as are the lengths and numbers below; this is where the time goes
            position += 1
        else:
            tag, position = _varint(content, position, end)
        known = fields.get(tag)
        if known is None:
            raise NotAdmittedError(f"byte {start}: {message} has field {tag >> 3}, which the exporter does not write")
        kind = known.content
        if kind == "float":
            number = 4
        elif position < end and content[position] < 0x80:
            number, position = content[position], position + 1
        else:
            number, position = _varint(content, position, end)
        if kind == "number":
            value: object = number - 2**64 if number >= 2**63 else number
        else:
            if position + number > end:
                raise NotAdmittedError(f"byte {start}: cut off")
            stop = position + number
            if kind != "message":
                value = _value(known, content, position, stop)
            elif known.message in seen:
                value = _read_once(known.message, content, position, stop, seen)
            else:
                value = _read_message(known.message, content, position, stop, seen)
            position = stop
        if known.most == 1:
            if known.name in found:
                raise NotAdmittedError(f"byte {start}: {message} has {known.name} twice")
            found[known.name] = value
        else:
            values = found.setdefault(known.name, [])
            if len(values) == known.most:
                raise NotAdmittedError(f"byte {start}: {message} has {known.name} more than {known.most} times")
            values.append(value)
    return found


def _read_once(message: str, content: bytes, start: int, end: int, seen: _SeenMessages) -> dict[str, Any]:
    """Return what was read from the same bytes, or read them."""
    key = content[start:end]
    fields = seen[message].get(key)
    if fields is None:
        fields = seen[message][key] = _read_message(message, content, start, end, seen)
    return fields


def _value(known: WireField, content: bytes, start: int, end: int) -> object:
    """Return the value of a field that is no number and no message."""
    if known.content == "float":
        number: float = struct.unpack_from("<f", content, start)[0]
        if not math.isfinite(number):
            raise NotAdmittedError(f"byte {start}: {known.name} is not finite")
        return number
    most = MAX_TEXT_BYTES if known.content == "text" else MAX_INLINE_BYTES
    if end - start > most:
        raise NotAdmittedError(f"byte {start}: {known.name} of {end - start} bytes, at most {most} are admitted")
    if known.content == "bytes":
        return content[start:end]
    text = content[start:end].decode("latin-1")
    if not (text.isascii() and text.isprintable()):
        raise NotAdmittedError(f"byte {start}: {known.name} is not of printable ASCII characters")
    return text


def _varint(content: bytes, position: int, end: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte and the position behind it."""
    number = 0
    for count, byte in enumerate(content[position : min(position + 10, end)]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            if number >= 2**64:
                break
            return number, position + count + 1
    raise NotAdmittedError(f"byte {position}: no number")


def _unique(pairs: Any) -> dict[str, Any]:
    found = dict[str, Any]()
    for name, value in pairs:
        if name in found:
            raise NotAdmittedError(f"{name!r} is there twice")
        found[name] = value
    return found


def _node(fields: Mapping[str, Any]) -> StoredNode:
    return StoredNode(
        fields.get("name", ""),
        fields.get("domain", ""),
        fields.get("op_type", ""),
        tuple(fields.get("input", ())),
        tuple(fields.get("output", ())),
        _unique(map(_attribute, fields.get("attribute", ()))),
    )


def _attribute(fields: Mapping[str, Any]) -> tuple[str, AttributeValue]:
    """Return an attribute's name and the value of its type, which must be its only one."""
    name = fields.get("name", "")
    held = _ATTRIBUTE_TYPES.get(fields.get("type", 0), "")
    if {key for key in fields if key not in ("name", "type")} != {held}:
        raise NotAdmittedError(f"attribute {name!r} has no value of its type")
    value = fields[held]
    return name, tuple(value) if held == "ints" else value


def _tensor(fields: Mapping[str, Any]) -> GraphWeight:
    name = fields.get("name", "")
    location, external = fields.get("data_location", _IN_THE_GRAPH), fields.get("external_data", ())
    if location == _EXTERNAL and "raw_data" not in fields:
        values: bytes | ExternalBytes = _external(name, external)
    elif location == _IN_THE_GRAPH and not external:
        values = fields.get("raw_data", b"")
    else:
        raise NotAdmittedError(f"tensor {name!r} is neither in the graph nor in a file beside it")
    return GraphWeight(name, fields.get("data_type", 0), tuple(fields.get("dims", ())), values)


def _external(name: str, entries: Any) -> ExternalBytes:
    found = _unique((entry.get("key", ""), entry.get("value", "")) for entry in entries)
    offset, length = found.pop("offset", ""), found.pop("length", "")
    file = found.pop("location", None)
    if found or file is None or not all(one.isdecimal() and len(one) < 19 for one in (offset, length)):
        raise NotAdmittedError(f"tensor {name!r}: expected location, offset and length of its values")
    return ExternalBytes(file, int(offset), int(length))


def _declared(fields: Mapping[str, Any]) -> GraphTensor:
    tensor = fields.get("type", {}).get("tensor_type", {})
    dims = tuple(map(_dim, tensor.get("shape", {}).get("dim", ())))
    return GraphTensor(fields.get("name", ""), tensor.get("elem_type", 0), dims)


def _dim(fields: Mapping[str, Any]) -> int | str:
    if len(fields) > 1:
        raise NotAdmittedError("an axis has both a size and a name")
    value: int | str = fields.get("dim_value", fields.get("dim_param", ""))
    return value
