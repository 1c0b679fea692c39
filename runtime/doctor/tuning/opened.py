"""Combinations that are open: what of them is timed, and the captioner that describes images with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import TypeVar

import torch

from runtime.backends import Backend
from runtime.bundle import Bundle
from runtime.captioner import Captioner
from runtime.doctor.tuning.combinations import Combination
from runtime.doctor.tuning.pictures import draw_picture
from runtime.doctor.tuning.rounds import Runs, Stage
from runtime.image import Fit
from runtime.memory import MemoryBank, load_bank
from runtime.pipeline import Pipeline
from runtime.system.closeable import Closeable

BATCH_SIZES = (1, 16)
"""Captions decoded at once."""

_TOKENS = 12
"""Length of a typical caption."""

T = TypeVar("T")


class OpenCombinations(Closeable):
    """The combinations that are open at a time. Those of one bundle share its memory bank."""

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self._bundles = bundles
        self._banks: dict[str, MemoryBank | None] = {}
        self.captioners: dict[Combination, Captioner] = {}
        self.runs: dict[Combination, Runs] = {}

    def open(self, combination: Combination) -> None:
        """Open one, and run once what is timed of it: first runs take longer.

        Raises:
            BackendError: its backend cannot open or run its engines.
            BundleError: a file of the bundle is not what it should be.
        """
        bundle = self._bundles[combination.bundle]
        backend = combination.open_backend(bundle)
        pipeline = Pipeline(bundle, backend, Fit.STRETCH, self.bank(combination.bundle, backend.device))
        try:
            pipeline.warm_up()
            runs = _runs_of(pipeline, backend)
            for run in runs.values():
                run()
        except BaseException:
            pipeline.close()
            raise
        self.captioners[combination], self.runs[combination] = Captioner(pipeline), runs

    def close_others(self, kept: Collection[Combination]) -> None:
        """Close all but some."""
        for combination in [one for one in self.captioners if one not in kept]:
            del self.runs[combination]
            self.captioners.pop(combination).close()

    def close(self) -> None:
        """Close all."""
        self.close_others(())

    def bank(self, bundle: str, device: torch.device) -> MemoryBank | None:
        """Return a bundle's memory bank, loaded when first asked for."""
        if bundle not in self._banks:
            self._banks[bundle] = load_bank(self._bundles[bundle], device)
        return self._banks[bundle]


def _runs_of(pipeline: Pipeline, backend: Backend) -> dict[Stage, Callable[[], object]]:
    """Return what is timed: the backbone with one image, and decoding by how many captions at once."""
    pixels, views = pipeline.encoder.preprocess([draw_picture(0)])
    width = pipeline.bundle.manifest.backbone.output_dim
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(max(BATCH_SIZES), width, generator=generator).to(backend.device)

    def encode() -> None:
        pipeline.encoder.run(pixels, views)
        if backend.device.type == "cuda":  # a run is only enqueued; decoding ends with tokens on the host
            torch.cuda.synchronize(backend.device)

    def decode(rows: int) -> Callable[[], object]:
        greedy = pipeline.decoder.greedy
        return lambda: greedy.decode(vectors[:rows].contiguous(), ignore_eos=True, max_new_tokens=_TOKENS)

    return {"backbone": encode, **{rows: decode(rows) for rows in BATCH_SIZES}}
