"""Prompts of what the memory's captions near a region agree on, as bundles hold them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from export.concepts.table import ConceptTables
from runtime.bundle import ConceptsConfig


@dataclass(frozen=True, eq=False)
class ConceptPromptSource:
    """Prompts that name the key concepts of a region's captions.

    Attributes:
        tables: of the memory's captions, in the order of its rows.
        num_captions: how many captions are looked up for a region.
    """

    tables: ConceptTables
    num_captions: int

    @property
    def max_tokens(self) -> int:
        """The most tokens that the words of a prompt have."""
        return self.tables.max_tokens

    def write(self, folder: Path) -> ConceptsConfig:
        """Write the tables into a bundle's folder."""
        return self.tables.write(folder, self.num_captions)
