"""DeCap decoders: a small GPT-2 whose first input is the projected region vector (SPEC section 6)."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from export.checkpoint import CheckpointError, fill
from export.models.decap_decoder import PUBLISHED_STEPS, DecoderConfig, DecoderStep
from export.readers.weight_files import read_pickle, weight

_HEAD = "decoder.lm_head.weight"
_MASK_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")  # attention masks that old versions of GPT-2 stored
_WTE, _WPE = "decoder.transformer.wte.weight", "decoder.transformer.wpe.weight"


def read_decap(path: Path, text_vocabulary: int) -> DecoderStep:
    """The decoder in a .pt file; ids from ``text_vocabulary`` on have no text and are never chosen."""
    return decoder_from_state(read_pickle(path), text_vocabulary, str(path))


def decoder_from_state(state: dict[str, Tensor], text_vocabulary: int, source: str) -> DecoderStep:
    """The decoder of a state dict; its width, layers and vocabulary are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    kept = {name: value for name, value in state.items() if not _MASK_BUFFERS.search(name)}
    embedding = weight(kept, _WTE, source)
    head = kept.pop(_HEAD, embedding)
    if head.shape != embedding.shape or not head.equal(embedding):
        raise CheckpointError(f"{source}: {_HEAD}: expected the values of {_WTE}, to which it is tied")
    if embedding.shape[0] < text_vocabulary:
        raise CheckpointError(
            f"{source}: {_WTE}: expected at least {text_vocabulary} rows, the tokenizer's tokens, got {len(embedding)}"
        )
    positions = weight(kept, _WPE, source)
    kept[_WPE] = positions[:PUBLISHED_STEPS]
    config = DecoderConfig(
        prefix_width=weight(kept, "clip_project.model.0.weight", source).shape[1],
        width=embedding.shape[1],
        layers=len({name.split(".")[3] for name in kept if name.startswith("decoder.transformer.h.")}),
        vocabulary=embedding.shape[0],
        text_vocabulary=text_vocabulary,
        steps=min(PUBLISHED_STEPS, len(positions)),
    )
    decoder = DecoderStep(config)
    fill(decoder, kept, source)
    return decoder
