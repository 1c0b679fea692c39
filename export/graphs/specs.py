"""The graphs of a bundle: each with its module, its contract, and inputs to trace, calibrate and check it with.

Shapes: B images, S input side, R regions, K tokens of the largest region, T tokens, D width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel, DecoderModel
from export.models.decap_decoder import DecapBeamStep, DecapConfig, DecapStep
from export.models.prompted_decoder import Gpt2Config, PromptedModel
from export.models.reencoder import Reencoder
from runtime.bundle import EngineName
from runtime.bundle.graph_io import (
    IMAGES,
    MAPPING,
    PROMPT_TOKENS,
    REENCODER,
    REGION_TOKENS,
    REGIONS,
    GraphIo,
    backbone,
    beam_decoder_step,
    decoder_step,
    prefill,
)
from runtime.image import with_alpha

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
        images: pixels (B, S, S, 3) uint8 like those to come; without them noise and a pattern have to do. Where the
            backbone has an alpha plane, all of each image is marked.
    """
    size, has_alpha = model.image_size, model.numbers.has_alpha
    channels = 3 + has_alpha

    def noise(count: int, seed: int) -> Inputs:
        generator = torch.Generator().manual_seed(seed)
        return (torch.randint(0, 256, (count, size, size, channels), dtype=torch.uint8, generator=generator),)

    smooth = _smooth_image(size)
    if has_alpha:
        images, smooth = None if images is None else with_alpha(images), with_alpha(smooth)
    samples: list[Inputs] = [] if images is None else [(image,) for image in images.split(1)]
    return GraphSpec(
        module=model,
        io=backbone(model.numbers.attention_heads > 0, channels),
        example=noise(2, 0),
        dynamic_shapes=({0: torch.export.Dim(IMAGES, min=1)},),
        calibration=[noise(1, 0), (smooth,)],
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


def decoder_specs(decoder: DecoderModel, vectors: Tensor | None = None) -> dict[EngineName, GraphSpec]:
    """Return the graphs of a decoder, in the order in which they are to be exported: owners of weights first.

    Args:
        vectors: (R, D) like those to come, for the samples of a decoder whose prompt is the vector.
    """
    if isinstance(decoder, PromptedModel):
        return prompted_specs(decoder)
    assert isinstance(decoder, DecapStep)
    greedy, beam = decap_specs(decoder, vectors)
    return {"decoder": greedy, "beam_decoder": beam}


def decap_specs(decoder: DecapStep, vectors: Tensor | None = None) -> tuple[GraphSpec, GraphSpec]:
    """Return the graphs of DeCap's greedy and beam steps, checked at the first, a middle and the last position.

    The beam step's weights stay where the greedy step's file has them. The samples are steps of the captions of half of
    ``vectors`` (R, D); the graphs are then checked on some of the others', as they hold for steps of captions alone.
    """
    config = decoder.config
    greedy, beam = decoder_step(config.num_layers), beam_decoder_step(config.num_layers)
    positions = sorted({0, config.max_new_tokens // 2, config.max_new_tokens - 1})
    cases = [_step_inputs(config, 3, position) for position in positions]
    by_row = {0: torch.export.Dim(REGIONS, min=1)}
    shapes: tuple[object, ...] = (by_row, by_row, {}, (by_row,) * (2 * config.num_layers))
    example, beam_step = _step_inputs(config, 2, 1), DecapBeamStep(decoder).eval()
    samples: list[Inputs] = []
    if vectors is not None:
        samples, cases = list(_sample_steps(decoder, vectors[::2])), list(_sample_steps(decoder, vectors[1::2]))
    return (
        GraphSpec(decoder, greedy, example, shapes, cases, cases, samples),
        GraphSpec(beam_step, beam, example, shapes, cases, cases, samples, weights_from=greedy.file),
    )


@torch.no_grad()
def _sample_steps(decoder: DecapStep, vectors: Tensor) -> Iterator[Inputs]:
    """Yield the inputs of every third step of the captions of vectors (R, D)."""
    config, rows = decoder.config, len(vectors)
    entry = (rows, config.num_heads, config.max_new_tokens, config.head_dim)
    past = [torch.zeros(entry) for _ in range(2 * config.num_layers)]
    ids = torch.zeros(rows, dtype=torch.int64)
    for position in range(config.max_new_tokens):
        inputs = vectors, ids, torch.tensor([position]), *past
        if position % 3 == 0:
            yield tuple(one.clone() for one in inputs)
        ids, _, *present = decoder(*inputs)
        for entries, new in zip(past, present, strict=True):
            entries[:, :, position] = new[:, :, 0]


def _step_inputs(config: DecapConfig, rows: int, position: int) -> Inputs:
    generator = torch.Generator().manual_seed(position)
    entry = (rows, config.num_heads, config.max_new_tokens, config.head_dim)
    past = torch.randn(2 * config.num_layers, *entry, generator=generator).unbind()
    vectors = torch.randn(rows, config.prefix_width, generator=generator)
    input_ids = torch.randint(0, config.text_vocab_size, (rows,), generator=generator)
    return vectors, input_ids, torch.tensor([position]), *past


def prompted_specs(decoder: PromptedModel) -> dict[EngineName, GraphSpec]:
    """Return the graphs of a decoder with a prompt; the weights of all its steps lie where the greedy step's do."""
    config, greedy = decoder.config, decoder_step(decoder.config.num_layers, has_prompt=True)
    mapping = decoder.mapping.config
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, mapping.vector_width, generator=generator)
    by_row = {0: torch.export.Dim(REGIONS, min=1)}
    tokens = {**by_row, 1: torch.export.Dim(PROMPT_TOKENS, min=1)}
    prompts = [_prompt_inputs(decoder, lengths) for lengths in ((1,), (4, 2, 7), (decoder.max_prompt_tokens,))]
    steps = [_prompted_inputs(config, 3, filled) for filled in (1, config.positions // 2, config.positions - 1)]
    shapes: tuple[object, ...] = (by_row, by_row, by_row, (by_row,) * (2 * config.num_layers))
    return {
        "mapping": GraphSpec(decoder.mapping, MAPPING, (vectors[:2],), (by_row,), [(vectors,)], [(vectors,)]),
        "decoder": GraphSpec(decoder.step, greedy, _prompted_inputs(config, 2, 1), shapes, steps, steps),
        "prefill": GraphSpec(
            decoder.prefill,
            prefill(config.num_layers),
            _prompt_inputs(decoder, (3, 2)),
            (by_row, tokens, tokens, tokens),
            prompts,
            prompts,
            weights_from=greedy.file,
        ),
        "beam_decoder": GraphSpec(
            decoder.beam_step,
            beam_decoder_step(config.num_layers, has_prompt=True),
            _prompted_inputs(config, 2, 1),
            shapes,
            steps,
            steps,
            weights_from=greedy.file,
        ),
    }


def _prompt_inputs(decoder: PromptedModel, lengths: Sequence[int]) -> Inputs:
    """Return the inputs of `Prefill` for prompts of some lengths, soft tokens first, the rest by chance."""
    config, soft_tokens, most = decoder.config, decoder.mapping.config.soft_tokens, max(lengths)
    generator = torch.Generator().manual_seed(most)
    soft_prompt = torch.randn(len(lengths), soft_tokens, config.embed_dim, generator=generator)
    ids = torch.randint(config.vocab_size + soft_tokens, (len(lengths), most), generator=generator)
    ids[:, : soft_tokens // 2] = config.vocab_size + torch.arange(soft_tokens)[: min(soft_tokens // 2, most)]
    position_ids = torch.arange(most) - most + torch.tensor(lengths)[:, None]
    return soft_prompt, ids, position_ids.clamp(min=0), position_ids >= 0


def _prompted_inputs(config: Gpt2Config, rows: int, filled: int) -> Inputs:
    """Return the inputs of a step after so many filled entries of the cache, fewer of which belong to later rows."""
    generator = torch.Generator().manual_seed(filled)
    entry = (rows, config.num_heads, config.positions, config.head_dim)
    past = torch.randn(2 * config.num_layers, *entry, generator=generator).unbind()
    input_ids = torch.randint(0, config.vocab_size, (rows,), generator=generator)
    padding = torch.arange(rows).clamp(max=filled - 1)
    slots = torch.arange(config.positions + 1)
    mask = ((slots < filled) & (slots >= padding[:, None])) | (slots == config.positions)
    return input_ids, filled - padding, mask, *past


def _smooth_image(size: int) -> Tensor:
    """Return pixels (1, S, S, 3) that change slowly, whose activations differ from those of noise."""
    ramp = torch.linspace(0, 255, size)
    red, green = ramp[:, None].expand(size, size), ramp[None].expand(size, size)
    return torch.stack([red, green, 255 - red], dim=-1)[None].to(torch.uint8)
