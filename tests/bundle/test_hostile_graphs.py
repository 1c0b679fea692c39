"""Graphs that would crash, hang or fill an executor: each is refused before one sees it, by its own reason."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from runtime import BundleError
from runtime.bundle import Bundle, EngineName, HeldFile
from runtime.bundle.admission import admit, engine_contract
from runtime.bundle.admission.onnx_file import MAX_FILE_BYTES

Change = Callable[[ModelProto], object]
INT64 = TensorProto.INT64
UNKNOWN = "the exporter does not write this operator"


def weight(name: str, values: Any, dtype: type = np.int64) -> TensorProto:
    return numpy_helper.from_array(np.array(values, dtype), name)


def appended(*parts: NodeProto | TensorProto) -> Change:
    """Return a change that adds nodes at a graph's end, and constants."""

    def change(model: ModelProto) -> None:
        model.graph.node.extend(part for part in parts if isinstance(part, NodeProto))
        model.graph.initializer.extend(part for part in parts if isinstance(part, TensorProto))

    return change


def node(kind: str, inputs: str, output: str = "made", **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def chain(kind: str, length: int, first: str, second: str = "", **attributes: Any) -> list[NodeProto]:
    """Return nodes, each of the output of the one before it and of ``second`` or that output again."""
    names = [first, *(f"made{index}" for index in range(length))]
    return [node(kind, f"{one} {second or one}", made, **attributes) for one, made in pairwise(names)]


def subgraph() -> GraphProto:
    return helper.make_graph([node("Abs", "tokens", "inner")], "inner", [], [])


def column_and_row(size: int) -> tuple[TensorProto, TensorProto]:
    return weight("column", np.zeros((size, 1)), np.float32), weight("row", np.zeros((1, size)), np.float32)


def places(length: int) -> TensorProto:
    return TensorProto(name="places", dims=[length], data_type=INT64, data_location=TensorProto.EXTERNAL)


def in_file(tensor: TensorProto, file: str, offset: int, length: int) -> TensorProto:
    for key, value in (("location", file), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def floats(name: str, *dims: int) -> TensorProto:
    return TensorProto(name=name, dims=dims, data_type=TensorProto.FLOAT, data_location=TensorProto.EXTERNAL)


def with_function(model: ModelProto) -> None:
    model.functions.add(name="Twice", domain="of.its.own").node.append(node("Add", "x x"))


def with_metadata(model: ModelProto) -> None:
    model.metadata_props.add(key="a", value="b")


def with_sparse(model: ModelProto) -> None:
    model.graph.sparse_initializer.add().dims.append(2**40)


def with_strings(model: ModelProto) -> None:
    model.graph.initializer.add(name="text", dims=[1], data_type=TensorProto.STRING).string_data.append(b"text")


def with_opset(version: int) -> Change:
    def change(model: ModelProto) -> None:
        model.opset_import[0].version = version

    return change


def set_input(name: str) -> Change:
    def change(model: ModelProto) -> None:
        model.graph.input[0].name = name

    return change


def set_dim(which: str, axis: int, size: int) -> Change:
    def change(model: ModelProto) -> None:
        getattr(model.graph, which)[0].type.tensor_type.shape.dim[axis].dim_value = size

    return change


def of_first(kind: str, change_node: Callable[[NodeProto], object]) -> Change:
    def change(model: ModelProto) -> None:
        change_node(next(one for one in model.graph.node if one.op_type == kind))

    return change


def set_attribute(name: str, value: Any) -> Callable[[NodeProto], None]:
    def change(one: NodeProto) -> None:
        kept = [attribute for attribute in one.attribute if attribute.name != name]
        del one.attribute[:]
        one.attribute.extend([*kept, helper.make_attribute(name, value)])

    return change


def scaled_output(factor: int) -> Change:
    """Return a change of the tokens that are chosen: a multiple of what they were."""

    def change(model: ModelProto) -> None:
        last = next(one for one in model.graph.node if "next_token_ids" in one.output)
        last.output[0] = "before"
        model.graph.node.append(node("Mul", "before factor", "next_token_ids"))
        model.graph.initializer.append(weight("factor", factor))

    return change


CASES: list[tuple[str, EngineName, Change, str]] = [
    # operators that are not exported
    *(
        (kind, "reencoder", appended(node(kind, inputs, **attributes)), rf"node '' \({kind}\): {UNKNOWN}")
        for kind, inputs, attributes in (
            ("Mod", "vectors vectors", {}),
            ("CumSum", "vectors vectors", {}),
            ("LRN", "vectors", {"size": 10**9}),
            ("Range", "vectors vectors vectors", {}),
            ("ConstantOfShape", "vectors", {}),
            ("Tile", "vectors vectors", {}),
            ("Pad", "vectors vectors", {}),
            ("Resize", "vectors", {}),
            ("RandomNormal", "", {"shape": [2**20, 2**20]}),
            ("Loop", "", {}),
            ("NonZero", "vectors", {}),
        )
    ),
    ("a domain", "reencoder", appended(node("Add", "vectors vectors", domain="a")), r"node '' \(a.Add\): the exporter"),
    (
        "a compiled engine",
        "decoder",
        appended(node("EPContext", "vectors", domain="com.microsoft")),
        "EPContext.*write",
    ),
    ("whole numbers divided", "decoder", appended(node("Div", "input_ids input_ids")), "Div.*types i64 i64"),
    ("a subgraph", "reencoder", appended(node("If", "c", then_branch=subgraph())), "AttributeProto has field 6"),
    ("a function", "reencoder", with_function, "ModelProto has field 25"),
    ("training", "reencoder", lambda model: model.training_info.add(), "ModelProto has field 20"),
    ("metadata", "reencoder", with_metadata, "ModelProto has field 14"),
    ("a sparse tensor", "reencoder", with_sparse, "GraphProto has field 15"),
    ("strings", "reencoder", with_strings, "TensorProto has field 6"),
    ("another opset", "reencoder", with_opset(22), "operators of versions {'': 22}"),
    # tensors that grow
    ("doubled 36 times", "backbone", appended(*chain("Concat", 36, "tokens", axis=1)), r"\(Concat\): makes a tensor"),
    ("images doubled", "backbone", appended(*chain("Concat", 36, "tokens", axis=0)), "an axis of fixed sizes"),
    (
        "expanded to 2^40",
        "reencoder",
        appended(weight("x", 1, np.float32), weight("to", [2**40]), node("Expand", "x to")),
        r"makes a tensor \(1099511627776\) of 1099511627776 values",
    ),
    (
        "an outer sum",
        "decoder",
        appended(
            *column_and_row(250),
            node("Add", "column row", "square"),
            weight("to", [-1, 1]),
            node("Reshape", "square to", "long", allowzero=1),
            node("Add", "long row"),
        ),
        "makes a tensor",
    ),
    (
        "nested products",
        "reencoder",
        appended(
            *column_and_row(250),
            node("MatMul", "column row", "square"),
            weight("to", [-1, 1]),
            node("Reshape", "square to", "long", allowzero=1),
            *chain("MatMul", 3, "long", "row"),
        ),
        r"\(MatMul\)",
    ),
    (
        "many sums",
        "backbone",
        appended(*(node("Add", "tokens tokens", f"made{index}") for index in range(1000))),
        "up to here the graph computes more than the model of the manifest does",
    ),
    ("4097 nodes", "backbone", appended(*chain("Add", 4097, "tokens")), "GraphProto has node more than 4096 times"),
    (
        "places by the thousand",
        "decoder",
        appended(in_file(places(10**4), "backbone.onnx.data", 0, 8 * 10**4), node("Gather", "vectors places", axis=1)),
        "tensor 'places': more than 65536 bytes of constants",
    ),
    # shapes that executors do not survive
    (
        "reshaped to 2^64",
        "reencoder",
        appended(weight("to", [2**32, 2**32, -1]), node("Reshape", "vectors to", allowzero=1)),
        "as many values",
    ),
    (
        "reshaped by what is computed",
        "decoder",
        appended(node("Reshape", "vectors input_ids", allowzero=1)),
        "its input 1 decides on shapes and is not a list of constants or sizes",
    ),
    (
        "a shape that is no list",
        "reencoder",
        appended(weight("to", -1), node("Reshape", "vectors to", allowzero=1)),
        "its input 1 decides on shapes and is not a list of constants or sizes",
    ),
    (
        "two computed axes",
        "reencoder",
        appended(weight("to", [-1, -1]), node("Reshape", "vectors to", allowzero=1)),
        "as many values",
    ),
    (
        "axis 10^6",
        "reencoder",
        appended(weight("to", [10**6]), node("Squeeze", "vectors to")),
        "axis 1000000 of a tensor with 2 axes",
    ),
    (
        "an empty range",
        "reencoder",
        appended(weight("at", [5]), weight("one", [1]), node("Slice", "vectors at at one")),
        "a range that is not empty",
    ),
    ("another order", "backbone", of_first("Transpose", set_attribute("perm", [0, 0, 0, 0])), "an order of all axes"),
    ("another axis", "backbone", of_first("Softmax", set_attribute("axis", 7)), "its attribute axis = 7"),
    ("strides", "backbone", of_first("Conv", set_attribute("strides", [1, 1])), "windows around places"),
    ("strides of zero", "backbone", of_first("Conv", set_attribute("strides", [0, 0])), "whole patches"),
    ("padding", "backbone", of_first("Conv", set_attribute("pads", [2**30] * 4)), "its attribute pads"),
    ("a subtle type", "backbone", of_first("Softmax", set_attribute("axis", -1.0)), "its attribute axis = -1.0"),
    ("another attribute", "reencoder", of_first("Add", set_attribute("axis", 1)), "its attribute axis = 1"),
    ("no attribute", "backbone", of_first("Softmax", lambda one: one.attribute.pop()), "its attribute axis is missing"),
    ("a cast to text", "backbone", of_first("Cast", set_attribute("to", TensorProto.STRING)), "the types u8"),
    # places that are not there
    (
        "a place beyond an axis",
        "decoder",
        appended(weight("at", [192]), node("Gather", "vectors at", axis=1)),
        r"takes places \(192, 192\) of an axis of size 192",
    ),
    (
        "a computed place",
        "decoder",
        appended(weight("by", 1000), node("Mul", "input_ids by", "far"), node("Gather", "vectors far", axis=1)),
        r"takes places \(0, 169000\)",
    ),
    (
        "elements far away",
        "decoder",
        appended(
            weight("to", [-1, 1]),
            weight("by", -(10**6)),
            node("Reshape", "vectors to", "x", allowzero=1),
            node("ArgMax", "vectors", "at", axis=-1, keepdims=0, select_last_index=0),
            node("Mul", "at by", "far"),
            weight("last", [1]),
            node("Unsqueeze", "far last", "places"),
            node("GatherElements", "vectors places", axis=1),
        ),
        r"takes places \(-191000000, 0\)",
    ),
    (
        "an overflow",
        "decoder",
        appended(weight("by", 2**60), *chain("Mul", 2, "input_ids", "by")),
        "whole numbers that int64 may not hold",
    ),
    ("a token that is none", "decoder", scaled_output(2), "next_token_ids': .* from 0 to 169, got .* from 0 to 338"),
    # weights
    (
        "a weight beyond its file",
        "reencoder",
        appended(in_file(floats("w", 1000), "reencoder.onnx.data", 2**40, 4000)),
        "tensor 'w': more bytes than reencoder.onnx.data has",
    ),
    (
        "more weights than bytes",
        "reencoder",
        appended(*(in_file(floats(f"w{one}", 10**5), "reencoder.onnx.data", 0, 400000) for one in range(5))),
        "more bytes than reencoder.onnx.data has",
    ),
    (
        "a weight of another size",
        "reencoder",
        appended(in_file(floats("w", 2**40), "reencoder.onnx.data", 0, 4)),
        "tensor 'w': 4 bytes, expected 4398046511104",
    ),
    (
        "a size that wraps",
        "reencoder",
        appended(in_file(floats("w", *[2**32] * 2), "reencoder.onnx.data", 0, 0)),
        "'w': 0",
    ),
    ("a negative size", "reencoder", appended(in_file(floats("w", -1), "reencoder.onnx.data", 0, 4)), "'w': shape"),
    ("no values", "reencoder", appended(in_file(floats("w", 0), "reencoder.onnx.data", 0, 0)), r"'w': shape \(0,\)"),
    ("double", "reencoder", appended(weight("w", [1], np.float64)), "tensor 'w': element type 11"),
    ("a long constant", "reencoder", appended(weight("w", [0] * 300, np.float32)), "raw_data of 1200 bytes"),
    # inputs and outputs
    ("another input", "backbone", set_input("pixels"), "the manifest says inputs pixel_values, got 'pixels'"),
    (
        "one output more",
        "reencoder",
        lambda model: model.graph.output.add(name="more"),
        "says outputs vectors, got 'more'",
    ),
    ("another size", "backbone", set_dim("input", 1, 28), "'pixel_values' is declared as"),
    ("a fixed batch", "backbone", set_dim("input", 0, 2), "'pixel_values' is declared as"),
    (
        "another type",
        "backbone",
        lambda model: model.graph.output[0].type.CopyFrom(model.graph.input[0].type),
        "declared",
    ),
    ("declared otherwise", "backbone", set_dim("value_info", 0, 2**40), "is declared as"),
    ("a tensor twice", "reencoder", appended(node("Abs", "vectors", "vectors")), "two tensors have one name"),
    ("no tensor", "reencoder", appended(node("Exp", "nowhere")), "its input 'nowhere' is not there before it"),
    ("no output", "reencoder", lambda model: model.graph.node.pop(), "not there|nothing makes"),
]


@pytest.mark.parametrize(("name", "change", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_hostile_graphs_are_refused(
    demo_bundle: Path, tmp_path: Path, name: EngineName, change: Change, reason: str
) -> None:
    model = onnx.load(demo_bundle / f"{name}.onnx", load_external_data=False)
    change(model)
    with pytest.raises(BundleError, match=reason) as refused:
        admit_bytes(demo_bundle, tmp_path, name, model.SerializeToString())
    assert re.match(r".*\.onnx: not a graph of the exporter's: .*; build the bundle again$", str(refused.value))


def admit_bytes(bundle: Path, folder: Path, name: EngineName, content: bytes) -> None:
    """Admit a graph beside the weights of a bundle."""
    (folder / f"{name}.onnx").write_bytes(content)
    files = {file.name: HeldFile(file) for file in bundle.iterdir()}
    admit(HeldFile(folder / f"{name}.onnx"), engine_contract(Bundle(bundle).manifest, name), files)


def message(number: int, *content: bytes) -> bytes:
    """Return a field that holds bytes, in protobuf's wire format."""
    inner = b"".join(content)
    assert len(inner) < 128
    return bytes([number << 3 | 2, len(inner)]) + inner


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        (message(7) * 2, "ModelProto has graph twice"),  # protobuf would join them
        (message(7) * (40 * 2**20), f"larger than {MAX_FILE_BYTES} bytes"),
        (b"\x3a\x80\x80\x08" + message(1) * 2**16, "has node more than 4096 times"),
        (b"\x3b" + message(5) + b"\x3c", "ModelProto has field 7"),  # a group, which nobody writes any more
        (message(7, message(5))[:-1], "cut off"),
        (b"\x3a", "no number"),
        (b"\x3a\xff", "no number"),
        (b"\xba\x80\x80\x80\x80\x01\x00", "ModelProto has field"),  # a tag of more than 32 bits
        (b"\x08" + b"\xff" * 10 + b"\x01", "no number"),
        (b"\x08" + b"\xff" * 9 + b"\x7f", "no number"),  # more than 64 bits
        (b"\x3d\x00\x00", "has field 7"),
        (message(7, message(1, message(3, b"\xff"))), "name is not of printable ASCII"),
        (message(7, message(1, message(3, b"a\0b"))), "name is not of printable ASCII"),
        (message(7, message(1, b"\x1a\x81\x02" + b"a" * 80)), "cut off"),
        (message(7, message(5, message(1, b"\x01\x02"))), "TensorProto has field 1,"),  # packed, which it is not
    ],
)
def test_what_the_exporter_would_not_write_is_refused(
    demo_bundle: Path, tmp_path: Path, written: bytes, reason: str
) -> None:
    with pytest.raises(BundleError, match=f"not a graph of the exporter's: .*{reason}"):
        admit_bytes(demo_bundle, tmp_path, "backbone", written)
