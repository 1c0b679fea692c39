"""DINOv2 (with registers) as one graph: 8-bit pixels in, normed tokens and cls attention scores out.

Module names are those of facebookresearch/dinov2, so a published state dict loads as it is (SPEC section 2).
Shapes: B images, S input side, G = S / patch, N = G * G patches, T = 1 cls + registers + N tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64
Rgb: TypeAlias = tuple[float, float, float]

IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class BackboneConfig:
    """The numbers of a DINOv2 backbone at one input size."""

    width: int
    depth: int
    registers: int
    size: int
    patch: int = 14
    swiglu_width: int | None = None
    """Hidden width of gated feed-forward layers, which ViT-g has; None for plain ones."""
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD

    @property
    def heads(self) -> int:
        return self.width // HEAD_WIDTH

    @property
    def score_heads(self) -> int:
        """Heads that the cls attention is split into: the published system takes 6 for ViT-S and 16 for every
        other size, ViT-B with its 12 among them (SPEC section 3). Widths that were never published keep their own."""
        published = {384: 6, 768: 16, 1024: 16, 1536: 16}
        return published.get(self.width, self.heads)

    @property
    def grid(self) -> int:
        return self.size // self.patch


_MASKED = -1e4


class Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) to (B, T, D), and the projected queries, keys and values (B, T, 3 * D).

        Tokens that are not ``present`` (B, T) are not attended to.
        """
        qkv = self.qkv(x)
        query, key, value = qkv.unflatten(-1, (3, -1, HEAD_WIDTH)).permute(2, 0, 3, 1, 4).unbind(0)
        attended = None if present is None else present[:, None, None, :]
        attend = _attend_in_steps if torch.compiler.is_exporting() else F.scaled_dot_product_attention
        return self.proj(attend(query, key, value, attended).transpose(1, 2).flatten(2)), qkv


def _attend_in_steps(query: Tensor, key: Tensor, value: Tensor, attended: Tensor | None) -> Tensor:
    """Attention (B, H, T, d) in the few operators that runtimes know and fuse: the scale on the queries, and where
    nothing is ``attended`` a score that is finite in float16 too."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if attended is not None:
        scores = torch.where(attended, scores, _MASKED)
    return torch.softmax(scores, dim=-1) @ value


class LayerScale(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden)
        self.w3 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class Block(nn.Module):
    def __init__(self, width: int, swiglu_width: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width) if swiglu_width is None else SwiGlu(width, swiglu_width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(B, T, D) to (B, T, D), and the attention's queries, keys and values (B, T, 3 * D)."""
        mixed, qkv = self.attn(self.norm1(x), present)
        x = x + self.ls1(mixed)
        return x + self.ls2(self.mlp(self.norm2(x))), qkv


class PatchEmbed(nn.Module):
    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch, stride=patch)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, N, D)."""
        return self.proj(images).flatten(2).transpose(1, 2)


class Backbone(nn.Module):
    """A DINOv2 backbone for one input size; its position embedding is already of that size."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: BackboneConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + config.grid**2, config.width))
        if config.registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.registers, config.width))
        self.patch_embed = PatchEmbed(config.width, config.patch)
        self.blocks = nn.ModuleList(Block(config.width, config.swiglu_width) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.register_buffer("mean", torch.tensor(config.mean, device="cpu").reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std, device="cpu").reshape(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """RGB pixels (B, S, S, 3) uint8 to normed tokens (B, T, D) and cls attention scores (B, H, N).

        The scores are the scaled products of the cls query with each patch key in the last block, before any softmax
        (SPEC section 3).
        """
        # Cast first: TensorRT takes uint8 at the input only, and refuses to move it.
        images = (pixels.to(self.mean.dtype).permute(0, 3, 1, 2) / 255 - self.mean) / self.std
        patches = self.patch_embed(images)
        cls = self.cls_token.expand(patches.shape[0], -1, -1)
        x = torch.cat([cls, patches], dim=1) + self.pos_embed
        if self.config.registers:  # put in after the position embedding: registers have none
            registers = self.register_tokens.expand(patches.shape[0], -1, -1)
            x = torch.cat([x[:, :1], registers, x[:, 1:]], dim=1)
        for block in self.blocks:
            x, qkv = block(x)
        return self.norm(x), self._cls_scores(qkv)

    def _cls_scores(self, qkv: Tensor) -> Tensor:
        query, key, _ = qkv.unflatten(-1, (3, self.config.score_heads, -1)).unbind(2)
        patch_keys = key[:, 1 + self.config.registers :]
        scale = HEAD_WIDTH**-0.5  # whatever the split: the published system keeps 0.125
        return (patch_keys.permute(0, 2, 1, 3) @ (query[:, 0] * scale).unsqueeze(-1)).squeeze(-1)


def resize_position_embedding(pos_embed: Tensor, grid: int, has_registers: bool) -> Tensor:
    """A position embedding (1, 1 + g * g, D) for another grid: (1, 1 + grid * grid, D).

    Bicubic, by DINOv2's two rules (SPEC section 2): models with registers resize to the size with antialiasing, models
    without by a scale factor with an offset of 0.1 and without antialiasing.
    """
    trained = round((pos_embed.shape[1] - 1) ** 0.5)
    if trained == grid:
        return pos_embed
    patches = pos_embed[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    if has_registers:
        patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=True)
    else:
        factor = (grid + 0.1) / trained
        patches = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([pos_embed[:, :1], patches.flatten(2).transpose(1, 2)], dim=1)
