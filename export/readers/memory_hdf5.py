"""Reads memory banks in HDF5, by their published dataset names (published-system.md, sections 5 and 15)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import torch

from export.checkpoint import CaptionedRows, CheckpointError, MemorySource
from export.text_spaces import TextSpace

EMBEDDINGS, CAPTIONS = "-embeddings", "-text"
"""The endings of the two datasets' names; what precedes them says which captions they are: "coco_captions-text"."""
TEXT_SPACE = "text_space"
"""The name of the file attribute that says which space the embeddings are in; published files have none."""

_BLOCK_BYTES = 2**25


def read_bank_space(path: Path) -> tuple[str | None, int]:
    """Return the name of the text space that a bank records, None for published files, and the width of its rows.

    Raises:
        CheckpointError: as `read_memory_bank`.
    """
    with _open(path) as file:
        return _recorded_space(file), int(file[_name(file, path)].shape[-1])


def read_memory_bank(path: Path, space: TextSpace, normalize: bool | None = None) -> MemorySource:
    """Open the bank in an HDF5 file, with embeddings (M, D) as float32; rows are read when they are asked for.

    Args:
        space: which columns its rows keep of the text tower's embeddings, and whether they get unit length.
        normalize: whether vectors projected onto it get unit length; None for what the space says.

    Raises:
        CheckpointError: the file is no HDF5 file, lacks a dataset, or has embeddings of another width or another number
            of captions.
    """
    with _open(path) as file:
        embeddings, captions = file[_name(file, path)], file[_name(file, path, CAPTIONS)]
        if embeddings.ndim != 2 or embeddings.shape[1] != space.bank_width:
            kept = f", whose columns from {space.first_column} on are kept" if space.first_column else ""
            raise CheckpointError(
                f"{path}: {embeddings.name[1:]}: expected shape (M, {space.bank_width}){kept}, got {embeddings.shape}"
            )
        if embeddings.dtype.kind != "f":
            raise CheckpointError(f"{path}: {embeddings.name[1:]}: expected floating numbers, got {embeddings.dtype}")
        if captions.shape != embeddings.shape[:1]:
            raise CheckpointError(
                f"{path}: expected as many captions as embeddings, {embeddings.shape[0]}, got {captions.shape}"
            )
        source = f"{path}: {embeddings.name[1:]}"
        text_space = _recorded_space(file)
    return MemorySource(
        source,
        space.width,
        lambda: _blocks(path, space.first_column),
        space.unit_output if normalize is None else normalize,
        text_space,
        unit_rows=space.unit_rows,
    )


def _blocks(path: Path, first_column: int) -> Iterator[CaptionedRows]:
    with _open(path) as file:
        embeddings, captions = file[_name(file, path)], file[_name(file, path, CAPTIONS)]
        rows = max(1, _BLOCK_BYTES // (4 * embeddings.shape[1]))
        for start in range(0, len(embeddings), rows):
            try:
                block = embeddings[start : start + rows, first_column:].astype(np.float32, copy=False)
                texts = list(captions.asstr("utf-8")[start : start + rows])
            except (TypeError, UnicodeDecodeError) as error:
                raise CheckpointError(f"{path}: {captions.name[1:]}: expected texts in utf-8: {error}") from None
            except OSError as error:
                raise CheckpointError(f"{path}: rows from {start} on cannot be read: {error}") from None
            yield torch.from_numpy(block), texts


def _recorded_space(file: h5py.File) -> str | None:
    name = file.attrs.get(TEXT_SPACE)
    if isinstance(name, bytes):  # as other programs than h5py store texts
        name = name.decode("utf-8", "replace")
    return None if name is None else str(name)


def _open(path: Path) -> h5py.File:
    try:
        return h5py.File(path, "r")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not an HDF5 file: {error}") from None


def _name(file: h5py.File, path: Path, end: str = EMBEDDINGS) -> str:
    """Return the name of the dataset with that ending in the file's one pair of datasets."""
    names = {name for name in file if isinstance(file[name], h5py.Dataset)}
    kinds = [name.removesuffix(EMBEDDINGS) for name in names if name.endswith(EMBEDDINGS)]
    pairs = [kind for kind in kinds if f"{kind}{CAPTIONS}" in names]
    if len(pairs) != 1:
        raise CheckpointError(
            f"{path}: expected one pair of datasets such as 'coco_captions{EMBEDDINGS}' and 'coco_captions{CAPTIONS}'; "
            f"it holds {sorted(file)}"
        )
    return pairs[0] + end
