"""Decoders with a prompt: a mapping network beside a whole GPT-2 (published-system.md, sections 18 and 20)."""

from __future__ import annotations

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
from export.readers.gpt2_weights import WPE, WTE, read_gpt2_state
from export.readers.layouts import depth_of
from export.readers.weight_files import weight
from runtime.bundle import DecoderKind

_GPT = "gpt."

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
    unknown = next((name for name in state if not name.startswith((_GPT, mapping_prefix))), None)
    if unknown is not None:
        raise CheckpointError(f"{source}: {unknown} is not a weight of this architecture")
    language_model = read_gpt2_state(state, _GPT, source)
    width = language_model[WTE].shape[1]
    named = {name.removeprefix(mapping_prefix): one for name, one in state.items() if name.startswith(mapping_prefix)}
    mapping = _read_mapping(named, width, f"{source}: {mapping_prefix}*")
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
    embedding, positions = state[WTE], weight(state, WPE, source)
    width = embedding.shape[1]
    if width % PUBLISHED_HEAD_WIDTH:
        raise CheckpointError(
            f"{source}: {WTE}: expected a width in heads of {PUBLISHED_HEAD_WIDTH}, got {width} columns"
        )
    used = rules.max_prompt_tokens(mapping.config.soft_tokens) + rules.max_new_tokens - 1
    if used > len(positions):
        raise CheckpointError(
            f"{source}: {WPE}: expected at least {used} positions, those of the longest prompt and "
            f"{rules.max_new_tokens} tokens, got {len(positions)}"
        )
    state[WPE] = positions[:used]
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
