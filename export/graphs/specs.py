"""The graphs of a bundle: each with its module, its contract, and inputs to trace, calibrate and check it with.

Shapes: B images, S input side, R regions, K tokens of the largest region, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel
from export.models.decap_decoder import DecapBeamStep, DecapConfig, DecapStep
from export.models.reencoder import Reencoder
from runtime.bundle.graph_io import (
    IMAGES,
    REENCODER,
    REGION_TOKENS,
    REGIONS,
    GraphIo,
    backbone,
    beam_decoder_step,
    decoder_step,
)

Inputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class GraphSpec:
    """One graph to export.

    Attributes:
        module: what it computes.
        io: its contract; the module takes its inputs and returns its outputs in this order.
        example: inputs to trace the module with.
        dynamic_shapes: of the inputs, as `torch.export` takes them.
        calibration: inputs that show how large its tensors can become.
        samples: inputs like those to come, which the scales of 8-bit products are to suit.
        checks: inputs on which the graph is compared with its module.
        weights_from: the graph in the same folder whose data file holds its weights; None for a file of its own.
    """

    module: nn.Module
    io: GraphIo
    example: Inputs
    dynamic_shapes: tuple[object, ...]
    calibration: Sequence[Inputs]
    checks: Sequence[Inputs]
    samples: Sequence[Inputs] = ()
    weights_from: str | None = None


def backbone_spec(model: BackboneModel, images: Tensor | None = None) -> GraphSpec:
    """Return the graph of a backbone.

    Args:
        images: pixels (B, S, S, 3) uint8 like those to come; without them noise and a pattern have to do.
    """
    size = model.image_size

    def noise(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator),)

    samples: list[Inputs] = [] if images is None else [(image,) for image in images.split(1)]
    return GraphSpec(
        module=model,
        io=backbone(model.numbers.attention_heads > 0),
        example=noise(2, 0),
        dynamic_shapes=({0: torch.export.Dim(IMAGES, min=1)},),
        calibration=[noise(1, 0), (_smooth_image(size),)],
        samples=samples,
        checks=samples[:1] or [noise(1, 1)],
    )


def reencoder_spec(backbone: BackboneModel) -> GraphSpec:
    """Return the graph of the backbone's last block for regions of different sizes."""
    module = Reencoder(backbone).eval()

    def regions(sizes: Sequence[int]) -> Inputs:
        generator = torch.Generator().manual_seed(len(sizes))
        tokens = torch.randn(len(sizes), max(sizes), module.width, generator=generator)
        mask = torch.arange(max(sizes)) < torch.tensor(sizes)[:, None]
        return tokens, mask, mask / mask.sum(dim=1, keepdim=True)

    axes = {0: torch.export.Dim(REGIONS, min=1), 1: torch.export.Dim(REGION_TOKENS, min=1)}
    return GraphSpec(
        module=module,
        io=REENCODER,
        example=regions([5, 3]),
        dynamic_shapes=(axes,) * len(REENCODER.inputs),
        calibration=[regions([7, 1, 4])],
        checks=[regions([7, 1, 4]), regions([1])],
    )


def decap_specs(decoder: DecapStep) -> tuple[GraphSpec, GraphSpec]:
    """Return the graphs of DeCap's greedy and beam steps, checked at the first, a middle and the last position.

    The beam step's weights stay where the greedy step's file has them.
    """
    config = decoder.config
    greedy, beam = decoder_step(config.num_layers), beam_decoder_step(config.num_layers)
    positions = sorted({0, config.max_new_tokens // 2, config.max_new_tokens - 1})
    cases = [_step_inputs(config, 3, position) for position in positions]
    by_row = {0: torch.export.Dim(REGIONS, min=1)}
    shapes: tuple[object, ...] = (by_row, by_row, {}, (by_row,) * (2 * config.num_layers))
    example, beam_step = _step_inputs(config, 2, 1), DecapBeamStep(decoder).eval()
    return (
        GraphSpec(decoder, greedy, example, shapes, cases, cases),
        GraphSpec(beam_step, beam, example, shapes, cases, cases, weights_from=greedy.file),
    )


def _step_inputs(config: DecapConfig, rows: int, position: int) -> Inputs:
    generator = torch.Generator().manual_seed(position)
    entry = (rows, config.num_heads, config.max_new_tokens, config.head_dim)
    past = torch.randn(2 * config.num_layers, *entry, generator=generator).unbind()
    vectors = torch.randn(rows, config.prefix_width, generator=generator)
    input_ids = torch.randint(0, config.text_vocab_size, (rows,), generator=generator)
    return vectors, input_ids, torch.tensor([position]), *past


def _smooth_image(size: int) -> Tensor:
    """Return pixels (1, S, S, 3) that change slowly, whose activations differ from those of noise."""
    ramp = torch.linspace(0, 255, size)
    red, green = ramp[:, None].expand(size, size), ramp[None].expand(size, size)
    return torch.stack([red, green, 255 - red], dim=-1)[None].to(torch.uint8)
