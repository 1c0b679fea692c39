"""Initial weights of the demo's backbone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from export.demo.model_config import BACKBONE_CONFIG
from export.models.dinov2 import Dinov2Backbone
from export.models.vit import VitAttention


def init_backbone(backbone: Dinov2Backbone) -> None:
    """Set initial weights with which a ViT this small learns from few images.

    Position embeddings are as strong as patch embeddings, and queries start equal to keys, so that from the first step
    patches attend to those near and like them (after "Mimetic Initialization of Self-Attention Layers", 2023).
    """
    for name, parameter in backbone.named_parameters():
        if name.endswith("gamma"):
            nn.init.constant_(parameter, 0.5)
        elif name.endswith(("token", "tokens")) or parameter.ndim == 2:
            nn.init.trunc_normal_(parameter, std=0.02)
    with torch.no_grad():
        backbone.pos_embed[0, 1:] = 0.5 * sinusoidal_positions(BACKBONE_CONFIG.embed_dim, BACKBONE_CONFIG.grid)
        for attention in (module for module in backbone.modules() if isinstance(module, VitAttention)):
            query, key, _ = attention.qkv.weight.chunk(3)
            nn.init.trunc_normal_(query, std=BACKBONE_CONFIG.embed_dim**-0.5)
            key.copy_(query)


def sinusoidal_positions(width: int, grid: int) -> Tensor:
    """Return the sines and cosines of each patch's column and row (grid * grid, width)."""
    frequencies = 10.0 ** -torch.linspace(0, 1, width // 4)
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)
    across = waves[None].expand(grid, -1, -1)
    return torch.cat([across, across.transpose(0, 1)], dim=2).flatten(0, 1)
