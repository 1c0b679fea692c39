"""Token ids to text (SPEC section 6)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from runtime.errors import BundleError


class CaptionTokenizer:
    """A CLIP-style byte-pair vocabulary, read from a `tokenizer.json`.

    Args:
        file: the vocabulary.
        end_id: the token that ends a caption.

    Raises:
        BundleError: the file is not a tokenizer.
    """

    def __init__(self, file: Path, end_id: int) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise BundleError(f"{file}: not a tokenizer: {error}") from None
        self._end_id = end_id

    def text(self, ids: Sequence[int]) -> str:
        """The text of ids up to the first end token, without spaces around it."""
        spoken = list(ids)
        if self._end_id in spoken:
            spoken = spoken[: spoken.index(self._end_id)]
        pieces = self._tokenizer.decode(spoken, skip_special_tokens=True)
        return str(pieces).replace("</w>", " ").strip()
