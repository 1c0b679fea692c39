"""Decoders with a prompt: a mapping network beside a whole GPT-2 (published-system.md, sections 18 and 20)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.gpt2 import Gpt2
from export.models.mapping import MappingConfig, MappingNetwork, MlpMapping, TransformerMapping
from export.models.prompted_decoder import (
    PUBLISHED_HEAD_WIDTH,
    CaptionRules,
    Gpt2Config,
    PromptedModel,
)
from export.readers.layouts import depth_of
from export.readers.weight_files import weight
from runtime.bundle import DecoderKind

_GPT, _HEAD = "gpt.", "lm_head.weight"
_WTE, _WPE = "transformer.wte.weight", "transformer.wpe.weight"
_MASK_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")  # attention masks that old versions of GPT-2 stored

StateDict = Mapping[str, Tensor]


def prompted_from_state(
    state: StateDict, kind: DecoderKind, mapping_prefix: str, rules: CaptionRules, source: str
) -> PromptedModel:
    """Return the decoder of a state dict; widths, lengths and layers are read off the weights.

    Args:
        mapping_prefix: what the names of the mapping network begin with.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or GPT-2 has too few positions.
    """
    parts = {_GPT: dict[str, Tensor](), mapping_prefix: dict[str, Tensor]()}
    for name, value in state.items():
        prefix = next((one for one in parts if name.startswith(one)), None)
        if prefix is None:
            raise CheckpointError(f"{source}: {name} is not a weight of this architecture")
        parts[prefix][name.removeprefix(prefix)] = value
    language_model = {name: value for name, value in parts[_GPT].items() if not _MASK_BUFFERS.search(name)}
    width = weight(language_model, _WTE, source).shape[1]
    mapping = _read_mapping(parts[mapping_prefix], width, f"{source}: {mapping_prefix}*")
    gpt, config = _read_gpt2(language_model, mapping, rules, f"{source}: {_GPT}*")
    return PromptedModel(kind, mapping, gpt, config, rules).eval()


def _read_mapping(state: dict[str, Tensor], width: int, source: str) -> MappingNetwork:
    if "prefix_const" in state:
        linear = weight(state, "linear.weight", source)
        config = MappingConfig(
            vector_width=linear.shape[1],
            embed_dim=width,
            soft_tokens=len(state["prefix_const"]),
            carrier_tokens=len(linear) // width,
            num_layers=depth_of(state, "transformer.layers"),
        )
        mapping: MappingNetwork = TransformerMapping(config)
    else:
        first, last = (weight(state, f"model.{index}.weight", source) for index in (0, 2))
        mapping = MlpMapping(MappingConfig(first.shape[1], width, soft_tokens=len(last) // width))
    load_weights(mapping, state, source)
    return mapping


def _read_gpt2(
    state: dict[str, Tensor], mapping: MappingNetwork, rules: CaptionRules, source: str
) -> tuple[Gpt2, Gpt2Config]:
    embedding, positions = weight(state, _WTE, source), weight(state, _WPE, source)
    head = state.pop(_HEAD, embedding)
    if head.shape != embedding.shape or not head.equal(embedding):
        raise CheckpointError(f"{source}: {_HEAD}: expected the values of {_WTE}, to which it is tied")
    width = embedding.shape[1]
    if width % PUBLISHED_HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: {_WTE}: expected a width in heads of {PUBLISHED_HEAD_WIDTH}, got {width} columns"
        )
    used = rules.max_prompt_tokens(mapping.config.soft_tokens) + rules.max_new_tokens - 1
    if used > len(positions):
        raise CheckpointError(
            f"{source}: {_WPE}: expected at least {used} positions, those of the longest prompt and "
            f"{rules.max_new_tokens} tokens, got {len(positions)}"
        )
    state[_WPE] = positions[:used]
    config = Gpt2Config(
        embed_dim=width,
        num_layers=depth_of(state, "transformer.h"),
        num_heads=width // PUBLISHED_HEAD_WIDTH,
        vocab_size=len(embedding),
        positions=used,
    )
    gpt = Gpt2(width, config.num_layers, config.num_heads, config.vocab_size, used)
    load_weights(gpt, state, source)
    return gpt, config
