"""Torch modules to ONNX files, each checked against its module before anyone uses it."""

from __future__ import annotations

import contextlib
import io
import logging
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

from export.graphs.backbone import Backbone
from export.graphs.decoder import DecoderStep
from export.graphs.reencoder import Reencoder
from runtime.bundle import EngineRecord
from runtime.errors import PatchcaptionError

OPSET = 20
"""The newest that TensorRT 10.3 (JetPack 6) takes whole."""

LOG_PROBABILITIES = "log_probabilities"

_ALLOWED_DIFFERENCE = 1e-4
"""Relative, in float32: another order of sums differs by about 1e-6 a layer, a wrong graph by far more."""


class ExportError(PatchcaptionError):
    """A graph that could not be made or does not compute what its module does."""


def export_backbone(backbone: Backbone, folder: Path) -> EngineRecord:
    """Writes backbone.onnx (pixels (B, S, S, 3) uint8 -> tokens (B, T, D), cls_scores (B, H, N)) and checks it."""
    size = backbone.config.size
    images = torch.export.Dim("images", min=1)

    def pixels(count: int, seed: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator),)

    path = folder / "backbone.onnx"
    _write(backbone, pixels(2, 0), path, ["pixels"], ["tokens", "cls_scores"], ({0: images},))
    return _record(path, compare(path, backbone, pixels(1, 1)))


def export_reencoder(backbone: Backbone, folder: Path) -> EngineRecord:
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
    _write(module, inputs([5, 3]), path, names, ["vectors"], (by_region,) * len(names))
    return _record(path, compare(path, module, inputs([7, 1, 4]), inputs([1])))


def export_decoder(decoder: DecoderStep, folder: Path) -> EngineRecord:
    """Writes decoder.onnx, one `DecoderStep.forward`, and checks it at the first, a middle and the last step."""
    config = decoder.config
    regions = torch.export.Dim("regions", min=1)
    places = [f"{kind}_{layer}" for layer in range(config.layers) for kind in ("key", "value")]

    def inputs(rows: int, step: int) -> tuple[Tensor, ...]:
        generator = torch.Generator().manual_seed(step)
        cache = torch.randn(
            len(places), rows, config.heads, config.steps, config.head_width, generator=generator
        ).unbind()
        vectors = torch.randn(rows, config.prefix_width, generator=generator)
        tokens = torch.randint(0, config.text_vocabulary, (rows,), generator=generator)
        return vectors, tokens, torch.tensor([step]), *cache

    path = folder / "decoder.onnx"
    input_names = ["vectors", "tokens", "step", *(f"past_{place}" for place in places)]
    output_names = ["next_tokens", LOG_PROBABILITIES, *(f"new_{place}" for place in places)]
    by_row = {0: regions}
    _write(decoder, inputs(2, 1), path, input_names, output_names, (by_row, by_row, {}, (by_row,) * len(places)))
    steps = sorted({0, config.steps // 2, config.steps - 1})
    return _record(path, compare(path, decoder, *(inputs(3, step) for step in steps)))


def compare(path: Path, module: nn.Module, *cases: Sequence[Tensor]) -> float:
    """The largest difference between a graph's outputs and its module's over some cases of inputs: of log-probabilities
    as it is, of all else relative to the largest value of the output.

    Raises:
        ExportError: it is larger than rounding explains, or outputs of whole numbers are not the same.
    """
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for inputs in cases:
        feeds = {node.name: value.numpy() for node, value in zip(session.get_inputs(), inputs, strict=True)}
        with torch.inference_mode():
            made = module(*inputs)
        expected = (made,) if isinstance(made, Tensor) else made
        for node, got, want in zip(session.get_outputs(), session.run(None, feeds), expected, strict=True):
            difference = _difference(node.name, got, want.numpy())
            if not difference <= _ALLOWED_DIFFERENCE:
                raise ExportError(
                    f"{path.name}: output {node.name} differs from its module by {difference:.1e}; "
                    f"at most {_ALLOWED_DIFFERENCE:.0e} is rounding"
                )
            largest = max(largest, difference)
    return largest


def _difference(name: str, got: npt.NDArray[Any], want: npt.NDArray[Any]) -> float:
    if want.dtype.kind == "i":
        return float((got != want).any())
    # A log-probability near 0 is the difference of two large numbers; its size says nothing of its rounding.
    largest_value = 1.0 if name == LOG_PROBABILITIES else np.abs(want).max()
    return float(np.abs(got - want).max() / largest_value)


def _write(
    module: nn.Module,
    inputs: tuple[Tensor, ...],
    path: Path,
    input_names: list[str],
    output_names: list[str],
    dynamic_shapes: tuple[object, ...],
) -> None:
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
    program.save(str(path), external_data=True)
    onnx.checker.check_model(str(path), full_check=True)


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


def _record(path: Path, largest_difference: float) -> EngineRecord:
    return EngineRecord(file=path.name, precision="fp32", opset=OPSET, largest_difference=largest_difference)


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
