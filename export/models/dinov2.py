"""DINOv2 (with registers) as one graph: 8-bit pixels in, normed tokens and cls attention logits out.

Module names are facebookresearch/dinov2's, so published state dicts load as they are (published-system.md, section 2).

Shapes: B images, S input side, G = S / patch size, N = G * G patches, T = 1 cls + registers + N tokens, D width,
H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.vit import (
    BlockConfig,
    PatchEmbed,
    PixelNorm,
    VitBlock,
    cls_attention_logits,
    resize_grid,
    resize_grid_by_factor,
)
from runtime.bundle import TokenLayout
from runtime.bundle.manifest import Rgb

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Dinov2Config:
    """The numbers of a DINOv2 backbone at one input size.

    Attributes:
        num_registers: register tokens.
        attention_heads: heads that the cls attention is split into, which the published system chooses by itself
            (published-system.md, section 3).
        swiglu_width: hidden width of gated feed-forward layers, which ViT-g has; None for plain ones.
        has_layer_scale: whether its blocks have one; those of DINO, its predecessor, have none.
    """

    embed_dim: int
    depth: int
    num_heads: int
    num_registers: int
    image_size: int
    attention_heads: int
    patch_size: int = 14
    swiglu_width: int | None = None
    has_layer_scale: bool = True
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD

    @property
    def block(self) -> BlockConfig:
        """The numbers of each block."""
        return BlockConfig(
            self.embed_dim,
            self.num_heads,
            hidden_width=self.swiglu_width,
            gate=None if self.swiglu_width is None else "joint",
            has_layer_scale=self.has_layer_scale,
        )

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads

    @property
    def grid(self) -> int:
        """G, patches per side."""
        return self.image_size // self.patch_size

    @property
    def token_layout(self) -> TokenLayout:
        """The order of the tokens: cls, registers, patches."""
        return TokenLayout.with_cls(self.num_registers, self.grid)


class Dinov2Backbone(BackboneModel):
    """A DINOv2 backbone for one input size; its position embedding is already of that size."""

    family = "dinov2"

    def __init__(self, config: Dinov2Config) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, width))
        if config.num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.patch_embed = PatchEmbed(width, config.patch_size)
        self.blocks = nn.ModuleList(VitBlock(config.block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pixel_norm = PixelNorm(config.mean, config.std)

    @property
    def numbers(self) -> BackboneNumbers:
        config = self.config
        return BackboneNumbers(
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.embed_dim,
            output_dim=config.embed_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            attention_heads=config.attention_heads,
            tokens=config.token_layout,
            mean=config.mean,
            std=config.std,
        )

    @property
    def last_block(self) -> nn.Module:
        return self.blocks[-1]

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed tokens (B, T, D) and cls attention logits (B, H, N) of RGB pixels (B, S, S, 3) uint8.

        The logits are the scaled products of the cls query with each patch key in the last block, before any softmax
        (published-system.md, section 3).
        """
        patches = self.patch_embed(self.pixel_norm(pixel_values))
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([cls, patches], dim=1) + self.pos_embed
        if self.config.num_registers:  # inserted after the position embedding: registers have none
            registers = self.register_tokens.expand(patches.shape[0], -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x, qkv = block(x)
        config = self.config
        scale = config.head_dim**-0.5  # the blocks' own, whatever the split: as published
        logits = cls_attention_logits(qkv, config.attention_heads, config.token_layout.num_global, scale)
        return self.norm(x), logits


def resize_position_embedding(pos_embed: Tensor, grid: int, has_registers: bool) -> Tensor:
    """Return a position embedding (1, 1 + g * g, D) resized to another grid: (1, 1 + grid * grid, D).

    Bicubic, by DINOv2's two rules (published-system.md, section 2): models with registers resize to the grid with
    antialiasing, models without by a scale factor with an offset of 0.1 and without antialiasing.
    """
    return resize_grid(pos_embed, grid) if has_registers else resize_grid_by_factor(pos_embed, grid)
