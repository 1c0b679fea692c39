"""A causal text transformer, for towers that are published as a file of weights (published-system.md, section 15).

Module names are those of `export.models.vit`.

Shapes: m captions, L tokens, P positions, W width of the blocks, D width of the embeddings, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint import CheckpointError, load_weights
from export.models.vit import Activation, BlockConfig, VitAttention, VitBlock
from export.readers.backbone_family import StateDict
from export.readers.layouts import Layout, depth_of, to_our_names
from export.readers.weight_files import read_weights, weight
from export.text_towers.base import TowerRequest, find_file

_HEAD_WIDTH = 64
_EPS = 1e-5


class CausalAttention(VitAttention):
    """Multi-head self-attention of each token to itself and those before it."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return attended values (m, H, L, d) of all three (m, H, L, d)."""
        return F.scaled_dot_product_attention(query, key, value, mask, is_causal=True)


class CausalBlock(VitBlock):
    """A pre-norm block with causal attention."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__(config)
        self.attn = CausalAttention(config.width, config.num_heads, config.qkv_bias)


class TextTransformer(nn.Module):
    """A text tower: embeddings are those of the end token, which has the largest id."""

    def __init__(self, block: BlockConfig, depth: int, vocabulary: int, num_positions: int, output_dim: int) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(vocabulary, block.width)
        self.pos_embed = nn.Parameter(torch.zeros(num_positions, block.width))
        self.blocks = nn.ModuleList(CausalBlock(block) for _ in range(depth))
        self.norm = nn.LayerNorm(block.width, eps=_EPS)
        self.head = nn.Linear(block.width, output_dim, bias=False)

    @property
    def num_positions(self) -> int:
        """P, the most tokens of a text."""
        return self.pos_embed.shape[0]

    @property
    def output_dim(self) -> int:
        """D."""
        return self.head.out_features

    def forward(self, ids: Tensor) -> Tensor:
        """Return embeddings (m, D), not normalised, of token ids (m, L), L <= P."""
        x = self.token_embedding(ids) + self.pos_embed[: ids.shape[1]]
        for block in self.blocks:
            x, _ = block(x)
        end = ids.argmax(dim=1)
        return self.head(self.norm(x[torch.arange(len(ids), device=ids.device), end]))


def read_state(request: TowerRequest, layout: Layout) -> tuple[StateDict, str]:
    """Return the weights in a tower's file by our names, and the file's name.

    Raises:
        CheckpointError: there is no such file, or it is of another layout.
    """
    path = find_file(request)
    return text_state(read_weights(path), layout, str(path)), str(path)


def text_state(state: StateDict, layout: Layout, source: str) -> StateDict:
    """Return the weights of the text tower in a state dict, which may hold more, by our names.

    Raises:
        CheckpointError: it is of another layout.
    """
    if layout.prefix_in(state) is None:
        raise CheckpointError(
            f"{source}: expected the weights of a text tower, {layout.marker} among them; transformers' are read from "
            "their folder"
        )
    return to_our_names(state, layout, source)


def text_transformer_from_state(state: StateDict, activation: Activation, source: str) -> TextTransformer:
    """Return the tower of a state dict by our names.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    tokens, positions, head = (
        weight(state, name, source) for name in ("token_embedding.weight", "pos_embed", "head.weight")
    )
    block = BlockConfig(
        width=tokens.shape[-1],
        num_heads=tokens.shape[-1] // _HEAD_WIDTH,
        activation=activation,
        norm_eps=_EPS,
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        has_layer_scale=False,
    )
    with torch.device("meta"):
        tower = TextTransformer(block, depth_of(state), tokens.shape[0], positions.shape[0], head.shape[0])
    load_weights(tower, state, source)
    return tower
