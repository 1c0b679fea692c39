"""The published algorithm (published-system.md, sections 1 to 6) in plain torch: baseline of speed, oracle of tests.

One region at a time, no KV cache, always 30 steps, the whole bank normalised at each call, as the published code does.
It shares the backbone and the decoder's weights with the exporter, and no line with runtime/.

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

from export.models.dinov2 import Dinov2Backbone
from export.models.vit import VitBlock

STEPS = 30
_DECODER_HEADS = 4
_TEMPERATURE = 0.01
_PREFIX = "decoder.transformer."

Coordinates: TypeAlias = Sequence[float]
Pool: TypeAlias = Literal["mean", "gaussian", "attention"]


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """One image after the backbone.

    Attributes:
        cls: (D,).
        registers: (4, D).
        patches: (G, G, D).
        scores: attention logits of cls (H, N).
        patch: side of a patch in pixels.
    """

    cls: Tensor
    registers: Tensor
    patches: Tensor
    scores: Tensor
    patch: int = 14

    @property
    def grid(self) -> int:
        """Patches per side."""
        return len(self.patches)

    @property
    def attention(self) -> Tensor:
        """The attention of cls (G, G), summing to 1 (published-system.md, section 3)."""
        return self.scores.mean(dim=0).softmax(dim=0).reshape(self.grid, self.grid)

    @property
    def average_attention(self) -> Tensor:
        """The attention-weighted sum of patches (D,), divided by N."""
        return (self.attention[..., None] * self.patches).mean(dim=(0, 1))


@torch.inference_mode()
def encode_image(backbone: Dinov2Backbone, image: Image.Image) -> EncodedImage:
    """Resize the short side to the backbone's size and encode the centre (published-system.md, sections 1 and 2)."""
    size, (width, height) = backbone.config.image_size, image.size
    resized = (size, int(size * height / width)) if width <= height else (int(size * width / height), size)
    left, top = (round((side - size) / 2) for side in resized)
    square = image.convert("RGB").resize(resized, Image.Resampling.BICUBIC).crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(square))[None].to(next(backbone.parameters()).device)
    tokens, scores = backbone(pixels)
    first, grid = 1 + backbone.config.num_registers, backbone.config.grid
    patches = tokens[0, first:].unflatten(0, (grid, grid))
    return EncodedImage(tokens[0, 0], tokens[0, 1:first], patches, scores[0], backbone.config.patch_size)


def gaussian(height: int, width: int, variance: float) -> Tensor:
    """Return weights (height, width) that fall off from the middle and sum to 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    weights = torch.exp(-(x**2 + y**2) / variance)
    return weights / weights.sum()


def box_weights(image: EncodedImage, box: Coordinates, pool: Pool = "mean", variance: float = 0.5) -> Tensor:
    """Return the weights (G, G) of a box (x, y, width, height) in input pixels (published-system.md, section 4)."""
    x, y, width, height = (int(value // image.patch) for value in box)
    inside = (slice(y, y + height + 1), slice(x, x + width + 1))
    weights = torch.zeros(image.grid, image.grid)
    if pool == "attention":
        weights[inside] = image.attention[inside]
    elif pool == "gaussian":
        rows, columns = weights[inside].shape
        weights[inside] = gaussian(rows, columns, variance)
    else:
        weights[inside] = 1
    return weights / weights.sum()


def box_vector(image: EncodedImage, box: Coordinates, pool: Pool = "mean", variance: float = 0.5) -> Tensor:
    """Return the vector (D,) of a box."""
    return torch.einsum("yx,yxd->d", box_weights(image, box, pool, variance), image.patches)


def box_set_vector(
    image: EncodedImage, boxes: Sequence[Coordinates], pool: Pool = "mean", variance: float = 0.5
) -> Tensor:
    """Return the vector (D,) of several boxes together; those that sum to less than 0 are padding."""
    weights = torch.stack([box_weights(image, box, pool, variance) for box in boxes if sum(box) >= 0]).sum(dim=0)
    return torch.einsum("yx,yxd->d", weights / weights.sum(), image.patches)


def trace_vector(image: EncodedImage, points: Sequence[Coordinates], with_attention: bool = False) -> Tensor:
    """Return the vector (D,) of points (x, y) in 0..1 of the input, divided by N."""
    total = torch.zeros_like(image.cls)
    for x, y in points:
        if 0 <= x <= 1 and 0 <= y <= 1:
            row, column = (min(int(value / (1 / image.grid)), image.grid - 1) for value in (y, x))
            total += image.patches[row, column] * (image.attention[row, column] if with_attention else 1)
    return total / image.grid**2


@torch.inference_mode()
def reencoded_vector(
    image: EncodedImage, block: VitBlock, corners: Coordinates, kind: Literal["mean", "cls"]
) -> Tensor:
    """Return the vector (D,) of a box (x1, y1, x2, y2) whose patches pass the last block once more."""
    x1, y1, x2, y2 = (int(value // image.patch) for value in corners)
    inside = image.patches[y1 : y2 + 1, x1 : x2 + 1].flatten(0, 1)
    if kind == "mean":
        return block(inside[None])[0][0].mean(dim=0)
    return block(torch.cat([image.cls[None], image.registers, inside])[None])[0][0, 0]


def clean_patches(
    image: EncodedImage,
    bank: Tensor,
    kind: Literal["orthogonal", "contrastive"],
    after: bool,
    common: Tensor,
    alpha: float = 0.4,
) -> EncodedImage:
    """Remove the component ``common`` (D,) from the patches, which are then in text space: no projection after this.

    Args:
        after: whether the component is removed after the projection into text space, and not before.
    """
    patches, common = F.normalize(image.patches.flatten(0, 1), dim=-1), F.normalize(common, dim=0)
    if after:
        patches, common = project(bank, patches), project(bank, common[None])[0]
    if kind == "orthogonal":
        patches = patches - alpha * (patches @ common)[:, None] / common.norm() ** 2 * common
    else:
        patches = patches * (1 - common / (common.norm() + 1e-6))
    if not after:
        patches = project(bank, patches)
    return replace(image, patches=patches.reshape(image.patches.shape))


def project(bank: Tensor, vectors: Tensor) -> Tensor:
    """Project vectors (R, D) into text space (R, D) through a bank (M, D) (published-system.md, section 5)."""
    similarities = F.normalize(vectors, dim=-1) @ F.normalize(bank, dim=-1).T
    return F.normalize(torch.softmax(similarities / _TEMPERATURE, dim=-1) @ bank, dim=-1)


@torch.inference_mode()
def decode(weights: Mapping[str, Tensor], vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Decode vectors (R, D) to token ids (R, 30) and their log-probabilities (R, 30) (published-system.md, section 6).

    Args:
        weights: those of the decoder, by their published names.
    """
    project_to = weights["clip_project.model.0.weight"], weights["clip_project.model.0.bias"]
    inputs = F.linear(vectors, *project_to)[:, None]  # (R, positions, E)
    tokens, log_probabilities = [], []
    for _ in range(STEPS):
        log_probability, token = gpt2(weights, inputs)[:, -1].log_softmax(dim=-1).max(dim=-1)
        tokens.append(token)
        log_probabilities.append(log_probability)
        inputs = torch.cat([inputs, weights[f"{_PREFIX}wte.weight"][token][:, None]], dim=1)
    return torch.stack(tokens, dim=1), torch.stack(log_probabilities, dim=1)


def gpt2(weights: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
    """Return the logits (R, positions, V) of the token after each of the embeddings (R, positions, E)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-5)

    def conv1d(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    x = inputs + weights[f"{_PREFIX}wpe.weight"][: inputs.shape[1]]
    for number in range(len({name.split(".")[3] for name in weights if name.startswith(f"{_PREFIX}h.")})):
        layer = f"{_PREFIX}h.{number}"
        qkv = conv1d(norm(x, f"{layer}.ln_1"), f"{layer}.attn.c_attn").unflatten(-1, (3, _DECODER_HEADS, -1))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2).flatten(2)
        x = x + conv1d(attended, f"{layer}.attn.c_proj")
        hidden = F.gelu(conv1d(norm(x, f"{layer}.ln_2"), f"{layer}.mlp.c_fc"), approximate="tanh")
        x = x + conv1d(hidden, f"{layer}.mlp.c_proj")
    return norm(x, f"{_PREFIX}ln_f") @ weights[f"{_PREFIX}wte.weight"].T
