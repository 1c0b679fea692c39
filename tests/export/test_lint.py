"""The linter on every graph that is exported, and on graphs made wrong on purpose, each wrong in one way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.lint import lint
from export.lint.__main__ import main
from export.lint.support_table import newest_opset, supported_since
from export.plans.profiles import profiles_of
from runtime.bundle import Bundle, ShapeRange
from tests.conftest import build_once

JETPACK_6, NEWEST = (10, 3), (11, 4)
FLOAT, HALF, INT64, UINT8, DOUBLE, BOOL = (
    *(TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.UINT8, TensorProto.DOUBLE),
    TensorProto.BOOL,
)
Value = tuple[str, int, list[int | str]]


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
@pytest.mark.parametrize("version", [JETPACK_6, NEWEST])
def test_every_exported_graph_will_likely_parse(
    tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path, precision: str, version: tuple[int, int]
) -> None:
    folder = demo_bundle
    if precision != "fp32":
        folder = build_once(tmp_path_factory, "demo", f"demo-{precision}", "--precision", precision)
    manifest = Bundle(folder, verify=False).manifest
    profiles = profiles_of(manifest)
    assert profiles.keys() == {"backbone", "decoder", "beam_decoder", "reencoder"}
    for name, of_graph in profiles.items():
        found = lint(folder / f"{name}.onnx", version, of_graph)
        assert [str(one) for one in found if one.severity == "error"] == []
        unfused = [one for one in found if one.rule == "attention"]
        expected = {"backbone": manifest.backbone.depth, "reencoder": 1} if precision == "fp32" else {}
        assert len(unfused) == expected.get(name, 0)


@pytest.mark.parametrize("graph", ["backbone", "reencoder", "decoder", "beam_decoder"])
def test_polygraphy_finds_no_constants_to_fold(demo_bundle: Path, graph: str) -> None:
    from polygraphy.backend.onnx import fold_constants
    from polygraphy.logger import G_LOGGER

    model = onnx.load(demo_bundle / f"{graph}.onnx")
    before = len(model.graph.node)
    with G_LOGGER.verbosity(G_LOGGER.ERROR):
        assert len(fold_constants(model).graph.node) == before


def test_of_int8_graphs_for_cpus_only_the_attention_is_not_onnx_s_own(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = build_once(tmp_path_factory, "demo", "demo-int8", "--precision", "int8")
    found = [one for one in lint(folder / "backbone.onnx", NEWEST) if one.severity == "error"]
    assert len(found) == Bundle(folder, verify=False).manifest.backbone.depth
    assert all("(MultiHeadAttention): of the domain com.microsoft" in str(one) for one in found)
    assert [one for one in lint(folder / "decoder.onnx", NEWEST) if one.severity == "error"] == []


def graph(
    nodes: list[onnx.NodeProto],
    inputs: list[Value],
    outputs: list[Value],
    weights: dict[str, np.ndarray] | None = None,
    opset: int = 20,
    ir_version: int = 9,
    inner: list[Value] | None = None,
) -> onnx.ModelProto:
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        value_info=[helper.make_tensor_value_info(*value) for value in (inner or [])],
    )
    domains = {node.domain for node in nodes if node.domain}
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(made, opset_imports=opsets, ir_version=ir_version)


def one_node(
    kind: str, *more: str, dtype: int = FLOAT, weights: dict[str, Any] | None = None, **attributes: Any
) -> onnx.ModelProto:
    """A graph of one operator on x (2, 8)."""
    opset = attributes.pop("opset", 20)
    shape, out_dtype = attributes.pop("out", [2, 8]), attributes.pop("out_dtype", dtype)
    node = helper.make_node(kind, ["x", *more], ["y"], **attributes)
    return graph([node], [("x", dtype, [2, 8])], [("y", out_dtype, shape)], weights, opset)


def attention(
    dtype: int = HALF, width: int = 64, scale_after: bool = False, mask: float | None = None
) -> onnx.ModelProto:
    """A graph of attention over queries, keys and values (1, 2, 8, width)."""
    kind = {HALF: np.float16, FLOAT: np.float32}[dtype]
    shapes: list[list[int | str]] = [[1, 2, 8, width], [1, 2, width, 8]]
    weights = {"scale": np.array(0.125, kind)}
    before = ["q", "scores"] if scale_after else ["scaled", "scores"]
    nodes = [] if scale_after else [helper.make_node("Mul", ["q", "scale"], ["scaled"])]
    nodes.append(helper.make_node("MatMul", [before[0], "k"], ["scores"]))
    last = "scores"
    inner: list[Value] = [(name, dtype, [1, 2, 8, 8]) for name in ("scores", "scores2", "masked", "weights")]
    if scale_after:
        nodes.append(helper.make_node("Mul", ["scores", "scale"], ["scores2"]))
        last = "scores2"
    if mask is not None:
        weights |= {"mask": np.array(mask, kind), "attended": np.array([True] * 7 + [False])}
        nodes.append(helper.make_node("Where", ["attended", last, "mask"], ["masked"]))
        last = "masked"
    nodes.append(helper.make_node("Softmax", [last], ["weights"]))
    nodes.append(helper.make_node("MatMul", ["weights", "v"], ["y"]))
    inputs: list[Value] = [("q", dtype, shapes[0]), ("k", dtype, shapes[1]), ("v", dtype, shapes[0])]
    return graph(nodes, inputs, [("y", dtype, shapes[0])], weights, inner=[("scaled", dtype, shapes[0]), *inner])


def a_branch() -> onnx.ModelProto:
    """A graph with an operator If."""
    branches = [
        helper.make_graph(
            [helper.make_node(kind, ["x"], [name])], name, [], [helper.make_tensor_value_info(name, FLOAT, [2])]
        )
        for kind, name in (("Relu", "then"), ("Abs", "otherwise"))
    ]
    node = helper.make_node("If", ["c"], ["y"], then_branch=branches[0], else_branch=branches[1])
    return graph([node], [("c", BOOL, []), ("x", FLOAT, [2])], [("y", FLOAT, [2])])


AXES = {"axes": np.array([1])}

RIGHT: dict[str, onnx.ModelProto] = {
    "reduce": one_node("ReduceMax", "axes", weights=AXES, keepdims=0, out=[2]),
    "attention": attention(),
    "masked attention": attention(mask=-1e4),
    "linear resize": graph(
        [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear")],
        [("x", FLOAT, [1, 3, 4, 4])],
        [("y", FLOAT, [1, 3, 8, 8])],
        {"sizes": np.array([1, 3, 8, 8])},
    ),
    "uint8 cast at the input": graph(
        [helper.make_node("Cast", ["x"], ["t"], to=FLOAT), helper.make_node("Transpose", ["t"], ["y"])],
        [("x", UINT8, [2, 8])],
        [("y", FLOAT, [8, 2])],
    ),
    "uint8 cast at the output": one_node("Cast", to=UINT8, out_dtype=UINT8),
    "a mask": graph(
        [helper.make_node("Unsqueeze", ["m", "axes"], ["u"]), helper.make_node("Where", ["u", "x", "z"], ["y"])],
        [("m", BOOL, [2, 8]), ("x", FLOAT, [2, 1, 8])],
        [("y", FLOAT, [2, 1, 8])],
        {"axes": np.array([1]), "z": np.array(-1e4, np.float32)},
        inner=[("u", BOOL, [2, 1, 8])],
    ),
}

WRONG: list[tuple[str, str, str, Callable[[], onnx.ModelProto]]] = [
    ("opset", "opset 22; TensorRT 10.3 reads up to 20", "", lambda: one_node("Relu", opset=22)),
    (
        "opset",
        "IR version 12",
        "",
        lambda: graph(
            [helper.make_node("Relu", ["x"], ["y"])], [("x", FLOAT, [2])], [("y", FLOAT, [2])], ir_version=12
        ),
    ),
    ("operator", "of the domain com.microsoft", "", lambda: one_node("FusedGelu", domain="com.microsoft")),
    ("operator", "lacks it; it has it in no version", "capture", lambda: one_node("Unique", out=["n"])),
    ("operator", "lacks it; it has it in no version", "", lambda: one_node("BitwiseNot", dtype=INT64)),
    (
        "constant",
        "axes is computed",
        "",
        lambda: graph(
            [helper.make_node("ReduceMax", ["x", "axes"], ["y"], keepdims=0)],
            [("x", FLOAT, [2, 8]), ("axes", INT64, [1])],
            [("y", FLOAT, ["n"])],
        ),
    ),
    (
        "restriction",
        "K is 4000; expected at most 3839",
        "",
        lambda: graph(
            [helper.make_node("TopK", ["x", "k"], ["y", "indices"])],
            [("x", FLOAT, [2, 5000])],
            [("y", FLOAT, [2, 4000]), ("indices", INT64, [2, 4000])],
            {"k": np.array([4000])},
        ),
    ),
    (
        "restriction",
        "antialias is 1; expected 0",
        "",
        lambda: graph(
            [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="linear", antialias=1)],
            [("x", FLOAT, [1, 3, 8, 8])],
            [("y", FLOAT, [1, 3, 4, 4])],
            {"sizes": np.array([1, 3, 4, 4])},
        ),
    ),
    (
        "restriction",
        "is cubic",
        "",
        lambda: graph(
            [helper.make_node("Resize", ["x", "", "", "sizes"], ["y"], mode="cubic")],
            [("x", FLOAT, [1, 3, 4, 4])],
            [("y", FLOAT, [1, 3, 8, 8])],
            {"sizes": np.array([1, 3, 8, 8])},
        ),
    ),
    (
        "restriction",
        "zero point is not 0",
        "",
        lambda: graph(
            [helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["y"])],
            [("x", FLOAT, [4])],
            [("y", FLOAT, [4])],
            {"w": np.zeros(4, np.int8), "scale": np.array(1, np.float32), "zero": np.array(3, np.int8)},
        ),
    ),
    ("dtype", "computes on uint8", "", lambda: one_node("Abs", dtype=UINT8)),
    (
        "dtype",
        "computes on uint8",
        "",
        lambda: graph(
            [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("Cast", ["t"], ["y"], to=FLOAT)],
            [("x", UINT8, [2, 8])],
            [("y", FLOAT, [8, 2])],
            inner=[("t", UINT8, [8, 2])],
        ),
    ),
    (
        "dtype",
        "makes uint8 inside the graph",
        "",
        lambda: graph(
            [helper.make_node("Cast", ["x"], ["t"], to=UINT8), helper.make_node("Cast", ["t"], ["y"], to=FLOAT)],
            [("x", FLOAT, [2, 8])],
            [("y", FLOAT, [2, 8])],
            inner=[("t", UINT8, [2, 8])],
        ),
    ),
    (
        "dtype",
        "computes on bool",
        "",
        lambda: one_node("ReduceMax", "axes", dtype=BOOL, weights=AXES, keepdims=0, out=[2]),
    ),
    ("dtype", "is float64", "", lambda: one_node("Relu", dtype=DOUBLE)),
    (
        "dtype",
        "takes FLOAT, FLOAT16 together",
        "onnx",
        lambda: graph(
            [helper.make_node("LayerNormalization", ["x", "scale"], ["y"])],
            [("x", FLOAT, [2, 8]), ("scale", HALF, [8])],
            [("y", FLOAT, [2, 8])],
        ),
    ),
    ("onnx", "elem type", "", lambda: one_node("Cast", to=HALF)),
    ("operator", "makes it by a plug-in", "capture", lambda: one_node("NonZero", out=[2, "n"], out_dtype=INT64)),
    ("capture", "is control flow", "", lambda: a_branch()),
    ("attention", "is float32, which is never fused", "", lambda: attention(FLOAT)),
    ("attention", "scale comes after the scores", "", lambda: attention(scale_after=True)),
    ("attention", "heads are 12 wide", "", lambda: attention(width=12)),
    ("attention", "heads are 512 wide", "", lambda: attention(width=512)),
    ("range", "masks with -inf", "", lambda: attention(mask=float("-inf"))),
    (
        "range",
        "is not finite",
        "",
        lambda: graph(
            [helper.make_node("Add", ["x", "w"], ["y"])],
            [("x", HALF, [2])],
            [("y", HALF, [2])],
            {"w": np.array([np.inf, 0], np.float16)},
        ),
    ),
    (
        "range",
        "squares float16",
        "",
        lambda: graph(
            [helper.make_node("Pow", ["x", "two"], ["p"]), helper.make_node("Relu", ["p"], ["y"])],
            [("x", HALF, [2])],
            [("y", HALF, [2])],
            {"two": np.array(2, np.float16)},
            inner=[("p", HALF, [2])],
        ),
    ),
]


def lint_messages(
    tmp_path: Path, model: onnx.ModelProto, version: tuple[int, int] = JETPACK_6, **checks: Any
) -> list[str]:
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return [f"{one.rule}: {one.message}" for one in lint(path, version, **checks)]


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_has_no_finding(tmp_path: Path, name: str) -> None:
    assert lint_messages(tmp_path, RIGHT[name]) == []


@pytest.mark.parametrize(
    ("rule", "message", "also", "make"),
    WRONG,
    ids=[f"{rule} {message} {number}" for number, (rule, message, _, _) in enumerate(WRONG)],
)
def test_what_is_wrong_in_one_way_has_one_finding(
    tmp_path: Path, rule: str, message: str, also: str, make: Callable[[], onnx.ModelProto]
) -> None:
    found = lint_messages(tmp_path, make())
    assert found
    assert found[0].startswith(f"{rule}: ")
    assert message in found[0]
    assert {one.split(":")[0] for one in found[1:]} <= {rule, also}, found


def test_the_operator_attention_is_plain_or_refused(tmp_path: Path) -> None:
    def of(inputs: list[str], version: tuple[int, int] = NEWEST, **attributes: Any) -> list[str]:
        node = helper.make_node("Attention", inputs, ["y"], **attributes)
        shape: list[int | str] = [1, 2, 8, 64]
        values: list[Value] = [(name, HALF, shape) for name in inputs if name not in ("mask", "")]
        values += [("mask", HALF, [8, 8])] if "mask" in inputs else []
        return lint_messages(tmp_path, graph([node], values, [("y", HALF, shape)], opset=23), version)

    assert of(["q", "k", "v"]) == of(["q", "k", "v", "mask"]) == of(["q", "k", "v"], (10, 14)) == []
    assert any(
        "operator: TensorRT 10.13 lacks it; it has it from 10.14 on" in one for one in of(["q", "k", "v"], (10, 13))
    )
    assert any("is causal and masked" in one for one in of(["q", "k", "v", "mask"], is_causal=1))
    assert any("past keys" in one for one in of(["q", "k", "v", "", "pk", "pv"]))
    assert any("softcap" in one for one in of(["q", "k", "v"], softcap=2.0))


def shape_range(*shapes: tuple[int, ...]) -> ShapeRange:
    low, typical, high = shapes
    return ShapeRange(min=low, opt=typical, max=high)


PAIR = graph(
    [helper.make_node("Add", ["x", "z"], ["y"])],
    [("x", FLOAT, ["rows", 4]), ("z", FLOAT, ["rows", 4])],
    [("y", FLOAT, ["rows", 4])],
)
GOOD = shape_range((1, 4), (2, 4), (8, 4))


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"x": GOOD, "z": GOOD}, None),
        ({"x": GOOD}, "does not cover z"),
        ({"x": GOOD, "z": GOOD, "w": GOOD}, "names w, which is no input"),
        ({"x": GOOD, "z": shape_range((1, 5), (2, 5), (8, 5))}, "z cannot be (1, 5)"),
        ({"x": GOOD, "z": shape_range((1,), (2,), (8,))}, "z cannot be (1,)"),
        ({"x": GOOD, "z": shape_range((1, 4), (3, 4), (8, 4))}, "rows is 2 in one input and 3 in z at opt"),
    ],
)
def test_profiles_cover_what_is_dynamic_and_agree(
    tmp_path: Path, profile: dict[str, ShapeRange], message: str | None
) -> None:
    found = lint_messages(tmp_path, PAIR, profiles=[profile])
    if message is None:
        assert found == []
    else:
        assert len(found) == 1
        assert message in found[0]


def test_shapes_that_do_not_resolve_at_one_point_are_found(tmp_path: Path) -> None:
    model = graph(
        [helper.make_node("Add", ["x", "z"], ["y"])],
        [("x", FLOAT, ["rows", 4]), ("z", FLOAT, ["others", 4])],
        [("y", FLOAT, ["all", 4])],
    )
    assert lint_messages(tmp_path, model, profiles=[{"x": GOOD, "z": GOOD}]) == []
    (found,) = lint_messages(tmp_path, model, profiles=[{"x": GOOD, "z": shape_range((1, 4), (3, 4), (8, 4))}])
    assert found.startswith("profile: at opt: ")


def test_measured_ranges_that_float16_does_not_hold_are_found(tmp_path: Path) -> None:
    model = attention()
    assert lint_messages(tmp_path, model, ranges={"scores": 1e4}) == []
    assert "was measured at 2e+04" in lint_messages(tmp_path, model, ranges={"scores": 2e4})[0]
    path = tmp_path / "model.onnx"
    assert [one.severity for one in lint(path, JETPACK_6, (), {"scores": 2e4})] == ["warning"]
    assert [one.severity for one in lint(path, JETPACK_6, (), {"scores": 7e4})] == ["error"]


def test_the_table_is_that_of_the_version() -> None:
    assert [newest_opset(version) for version in ((10, 0), (10, 8), (10, 9), (10, 13), (11, 4))] == [20, 20, 22, 24, 24]
    assert supported_since("MatMul") == (10, 0)
    assert supported_since("TensorScatter") == (10, 15)
    assert supported_since("MatMulInteger") is None


def test_the_command_says_one_line_a_finding(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.onnx", tmp_path / "bad.onnx"
    onnx.save(PAIR, good)
    onnx.save(one_node("Unique", out=["n"]), bad)
    assert main([str(good), "--profile", "x=1x4:2x4:8x4,z=1x4:2x4:8x4"]) == 0
    assert capsys.readouterr().out == f"{good}: will likely parse in TensorRT 10.3\n"
    assert main([str(good), str(bad), "--tensorrt", "11.4"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith(f"{bad}: error: operator: node '' (Unique): TensorRT 11.4 lacks it")
    assert main([str(bad), "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)[:1]
    assert finding.keys() == {"graph", "severity", "rule", "location", "message", "stage"}
    assert (finding["graph"], finding["rule"]) == (str(bad), "operator")
    assert main([str(tmp_path / "none.onnx")]) == 2
    bad.write_bytes(b"no graph")
    capsys.readouterr()
    assert main([str(bad)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {bad}: no ONNX graph: ")
    for wrong in (["--tensorrt", "9.3"], ["--tensorrt", "x"], ["--profile", "x"], ["--profile", "x=3:2:1"]):
        with pytest.raises(SystemExit) as stopped:
            main([str(good), *wrong])
        assert stopped.value.code == 2
