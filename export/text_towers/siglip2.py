"""SigLIP 2's text tower, by transformers (published-system.md, section 15)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from export.readers.clip_bpe import read_tokenizer, token_id
from export.readers.hub import FileRequest, resolve_files
from export.readers.pretrained import identify
from export.text_towers.base import TOKENIZER_FILE, TextTower, TowerRequest, embed_on
from export.text_towers.pretrained import load_pretrained

END_TOKEN = "<eos>"
PAD_ID = 0


def load_siglip2(request: TowerRequest) -> TextTower:
    """Load the text tower of a SigLIP 2 folder or repository, and the tokenizer beside it.

    Raises:
        CheckpointError: one of them is nowhere, or cannot be read.
    """
    from transformers import SiglipTextModel

    model = load_pretrained(SiglipTextModel, request)
    tokenizer = _tokenizer(request)
    return TextTower(
        tokenize=partial(pad_to_end, tokenizer, model.config.max_position_embeddings),
        embed_ids=embed_on(request.device, lambda ids: model(ids).pooler_output),
        width=model.config.projection_size,
        text_space=str(request.text_space),
        identity=identify(request.weights, model, tokenizer),
    )


def pad_to_end(tokenizer: Tokenizer, num_positions: int, captions: Sequence[str]) -> Tensor:
    """Return token ids (m, num_positions) of lower-cased captions: cut, ended and padded, but nowhere masked.

    The tower reads its last position, whatever that holds.
    """
    texts = [caption.lower() for caption in captions]
    rows = torch.full((len(texts), num_positions), PAD_ID)
    end = token_id(tokenizer, END_TOKEN)
    for row, encoding in zip(rows, tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = torch.tensor([*encoding.ids[: num_positions - 1], end])
        row[: len(ids)] = ids
    return rows


def _tokenizer(request: TowerRequest) -> Tokenizer:
    path = request.tokenizer_file
    if path is None:
        folders = (Path(request.weights),) if Path(request.weights).is_dir() else ()
        sources = () if folders else ((request.weights, TOKENIZER_FILE),)
        wanted = FileRequest("the text tower's tokenizer", (TOKENIZER_FILE,), sources)
        (path,) = resolve_files([wanted], folders, f"--text-tower {request.weights}", "name it with --tokenizer")
    tokenizer = read_tokenizer(path)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer
