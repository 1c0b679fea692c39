"""The published algorithm (SPEC sections 1 to 6) plainly in torch: the baseline of speed and the oracle of tests.

One region at a time, no cache, always 30 steps, the whole bank normalised at each call, as the published code does. It
shares the backbone and the decoder's weights with the exporter, and no line with runtime/.

Shapes: D width, G patches per side, N = G * G, H heads, M memory rows, R vectors, V vocabulary, E decoder width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from export.models.dinov2 import Backbone, Block

STEPS = 30
_DECODER_HEADS = 4
_TEMPERATURE = 0.01
_PREFIX = "decoder.transformer."

Numbers: TypeAlias = Sequence[float]
Pool: TypeAlias = Literal["mean", "gaussian", "attention"]


@dataclass(frozen=True, eq=False)
class Seen:
    """One image after the backbone: cls (D,), registers (4, D), patches (G, G, D), scores of cls (H, N)."""

    cls: Tensor
    registers: Tensor
    patches: Tensor
    scores: Tensor
    patch: int = 14

    @property
    def grid(self) -> int:
        return len(self.patches)

    @property
    def attention(self) -> Tensor:
        """(G, G), summing to 1 (SPEC section 3)."""
        return self.scores.mean(dim=0).softmax(dim=0).reshape(self.grid, self.grid)

    @property
    def average_attention(self) -> Tensor:
        """(D,), divided by N."""
        return (self.attention[..., None] * self.patches).mean(dim=(0, 1))


@torch.inference_mode()
def see(backbone: Backbone, image: Image.Image) -> Seen:
    """The short side to the backbone's size, the centre of it through the backbone (SPEC sections 1 and 2)."""
    size, (width, height) = backbone.config.size, image.size
    resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    left, top = (round((side - size) / 2) for side in resized)
    square = image.convert("RGB").resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(square))[None].to(next(backbone.parameters()).device)
    tokens, scores = backbone(pixels)
    first, grid = 1 + backbone.config.registers, backbone.config.grid
    patches = tokens[0, first:].unflatten(0, (grid, grid))
    return Seen(tokens[0, 0], tokens[0, 1:first], patches, scores[0], backbone.config.patch)


def gaussian(height: int, width: int, variance: float) -> Tensor:
    """Weights (height, width) that fall off from the middle and sum to 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    weights = torch.exp(-(x**2 + y**2) / variance)
    return weights / weights.sum()


def box_weights(seen: Seen, box: Numbers, pool: Pool = "mean", variance: float = 0.5) -> Tensor:
    """Weights (G, G) of a box (x, y, width, height) in pixels of the input (SPEC section 4)."""
    x, y, width, height = (int(number // seen.patch) for number in box)
    inside = (slice(y, y + height + 1), slice(x, x + width + 1))
    weights = torch.zeros(seen.grid, seen.grid)
    if pool == "attention":
        weights[inside] = seen.attention[inside]
    elif pool == "gaussian":
        rows, columns = weights[inside].shape
        weights[inside] = gaussian(rows, columns, variance)
    else:
        weights[inside] = 1
    return weights / weights.sum()


def box_vector(seen: Seen, box: Numbers, pool: Pool = "mean", variance: float = 0.5) -> Tensor:
    """(D,)."""
    return torch.einsum("yx,yxd->d", box_weights(seen, box, pool, variance), seen.patches)


def box_set_vector(seen: Seen, boxes: Sequence[Numbers], pool: Pool = "mean", variance: float = 0.5) -> Tensor:
    """(D,) of several boxes together; those that sum to less than 0 are padding."""
    weights = torch.stack([box_weights(seen, box, pool, variance) for box in boxes if sum(box) >= 0]).sum(dim=0)
    return torch.einsum("yx,yxd->d", weights / weights.sum(), seen.patches)


def trace_vector(seen: Seen, points: Sequence[Numbers], with_attention: bool = False) -> Tensor:
    """(D,) of points (x, y) in 0..1 of the input, divided by N."""
    total = torch.zeros_like(seen.cls)
    for x, y in points:
        if 0 <= x <= 1 and 0 <= y <= 1:
            row, column = (min(int(share / (1 / seen.grid)), seen.grid - 1) for share in (y, x))
            total += seen.patches[row, column] * (seen.attention[row, column] if with_attention else 1)
    return total / seen.grid**2


@torch.inference_mode()
def reencoded_vector(seen: Seen, block: Block, corners: Numbers, kind: Literal["mean", "cls"]) -> Tensor:
    """(D,) of a box (x1, y1, x2, y2) whose patches pass the last block once more."""
    x1, y1, x2, y2 = (int(number // seen.patch) for number in corners)
    inside = seen.patches[y1 : y2 + 1, x1 : x2 + 1].flatten(0, 1)
    if kind == "mean":
        return block(inside[None])[0][0].mean(dim=0)
    return block(torch.cat([seen.cls[None], seen.registers, inside])[None])[0][0, 0]


def cleaned(
    seen: Seen,
    bank: Tensor,
    kind: Literal["orthogonal", "contrastive"],
    after: bool,
    common: Tensor,
    alpha: float = 0.4,
) -> Seen:
    """An image whose patches are cleaned of ``common`` (D,) and in text space: no projection after this."""
    patches, common = F.normalize(seen.patches.flatten(0, 1), dim=-1), F.normalize(common, dim=0)
    if after:
        patches, common = project(bank, patches), project(bank, common[None])[0]
    if kind == "orthogonal":
        patches = patches - alpha * (patches @ common)[:, None] / common.norm() ** 2 * common
    else:
        patches = patches * (1 - common / (common.norm() + 1e-6))
    if not after:
        patches = project(bank, patches)
    return replace(seen, patches=patches.reshape(seen.patches.shape))


def project(bank: Tensor, vectors: Tensor) -> Tensor:
    """Vectors (R, D) into text space (R, D) through a bank (M, D) (SPEC section 5)."""
    similarities = F.normalize(vectors, dim=-1) @ F.normalize(bank, dim=-1).T
    return F.normalize(torch.softmax(similarities / _TEMPERATURE, dim=-1) @ bank, dim=-1)


@torch.inference_mode()
def decode(weights: Mapping[str, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors (R, D) to 30 tokens each (R, 30) and their log-probabilities (R, 30) (SPEC section 6).

    Args:
        weights: of the decoder, by their published names.
    """
    project_to = weights["clip_project.model.0.weight"], weights["clip_project.model.0.bias"]
    inputs = F.linear(vectors, *project_to)[:, None]  # (R, positions, E)
    tokens, log_probabilities = [], []
    for _ in range(STEPS):
        chosen, token = gpt2(weights, inputs)[:, -1].log_softmax(dim=-1).max(dim=-1)
        tokens.append(token)
        log_probabilities.append(chosen)
        inputs = torch.cat([inputs, weights[f"{_PREFIX}wte.weight"][token][:, None]], dim=1)
    return torch.stack(tokens, dim=1), torch.stack(log_probabilities, dim=1)


def gpt2(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Embeddings (R, positions, E) to the logits (R, positions, V) of what follows each."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    def conv1d(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = inputs + weights[f"{_PREFIX}wpe.weight"][: inputs.shape[1]]
    for number in range(len({name.split(".")[3] for name in weights if name.startswith(f"{_PREFIX}h.")})):
        layer = f"{_PREFIX}h.{number}"
        qkv = conv1d(norm(x, f"{layer}.ln_1"), f"{layer}.attn.c_attn").unflatten(-1, (3, _DECODER_HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + conv1d(mixed, f"{layer}.attn.c_proj")
        hidden = F.gelu(conv1d(norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"), approximate="tanh")
        x = x + conv1d(hidden, f"{layer}.mlp.c_proj")
    return norm(x, f"{_PREFIX}ln_f") @ weights[f"{_PREFIX}wte.weight"].T
