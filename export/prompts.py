"""The words of prompts, as token ids that bundles hold (published-system.md, section 18)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from runtime.bundle import EntitiesConfig
from runtime.bundle.prompt_pieces import PromptPieces

_HEAD, _NOTHING, _TAIL = "There are", " something", " in image."
_EMBEDDINGS_FILE, PIECES_FILE = "entities.safetensors", "prompt_pieces.json"


def make_pieces(tokenizer: Tokenizer, names: Sequence[str]) -> PromptPieces:
    """Return the pieces of prompts about some names: "There are red ball, dog in image."."""

    def ids(text: str) -> tuple[int, ...]:
        return tuple(tokenizer.encode(text, add_special_tokens=False).ids)

    pieces = tuple((ids(f" {name}"), ids(f" {name},")) for name in names)
    return PromptPieces(ids(_HEAD), ids(_NOTHING), ids(_TAIL), pieces)


@dataclass(frozen=True, eq=False)
class EntityPromptSource:
    """Prompts that name the entities of a vocabulary which a region looks like.

    Attributes:
        embeddings: unit rows (K, D) float32, one for each entity.
        pieces: of the entities' names.
        temperature, top_k, threshold: which entities are named.
    """

    embeddings: Tensor
    pieces: PromptPieces
    temperature: float
    top_k: int
    threshold: float

    @property
    def max_tokens(self) -> int:
        """The most tokens that the words of a prompt have."""
        return most_tokens(self.pieces, self.top_k)

    def write(self, folder: Path) -> EntitiesConfig:
        """Write embeddings and pieces into a bundle's folder."""
        save_file({"embeddings": self.embeddings.contiguous()}, folder / _EMBEDDINGS_FILE)
        (folder / PIECES_FILE).write_bytes(self.pieces.to_json())
        return EntitiesConfig(
            embeddings=_EMBEDDINGS_FILE,
            pieces=PIECES_FILE,
            num_entities=len(self.pieces),
            temperature=self.temperature,
            top_k=self.top_k,
            threshold=self.threshold,
        )


def most_tokens(pieces: PromptPieces, names: int) -> int:
    """Return the most tokens of a prompt that has at most so many names."""
    longest = sorted((max(map(len, piece)) for piece in pieces.pieces), reverse=True)[:names]
    return len(pieces.head) + max(len(pieces.nothing), sum(longest)) + len(pieces.tail)
