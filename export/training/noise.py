"""What embeddings of captions go through before a decoder learns from them, so that it takes those of regions later.

Shapes: B captions of a batch, M memory rows, D width.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Noise: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]
"""Makes the decoder's inputs (B, D) of unit embeddings (B, D); what it draws, it draws on the CPU."""


def no_noise(embeddings: Tensor, generator: torch.Generator) -> Tensor:
    """Return embeddings as they are, as DeCap is trained."""
    del generator
    return embeddings


@dataclass(frozen=True)
class GaussianNoise:
    """Noise on every component, as CapDec is trained: the decoder then takes region vectors without a memory bank.

    Attributes:
        std: standard deviation of each component, not of the whole vector.
    """

    std: float

    def __call__(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        return add_noise(embeddings, torch.randn(embeddings.shape, generator=generator).to(embeddings), self.std)


def add_noise(embeddings: Tensor, noise: Tensor, std: float) -> Tensor:
    """Return unit embeddings with noise (..., D), standard normal numbers times ``std``, at length 1 again."""
    return F.normalize(embeddings + std * noise, dim=-1)


class ProjectedNoise:
    """Noise of random length, and then the projection onto the memory bank, as vectors of regions get at run time.

    For a small memory this is closer to what the decoder meets than the embeddings themselves. A step takes a product
    of (B, D) with the whole bank (M, D), twice.

    Args:
        memory: the bank (M, D), as it is stored, where the decoder is trained.
        normalize: whether what is projected gets unit length, as the text space says.
    """

    def __init__(self, memory: Tensor, temperature: float, normalize: bool) -> None:
        self._memory, self._unit = memory, F.normalize(memory, dim=-1)
        self._temperature, self._normalize = temperature, normalize

    def __call__(self, embeddings: Tensor, generator: torch.Generator) -> Tensor:
        noise = torch.randn(embeddings.shape, generator=generator).to(embeddings)
        length = torch.rand(len(embeddings), 1, generator=generator).to(embeddings)
        noisy = F.normalize(embeddings + length * F.normalize(noise, dim=-1), dim=-1)
        projected = torch.softmax(noisy @ self._unit.T / self._temperature, dim=-1) @ self._memory
        return F.normalize(projected, dim=-1) if self._normalize else projected
