"""The blocks of vision transformers, for every backbone family.

Module names are those of facebookresearch/dinov2, so published state dicts load as they are.
Shapes: B images, T tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.bundle.manifest import Rgb

Activation: TypeAlias = Literal["gelu", "tanh_gelu", "quick_gelu"]
"""Exact GELU, its approximation by tanh, and x * sigmoid(1.702 x)."""
Rotation: TypeAlias = tuple[Tensor, Tensor]
"""Cosines and sines (T, d) of the angles by which queries and keys are rotated, the first half of the sines negated."""

MASKED_LOGIT = -1e4
"""Finite in float16 too, and far enough below any logit to vanish in a softmax."""
_ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "tanh_gelu": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class BlockConfig:
    """The numbers of a pre-norm block; by default those of DINOv2.

    Attributes:
        num_heads: H, heads of width D / H.
        hidden_width: of the feed-forward layer; None for four times the width.
        gate: what the feed-forward layer is gated by, if it is: one projection for gate and value ("joint"), or two.
        qkv_bias: whether queries, keys and values have biases.
        has_layer_scale: whether attention and feed-forward layer are each scaled by channel.
        attends_to_self: whether each token attends to itself alone.
    """

    width: int
    num_heads: int
    hidden_width: int | None = None
    gate: Literal["joint", "separate"] | None = None
    activation: Activation = "gelu"
    norm_eps: float = 1e-6
    qkv_bias: bool = True
    has_layer_scale: bool = True
    attends_to_self: bool = False


class VitAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int, qkv_bias: bool = True, attends_to_self: bool = False) -> None:
        super().__init__()
        self.num_heads, self.attends_to_self = num_heads, attends_to_self
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(
        self, x: Tensor, token_mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return attended x (B, T, D), and the projected queries, keys and values (B, T, 3 * D), for x (B, T, D).

        Tokens outside ``token_mask`` (B, T) are not attended to. The queries and keys returned are not rotated.
        """
        qkv = self.qkv(x)
        if self.attends_to_self:
            return self.proj(qkv.chunk(3, dim=-1)[2]), qkv
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        if rotation is not None:
            query, key = _rotate(query, rotation), _rotate(key, rotation)
        mask = None if token_mask is None else token_mask[:, None, None, :]
        return self.proj(self.attend(query, key, value, mask).transpose(1, 2).flatten(2)), qkv

    def attend(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
        """Return attended values (B, H, T, d) of all three (B, H, T, d)."""
        return attend(query, key, value, mask)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return attended values (B, H, Q, d) of queries (B, H, Q, d), keys and values (B, H, T, d).

    Tokens outside ``mask`` (B, 1, 1, T) are not attended to.
    """
    function = _attend_explicitly if torch.compiler.is_exporting() else F.scaled_dot_product_attention
    return function(query, key, value, mask)


def _attend_explicitly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attend in the few operators that runtimes know and fuse.

    The scale is on the queries, and masked logits are finite in float16 too.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        logits = torch.where(mask, logits, MASKED_LOGIT)
    return torch.softmax(logits, dim=-1) @ value


def _rotate(x: Tensor, rotation: Rotation) -> Tensor:
    """Rotate pairs of channels of x (B, H, T, d), the first half with the second, by the angles of each token."""
    cos, sin = rotation
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class LayerScale(nn.Module):
    """A learned scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class VitMlp(nn.Module):
    """A feed-forward layer, four times as wide inside where nothing else is said."""

    def __init__(self, width: int, hidden_width: int | None = None, activation: Activation = "gelu") -> None:
        super().__init__()
        hidden_width = hidden_width or 4 * width
        self.fc1 = nn.Linear(width, hidden_width)
        self.fc2 = nn.Linear(hidden_width, width)
        self.activation = _ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class SwiGlu(nn.Module):
    """A gated feed-forward layer, with one projection for gate and value."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden_width)
        self.w3 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class SeparateSwiGlu(nn.Module):
    """A gated feed-forward layer, with a projection each for gate and value."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.w1 = nn.Linear(width, hidden_width)
        self.w2 = nn.Linear(width, hidden_width)
        self.w3 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.w3(F.silu(self.w1(x)) * self.w2(x))


class VitBlock(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, config: BlockConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, eps=config.norm_eps)
        self.attn = VitAttention(width, config.num_heads, config.qkv_bias, config.attends_to_self)
        self.ls1 = LayerScale(width) if config.has_layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(width, eps=config.norm_eps)
        self.mlp = _feed_forward(config)
        self.ls2 = LayerScale(width) if config.has_layer_scale else nn.Identity()

    def forward(
        self, x: Tensor, token_mask: Tensor | None = None, rotation: Rotation | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return x (B, T, D) after the block, and the attention's queries, keys and values (B, T, 3 * D)."""
        attended, qkv = self.attn(self.norm1(x), token_mask, rotation)
        x = x + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x))), qkv


def _feed_forward(config: BlockConfig) -> nn.Module:
    if config.gate is None:
        return VitMlp(config.width, config.hidden_width, config.activation)
    assert config.hidden_width is not None
    return (SwiGlu if config.gate == "joint" else SeparateSwiGlu)(config.width, config.hidden_width)


class PatchEmbed(nn.Module):
    """A linear projection of each patch's pixels, and of its alpha if there is any."""

    def __init__(self, width: int, patch_size: int, bias: bool = True, has_alpha: bool = False) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=bias)
        # By itself: a convolution of four channels is wrong in OpenVINO's bfloat16.
        self.alpha = nn.Conv2d(1, width, kernel_size=patch_size, stride=patch_size, bias=False) if has_alpha else None

    def forward(self, images: Tensor) -> Tensor:
        """Return patches (B, N, D) of images (B, 3, S, S), or with alpha (B, 4, S, S)."""
        if self.alpha is None:
            return self.proj(images).flatten(2).transpose(1, 2)
        patches = self.proj(images[:, :3]) + self.alpha(images[:, 3:])
        return patches.flatten(2).transpose(1, 2)


class PixelNorm(nn.Module):
    """Brings 8-bit pixels to the mean and deviation that a backbone was trained with, those of alpha to 0..1."""

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Rgb, std: Rgb, has_alpha: bool = False) -> None:
        super().__init__()
        of_alpha = ((0.0,), (1.0,)) if has_alpha else ((), ())
        for name, rgb, alpha in zip(("mean", "std"), (mean, std), of_alpha, strict=True):
            # On the CPU even where parameters are made on "meta": nothing would fill these.
            values = torch.tensor((*rgb, *alpha), device="cpu").reshape(-1, 1, 1)
            self.register_buffer(name, values, persistent=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Return images (B, C, S, S) of pixels (B, S, S, C) uint8: RGB, and alpha if they have it."""
        # The cast comes first: TensorRT accepts uint8 at the input only, and refuses to transpose it.
        return (pixel_values.to(self.mean.dtype).permute(0, 3, 1, 2) / 255 - self.mean) / self.std


def cls_attention_logits(qkv: Tensor, num_heads: int, num_global: int, scale: float) -> Tensor:
    """Return the scaled products (B, H, N) of the cls query with each patch key, before any softmax.

    See published-system.md, section 3.

    Args:
        qkv: a block's queries, keys and values (B, T, 3 * D).
        num_global: tokens before the first patch, cls first.
    """
    query, key, _ = qkv.unflatten(-1, (3, num_heads, -1)).unbind(2)
    return (key[:, num_global:] * (query[:, :1] * scale)).sum(-1).transpose(1, 2)


def resize_grid(table: Tensor, grid: int, num_global: int = 1, antialias: bool = True) -> Tensor:
    """Return a position table (1, num_global + g * g, D) with its grid resized, bicubic, to ``grid`` rows a side."""
    trained = round((table.shape[1] - num_global) ** 0.5)
    if trained == grid:
        return table
    patches = table[:, num_global:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    resized = F.interpolate(patches, size=(grid, grid), mode="bicubic", antialias=antialias)
    return torch.cat([table[:, :num_global], resized.flatten(2).transpose(1, 2)], dim=1)


def resize_grid_by_factor(table: Tensor, grid: int) -> Tensor:
    """Resize as `resize_grid` does, but as DINO did: by a scale factor with an offset of 0.1, without antialiasing."""
    trained = round((table.shape[1] - 1) ** 0.5)
    if trained == grid:
        return table
    patches = table[:, 1:].unflatten(1, (trained, trained)).permute(0, 3, 1, 2)
    factor = (grid + 0.1) / trained
    resized = F.interpolate(patches, scale_factor=(factor, factor), mode="bicubic")
    return torch.cat([table[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)
