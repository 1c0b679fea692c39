"""Torch modules to ONNX files, each checked against its module before anyone uses it."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir
import onnxruntime
import torch
from torch import Tensor, nn

from export.graphs.attention_fusion import fuse_attention
from export.graphs.half_precision import cast, emulated
from export.graphs.int8 import quantize
from export.graphs.model_optimizer import ModelOpt
from export.graphs.value_ranges import measure_ranges
from export.models.decap_decoder import BeamDecoderStep, DecoderConfig, DecoderStep
from export.models.dinov2 import Backbone
from export.models.reencoder import Reencoder
from runtime.bundle import EnginePrecision, EngineRecord
from runtime.errors import PatchcaptionError

OPSET = 20
"""The newest that TensorRT 10.3 (JetPack 6) takes whole."""

LOG_PROBABILITIES = "log_probabilities"

_ALLOWED_DIFFERENCE: dict[EnginePrecision, float] = {
    "fp32": 1e-4,
    "fp16": 0.02,
    "bf16": 0.1,
    "int8": 0.2,
    "fp8": 0.5,
}
"""Relative. In float32 another order of sums differs by about 1e-6 a layer, a wrong graph by far more. Outputs differ
by up to 0.001 in float16, 0.02 in bfloat16, 0.06 in int8 and 0.3 in fp8, those of a wrong graph by about 1."""

_ALLOWED_LOG_PROBABILITY: dict[EnginePrecision, float] = {
    "fp32": 1e-4,
    "fp16": 0.2,
    "bf16": 1.0,
    "int8": 2.0,
    "fp8": 2.0,
}
"""Of the best token, as it is. In int8 it is the difference of logits of 100 that are right to 0.02 of that; another
token than the best of 50,000 is at about -10."""

_LARGEST_IN_A_GRAPH = 1024
"""Bytes: what is smaller, shapes and constants for the most part, lies in the graph itself and not in its data."""


class ExportError(PatchcaptionError):
    """A graph that could not be made or does not compute what its module does."""


def export_backbone(
    backbone: Backbone,
    folder: Path,
    precision: EnginePrecision = "fp32",
    images: Tensor | None = None,
    modelopt: ModelOpt | None = None,
) -> EngineRecord:
    """Writes backbone.onnx (pixels (B, S, S, 3) uint8 -> tokens (B, T, D), cls_scores (B, H, N)) and checks it.

    Args:
        images: pixels that show how large activations become, beside noise and a pattern.
        modelopt: quantizes it to fp8 or int8 for TensorRT, by ``images``.

    Raises:
        ExportError: the graph does not compute what the module does.
        ModelOptError: it could not be quantized.
    """
    size = backbone.config.size
    by_image = torch.export.Dim("images", min=1)

    def pixels(count: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator),)

    path = folder / "backbone.onnx"
    names = ["pixels"], ["tokens", "cls_scores"]
    seen = [] if images is None else [(image,) for image in images.split(1)]
    typical = [pixels(1, 0), (_smooth_image(size),), *seen]
    if modelopt is None or precision not in ("fp8", "int8"):
        _write(backbone, pixels(2, 0), path, *names, ({0: by_image},), precision, typical)
        return _record(path, precision, compare(path, backbone, pixels(1, 1), precision=precision))
    assert images is not None
    _write(backbone, pixels(2, 0), path, *names, ({0: by_image},), "fp32", typical)
    modelopt.quantize(path, precision, {"pixels": images.numpy()})
    return _record(path, precision, compare(path, backbone, seen[0], precision="fp8"))


def export_reencoder(backbone: Backbone, folder: Path, precision: EnginePrecision = "fp32") -> EngineRecord:
    """Writes reencoder.onnx, the backbone's last block for regions of different sizes, and checks it."""
    module = Reencoder(backbone).eval()
    by_region = {0: torch.export.Dim("regions", min=1), 1: torch.export.Dim("largest", min=1)}

    def inputs(sizes: Sequence[int]) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(len(sizes))
        tokens = torch.randn(len(sizes), max(sizes), module.width, generator=generator)
        present = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        return tokens, present, present / present.sum(dim=1, keepdim=True)

    path = folder / "reencoder.onnx"
    names = ["tokens", "present", "weights"]
    shapes = (by_region,) * len(names)
    _write(module, inputs([5, 3]), path, names, ["vectors"], shapes, precision, [inputs([7, 1, 4])])
    return _record(path, precision, compare(path, module, inputs([7, 1, 4]), inputs([1]), precision=precision))


def export_decoder(decoder: DecoderStep, folder: Path, precision: EnginePrecision = "fp32") -> EngineRecord:
    """Writes decoder.onnx, one `DecoderStep.forward`, and checks it at the first, a middle and the last step."""
    outputs = ["next_tokens", LOG_PROBABILITIES]
    return _export_step(decoder, decoder.config, folder / "decoder.onnx", outputs, precision)


def export_beam_decoder(decoder: DecoderStep, folder: Path, precision: EnginePrecision = "fp32") -> EngineRecord:
    """Writes beam_decoder.onnx, one `BeamDecoderStep.forward`, and checks it as `export_decoder` does.

    Its weights stay where `export_decoder` has put them: it refers to the data of the decoder.onnx in ``folder``, which
    has the same precision.
    """
    module = BeamDecoderStep(decoder).eval()
    path, stored_in = folder / "beam_decoder.onnx", folder / "decoder.onnx"
    return _export_step(module, decoder.config, path, ["all_log_probabilities"], precision, stored_in)


def _export_step(
    module: nn.Module,
    config: DecoderConfig,
    path: Path,
    first_outputs: list[str],
    precision: EnginePrecision,
    stored_in: Path | None = None,
) -> EngineRecord:
    """Writes and checks one step of a decoder, whose other outputs are the cache's new entries."""
    places = [f"{kind}_{layer}" for layer in range(config.layers) for kind in ("key", "value")]

    def inputs(rows: int, step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        cache = torch.randn(
            len(places), rows, config.heads, config.steps, config.head_width, generator=generator
        ).unbind()
        vectors = torch.randn(rows, config.prefix_width, generator=generator)
        tokens = torch.randint(0, config.text_vocabulary, (rows,), generator=generator)
        return vectors, tokens, torch.tensor([step]), *cache

    input_names = ["vectors", "tokens", "step", *(f"past_{place}" for place in places)]
    output_names = [*first_outputs, *(f"new_{place}" for place in places)]
    by_row = {0: torch.export.Dim("regions", min=1)}
    shapes: tuple[object, ...] = (by_row, by_row, {}, (by_row,) * len(places))
    cases = [inputs(3, step) for step in sorted({0, config.steps // 2, config.steps - 1})]
    _write(module, inputs(2, 1), path, input_names, output_names, shapes, precision, cases, stored_in)
    return _record(path, precision, compare(path, module, *cases, precision=precision))


def compare(path: Path, module: nn.Module, *cases: Sequence[Tensor], precision: EnginePrecision = "fp32") -> float:
    """The largest difference between a graph's outputs and its module's over some cases of inputs: of the best
    log-probabilities as it is, of all else relative to the largest value of the output. Whole numbers, the best tokens,
    are compared in float32 only: in less the second best may be the best, and the log-probability is as near.

    bfloat16, which ONNX Runtime does not run on a CPU, is float32 rounded to it here.

    Raises:
        ExportError: it is larger than rounding to ``precision`` explains, or whole numbers are not the same.
    """
    session = _session(path, precision)
    largest = 0.0
    for inputs in cases:
        feeds = {
            node.name: value.half().numpy() if node.type == "tensor(float16)" else value.numpy()
            for node, value in zip(session.get_inputs(), inputs, strict=True)
        }
        with torch.inference_mode():
            made = module(*inputs)
        expected = (made,) if isinstance(made, Tensor) else made
        for node, got, want in zip(session.get_outputs(), session.run(None, feeds), expected, strict=True):
            if precision != "fp32" and got.dtype.kind == "i":
                continue
            difference = _difference(node.name, got, want.numpy())
            allowed = (_ALLOWED_LOG_PROBABILITY if node.name == LOG_PROBABILITIES else _ALLOWED_DIFFERENCE)[precision]
            if not difference <= allowed:
                raise ExportError(
                    f"{path.name}: output {node.name} differs from its module by {difference:.1e}; "
                    f"at most {allowed:.0e} is rounding"
                )
            largest = max(largest, difference)
    return largest


def _session(path: Path, precision: EnginePrecision) -> onnxruntime.InferenceSession:
    if precision != "bf16":
        return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # it would undo the rounding
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        copy = Path(folder) / path.name
        onnx_ir.save(emulated(onnx_ir.load(path)), copy, external_data=f"{copy.name}.data")
        return onnxruntime.InferenceSession(str(copy), options, providers=["CPUExecutionProvider"])


def _smooth_image(size: int) -> Tensor:
    """Pixels (1, S, S, 3) of slow changes, whose activations are other than those of noise."""
    ramp = torch.linspace(0, 255, size)
    red, green = ramp[:, None].expand(size, size), ramp[None].expand(size, size)
    return torch.stack([red, green, 255 - red], dim=-1)[None].to(torch.uint8)


def _difference(name: str, got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    if want.dtype.kind == "i":
        return float((got != want).any())
    # A log-probability near 0 is the difference of two large numbers; its size says nothing of its rounding. That of
    # the least likely of all does.
    largest_value = 1.0 if name == LOG_PROBABILITIES else np.abs(want).max()
    return float(np.abs(got - want).max() / largest_value)


def _write(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...],
    precision: EnginePrecision,
    typical: Sequence[tuple[Tensor, ...]],
    stored_in: Path | None = None,
) -> None:
    """Writes a graph with its weights, or with references to those of the graph ``stored_in`` in the same folder.

    Args:
        typical: inputs that show how large its tensors become.
    """
    with _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            input_names=input_names,
            output_names=output_names,
            opset_version=OPSET,
            dynamic_shapes=dynamic_shapes,
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    assert program is not None  # only the old exporter returns nothing
    _forget_sources(program.model)
    if precision == "int8":  # such a graph has operators of ONNX Runtime's own anyway
        fuse_attention(program.model)
        quantize(program.model)
    elif precision in ("fp16", "bf16"):
        feeds = [dict(zip(input_names, (value.numpy() for value in case), strict=True)) for case in typical]
        cast(program.model, precision, measure_ranges(program.model, feeds))
    if stored_in is None:
        program.save(str(path), external_data=True)
    else:
        _refer_to_weights(program.model, stored_in)
        onnx_ir.save(program.model, path)
    onnx.checker.check_model(str(path), full_check=True)


def _refer_to_weights(model: onnx_ir.Model, stored_in: Path) -> None:
    """Makes each weight of ``model`` a reference to the same bytes in the data file of the graph ``stored_in``.

    Raises:
        ExportError: they are not there.
    """
    others = [value.const_value for value in onnx_ir.load(stored_in).graph.initializers.values()]
    stored = {_fingerprint(weight): weight for weight in others if isinstance(weight, onnx_ir.ExternalTensor)}
    for value in model.graph.initializers.values():
        weight = value.const_value
        found = stored.get(_fingerprint(weight))
        if found is not None:
            value.const_value = onnx_ir.ExternalTensor(
                found.location,
                found.offset,
                found.length,
                found.dtype,
                shape=found.shape,
                name=value.name,
                base_dir=found.base_dir,
            )
        elif weight.nbytes > _LARGEST_IN_A_GRAPH:
            raise ExportError(f"{stored_in.name}.data: has no weight {value.name} of these values; export both anew")


def _fingerprint(weight: Any) -> tuple[object, ...]:
    return weight.dtype, tuple(weight.shape), hashlib.sha256(weight.tobytes()).digest()


def _forget_sources(model: onnx_ir.Model) -> None:
    """Drops what the exporter notes of the Python code behind each node, paths of this machine among it."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for part in (*model.graph, *model.graph.initializers.values(), *model.graph.inputs, *model.graph.outputs):
        part.metadata_props.clear()
        part.doc_string = None
    for node in model.graph:
        for value in node.outputs:
            value.metadata_props.clear()


def _record(path: Path, precision: EnginePrecision, largest_difference: float) -> EngineRecord:
    return EngineRecord(file=path.name, precision=precision, opset=OPSET, largest_difference=largest_difference)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own progress and internals; a user of this command has no use for them."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
