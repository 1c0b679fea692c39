"""Writes the table of concepts into a bundle: names once, and all else as small integers.

Shapes: M captions of the memory, E entities.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from export.concepts.scene_graphs import SceneGraph
from export.concepts.similarity import NameEncoder, similar_lists
from export.prompts.pieces import PIECES_FILE, make_pieces
from runtime.bundle import ConceptsConfig
from runtime.bundle.prompt_pieces import PromptPieces
from runtime.decoding.concept_arrays import (
    BLANK,
    MAX_CONCEPTS,
    MIN_COUNT,
    TWO_BLANKS,
    ConceptArrays,
    IntegerLists,
)

_ARRAYS_FILE, _NAMES_FILE = "concepts.safetensors", "concept_names.json"
_MAX_NAME_IDS = 24
"""Of a name in a prompt; a parser's longer ones are no names, and would take room in the cache of every caption."""


@dataclass(frozen=True, eq=False)
class ConceptTables:
    """The table of a memory's captions.

    Attributes:
        arrays: the graphs of the captions, and which entities are similar.
        names: what the arrays' numbers mean.
        pieces: the pieces of the names in prompts.
        notes: what the user should know of the pieces.
    """

    arrays: ConceptArrays
    names: Sequence[str]
    pieces: PromptPieces
    notes: tuple[str, ...]

    @property
    def max_tokens(self) -> int:
        """The most tokens of a prompt: those of the longest names, each with an attribute, that are named often enough.

        An entity is named as often as those together that it is similar to, directly or not.
        """
        by_caption = np.bincount(self.arrays.entities.values, minlength=len(self.arrays.similar))
        entities = [index for index, count in enumerate(self._totals(by_caption)) if count >= MIN_COUNT]
        by_attribute = np.bincount(self.arrays.attributes.values, minlength=len(self.names))
        attributes = np.flatnonzero(by_attribute >= MIN_COUNT).tolist()
        entity_tokens = sorted((self._tokens(index) for index in entities), reverse=True)[:MAX_CONCEPTS]
        attribute_tokens = max((self._tokens(index) for index in attributes), default=0)
        named = sum(entity_tokens) + MAX_CONCEPTS * attribute_tokens
        return len(self.pieces.head) + max(len(self.pieces.nothing), named) + len(self.pieces.tail)

    def _tokens(self, name: int) -> int:
        return max(map(len, self.pieces[name]))

    def _totals(self, counts: np.ndarray[Any, Any]) -> list[int]:
        """Return for each entity the counts of all that it is similar to, directly or not, in all."""
        totals = [0] * len(counts)
        for start in range(len(counts)):
            if totals[start]:
                continue
            group, waiting = {start}, [start]
            while waiting:
                new = set(self.arrays.similar[waiting.pop()]) - group
                group |= new
                waiting += new
            total = sum(int(counts[index]) for index in group)
            for index in group:
                totals[index] = total
        return totals

    def write(self, folder: Path, num_captions: int) -> ConceptsConfig:
        """Write the table into a bundle's folder.

        Args:
            num_captions: how many captions are looked up for a region.
        """
        save_file(self.arrays.tensors(), folder / _ARRAYS_FILE)
        (folder / _NAMES_FILE).write_text(json.dumps(list(self.names), ensure_ascii=False), encoding="utf-8")
        (folder / PIECES_FILE).write_bytes(self.pieces.to_json())
        return ConceptsConfig(graphs=_ARRAYS_FILE, names=_NAMES_FILE, pieces=PIECES_FILE, num_captions=num_captions)


def make_tables(graphs: Sequence[SceneGraph], encoder: NameEncoder, tokenizer: Tokenizer) -> ConceptTables:
    """Return the table of a memory's captions.

    Args:
        graphs: those of the captions (M), in the order of the bank's rows.
        encoder: embeds the entities' names.
        tokenizer: the decoder's.
    """
    numbers = number_names(graphs)
    entities = list(dict.fromkeys(entity for graph in graphs for entity in graph.entities))
    arrays = make_arrays(graphs, numbers, similar_lists(encoder(entities)))
    made = make_pieces(list(numbers), tokenizer, _MAX_NAME_IDS)
    return ConceptTables(arrays, list(numbers), made.pieces, made.notes)


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
