"""Memory banks in HDF5, by their published dataset names (SPEC section 5)."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import torch

from export.checkpoint import CheckpointError, Memory, checked_memory

_EMBEDDINGS, _CAPTIONS = "coco_captions-embeddings", "coco_captions-text"


def read_memory_bank(path: Path, width: int, normalize: bool) -> Memory:
    """The bank in an HDF5 file, its embeddings (M, width) as float32.

    Raises:
        CheckpointError: not such a file, a dataset missing, or embeddings of another width.
    """
    try:
        file = h5py.File(path, "r")
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: not an HDF5 file: {error}") from None
    with file:
        for name in (_EMBEDDINGS, _CAPTIONS):
            if not isinstance(file.get(name), h5py.Dataset):
                raise CheckpointError(f"{path}: dataset {name!r} is missing; it holds {sorted(file)}")
        stored = file[_EMBEDDINGS]
        if stored.ndim != 2 or stored.shape[1] != width:
            raise CheckpointError(f"{path}: {_EMBEDDINGS}: expected shape (M, {width}), got {stored.shape}")
        embeddings = np.empty(stored.shape, np.float32)
        stored.read_direct(embeddings)
        try:
            captions = list(file[_CAPTIONS].asstr("utf-8")[:])
        except (TypeError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path}: {_CAPTIONS}: expected texts in utf-8: {error}") from None
    return checked_memory(torch.from_numpy(embeddings), captions, normalize, str(path))
