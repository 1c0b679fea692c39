"""Decoders of published size with made-up weights, for speed and for tests: no download, no meaning.

Shapes: M rows of a memory, D width of vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import MemorySource
from export.concepts.prompt_source import ConceptPromptSource
from export.concepts.scene_graphs import parse_graph
from export.concepts.table import make_table
from export.models.prompted_decoder import CaptionRules, PromptedModel
from export.prompts import EntityPromptSource, make_pieces
from export.readers import clipcap, viecap
from export.readers.clip_bpe import VOCABULARY, find_merges, placeholder_clip_bpe, read_clip_bpe
from export.readers.configured_decoder import DecoderParts
from export.readers.decap import decoder_from_state
from export.readers.gpt2_bpe import find_gpt2_bpe
from export.readers.prompted import prompted_from_state
from export.readers.seeded_decoders import (
    GPT2_WIDTH,
    mlp_mapping_shapes,
    seeded_decap_state,
    seeded_entities,
    seeded_prompted_state,
    seeded_scene_memory,
    transformer_mapping_shapes,
)
from runtime.bundle import DecoderKind

_SOFT_TOKENS = 10
_ENTITIES = 80
_CAPTIONS_OF_A_SCENE = 20
_PUBLISHED: Mapping[str, object] = {"using_hard_prompt": True, "soft_prompt_first": True, "threshold": 0.4}
"""The published settings of ViECap and MeaCap that are not its defaults."""

_WITHOUT_VOCABULARY = (
    'captions will read "<17> <4>": CLIP\'s vocabulary is not installed (pip install --no-deps open_clip_torch); '
    "ids and scores are the same"
)


def _decap(salt: str, width: int, memory_rows: int, source: str) -> DecoderParts:  # noqa: ARG001  # as all
    merges = find_merges()
    decoder = decoder_from_state(seeded_decap_state(salt, width, VOCABULARY), VOCABULARY, source)
    if merges is None:
        return DecoderParts(decoder, placeholder_clip_bpe(), notes=(_WITHOUT_VOCABULARY,))
    return DecoderParts(decoder, read_clip_bpe(merges))


def _viecap(salt: str, width: int, memory_rows: int, source: str) -> DecoderParts:  # noqa: ARG001  # as all
    tokenizer, settings = find_gpt2_bpe((), source), viecap.read_settings(_PUBLISHED, source)
    names = [f"thing {number}" for number in range(_ENTITIES)]
    embeddings = F.normalize(seeded_entities(salt, names, width), dim=-1)
    pieces = make_pieces(tokenizer, names)
    prompts = EntityPromptSource(embeddings, pieces, settings.temperature, settings.top_k, settings.threshold)
    decoder = _worded("viecap", salt, width, settings.rules(prompts.max_tokens), source)
    return DecoderParts(decoder, tokenizer, viecap.END_TOKENS, prompts)


def _meacap(salt: str, width: int, memory_rows: int, source: str) -> DecoderParts:
    tokenizer, settings = find_gpt2_bpe((), source), viecap.read_settings(_PUBLISHED, source)
    scenes = [row // _CAPTIONS_OF_A_SCENE for row in range(max(memory_rows, _CAPTIONS_OF_A_SCENE))]
    arrays = make_table(
        [parse_graph(f"( thing{one} , is , red ) , ( thing{one} , near , wall )") for one in scenes], _one_hot
    )
    prompts = ConceptPromptSource(arrays, make_pieces(tokenizer, arrays.names), num_captions=5)
    decoder = _worded("meacap", salt, width, settings.rules(prompts.max_tokens), source)
    captions = [f"A red thing{one} near a wall." for one in scenes]
    memory = _scene_memory(salt, scenes, captions, width, source)
    return DecoderParts(decoder, tokenizer, viecap.END_TOKENS, prompts, memory)


def _worded(kind: DecoderKind, salt: str, width: int, rules: CaptionRules, source: str) -> PromptedModel:
    """Return a decoder whose prompts have words; ViECap and MeaCap have the same weights."""
    shapes = transformer_mapping_shapes(width, GPT2_WIDTH, _SOFT_TOKENS, _SOFT_TOKENS)
    state = seeded_prompted_state(f"{salt}viecap/", viecap.MAPPING_PREFIX, shapes)
    return prompted_from_state(state, kind, viecap.MAPPING_PREFIX, rules, source)


def _scene_memory(salt: str, scenes: Sequence[int], captions: Sequence[str], width: int, source: str) -> MemorySource:
    blocks = [(seeded_scene_memory(salt, scenes, max(scenes) + 1, width), list(captions))]
    return MemorySource(source, width, lambda: iter(blocks), normalize=False, unit_rows=True, projects=False)


def _one_hot(names: Sequence[str]) -> Tensor:
    return torch.eye(len(names))


def _clipcap(salt: str, width: int, memory_rows: int, source: str) -> DecoderParts:  # noqa: ARG001  # as all
    shapes = mlp_mapping_shapes(width, GPT2_WIDTH, _SOFT_TOKENS)
    state = seeded_prompted_state(f"{salt}clipcap/", clipcap.MAPPING_PREFIX, shapes)
    rules = clipcap.read_settings({}, source).rules
    decoder = prompted_from_state(state, "clipcap", clipcap.MAPPING_PREFIX, rules, source)
    return DecoderParts(decoder, find_gpt2_bpe((), source), clipcap.END_TOKENS)


MADE_UP_DECODERS: Mapping[str, Callable[[str, int, int, str], DecoderParts]] = {
    "decap": _decap,
    "viecap": _viecap,
    "meacap": _meacap,
    "clipcap": _clipcap,
}
"""By kind: makes one of (salt, D, M, the name of the checkpoint)."""
