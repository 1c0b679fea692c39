"""Scene graphs and similar entities as arrays of small integers, which a bundle holds.

Shapes: M captions of the memory, E entities.
"""

from __future__ import annotations

from collections.abc import Sequence

from export.concepts.scene_graphs import SceneGraph
from export.concepts.similarity import NameEncoder, similar_lists
from runtime.bundle.concept_arrays import BLANK, TWO_BLANKS, ConceptArrays, IntegerLists


def make_table(graphs: Sequence[SceneGraph], encoder: NameEncoder) -> ConceptArrays:
    """Return the arrays of captions' graphs (M)."""
    return make_arrays(graphs, similar_lists(encoder(entity_names(graphs))))


def make_arrays(graphs: Sequence[SceneGraph], similar: IntegerLists) -> ConceptArrays:
    """Return the arrays of captions' graphs (M).

    Args:
        similar: the entities that are similar to each (E,), by their places among `entity_names`.
    """
    numbers = {name: number for number, name in enumerate(_all_names(graphs))}
    slots = [(graph, entity) for graph in graphs for entity in graph.attributes]
    return ConceptArrays(
        names=list(numbers),
        entities=IntegerLists.of([[numbers[entity] for entity in graph.attributes] for graph in graphs]),
        attributes=IntegerLists.of([[numbers[one] for one in graph.attributes[entity]] for graph, entity in slots]),
        objects=IntegerLists.of([[numbers[one] for one in graph.objects[entity]] for graph, entity in slots]),
        similar=similar,
    )


def entity_names(graphs: Sequence[SceneGraph]) -> list[str]:
    """Return all entities (E), in the order of their first appearance."""
    return list(dict.fromkeys(entity for graph in graphs for entity in graph.attributes))


def _all_names(graphs: Sequence[SceneGraph]) -> list[str]:
    """Return all entities, then what is an attribute alone."""
    entities = dict.fromkeys(entity_names(graphs))
    attributes = dict.fromkeys(one for graph in graphs for names in graph.attributes.values() for one in names)
    names = entities | attributes
    if BLANK in entities and BLANK in attributes:
        names[TWO_BLANKS] = None
    return list(names)
