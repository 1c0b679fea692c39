"""Hard prompts of concepts: what the memory's captions near a region agree on (published-system.md, section 19).

Shapes: R regions, D vector width.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from runtime.bundle import Bundle, ConceptsConfig
from runtime.bundle.prompt_pieces import PromptPieces
from runtime.decoding.base import CaptionBank
from runtime.decoding.concepts import Concept, ConceptTable
from runtime.errors import BundleError


class ConceptPrompts:
    """Looks captions up in the memory, and names their concepts.

    Args:
        bundle: the bundle of ``config``.
        bank: its memory.
        max_tokens: of the words of a prompt; concepts from the first that does not fit on are left out.

    Raises:
        BundleError: the bundle's files are not what the manifest says.
    """

    def __init__(self, bundle: Bundle, config: ConceptsConfig, bank: CaptionBank, max_tokens: int) -> None:
        self._bank, self._config, self._max_tokens = bank, config, max_tokens
        self._table = ConceptTable.read(bundle.file(config.graphs), bank.captions)
        self._pieces = PromptPieces.read(
            bundle.file(config.pieces), len(self._table.names), bundle.manifest.decoder.vocab_size
        )
        if len(self._pieces.join([])) > max_tokens:
            raise BundleError(
                f"{bundle.path(config.pieces)}: expected prompts of at most {max_tokens} tokens, got "
                f"{len(self._pieces.join([]))} without a name; build the bundle again"
            )

    def __call__(self, unit_vectors: Tensor) -> list[list[int]]:
        """Return the token ids of each region's hard prompt, for unit vectors (R, D)."""
        return [self._words(concepts) for concepts in self.concepts(unit_vectors)]

    def concepts(self, unit_vectors: Tensor) -> list[list[Concept]]:
        """Return the concepts of each of the unit vectors (R, D)."""
        rows = self._bank.nearest_rows(unit_vectors, self._config.num_captions)
        return [self._table.concepts(rows_of) for rows_of in rows]

    def _words(self, concepts: Sequence[Concept]) -> list[int]:
        pieces = [self._pieces.of(concept.entity, concept.attribute) for concept in concepts]
        while len(words := self._pieces.join(pieces)) > self._max_tokens and pieces:
            pieces.pop()
        return words
