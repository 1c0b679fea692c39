"""RegionCLIP's vision tower, a ResNet with CLIP's attention pool, as one graph: 8-bit pixels in, tokens out.

Module names are those of CLIP's ResNets; the reader has folded their batch norms into the convolutions
(published-system.md, section 16).

Shapes: B images, S input side, G = S / 32, C channels of the stem, W = 32 C width of the map, T = 1 cls + G * G tokens,
D width of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.clip import CLIP_MEAN, CLIP_STD
from export.models.vit import PixelNorm, attend
from runtime.bundle import TokenLayout

PATCH_SIZE = 32
"""The side of the square of pixels that a place of the map stands for."""

PatchSource: TypeAlias = Literal["attention", "projected"]
"""What patches are: the attention pool's outputs for them, or the map's own projection."""

_EXPANSION = 4
_LEAST_LENGTH = 1e-12


@dataclass(frozen=True)
class RegionClipConfig:
    """The numbers of a tower at one input size.

    Attributes:
        channels: C, of the stem.
        layers: the number of blocks at each of the four resolutions.
        trained_grid: patches per side of the published positions.
    """

    channels: int
    layers: tuple[int, int, int, int]
    output_dim: int
    num_heads: int
    image_size: int
    trained_grid: int
    patches: PatchSource = "attention"

    @property
    def width(self) -> int:
        """W, the width of the map."""
        return self.channels * 8 * _EXPANSION

    @property
    def token_layout(self) -> TokenLayout:
        """The order of the tokens: cls, patches."""
        return TokenLayout.with_cls(0, self.image_size // PATCH_SIZE)


class Bottleneck(nn.Module):
    """A residual block, which shrinks its map by averages instead of strides."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        channels_out = channels * _EXPANSION
        self.conv1 = nn.Conv2d(channels_in, channels, 1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv3 = nn.Conv2d(channels, channels_out, 1)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.downsample = (
            nn.ModuleList([nn.Conv2d(channels_in, channels_out, 1)])
            if stride > 1 or channels_in != channels_out
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return the map after the block (B, 4 * channels, H / stride, W / stride) of a map (B, channels_in, H, W)."""
        out = F.relu(self.conv2(F.relu(self.conv1(x))))
        out = self.conv3(self.pool(out))
        return F.relu(out + (x if self.downsample is None else self.downsample[0](self.pool(x))))


class AttentionPool(nn.Module):
    """CLIP's attention pool over the mean of a map, which stands for the image, and its places: all of them ask."""

    def __init__(self, config: RegionClipConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads, self.patches = config.num_heads, config.patches
        self.positional_embedding = nn.Parameter(torch.zeros(config.token_layout.num_tokens, width))
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, config.output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Return tokens (B, T, D) of a map (B, W, G, G)."""
        places = x.flatten(2).transpose(1, 2)
        mean = places.sum(dim=1, keepdim=True) / places.shape[1]
        tokens = torch.cat([mean, places], dim=1) + self.positional_embedding
        if self.patches == "attention":
            return self.c_proj(self._attended(tokens, tokens))
        cls = self._attended(tokens[:, :1], tokens)
        return self.c_proj(torch.cat([cls, places], dim=1))

    def _attended(self, queries: Tensor, tokens: Tensor) -> Tensor:
        """Return what queries (B, Q, W) take from tokens (B, T, W)."""
        query, key, value = (
            projection(given).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection, given in ((self.q_proj, queries), (self.k_proj, tokens), (self.v_proj, tokens))
        )
        return attend(query, key, value).transpose(1, 2).flatten(2)


class RegionClipBackbone(BackboneModel):
    """A RegionCLIP vision tower for one input size, whose tokens have length 1."""

    family = "regionclip"

    def __init__(self, config: RegionClipConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.channels
        self.pixel_norm = PixelNorm(CLIP_MEAN, CLIP_STD)
        self.conv1 = nn.Conv2d(3, channels // 2, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels // 2, channels // 2, 3, padding=1)
        self.conv3 = nn.Conv2d(channels // 2, channels, 3, padding=1)
        self.pool = nn.AvgPool2d(2)
        self.layer1 = _layer(channels, channels, config.layers[0], stride=1)
        self.layer2 = _layer(4 * channels, 2 * channels, config.layers[1], stride=2)
        self.layer3 = _layer(8 * channels, 4 * channels, config.layers[2], stride=2)
        self.layer4 = _layer(16 * channels, 8 * channels, config.layers[3], stride=2)
        self.attnpool = AttentionPool(config)

    @property
    def numbers(self) -> BackboneNumbers:
        config = self.config
        return BackboneNumbers(
            image_size=config.image_size,
            patch_size=PATCH_SIZE,
            embed_dim=config.width,
            output_dim=config.output_dim,
            depth=sum(config.layers),
            num_heads=config.num_heads,
            attention_heads=0,
            tokens=config.token_layout,
            mean=CLIP_MEAN,
            std=CLIP_STD,
        )

    @property
    def notes(self) -> tuple[str, ...]:
        trained, grid = self.config.trained_grid, self.config.token_layout.grid
        if trained == grid:
            return ()
        return (
            f"RegionCLIP's positions of {trained} x {trained} patches are resized to {grid} x {grid}; the published "
            "system takes random ones in their place, which nothing can reproduce",
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return tokens (B, T, D) of RGB pixels (B, S, S, 3) uint8."""
        x = self.pixel_norm(pixel_values)
        for conv in (self.conv1, self.conv2, self.conv3):
            x = F.relu(conv(x))
        x = self.pool(x)
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = layer(x)
        tokens = self.attnpool(x)
        return (tokens / tokens.norm(dim=-1, keepdim=True).clamp_min(_LEAST_LENGTH),)


def _layer(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Bottleneck(channels_in, channels, stride)
    rest = [Bottleneck(channels * _EXPANSION, channels, 1) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)
