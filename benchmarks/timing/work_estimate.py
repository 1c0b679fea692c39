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
    decoder: DecoderConfig,
    width: int,
    regions: int,
    steps: int,
    weight_bytes: int = _FLOAT32_BYTES,
    mapping_weights: int = 0,
) -> WorkEstimate:
    """Estimate the decoding of captions of ``steps`` tokens for all regions.

    Each step reads every matrix once, 12 E^2 weights a layer and V E of the vocabulary, and takes each region through
    them; DeCap's first reads the (D, E) projection too. Step s attends to s + 1 positions, s of them from the KV cache.

    Of a decoder with a prompt the mapping's weights are read once, and each region goes through each of them at least
    once. The prompt, its words left out, goes through the layers in one run, which gives the first token; each step
    attends to it too.

    Args:
        mapping_weights: the number of the mapping's weights; 0 for a decoder without a prompt.
    """
    e = decoder.embed_dim
    layers, vocabulary = decoder.num_layers * 12 * e**2, decoder.vocab_size * e
    before = mapping_weights if decoder.prompt else width * e
    prompt = _least_prompt(decoder)
    alone = steps - 1 if prompt else steps  # the steps but for that of the prompt's run
    from_cache = alone * prompt + alone * (alone - 1) // 2
    attended = prompt * (prompt + 1) // 2 + from_cache + alone
    products = before + (prompt + alone) * layers + steps * vocabulary + decoder.num_layers * 2 * e * attended
    cache_bytes = NUMBER_FORMATS[decoder.cache_precision].bytes * regions * decoder.num_layers * 2 * e * from_cache
    read_bytes = weight_bytes * (before + steps * (layers + vocabulary)) + cache_bytes
    return WorkEstimate(2 * regions * products, read_bytes, weight_bytes < _FLOAT32_BYTES)


def _least_prompt(decoder: DecoderConfig) -> int:
    """Return the fewest tokens of a prompt: its soft ones; 0 for a decoder without a prompt."""
    if decoder.prompt is None:
        return 0
    return 1 if decoder.prompt.order == "hard_only" else decoder.prompt.soft_tokens
