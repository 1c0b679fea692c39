"""The shapes that TensorRT plans of a bundle's graphs take: one profile for each way of using them.

Shapes: B images, S input side, R regions, T tokens, D width, H heads, P positions, d head width.
"""

from __future__ import annotations

from collections.abc import Iterable

from export.plans.builder import Profile
from runtime.bundle import Architecture, DecoderSettings, Shape, ShapeRange

BATCHES = (1, 4, 16, 64, 256)
"""Numbers of captions that are worth a profile, and a captured graph, of their own."""


def batches(max_regions: int) -> tuple[int, ...]:
    """Those of them up to a largest one, which is always among them."""
    return (*(rows for rows in BATCHES if rows < max_regions), max_regions)


def of_backbone(seen: Architecture) -> list[Profile]:
    """Single images, which video brings, and as many as go at once."""
    one, most = ((count, seen.size, seen.size, 3) for count in (1, seen.images_at_once))
    alone = {"pixels": _fixed(one)}
    return [alone] if seen.images_at_once == 1 else [alone, {"pixels": ShapeRange(least=one, best=most, most=most)}]


def of_decoder(seen: Architecture, decoding: DecoderSettings) -> list[Profile]:
    """A fixed shape for each batch: nothing is left to choose at run time."""
    return [{name: _fixed(shape) for name, shape in _decoder_shapes(seen, decoding, rows)} for rows in decoding.batches]


def of_beam_decoder(seen: Architecture, decoding: DecoderSettings) -> list[Profile]:
    """Any number of rows: beams leave as their regions are done."""
    few, most = (dict(_decoder_shapes(seen, decoding, rows)) for rows in (1, decoding.batches[-1]))
    return [{name: ShapeRange(least=few[name], best=most[name], most=most[name]) for name in few}]


def of_reencoder(seen: Architecture, decoding: DecoderSettings) -> list[Profile]:
    """Any number of regions up to a batch, of any number of patches, and a cls token with them."""
    tokens = 1 + (seen.size // seen.patch) ** 2
    most = decoding.batches[-1]
    best_rows, best_tokens = min(16, most), max(1, tokens // 4)

    def shapes(*tail: int) -> ShapeRange:
        return ShapeRange(least=(1, 1, *tail), best=(best_rows, best_tokens, *tail), most=(most, tokens, *tail))

    return [{"tokens": shapes(seen.width), "present": shapes(), "weights": shapes()}]


def _decoder_shapes(seen: Architecture, decoding: DecoderSettings, rows: int) -> Iterable[tuple[str, Shape]]:
    """Of all inputs whose shapes are dynamic."""
    yield "vectors", (rows, seen.width)
    yield "tokens", (rows,)
    for layer in range(decoding.layers):
        for kind in ("key", "value"):
            yield f"past_{kind}_{layer}", (rows, decoding.heads, decoding.steps, decoding.head_width)


def _fixed(shape: Shape) -> ShapeRange:
    return ShapeRange(least=shape, best=shape, most=shape)
