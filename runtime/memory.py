"""The memory bank: carries a region vector into text space, as a weighted sum of the caption embeddings near it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

_SIMILARITIES_AT_ONCE = 2**24  # 64 MiB of float32: regions are projected in as many goes as that asks for


@dataclass(frozen=True)
class MemoryMatch:
    """A caption of the memory bank near a region.

    Attributes:
        text: the caption.
        similarity: the cosine of its embedding and the region's vector, in -1..1.
    """

    text: str
    similarity: float


@dataclass(frozen=True, eq=False)
class MemoryBank:
    """M caption embeddings of width D, as they came (not normalised), and how vectors are projected onto them.

    Attributes:
        embeddings: (M, D) float32.
        inverse_norms: one over the length of each row (M,) float32.
        temperature: of the softmax over cosine similarities.
        normalize: whether projected vectors get unit length.
        captions_file: the captions, a JSON string a line, row by row.
    """

    embeddings: Tensor
    inverse_norms: Tensor
    temperature: float
    normalize: bool
    captions_file: Path

    @classmethod
    def load(
        cls, embeddings_file: Path, captions_file: Path, temperature: float, normalize: bool, device: torch.device
    ) -> MemoryBank:
        """Maps a bundle's bank into memory."""
        tensors = load_file(embeddings_file, device=str(device))
        return cls(tensors["embeddings"], tensors["inverse_norms"], temperature, normalize, captions_file)

    @cached_property
    def captions(self) -> list[str]:
        """The caption of each row (M), read when first asked for."""
        with self.captions_file.open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def project(self, vectors: Tensor) -> Tensor:
        """Region vectors (R, D) into text space (R, D): softmax(cosine / temperature) @ embeddings (SPEC section 5)."""
        projected = [self._project(rows) for rows in self._in_parts(vectors)]
        return torch.cat(projected) if projected else vectors

    def nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        """For each of the vectors (R, D) its ``count`` nearest captions, the nearest first."""
        matches = []
        for rows in self._in_parts(vectors):
            best = self._cosines(rows).topk(min(count, len(self.embeddings)), dim=-1)
            for places, cosines in zip(best.indices.tolist(), best.values.clamp(-1, 1).tolist(), strict=True):
                found = zip(places, cosines, strict=True)
                matches.append(tuple(MemoryMatch(self.captions[place], cosine) for place, cosine in found))
        return matches

    def _in_parts(self, vectors: Tensor) -> tuple[Tensor, ...]:
        return vectors.split(max(1, _SIMILARITIES_AT_ONCE // max(1, len(self.embeddings)))) if len(vectors) else ()

    def _cosines(self, vectors: Tensor) -> Tensor:
        """(R, M)."""
        return (F.normalize(vectors, dim=-1) @ self.embeddings.T) * self.inverse_norms

    def _project(self, vectors: Tensor) -> Tensor:
        mixed = torch.softmax(self._cosines(vectors) / self.temperature, dim=-1) @ self.embeddings
        return F.normalize(mixed, dim=-1) if self.normalize else mixed
