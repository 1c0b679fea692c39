"""DeCap decoders: a small GPT-2 whose first input is the projected vector (published-system.md, section 6)."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.decap_decoder import PUBLISHED_STEPS, DecapConfig, DecapStep
from export.readers.weight_files import read_pickle, weight

_HEAD = "decoder.lm_head.weight"
_MASK_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")  # attention masks that old versions of GPT-2 stored
_WTE, _WPE = "decoder.transformer.wte.weight", "decoder.transformer.wpe.weight"


def read_decap(path: Path, text_vocab_size: int) -> DecapStep:
    """Read the decoder in a .pt file; ids from ``text_vocab_size`` on have no text and are never chosen."""
    return decoder_from_state(read_pickle(path), text_vocab_size, str(path))


def decoder_from_state(state: dict[str, Tensor], text_vocab_size: int, source: str) -> DecapStep:
    """Return the decoder of a state dict; its width, layers and vocabulary are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    kept = {name: value for name, value in state.items() if not _MASK_BUFFERS.search(name)}
    embedding = weight(kept, _WTE, source)
    head = kept.pop(_HEAD, embedding)
    if head.shape != embedding.shape or not head.equal(embedding):
        raise CheckpointError(f"{source}: {_HEAD}: expected the values of {_WTE}, to which it is tied")
    if embedding.shape[0] < text_vocab_size:
        raise CheckpointError(
            f"{source}: {_WTE}: expected at least {text_vocab_size} rows, the tokenizer's tokens, got {len(embedding)}"
        )
    positions = weight(kept, _WPE, source)
    kept[_WPE] = positions[:PUBLISHED_STEPS]
    config = DecapConfig(
        prefix_width=weight(kept, "clip_project.model.0.weight", source).shape[1],
        embed_dim=embedding.shape[1],
        num_layers=len({name.split(".")[3] for name in kept if name.startswith("decoder.transformer.h.")}),
        vocab_size=embedding.shape[0],
        text_vocab_size=text_vocab_size,
        max_new_tokens=min(PUBLISHED_STEPS, len(positions)),
    )
    decoder = DecapStep(config)
    load_weights(decoder, kept, source)
    return decoder
