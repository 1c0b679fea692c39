"""DeCap's decoder as it is trained (published-system.md, section 6); its parameters have the published names.

Shapes: B captions of a batch, L tokens of a caption, D width of the embeddings, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from export.checkpoint import CheckpointError
from export.models.decap_decoder import PUBLISHED_HEADS
from export.readers.gpt2_weights import WPE, WTE, read_gpt2_state
from export.readers.layouts import depth_of
from export.readers.weight_files import read_pickle, weight

_GPT, _HEAD = "decoder.", "lm_head.weight"


@dataclass(frozen=True)
class DecoderSize:
    """The sizes of a decoder; the defaults are the published ones.

    Attributes:
        prefix_width: D, the width of the embeddings.
        vocab_size: V, which may be more than the tokenizer has.
        width: of the decoder's own vectors, a multiple of its 4 heads.
        positions: of captions, the embedding included.
        dropout: probability that a value is left out in training.
    """

    prefix_width: int
    vocab_size: int = 50257
    width: int = 768
    layers: int = 4
    positions: int = 1024
    dropout: float = 0.1


class TrainableDecap(nn.Module):
    """GPT-2 whose first input is the projected embedding."""

    def __init__(self, size: DecoderSize) -> None:
        super().__init__()
        self.size = size
        self.decoder = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=size.vocab_size,
                n_positions=size.positions,
                n_embd=size.width,
                n_layer=size.layers,
                n_head=PUBLISHED_HEADS,
                resid_pdrop=size.dropout,
                embd_pdrop=size.dropout,
                attn_pdrop=size.dropout,
                bos_token_id=None,
                eos_token_id=None,
            )
        )
        self.clip_project = nn.ModuleDict({"model": nn.Sequential(nn.Linear(size.prefix_width, size.width))})

    def forward(self, embeddings: Tensor, token_ids: Tensor) -> Tensor:
        """Return the logits (B, L, V) of L tokens, each from the embeddings (B, D) and the tokens (B, L) before it."""
        prefix = self.clip_project["model"](embeddings).unsqueeze(1)
        words = self.decoder.transformer.wte(token_ids[:, :-1])
        return self.decoder(inputs_embeds=torch.cat([prefix, words], dim=1)).logits


def load_decoder(path: Path, dropout: float) -> TrainableDecap:
    """Return the decoder in a .pt file of the published layout, to train it further; its sizes are the file's.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped.
    """
    source = str(path)
    state = read_pickle(path)
    gpt = read_gpt2_state(state, _GPT, source)
    project = weight(state, "clip_project.model.0.weight", source)
    size = DecoderSize(
        prefix_width=project.shape[1],
        vocab_size=gpt[WTE].shape[0],
        width=gpt[WTE].shape[1],
        layers=depth_of(gpt, "transformer.h"),
        positions=weight(gpt, WPE, source).shape[0],
        dropout=dropout,
    )
    others = {name: value for name, value in state.items() if not name.startswith(_GPT)}
    named = {f"{_GPT}{name}": value.float() for name, value in (gpt | {_HEAD: gpt[WTE]}).items()} | others
    model = TrainableDecap(size)
    try:
        model.load_state_dict(named)
    except RuntimeError as error:
        raise CheckpointError(f"{source}: {' '.join(str(error).split())}") from None
    return model
