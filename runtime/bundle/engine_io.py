"""The contract of a bundle's engines: `runtime.bundle.graph_io`, with the numbers of the manifest."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.bundle.graph_io import REENCODER, GraphIo, backbone, beam_decoder_step, decoder_step
from runtime.bundle.manifest import EngineName, Manifest

_GRAPHS: Mapping[EngineName, Callable[[Manifest], GraphIo]] = {
    "backbone": lambda manifest: backbone(manifest.backbone.attention_heads > 0),
    "reencoder": lambda _: REENCODER,
    "decoder": lambda manifest: decoder_step(manifest.decoder.num_layers),
    "beam_decoder": lambda manifest: beam_decoder_step(manifest.decoder.num_layers),
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
        "positions": decoder.max_new_tokens,
        "head_dim": decoder.head_dim,
    }
