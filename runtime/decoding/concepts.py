"""Key concepts of a region: what the captions of the memory that are nearest to it agree on.

Captions' scene graphs and similar entities are looked up in tables that a build has made; no parser, no text encoder
and no tensor is involved (published-system.md, section 19).

Shapes: M captions of the memory, K of them near a region.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.bundle import HeldFile
from runtime.bundle.concept_arrays import BLANK, TWO_BLANKS, ConceptArrays, IntegerLists
from runtime.errors import BundleError

MIN_COUNT = 3
"""How often an entity, or an attribute, must be named to be a concept."""
MAX_CONCEPTS = 4
_NOWHERE = 1.0
"""The position of an entity that stands in no caption, or only at the beginning."""
_PAIRWISE = 8
"""numpy's mean of so many numbers or more adds them in another order."""

_MAX_STEPS = 2**22
"""Of merging the entities of a region: five published captions take some hundreds."""
_MAX_COUNT = 2**31
"""Counts stop there: entities that are all similar to each other double them again and again."""


@dataclass(frozen=True)
class Concept:
    """An entity that a prompt names, with an attribute or without.

    Attributes:
        entity: its number among the table's names, whose pieces make the prompt.
        attribute: that of the attribute before it.
        text: both, as the prompt has them.
    """

    entity: int
    attribute: int | None
    text: str


@dataclass(eq=False)
class EntityNode:
    """What the captions say of an entity.

    Attributes:
        count: the captions that name it; of merged entities, the sum.
        attributes: the captions that give it an attribute, by attribute, in order of appearance.
        objects: the entities that are its objects, in order of appearance.
    """

    count: int = 0
    attributes: dict[int, int] = field(default_factory=dict)
    objects: dict[int, None] = field(default_factory=dict)

    def merge_details(self, other: EntityNode) -> None:
        """Add another entity's attributes and objects."""
        attributes = self.attributes
        for attribute, count in other.attributes.items():
            attributes[attribute] = min(attributes.get(attribute, 0) + count, _MAX_COUNT)
        self.objects.update(other.objects)


Nodes = dict[int, EntityNode]
"""Entities of some captions, by their numbers, in the order in which they are merged."""


@dataclass(frozen=True, eq=False)
class MergedEntities:
    """What is left of the entities after similar ones are merged.

    Attributes:
        survivors: the entities that are named often enough, in order.
        stands: the entity that stands for one that was removed.
    """

    survivors: list[int]
    stands: Mapping[int, int]


@dataclass(frozen=True, eq=False)
class ConceptTable:
    """The scene graphs of the memory's captions, looked up to find the concepts of regions.

    Attributes:
        arrays: the graphs, which entities are similar, and the names of all.
        captions: the memory's captions (M), row by row.

    Example:
        >>> [concept.text for concept in table.concepts([17, 4, 230, 18, 55])]
        ['brown dog', 'ball']
    """

    arrays: ConceptArrays
    captions: Sequence[str]

    @classmethod
    def read(cls, file: HeldFile, captions: Sequence[str]) -> ConceptTable:
        """Read the table of a bundle.

        Args:
            captions: those of its memory.

        Raises:
            BundleError: the file is not what a build writes for so many captions.
        """
        return cls(ConceptArrays.read(file, len(captions)), captions)

    @property
    def names(self) -> Sequence[str]:
        """What numbers mean: entities, then those that are attributes alone (N)."""
        return self.arrays.names

    def concepts(self, rows: Sequence[int]) -> list[Concept]:
        """Return the concepts of a region, at most `MAX_CONCEPTS`; none where its captions agree on nothing.

        Args:
            rows: the memory's rows that are nearest to it (K), the nearest first.

        Raises:
            BundleError: so much is similar to each other as no build has found it.
        """
        nodes = gather_entities(self.arrays, rows)
        merged = merge_similar(nodes, self.arrays.similar)
        positions = self.positions(noted_entities(nodes, merged), rows)
        in_order = sorted(positions, key=positions.__getitem__)
        return [self._concept(entity, nodes[entity]) for entity in in_order[:MAX_CONCEPTS]]

    def positions(self, entities: Iterable[int], rows: Sequence[int]) -> dict[int, float]:
        """Return where entities stand in the captions of some rows, on average, from 0 to 1."""
        captions = [self.captions[row] for row in rows]
        return {entity: _mean_position(self.names[entity], captions) for entity in entities}

    def _concept(self, entity: int, node: EntityNode) -> Concept:
        attribute = next((one for one, count in node.attributes.items() if count >= MIN_COUNT), None)
        name = self.names[entity]
        if attribute is not None and name == self.names[attribute] == BLANK and TWO_BLANKS in self.names:
            return Concept(self.names.index(TWO_BLANKS), None, TWO_BLANKS)
        return Concept(entity, attribute, name if attribute is None else f"{self.names[attribute]} {name}")


def gather_entities(arrays: ConceptArrays, rows: Sequence[int]) -> Nodes:
    """Return the entities of some captions: those that most captions name first, then by their first appearance."""
    nodes: Nodes = {}
    for row in rows:
        for entity, slot in zip(arrays.entities[row], arrays.entities.range(row), strict=True):
            node = nodes.setdefault(entity, EntityNode())
            node.count += 1
            for attribute in arrays.attributes[slot]:
                node.attributes[attribute] = node.attributes.get(attribute, 0) + 1
            node.objects.update(dict.fromkeys(arrays.objects[slot]))
    return dict(sorted(nodes.items(), key=lambda item: -item[1].count))


def merge_similar(nodes: Nodes, similar: IntegerLists) -> MergedEntities:
    """Merge entities that are similar, in place, and return what is left of them.

    An entity is kept, and takes over those similar to it, unless it was dropped for one before it. In the end only
    those that a kept one took over are removed, so that what is similar to these alone comes back.

    Raises:
        BundleError: it would take longer than any real captions do.
    """
    ranks = {entity: rank for rank, entity in enumerate(nodes)}
    kept: dict[int, list[int]] = {}
    dropped: set[int] = set()
    aliases: dict[int, list[int]] = {}
    steps = 0
    for entity, node in nodes.items():
        others = sorted((one for one in similar[entity] if one in ranks), key=ranks.__getitem__)
        for other in others:
            other_node = nodes[other]
            if entity in dropped:
                aliases.setdefault(entity, []).append(other)
            else:
                kept.setdefault(entity, []).append(other)
                node.count = min(node.count + other_node.count, _MAX_COUNT)
            if other not in kept:
                dropped.add(other)
            node.merge_details(other_node)
            steps += 1 + len(other_node.attributes) + len(other_node.objects)
        if steps > _MAX_STEPS:
            raise BundleError("the memory's entities are all similar to each other; build the bundle again")
    removed = {other for others in kept.values() for other in others}
    found = {entity: next((one for one in aliases.get(entity, ()) if one not in removed), None) for entity in removed}
    return MergedEntities(
        survivors=[entity for entity, node in nodes.items() if entity not in removed and node.count >= MIN_COUNT],
        stands={entity: stand for entity, stand in found.items() if stand is not None},
    )


def noted_entities(nodes: Nodes, merged: MergedEntities) -> list[int]:
    """Return the survivors in the order that decides between equal positions: each, then its objects."""
    survivors = set(merged.survivors)
    noted: dict[int, None] = {}
    for entity in merged.survivors:
        noted[entity] = None
        for name in nodes[entity].objects:
            stand = name if name in survivors else merged.stands.get(name)
            if stand in survivors:
                noted[stand] = None
    return list(noted)


def _mean_position(name: str, captions: Sequence[str]) -> float:
    found = [start / len(caption) for caption in captions if (start := caption.find(name)) > 0]
    if len(found) >= _PAIRWISE:
        return float(np.mean(found))
    total = 0.0
    for position in found:  # not sum(), which rounds otherwise from Python 3.12 on
        total += position
    return total / len(found) if found else _NOWHERE
