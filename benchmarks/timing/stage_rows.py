"""The rows of a report: every stage and their totals, for each number of regions and each length of captions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TypeAlias, cast

from benchmarks.timing.report import BundleFacts, Limits, Row, Settings, Times
from benchmarks.timing.stages import (
    REGION_STAGES,
    STAGES,
    Key,
    PipelineStages,
    Stopwatch,
    as_regions,
    run_stages,
    sample_boxes,
    total_ms,
)
from benchmarks.timing.work_estimate import WorkEstimate, backbone_work, decoding_work, pooling_work, projection_work
from runtime.bundle.dtypes import NUMBER_FORMATS, StoragePrecision

WARM_UP = 2
"""Runs after the first call that do not count."""

WHOLE, SECOND, CAPTION, DESCRIBE, REST = "whole", "second description", "caption", "describe", "rest"
SEVERAL = "backbone, several"

_PARTS = {WHOLE: STAGES, CAPTION: STAGES, SECOND: REGION_STAGES, DESCRIBE: REGION_STAGES}

Samples: TypeAlias = dict[Key, list[float]]


def sample_stages(stages: PipelineStages, file: Path, regions: int, settings: Settings) -> Samples:
    """Time every stage in every run; return the milliseconds of the stages and of what they add up to.

    | row | time |
    |---|---|
    | whole | the stages of one run added up |
    | second description | the same without read, preprocess and backbone |
    | caption, describe | `Captioner.caption` of the file, `Captioner.describe` of its features, through all steps |
    | backbone, several | the backbone on several images at once, where --images asks for it |
    | rest | what caption took beyond the stages of the run before it |
    """
    backbone = stages.captioner.manifest.backbone
    boxes = as_regions(sample_boxes(backbone.tokens, backbone.patch_size, regions))
    features = stages.captioner.encode(file)
    samples: Samples = {}
    lengths = settings.tokens
    for _ in range(1 + WARM_UP + settings.runs):
        durations_ms = dict(run_stages(stages, file, boxes, lengths).durations_ms)
        totals: dict[Key, float] = {}
        for tokens in lengths:
            totals[WHOLE, tokens] = total_ms(durations_ms, STAGES, tokens)
            totals[SECOND, tokens] = total_ms(durations_ms, REGION_STAGES, tokens)
        timed, worst = Stopwatch(stages.device), max(lengths)
        timed(CAPTION, lambda: stages.captioner.caption(file, boxes, score="reference"), worst)
        timed(DESCRIBE, lambda: stages.captioner.describe(features, boxes, score="reference"), worst)
        if settings.images > 1:
            timed(SEVERAL, partial(stages.encode_noise, settings.images))
        totals[REST, worst] = timed.durations_ms[CAPTION, worst] - totals[WHOLE, worst]
        for key, milliseconds in (durations_ms | totals | timed.durations_ms).items():
            samples.setdefault(key, []).append(milliseconds)
    return samples


def report_rows(samples: Samples, bundle: BundleFacts, regions: int, settings: Settings, limits: Limits) -> list[Row]:
    """Return the rows of one number of regions, in the order of the table."""
    tokens = sorted({length for _, length in samples if length is not None})
    order = [
        *((stage, None) for stage in (*STAGES, SEVERAL)),
        *((stage, n) for n in tokens for stage in ("decoding", "text")),
    ]
    order += [(total, n) for total in (WHOLE, SECOND) for n in tokens]
    order += [(total, tokens[-1]) for total in (CAPTION, DESCRIBE, REST)]
    return [_row(key, samples[key], bundle, regions, settings, limits) for key in order if key in samples]


def _row(
    key: Key, samples_ms: Sequence[float], bundle: BundleFacts, regions: int, settings: Settings, limits: Limits
) -> Row:
    stage, tokens = key
    times = Times.of(samples_ms, WARM_UP)
    works = [stage_work(part, bundle, regions, tokens, settings) for part in _PARTS.get(stage, (stage,))]
    known = [work for work in works if work is not None]
    return Row(
        stage=stage,
        regions=regions,
        tokens=tokens,
        times=times,
        images_per_s=1000 / times.p50_ms if stage in _PARTS else None,
        regions_per_s=1000 * regions / times.p50_ms if stage in _PARTS else None,
        gflop=sum(work.flop for work in known) / 1e9 if known else None,
        gigabytes=sum(work.bytes for work in known) / 1e9 if known else None,
        limit_ms=sum(work.limit_ms(limits) for work in known) if known else None,
    )


def stage_work(
    stage: str, bundle: BundleFacts, regions: int, tokens: int | None, settings: Settings
) -> WorkEstimate | None:
    """Return the least work of a stage; None for those whose work the manifest does not tell, which are small."""
    width, weight_bytes = bundle.backbone.output_dim, NUMBER_FORMATS[cast(StoragePrecision, settings.precision)].bytes
    if stage == "backbone":
        return backbone_work(bundle.backbone, weight_bytes)
    if stage == SEVERAL:
        return backbone_work(bundle.backbone, weight_bytes, settings.images)
    if stage == "weights and pooling":
        return pooling_work(bundle.backbone, regions)
    if stage == "projection" and bundle.memory_rows:
        return projection_work(width, regions, bundle.memory_rows, bundle.memory_bytes)
    if stage == "decoding" and tokens is not None:
        return decoding_work(bundle.decoder, width, regions, tokens, weight_bytes)
    return None
