"""The scene graphs of a memory's captions as arrays of small integers: what a build writes, and a decoder reads.

Shapes: M captions, S entities of captions (one for each caption and entity in it), N strings, E of them entities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from runtime.bundle import HeldFile
from runtime.bundle.tensor_file import TensorFile

MAX_SEGMENTS = 64
"""Of a caption's scene graph; a parser that writes 128 tokens writes fewer than 26."""
MAX_ENTITIES = 2 * MAX_SEGMENTS
"""Of a caption: a segment names two at most."""

MIN_COUNT = 3
"""How often an entity, or an attribute, must be named to be a concept."""
MAX_CONCEPTS = 4
MAX_NAME_CHARACTERS = 2**14
BLANK, TWO_BLANKS = "", " "
"""An entity without a name, and one whose attribute has none either: a prompt joins their spaces into one token."""

LISTS = ("entities", "attributes", "objects", "similar")
"""The lists in the file; each is an array of its name, and one of the places at which its rows begin."""
_CPU = torch.device("cpu")


class IntegerLists:
    """Lists of integers from 0 on, in two arrays: row i is values[offsets[i]:offsets[i + 1]].

    Attributes:
        offsets: (rows + 1,) int32; the first is 0, the last the number of values.
        values: int32.
    """

    def __init__(self, offsets: np.ndarray[Any, Any], values: np.ndarray[Any, Any]) -> None:
        self.offsets, self.values = offsets, values
        self._offsets, self._values = offsets.data, values.data  # ten times as fast as numpy's items

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]]) -> IntegerLists:
        """Return the arrays of some lists."""
        offsets = np.zeros(len(rows) + 1, np.int32)
        np.cumsum(np.fromiter(map(len, rows), np.int32, len(rows)), out=offsets[1:])
        values = np.fromiter((value for row in rows for value in row), np.int32, int(offsets[-1]))
        return cls(offsets, values)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> list[int]:
        """Return a row."""
        return self._values[self._offsets[row] : self._offsets[row + 1]].tolist()

    def range(self, row: int) -> range:
        """Return where the values of a row lie."""
        return range(self._offsets[row], self._offsets[row + 1])

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows."""
        return (self[row] for row in range(len(self)))


@dataclass(frozen=True, eq=False)
class ConceptArrays:
    """The graphs of M captions, and which entities are similar; strings are numbers, of which entities are the first E.

    Attributes:
        entities: (M,) rows: the entities of each caption in the order of their appearance in its graph.
        attributes: (S,) rows: the attributes that a caption gives an entity, in the order of `entities`.
        objects: (S,) rows: the entities that are objects of an entity in a caption.
        similar: (E,) rows: the entities that are similar to each, rising.
    """

    entities: IntegerLists
    attributes: IntegerLists
    objects: IntegerLists
    similar: IntegerLists

    @classmethod
    def read(cls, file: HeldFile, num_captions: int, num_strings: int) -> ConceptArrays:
        """Read the arrays of a bundle.

        Raises:
            BundleError: they are not those of so many captions and strings.
        """
        tensors = TensorFile(file)
        entities = _read_lists(tensors, "entities", num_captions)
        num_slots = len(entities.values)
        attributes, objects = (_read_lists(tensors, name, num_slots) for name in ("attributes", "objects"))
        similar = _read_lists(tensors, "similar", None)
        _check_values(tensors, "attributes", attributes, num_strings)
        for name, lists in (("entities", entities), ("objects", objects), ("similar", similar)):
            _check_values(tensors, name, lists, min(len(similar), num_strings))
        _check_lengths(tensors, "entities", entities.offsets)
        for name, lists in (("attributes", attributes), ("objects", objects)):
            _check_lengths(tensors, name, lists.offsets[entities.offsets])
        if not _rises(similar):
            raise tensors.invalid("similar entities in rows that rise, none similar to itself")
        return cls(entities, attributes, objects, similar)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by their names in the file."""
        lists = dict(zip(LISTS, (self.entities, self.attributes, self.objects, self.similar), strict=True))
        return {name: one.values for name, one in lists.items()} | {
            f"{name}_offsets": one.offsets for name, one in lists.items()
        }


def _read_lists(tensors: TensorFile, name: str, num_rows: int | None) -> IntegerLists:
    """Return lists of a file, of which ``num_rows`` are expected.

    Raises:
        BundleError: they are missing, or rows would lie outside of the values.
    """
    offsets, values = (_vector(tensors, one) for one in (f"{name}_offsets", name))
    if num_rows is not None and len(offsets) != num_rows + 1:
        raise tensors.invalid(f"{name}_offsets of {num_rows} rows, got {len(offsets)} offsets")
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != len(values) or (offsets[1:] < offsets[:-1]).any():
        raise tensors.invalid(f"{name}_offsets that rise from 0 to {len(values)}")
    return IntegerLists(offsets, values)


def _vector(tensors: TensorFile, name: str) -> np.ndarray[Any, Any]:
    stored = tensors.find(name)
    if stored is None or len(stored.shape) != 1 or stored.dtype != torch.int32:
        raise tensors.invalid(f"{name}, a list in int32")
    array: np.ndarray[Any, Any] = tensors.read(stored, _CPU).numpy()
    return array


def _check_values(tensors: TensorFile, name: str, lists: IntegerLists, end: int) -> None:
    values = lists.values
    if len(values) and (values.min() < 0 or values.max() >= end):
        raise tensors.invalid(f"{name} from 0 to {end - 1}, got {values.min()} to {values.max()}")


def _check_lengths(tensors: TensorFile, name: str, offsets: np.ndarray[Any, Any]) -> None:
    """Raise if a caption has so many that its concepts would take long to find."""
    if len(offsets) > 1 and (most := int(np.diff(offsets).max())) > MAX_ENTITIES:
        raise tensors.invalid(f"at most {MAX_ENTITIES} {name} of a caption, got {most}")


def _rises(similar: IntegerLists) -> bool:
    """Return whether each row's values rise, and none is the row's own number."""
    rows = np.repeat(np.arange(len(similar)), np.diff(similar.offsets))
    in_one_row = np.diff(rows) == 0
    return bool((np.diff(similar.values)[in_one_row] > 0).all() and (similar.values != rows).all())
