"""Prompts in words, put together from token ids that a build has made: no tokenizer runs for them.

"There are red ball, dog in image." is a head, the pieces " red ball," and " dog", and a tail. A tokenizer with GPT-2's
rules splits texts at the space before a word, so the ids of the whole are those of its pieces
(published-system.md, section 18).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, NamedTuple, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runtime.bundle.held_file import HeldFile
from runtime.errors import BundleError

MAX_PIECE_IDS = 96
"""Of a piece: eight of them, four names with an attribute each, leave room for a caption in GPT-2's 1024 positions."""
_MAX_FILE_BYTES = 2**27
"""Ten times what the names of half a million captions take."""

TokenIds: TypeAlias = tuple[int, ...]


class Piece(NamedTuple):
    """The token ids of a name, with the space before it.

    Attributes:
        ids: of " name".
        ids_before_comma: of " name,", which some names that end in punctuation merge with.
    """

    ids: TokenIds
    ids_before_comma: TokenIds

    def after(self, attribute: Piece) -> Piece:
        """Return the piece of " attribute name"."""
        return Piece(attribute.ids + self.ids, attribute.ids + self.ids_before_comma)


@dataclass(frozen=True, eq=False)
class PromptPieces:
    """What prompts are put together from.

    Attributes:
        head: the ids that each prompt begins with, those of "There are" for example.
        nothing: the ids between head and tail where there is no name.
        tail: the ids that each prompt ends with.
        pieces: ``ids`` and ``ids_before_comma`` of each name.

    Example:
        >>> pieces.join([pieces[0], pieces[1]])
        [1858, 389, 3290, 11, 2613, 287, 2939, 13]
    """

    head: TokenIds
    nothing: TokenIds
    tail: TokenIds
    pieces: tuple[tuple[TokenIds, TokenIds], ...]

    @classmethod
    def read(cls, file: HeldFile, num_pieces: int, vocab_size: int) -> PromptPieces:
        """Read the pieces of a bundle.

        Args:
            num_pieces: the names that it must have pieces of.
            vocab_size: V; ids are 0..V-1.

        Raises:
            BundleError: the file is not what a build writes.
        """
        if file.size > _MAX_FILE_BYTES:
            raise BundleError(f"{file.path}: expected at most {_MAX_FILE_BYTES} bytes, got {file.size}")
        try:
            stored = _StoredPieces.model_validate_json(bytes(file.read()))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise BundleError(
                f"{file.path}: not the pieces of prompts: {where}: {first['msg']}; build the bundle again"
            ) from None
        if len(stored.pieces) != num_pieces:
            raise BundleError(
                f"{file.path}: expected pieces of {num_pieces} names, got {len(stored.pieces)}; build the bundle again"
            )
        found = cls(stored.head, stored.nothing, stored.tail, stored.pieces)
        if (largest := found.largest_id) >= vocab_size:
            raise BundleError(
                f"{file.path}: expected ids of {vocab_size} tokens, from 0 on, got {largest}; build the bundle again"
            )
        return found

    def to_json(self) -> bytes:
        """Return the contents of the file that `read` takes.

        Raises:
            ValueError: a piece has more than `MAX_PIECE_IDS`, and one for the comma.
        """
        stored = _StoredPieces(head=self.head, nothing=self.nothing, tail=self.tail, pieces=self.pieces)
        return stored.model_dump_json().encode()

    def __len__(self) -> int:
        """Return the number of names."""
        return len(self.pieces)

    def __getitem__(self, index: int) -> Piece:
        """Return the piece of a name."""
        return Piece(*self.pieces[index])

    def of(self, name: int, attribute: int | None = None) -> Piece:
        """Return the piece of a name, with an attribute in front or without."""
        return self[name] if attribute is None else self[name].after(self[attribute])

    @property
    def largest_id(self) -> int:
        """The largest token id of all; -1 where there is none."""
        texts = (self.head, self.nothing, self.tail, *(ids for piece in self.pieces for ids in piece))
        return max(max(ids, default=-1) for ids in texts)

    def join(self, pieces: Sequence[Piece]) -> list[int]:
        """Return the ids of a prompt that names some things, with commas between them, or nothing."""
        if not pieces:
            return [*self.head, *self.nothing, *self.tail]
        before = [token for piece in pieces[:-1] for token in piece.ids_before_comma]
        return [*self.head, *before, *pieces[-1].ids, *self.tail]


_TokenId = Annotated[int, Field(ge=0, lt=2**31)]
_StoredIds: TypeAlias = Annotated[tuple[_TokenId, ...], Field(max_length=MAX_PIECE_IDS + 1)]


class _StoredPieces(BaseModel):
    """The file of the pieces."""

    model_config = ConfigDict(extra="forbid", strict=True)

    head: _StoredIds
    nothing: _StoredIds
    tail: _StoredIds
    pieces: tuple[tuple[_StoredIds, _StoredIds], ...]
