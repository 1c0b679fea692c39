"""The files that an ONNX graph would read and the operators it would run, found before anything executes it.

Executors differ in what they let a graph do: ONNX Runtime 1.23, the last for Python 3.10, follows weights to any file,
and a node EPContext holds an engine of TensorRT's, which is a program. The ONNX package is not there where bundles run,
so the few fields that matter are read by the rules of protobuf's wire format.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from runtime.errors import BundleError

_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse tensor"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse tensor", 23: "sparse tensor"},
    "sparse tensor": {1: "tensor", 2: "tensor"},
    "tensor": {13: "external data"},
}
"""The messages of onnx.proto that lead to operators and weights, by the numbers of their fields."""
_OPERATOR = 4  # of a node
_KEY, _VALUE = 1, 2  # of external data

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5
_LARGEST_TAG = 2**32 - 1


@dataclass(frozen=True)
class GraphContents:
    """The contents of a graph that are checked before a parser sees it.

    Attributes:
        files: where its weights lie, as it names them; none where all are in the graph.
        operators: the kinds of its nodes, those of its functions and inner graphs too.
    """

    files: frozenset[str]
    operators: frozenset[str]


def graph_contents(path: Path) -> GraphContents:
    """Read a graph's file.

    Raises:
        BundleError: it cannot be read, or is no ONNX graph.
    """
    files, operators = set[str](), set[str]()
    try:
        messages = [("model", memoryview(path.read_bytes()))]
        while messages:
            kind, message = messages.pop()
            if kind == "external data":
                files |= _location(message)
                continue
            for number, content in _fields(message):
                if part := _PARTS[kind].get(number):
                    messages.append((part, content))
                elif kind == "node" and number == _OPERATOR:
                    operators.add(_text(content))
    except (OSError, ValueError) as error:
        raise BundleError(f"{path}: not an ONNX graph: {error}; build the bundle again") from None
    return GraphContents(frozenset(files), frozenset(operators))


def _location(entry: memoryview) -> set[str]:
    """Return the file that an entry of external data names, if any; where fields repeat, the last one counts."""
    texts = {number: _text(content) for number, content in _fields(entry)}
    return {texts.get(_VALUE, "")} if texts.get(_KEY) == "location" else set()


def _fields(message: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Return the fields of a message that hold bytes: texts and messages."""
    position = 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag > _LARGEST_TAG:
            raise ValueError(f"byte {position}: no tag of a field")
        kind, length = tag & 7, 0
        if kind == _VARINT:
            _, position = _varint(message, position)
        elif kind == _BYTES:
            length, position = _varint(message, position)
        elif kind in (_FIXED_64, _FIXED_32):
            length = 8 if kind == _FIXED_64 else 4
        else:
            raise ValueError(f"byte {position}: no kind of field is {kind}")
        if position + length > len(message):
            raise ValueError(f"byte {position}: cut off")
        if kind == _BYTES:
            yield tag >> 3, message[position : position + length]
        position += length


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, at most 10 of them, and the position behind it."""
    number = 0
    for count, byte in enumerate(message[position : position + 10]):
        number |= (byte & 0x7F) << (7 * count)
        if byte < 0x80:
            return number, position + count + 1
    raise ValueError(f"byte {position}: cut off")


def _text(content: memoryview) -> str:
    return bytes(content).decode("utf-8", errors="replace")
