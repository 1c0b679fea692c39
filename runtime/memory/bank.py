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
from runtime.memory.sums import RefinedSums

_MAX_ERROR = 1e-3
"""Largest error allowed in a projected unit vector."""
_AIMED_ERROR = 0.4 * _MAX_ERROR
"""Error, as it is expected, that unrefined rows are left with."""
_ERROR_MARGIN = 2
"""How many times the expected error is allowed for. It is made up of the errors of thousands of rows, in as many
directions: where rows have none in common, it is within a few hundredths of what is expected."""
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

        From the rows as stored, the nearest ones refined by their residuals, where that is exact enough; else from all
        rows refined.
        """
        rows, temperature, top_k = self.rows, self.config.temperature, self.config.refine_top_k
        can_refine = rows.residual is not None and top_k > 0
        if not can_refine or not (rows.has_residual_in_memory or kernels.reads_residual_from_file):
            return kernels.project(rows, unit_queries, temperature)
        sums = torch.empty_like(unit_queries)
        needs_all = self._needs_all(kernels, unit_queries)
        others = torch.nonzero(~needs_all)[:, 0]
        if len(others):
            refined = kernels.project_with_refinement(rows, unit_queries[others], temperature, top_k, _AIMED_ERROR)
            sums[others], needs_all[others] = refined.sums, ~(self._largest_error(refined) <= _MAX_ERROR)
        if needs_all.any():
            sums[needs_all] = kernels.project(rows, unit_queries[needs_all], temperature)
        return sums

    def _needs_all(self, kernels: ProjectionKernels, unit_queries: Tensor) -> Tensor:
        """Return whether refining the nearest rows is unlikely to be enough, judged by a sample: (R,) bool."""
        sample = self.rows.head(_SAMPLE_ROWS)
        share = len(sample) / len(self.rows)
        top_k = max(1, int(self.config.refine_top_k * share))
        refined = kernels.project_with_refinement(sample, unit_queries, self.config.temperature, top_k)
        # The errors of more rows, each of less weight, cancel better.
        of_all = refined._replace(errors=refined.errors * math.sqrt(share))
        return self._largest_error(of_all) > _SAMPLE_TOLERANCE * _MAX_ERROR

    def _largest_error(self, refined: RefinedSums) -> Tensor:
        """Return how far the rounding of unrefined rows can move each unit vector (R,).

        At random, and because it makes these rows' weights larger on average: by half the variance of their logits.
        Among rows that are alike, rounding also decides which are the nearest: it is the others that have lost. Of a
        normal distribution, the part below any limit is at most 1 / sqrt(2 pi) of a standard deviation off, together.
        """
        width, alike = self.rows.stored.shape[1], self.config.max_alike_rows or len(self.rows)
        variance = (self.config.max_relative_error / self.config.temperature) ** 2 / width
        together = math.sqrt(1 + (alike - 1) / (2 * math.pi))
        return _ERROR_MARGIN * together * refined.errors + variance / 2 * refined.drifts
