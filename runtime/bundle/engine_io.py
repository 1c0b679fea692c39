"""The contract of a bundle's engines: `runtime.bundle.graph_io`, with the numbers of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.bundle.graph_io import (
    MAPPING,
    REENCODER,
    GraphIo,
    backbone,
    beam_decoder_step,
    decoder_step,
    prefill,
)
from runtime.bundle.manifest import EngineName, Manifest

_GRAPHS: Mapping[EngineName, Callable[[Manifest], GraphIo]] = {
    "backbone": lambda manifest: backbone(
        manifest.backbone.attention_heads > 0, manifest.backbone.preprocessing.channels
    ),
    "reencoder": lambda _: REENCODER,
    "mapping": lambda _: MAPPING,
    "prefill": lambda manifest: prefill(manifest.decoder.num_layers),
    "decoder": lambda manifest: decoder_step(manifest.decoder.num_layers, manifest.decoder.prompt is not None),
    "beam_decoder": lambda manifest: beam_decoder_step(
        manifest.decoder.num_layers, manifest.decoder.prompt is not None
    ),
}


def engine_io(name: EngineName, manifest: Manifest) -> GraphIo:
    """Return the inputs and outputs of an engine's graph."""
    return _GRAPHS[name](manifest)


def fixed_sizes(manifest: Manifest) -> dict[str, int]:
    """Return the sizes of the axes that a bundle fixes, by their names in `runtime.bundle.graph_io`."""
    config, decoder = manifest.backbone, manifest.decoder
    return {
        "image_size": config.preprocessing.image_size,
        "tokens": config.tokens.num_tokens,
        "patches": config.tokens.num_patches,
        "width": config.output_dim,
        "attention_heads": config.attention_heads,
        "heads": decoder.num_heads,
        "positions": decoder.cache_positions,
        "attended_positions": decoder.cache_positions + 1,
        "head_dim": decoder.head_dim,
        "embed_dim": decoder.embed_dim,
        "soft_tokens": decoder.prompt.soft_tokens if decoder.prompt else 0,
    }
