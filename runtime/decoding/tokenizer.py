"""Token ids to text (published-system.md, section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import BundleError

_END_OF_WORD = "</w>"
"""CLIP's vocabulary marks the end of a word in its tokens; others leave nothing of this to replace."""


class CaptionTokenizer:
    """A byte-pair vocabulary, read from a `tokenizer.json`.

    Args:
        file: the vocabulary.
        eos_token_id: the token that ends a caption.

    Raises:
        BundleError: the file is not a tokenizer.
    """

    def __init__(self, file: Path, eos_token_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: not a tokenizer: {error}") from None
        self._eos_token_id = eos_token_id

    def text(self, ids: Sequence[int]) -> str:
        """Return the text of ids up to the first end token, without spaces around it."""
        kept = list(ids)
        if self._eos_token_id in kept:
            kept = kept[: kept.index(self._eos_token_id)]
        text = self._tokenizer.decode(kept, skip_special_tokens=True)
        return str(text).replace(_END_OF_WORD, " ").strip()
