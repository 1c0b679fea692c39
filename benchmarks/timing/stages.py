"""Times the runtime's stages one by one, in a run through all of them.

Shapes: R regions, D width.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.timing.machine_limits import synchronize
from runtime import Box, Captioner, FeatureMap, Fit, PatchcaptionError, Region
from runtime.bundle import TokenLayout
from runtime.decoding.decap import DecapDecoder
from runtime.image import View, open_image

TYPICAL_TOKENS = 12
"""Length of a caption of COCO's kind, its end included. The longest has as many tokens as the decoder has steps."""

IMAGE_STAGES = ("read", "preprocess", "backbone")
REGION_STAGES = ("weights and pooling", "projection", "decoding", "text")
STAGES = IMAGE_STAGES + REGION_STAGES

Key: TypeAlias = tuple[str, int | None]
"""A stage, and the tokens of each caption where they matter."""

PixelBox: TypeAlias = tuple[float, float, float, float]
"""(x, y, width, height) in pixels of the backbone's input."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Times calls on a device.

    Attributes:
        durations_ms: of each call.
    """

    device: torch.device
    durations_ms: dict[Key, float] = field(default_factory=dict)

    def __call__(self, stage: str, call: Callable[[], T], tokens: int | None = None) -> T:
        synchronize(self.device)
        start = time.perf_counter()
        result = call()
        synchronize(self.device)
        self.durations_ms[stage, tokens] = 1000 * (time.perf_counter() - start)
        return result


class PipelineStages:
    """The steps of `Captioner.caption` one by one, on the captioner's public stages."""

    def __init__(self, captioner: Captioner) -> None:
        decoder = captioner.pipeline.decoder
        if not isinstance(decoder, DecapDecoder):
            raise PatchcaptionError(f"expected a bundle with DeCap's decoder, got {type(decoder).__name__}")
        self.captioner = captioner
        self.device = captioner.backend.device
        self._encoder, self._decoder = captioner.pipeline.encoder, decoder
        self._noise: Tensor | None = None

    def preprocess(self, image: Image.Image) -> tuple[Tensor, tuple[View, ...]]:
        """Return the backbone's input for an image, and how the image lies on it."""
        return self._encoder.preprocess([image])

    def encode(self, pixel_values: Tensor, views: tuple[View, ...]) -> FeatureMap:
        """Run the backbone."""
        return self._encoder.run(pixel_values, views)

    def decode(self, vectors: Tensor, steps: int) -> list[list[int]]:
        """Return the tokens of vectors (R, D), each taken through exactly ``steps`` steps, past its caption's end."""
        return self._decoder.greedy.decode(vectors, ignore_eos=True, max_new_tokens=steps).ids

    def encode_noise(self, images: int) -> None:
        """Run the backbone on several images at once."""
        size = self.captioner.manifest.backbone.preprocessing.image_size
        shape = (images, size, size, 3)
        if self._noise is None or self._noise.shape != shape:
            self._noise = torch.randint(0, 256, shape, dtype=torch.uint8).to(self.device)
        self._encoder.run(self._noise, (View.of((size, size), size, Fit.STRETCH),) * images)

    def text(self, ids: list[list[int]]) -> list[str]:
        """Return the texts of captions' tokens."""
        return [*map(self._decoder.tokenizer.text, ids)]


@dataclass(frozen=True, eq=False)
class StageRun:
    """One run through all stages.

    Attributes:
        durations_ms: of each stage.
        ids: the tokens of each caption at the greatest length.
    """

    durations_ms: dict[Key, float]
    ids: list[list[int]]


def run_stages(stages: PipelineStages, file: Path, regions: Sequence[Region], lengths: Sequence[int]) -> StageRun:
    """Run from an image file to the texts of its regions; decode once for each of the rising ``lengths``."""
    timed = Stopwatch(stages.device)
    captioner, ids = stages.captioner, list[list[int]]()
    image = timed("read", lambda: open_image(file))
    pixels, views = timed("preprocess", lambda: stages.preprocess(image))
    features = timed("backbone", lambda: stages.encode(pixels, views))
    vectors = timed("weights and pooling", lambda: captioner.vectors(features, regions))
    projected = timed("projection", lambda: captioner.project(vectors))
    for tokens in lengths:
        ids = timed("decoding", partial(stages.decode, projected, tokens), tokens)
        timed("text", partial(stages.text, ids), tokens)
    return StageRun(timed.durations_ms, ids)


def total_ms(durations_ms: dict[Key, float], parts: Sequence[str], tokens: int) -> float:
    """Return the sum over some stages, for captions of ``tokens`` tokens."""
    return sum(
        duration for (stage, length), duration in durations_ms.items() if stage in parts and length in (None, tokens)
    )


def caption_lengths(steps: int) -> tuple[int, ...]:
    """Return the typical and the greatest length of a caption."""
    return tuple(sorted({min(TYPICAL_TOKENS, steps), steps}))


def sample_boxes(layout: TokenLayout, patch_size: int, count: int) -> list[PixelBox]:
    """Return different boxes of whole patches, the same at every call.

    Raises:
        PatchcaptionError: the grid does not have so many.
    """
    grid = layout.grid
    spans = [(first, last) for first in range(grid) for last in range(first, grid)]
    if count > len(spans) ** 2:
        raise PatchcaptionError(
            f"--regions: a grid of {grid} x {grid} patches has {len(spans) ** 2} boxes, not {count}"
        )
    chosen = np.random.default_rng(0).choice(len(spans) ** 2, count, replace=False).tolist()
    pairs = [(spans[index // len(spans)], spans[index % len(spans)]) for index in chosen]
    side = float(patch_size)
    return [
        (side * left, side * top, side * (right - left), side * (bottom - top))
        for (left, right), (top, bottom) in pairs
    ]


def as_regions(boxes: Sequence[PixelBox]) -> list[Region]:
    """Return boxes in the published form, so that the published algorithm can be given exactly the same."""
    return [Box.published(*box) for box in boxes]


def write_sample(file: Path) -> None:
    """Write a JPEG of 640 x 480 with about as much detail as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (480, 640, 1))
    Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
