"""A memory bank into the files of a bundle, a block at a time, so that it is never whole in memory."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from export.checkpoint import CheckpointError, Memory
from export.memory.quantization import BEST, STORED_AS, Rounded, rounded
from runtime.bundle import MemoryPrecision, MemorySettings

_EMBEDDINGS_FILE, _FINE_FILE, _CAPTIONS_FILE = "memory.safetensors", "memory_fine.safetensors", "captions.jsonl"
_HEADER_BYTES = 504
"""Room for the header, which is written last; with its length before it the numbers begin at 512."""
PROMISED = 1e-3
"""The most that a projected vector of length 1 may differ from that of float32 rows."""
_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int8: "I8"}


def write_memory(memory: Memory, folder: Path, precision: MemoryPrecision = "fp32") -> MemorySettings:
    """Writes memory.safetensors (embeddings (M, D), inverse_norms (M,), scales (M,) where there are), captions.jsonl,
    and where rounding left something memory_fine.safetensors (fine (M, D), scales (M,)).

    Raises:
        CheckpointError: the bank cannot be read, or would lose more than `PROMISED` in that precision.
    """
    generator = torch.Generator().manual_seed(0)
    has_fine, rounding, count = BEST[precision] > 0, 0.0, 0
    with ExitStack() as files:
        lines = files.enter_context((folder / _CAPTIONS_FILE).open("w", encoding="utf-8"))
        rows = _RowsFile(files.enter_context((folder / _EMBEDDINGS_FILE).open("wb")), "embeddings", memory.width)
        fine = None
        if has_fine:
            fine = _RowsFile(files.enter_context((folder / _FINE_FILE).open("wb")), "fine", memory.width)
        for embeddings, captions in memory.rows():
            if len(embeddings) == 0:
                continue
            lines.writelines(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
            block = rounded(embeddings, precision, generator)
            _check_promise(memory, block, precision)
            rows.add(block.stored, inverse_norms=1 / embeddings.norm(dim=1), **_scales(block))
            if fine is not None and block.fine is not None and block.fine_scales is not None:
                fine.add(block.fine, scales=block.fine_scales)
            rounding, count = max(rounding, block.largest_error), count + len(embeddings)
        rows.finish(STORED_AS[precision])
        if fine is not None:
            fine.finish(torch.int8)
    return MemorySettings(
        embeddings=_EMBEDDINGS_FILE,
        captions=_CAPTIONS_FILE,
        rows=count,
        temperature=memory.temperature,
        normalize=memory.normalize,
        precision=precision,
        fine=_FINE_FILE if has_fine else None,
        rounding=rounding,
        best=BEST[precision],
    )


def _check_promise(memory: Memory, block: Rounded, precision: MemoryPrecision) -> None:
    """Whether weights by cosines of such rows, and so projected vectors, are as near to float32's as promised."""
    lost = block.largest_left * math.hypot(1 / (math.sqrt(memory.width) * memory.temperature), 1)
    if lost > PROMISED:
        raise CheckpointError(
            f"{memory.source}: some numbers are so much larger than others of their row that {precision} would change "
            f"projected vectors by {lost:.1e}; at most {PROMISED:.0e} is promised: use --memory-precision fp32"
        )


def _scales(block: Rounded) -> dict[str, Tensor]:
    return {} if block.scales is None else {"scales": block.scales}


class _RowsFile:
    """One tensor (M, D) and some of (M,) in the safetensors format, M not known before the end.

    The safetensors package only writes tensors that are whole in memory. The format is the length of a header,
    the header in JSON with spaces allowed behind it, and then the numbers.
    """

    def __init__(self, file: BinaryIO, name: str, width: int) -> None:
        self._file, self._name, self._width = file, name, width
        self._columns: dict[str, list[Tensor]] = {}
        file.write(bytes(8 + _HEADER_BYTES))

    def add(self, rows: Tensor, **columns: Tensor) -> None:
        """Writes rows (m, D), and keeps a number of each for the end."""
        self._file.write(rows.contiguous().view(torch.uint8).numpy().data)
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)

    def finish(self, dtype: torch.dtype) -> None:
        columns = {name: torch.cat(parts).numpy().astype("<f4") for name, parts in self._columns.items()}
        count = len(next(iter(columns.values())))
        end = count * self._width * dtype.itemsize
        header = {self._name: {"dtype": _NAMES[dtype], "shape": [count, self._width], "data_offsets": [0, end]}}
        padding = -end % np.dtype("<f4").itemsize  # int8 rows may end anywhere; the format allows no gap
        if padding:
            header["padding"] = {"dtype": "I8", "shape": [padding], "data_offsets": [end, end + padding]}
            self._file.write(bytes(padding))
            end += padding
        for name, column in columns.items():
            self._file.write(column.data)
            header[name] = {"dtype": "F32", "shape": [count], "data_offsets": [end, end + column.nbytes]}
            end += column.nbytes
        self._file.seek(0)
        self._file.write(_HEADER_BYTES.to_bytes(8, "little") + json.dumps(header).encode().ljust(_HEADER_BYTES))
