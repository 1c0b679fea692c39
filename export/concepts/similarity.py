"""Which entities mean much the same: embeddings of their names by all-MiniLM-L6-v2, and the pairs that are close.

Shapes: E names, W width of their embeddings (published-system.md, section 19).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.pretrained import load_model, load_pretrained_tokenizer
from runtime.bundle.concept_arrays import IntegerLists

PUBLISHED_ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MIN_COSINE = 0.55
"""Entities are similar above it."""
_FLAG, _WHAT = "viecap.meacap.wte_model_path", "the encoder of entities' names"
_MAX_TOKENS = 256
_BATCH_SIZE = 256
_BLOCK_ROWS = 1024

NameEncoder: TypeAlias = Callable[[Sequence[str]], Tensor]
"""Makes embeddings (E, W) float32 of unit length of names."""


def load_name_encoder(weights: str, device: str) -> NameEncoder:
    """Load the encoder of names.

    Args:
        weights: a folder of transformers, or a repository of the Hugging Face hub.
        device: where it runs, "cpu" for example.

    Raises:
        CheckpointError: it is nowhere, or cannot be loaded.
    """
    from transformers import AutoModel

    model = load_model(AutoModel, weights, device, _FLAG, _WHAT)
    tokenizer = load_pretrained_tokenizer(weights, _FLAG)

    @torch.inference_mode()
    def embed(names: Sequence[str]) -> Tensor:
        if not names:
            return torch.zeros(0, model.config.hidden_size)
        in_order = sorted(range(len(names)), key=lambda index: len(names[index]))  # those of a batch are alike long
        batches = [in_order[start : start + _BATCH_SIZE] for start in range(0, len(names), _BATCH_SIZE)]
        embeddings = torch.cat([_embed_batch(model, tokenizer, [names[index] for index in batch]) for batch in batches])
        return embeddings[torch.tensor(in_order).argsort()]

    return embed


def _embed_batch(model: Any, tokenizer: Any, names: Sequence[str]) -> Tensor:
    """Return the mean of the tokens' last hidden states, at unit length."""
    inputs = tokenizer(list(names), padding=True, truncation=True, max_length=_MAX_TOKENS, return_tensors="pt")
    inputs = inputs.to(model.device)
    mask = inputs["attention_mask"][..., None]
    means = (model(**inputs).last_hidden_state * mask).sum(dim=1) / mask.sum(dim=1)
    return F.normalize(means, dim=-1).float().cpu()


def similar_lists(embeddings: Tensor) -> IntegerLists:
    """Return for each of the embeddings (E, W) the others whose cosine is above `MIN_COSINE`, rising.

    Raises:
        CheckpointError: an embedding is not finite, or nearly all are similar.
    """
    if not embeddings.isfinite().all():
        raise CheckpointError("the embeddings of entities' names: expected finite numbers, got NaN or infinity")
    units = F.normalize(embeddings.float(), dim=-1)
    firsts, seconds = zip(*(_pairs(units, start) for start in range(0, max(1, len(units)), _BLOCK_ROWS)), strict=True)
    first, second = np.concatenate(firsts), np.concatenate(seconds)
    if 2 * len(first) >= 2**31:
        raise CheckpointError(f"expected fewer than 2**31 pairs of similar entities among {len(units)}")
    rows, values = np.concatenate([first, second]), np.concatenate([second, first])
    in_order = np.lexsort((values, rows))
    offsets = np.zeros(len(units) + 1, np.int32)
    np.cumsum(np.bincount(rows, minlength=len(units)), out=offsets[1:])
    return IntegerLists(offsets, values[in_order])


def _pairs(units: Tensor, start: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the similar pairs of a block of rows with what comes after each."""
    block = units[start : start + _BLOCK_ROWS] @ units[start:].T > MIN_COSINE
    first, second = (block.triu(diagonal=1).nonzero() + start).to(torch.int32).unbind(dim=1)
    return first.numpy(), second.numpy()
