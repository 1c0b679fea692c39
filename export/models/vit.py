"""The blocks of vision transformers, for every backbone family.

Module names are those of facebookresearch/dinov2, so published state dicts load as they are.
Shapes: B images, T tokens, D width, H heads, d = D / H.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MASKED_LOGIT = -1e4
"""Finite in float16 too, and far enough below any logit to vanish in a softmax."""


class VitAttention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return attended x (B, T, D), and the projected queries, keys and values (B, T, 3 * D), for x (B, T, D).

        Tokens outside ``token_mask`` (B, T) are not attended to.
        """
        qkv = self.qkv(x)
        query, key, value = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        mask = None if token_mask is None else token_mask[:, None, None, :]
        attend = _attend_explicitly if torch.compiler.is_exporting() else F.scaled_dot_product_attention
        return self.proj(attend(query, key, value, mask).transpose(1, 2).flatten(2)), qkv


def _attend_explicitly(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Return attended values (B, H, T, d), in the few operators that runtimes know and fuse.

    The scale is on the queries, and masked logits are finite in float16 too.
    """
    logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    if mask is not None:
        logits = torch.where(mask, logits, _MASKED_LOGIT)
    return torch.softmax(logits, dim=-1) @ value


class LayerScale(nn.Module):
    """A learned scale for each channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class VitMlp(nn.Module):
    """A feed-forward layer with exact GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class SwiGlu(nn.Module):
    """A gated feed-forward layer."""

    def __init__(self, width: int, hidden_width: int) -> None:
        super().__init__()
        self.w12 = nn.Linear(width, 2 * hidden_width)
        self.w3 = nn.Linear(hidden_width, width)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.w12(x).chunk(2, dim=-1)
        return self.w3(F.silu(gate) * value)


class VitBlock(nn.Module):
    """A pre-norm transformer block whose attention and feed-forward layer are each scaled by channel.

    Args:
        swiglu_width: hidden width of a gated feed-forward layer; None for a plain one.
    """

    def __init__(self, width: int, num_heads: int, swiglu_width: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = VitAttention(width, num_heads)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = VitMlp(width) if swiglu_width is None else SwiGlu(width, swiglu_width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, token_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return x (B, T, D) after the block, and the attention's queries, keys and values (B, T, 3 * D)."""
        attended, qkv = self.attn(self.norm1(x), token_mask)
        x = x + self.ls1(attended)
        return x + self.ls2(self.mlp(self.norm2(x))), qkv


class PatchEmbed(nn.Module):
    """A linear projection of each patch's pixels."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, images: Tensor) -> Tensor:
        """Return patches (B, N, D) of images (B, 3, S, S)."""
        return self.proj(images).flatten(2).transpose(1, 2)
