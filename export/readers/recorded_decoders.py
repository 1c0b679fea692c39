"""Recordings of the published decoders as checkpoints: the made-up weights that they were made with.

They say nothing of a backbone, so that of their checkpoints is a made-up one of the same width, one block deep. A
recording of prompts may hold variants, with other settings; ``variant=TAG`` in its name takes one.
See published-system.md, section 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import Checkpoint, CheckpointError, MemorySource
from export.concepts.prompt_source import ConceptPromptSource
from export.concepts.scene_graphs import parse_graph
from export.concepts.table import make_table
from export.models.prompted_decoder import PromptedModel
from export.prompts import EntityPromptSource, make_pieces
from export.readers import clipcap, viecap
from export.readers.clip_bpe import VOCABULARY
from export.readers.decap import decoder_from_state
from export.readers.gpt2_bpe import find_gpt2_bpe
from export.readers.inversion import fold_inversion
from export.readers.prompted import prompted_from_state
from export.readers.seeded import TEXT_SPACE, make_checkpoint, parse
from export.readers.seeded_decoders import (
    GPT2_WIDTH,
    Shapes,
    mlp_mapping_shapes,
    seeded_decap_state,
    seeded_entities,
    seeded_prompted_state,
    seeded_scene_memory,
    seeded_talk2dino,
    transformer_mapping_shapes,
)
from runtime.bundle import DecoderKind

Settings = Mapping[str, Any]

_BACKBONES = {384: "dinov2_vits14", 512: "clip_vitb16", 768: "dinov2_vitb14", 1024: "dinov2_vitl14"}
"""A backbone for each width of vectors."""
_FULL_STOP, _SPACED_FULL_STOP = 13, 764


@dataclass(frozen=True, eq=False)
class RecordedDecoder:
    """What a recording of a decoder says.

    Attributes:
        path: its .json; the .npz lies beside it.
        variant: the tag of the settings that are changed; "" for none.
    """

    path: Path
    contents: Settings
    variant: str = ""

    @property
    def salt(self) -> str:
        """What stands before every weight's name."""
        return str(self.contents["salt"])

    @property
    def width(self) -> int:
        """D, the width of its vectors."""
        return int(self.contents["width"])

    @property
    def settings(self) -> dict[str, Any]:
        """The mapping of the configuration, as its variant has it."""
        return {**self.contents["settings"], **self.contents.get(f"variant.{self.variant}.settings", {})}

    @property
    def variants(self) -> list[str]:
        """The tags of its variants."""
        endings = (key.removeprefix("variant.") for key in self.contents if key.endswith(".settings"))
        return [ending.removesuffix(".settings") for ending in endings]

    def array(self, name: str) -> Tensor:
        """Return an array of the .npz."""
        with np.load(self.path.with_suffix(".npz")) as file:
            return torch.from_numpy(file[name])


def kind_of(contents: Settings) -> str | None:
    """Return which decoder a recording is of; None if it is of none."""
    return next((kind for kind, (marks, _) in _KINDS.items() if all(mark in contents for mark in marks)), None)


def read_recorded_decoder(recorded: RecordedDecoder, name: str) -> Checkpoint:
    """Make the checkpoint that a recording of a decoder was made with.

    Raises:
        CheckpointError: it has no such variant, or is of vectors of an unknown width.
    """
    kind = kind_of(recorded.contents)
    assert kind is not None  # or it is not of a decoder
    if recorded.variant and recorded.variant not in recorded.variants:
        raise CheckpointError(f"{name}: expected a variant of {', '.join(recorded.variants)}, got {recorded.variant!r}")
    return _KINDS[kind][1](recorded, name)


def _read_viecap(recorded: RecordedDecoder, name: str) -> Checkpoint:
    return _with_words(recorded, entity_prompts(recorded, name), "viecap", name)


def _read_meacap(recorded: RecordedDecoder, name: str) -> Checkpoint:
    checkpoint = _with_words(recorded, concept_prompts(recorded, name), "meacap", name)
    return replace(checkpoint, memory=_meacap_memory(recorded, name))


def entity_prompts(recorded: RecordedDecoder, name: str) -> EntityPromptSource:
    """Return the entities of a recording of ViECap."""
    wanted = viecap.read_settings(recorded.settings, name)
    names = sorted(entity.lower().strip() for entity in recorded.contents["entities_file"])
    embeddings = seeded_entities(recorded.salt, names, recorded.width)
    if wanted.disable_all_entities:
        kept = [index for index, entity in enumerate(names) if " " not in entity]
        names, embeddings = [names[index] for index in kept], embeddings[kept]
    pieces = make_pieces(find_gpt2_bpe((), name), names)
    unit = F.normalize(embeddings, dim=-1)
    return EntityPromptSource(unit, pieces, wanted.temperature, wanted.top_k, wanted.threshold)


def concept_prompts(recorded: RecordedDecoder, name: str) -> ConceptPromptSource:
    """Return the concepts of a recording of MeaCap."""
    contents = recorded.contents
    embeddings = dict(zip(contents["concept_strings"], recorded.array("concept_embedding"), strict=True))

    def encode(names: Sequence[str]) -> Tensor:
        return torch.stack([embeddings[one] for one in names])

    graphs = [parse_graph(text) for text in contents["parser_output"]]
    arrays = make_table(graphs, encode)
    pieces = make_pieces(find_gpt2_bpe((), name), arrays.names)
    number = int(recorded.settings.get("memory_caption_num") or contents["memory_caption_num"])
    return ConceptPromptSource(arrays, pieces, number)


def _with_words(
    recorded: RecordedDecoder, prompts: EntityPromptSource | ConceptPromptSource, kind: DecoderKind, name: str
) -> Checkpoint:
    """Return the checkpoint of a decoder with prompts in words; ViECap and MeaCap have the same weights."""
    wanted, contents = viecap.read_settings(recorded.settings, name), recorded.contents
    shapes = transformer_mapping_shapes(
        recorded.width, GPT2_WIDTH, contents["continuous_prompt_length"], contents["clip_project_length"]
    )
    gains = dict(zip((_FULL_STOP, _SPACED_FULL_STOP), contents["eos_gain"], strict=True))
    state = seeded_prompted_state(f"{recorded.salt}viecap/", viecap.MAPPING_PREFIX, shapes, gains=gains)
    rules = wanted.rules(prompts.max_tokens)
    decoder = prompted_from_state(state, kind, viecap.MAPPING_PREFIX, rules, name)
    return replace(_with_decoder(recorded, decoder, name), prompts=prompts, end_tokens=viecap.END_TOKENS)


def _meacap_memory(recorded: RecordedDecoder, name: str) -> MemorySource:
    contents, width = recorded.contents, recorded.width
    captions = list(contents["memory_captions"])
    rows = seeded_scene_memory(recorded.salt, contents["memory_scene"], contents["n_scenes"], width)
    return MemorySource(
        name,
        width,
        lambda: iter([(rows, captions)]),
        normalize=False,
        unit_rows=True,
        projects=False,
    )


def _read_clipcap(recorded: RecordedDecoder, name: str) -> Checkpoint:
    wanted = clipcap.read_settings(recorded.settings, name)
    shapes: Shapes
    if wanted.mapping_type == "mlp":
        shapes = mlp_mapping_shapes(recorded.width, GPT2_WIDTH, wanted.prefix_length)
    else:
        shapes = transformer_mapping_shapes(
            recorded.width, GPT2_WIDTH, wanted.prefix_length, wanted.clip_length, wanted.num_layers
        )
    gains = {_FULL_STOP: recorded.contents["eos_gain"]}
    state = seeded_prompted_state(f"{recorded.salt}clipcap/", clipcap.MAPPING_PREFIX, shapes, gains=gains)
    decoder = prompted_from_state(state, "clipcap", clipcap.MAPPING_PREFIX, wanted.rules, name)
    return replace(_with_decoder(recorded, decoder, name), end_tokens=clipcap.END_TOKENS)


def _read_inversion(recorded: RecordedDecoder, name: str) -> Checkpoint:
    contents = recorded.contents
    state = seeded_decap_state(recorded.salt, contents["prefix_size"], VOCABULARY)
    for name_of_bias in (key for key in state if key.endswith("c_attn.bias")):
        state[name_of_bias].zero_()  # as recorded
    layer = seeded_talk2dino(recorded.salt, contents["clip_width"], recorded.width)
    backbone = _BACKBONES[recorded.width]
    seeded = parse(f"seeded:{backbone},size=28,depth=1,memory={contents['n_memory']},salt={recorded.salt}")
    decoder = decoder_from_state(fold_inversion(state, layer, name), VOCABULARY, name)
    return replace(make_checkpoint(seeded, name), decoder=decoder)


def _with_decoder(recorded: RecordedDecoder, decoder: PromptedModel, name: str) -> Checkpoint:
    """Return a checkpoint of a decoder, without a bank, and of a small backbone for vectors of its width."""
    if recorded.width not in _BACKBONES:
        known = ", ".join(map(str, _BACKBONES))
        raise CheckpointError(f"{name}: width: expected one of {known}, got {recorded.width}")
    backbone = _BACKBONES[recorded.width]
    size = 32 if backbone.endswith("16") else 28
    made = make_checkpoint(parse(f"seeded:{backbone},size={size},depth=1,memory=0"), name)
    return replace(made, text_space=TEXT_SPACE, decoder=decoder, tokenizer=find_gpt2_bpe((), name), notes=())


_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[RecordedDecoder, str], Checkpoint]]] = {
    "viecap": (("entities_file", "settings"), _read_viecap),
    "meacap": (("memory_captions", "parser_output", "settings"), _read_meacap),
    "inversion": (("clip_width", "prefix_size"), _read_inversion),
    "clipcap": (("eos_gain", "settings"), _read_clipcap),
}
"""By kind: what its recordings have, and how their checkpoints are made; the first that fits."""
