"""CLIP's text towers: transformers' folders, and the files of OpenAI, open_clip, DenseCLIP and RegionCLIP.

See published-system.md, section 15.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch.nn.functional as F
from tokenizers import Tokenizer

from export.models.vit import Activation
from export.readers.backbone_family import StateDict
from export.readers.clip_bpe import pad_tokens, read_clip_bpe, read_tokenizer
from export.readers.layouts import OPENAI_BLOCK, Layout
from export.readers.pretrained import identify
from export.readers.weight_files import read_weights, weight
from export.text_towers.base import TOKENIZER_FILE, TextTower, TowerRequest, embed_on, find_file, move_to
from export.text_towers.pretrained import load_pretrained
from export.text_towers.transformer import TextTransformer, text_state, text_transformer_from_state

CONTEXT = 77
"""The most tokens of a text, start and end included; longer texts are cut."""

_OPENAI = Layout(
    marker="text_projection",
    names={
        "token_embedding": "token_embedding",
        "positional_embedding": "pos_embed",
        "ln_final": "norm",
        "text_projection": "head.weight",
    },
    block="transformer.resblocks.#.",
    block_names=OPENAI_BLOCK,
    ignored=("logit_scale",),
)


def load_clip(request: TowerRequest, activation: Activation = "quick_gelu") -> TextTower:
    """Load a tower of CLIP.

    Args:
        activation: that of a tower which is one file; a folder's configuration says which it is.

    Raises:
        CheckpointError: the tower or its vocabulary is nowhere, or cannot be read.
    """
    return _load_file(request, activation) if request.is_file else _load_folder(request)


def load_open_clip(request: TowerRequest) -> TextTower:
    """Load a tower of open_clip's ViT-H, whose activation is the exact GELU; errors are those of `load_clip`."""
    return load_clip(request, "gelu")


def load_denseclip(request: TowerRequest) -> TextTower:
    """Load a tower of DenseCLIP, whose embeddings have unit length; errors are those of `load_clip`."""
    tower = load_clip(request)
    return replace(tower, embed_ids=lambda ids: F.normalize(tower.embed_ids(ids), dim=-1))


def _load_folder(request: TowerRequest) -> TextTower:
    from transformers import CLIPTextModelWithProjection

    model = load_pretrained(CLIPTextModelWithProjection, request)
    tokenizer = clip_tokenizer(request, model.config.max_position_embeddings)
    return TextTower(
        tokenize=partial(pad_tokens, tokenizer),
        embed_ids=embed_on(request.device, lambda ids: model(ids).text_embeds),
        width=model.config.projection_dim,
        text_space=str(request.text_space),
        identity=identify(request.weights, model, tokenizer),
    )


def _load_file(request: TowerRequest, activation: Activation) -> TextTower:
    path = find_file(request)
    return with_clip_tokens(clip_text_transformer(read_weights(path), activation, str(path)), request)


def clip_text_transformer(state: StateDict, activation: Activation, source: str) -> TextTransformer:
    """Return the text tower of a state dict by OpenAI's names, which may hold the whole of CLIP.

    Raises:
        CheckpointError: it is of another layout, or a weight is missing, unknown or wrongly shaped.
    """
    ours = text_state(state, _OPENAI, source)
    ours["head.weight"] = weight(ours, "head.weight", source).T  # stored as (W, D)
    return text_transformer_from_state(ours, activation, source)


def with_clip_tokens(tower: TextTransformer, request: TowerRequest) -> TextTower:
    """Return a tower of CLIP's tokens.

    Raises:
        CheckpointError: there is no vocabulary, or no such device.
    """
    model = move_to(request.device, tower)
    tokenizer = clip_tokenizer(request, model.num_positions)
    return TextTower(
        tokenize=partial(pad_tokens, tokenizer),
        embed_ids=embed_on(request.device, model),
        width=model.output_dim,
        text_space=str(request.text_space),
        identity=identify(request.weights, model, tokenizer),
    )


def clip_tokenizer(request: TowerRequest, num_positions: int) -> Tokenizer:
    """Return CLIP's tokenizer, or that of the tower's folder; it cuts texts, so that the end token comes last.

    Raises:
        CheckpointError: there is none, or the file is no tokenizer.
    """
    file, beside = request.tokenizer_file, Path(request.weights) / TOKENIZER_FILE
    if file is None and beside.is_file():
        file = beside
    tokenizer = read_clip_bpe() if file is None else read_tokenizer(file)
    tokenizer.enable_truncation(min(CONTEXT, num_positions))
    return tokenizer
