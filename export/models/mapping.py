"""Mapping networks: a vector becomes soft tokens, embeddings that a language model reads as if they were words.

Module names are those of the published state dicts (published-system.md, sections 18 and 20), so they load as they are.
Shapes: R regions, D vector width, E decoder width, S soft tokens, C tokens that carry the vector, T = C + S.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_HEADS, PUBLISHED_LAYERS = 8, 8
_MLP_RATIO = 2


@dataclass(frozen=True)
class MappingConfig:
    """The numbers of a mapping network.

    Attributes:
        vector_width: D.
        embed_dim: E.
        soft_tokens: S.
        carrier_tokens: C; 0 for one without attention.
    """

    vector_width: int
    embed_dim: int
    soft_tokens: int
    carrier_tokens: int = 0
    num_layers: int = PUBLISHED_LAYERS
    num_heads: int = PUBLISHED_HEADS


class MappingNetwork(nn.Module):
    """Makes vectors (R, D) soft tokens (R, S, E)."""

    config: MappingConfig


class MlpMapping(MappingNetwork):
    """Two linear layers, with tanh and half the width between them."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        hidden, width = config.embed_dim * config.soft_tokens // 2, config.embed_dim * config.soft_tokens
        self.model = nn.Sequential(nn.Linear(config.vector_width, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self, vectors: Tensor) -> Tensor:
        mapped: Tensor = self.model(vectors)
        return mapped.unflatten(-1, (self.config.soft_tokens, self.config.embed_dim))


class TransformerMapping(MappingNetwork):
    """A transformer over C tokens made of the vector and S learned ones; the latter come out as the soft tokens."""

    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.config = config
        self.linear = nn.Linear(config.vector_width, config.carrier_tokens * config.embed_dim)
        self.prefix_const = nn.Parameter(torch.zeros(config.soft_tokens, config.embed_dim))
        self.transformer = _Transformer(config)

    def forward(self, vectors: Tensor) -> Tensor:
        carriers = self.linear(vectors).unflatten(-1, (self.config.carrier_tokens, self.config.embed_dim))
        learned = self.prefix_const.expand(carriers.shape[0], -1, -1)
        x: Tensor = self.transformer(torch.cat([carriers, learned], dim=1))
        return x[:, self.config.carrier_tokens :]


class _Transformer(nn.Module):
    def __init__(self, config: MappingConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(MappingBlock(config.embed_dim, config.num_heads) for _ in range(config.num_layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


class MappingBlock(nn.Module):
    """A pre-norm block whose queries, keys and values have no bias, with a ReLU between its wider layers."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width, num_heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Attention(nn.Module):
    """Attention whose keys are the first half of one product, its values the second."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_queries = nn.Linear(width, width, bias=False)
        self.to_keys_values = nn.Linear(width, 2 * width, bias=False)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        query = self.to_queries(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        halves = self.to_keys_values(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        keys, values = halves.unbind(0)
        probs = torch.softmax((query * query.shape[-1] ** -0.5) @ keys.transpose(-1, -2), dim=-1)
        attended: Tensor = self.project((probs @ values).transpose(1, 2).flatten(2))
        return attended


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, _MLP_RATIO * width)
        self.fc2 = nn.Linear(_MLP_RATIO * width, width)

    def forward(self, x: Tensor) -> Tensor:
        mapped: Tensor = self.fc2(F.relu(self.fc1(x)))
        return mapped
