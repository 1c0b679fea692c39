"""DINOv3 as one graph: 8-bit pixels in, normed tokens and cls attention logits out.

A DINOv2 without a position embedding: queries and keys of patches are rotated in every block, by angles that depend on
where a patch lies (published-system.md, section 11).

Shapes: B images, S input side, G = S / 16, N = G * G patches, T = 1 cls + registers + N tokens, D width, H heads,
d = D / H.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from export.models.vit import BlockConfig, PatchEmbed, PixelNorm, Rotation, VitBlock, cls_attention_logits
from runtime.bundle import TokenLayout

_LONGEST_PERIOD = 100.0
"""The periods rise from 1 towards this, the image being 2 wide and high."""


@dataclass(frozen=True)
class Dinov3Config:
    """The numbers of a DINOv3 backbone at one input size.

    Attributes:
        num_registers: register tokens, which DINOv3 calls storage tokens.
        gated_width: hidden width of gated feed-forward layers, which S+ and H+ have; None for plain ones.
        qkv_bias: whether queries and values have biases; those of keys are always zero.
        rounds_periods: whether the periods of the rotation are rounded to bfloat16.
    """

    embed_dim: int
    depth: int
    num_heads: int
    num_registers: int
    image_size: int
    patch_size: int = 16
    gated_width: int | None = None
    qkv_bias: bool = True
    rounds_periods: bool = False

    @property
    def block(self) -> BlockConfig:
        """The numbers of each block."""
        return BlockConfig(
            self.embed_dim,
            self.num_heads,
            hidden_width=self.gated_width,
            gate=None if self.gated_width is None else "separate",
            norm_eps=1e-5,
            qkv_bias=self.qkv_bias,
        )

    @property
    def head_dim(self) -> int:
        """Width of a head, d."""
        return self.embed_dim // self.num_heads

    @property
    def grid(self) -> int:
        """G, patches per side."""
        return self.image_size // self.patch_size

    @property
    def token_layout(self) -> TokenLayout:
        """The order of the tokens: cls, registers, patches."""
        return TokenLayout.with_cls(self.num_registers, self.grid)


class Dinov3Backbone(BackboneModel):
    """A DINOv3 backbone for one input size, whose rotations are constants of the graph."""

    family = "dinov3"
    rotation_cos: Tensor
    rotation_sin: Tensor

    def __init__(self, config: Dinov3Config) -> None:
        super().__init__()
        self.config = config
        width = config.embed_dim
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, config.num_registers, width))
        self.patch_embed = PatchEmbed(width, config.patch_size)
        self.blocks = nn.ModuleList(VitBlock(config.block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-5)
        self.pixel_norm = PixelNorm(IMAGENET_MEAN, IMAGENET_STD)
        cos, sin = _rotation(config)
        self.register_buffer("rotation_cos", cos, persistent=False)
        self.register_buffer("rotation_sin", sin, persistent=False)

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
            attention_heads=config.num_heads,
            tokens=config.token_layout,
            mean=IMAGENET_MEAN,
            std=IMAGENET_STD,
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return normed tokens (B, T, D) and cls attention logits (B, H, N) of RGB pixels (B, S, S, 3) uint8.

        The logits are the scaled products of the cls query with each patch key in the last block, before any rotation
        or softmax (published-system.md, section 11).
        """
        patches = self.patch_embed(self.pixel_norm(pixel_values))
        first = torch.cat([self.cls_token, self.register_tokens], dim=1).expand(patches.shape[0], -1, -1)
        x = torch.cat([first, patches], dim=1)
        for block in self.blocks:
            x, qkv = block(x, rotation=(self.rotation_cos, self.rotation_sin))
        config = self.config
        logits = cls_attention_logits(qkv, config.num_heads, config.token_layout.num_global, config.head_dim**-0.5)
        return self.norm(x), logits


def rotation_angles(grid: int, head_dim: int, rounds_periods: bool = False) -> Tensor:
    """Return the angles (N, d / 2) by which the pairs of a head's channels are rotated at each patch, in radians.

    Of d / 4 periods from 1 to just below 100, first those of y, then those of x; both axes run from -1 to 1
    (published-system.md, section 11).

    Args:
        grid: G, patches per side.
        head_dim: d.
        rounds_periods: whether the periods are rounded to bfloat16.
    """
    # On the CPU even where parameters are made on "meta": nothing would fill these.
    count = head_dim // 4
    periods = _LONGEST_PERIOD ** (torch.arange(count, dtype=torch.float32, device="cpu") / count)
    if rounds_periods:
        periods = periods.bfloat16().float()
    centres = 2 * (torch.arange(grid, dtype=torch.float32, device="cpu") + 0.5) / grid - 1
    places = torch.cartesian_prod(centres, centres)  # (N, 2): y, x
    return (2 * math.pi * places[:, :, None] / periods).flatten(1)


def _rotation(config: Dinov3Config) -> Rotation:
    """Return the rotation of all tokens (T, d): by nothing for cls and registers."""
    angles = rotation_angles(config.grid, config.head_dim, config.rounds_periods)
    angles = torch.cat([angles.new_zeros(config.token_layout.num_global, angles.shape[1]), angles])
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([cos, cos], dim=1), torch.cat([-sin, sin], dim=1)
