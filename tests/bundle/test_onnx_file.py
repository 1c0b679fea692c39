"""The strict reader of graphs' files, held to the ONNX package: what it takes, it reads as protobuf does."""

from __future__ import annotations

import contextlib
import random
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.bundle.admission.onnx_file import ExternalBytes, NotAdmittedError, parse_graph
from tests.graph_reading import as_protobuf_reads
from tests.robustness.graph_mutants import change_bytes


@pytest.mark.parametrize("name", ["backbone", "reencoder", "decoder", "beam_decoder"])
def test_exported_graphs_are_read_as_protobuf_reads_them(demo_bundle: Path, name: str) -> None:
    content = (demo_bundle / f"{name}.onnx").read_bytes()
    graph = parse_graph(content)
    assert graph == as_protobuf_reads(content)
    assert graph.files == {f"{'decoder' if name == 'beam_decoder' else name}.onnx.data"}


@cache
def content_of(path: Path) -> bytes:
    return path.read_bytes()


@given(st.integers(0, 2**32))
def test_changed_graphs_are_refused_or_read_as_protobuf_reads_them(demo_bundle: Path, seed: int) -> None:
    content = change_bytes(content_of(demo_bundle / "reencoder.onnx"), random.Random(seed))
    with contextlib.suppress(NotAdmittedError):
        assert parse_graph(content) == as_protobuf_reads(content)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_or_read_as_protobuf_reads_them(content: bytes) -> None:
    with contextlib.suppress(NotAdmittedError):
        assert parse_graph(content) == as_protobuf_reads(content)


def message(number: int, *content: bytes) -> bytes:
    """Return a field that holds bytes, in protobuf's wire format."""
    inner = b"".join(content)
    assert len(inner) < 128
    return bytes([number << 3 | 2, len(inner)]) + inner


KEY, VALUE = message(1, b"location"), message(2, b"../outside.data")


@pytest.mark.parametrize(
    "entry",
    [
        KEY + VALUE,
        VALUE + KEY,
        b"\x8a\x00\x08location" + VALUE,  # a tag longer than it need be
        b"\x0a\x88\x80\x00location" + VALUE,  # a length, too
    ],
)
def test_a_name_cannot_be_hidden_in_how_it_is_written(entry: bytes) -> None:
    others = (message(13, message(1, key), message(2, b"4")) for key in (b"offset", b"length"))
    written = message(7, message(5, message(13, entry), *others, b"\x70\x01"))
    try:
        assert parse_graph(written).weights[0].values == ExternalBytes("../outside.data", 4, 4)
    except NotAdmittedError:
        assert entry[0] == 0x8A, "only a tag may be refused for how it is written"


@pytest.mark.parametrize("entry", [KEY + message(2, b"inside.data") + VALUE, KEY + VALUE + message(9, b"new")])
def test_a_name_is_there_once_and_alone(entry: bytes) -> None:
    with pytest.raises(NotAdmittedError, match="StringStringEntryProto has"):
        parse_graph(message(7, message(5, message(13, entry))))
