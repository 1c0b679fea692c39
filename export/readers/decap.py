"""DeCap decoders: a small GPT-2 whose first input is the projected vector (published-system.md, section 6)."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from export.checkpoint import CheckpointError, load_weights
from export.models.decap_decoder import PUBLISHED_STEPS, DecapConfig, DecapStep
from export.readers.gpt2_weights import WPE, WTE, read_gpt2_state
from export.readers.layouts import depth_of
from export.readers.weight_files import read_pickle, weight

_GPT = "decoder."


def read_decap(path: Path, text_vocab_size: int) -> DecapStep:
    """Read the decoder in a .pt file; ids from ``text_vocab_size`` on have no text and are never chosen."""
    return decoder_from_state(read_pickle(path), text_vocab_size, str(path))


def decoder_from_state(state: dict[str, Tensor], text_vocab_size: int, source: str) -> DecapStep:
    """Return the decoder of a state dict; its width, layers and vocabulary are read off the weights.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    gpt = read_gpt2_state(state, _GPT, source)
    embedding, positions = gpt[WTE], weight(gpt, WPE, f"{source}: {_GPT}*")
    if embedding.shape[0] < text_vocab_size:
        raise CheckpointError(
            f"{source}: {_GPT}{WTE}: expected at least {text_vocab_size} rows, the tokenizer's tokens, got "
            f"{len(embedding)}"
        )
    gpt[WPE] = positions[:PUBLISHED_STEPS]
    others = {name: value for name, value in state.items() if not name.startswith(_GPT)}
    kept = {**{f"{_GPT}{name}": value for name, value in gpt.items()}, **others}
    config = DecapConfig(
        prefix_width=weight(kept, "clip_project.model.0.weight", source).shape[1],
        embed_dim=embedding.shape[1],
        num_layers=depth_of(gpt, "transformer.h"),
        vocab_size=embedding.shape[0],
        text_vocab_size=text_vocab_size,
        max_new_tokens=min(PUBLISHED_STEPS, len(positions)),
    )
    decoder = DecapStep(config)
    load_weights(decoder, kept, source)
    return decoder
