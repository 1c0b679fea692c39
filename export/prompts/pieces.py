"""The pieces of prompts, made by a decoder's tokenizer once for all names (published-system.md, section 18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

from runtime.bundle.prompt_pieces import MAX_PIECE_IDS, PromptPieces

_HEAD, _NOTHING, _TAIL = "There are", " something", " in image."
_COMMA = ","
PIECES_FILE = "prompt_pieces.json"
"""The file of the pieces in a bundle."""


@dataclass(frozen=True, eq=False)
class MadePieces:
    """The pieces of some names.

    Attributes:
        pieces: in the order of the names.
        notes: what the user should know about them.
    """

    pieces: PromptPieces
    notes: tuple[str, ...] = ()


def make_pieces(names: Sequence[str], tokenizer: Tokenizer, max_ids: int = MAX_PIECE_IDS) -> MadePieces:
    """Return the pieces of names in prompts: "There are NAME, NAME in image.", with any number of them.

    A name of more tokens than ``max_ids`` is cut, so that prompts stay short enough for a decoder; a note says so.
    """
    head, nothing, tail, comma = _encode([_HEAD, _NOTHING, _TAIL, _COMMA], tokenizer)
    plain = _encode([f" {name}" for name in names], tokenizer)
    before_comma = _encode([f" {name}{_COMMA}" for name in names], tokenizer)
    pieces, cut = [], []
    for name, ids, comma_ids in zip(names, plain, before_comma, strict=True):
        if len(ids) > max_ids or len(comma_ids) > max_ids + len(comma):
            cut.append(name)
            ids = ids[:max_ids]
            comma_ids = ids + comma
        pieces.append((ids, comma_ids))
    notes = (f"{len(cut)} names are cut to {max_ids} tokens in prompts, {cut[0][:40]!r}... for example",) if cut else ()
    return MadePieces(PromptPieces(head, nothing, tail, tuple(pieces)), notes)


def _encode(texts: Sequence[str], tokenizer: Tokenizer) -> list[tuple[int, ...]]:
    return [tuple(encoding.ids) for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False)]
