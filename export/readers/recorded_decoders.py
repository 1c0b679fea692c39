"""Recordings of the published decoders as checkpoints: the made-up weights that they were made with.

They say nothing of a backbone, so that of their checkpoints is a made-up one of the same width, one block deep.
See published-system.md, section 22.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import Checkpoint, CheckpointError
from export.models.prompted_decoder import PromptedModel
from export.prompts import EntityPromptSource, make_pieces
from export.readers import viecap
from export.readers.gpt2_bpe import find_gpt2_bpe
from export.readers.prompted import prompted_from_state
from export.readers.seeded import make_checkpoint, parse
from export.readers.seeded_decoders import seeded_entities, seeded_prompted_state, transformer_mapping_shapes

Settings = Mapping[str, Any]

_BACKBONES = {384: "dinov2_vits14", 512: "clip_vitb16", 768: "dinov2_vitb14", 1024: "dinov2_vitl14"}
"""A small backbone for each width of vectors."""
_WIDTH = 768
"""Of GPT-2 small."""


def kind_of(settings: Settings) -> str | None:
    """Return which decoder a recording is of; None if it is of none."""
    return next((kind for kind, (marks, _) in _KINDS.items() if all(mark in settings for mark in marks)), None)


def read_recorded_decoder(settings: Settings, name: str) -> Checkpoint:
    """Make the checkpoint that a recording of a decoder was made with.

    Raises:
        CheckpointError: it is of no known decoder, or of vectors of an unknown width.
    """
    kind = kind_of(settings)
    if kind is None:
        known = ", ".join(_KINDS)
        raise CheckpointError(f"{name}: expected the recording of a backbone or of a decoder of {known}")
    return _KINDS[kind][1](settings, name)


def entity_prompts(settings: Settings, changes: Settings, name: str) -> EntityPromptSource:
    """Return the entities of a recording of ViECap, with some settings changed."""
    wanted = viecap.read_settings({**settings["settings"], **changes}, name)
    names = sorted(entity.lower().strip() for entity in settings["entities_file"])
    embeddings = seeded_entities(settings["salt"], names, settings["width"])
    if wanted.disable_all_entities:
        kept = [index for index, entity in enumerate(names) if " " not in entity]
        names, embeddings = [names[index] for index in kept], embeddings[kept]
    pieces = make_pieces(find_gpt2_bpe((), name), names)
    unit = F.normalize(embeddings, dim=-1)
    return EntityPromptSource(unit, pieces, wanted.temperature, wanted.top_k, wanted.threshold)


def _read_viecap(settings: Settings, name: str) -> Checkpoint:
    prompts = entity_prompts(settings, {}, name)
    wanted = viecap.read_settings(settings["settings"], name)
    decoder = prompted_from_state(
        _state(settings), "viecap", viecap.MAPPING_PREFIX, wanted.rules(prompts.max_tokens), name
    )
    return replace(_with_decoder(settings, decoder, name), prompts=prompts)


def _state(settings: Settings) -> dict[str, Tensor]:
    shapes = transformer_mapping_shapes(
        settings["width"],
        _WIDTH,
        settings["continuous_prompt_length"],
        settings["clip_project_length"],
        num_layers=8,
    )
    gains = dict(zip((13, 764), settings["eos_gain"], strict=True))
    return seeded_prompted_state(f"{settings['salt']}viecap/", viecap.MAPPING_PREFIX, shapes, gains=gains)


def _with_decoder(settings: Settings, decoder: PromptedModel, name: str) -> Checkpoint:
    """Return a checkpoint of a decoder, without a bank, and of a small backbone for vectors of its width."""
    width = settings["width"]
    if width not in _BACKBONES:
        raise CheckpointError(f"{name}: width: expected one of {', '.join(map(str, _BACKBONES))}, got {width}")
    patch = 16 if width == 512 else 14
    seeded = parse(f"seeded:{_BACKBONES[width]},size={2 * patch},depth=1,memory=0")
    return replace(
        make_checkpoint(seeded, name),
        decoder=decoder,
        tokenizer=find_gpt2_bpe((), name),
        end_tokens=viecap.END_TOKENS,
    )


_KINDS: Mapping[str, tuple[tuple[str, ...], Callable[[Settings, str], Checkpoint]]] = {
    "viecap": (("entities_file", "settings"), _read_viecap),
}
"""By kind: what its recordings have, and how their checkpoints are made."""
