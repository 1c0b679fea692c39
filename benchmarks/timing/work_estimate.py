"""Lower bounds on the work of each stage, from the manifest: what no implementation at that precision can leave out.

Multiplications and additions count one each. Memory traffic is what must come from outside the caches, once: weights,
the bank, tokens and the KV cache, but not activations between layers. Biases and norms are left out.

Shapes: T tokens = global tokens + N patches, D width, p patch side, R regions, M memory rows, V vocabulary,
E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.timing.report import Limits
from runtime.bundle import BackboneConfig, DecoderConfig
from runtime.bundle.dtypes import NUMBER_FORMATS

_FLOAT32_BYTES = 4


@dataclass(frozen=True)
class WorkEstimate:
    """Arithmetic and memory traffic of one stage.

    Attributes:
        flop: multiplications and additions.
        bytes: read or written.
        reduced_precision: whether the operands of the arithmetic have fewer than 32 bits.
    """

    flop: int
    bytes: int
    reduced_precision: bool = False

    def limit_ms(self, limits: Limits) -> float:
        """Return the time at the machine's best rates: the longer of arithmetic and traffic, which can overlap."""
        gflop_per_s = limits.bf16_gflop_per_s if self.reduced_precision else limits.fp32_gflop_per_s
        return max(self.flop / gflop_per_s, self.bytes / limits.gigabytes_per_s) / 1e6


def backbone_work(backbone: BackboneConfig, weight_bytes: int = _FLOAT32_BYTES, images: int = 1) -> WorkEstimate:
    """Estimate the backbone on several images.

    Each image: patch embedding (N, 3 p^2) @ (3 p^2, D); in each block the products with its matrices of 12 D^2 weights
    (qkv 3, projection 1, feed-forward 8, as ViT-g's gated layers have too), T x T attention scores and the weighted sum
    of values; at the end the attention logits of cls.
    """
    width, depth = backbone.embed_dim, backbone.depth
    patches, tokens = backbone.tokens.num_patches, backbone.tokens.num_tokens
    embedding, block = 3 * backbone.patch_size**2 * width, 12 * width**2
    products = patches * embedding + depth * (tokens * block + 2 * tokens**2 * width) + patches * width
    weights = embedding + depth * block
    return WorkEstimate(2 * images * products, weight_bytes * weights, weight_bytes < _FLOAT32_BYTES)


def pooling_work(backbone: BackboneConfig, regions: int) -> WorkEstimate:
    """Estimate the product of weight rows (R, T) and tokens (T, D)."""
    tokens, width = backbone.tokens.num_tokens, backbone.output_dim
    traffic = _FLOAT32_BYTES * tokens * (regions + width)
    return WorkEstimate(2 * regions * tokens * width, traffic)


def projection_work(width: int, regions: int, memory_rows: int, memory_bytes: int) -> WorkEstimate:
    """Estimate similarities (R, D) @ (D, M) and the weighted sum (R, M) @ (M, D), with the bank read once for both."""
    reduced_precision = memory_bytes < _FLOAT32_BYTES * memory_rows * width
    return WorkEstimate(4 * regions * memory_rows * width, memory_bytes, reduced_precision)


def decoding_work(
    decoder: DecoderConfig, width: int, regions: int, steps: int, weight_bytes: int = _FLOAT32_BYTES
) -> WorkEstimate:
    """Estimate ``steps`` decoding steps of all regions.

    Each step reads every matrix once, 12 E^2 weights a layer and V E of the vocabulary, and takes each region through
    them; the first reads the (D, E) projection too. Step s attends to s + 1 positions, s of them from the KV cache.
    """
    e = decoder.embed_dim
    matrices = decoder.num_layers * 12 * e**2 + decoder.vocab_size * e
    attended, from_cache = steps * (steps + 1) // 2, steps * (steps - 1) // 2
    products = steps * matrices + width * e + decoder.num_layers * 2 * e * attended
    cache_bytes = NUMBER_FORMATS[decoder.cache_precision].bytes * regions * decoder.num_layers * 2 * e * from_cache
    read_bytes = weight_bytes * (steps * matrices + width * e) + cache_bytes
    return WorkEstimate(2 * regions * products, read_bytes, weight_bytes < _FLOAT32_BYTES)
