"""ProxyCLIP as one graph: values of CLIP's last block, mixed by how much patches resemble each other to a DINO.

See published-system.md, section 13.

Shapes: B images, S input side, G = S / the DINO's patch size, N = G * G patches, g = S // 16 patches per side of CLIP,
W width of CLIP's blocks, V width of the DINO, D width of the tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from export.models.base import BackboneModel, BackboneNumbers
from export.models.clip import ClipBackbone
from export.models.dinov2 import Dinov2Backbone
from export.models.vit import MASKED_LOGIT, VitBlock
from runtime.bundle import TokenLayout

_THRESHOLD, _SHARPNESS = 1.2, 3.0
"""Published as beta and gamma."""


@dataclass(frozen=True)
class ProxyclipConfig:
    """How the two towers work together.

    Attributes:
        clip_pixels: whether CLIP gets pixels of its own mean and deviation; else those of the DINO.
        averages_batch: whether what counts as similar depends on all images of a batch; else on each by itself.
    """

    clip_pixels: bool = False
    averages_batch: bool = False


class ProxyclipBackbone(BackboneModel):
    """A CLIP tower and a DINO over the same image. Its tokens are patches alone, of length 1, on the DINO's grid.

    Args:
        clip: the tower, whose input is the largest part of the image, from the left and the top, that is whole patches.
        vision: the DINO.
    """

    family = "proxyclip"
    spread: Tensor

    def __init__(self, clip: ClipBackbone, vision: Dinov2Backbone, config: ProxyclipConfig) -> None:
        super().__init__()
        self.config = config
        self.clip = clip
        self.vision = vision
        spread = _interpolation(clip.config.token_layout.grid, vision.config.grid)
        self.register_buffer("spread", spread, persistent=False)

    @property
    def numbers(self) -> BackboneNumbers:
        clip, vision = self.clip.numbers, self.vision.numbers
        return BackboneNumbers(
            image_size=vision.image_size,
            patch_size=vision.patch_size,
            embed_dim=clip.embed_dim,
            output_dim=clip.output_dim,
            depth=clip.depth,
            num_heads=clip.num_heads,
            attention_heads=0,
            tokens=TokenLayout(global_tokens=(), grid=vision.tokens.grid),
            mean=vision.mean,
            std=vision.std,
        )

    def forward(self, pixel_values: Tensor) -> tuple[Tensor]:
        """Return tokens (B, N, D) of RGB pixels (B, S, S, 3) uint8."""
        seen, _ = self.vision(pixel_values)
        weights = self.mixing_weights(seen[:, self.vision.config.token_layout.num_global :])
        mixed = weights @ self._values(pixel_values)
        return (_unit(self.clip.head(self.clip.norm(self._clip_block.attn.proj(mixed)))),)

    def mixing_weights(self, patches: Tensor) -> Tensor:
        """Return how much each patch takes of each (B, N, N), rows summing to 1, by the DINO's patches (B, N, V).

        A patch takes nothing of those whose similarity is below 1.2 times the mean. Where that is above all, as in a
        uniform image, it takes what it resembles most, which is itself; the published code returns NaN.
        """
        unit = _unit(patches)
        similarity = unit @ unit.transpose(1, 2)
        mean = similarity.mean(dim=(0, 1, 2) if self.config.averages_batch else (1, 2), keepdim=True)
        nearest = similarity.amax(dim=-1, keepdim=True)
        logits = torch.maximum(similarity - _THRESHOLD * mean, similarity - nearest) * _SHARPNESS
        return torch.softmax(torch.where(logits < 0, MASKED_LOGIT, logits), dim=-1)

    @property
    def _clip_block(self) -> VitBlock:
        """CLIP's, of which only the first norm, the values and the output projection are used."""
        last = self.clip.blocks[-1]
        assert isinstance(last, VitBlock)
        return last

    def _values(self, pixel_values: Tensor) -> Tensor:
        """Return the values of CLIP's last block on the DINO's grid (B, N, W)."""
        images = (self.clip if self.config.clip_pixels else self.vision).pixel_norm(pixel_values)
        side = self.clip.config.image_size  # in whole patches; the pixels beyond it are not seen
        x = self.clip.embed(images[:, :, :side, :side])
        for block in self.clip.blocks[:-1]:
            x, _ = block(x)
        last = self._clip_block
        values = last.attn.qkv(last.norm1(x)).chunk(3, dim=-1)[2][:, 1:]
        grid, width = self.spread.shape[1], values.shape[-1]
        rows = self.spread @ values.reshape(-1, grid, grid * width)  # (B, G, g * W)
        return (self.spread @ rows.unflatten(2, (grid, width))).flatten(1, 2)


def _interpolation(grid: int, to_grid: int) -> Tensor:
    """Return the matrix (to_grid, grid) that resizes an axis linearly, corners not aligned."""
    # On the CPU even where parameters are made on "meta": nothing would fill it.
    return F.interpolate(torch.eye(grid, device="cpu")[None], size=to_grid, mode="linear")[0].T.contiguous()


def _unit(x: Tensor) -> Tensor:
    return x / x.norm(dim=-1, keepdim=True)
