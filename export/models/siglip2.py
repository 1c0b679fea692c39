"""SigLIP 2's vision tower as one graph: 8-bit pixels in, the pooled vector and patches out.

Module names are those of `export.models.vit`; the reader has the published ones (published-system.md, section 14).

Shapes: B images, S input side, N = (S / patch size)^2 patches, T = 1 pooled vector + N tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.vit import BlockConfig, PatchEmbed, PixelNorm, VitBlock, VitMlp, attend
from runtime.bundle import TokenLayout
from runtime.bundle.manifest import Rgb

PatchMode: TypeAlias = Literal["raw", "mlp", "pool"]
"""What patches pass after the last norm: nothing, the pooling head's feed-forward layer, or the whole head, each by
itself."""

_EPS = 1e-6
_HALF: Rgb = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Siglip2Config:
    """The numbers of a tower, and what its patches are.

    Attributes:
        hidden_width: of the feed-forward layers.
    """

    width: int
    depth: int
    num_heads: int
    hidden_width: int
    patch_size: int
    image_size: int
    patches: PatchMode = "pool"

    @property
    def token_layout(self) -> TokenLayout:
        """The order of the tokens: the pooled vector, patches."""
        return TokenLayout(global_tokens=("pooled",), grid=self.image_size // self.patch_size)

    @property
    def block(self) -> BlockConfig:
        """The numbers of each block."""
        return BlockConfig(
            self.width,
            self.num_heads,
            hidden_width=self.hidden_width,
            activation="tanh_gelu",
            norm_eps=_EPS,
            has_layer_scale=False,
        )


class PoolingHead(nn.Module):
    """Attention of one learned query to all patches, and a feed-forward layer: the text space's image vector.

    Its query is the published probe, already projected.
    """

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.query = nn.Parameter(torch.zeros(1, 1, width))
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.proj = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, eps=_EPS)
        self.mlp = VitMlp(width, config.hidden_width, "tanh_gelu")

    def forward(self, patches: Tensor, mode: PatchMode) -> Tensor:
        """Return the pooled vector and patches (B, 1 + N, D) of normed patches (B, N, D)."""
        values = self.value(patches)
        query = self.query.expand(patches.shape[0], -1, -1)
        attended = attend(*(self._by_head(x) for x in (query, self.key(patches), values)))
        attended = attended.transpose(1, 2).flatten(2)
        if mode == "pool":  # alone, a patch is attended to with a weight of 1
            return self._feed_forward(self.proj(torch.cat([attended, values], dim=1)))
        pooled = self.proj(attended)
        if mode == "mlp":
            return self._feed_forward(torch.cat([pooled, patches], dim=1))
        return torch.cat([self._feed_forward(pooled), patches], dim=1)

    def _feed_forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(x))

    def _by_head(self, x: Tensor) -> Tensor:
        """Return x (B, T, D) as (B, H, T, D / H)."""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)


class Siglip2Backbone(BackboneModel):
    """A SigLIP 2 vision tower, which has one input size."""

    family = "siglip2"

    def __init__(self, config: Siglip2Config) -> None:
        super().__init__()
        self.config = config
        self.pixel_norm = PixelNorm(_HALF, _HALF)
        self.patch_embed = PatchEmbed(config.width, config.patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, config.token_layout.num_patches, config.width))
        self.blocks = nn.ModuleList(VitBlock(config.block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=_EPS)
        self.head = PoolingHead(config)

    @property
    def numbers(self) -> BackboneNumbers:
        config = self.config
        return BackboneNumbers(
            image_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.width,
            output_dim=config.width,
            depth=config.depth,
            num_heads=config.num_heads,
            attention_heads=0,
            tokens=config.token_layout,
            mean=_HALF,
            std=_HALF,
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return tokens (B, T, D), the pooled vector first, of RGB pixels (B, S, S, 3) uint8."""
        x = self.patch_embed(self.pixel_norm(pixel_values)) + self.pos_embed
        for block in self.blocks:
            x, _ = block(x)
        return (self.head(self.norm(x), self.config.patches),)
