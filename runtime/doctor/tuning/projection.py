"""Times the projection's kernels on a bundle's memory bank: they are the same whatever executes the engines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from runtime.doctor.tuning.budget import Budget
from runtime.doctor.tuning.rounds import Runs, time_in_rounds
from runtime.memory import MemoryBank, kernel_names

REGIONS = (1, 16)
"""Projected at once."""


@dataclass(frozen=True)
class KernelRow:
    """The time that kernels took.

    Attributes:
        bundle: whose memory bank.
        kernels: their name.
        projection_ms: by how many regions at once.
    """

    bundle: str
    kernels: str
    projection_ms: dict[int, float]

    @property
    def milliseconds(self) -> float:
        """The sum by which they are compared."""
        return sum(self.projection_ms.values())


def time_kernels(bundle: str, bank: MemoryBank, vectors: Tensor, budget: Budget) -> list[KernelRow]:
    """Time all kernels of the vectors' device, the usual ones first, with the first of some region vectors (R, D)."""

    def project(kernels: str, regions: int) -> Callable[[], object]:
        chosen, some = replace(bank, kernels=kernels), vectors[:regions]
        return lambda: chosen.project(some)

    runs: dict[str, Runs] = {
        name: {regions: project(name, regions) for regions in REGIONS} for name in kernel_names(vectors.device)
    }
    times = time_in_rounds(runs, budget)
    return [KernelRow(bundle, name, {regions: times[name][regions] for regions in REGIONS}) for name in runs]
