"""Prompts that name entities of a vocabulary, as bundles hold them (published-system.md, section 18)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from export.prompts.pieces import PIECES_FILE
from runtime.bundle import EntitiesConfig
from runtime.bundle.prompt_pieces import PromptPieces

_EMBEDDINGS_FILE = "entities.safetensors"


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
        longest = sorted((max(map(len, piece)) for piece in self.pieces.pieces), reverse=True)[: self.top_k]
        return len(self.pieces.head) + max(len(self.pieces.nothing), sum(longest)) + len(self.pieces.tail)

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
