"""The demo's text encoder: captions to the backbone's space.

Shapes: M captions, L tokens of a caption, D width.
"""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from export.checkpoint import END_TOKEN
from export.demo.checkpoint_files import TALK2DINO_FILE, TEXT_TOWER_FOLDER, to_half_precision
from export.demo.model_config import BACKBONE_CONFIG, TEXT_WIDTH
from export.readers.clip_bpe import START_TOKEN, token_id
from export.readers.weight_files import read_pickle


class TextEncoder(nn.Module):
    """A CLIP text tower, then Talk2DINO's two linear layers (published-system.md, section 5)."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        config = CLIPTextConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=TEXT_WIDTH,
            intermediate_size=4 * TEXT_WIDTH,
            projection_dim=TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=32,
            bos_token_id=token_id(tokenizer, START_TOKEN),
            eos_token_id=token_id(tokenizer, END_TOKEN),
            pad_token_id=token_id(tokenizer, END_TOKEN),
        )
        self.tower = CLIPTextModelWithProjection(config)
        self.linear_layer = nn.Linear(TEXT_WIDTH, BACKBONE_CONFIG.embed_dim)
        self.hidden_layer = nn.Linear(BACKBONE_CONFIG.embed_dim, BACKBONE_CONFIG.embed_dim)

    def forward(self, token_ids: Tensor) -> Tensor:
        """Return the embeddings (M, D) of captions given as token ids (M, L); they are not normalised."""
        return self.hidden_layer(torch.tanh(self.linear_layer(self.tower(token_ids).text_embeds)))

    def save(self, folder: Path) -> None:
        """Write the tower in transformers' format, and Talk2DINO under its published names."""
        copy.deepcopy(self.tower).half().save_pretrained(folder / TEXT_TOWER_FOLDER)
        state = {
            f"{prefix}.{name}": value
            for prefix, layer in self._talk2dino().items()
            for name, value in layer.state_dict().items()
        }
        torch.save(to_half_precision(state), folder / TALK2DINO_FILE)

    def load(self, folder: Path) -> None:
        """Load the files that `save` has written."""
        self.tower = CLIPTextModelWithProjection.from_pretrained(folder / TEXT_TOWER_FOLDER, dtype=torch.float32)
        state = read_pickle(folder / TALK2DINO_FILE)
        for prefix, layer in self._talk2dino().items():
            layer.load_state_dict({name: state[f"{prefix}.{name}"] for name in ("weight", "bias")})

    def _talk2dino(self) -> dict[str, nn.Linear]:
        """Return Talk2DINO's layers by their published names."""
        return {"linear_layer": self.linear_layer, "hidden_layers.0": self.hidden_layer}
