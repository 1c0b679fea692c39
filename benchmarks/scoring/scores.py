"""The scores of an evaluation's captions, each made in a pass over its log."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from benchmarks.scoring.dense_map import DenseMap, MatchedImage, dense_map, match_image, merge_truth
from benchmarks.scoring.image_text import summarize
from benchmarks.scoring.metric_score import MetricScore
from benchmarks.scoring.metrics import CaptionMetrics, clean_caption, meteor_scores
from benchmarks.scoring.predictions import PredictedImage


@dataclass(frozen=True)
class EvaluationScores:
    """What the metrics give, and of how many captions.

    Attributes:
        images, captions: how many were scored.
        references: how many captions of people they were compared with.
        empty: captions without words: of regions that the model does not see, and of images that cannot be read.
        metrics: the scores by the names of metrics.
        dense: mAP by its thresholds; None for regions other than boxes.
    """

    images: int
    captions: int
    references: int
    empty: int
    metrics: Mapping[str, MetricScore]
    dense: DenseMap | None


def score_captions(images: Iterable[PredictedImage], metrics: CaptionMetrics, *, is_dense: bool) -> EvaluationScores:
    """Score captions; of the images only texts and numbers are in memory.

    Args:
        images: can be iterated more than once.
        is_dense: whether regions are boxes by themselves, which have a mAP.

    Raises:
        PatchcaptionError: a metric cannot be computed.
    """
    dense = dense_map(map(_matched, images), meteor_scores) if is_dense else None
    of_boxes = {} if dense is None else {"mAP": MetricScore(dense.value), "detmAP": MetricScore(dense.detection)}
    found = of_boxes | _text_scores(images, metrics) | _image_text_scores(images)
    counts = [
        (
            len(image.items),
            sum(len(item.references) for item in image.items),
            sum(item.score is None for item in image.items),
        )
        for image in images
    ]
    captions, references, empty = (sum(column) for column in zip(*counts, strict=True))
    return EvaluationScores(
        images=len(counts),
        captions=captions,
        references=references,
        empty=empty,
        metrics=found,
        dense=dense,
    )


def _text_scores(images: Iterable[PredictedImage], metrics: CaptionMetrics) -> dict[str, MetricScore]:
    candidates: dict[str, str] = {}
    references: dict[str, tuple[str, ...]] = {}
    for image in images:
        for number, item in enumerate(image.items):
            name = f"{image.id}/{number}"
            candidates[name], references[name] = item.caption, item.references
    return metrics.score(candidates, references)


def _image_text_scores(images: Iterable[PredictedImage]) -> dict[str, MetricScore]:
    """Return the scores of images and captions; captions of images that cannot be read have 0."""
    values = (item.image_text for image in images for item in image.items)
    zeros = dict.fromkeys(next(filter(None, values), {}), 0.0)
    return summarize(item.image_text or zeros for image in images for item in image.items)


def _matched(image: PredictedImage) -> MatchedImage:
    """Return an image's annotated boxes, each with its caption by people and, where there is one, the model's."""
    annotations = image.annotations
    truth = merge_truth([one.box for one in annotations], [one.caption for one in annotations])
    captioned = ((one.box, image.items[one.item]) for one in annotations)
    found = [(box, clean_caption(item.caption), item.score) for box, item in captioned if item.score is not None]
    return match_image(
        [box for box, _, _ in found], [text for _, text, _ in found], [score for _, _, score in found], truth
    )
