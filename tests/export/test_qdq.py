"""Products in 8 bits for TensorRT: what is rounded and by which scales, and what becomes of the tokens."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from export import build_engines
from export.graphs.exporter import export_graph
from export.graphs.qdq import EightBits, quantize_products
from export.graphs.specs import backbone_spec
from export.lint import lint
from export.readers import read_checkpoint
from runtime import Captioner
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import Bundle, EngineFiles
from runtime.image import Fit, prepare
from tests.exported_forms import BACKBONES, randomized

BOTH = get_args(EightBits)


def two_products(weight: npt.NDArray[np.float16]) -> onnx_ir.Model:
    """A float16 graph of two products of one input."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", len(weight)])
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, ["rows", weight.shape[1]]) for name in "yz"]
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["half", "w"], ["one"], "product"),
        helper.make_node("MatMul", ["half", "v"], ["two"], "other"),
        helper.make_node("Add", ["one", "zeros"], ["y"]),  # what makes an output itself is not rounded
        helper.make_node("Add", ["two", "zeros"], ["z"]),
    ]
    zeros = np.zeros(weight.shape[1], np.float16)
    arrays = {"w": weight, "v": weight * 2, "zeros": zeros}
    weights = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "graph", [x], outputs, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    return onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))


def constant(model: onnx_ir.Model, name: str) -> npt.NDArray[Any]:
    value = model.graph.initializers[name].const_value
    assert value is not None
    return value.numpy()


@pytest.mark.parametrize(
    ("to", "activation_scale", "weight_scale"),
    [("int8", 12.7 / 127, np.array([0.5, 2.54]) / 127), ("fp8", 12.7 / 448, np.array(2.54) / 448)],
)
def test_a_scale_is_the_largest_value_over_that_of_the_format(
    to: EightBits, activation_scale: float, weight_scale: npt.NDArray[Any]
) -> None:
    model = two_products(np.array([[0.25, -2.54], [-0.5, 1]], np.float16))
    quantize_products(model, to, {"x": 12.7}, "cuda")
    np.testing.assert_allclose(constant(model, "half.scale"), activation_scale, rtol=1e-3)
    np.testing.assert_allclose(constant(model, "w.scale"), weight_scale, rtol=1e-3)
    assert constant(model, "w.zero").dtype == {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}[to]
    assert not constant(model, "w.zero").any()


@pytest.mark.parametrize("to", BOTH)
def test_weights_stay_in_float16_and_activations_are_rounded_once_for_all_their_products(to: EightBits) -> None:
    model = two_products(np.ones((2, 2), np.float16))
    quantize_products(model, to, {"x": 1.0}, "cuda")
    kinds = [node.op_type for node in model.graph]
    assert kinds.count("QuantizeLinear") == kinds.count("DequantizeLinear") == 3
    assert constant(model, "w").dtype == np.float16
    onnx.checker.check_model(onnx_ir.to_proto(model), full_check=True)


def test_int8_rounds_to_the_nearest_step_and_clips_beyond_the_range(tmp_path: Path) -> None:
    model = two_products(np.eye(2, dtype=np.float16))
    quantize_products(model, "int8", {"x": 127.0}, "cuda")
    onnx_ir.save(model, tmp_path / "graph.onnx")
    x = torch.tensor([[3.4, -3.6], [500.0, -500.0]])
    y = OrtBackend().open(EngineFiles(tmp_path / "graph.onnx")).run({"x": x})["y"]
    # A weight of 1 is 127 steps of 1/127, which is 0.99975 of 1 in float16.
    torch.testing.assert_close(y.float(), torch.tensor([[3.0, -4.0], [127.0, -128.0]]), rtol=1e-3, atol=0)


def test_for_cpus_weights_are_stored_in_7_bits_but_those_of_queries_keys_and_values(tmp_path: Path) -> None:
    backbone = randomized(BACKBONES["registers"]())
    pixels = torch.randint(0, 256, (1, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    export_graph(backbone_spec(backbone, pixels), tmp_path, "int8", "cpu")
    graph = onnx_ir.load(tmp_path / "backbone.onnx").graph
    width = backbone.numbers.embed_dim
    products = [node.inputs[1].producer() for node in graph if node.op_type == "MatMul"]
    stored = [node.inputs[0] for node in products if node is not None and node.inputs[0].is_initializer()]
    assert [tuple(value.shape) for value in stored] == [(width, width), (width, 4 * width), (4 * width, width)] * 2
    for value in stored:
        assert (np.abs(value.const_value.numpy().astype(int)).max(axis=0) == 63).all()
    rounded = [node.inputs[0] for node in graph if node.op_type == "QuantizeLinear" and node.inputs[0].is_initializer()]
    assert [(tuple(value.shape), value.dtype.name) for value in rounded] == [((width, 3 * width), "FLOAT")] * 2


RUN = """
import sys, numpy as np, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
np.save(sys.argv[2], session.run(None, {"x": np.load(sys.argv[3])})[0])
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("qemu-x86_64") is None, reason="needs qemu-user: apt-get install qemu-user")
def test_the_largest_products_do_not_overflow_on_a_processor_without_vnni(tmp_path: Path) -> None:
    """Where ONNX Runtime adds pairs of 8-bit products in 16 bits."""
    x, weight = np.ones((4, 256), np.float32), np.ones((256, 32), np.float32)
    x[1], x[2, ::2], weight[:, 1::2] = -1, -1, -1
    nodes = [helper.make_node("MatMul", ["x", "w"], ["product"]), helper.make_node("Add", ["product", "zero"], ["y"])]
    x_info = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", 256])
    y_info = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["rows", 32])
    weights = [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(np.zeros(32, np.float32), "zero")]
    proto = helper.make_graph(nodes, "graph", [x_info], [y_info], weights)
    model = helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    rounded = onnx_ir.from_proto(onnx.shape_inference.infer_shapes(model))
    quantize_products(rounded, "int8", {"x": 1.0}, "cpu")
    onnx_ir.save(rounded, tmp_path / "graph.onnx")
    np.save(tmp_path / "x.npy", x)
    command = ["qemu-x86_64", "-cpu", "Haswell", sys.executable, "-c", RUN]
    files = [str(tmp_path / name) for name in ("graph.onnx", "y.npy", "x.npy")]
    subprocess.run([*command, *files], check=True, capture_output=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), x @ weight, rtol=1e-4)


@pytest.mark.parametrize("to", BOTH)
def test_a_weight_of_zeros_gives_zeros(tmp_path: Path, to: EightBits) -> None:
    model = two_products(np.zeros((2, 2), np.float16))
    quantize_products(model, to, {"x": 0.0}, "cuda")
    onnx_ir.save(model, tmp_path / "graph.onnx")
    y = OrtBackend().open(EngineFiles(tmp_path / "graph.onnx")).run({"x": torch.ones(1, 2)})["y"]
    assert y.tolist() == [[0, 0]]


@pytest.mark.parametrize("to", BOTH)
def test_the_tokens_of_the_demo_stay_what_they_are(
    tmp_path: Path, sample_image: Image.Image, demo: Captioner, to: EightBits
) -> None:
    """By cosine: rounding to 8 bits changes a token by some percent, a wrong scale or axis makes it another."""
    pixels, _ = prepare([sample_image, sample_image.rotate(90)], 224, Fit.STRETCH)
    spec = backbone_spec(read_checkpoint("demo", None).backbone, pixels)
    record = export_graph(spec, tmp_path, to, "cuda")
    assert record.precision == to
    assert [found for found in lint(tmp_path / record.file, (10, 3)) if found.severity == "error"] == []
    tokens = OrtBackend().open(EngineFiles(tmp_path / record.file)).run({"pixel_values": pixels[:1]})["tokens"][0]
    cosines = torch.cosine_similarity(tokens, demo.encode(sample_image).tokens[0], dim=1)
    assert cosines.median() > {"int8": 0.999, "fp8": 0.99}[to]
    assert cosines.min() > {"int8": 0.99, "fp8": 0.9}[to]


@pytest.fixture
def photos(tmp_path: Path, sample_image: Image.Image) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "notes.txt").write_text("no image")
    sample_image.save(folder / "b.png")
    sample_image.rotate(90, expand=True).save(folder / "a.png")
    return folder


def build(out: Path, *options: str | Path) -> int:
    return build_engines.main(["demo", "--out", str(out), *map(str, options)])


def test_only_the_backbone_is_in_8_bits_and_the_rest_is_float16(tmp_path: Path, photos: Path) -> None:
    options = ("--backend", "ort-tensorrt", "--precision", "int8", "--calibration", photos)
    assert build(tmp_path / "bundle", *options) == 0
    manifest = Bundle(tmp_path / "bundle").manifest
    precisions = {name: record.precision for name, record in manifest.engines.items()}
    assert precisions.pop("backbone") == "int8"
    assert precisions == dict.fromkeys(("decoder", "beam_decoder", "reencoder"), "fp16")
    assert manifest.decoder.cache_precision == "fp16"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp8"], "--precision fp8: the backend cpu has fp32, fp16, bf16, int8$"),
        (["--precision", "fp8", "--backend", "ort-tensorrt"], "the backend ort-tensorrt has fp32, fp16, bf16, int8$"),
        (["--precision", "int8", "--backend", "ort-cuda"], "the backend ort-cuda has fp32, fp16, bf16$"),
        (["--precision", "int8", "--backend", "ort-tensorrt"], "needs --calibration FOLDER with images"),
    ],
)
def test_precisions_that_a_backend_does_not_have_are_refused_before_the_export(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    assert build(tmp_path / "bundle", *options) == 1
    assert not (tmp_path / "bundle").exists()
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error.strip())


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder / "nowhere", "nowhere: no such folder"),
        (lambda folder: (folder / "empty").mkdir() or folder / "empty", "found none"),
        (lambda folder: (folder / "b.png").write_bytes(b"no image") and folder, "b.png: not an image"),
    ],
)
def test_calibration_images_that_cannot_be_read_are_named(
    tmp_path: Path, photos: Path, capsys: pytest.CaptureFixture[str], spoil: object, message: str
) -> None:
    assert callable(spoil)
    assert build(tmp_path / "bundle", "--precision", "fp16", "--calibration", spoil(photos)) == 1
    assert message in capsys.readouterr().err
