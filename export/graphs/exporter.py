"""Torch modules to ONNX files, each checked against its module before anyone uses it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnx_ir

from export.graphs.attention_fusion import fuse_attention
from export.graphs.half_precision import convert_to_half
from export.graphs.qdq import quantize_products
from export.graphs.shared_weights import share_weights
from export.graphs.specs import GraphSpec, Inputs
from export.graphs.tracing import trace
from export.graphs.value_ranges import measure_columns, measure_ranges
from export.graphs.verification import compare
from export.graphs.weight_compression import compress_weights, normed_inputs
from export.graphs.weight_layout import transpose_weights
from runtime.backends.base import Device
from runtime.bundle import EngineRecord, GraphPrecision


def export_graph(
    spec: GraphSpec, folder: Path, precision: GraphPrecision = "fp32", device: Device = "cpu"
) -> EngineRecord:
    """Write a graph and check it.

    Args:
        precision: of its products; for "int8" and "fp8" the spec has samples.
        device: what is to run it; its weights are stored as kernels there read them.

    Raises:
        ExportError: the graph does not compute what its module does.
    """
    path = folder / spec.io.file
    opset = _write(spec, path, precision, device)
    max_error = compare(path, spec.module, *spec.checks, precision=precision)
    return EngineRecord(file=path.name, precision=precision, opset=opset, max_error=max_error)


def _write(spec: GraphSpec, path: Path, precision: GraphPrecision, device: Device) -> int:
    """Write a graph with its weights, or with references to those of the graph that owns them; return its opset."""
    model = trace(spec)
    if precision == "int8_weights":
        feeds = _feeds(spec, spec.samples)
        compress_weights(model, measure_columns(model, normed_inputs(model), feeds) if spec.samples else None)
    elif precision != "fp32":
        sample_ranges = _measured(model, spec, spec.samples) if spec.samples else {}
        ranges = _largest(_measured(model, spec, spec.calibration), sample_ranges)
        stays_float32 = precision == "int8" and device == "cpu"
        if not stays_float32:
            convert_to_half(model, "bf16" if precision == "bf16" else "fp16", ranges)
        if precision in ("int8", "fp8"):
            quantize_products(model, precision, sample_ranges, device)
        if stays_float32:
            fuse_attention(model, ranges)
    if device == "cuda":
        transpose_weights(model)
    if spec.weights_from is None:
        onnx_ir.save(model, path, external_data=f"{path.name}.data")
    else:
        share_weights(model, path.with_name(spec.weights_from))
        onnx_ir.save(model, path)
    onnx.checker.check_model(str(path), full_check=True)
    return model.opset_imports[""]


def _measured(model: onnx_ir.Model, spec: GraphSpec, cases: Sequence[Inputs]) -> dict[str, float]:
    """Return the largest absolute values of a graph's tensors on some of its spec's inputs, by name."""
    return measure_ranges(model, _feeds(spec, cases))


def _feeds(spec: GraphSpec, cases: Sequence[Inputs]) -> Iterator[Mapping[str, npt.NDArray[Any]]]:
    names = spec.io.input_names
    return (dict(zip(names, (one.numpy() for one in case), strict=True)) for case in cases)


def _largest(ranges: Mapping[str, float], others: Mapping[str, float]) -> dict[str, float]:
    return {name: max(value, others.get(name, 0.0)) for name, value in ranges.items()}
