"""DINO.txt as one graph: DINOv2's tokens after two blocks more, which align them with text.

See published-system.md, section 12.

Shapes: B images, S input side, N patches, T = 1 cls + registers + N tokens, D width, H heads.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from export.models.base import BackboneModel, BackboneNumbers
from export.models.dinov2 import Dinov2Backbone
from export.models.vit import BlockConfig, VitBlock


@dataclass(frozen=True)
class VisionHeadConfig:
    """The numbers of DINO.txt's vision head.

    Attributes:
        hidden_width: of its gated feed-forward layers.
    """

    width: int
    depth: int
    num_heads: int
    hidden_width: int

    @property
    def block(self) -> BlockConfig:
        """The numbers of each block."""
        return BlockConfig(
            self.width,
            self.num_heads,
            hidden_width=self.hidden_width,
            gate="separate",
            norm_eps=1e-5,
            qkv_bias=False,
        )


class VisionHead(nn.Module):
    """The blocks that align DINOv2's tokens with text, and their norm."""

    def __init__(self, config: VisionHeadConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(VitBlock(config.block) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-5)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return aligned tokens (B, T, D) of DINOv2's normed ones (B, T, D)."""
        for block in self.blocks:
            tokens, _ = block(tokens)
        return self.norm(tokens)


class DinotxtBackbone(BackboneModel):
    """A DINOv2 with DINO.txt's vision head, or without it, as the published system uses DINO.txt.

    The cls attention is the backbone's own in both, that of its last block: the head's blocks mix what the backbone has
    already gathered, and published attention is the backbone's (published-system.md, section 12).
    """

    family = "dinotxt"

    def __init__(self, backbone: Dinov2Backbone, head: VisionHead | None) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head

    @property
    def numbers(self) -> BackboneNumbers:
        return self.backbone.numbers

    @property
    def last_block(self) -> nn.Module | None:
        """The backbone's, without the head; none with it: aligned tokens are no longer those that this block makes."""
        return self.backbone.last_block if self.head is None else None

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return tokens (B, T, D) and cls attention logits (B, H, N) of RGB pixels (B, S, S, 3) uint8."""
        tokens, logits = self.backbone(pixel_values)
        return tokens if self.head is None else self.head(tokens), logits
