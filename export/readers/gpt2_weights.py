"""What all published state dicts of GPT-2 have in common: a tied head, and masks that old versions stored."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.weight_files import weight

WTE, WPE = "transformer.wte.weight", "transformer.wpe.weight"
_HEAD = "lm_head.weight"
_MASK_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")


def read_gpt2_state(state: Mapping[str, Tensor], prefix: str, source: str) -> dict[str, Tensor]:
    """Return the weights of a GPT-2 by transformers' names: those that begin with a prefix, without head and masks.

    Raises:
        CheckpointError: the head is not tied to the embedding of tokens.
    """
    named = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    kept = {name: value for name, value in named.items() if not _MASK_BUFFERS.search(name)}
    embedding = weight(dict(state), f"{prefix}{WTE}", source)
    head = kept.pop(_HEAD, embedding)
    if head.shape != embedding.shape or not head.equal(embedding):
        raise CheckpointError(f"{source}: {prefix}{_HEAD}: expected the values of {prefix}{WTE}, to which it is tied")
    return kept
