"""The files of the demo checkpoint, in the published layout but in float16: their names, and how they are written.

Shapes: M captions, K entities, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import yaml
from torch import Tensor

from export.demo import scenes
from export.demo.model_config import BACKBONE_CONFIG, SOFT_TOKENS
from export.readers.memory_hdf5 import CAPTIONS, EMBEDDINGS, TEXT_SPACE

BACKBONE_FILE = "dinov2_vitdemo14_reg4.pth"
TEXT_TOWER_FOLDER = "text_tower"
TALK2DINO_FILE = "talk2dino.pth"
MEMORY_FILE = "memory.h5"
DECODER_FILE = "decoder.pt"
TOKENIZER_FILE = "tokenizer.json"
CONFIG_FILE = "config.yaml"
LOG_FILE = "training.jsonl"
ENTITY_DECODER_FILE = "entity_decoder.pt"
ENTITY_TOKENIZER_FILE = "entity_tokenizer.json"
ENTITIES_FILE = "entities.h5"
ENTITY_CONFIG_FILE = "viecap.yaml"
ENTITY_LOG_FILE = "training_entities.jsonl"


def to_half_precision(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict in float16 on the CPU."""
    return {name: value.detach().cpu().half() for name, value in state.items()}


def write_memory_bank(path: Path, embeddings: Tensor) -> None:
    """Write the embeddings (M, D) of all captions, and the captions, in the published memory's format."""
    with h5py.File(path, "w") as file:
        file.create_dataset("coco_captions-embeddings", data=embeddings.cpu().half().numpy())
        file.create_dataset("coco_captions-text", data=[caption.encode() for caption in scenes.all_captions()])


def write_config(path: Path, memory_rows: int) -> None:
    """Write the Patch-ioner configuration (published-system.md, section 7).

    Its keys `dino_weights` and `tokenizer` are this project's own.
    """
    settings = {
        "decap_weights": DECODER_FILE,
        "prefix_size": BACKBONE_CONFIG.embed_dim,
        "linear_talk2dino": False,
        "support_memory_size": memory_rows,
        "dino_model": "dinov2_vitdemo14_reg",
        "dino_weights": BACKBONE_FILE,
        "normalize": True,
        "kkv_attention": False,
        "projection_type": MEMORY_FILE,
        "resize_dim": BACKBONE_CONFIG.image_size,
        "crop_dim": BACKBONE_CONFIG.image_size,
        "use_talk2dino_project": False,
        "talk2dino_weights": TALK2DINO_FILE,
        "clip_model_name": TEXT_TOWER_FOLDER,
        "tokenizer": TOKENIZER_FILE,
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))


def write_entities(path: Path, names: Sequence[str], embeddings: Tensor, text_space: str) -> None:
    """Write K names and their embeddings (K, D) as `patchcaption build-memory-bank --entities` does."""
    with h5py.File(path, "w") as file:
        file.attrs[TEXT_SPACE] = text_space
        file.create_dataset(f"entities{EMBEDDINGS}", data=embeddings.cpu().half().numpy())
        file.create_dataset(f"entities{CAPTIONS}", data=[name.encode() for name in names])


def write_entity_config(path: Path, first: Path) -> None:
    """Write the configuration of the second decoder: the backbone's keys of the first one's, and ViECap's."""
    settings = yaml.safe_load(first.read_text())
    for key in ("decap_weights", "projection_type"):
        del settings[key]
    settings |= {"support_memory_size": 0, "normalize": False, "tokenizer": ENTITY_TOKENIZER_FILE}
    settings["viecap"] = {
        "weight_path": ENTITY_DECODER_FILE,
        "clip_hidden_size": BACKBONE_CONFIG.embed_dim,
        "continuous_prompt_length": SOFT_TOKENS,
        "clip_project_length": SOFT_TOKENS,
        "language_model": "gpt2",
        "name_of_entities_text": ENTITIES_FILE,
        "temperature": 0.1,  # the published 0.01 is for nouns by the hundred, which lie closer together
        "top_k": 3,
        "threshold": 0.4,
        "using_hard_prompt": True,
        "soft_prompt_first": True,
        "only_hard_prompt": False,
        "using_greedy_search": True,
    }
    path.write_text(yaml.safe_dump(settings, sort_keys=False))
