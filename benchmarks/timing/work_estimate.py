"""The least work of each stage, worked out from the manifest: what no implementation at that precision can leave out.

Multiplications and additions count one each. Of memory, what must come from outside the caches counts, once: weights,
the bank, tokens, the decoder's cache; not what one layer hands the next. Biases and norms are left out.

Shapes: T tokens = 1 cls + registers + N patches, D width, p patch side, R regions, M memory rows, V vocabulary,
E decoder width.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.timing.report import Limits
from runtime.bundle import Architecture, DecoderSettings

_FLOAT32_BYTES = 4
_CACHE_BYTES = {"fp32": 4, "fp16": 2, "bf16": 2}


@dataclass(frozen=True)
class Work:
    """Arithmetic and memory traffic.

    Attributes:
        flop: multiplications and additions.
        bytes: read or written.
        narrow: whether the arithmetic is on numbers of fewer than 32 bits.
    """

    flop: int
    bytes: int
    narrow: bool = False

    def limit_ms(self, limits: Limits) -> float:
        """How long the machine takes at its best: the longer of arithmetic and traffic, which can overlap."""
        gflop_per_s = limits.bf16_gflop_per_s if self.narrow else limits.fp32_gflop_per_s
        return max(self.flop / gflop_per_s, self.bytes / limits.gigabytes_per_s) / 1e6


def backbone_work(seen: Architecture, weight_bytes: int = _FLOAT32_BYTES, images: int = 1) -> Work:
    """Each image: patch embedding (N, 3 p^2) @ (3 p^2, D); in each block the products with its matrices, 12 D^2 numbers
    (qkv 3, projection 1, feed-forward 8; ViT-g's gated layers have 8 too), and T x T attention scores and their sum of
    values; the cls scores."""
    patches = (seen.size // seen.patch) ** 2
    tokens = 1 + seen.registers + patches
    embedding, block = 3 * seen.patch**2 * seen.width, 12 * seen.width**2
    products = patches * embedding + seen.depth * (tokens * block + 2 * tokens**2 * seen.width) + patches * seen.width
    return Work(2 * images * products, weight_bytes * (embedding + seen.depth * block), weight_bytes < _FLOAT32_BYTES)


def pooling_work(seen: Architecture, regions: int) -> Work:
    """Weights (R, T) @ tokens (T, D)."""
    tokens = 1 + seen.registers + (seen.size // seen.patch) ** 2
    return Work(2 * regions * tokens * seen.width, _FLOAT32_BYTES * tokens * (regions + seen.width))


def projection_work(width: int, regions: int, memory_rows: int, memory_bytes: int) -> Work:
    """Similarities (R, D) @ (D, M) and the weighted sum (R, M) @ (M, D), the bank read once for both."""
    narrow = memory_bytes < _FLOAT32_BYTES * memory_rows * width
    return Work(4 * regions * memory_rows * width, memory_bytes, narrow)


def decoding_work(
    decoding: DecoderSettings, width: int, regions: int, steps: int, weight_bytes: int = _FLOAT32_BYTES
) -> Work:
    """``steps`` steps: each reads every matrix once, 12 E^2 numbers a layer and V E of the vocabulary, and takes each
    region through them; the first reads the (D, E) projection too. Step s attends to s + 1 positions, s of them from
    the cache."""
    e = decoding.width
    matrices = decoding.layers * 12 * e**2 + decoding.vocabulary * e
    attended, from_cache = steps * (steps + 1) // 2, steps * (steps - 1) // 2
    products = steps * matrices + width * e + decoding.layers * 2 * e * attended
    cache_bytes = _CACHE_BYTES[decoding.cache] * regions * decoding.layers * 2 * e * from_cache
    read_bytes = weight_bytes * (steps * matrices + width * e) + cache_bytes
    return Work(2 * regions * products, read_bytes, weight_bytes < _FLOAT32_BYTES)
