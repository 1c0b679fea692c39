"""The tokenizer of the demo's second decoder: GPT-2's byte-level BPE, small.

Every word of the demo's sentences is one token, and whatever else there is its bytes; made without chance.
"""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.checkpoint import END_TOKEN


def make_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Return a tokenizer that has a token for each word of some texts, with the space before it; END_TOKEN is the last.

    A word is put together from its left end, letter by letter, so that no merge comes in the way of another word.
    """
    pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words = sorted({word for text in texts for word, _ in pre_tokenizer.pre_tokenize_str(text)})
    merges = list(dict.fromkeys((word[:end], word[end]) for word in words for end in range(1, len(word))))
    pieces = [*sorted(pre_tokenizer.alphabet()), *(first + last for first, last in merges), END_TOKEN]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([END_TOKEN])
    return tokenizer
