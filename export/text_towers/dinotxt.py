"""DINO.txt's text tower, a file of weights (published-system.md, section 15).

Its embeddings are two halves, aligned with cls and with patches; a bank holds both, and its reader keeps one
(`export.text_spaces`).
"""

from __future__ import annotations

from export.readers.layouts import Layout
from export.text_towers.base import TextTower, TowerRequest
from export.text_towers.clip import with_clip_tokens
from export.text_towers.transformer import read_state, text_transformer_from_state

_DINOTXT = Layout(
    marker="head.linear_projection.weight",
    names={
        "backbone.token_embedding": "token_embedding",
        "backbone.positional_embedding": "pos_embed",
        "backbone.ln_final": "norm",
        "head.linear_projection": "head",
    },
    block="backbone.blocks.#.",
    block_names={
        "attention_norm": "norm1",
        "attention.qkv": "attn.qkv",
        "attention.proj": "attn.proj",
        "ffn_norm": "norm2",
        "feed_forward.fc1": "mlp.fc1",
        "feed_forward.fc2": "mlp.fc2",
    },
)


def load_dinotxt(request: TowerRequest) -> TextTower:
    """Load the tower; it takes CLIP's tokens.

    Raises:
        CheckpointError: the file or CLIP's vocabulary is nowhere, or cannot be read.
    """
    state, source = read_state(request, _DINOTXT)
    return with_clip_tokens(text_transformer_from_state(state, "gelu", source), request)
