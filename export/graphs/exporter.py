"""Torch modules to ONNX files, each checked against its module before anyone uses it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir
from torch import Tensor

from export.graphs.attention_fusion import fuse_attention
from export.graphs.half_precision import convert_to_half
from export.graphs.int8 import quantize
from export.graphs.model_optimizer import ModelOpt
from export.graphs.shared_weights import share_weights
from export.graphs.specs import GraphSpec, backbone_spec
from export.graphs.tracing import OPSET, trace
from export.graphs.value_ranges import measure_ranges
from export.graphs.verification import compare
from export.models.base import BackboneModel
from runtime.bundle import EnginePrecision, EngineRecord
from runtime.bundle.graph_io import PIXEL_VALUES


def export_graph(spec: GraphSpec, folder: Path, precision: EnginePrecision = "fp32") -> EngineRecord:
    """Write a graph and check it.

    Raises:
        ExportError: the graph does not compute what its module does.
    """
    path = folder / spec.io.file
    _write(spec, path, precision)
    return _record(path, precision, compare(path, spec.module, *spec.checks, precision=precision))


def export_quantized_backbone(
    backbone: BackboneModel, folder: Path, precision: EnginePrecision, images: Tensor, optimizer: ModelOpt
) -> EngineRecord:
    """Write a backbone that Model Optimizer quantizes to int8 or fp8 for TensorRT, and check it.

    Args:
        images: pixels (B, S, S, 3) uint8 that show how large activations become.

    Raises:
        ExportError: the graph does not compute what its module does.
        ModelOptError: it could not be quantized.
    """
    assert precision in ("fp8", "int8")
    spec = backbone_spec(backbone, images)
    path = folder / spec.io.file
    _write(spec, path, "fp32")
    optimizer.quantize(path, precision, {PIXEL_VALUES: images.numpy()})
    return _record(path, precision, compare(path, backbone, (images[:1],), precision="fp8"))


def _write(spec: GraphSpec, path: Path, precision: EnginePrecision) -> None:
    """Write a graph with its weights, or with references to those of the graph that owns them."""
    model = trace(spec)
    if precision == "int8":  # such a graph has operators of ONNX Runtime's own anyway
        fuse_attention(model)
        quantize(model)
    elif precision in ("fp16", "bf16"):
        feeds = [
            dict(zip(spec.io.input_names, (value.numpy() for value in inputs), strict=True))
            for inputs in spec.calibration
        ]
        convert_to_half(model, precision, measure_ranges(model, feeds))
    if spec.weights_from is None:
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
    else:
        share_weights(model, path.with_name(spec.weights_from))
        onnx_ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)


def _record(path: Path, precision: EnginePrecision, max_error: float) -> EngineRecord:
    return EngineRecord(file=path.name, precision=precision, opset=OPSET, max_error=max_error)
