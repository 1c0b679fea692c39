"""The re-encoder ("double DINO"): the backbone's last block applied to a region's tokens alone.

See published-system.md, section 4.
Shapes: R regions, K tokens of the largest region, D width.
"""

from __future__ import annotations

from torch import Tensor, nn

from export.models.base import BackboneModel


class Reencoder(nn.Module):
    """The last block for regions of different sizes in one call: the smaller ones are padded with masked tokens."""

    def __init__(self, backbone: BackboneModel) -> None:
        super().__init__()
        block = backbone.last_block
        assert block is not None, "this backbone has no re-encoder"
        self.block = block
        self.width = backbone.output_dim

    def forward(self, tokens: Tensor, token_mask: Tensor, token_weights: Tensor) -> Tensor:
        """Return vectors (R, D) of normed tokens (R, K, D), their mask (R, K) bool and their weights (R, K).

        No position embedding before and no norm after the block, as published.
        """
        out, *_ = self.block(tokens, token_mask)
        return (token_weights.unsqueeze(-1) * out).sum(1)
