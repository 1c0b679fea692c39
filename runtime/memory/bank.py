"""The memory bank: carries a region vector into text space, as a weighted sum of the caption embeddings near it.

Shapes: R regions, M memory rows, D width, m rows of a block.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.bundle import Bundle, HeldFile, MemoryConfig
from runtime.errors import BundleError
from runtime.memory.blocks import blocks
from runtime.memory.kernels import ProjectionKernels, projection_kernels
from runtime.memory.match import MemoryMatch
from runtime.memory.rows import StoredRows

_MAX_ERROR = 1e-3
"""Largest error allowed in a projected unit vector."""
_DEVIATIONS = 4
"""Standard deviations of a cosine's rounding that are allowed for: one of 16,000 rows rounds worse."""
_SAMPLE_ROWS = 2**14
"""Rows that show how wide the softmax of a region is, before all rows are read."""
_SAMPLE_TOLERANCE = 4
"""The factor by which the sample may be wrong."""
_REGIONS_AT_ONCE = 256
"""Their sums stay in a core's second-level cache while the rows pass by."""


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """M caption embeddings of width D, as published (not normalised), and how vectors are projected onto them.

    Attributes:
        rows: the embeddings.
        config: the bundle's: temperature, normalisation, how the embeddings were rounded.
        captions_file: the captions, a JSON string a line, row by row.
        kernels: what projects, by a name of `kernel_names`; None for the usual ones.
    """

    rows: StoredRows
    config: MemoryConfig
    captions_file: HeldFile
    kernels: str | None = None

    @classmethod
    def load(cls, bundle: Bundle, config: MemoryConfig, device: torch.device, kernels: str | None = None) -> MemoryBank:
        """Read a bundle's bank into memory.

        Raises:
            BundleError: its files are not what they should be.
        """
        residual = None if config.residual is None else bundle.file(config.residual)
        shape = (config.num_rows, bundle.manifest.backbone.output_dim)
        rows = StoredRows.load(bundle.file(config.embeddings), residual, device, shape)
        return cls(rows, config, bundle.file(config.captions), kernels)

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each row (M), read when first asked for.

        Raises:
            BundleError: the file does not have a text for each row.
        """
        file = self.captions_file
        try:
            with io.TextIOWrapper(io.BytesIO(file.read()), encoding="utf-8") as lines:
                captions = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as error:
            raise BundleError(f"{file.path}: cannot be read: {error}; build the bundle again") from None
        if len(captions) != len(self.rows) or not all(isinstance(caption, str) for caption in captions):
            raise BundleError(
                f"{file.path}: expected {len(self.rows)} lines, a JSON string each; build the bundle again"
            )
        return captions

    def project(self, vectors: Tensor) -> Tensor:
        """Carry region vectors (R, D) into text space (R, D): softmax(cosine / temperature) @ embeddings.

        However the rows are stored, a projected unit vector differs by less than 1e-3 from that of float32 rows
        (published-system.md, section 5).
        """
        if len(vectors) == 0:
            return vectors
        kernels = projection_kernels(vectors.device, self.kernels)
        parts = F.normalize(vectors, dim=-1).split(_REGIONS_AT_ONCE)
        sums = torch.cat([self._weighted_sum(kernels, part) for part in parts])
        return F.normalize(sums, dim=-1) if self.config.normalize else sums

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        """Return for each of the vectors (R, D) its ``count`` nearest captions, the nearest first."""
        cosines, indices = self._nearest(vectors, count)
        return [
            tuple(MemoryMatch(self.captions[index], cosine) for index, cosine in zip(*found, strict=True))
            for found in zip(indices.tolist(), cosines.clamp(-1, 1).tolist(), strict=True)
        ]

    def nearest_rows(self, vectors: Tensor, count: int) -> list[list[int]]:
        """Return for each of the vectors (R, D) its ``count`` nearest rows, the nearest first."""
        found: list[list[int]] = self._nearest(vectors, count)[1].tolist()
        return found

    def _nearest(self, vectors: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Return the cosines and the indices of the ``count`` nearest rows (R, count), the nearest first."""
        unit_queries = F.normalize(vectors, dim=-1)
        cosines, indices = unit_queries.new_empty((len(vectors), 0)), torch.empty((len(vectors), 0), dtype=torch.int64)
        for block in blocks(self.rows, len(vectors)):
            block_cosines = block.products(unit_queries) * block.inverse_norms
            top = block_cosines.topk(min(count, block_cosines.shape[1]), dim=-1)
            cosines = torch.cat([cosines, top.values], dim=1)
            indices = torch.cat([indices, top.indices.cpu() + block.start], dim=1)
            cosines, kept = cosines.topk(min(count, cosines.shape[1]), dim=-1)
            indices = indices.gather(1, kept.cpu())
        return cosines, indices

    def _weighted_sum(self, kernels: ProjectionKernels, unit_queries: Tensor) -> Tensor:
        """Return softmax @ rows (R, D).

        Where few rows have the weight, from the rows as stored, the top ones refined by their residuals. Otherwise, and
        where the unrefined rows turn out to weigh too much for their rounding to be neglected, from all rows refined.
        """
        rows, temperature, top_k = self.rows, self.config.temperature, self.config.refine_top_k
        can_refine = rows.residual is not None and top_k > 0
        if not can_refine or not (rows.has_residual_in_memory or kernels.reads_residual_from_file):
            return kernels.project(rows, unit_queries, temperature)
        sums = torch.empty_like(unit_queries)
        is_wide = self._is_wide(kernels, unit_queries)
        narrow = torch.nonzero(~is_wide)[:, 0]
        if len(narrow):
            queries = unit_queries[narrow]
            sums[narrow], unrefined = kernels.project_with_refinement(rows, queries, temperature, top_k)
            is_wide[narrow] = ~(unrefined * self._max_error_per_mass <= _MAX_ERROR)
        if is_wide.any():
            sums[is_wide] = kernels.project(rows, unit_queries[is_wide], temperature)
        return sums

    def _is_wide(self, kernels: ProjectionKernels, unit_queries: Tensor) -> Tensor:
        """Return whether the top rows are unlikely to have enough of the weight, judged by a sample: (R,) bool."""
        sample = self.rows.head(_SAMPLE_ROWS)
        top_k = max(1, self.config.refine_top_k * len(sample) // len(self.rows))
        _, unrefined = kernels.project_with_refinement(sample, unit_queries, self.config.temperature, top_k)
        return unrefined * self._max_error_per_mass > _SAMPLE_TOLERANCE * _MAX_ERROR

    @property
    def _max_error_per_mass(self) -> float:
        """The most that rounding can change the unrefined part of a projected vector, relative to that part.

        It changes the rows' weights through their cosines, and so the sum of weights too, and the rows themselves.
        """
        width = self.rows.stored.shape[1]
        weight_error = _DEVIATIONS / (math.sqrt(width) * self.config.temperature)
        return self.config.max_relative_error * (2 * weight_error + 1)
