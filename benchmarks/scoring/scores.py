"""The scores of an evaluation's captions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.scoring.metric_score import MetricScore
from benchmarks.scoring.metrics import CaptionMetrics
from benchmarks.scoring.predictions import PredictedImage

_MARKERS = ("<|startoftext|>", "<|endoftext|>")


@dataclass(frozen=True)
class EvaluationScores:
    """What the metrics give, and of how many captions.

    Attributes:
        images, captions: how many were scored.
        empty: captions without words: of regions that the model does not see, and of images that cannot be read.
        metrics: the scores by the names of metrics.
    """

    images: int
    captions: int
    empty: int
    metrics: Mapping[str, MetricScore]


def score_captions(images: Iterable[PredictedImage], metrics: CaptionMetrics) -> EvaluationScores:
    """Score captions against their references; of the images, only texts stay in memory.

    Raises:
        MetricsError: a metric cannot be computed.
    """
    candidates: dict[str, str] = {}
    references: dict[str, tuple[str, ...]] = {}
    count = empty = 0
    for image in images:
        count += 1
        for number, item in enumerate(image.items):
            name = f"{image.id}/{number}"
            candidates[name], references[name] = cleaned(item.caption), item.references
            empty += item.score is None
    return EvaluationScores(count, len(candidates), empty, metrics.score(candidates, references))


def cleaned(caption: str) -> str:
    """Return a caption as the paper scores it: without markers, and without spaces and full stops at its ends."""
    for marker in _MARKERS:
        caption = caption.replace(marker, "")
    return caption.strip(" .")
