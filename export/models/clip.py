"""The vision tower of CLIP and of what is made like it, as one graph: 8-bit pixels in, tokens of the text space out.

Module names are those of `export.models.vit`; the reader has the published ones (published-system.md, section 10).

Shapes: B images, S input side, G = S / patch size, T = 1 cls + G * G tokens, W width of the blocks, D width of the
tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.vit import Activation, BlockConfig, PatchEmbed, PixelNorm, VitBlock
from runtime.bundle import TokenLayout
from runtime.bundle.manifest import Rgb

CLIP_MEAN: Rgb = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Rgb = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class ClipConfig:
    """The numbers of a CLIP vision tower at one input size.

    Attributes:
        self_attending: how many of the last blocks let each token attend to itself alone, as INViTE does.
        norms_output: whether the last norm comes before the projection into the text space.
        has_alpha: whether patches are of pixels with an alpha plane, as AlphaCLIP's are.
    """

    width: int
    depth: int
    num_heads: int
    output_dim: int
    patch_size: int
    image_size: int
    activation: Activation = "quick_gelu"
    self_attending: int = 0
    norms_output: bool = True
    has_alpha: bool = False

    @property
    def token_layout(self) -> TokenLayout:
        """The order of the tokens: cls, patches."""
        return TokenLayout.with_cls(0, self.image_size // self.patch_size)

    def block(self, number: int) -> BlockConfig:
        """Return the numbers of a block."""
        return BlockConfig(
            self.width,
            self.num_heads,
            activation=self.activation,
            norm_eps=1e-5,
            has_layer_scale=False,
            attends_to_self=number >= self.depth - self.self_attending,
        )


class ClipBackbone(BackboneModel):
    """A CLIP vision tower for one input size, all of whose tokens are projected into the text space."""

    family = "clip"

    def __init__(self, config: ClipConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.pixel_norm = PixelNorm(CLIP_MEAN, CLIP_STD, config.has_alpha)
        self.patch_embed = PatchEmbed(width, config.patch_size, bias=False, has_alpha=config.has_alpha)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.token_layout.num_tokens, width))
        self.norm_pre = nn.LayerNorm(width, eps=1e-5)
        self.blocks = nn.ModuleList(VitBlock(config.block(number)) for number in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-5) if config.norms_output else nn.Identity()
        self.head = nn.Linear(width, config.output_dim, bias=False)

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.config.has_alpha:
            return ()
        return (
            'AlphaCLIP sees what is to be described in a pass for each region: describe(..., reencode="cls"); without '
            "it regions are pooled from one pass that sees the whole image as that",
        )

    @property
    def numbers(self) -> BackboneNumbers:
        config = self.config
        return BackboneNumbers(
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            output_dim=config.output_dim,
            depth=config.depth,
            num_heads=config.num_heads,
            attention_heads=0,
            tokens=config.token_layout,
            mean=CLIP_MEAN,
            std=CLIP_STD,
            has_alpha=config.has_alpha,
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return tokens (B, T, D) of RGB pixels (B, S, S, 3) uint8, or with alpha (B, S, S, 4)."""
        x = self.embed(self.pixel_norm(pixel_values))
        for block in self.blocks:
            x, _ = block(x)
        return (self.head(self.norm(x)),)

    def embed(self, images: Tensor) -> Tensor:
        """Return what the first block takes (B, T, W) of normalised images (B, C, S, S)."""
        patches = self.patch_embed(images)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        return self.norm_pre(torch.cat([cls, patches], dim=1) + self.pos_embed)
