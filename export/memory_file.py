"""A memory bank into the files of a bundle, a block at a time, so that it is never whole in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from export.checkpoint import Block, Memory
from runtime.bundle import MemorySettings

_EMBEDDINGS_FILE, _CAPTIONS_FILE = "memory.safetensors", "captions.jsonl"
_HEADER_BYTES = 504
"""Room for the header, which is written last; with its length before it the numbers begin at 512."""


def write_memory(memory: Memory, folder: Path) -> MemorySettings:
    """Writes memory.safetensors (embeddings (M, D), inverse_norms (M,)) and captions.jsonl.

    Raises:
        CheckpointError: the bank cannot be read.
    """
    with (folder / _EMBEDDINGS_FILE).open("wb") as file, (folder / _CAPTIONS_FILE).open("w", encoding="utf-8") as lines:

        def rows() -> Iterable[Block]:
            for embeddings, captions in memory.rows():
                lines.writelines(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
                yield embeddings, captions

        count = _write_safetensors(file, rows(), memory.width)
    return MemorySettings(
        embeddings=_EMBEDDINGS_FILE,
        captions=_CAPTIONS_FILE,
        rows=count,
        temperature=memory.temperature,
        normalize=memory.normalize,
    )


def _write_safetensors(file: BinaryIO, blocks: Iterable[Block], width: int) -> int:
    """Embeddings and one over their lengths in the safetensors format; returns M.

    The safetensors package only writes tensors that are whole in memory. The format is the length of a header,
    the header in JSON with spaces allowed behind it, and then the numbers.
    """
    file.write(bytes(8 + _HEADER_BYTES))
    inverse_norms = []
    for embeddings, _ in blocks:
        file.write(np.ascontiguousarray(embeddings.numpy(), dtype="<f4").data)
        inverse_norms.append(1 / embeddings.norm(dim=1))
    norms = torch.cat(inverse_norms).numpy().astype("<f4")
    file.write(norms.data)
    rows, first = len(norms), 4 * len(norms) * width
    header = {
        "embeddings": {"dtype": "F32", "shape": [rows, width], "data_offsets": [0, first]},
        "inverse_norms": {"dtype": "F32", "shape": [rows], "data_offsets": [first, first + 4 * rows]},
    }
    file.seek(0)
    file.write(_HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER_BYTES))
    return rows
