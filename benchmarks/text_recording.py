"""Compares text towers with recordings: their made-up weights, by published names, and what they made of token ids.

See published-system.md, sections 8 and 15.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.difference import Difference, relative_difference
from benchmarks.reference_recording import Recording
from export.checkpoint import CheckpointError
from export.readers import DEMO_CONFIG
from export.readers.backbone_family import Shapes
from export.readers.layouts import in_each_block, linear_shapes, norm_shapes
from export.readers.seeded import seeded_weight
from export.readers.seeded_weights import normal
from export.text_spaces import TEXT_SPACES
from export.text_towers import TEXT_TOWERS
from export.text_towers.base import TOKENIZER_FILE, TowerRequest

_IDS, _EMBEDDING = "text.ids", "text.embedding"
_CLIP_VOCABULARY, _CLIP_POSITIONS, _SIGLIP2_POSITIONS = 49408, 77, 64


def openai_shapes(width: int, depth: int, prefix: str = "") -> Shapes:
    """Return the shapes of a text tower of CLIP by OpenAI's names, embeddings being as wide as its blocks."""
    block: Shapes = {
        **norm_shapes("ln_1", width),
        "attn.in_proj_weight": (3 * width, width),
        "attn.in_proj_bias": (3 * width,),
        **linear_shapes("attn.out_proj", width, width),
        **norm_shapes("ln_2", width),
        **linear_shapes("mlp.c_fc", width, 4 * width),
        **linear_shapes("mlp.c_proj", 4 * width, width),
    }
    shapes: Shapes = {
        "token_embedding.weight": (_CLIP_VOCABULARY, width),
        "positional_embedding": (_CLIP_POSITIONS, width),
        "text_projection": (width, width),
        **norm_shapes("ln_final", width),
        **in_each_block("transformer.resblocks.", depth, block),
    }
    return {f"{prefix}{name}": shape for name, shape in shapes.items()}


def dinotxt_shapes(width: int, depth: int) -> Shapes:
    """Return the shapes of a text tower of DINO.txt by its published names."""
    block: Shapes = {
        **norm_shapes("attention_norm", width),
        "attention.qkv.weight": (3 * width, width),
        **linear_shapes("attention.proj", width, width),
        **norm_shapes("ffn_norm", width),
        **linear_shapes("feed_forward.fc1", width, 4 * width),
        **linear_shapes("feed_forward.fc2", 4 * width, width),
    }
    return {
        "backbone.token_embedding.weight": (_CLIP_VOCABULARY, width),
        "backbone.positional_embedding": (_CLIP_POSITIONS, width),
        "head.linear_projection.weight": (2048, width),
        **norm_shapes("backbone.ln_final", width),
        **in_each_block("backbone.blocks.", depth, block),
    }


def siglip2_shapes(width: int, depth: int, vocabulary: int) -> Shapes:
    """Return the shapes of a text tower of SigLIP 2 by transformers' names."""
    block: Shapes = {
        **norm_shapes("layer_norm1", width),
        **norm_shapes("layer_norm2", width),
        **linear_shapes("mlp.fc1", width, 4 * width),
        **linear_shapes("mlp.fc2", 4 * width, width),
    }
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        block |= linear_shapes(f"self_attn.{part}", width, width)
    shapes: Shapes = {
        "embeddings.token_embedding.weight": (vocabulary, width),
        "embeddings.position_embedding.weight": (_SIGLIP2_POSITIONS, width),
        **norm_shapes("final_layer_norm", width),
        **linear_shapes("head", width, width),
        **in_each_block("encoder.layers.", depth, block),
    }
    return {f"text_model.{name}": shape for name, shape in shapes.items()}


@dataclass(frozen=True)
class RecordedTower:
    """The text tower of a kind of recording.

    Attributes:
        arch: a regular expression of what the recording has.
        space: its text space.
        shapes: of its weights by published names: (number of blocks, rows of its vocabulary).
        is_folder: whether it is a folder of transformers; else it is a file of weights.
    """

    arch: str
    space: str
    shapes: Callable[[int, int], Shapes]
    is_folder: bool = False


_TOWERS = (
    RecordedTower(r"vit_base_patch16_clip_224\.openai", "clip-b16", lambda depth, _: openai_shapes(512, depth)),
    RecordedTower(r"vit_base_patch32_clip_224\.openai", "clip-b32", lambda depth, _: openai_shapes(512, depth)),
    RecordedTower("DenseCLIP ViT-B/16.*", "denseclip-b16", lambda depth, _: openai_shapes(512, depth, "text_encoder.")),
    RecordedTower(".*dinotxt.*", "dinotxt-patch", lambda depth, _: dinotxt_shapes(1280, depth)),
    RecordedTower(
        "google/siglip2-base.*", "siglip2-b", lambda depth, rows: siglip2_shapes(768, depth, rows), is_folder=True
    ),
)


def compare_text(recording: Recording) -> Iterator[Difference]:
    """Compare the embeddings of recorded token ids, where a recording has them, with those of its text tower.

    Raises:
        CheckpointError: the tower is of a kind that is not known here.
    """
    if _EMBEDDING not in recording.arrays:
        return
    settings = recording.settings
    known = next((one for one in _TOWERS if re.fullmatch(one.arch, str(settings["arch"]))), None)
    said = re.match(r"(\d+) blocks", str(settings.get("text", "")))
    if known is None or said is None:
        raise CheckpointError(f"{recording.name}: text: expected the number of blocks of a known text tower")
    cut = re.search(r"vocabulary cut to (\d+) rows", settings["text"])
    weights = made_up_tower(settings, known.shapes(int(said[1]), int(cut[1]) if cut else _CLIP_VOCABULARY))
    ids = torch.from_numpy(recording.arrays[_IDS].astype(np.int64))
    with tempfile.TemporaryDirectory() as folder:
        path = (_write_folder if known.is_folder else _write_file)(weights, Path(folder))
        tokenizer = DEMO_CONFIG.parent / TOKENIZER_FILE  # for its being there: ids are given
        request = TowerRequest(known.space, str(path), tokenizer)
        embeddings = TEXT_TOWERS[TEXT_SPACES[known.space].tower].load(request).embed_ids(ids)
    yield Difference("text", vectors=relative_difference(embeddings, recording.arrays[_EMBEDDING]))


def made_up_tower(settings: Mapping[str, Any], shapes: Shapes) -> dict[str, Tensor]:
    """Return the made-up weights of a recording's text tower by their published names."""
    seed = f"{settings.get('salt', '')}{settings.get('text_prefix', settings['prefix'])}"
    factors = {end: factor for end, factor in settings.get("scales", {}).items() if isinstance(factor, float)}
    weights = {}
    for name, shape in shapes.items():
        value = seeded_weight(name, normal(f"{seed}{name}", shape))
        for end, factor in factors.items():
            if fnmatchcase(name, end):
                value = value * np.float32(factor)
        weights[name] = torch.from_numpy(value)
    return weights


def _write_file(weights: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "tower.pth"
    torch.save(weights, path)
    return path


def _write_folder(weights: dict[str, Tensor], folder: Path) -> Path:
    """Write a text tower of SigLIP 2 as transformers saves it."""
    from transformers import SiglipTextConfig

    rows, width = weights["text_model.embeddings.token_embedding.weight"].shape
    depth = len({name.split(".")[3] for name in weights if ".layers." in name})
    SiglipTextConfig(
        vocab_size=rows,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        num_attention_heads=width // 64,
        max_position_embeddings=_SIGLIP2_POSITIONS,
        projection_size=width,
        bos_token_id=None,  # the defaults lie beyond a vocabulary that was cut
        eos_token_id=None,
    ).save_pretrained(folder)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
