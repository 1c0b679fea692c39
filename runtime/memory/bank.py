"""The memory bank: carries a region vector into text space, as a weighted sum of the caption embeddings near it.

On the CPU the native kernels do it where they were built (`make native`), else torch does the same, more slowly.

Shapes: R regions, M memory rows, D width, m rows of a block.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.bundle import Bundle, MemorySettings
from runtime.errors import BundleError
from runtime.memory import native_kernels as native
from runtime.memory import torch_kernels as torch_projection
from runtime.memory.blocks import blocks
from runtime.memory.rows import StoredRows

_ALLOWED_ROUNDING = 1e-3
"""Of a projected vector of length 1."""
_DEVIATIONS = 4
"""How many standard deviations of a cosine's rounding are reckoned with: of 16,000 rows one rounds worse."""
_SAMPLE_ROWS = 2**14
"""Rows that show how wide the softmax of a region is, before all are looked at."""
_SAMPLE_TRUST = 4
"""By how many times the sample may miss."""
_REGIONS_AT_ONCE = 256
"""Their sums stay in a core's second cache while the rows pass by."""


@dataclass(frozen=True)
class MemoryMatch:
    """A caption of the memory bank near a region.

    Attributes:
        text: the caption.
        similarity: the cosine of its embedding and the region's vector, in -1..1.

    Example:
        >>> match = captioner.caption(scene, [Box(276, 174, 507, 399)], n_best=3)[0].nearest[0]
        >>> match.text, round(match.similarity, 2)
        ('a large striped red triangle', 0.82)
    """

    text: str
    similarity: float


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """M caption embeddings of width D, as they came (not normalised), and how vectors are projected onto them.

    Attributes:
        rows: the embeddings.
        settings: of the bundle: temperature, normalisation, how the embeddings were rounded.
        captions_file: the captions, a JSON string a line, row by row.
    """

    rows: StoredRows
    settings: MemorySettings
    captions_file: Path

    @classmethod
    def load(cls, bundle: Bundle, settings: MemorySettings, device: torch.device) -> MemoryBank:
        """Maps a bundle's bank into memory.

        Raises:
            BundleError: its files are not what they should be.
        """
        file, width = bundle.path(settings.embeddings), bundle.manifest.architecture.width
        rows = StoredRows.load(file, None if settings.fine is None else bundle.path(settings.fine), device)
        if rows.stored.shape != (settings.rows, width):
            got = tuple(rows.stored.shape)
            raise BundleError(f"{file}: expected embeddings ({settings.rows}, {width}), got {got}; build it again")
        return cls(rows, settings, bundle.path(settings.captions))

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each row (M), read when first asked for.

        Raises:
            BundleError: the file does not have a text for each row.
        """
        try:
            with self.captions_file.open(encoding="utf-8") as lines:
                captions = [json.loads(line) for line in lines]
        except (OSError, ValueError, RecursionError) as error:
            raise BundleError(f"{self.captions_file}: cannot be read: {error}; build the bundle again") from None
        if len(captions) != len(self.rows) or not all(isinstance(caption, str) for caption in captions):
            raise BundleError(
                f"{self.captions_file}: expected {len(self.rows)} lines, a JSON string each; build the bundle again"
            )
        return captions

    def project(self, vectors: Tensor) -> Tensor:
        """Region vectors (R, D) into text space (R, D): softmax(cosine / temperature) @ embeddings (SPEC section 5).

        However the rows are stored, a projected unit vector differs by less than 1e-3 from that of float32 rows.
        """
        if len(vectors) == 0:
            return vectors
        kernels = _kernels(vectors.device)
        mixed = torch.cat([self._mix(kernels, part) for part in F.normalize(vectors, dim=-1).split(_REGIONS_AT_ONCE)])
        return F.normalize(mixed, dim=-1) if self.settings.normalize else mixed

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        """For each of the vectors (R, D) its ``count`` nearest captions, the nearest first."""
        directions = F.normalize(vectors, dim=-1)
        cosines, places = directions.new_empty((len(vectors), 0)), torch.empty((len(vectors), 0), dtype=torch.int64)
        for block in blocks(self.rows, len(vectors)):
            of_block = block.products(directions) * block.inverse_norms
            best = of_block.topk(min(count, of_block.shape[1]), dim=-1)
            cosines = torch.cat([cosines, best.values], dim=1)
            places = torch.cat([places, best.indices.cpu() + block.start], dim=1)
            cosines, kept = cosines.topk(min(count, cosines.shape[1]), dim=-1)
            places = places.gather(1, kept.cpu())
        return [
            tuple(MemoryMatch(self.captions[place], cosine) for place, cosine in zip(*found, strict=True))
            for found in zip(places.tolist(), cosines.clamp(-1, 1).tolist(), strict=True)
        ]

    def _mix(self, kernels: _Kernels, directions: Tensor) -> Tensor:
        """softmax @ rows (R, D).

        Where few rows have the weight: from the rows as stored, the best of them again with what rounding left. Else,
        and where the weight of the others turns out too large to neglect their rounding, from all that is known of all.
        """
        rows, temperature, best = self.rows, self.settings.temperature, self.settings.best
        has_best = rows.fine is not None and best > 0
        # Only the native kernels read what rounding left of single rows from its file.
        if not has_best or (kernels is torch_projection and not rows.fine_in_memory):
            return kernels.project(rows, directions, temperature)
        mixed = torch.empty_like(directions)
        is_wide = self._is_wide(kernels, directions)
        narrow = torch.nonzero(~is_wide)[:, 0]
        if len(narrow):
            mixed[narrow], tail = kernels.project_best(rows, directions[narrow], temperature, best)
            is_wide[narrow] = ~(tail * self._rounding <= _ALLOWED_ROUNDING)
        if is_wide.any():
            mixed[is_wide] = kernels.project(rows, directions[is_wide], temperature)
        return mixed

    def _is_wide(self, kernels: _Kernels, directions: Tensor) -> Tensor:
        """Whether the best rows will hardly have enough of the weight, by a sample: (R,) bool."""
        sample = self.rows.head(_SAMPLE_ROWS)
        best = max(1, self.settings.best * len(sample) // len(self.rows))
        _, tail = kernels.project_best(sample, directions, self.settings.temperature, best)
        return tail * self._rounding > _SAMPLE_TRUST * _ALLOWED_ROUNDING

    @property
    def _rounding(self) -> float:
        """The most that rounding can do to the part of a projected vector that is of rows as stored, as a share of it:
        to their weights through their cosines, and so to the sum of weights, and to the rows themselves."""
        width = self.rows.stored.shape[1]
        of_weights = _DEVIATIONS / (math.sqrt(width) * self.settings.temperature)
        return self.settings.rounding * (2 * of_weights + 1)


class _Kernels(Protocol):
    """What projects: the native kernels, or torch. See `torch_projection` for what each returns."""

    def project(self, rows: StoredRows, directions: Tensor, temperature: float) -> Tensor: ...

    def project_best(
        self, rows: StoredRows, directions: Tensor, temperature: float, best: int
    ) -> tuple[Tensor, Tensor]: ...


def _kernels(device: torch.device) -> _Kernels:
    library = native.library() if device.type == "cpu" else None
    return library or torch_projection
