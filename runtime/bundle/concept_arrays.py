"""The scene graphs of a memory's captions as arrays of small integers: what a build writes, and a decoder reads.

Shapes: M captions, S entities of captions (one for each caption and entity in it), N names, E of them entities.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from runtime.bundle.held_file import HeldFile
from runtime.bundle.tensor_file import TensorFile

MAX_SEGMENTS = 64
"""Of a caption's scene graph; a parser that writes 128 tokens writes fewer than 26."""
MAX_ENTITIES = 2 * MAX_SEGMENTS
"""Of a caption: a segment names two at most."""
MAX_GRAPH_CHARACTERS = 2**14
BLANK, TWO_BLANKS = "", " "
"""An entity without a name, and one whose attribute has none either: a prompt joins their spaces into one token."""

_MAX_NAME_BYTES = 4 * MAX_GRAPH_CHARACTERS
_CPU = torch.device("cpu")


class IntegerLists:
    """Lists of integers in two arrays: row i is values[offsets[i]:offsets[i + 1]].

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
        offsets = _offsets_of([len(row) for row in rows])
        return cls(offsets, np.fromiter((value for row in rows for value in row), np.int32, int(offsets[-1])))

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> list[int]:
        """Return a row."""
        return self._values[self._offsets[row] : self._offsets[row + 1]].tolist()

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows."""
        return (self[row] for row in range(len(self)))

    def range(self, row: int) -> range:
        """Return where the values of a row lie."""
        return range(self._offsets[row], self._offsets[row + 1])


@dataclass(frozen=True, eq=False)
class ConceptArrays:
    """The graphs of M captions, and which entities are similar; names are numbers, of which entities are the first E.

    Attributes:
        names: what the numbers mean (N): entities, then those that are attributes alone.
        entities: (M,) rows: the entities of each caption in the order of their appearance in its graph.
        attributes: (S,) rows: the attributes that a caption gives an entity, in the order of `entities`.
        objects: (S,) rows: the entities that are objects of an entity in a caption.
        similar: (E,) rows: the entities that are similar to each, rising.
    """

    names: Sequence[str]
    entities: IntegerLists
    attributes: IntegerLists
    objects: IntegerLists
    similar: IntegerLists

    @classmethod
    def read(cls, file: HeldFile, num_captions: int) -> ConceptArrays:
        """Read the arrays of a bundle.

        Raises:
            BundleError: they are not those of so many captions.
        """
        tensors = TensorFile(file)
        names = _read_names(tensors)
        entities = _read_lists(tensors, "entities", num_captions)
        num_slots = len(entities.values)
        attributes, objects = (_read_lists(tensors, name, num_slots) for name in ("attributes", "objects"))
        similar = _read_lists(tensors, "similar", None)
        _check_values(tensors, "attributes", attributes, len(names))
        for name, lists in (("entities", entities), ("objects", objects), ("similar", similar)):
            _check_values(tensors, name, lists, min(len(similar), len(names)))
        _check_lengths(tensors, "entities", entities.offsets)
        for name, lists in (("attributes", attributes), ("objects", objects)):
            _check_lengths(tensors, name, lists.offsets[entities.offsets])
        if not _rises(similar):
            raise tensors.invalid("similar entities in rows that rise, none similar to itself")
        return cls(names, entities, attributes, objects, similar)

    def tensors(self) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays by their names in the file; texts in UTF-8."""
        texts = [name.encode() for name in self.names]
        lists = {
            "entities": self.entities,
            "attributes": self.attributes,
            "objects": self.objects,
            "similar": self.similar,
        }
        arrays = {"names": np.frombuffer(b"".join(texts), np.int8), "names_offsets": _offsets_of(list(map(len, texts)))}
        for name, one in lists.items():
            arrays |= {name: one.values, f"{name}_offsets": one.offsets}
        return arrays


def _offsets_of(lengths: Sequence[int]) -> np.ndarray[Any, Any]:
    """Return where rows of these lengths begin, and the last ends."""
    offsets = np.zeros(len(lengths) + 1, np.int32)
    np.cumsum(np.array(lengths, np.int32), out=offsets[1:])
    return offsets


def _read_names(tensors: TensorFile) -> list[str]:
    """Return the texts in a file.

    Raises:
        BundleError: they are no texts, or longer than any.
    """
    stored = _vector(tensors, "names", torch.int8).tobytes()
    offsets = _read_offsets(tensors, "names", len(stored))
    if len(offsets) > 1 and (most := int(np.diff(offsets).max())) > _MAX_NAME_BYTES:
        raise tensors.invalid(f"names of at most {_MAX_NAME_BYTES} bytes, got {most}")
    ends = offsets.tolist()
    try:
        return [stored[start:end].decode() for start, end in pairwise(ends)]
    except UnicodeDecodeError as error:
        raise tensors.invalid(f"names in utf-8, got {error.reason}") from None


def _read_lists(tensors: TensorFile, name: str, num_rows: int | None) -> IntegerLists:
    """Return lists in a file, of which ``num_rows`` are expected.

    Raises:
        BundleError: they are missing, or rows would lie outside of the values.
    """
    values = _vector(tensors, name, torch.int32)
    offsets = _read_offsets(tensors, name, len(values))
    if num_rows is not None and len(offsets) != num_rows + 1:
        raise tensors.invalid(f"{name}_offsets of {num_rows} rows, got {len(offsets)} offsets")
    return IntegerLists(offsets, values)


def _read_offsets(tensors: TensorFile, name: str, num_values: int) -> np.ndarray[Any, Any]:
    offsets = _vector(tensors, f"{name}_offsets", torch.int32)
    if not len(offsets) or offsets[0] != 0 or offsets[-1] != num_values or (offsets[1:] < offsets[:-1]).any():
        raise tensors.invalid(f"{name}_offsets that rise from 0 to {num_values}")
    return offsets


def _vector(tensors: TensorFile, name: str, dtype: torch.dtype) -> np.ndarray[Any, Any]:
    stored = tensors.find(name)
    if stored is None or len(stored.shape) != 1 or stored.dtype != dtype:
        raise tensors.invalid(f"{name}, a list in {str(dtype).removeprefix('torch.')}")
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
