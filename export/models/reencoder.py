"""The backbone's last block by itself, for regions whose tokens pass it once more (SPEC section 4, "double DINO").

Shapes: R regions, K tokens of the largest region, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from export.models.dinov2 import Backbone


class Reencoder(nn.Module):
    """Regions of different sizes in one call: the smaller ones are padded with tokens that nothing attends to."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.block = backbone.blocks[-1]
        self.width = backbone.config.width

    def forward(self, tokens: Tensor, present: Tensor, weights: Tensor) -> Tensor:
        """Normed tokens (R, K, D), which of them are present (R, K) bool, and their weights (R, K) to vectors (R, D).

        No position embedding before and no norm after the block, as published.
        """
        out, _ = self.block(tokens, present)
        return (weights.unsqueeze(1) @ out).squeeze(1)
