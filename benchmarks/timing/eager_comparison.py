"""Times the published algorithm (`benchmarks.eager`) beside the runtime: same weights, image and boxes, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from benchmarks import eager
from benchmarks.timing.report import Comparison, Ratio
from benchmarks.timing.stage_rows import SECOND, WHOLE
from benchmarks.timing.stages import (
    REGION_STAGES,
    STAGES,
    Key,
    PipelineStages,
    PixelBox,
    StageRun,
    Stopwatch,
    as_regions,
    run_stages,
    sample_boxes,
    total_ms,
)
from export.models.dinov2 import Dinov2Backbone
from export.readers import read_checkpoint
from runtime.bundle import Manifest
from runtime.errors import PatchcaptionError

COMPARED = {
    "backbone": ("preprocess", "backbone"),
    "projection": ("projection",),
    "decoding": ("decoding",),
    WHOLE: STAGES,
    SECOND: REGION_STAGES,
}
"""The stages in each row of the comparison. `eager.encode_image` preprocesses too, so both count as backbone."""


@dataclass(frozen=True, eq=False)
class PublishedSystem:
    """The published system with a bundle's weights, on one device; bank (M, D), None for a noise-trained decoder."""

    backbone: Dinov2Backbone
    decoder: dict[str, Tensor]
    bank: Tensor | None
    tokenizer: Tokenizer
    eos_token_id: int
    device: torch.device

    @classmethod
    def read(cls, manifest: Manifest, name: str | None, folder: Path | None, device: torch.device) -> PublishedSystem:
        """Read the weights from the checkpoint that the bundle was built from.

        Args:
            name: the checkpoint, where it is not found under the name in the manifest.
            folder: where files that it names are looked for first.

        Raises:
            PatchcaptionError: the checkpoint cannot be read, or is another.
        """
        checkpoint = read_checkpoint(name or manifest.build.checkpoint, folder)
        backbone, memory = checkpoint.backbone, checkpoint.memory
        if not isinstance(backbone, Dinov2Backbone):
            raise PatchcaptionError(
                f"{checkpoint.source}: the published system has a DINOv2 backbone, got {backbone.family}"
            )
        bank = None if memory is None else torch.cat([embeddings for embeddings, _ in memory.rows()])
        rows = 0 if bank is None else len(bank)
        expected_rows = manifest.memory.num_rows if manifest.memory else 0
        expected = (manifest.backbone.name, manifest.backbone.preprocessing.image_size, expected_rows)
        here = (checkpoint.backbone_name, backbone.image_size, rows)
        if here != expected:
            raise PatchcaptionError(
                f"{checkpoint.source}: expected the checkpoint of the bundle, {expected[0]} of {expected[1]} px "
                f"with {expected_rows} rows of memory, got {here[0]} of {here[1]} px "
                f"with {rows}; name the right one with --checkpoint"
            )
        return cls(
            backbone.to(device),
            checkpoint.decoder.to(device).state_dict(),
            None if bank is None else bank.to(device),
            checkpoint.tokenizer,
            checkpoint.eos_token_ids[0],
            device,
        )

    def run(self, file: Path, boxes: Sequence[PixelBox]) -> StageRun:
        """Run all stages once."""
        with self.device:  # new tensors of the algorithm are made there too
            return self._run(file, boxes)

    def _run(self, file: Path, boxes: Sequence[PixelBox]) -> StageRun:
        timed = Stopwatch(self.device)
        image = timed("read", lambda: _open(file))
        encoded = timed("backbone", lambda: eager.encode_image(self.backbone, image))
        vectors = timed("weights and pooling", lambda: torch.stack([eager.box_vector(encoded, box) for box in boxes]))
        projected = timed("projection", lambda: vectors if self.bank is None else eager.project(self.bank, vectors))
        tokens = timed("decoding", lambda: eager.decode(self.decoder, projected)[0].tolist())
        ids = [row[: row.index(self.eos_token_id) + 1] if self.eos_token_id in row else row for row in tokens]
        timed("text", lambda: [self.tokenizer.decode(row, skip_special_tokens=True) for row in ids])
        return StageRun(timed.durations_ms, ids)


def compare(
    stages: PipelineStages,
    published: PublishedSystem,
    file: Path,
    counts: Sequence[int],
    lengths: Sequence[int],
    runs: int,
    report_progress: Callable[[str], None],
) -> Comparison:
    """Run both in turn, for each number of regions; the first turn warms up and does not count."""
    ratios: list[Ratio] = []
    same: dict[int, int] = {}
    backbone = stages.captioner.manifest.backbone
    for count in counts:
        boxes = sample_boxes(backbone.tokens, backbone.patch_size, count)
        regions, pairs = as_regions(boxes), list[tuple[StageRun, StageRun]]()
        for number in range(1 + runs):
            report_progress(f"{count} regions beside the published algorithm, run {number} of {runs}")
            pairs.append((run_stages(stages, file, regions, lengths), published.run(file, boxes)))
        same[count] = sum(ours == theirs for ours, theirs in zip(pairs[-1][0].ids, pairs[-1][1].ids, strict=True))
        ratios += _ratios(pairs[1:], count, lengths, published.bank is not None)
    return Comparison(runs=runs, eager_steps=eager.STEPS, ratios=tuple(ratios), same_captions=same)


def _ratios(
    pairs: Sequence[tuple[StageRun, StageRun]], regions: int, lengths: Sequence[int], has_memory: bool
) -> list[Ratio]:
    def median_ms(side: Sequence[dict[Key, float]], parts: Sequence[str], tokens: int) -> float:
        return float(np.median([total_ms(durations_ms, parts, tokens) for durations_ms in side]))

    ours, theirs = ([run.durations_ms for run in side] for side in zip(*pairs, strict=True))
    return [
        Ratio(
            part=part,
            regions=regions,
            tokens=tokens,
            ours_ms=median_ms(ours, stages, tokens),
            eager_ms=median_ms(theirs, stages, tokens),
        )
        for tokens in lengths
        for part, stages in COMPARED.items()
        if has_memory or part != "projection"
    ]


def _open(file: Path) -> Image.Image:
    with Image.open(file) as image:
        return image.convert("RGB")
