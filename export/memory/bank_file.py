"""Writes a memory bank into the files of a bundle, block by block, so that it is never whole in memory."""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from export.checkpoint import CheckpointError, MemorySource
from export.memory.alike import AlikeRows
from export.memory.quantization import REFINE_TOP_K, QuantizedRows, quantize_rows
from runtime.bundle import MemoryConfig
from runtime.bundle.dtypes import NUMBER_FORMATS, NumberFormat, StoragePrecision

_EMBEDDINGS_FILE, _RESIDUAL_FILE = "memory.safetensors", "memory_residual.safetensors"
_CAPTIONS_FILE = "captions.jsonl"
_HEADER_BYTES = 504
"""Reserved for the header, which is written last; with its length before it the values begin at byte 512."""
MAX_ERROR = 1e-3
"""The largest difference allowed between a projected unit vector and that of float32 rows."""


def write_memory(
    memory: MemorySource, folder: Path, text_space: str, precision: StoragePrecision = "fp32"
) -> MemoryConfig:
    """Write a bank's embeddings, captions and, in less than float32, residuals.

    memory.safetensors has embeddings (M, D), inverse_norms (M,) and, with int8 and float16, scales (M,);
    memory_residual.safetensors has residual (M, D) and scales (M,); captions.jsonl has one caption a line.

    Raises:
        CheckpointError: the bank cannot be read, or projected vectors would differ by more than `MAX_ERROR`.
    """
    generator = torch.Generator().manual_seed(0)
    top_k, max_error, count, alike = REFINE_TOP_K[precision], 0.0, 0, AlikeRows(memory.width)
    with ExitStack() as files:
        lines = files.enter_context((folder / _CAPTIONS_FILE).open("w", encoding="utf-8"))
        rows = _RowsFile(files.enter_context((folder / _EMBEDDINGS_FILE).open("wb")), "embeddings", memory.width)
        residual = None
        if top_k:
            residual = _RowsFile(files.enter_context((folder / _RESIDUAL_FILE).open("wb")), "residual", memory.width)
        for embeddings, captions in memory.rows():
            if len(embeddings) == 0:
                continue
            lines.writelines(json.dumps(caption, ensure_ascii=False) + "\n" for caption in captions)
            block = quantize_rows(embeddings, precision, generator)
            _check_error(memory, block, precision)
            rows.add(block.stored, inverse_norms=1 / embeddings.norm(dim=1), **_scales(block))
            if residual is not None and block.residual is not None and block.residual_scales is not None:
                alike.add(embeddings)
                residual.add(block.residual, scales=block.residual_scales)
            max_error, count = max(max_error, block.max_error), count + len(embeddings)
        rows.finish(NUMBER_FORMATS[precision])
        if residual is not None:
            residual.finish(NUMBER_FORMATS["int8"])
    return MemoryConfig(
        projects=memory.projects,
        text_space=text_space,
        embeddings=_EMBEDDINGS_FILE,
        captions=_CAPTIONS_FILE,
        num_rows=count,
        temperature=memory.temperature,
        normalize=memory.normalize,
        precision=precision,
        residual=_RESIDUAL_FILE if top_k else None,
        max_relative_error=max_error,
        max_alike_rows=alike.most() if top_k else None,
        refine_top_k=top_k,
    )


def _check_error(memory: MemorySource, block: QuantizedRows, precision: StoragePrecision) -> None:
    """Raise if projected vectors would differ from those of float32 rows by more than allowed."""
    error = block.max_residual_error * math.hypot(1 / (math.sqrt(memory.width) * memory.temperature), 1)
    if error > MAX_ERROR:
        raise CheckpointError(
            f"{memory.source}: some numbers are so much larger than others of their row that {precision} would change "
            f"projected vectors by {error:.1e}; at most {MAX_ERROR:.0e} is promised: use --memory-precision fp32"
        )


def _scales(block: QuantizedRows) -> dict[str, Tensor]:
    return {} if block.scales is None else {"scales": block.scales}


class _RowsFile:
    """Writes one tensor (M, D) and some of (M,) in the safetensors format, M not known before the end.

    The safetensors package only writes tensors that are whole in memory. The format is the length of a header, the
    header in JSON padded with spaces, and then the values.
    """

    def __init__(self, file: BinaryIO, name: str, width: int) -> None:
        self._file, self._name, self._width = file, name, width
        self._columns: dict[str, list[Tensor]] = {}
        file.write(bytes(8 + _HEADER_BYTES))

    def add(self, rows: Tensor, **columns: Tensor) -> None:
        """Write rows (m, D), and keep their columns (m,) for the end."""
        self._file.write(rows.contiguous().view(torch.uint8).numpy().data)
        for name, column in columns.items():
            self._columns.setdefault(name, []).append(column)

    def finish(self, number_format: NumberFormat) -> None:
        """Write the columns and the header."""
        columns = {name: torch.cat(parts).numpy().astype("<f4") for name, parts in self._columns.items()}
        count = len(next(iter(columns.values())))
        end = count * self._width * number_format.bytes
        header = {
            self._name: {"dtype": number_format.safetensors, "shape": [count, self._width], "data_offsets": [0, end]}
        }
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
