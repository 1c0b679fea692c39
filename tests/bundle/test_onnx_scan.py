"""The hand-written scan of ONNX graphs, held to the ONNX package, which writes and describes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from runtime import BundleError
from runtime.bundle.onnx_scan import _PARTS, graph_contents

OUTSIDE = "../outside.data"
NAMES = {"TrainingInfoProto": "training", "SparseTensorProto": "sparse tensor"}


def name_of(message: Any) -> str:
    name = message.full_name.removeprefix("onnx.")  # TypeProto has a Tensor of its own
    return str(NAMES.get(name, name.removesuffix("Proto").lower()))


def fields_to_follow() -> dict[str, dict[int, str]]:
    """Return the fields of onnx.proto that lead from a model to nodes and tensors, as the package describes them."""
    inner: dict[str, dict[int, str]] = {}
    pending = [ModelProto.DESCRIPTOR]
    while pending:
        message = pending.pop()
        if name_of(message) not in inner:
            fields = [field for field in message.fields if field.message_type is not None]
            inner[name_of(message)] = {field.number: name_of(field.message_type) for field in fields}
            pending += [field.message_type for field in fields]
    leading = {"node", "tensor"}
    while more := {name for name, fields in inner.items() if leading & set(fields.values())} - leading:
        leading |= more
    kept = {name: {number: kind for number, kind in inner[name].items() if kind in leading} for name in leading}
    number = TensorProto.DESCRIPTOR.fields_by_name["external_data"].number
    return kept | {"tensor": {number: "external data"}}


def test_every_way_to_weights_and_operators_is_followed() -> None:
    assert fields_to_follow() == _PARTS


def outside(name: str = "w") -> TensorProto:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[1], data_location=TensorProto.EXTERNAL)
    for key, value in (("offset", "0"), ("location", OUTSIDE), ("length", "4")):
        tensor.external_data.add(key=key, value=value)
    return tensor


def node(kind: str = "Inner", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, ["x"], ["y"], **attributes)


def with_sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().values.CopyFrom(outside())


def with_a_list(model: ModelProto) -> None:
    attribute = model.graph.node.add(op_type="Inner").attribute.add(name="many", type=onnx.AttributeProto.TENSORS)
    attribute.tensors.append(outside())


def with_a_sparse_constant(model: ModelProto) -> None:
    attribute = model.graph.node.add(op_type="Inner").attribute.add(name="one", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.indices.CopyFrom(outside())


def with_an_inner_graph(model: ModelProto) -> None:
    inner = helper.make_graph([node(value=outside())], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["y"], then_branch=inner, else_branch=inner))


def with_a_function(model: ModelProto) -> None:
    model.functions.add(name="f", domain="d").node.append(node(value=outside()))


def with_a_default(model: ModelProto) -> None:
    model.functions.add(name="f", domain="d").attribute_proto.add(name="a", type=onnx.AttributeProto.TENSOR).t.CopyFrom(
        outside()
    )


WAYS: list[Callable[[ModelProto], object]] = [
    lambda model: model.graph.initializer.append(outside()),
    lambda model: model.graph.node.append(node(value=outside())),
    lambda model: model.training_info.add().algorithm.initializer.append(outside()),
    with_sparse,
    with_a_list,
    with_a_sparse_constant,
    with_an_inner_graph,
    with_a_function,
    with_a_default,
]


@pytest.mark.parametrize("add_weight", WAYS, ids=range(len(WAYS)))
def test_weights_are_found_wherever_they_are_named(add_weight: Callable[[ModelProto], object], tmp_path: Path) -> None:
    model = ModelProto(ir_version=10, graph=onnx.GraphProto(name="g"))
    add_weight(model)
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    assert graph_contents(tmp_path / "graph.onnx").files == {OUTSIDE}


def test_operators_of_inner_graphs_and_functions_are_found(tmp_path: Path) -> None:
    model = ModelProto(graph=onnx.GraphProto(name="g"))
    with_an_inner_graph(model)
    model.functions.add(name="f").node.append(node("InFunction"))
    (tmp_path / "graph.onnx").write_bytes(model.SerializeToString())
    assert graph_contents(tmp_path / "graph.onnx").operators == {"If", "Inner", "InFunction"}


def message(number: int, *content: bytes) -> bytes:
    """Return a field that holds bytes, in protobuf's wire format."""
    inner = b"".join(content)
    assert len(inner) < 128
    return bytes([number << 3 | 2, len(inner)]) + inner


KEY, VALUE = message(1, b"location"), message(2, OUTSIDE.encode())


@pytest.mark.parametrize(
    "entry",
    [
        KEY + VALUE,
        VALUE + KEY,
        KEY + message(2, b"inside.data") + VALUE,
        message(1, b"length") + KEY + VALUE,
        KEY + VALUE + message(9, b"of a newer version") + b"\x50\x05",
        b"\x8a\x00\x08location" + VALUE,  # a tag longer than it need be
        b"\x0a\x88\x80\x00location" + VALUE,  # a length, too
    ],
)
def test_a_name_cannot_be_hidden_in_how_it_is_written(entry: bytes, tmp_path: Path) -> None:
    written = message(7, message(5, message(13, entry)))
    assert ModelProto.FromString(written).graph.initializer[0].external_data[0].value == OUTSIDE
    (tmp_path / "graph.onnx").write_bytes(written)
    assert graph_contents(tmp_path / "graph.onnx").files == {OUTSIDE}


@pytest.mark.parametrize(
    "written",
    [
        b"\x3b" + message(5) + b"\x3c",  # a group, which nobody writes any more
        message(7, message(5))[:-1],
        b"\x3a",
        b"\x3a\xff",
        b"\xba\x80\x80\x80\x80\x01\x00",  # a tag of more than 32 bits
        b"\x08" + b"\xff" * 10 + b"\x01",
        b"\x3d\x00\x00",
        b"\x39" + b"\x00" * 7,
    ],
)
def test_what_protobuf_would_not_write_is_refused(written: bytes, tmp_path: Path) -> None:
    (tmp_path / "graph.onnx").write_bytes(written)
    with pytest.raises(BundleError, match="graph.onnx: not an ONNX graph: byte [0-9]+: .*; build the bundle again"):
        graph_contents(tmp_path / "graph.onnx")


@given(st.lists(st.tuples(st.text(max_size=200), st.text(max_size=200)), max_size=3), st.binary(max_size=300))
def test_what_the_package_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, entries: list[tuple[str, str]], numbers: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "graph.onnx"
    tensor = TensorProto(name="w", raw_data=numbers, dims=[2**40, 1])
    for key, value in [*entries, ("location", OUTSIDE)]:
        tensor.external_data.add(key=key, value=value)
    model = ModelProto(ir_version=2**40, graph=onnx.GraphProto(initializer=[tensor]))
    path.write_bytes(model.SerializeToString())
    assert graph_contents(path).files == {OUTSIDE} | {value for key, value in entries if key == "location"}


def test_graphs_of_a_bundle_name_its_files(demo_bundle: Path) -> None:
    for path in demo_bundle.glob("*.onnx"):
        contents, graph = graph_contents(path), onnx.load(path, load_external_data=False).graph
        named = {
            entry.value for tensor in graph.initializer for entry in tensor.external_data if entry.key == "location"
        }
        assert contents.files == named
        assert contents.operators >= {node.op_type for node in graph.node}
        assert all((demo_bundle / file).is_file() for file in contents.files)
