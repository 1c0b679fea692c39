"""Token ids to text (published-system.md, section 6)."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
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
        eos_token_ids: the tokens that end a caption.
        keeps_eos: whether the end token is part of the text.
        text_end: what ends every text: it is cut after the first, and gets one where it has none; "" for nothing.

    Raises:
        BundleError: the file is not a tokenizer, or its decoder could make long texts of few tokens.
    """

    def __init__(
        self, file: HeldFile, eos_token_ids: Collection[int], keeps_eos: bool = False, text_end: str = ""
    ) -> None:
        if file.size > _MAX_FILE_BYTES:
            raise BundleError(f"{file.path}: expected at most {_MAX_FILE_BYTES} bytes, got {file.size}")
        try:
            self._tokenizer = Tokenizer.from_str(json.dumps(_used_part(json.loads(file.read()))))
        except BundleError:
            raise
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file.path}: not a tokenizer: {error}") from None
        longest = max(map(len, self._tokenizer.get_vocab()), default=0)
        if longest > _MAX_TOKEN_CHARACTERS:
            raise BundleError(
                f"{file.path}: expected tokens of at most {_MAX_TOKEN_CHARACTERS} characters, got one of {longest}"
            )
        self._eos_token_ids, self._keeps_eos, self._text_end = frozenset(eos_token_ids), keeps_eos, text_end

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first end token, without spaces around it."""
        return self.full_text(ids).strip()

    def full_text(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first end token, with the space that it may begin with."""
        end = next((index for index, token in enumerate(ids) if token in self._eos_token_ids), len(ids))
        kept = list(ids[: end + 1 if self._keeps_eos else end])
        text = str(self._tokenizer.decode(kept, skip_special_tokens=True)).replace(_END_OF_WORD, " ")
        return text.partition(self._text_end)[0] + self._text_end if self._text_end else text

    def ids(self, text: str) -> list[int]:
        """Return the token ids of a text, for a vocabulary of whole bytes, as GPT-2's."""
        found: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return found


def _used_part(contents: Any) -> dict[str, Any]:
    """Return what is needed of a `tokenizer.json`: no patterns but GPT-2's own, which the library has.

    Raises:
        ValueError: it has a decoder whose text may be much longer than its tokens.
    """
    if not isinstance(contents, dict):
        raise ValueError("expected an object")
    decoder = contents.get("decoder")
    _check_bounded(decoder)
    kept = {name: contents[name] for name in ("version", "model", "added_tokens") if name in contents}
    splits = contents.get("pre_tokenizer")
    if isinstance(splits, dict) and splits.get("type") == "ByteLevel":
        kept["pre_tokenizer"] = splits
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
