"""A recording of the published dense captioning evaluation on made detections: its .json alone.

It was made with a stand-in for METEOR, so that no Java is needed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from benchmarks.difference import ALLOWED, Difference
from benchmarks.scoring.dense_map import (
    IOU_THRESHOLDS,
    METEOR_THRESHOLDS,
    MatchedImage,
    dense_map,
    match_image,
    merge_truth,
)

_SPREAD = 1e-6 / ALLOWED["scores"]
"""Makes 1e-6 the difference that is allowed: the published evaluation adds in float32."""


def is_dense_evaluation(contents: Mapping[str, Any]) -> bool:
    """Return whether a .json is such a recording."""
    return {"images", "records", "ap_breakdown", "det_breakdown"} <= contents.keys()


def compare_dense_evaluation(contents: Mapping[str, Any]) -> Iterator[Difference]:
    """Compare the merged boxes, the record of every detection, and all average precisions.

    Raises:
        DenseMapError: the recorded boxes or scores are none.
    """
    matched = [_match(image) for image in contents["images"]]
    yield _compare_records(matched, contents["records"])
    found = dense_map(matched, f1_scores)
    yield Difference("dense captioning: merged boxes", contents["npos"], found.truth_count)
    pairs = [
        ("mAP", found.value, contents["map"], found.by_iou_and_meteor.values(), _by_iou_and_meteor(contents)),
        ("detmAP", found.detection, contents["detmap"], found.by_iou.values(), _by_iou(contents)),
    ]
    for name, value, recorded, parts, recorded_parts in pairs:
        differences = [abs(got - want) for got, want in zip(parts, recorded_parts, strict=True)]
        yield Difference(f"dense captioning: {name}", spread=_SPREAD, scores=max(abs(value - recorded), *differences))


def f1_scores(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Return the stand-in for METEOR: the best F1 of a caption's words with those of its references."""
    return [
        max((_f1(caption, reference) for reference in own), default=0.0)
        for caption, own in zip(captions, references, strict=True)
    ]


def _f1(caption: str, reference: str) -> float:
    words, wanted = (Counter(text.lower().split()) for text in (caption, reference))
    total = words.total() + wanted.total()
    return 2 * (words & wanted).total() / total if total else 0.0


def _match(image: Mapping[str, Any]) -> MatchedImage:
    truth = merge_truth(image["target_boxes"], image["target_texts"])
    return match_image(image["boxes"], image["texts"], image["scores"], truth)


def _compare_records(matched: Sequence[MatchedImage], recorded: Sequence[Mapping[str, Any]]) -> Difference:
    """Compare detections in the order of each image's scores: what they belong to, the overlap, and the stand-in."""
    captions = list(chain.from_iterable(image.captions for image in matched))
    references = list(chain.from_iterable(image.references for image in matched))
    if len(captions) != len(recorded):
        return Difference("dense captioning: detections", len(recorded), len(captions))
    found = zip(
        [number for number, image in enumerate(matched) for _ in image.captions],
        chain.from_iterable(image.is_first.tolist() for image in matched),
        captions,
        references,
        strict=True,
    )
    wanted = [(one["image"], bool(one["ok"]), one["candidate"], tuple(one["references"])) for one in recorded]
    ious = chain.from_iterable(image.ious.tolist() for image in matched)
    worst = [abs(got - one["iou"]) for got, one in zip(ious, recorded, strict=True)]
    worst += [
        abs(got - one["score_standin"]) for got, one in zip(f1_scores(captions, references), recorded, strict=True)
    ]
    same = sum(got == want for got, want in zip(found, wanted, strict=True))
    return Difference(
        "dense captioning: detections", len(recorded), same, spread=_SPREAD, scores=max(worst, default=0.0)
    )


def _by_iou_and_meteor(contents: Mapping[str, Any]) -> list[float]:
    names = [f"iou_{iou:g}_meteor_{threshold:g}" for iou in IOU_THRESHOLDS for threshold in METEOR_THRESHOLDS]
    return [contents["ap_breakdown"][name] for name in names]


def _by_iou(contents: Mapping[str, Any]) -> list[float]:
    return [contents["det_breakdown"][f"iou_{iou:g}"] for iou in IOU_THRESHOLDS]
