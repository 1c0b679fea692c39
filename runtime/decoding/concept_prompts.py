"""Hard prompts of concepts: what the memory's captions near a region agree on (published-system.md, section 19).

Shapes: R regions, D vector width.
"""

from __future__ import annotations

from torch import Tensor

from runtime.bundle import Bundle, ConceptsConfig
from runtime.bundle.prompt_pieces import PromptPieces
from runtime.decoding.base import CaptionBank
from runtime.decoding.concepts import ConceptTable


class ConceptPrompts:
    """Looks up captions near a region, and in tables what they agree on.

    Args:
        bundle: the bundle of ``config``.
        bank: its captions.

    Raises:
        BundleError: its files are not what the manifest says.
    """

    def __init__(self, bundle: Bundle, config: ConceptsConfig, bank: CaptionBank) -> None:
        self._bank, self._num_captions = bank, config.num_captions
        self._table = ConceptTable.read(bundle.file(config.graphs), bundle.file(config.names), bank.captions)
        self._pieces = PromptPieces.read(
            bundle.file(config.pieces), len(self._table.names), bundle.manifest.decoder.vocab_size
        )

    def __call__(self, unit_vectors: Tensor) -> list[list[int]]:
        """Return the token ids of each region's hard prompt, for unit vectors (R, D)."""
        prompts = []
        for rows in self._bank.nearest_rows(unit_vectors, self._num_captions):
            concepts = self._table.concepts(rows)
            prompts.append(self._pieces.join([self._pieces.of(one.entity, one.attribute) for one in concepts]))
        return prompts
