"""What tuning found: a row for each combination, the choice among them, and what is kept of it."""

from __future__ import annotations

from dataclasses import dataclass

from runtime.backends.measurements import MeasuredRun, Measurement, fastest
from runtime.bundle import Bundle, GraphPrecision
from runtime.doctor.tuning.combinations import Combination
from runtime.doctor.tuning.projection import KernelRow
from runtime.doctor.tuning.quality import Quality

_KERNELS_NEARLY_EQUAL = 1.2
"""Projections take a fraction of a millisecond on small banks, and their times vary more than those of engines."""


@dataclass(frozen=True)
class TunedRow:
    """One combination, with its speed and its quality.

    Attributes:
        graphs: the precision of the bundle's graphs.
        backbone_ms: for one image.
        decoding_ms: for captions of 12 tokens and their prompts, by how many of them at once.
    """

    combination: Combination
    graphs: GraphPrecision
    backbone_ms: float
    decoding_ms: dict[int, float]
    quality: Quality

    @property
    def milliseconds(self) -> float:
        """The sum by which combinations are compared."""
        return self.backbone_ms + sum(self.decoding_ms.values())

    def as_run(self) -> MeasuredRun:
        """Return what is kept of it."""
        return MeasuredRun(
            backend=self.combination.backend,
            precision=self.combination.precision,
            threads=self.combination.threads,
            milliseconds=self.milliseconds,
            agreement=self.quality.agreement,
        )


@dataclass(frozen=True)
class Tuning:
    """All that was measured.

    Attributes:
        rows: the first is what the others are compared with; of those that take nearly equal time, the first is chosen.
        kernels: the usual ones of each bundle first.
        left_out: what was not measured, and why.
        images: how many were described.
        captions: how many were compared.
        min_agreement: what a combination must have to be chosen.
    """

    rows: tuple[TunedRow, ...]
    kernels: tuple[KernelRow, ...]
    left_out: tuple[str, ...]
    images: int
    captions: int
    min_agreement: float

    @property
    def chosen(self) -> TunedRow:
        """The fastest combination whose captions agree with those of the first."""
        chosen = fastest([row for row in self.rows if row.quality.agreement >= self.min_agreement])
        assert chosen is not None, "the first agrees with itself"
        return chosen

    def speedup(self, row: TunedRow) -> float:
        """Return how many times as fast as the first row another one is."""
        return self.rows[0].milliseconds / row.milliseconds

    def kernels_of(self, bundle: str) -> str | None:
        """Return the kernels that are faster for a bundle than the usual ones; None if none are."""
        rows = [row for row in self.kernels if row.bundle == bundle]
        chosen = fastest(rows, _KERNELS_NEARLY_EQUAL)
        return None if chosen is None or chosen == rows[0] else chosen.kernels

    def measurement(self, label: str, bundle: Bundle) -> Measurement:
        """Return what is kept for one of the bundles."""
        return Measurement(
            bundle=str(bundle.folder.absolute()),
            runs=[row.as_run() for row in self.rows if row.combination.bundle == label],
            min_agreement=self.min_agreement,
            kernels=self.kernels_of(label),
        )
