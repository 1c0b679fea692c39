"""Token ids to text (published-system.md, section 6)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from runtime.bundle import HeldFile
from runtime.errors import BundleError

_END_OF_WORD = "</w>"
"""CLIP's vocabulary marks the end of a word in its tokens; others leave nothing of this to replace."""
_MAX_FILE_BYTES = 2**25
"""A vocabulary of 250,000 tokens with its merges has half of that."""
_MAX_TOKEN_CHARACTERS = 1024
_MAX_DECODERS = 16
_BOUNDED_DECODERS = frozenset({"BPEDecoder", "ByteFallback", "ByteLevel", "Fuse", "Metaspace", "Strip", "WordPiece"})
"""The steps of a decoder whose text is not longer than the tokens that they get, but for a space at each."""


class CaptionTokenizer:
    """A byte-pair vocabulary, read from a `tokenizer.json`.

    Args:
        file: the vocabulary.
        eos_token_id: the token that ends a caption.

    Raises:
        BundleError: the file is not a tokenizer, or its decoder could make long texts of few tokens.
    """

    def __init__(self, file: HeldFile, eos_token_id: int) -> None:
        if file.size > _MAX_FILE_BYTES:
            raise BundleError(f"{file.path}: expected at most {_MAX_FILE_BYTES} bytes, got {file.size}")
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(_decoding_part(json.loads(file.read()))))
        except BundleError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file.path}: not a tokenizer: {error}") from None
        longest = max(map(len, self._tokenizer.get_vocab()), default=0)
        if longest > _MAX_TOKEN_CHARACTERS:
            raise BundleError(
                f"{file.path}: expected tokens of at most {_MAX_TOKEN_CHARACTERS} characters, got one of {longest}"
            )
        self._eos_token_id = eos_token_id

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first end token, without spaces around it."""
        kept = list(ids)
        if self._eos_token_id in kept:
            kept = kept[: kept.index(self._eos_token_id)]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return str(text).replace(_END_OF_WORD, " ").strip()


def _decoding_part(contents: Any) -> dict[str, Any]:
    """Return what decoding needs of a `tokenizer.json`: no patterns, which only turn texts into tokens.

    Raises:
        ValueError: it has a decoder whose text may be much longer than its tokens.
    """
    if not isinstance(contents, dict):
        raise ValueError("expected an object")
    decoder = contents.get("decoder")
    _check_bounded(decoder)
    kept = {name: contents[name] for name in ("version", "model", "added_tokens") if name in contents}
    return {**kept, "decoder": decoder}


def _check_bounded(decoder: Any) -> None:
    if decoder is None:
        return
    steps = decoder.get("decoders") if decoder.get("type") == "Sequence" else [decoder]
    if len(steps) > _MAX_DECODERS:
        raise ValueError(f"decoder: expected at most {_MAX_DECODERS} steps, got {len(steps)}")
    for step in steps:
        kind = step.get("type")
        if kind == "Replace":
            pattern = step["pattern"].get("String", "")  # a regular expression may take for ever
            if not pattern or len(step["content"].encode()) > len(pattern.encode()):
                raise ValueError(f"decoder: Replace puts {step['content']!r} in the place of {step['pattern']}")
        elif kind not in _BOUNDED_DECODERS:
            raise ValueError(
                f"decoder: expected Replace or one of {', '.join(sorted(_BOUNDED_DECODERS))}, got {kind!r}"
            )
