"""Writes the table of concepts into a bundle: names once, and all else as small integers.

Shapes: M captions of the memory, E entities.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors.numpy import save_file
from tokenizers import Tokenizer

from export.concepts.pieces import make_pieces
from export.concepts.scene_graphs import SceneGraph
from export.concepts.similarity import NameEncoder, similar_lists
from runtime.decoding.concept_arrays import BLANK, TWO_BLANKS, ConceptArrays, IntegerLists

_ARRAYS_FILE, _NAMES_FILE, _PIECES_FILE = "concepts.safetensors", "concept_names.json", "concept_pieces.json"


@dataclass(frozen=True)
class WrittenConcepts:
    """The files of a table, and what the user should know.

    Attributes:
        arrays: the graphs of the captions, and which entities are similar.
        names: what the arrays' numbers mean.
        pieces: the pieces of the names in prompts.
        notes: of the pieces.
    """

    arrays: str
    names: str
    pieces: str
    notes: tuple[str, ...]


def write_concepts(
    folder: Path, graphs: Sequence[SceneGraph], encoder: NameEncoder, tokenizer: Tokenizer
) -> WrittenConcepts:
    """Write the table of a memory's captions.

    Args:
        graphs: those of the captions (M), in the order of the bank's rows.
        encoder: embeds the entities' names.
        tokenizer: the decoder's.
    """
    numbers = number_names(graphs)
    entities = list(dict.fromkeys(entity for graph in graphs for entity in graph.entities))
    arrays = make_arrays(graphs, numbers, similar_lists(encoder(entities)))
    made = make_pieces(list(numbers), tokenizer)
    save_file(arrays.tensors(), folder / _ARRAYS_FILE)
    (folder / _NAMES_FILE).write_text(json.dumps(list(numbers), ensure_ascii=False), encoding="utf-8")
    (folder / _PIECES_FILE).write_bytes(made.pieces.to_json())
    return WrittenConcepts(_ARRAYS_FILE, _NAMES_FILE, _PIECES_FILE, made.notes)


def number_names(graphs: Iterable[SceneGraph]) -> dict[str, int]:
    """Return the number of each name: entities first, then what is an attribute alone."""
    entities = dict.fromkeys(entity for graph in graphs for entity in graph.entities)
    attributes = dict.fromkeys(one for graph in graphs for names in graph.attributes.values() for one in names)
    names = entities | attributes
    if BLANK in entities and BLANK in attributes:
        names[TWO_BLANKS] = None
    return {name: number for number, name in enumerate(names)}


def make_arrays(graphs: Sequence[SceneGraph], numbers: Mapping[str, int], similar: IntegerLists) -> ConceptArrays:
    """Return the graphs as arrays of numbers.

    Args:
        similar: the entities that are similar to each (E,).
    """
    slots = [(graph, entity) for graph in graphs for entity in graph.attributes]
    return ConceptArrays(
        entities=IntegerLists.of([[numbers[entity] for entity in graph.attributes] for graph in graphs]),
        attributes=IntegerLists.of([[numbers[one] for one in graph.attributes[entity]] for graph, entity in slots]),
        objects=IntegerLists.of([[numbers[one] for one in graph.objects[entity]] for graph, entity in slots]),
        similar=similar,
    )
