"""The runtime's stages one by one, and one run through all of them.

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
from runtime import Box, Captioner, FeatureMap, PatchcaptionError, Region
from runtime.bundle import Architecture
from runtime.image import View, open_image, prepare

TYPICAL_TOKENS = 12
"""Of a caption of COCO's kind, its end included. The worst is as many as the decoder has steps."""

IMAGE_STAGES = ("read", "preprocess", "backbone")
REGION_STAGES = ("weights and pooling", "projection", "decoding", "text")
STAGES = IMAGE_STAGES + REGION_STAGES

Key: TypeAlias = tuple[str, int | None]
"""A stage, and the tokens of each caption where they count."""

PixelBox: TypeAlias = tuple[float, float, float, float]
"""(x, y, width, height) in pixels of the backbone's input."""

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Stopwatch:
    """Times calls on a device.

    Attributes:
        taken_ms: what each call took, in milliseconds.
    """

    device: torch.device
    taken_ms: dict[Key, float] = field(default_factory=dict)

    def __call__(self, stage: str, call: Callable[[], T], tokens: int | None = None) -> T:
        synchronize(self.device)
        start = time.perf_counter()
        result = call()
        synchronize(self.device)
        self.taken_ms[stage, tokens] = 1000 * (time.perf_counter() - start)
        return result


class Stages:
    """What `Captioner.caption` does, stage by stage. The one place that looks inside a captioner."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        self.device = captioner.backend.device
        self._seen = captioner.manifest.architecture
        self._noise: Tensor | None = None
        self._fit, self._backbone = captioner._fit, captioner._seeing
        self._decoder, self._tokenizer = captioner._greedy, captioner._tokenizer

    def preprocess(self, image: Image.Image) -> tuple[Tensor, tuple[View, ...]]:
        return prepare([image], self._seen.size, self._fit, self._seen.resize, self.device)

    def encode(self, pixels: Tensor, views: tuple[View, ...]) -> FeatureMap:
        out = self._backbone.run({"pixels": pixels})
        return FeatureMap(out["tokens"], out["cls_scores"], views, self._seen.patch, self._seen.registers)

    def decode(self, vectors: Tensor, steps: int) -> list[list[int]]:
        """The tokens of vectors (R, D), each taken through exactly ``steps`` steps, wherever its caption ends."""
        return self._decoder.decode(vectors, past_end=True, at_most=steps).ids

    def encode_noise(self, images: int) -> None:
        """The backbone on several images at once."""
        shape = (images, self._seen.size, self._seen.size, 3)
        if self._noise is None or self._noise.shape != shape:
            self._noise = torch.randint(0, 256, shape, dtype=torch.uint8).to(self.device)
        self._backbone.run({"pixels": self._noise})

    def text(self, ids: list[list[int]]) -> list[str]:
        return [self._tokenizer.text(of_caption) for of_caption in ids]


@dataclass(frozen=True, eq=False)
class Run:
    """One run through all stages.

    Attributes:
        taken_ms: of each stage.
        ids: the tokens of each caption at the greatest length.
    """

    taken_ms: dict[Key, float]
    ids: list[list[int]]


def run_stages(stages: Stages, file: Path, regions: Sequence[Region], lengths: Sequence[int]) -> Run:
    """From an image file to the texts of its regions; decoding and text once for each of the rising ``lengths``."""
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
    return Run(timed.taken_ms, ids)


def total_ms(taken_ms: dict[Key, float], parts: Sequence[str], tokens: int) -> float:
    """Of some stages together, for captions of ``tokens`` tokens."""
    return sum(taken for (stage, length), taken in taken_ms.items() if stage in parts and length in (None, tokens))


def caption_lengths(steps: int) -> tuple[int, ...]:
    """The typical and the worst."""
    return tuple(sorted({min(TYPICAL_TOKENS, steps), steps}))


def sample_boxes(seen: Architecture, count: int) -> list[PixelBox]:
    """Different boxes of whole patches, the same whenever asked for.

    Raises:
        PatchcaptionError: the grid has not so many.
    """
    grid = seen.size // seen.patch
    spans = [(first, last) for first in range(grid) for last in range(first, grid)]
    if count > len(spans) ** 2:
        raise PatchcaptionError(
            f"--regions: a grid of {grid} x {grid} patches has {len(spans) ** 2} boxes, not {count}"
        )
    chosen = np.random.default_rng(0).choice(len(spans) ** 2, count, replace=False).tolist()
    pairs = [(spans[place // len(spans)], spans[place % len(spans)]) for place in chosen]
    side = float(seen.patch)
    return [
        (side * left, side * top, side * (right - left), side * (bottom - top))
        for (left, right), (top, bottom) in pairs
    ]


def as_regions(boxes: Sequence[PixelBox]) -> list[Region]:
    """In the published form, so that the published algorithm can be given exactly the same."""
    return [Box.published(*box) for box in boxes]


def write_sample(file: Path) -> None:
    """A JPEG of 640 x 480 with about as much in it as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), np.uint8)).resize((640, 480), Image.Resampling.BICUBIC)
    grain = rng.integers(-12, 13, (480, 640, 1))
    Image.fromarray((np.asarray(coarse) + grain).clip(0, 255).astype(np.uint8)).save(file, quality=90)
