"""The re-encoder: the tokens of regions pass the backbone's last block once more, without those outside of them.

Shapes: B images, T tokens, D width, R regions, K tokens of the largest region of a run, r regions of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, uint8

from runtime.backends import Engine
from runtime.backends.base import LazyEngine
from runtime.bundle.graph_io import TOKEN_MASK, TOKEN_WEIGHTS, TOKENS, VECTORS, ReencoderBatch

_MAX_PADDING, _SMALL_REGION = 1.25, 16
"""Regions share a run where the larger has at most that many times the tokens of the smaller, or that many tokens."""


class RegionReencoder:
    """Runs the last block over regions in batches; its engine is opened when it is first asked for.

    Args:
        batches: the largest runs (`runtime.bundle.graph_io.reencoder_batches`).
    """

    def __init__(self, open_engine: Callable[[], Engine], batches: Sequence[ReencoderBatch]) -> None:
        self._engine, self._batches = LazyEngine(open_engine), batches

    def __call__(self, tokens: Tensor, images: Tensor, mask: Tensor, weights: Tensor) -> Tensor:
        """Return the vectors (R, D) of the masked tokens (R, T) of each region's image (R,) in ``tokens`` (B, T, D).

        Args:
            weights: of each token in its region's vector (R, T).
        """
        engine = self._engine.get()
        vectors = tokens.new_empty(len(mask), tokens.shape[-1])
        counts = mask.sum(dim=1)
        masked_first = mask.to(uint8).argsort(dim=1, descending=True, stable=True)
        for group in _group_by_count(counts.tolist(), self._batches):
            indices = masked_first[group, : int(counts[group].max())]  # (r, K); surplus tokens of a region are masked
            outputs = engine.run(
                {
                    TOKENS: tokens[images[group, None], indices],
                    TOKEN_MASK: mask[group].gather(1, indices),
                    TOKEN_WEIGHTS: weights[group].gather(1, indices),
                }
            )
            vectors[group] = outputs[VECTORS]
        return vectors

    def close(self) -> None:
        """Close the engine if it was opened."""
        self._engine.close()


def _group_by_count(counts: Sequence[int], batches: Sequence[ReencoderBatch]) -> list[list[int]]:
    """Return regions in groups of similar token counts, none larger than a batch, so that padding stays small."""
    groups: list[list[int]] = []
    for region in sorted(range(len(counts)), key=counts.__getitem__):
        largest = counts[region]
        is_similar = groups and largest <= max(_MAX_PADDING * counts[groups[-1][0]], _SMALL_REGION)
        # Features of larger images than the bundle's may have regions of more tokens: those are taken one by one.
        most = max((batch.regions for batch in batches if batch.tokens >= largest), default=1)
        if not is_similar or len(groups[-1]) >= most:
            groups.append([])
        groups[-1].append(region)
    return groups
