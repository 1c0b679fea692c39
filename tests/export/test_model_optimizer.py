"""FP8 and INT8 for TensorRT: what Model Optimizer is asked for, and what becomes of what it gives or says."""

from __future__ import annotations

import os
import re
import stat
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from export import build_engines
from export.graphs.exporter import export_quantized_backbone
from export.graphs.model_optimizer import ModelOpt, ModelOptError
from export.lint import lint
from export.readers import read_checkpoint
from runtime import Captioner
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import Bundle, EngineFiles
from runtime.image import Fit, prepare

REAL = os.environ.get("PATCHCAPTION_MODELOPT")

STAND_IN = """#!{python}
import json, pathlib, sys
given = sys.argv[1:]
if given[0] == "-c":
    sys.exit({import_status})
pathlib.Path({record!r}).write_text(json.dumps(given))
import numpy, onnx
numpy.save({record!r} + ".npy", numpy.load(given[given.index("--calibration_data_path") + 1])["pixel_values"])
if {fails}:
    print("INFO: reading", file=sys.stderr)
    print("ValueError: no scale for /conv", file=sys.stderr)
    sys.exit(1)
model = onnx.load(given[given.index("--onnx_path") + 1])
out = given[given.index("--output_path") + 1]
onnx.save_model(model, out, save_as_external_data=True, location="quantized.onnx_data")
"""


def stand_in(folder: Path, import_status: int = 0, fails: bool = False) -> Path:
    """An interpreter whose Model Optimizer notes what it was asked for and leaves the graph as it is."""
    path = folder / "python"
    record = str(folder / "arguments.json")
    path.write_text(STAND_IN.format(python=sys.executable, record=record, import_status=import_status, fails=fails))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


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


def test_the_backbone_is_quantized_by_the_images_and_the_rest_is_fp16(
    tmp_path: Path, photos: Path, sample_image: Image.Image
) -> None:
    options = ("--backend", "ort-tensorrt", "--precision", "int8")
    assert build(tmp_path / "bundle", *options, "--calibration", photos, "--modelopt", stand_in(tmp_path)) == 0
    manifest = Bundle(tmp_path / "bundle").manifest
    precisions = {name: record.precision for name, record in manifest.engines.items()}
    assert precisions.pop("backbone") == "int8"
    assert precisions == dict.fromkeys(("decoder", "beam_decoder", "reencoder"), "fp16")
    assert manifest.decoder.cache_precision == "fp16"
    asked = (tmp_path / "arguments.json").read_text()
    assert '"--quantize_mode", "int8"' in asked
    assert '"--disable_mha_qdq"' in asked
    expected, _ = prepare([sample_image.rotate(90, expand=True), sample_image], 224, Fit.STRETCH)
    np.testing.assert_array_equal(np.load(tmp_path / "arguments.json.npy"), expected)
    graph = onnx.load(tmp_path / "bundle" / "backbone.onnx", load_external_data=False)
    weights = graph.graph.initializer
    files = {entry.value for weight in weights for entry in weight.external_data if entry.key == "location"}
    assert files == {"backbone.onnx.data"}
    assert not list((tmp_path / "bundle").glob("tmp*"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "fp8"], "--precision fp8: the backend cpu has fp32, fp16, bf16, int8$"),
        (["--precision", "fp8", "--backend", "ort-tensorrt"], "the backend ort-tensorrt has fp32, fp16, bf16, int8$"),
        (["--precision", "int8", "--backend", "ort-cuda"], "the backend ort-cuda has fp32, fp16, bf16$"),
        (["--precision", "int8", "--backend", "ort-tensorrt"], "needs --calibration FOLDER .* and --modelopt PYTHON"),
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
    ("python", "message"),
    [
        ("none", "cannot be started (No such file or directory)"),
        ("without", "it failed without an error message; to install it: python -m venv modelopt"),
        ("failing", "ValueError: no scale for /conv"),
    ],
)
def test_what_goes_wrong_in_its_environment_is_one_message(
    tmp_path: Path, demo_bundle: Path, python: str, message: str
) -> None:
    interpreter = tmp_path / "nothing"
    if python != "none":
        interpreter = stand_in(tmp_path, int(python == "without"), fails=python == "failing")
    modelopt, feeds = ModelOpt(interpreter), {"pixel_values": np.zeros((1, 224, 224, 3), np.uint8)}
    with pytest.raises(ModelOptError) as raised:
        modelopt.quantize(demo_bundle / "backbone.onnx", "int8", feeds) if python == "failing" else modelopt.check()
    assert message in str(raised.value)


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


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="PATCHCAPTION_MODELOPT names no environment with nvidia-modelopt[onnx]")
@pytest.mark.parametrize("precision", ["fp8", "int8"])
def test_the_real_one_quantizes_the_demo(
    tmp_path: Path, sample_image: Image.Image, demo: Captioner, precision: Literal["fp8", "int8"]
) -> None:
    pixels, _ = prepare([sample_image, sample_image.rotate(90)], 224, Fit.STRETCH)
    backbone = read_checkpoint("demo", None).backbone
    record = export_quantized_backbone(backbone, tmp_path, precision, pixels, ModelOpt(Path(str(REAL))))
    assert record.precision == precision
    graph = tmp_path / record.file
    kinds = {node.op_type for node in onnx.load(graph, load_external_data=False).graph.node}
    assert {"QuantizeLinear", "DequantizeLinear"} <= kinds
    assert [found for found in lint(graph, (10, 3)) if found.severity == "error"] == []
    ours = OrtBackend().open(EngineFiles(graph)).run({"pixel_values": pixels[:1]})["tokens"][0]
    cosines = torch.cosine_similarity(ours, demo.encode(sample_image).tokens[0], dim=1)
    assert cosines.min() > 0.8
    assert cosines.median() > 0.97
