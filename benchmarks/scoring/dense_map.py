"""Dense captioning mAP: detections with captions against captioned boxes, by overlap and METEOR together.

The rules are those of the published evaluation (published-system.md, section 23):

1. The annotated boxes of an image are merged (`merge_truth`): several annotators' boxes of one thing are one, with all
   their texts.
2. Each detection, the best first, belongs to the merged box that it overlaps most, if no better one took that
   (`match_image`).
3. It is right at a pair of thresholds where its overlap reaches the one and METEOR exceeds the other. Over all images,
   best first, that gives an average precision for each of 30 pairs; their mean is mAP (`dense_map`). detMAP leaves
   METEOR out.

An evaluation matches image by image and keeps what `match_image` returns: 17 bytes a detection, and the texts. METEOR
is asked once, at the end, and only where it can count.

R detections, G annotated boxes, M merged boxes. Boxes are x1, y1, x2, y2 in pixels, with the area (x2 - x1)(y2 - y1);
overlap is intersection over union (IoU).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from runtime import PatchcaptionError

IOU_THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7)
METEOR_THRESHOLDS = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25)

_MERGE_IOU = 0.7
_RECALL_POINTS = 100

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Similarity: TypeAlias = Callable[[Sequence[str], Sequence[Sequence[str]]], Sequence[float]]
"""Scores captions against the references of each, as `metrics.meteor_scores` does."""


class DenseMapError(PatchcaptionError, ValueError):
    """Detections or annotated boxes that dense captioning mAP is not defined for."""


@dataclass(frozen=True, eq=False)
class MergedTruth:
    """Annotated boxes of an image, those of one thing merged into one.

    Attributes:
        boxes: (M, 4), each the mean of the boxes that it was merged from.
        texts: the texts of those boxes, for each merged one.
    """

    boxes: Floats
    texts: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, eq=False)
class MatchedImage:
    """An image's detections, best first, and the merged box that each belongs to.

    Attributes:
        scores: (R,), higher is better.
        ious: (R,), the overlap with the merged box that it overlaps most, 0 where it overlaps none.
        is_first: (R,) bool, whether it overlaps a merged box that no better detection took.
        captions: R captions.
        references: the texts of that merged box; empty where it overlaps none.
        truth_count: M.
    """

    scores: Floats
    ious: Floats
    is_first: Bools
    captions: tuple[str, ...]
    references: tuple[tuple[str, ...], ...]
    truth_count: int


@dataclass(frozen=True)
class DenseMap:
    """Dense captioning mAP, in 0..1.

    Attributes:
        value: mAP, the mean of ``by_iou_and_meteor``.
        detection: detMAP, the mean of ``by_iou``.
        by_iou_and_meteor: average precision by thresholds of IoU and METEOR.
        by_iou: average precision by the threshold of IoU, whatever the captions are.
        detections: how many, R over all images.
        truth_count: the number of merged boxes, M over all images.
    """

    value: float
    detection: float
    by_iou_and_meteor: Mapping[tuple[float, float], float]
    by_iou: Mapping[float, float]
    detections: int
    truth_count: int


def merge_truth(boxes: npt.ArrayLike, texts: Sequence[str]) -> MergedTruth:
    """Merge annotated boxes that overlap by 0.7 or more.

    The box with the most such partners, the first of several, is averaged with them, and so on with those that remain.

    Args:
        boxes: (G, 4).
        texts: one for each box.

    Raises:
        DenseMapError: the boxes are not (G, 4), finite and with corners in order, or there are more or fewer texts.
    """
    corners = _corners(boxes, "annotated boxes")
    _check_count("texts", len(texts), len(corners), "annotated boxes")
    is_partner = _iou(corners, corners) >= _MERGE_IOU
    np.fill_diagonal(is_partner, True)  # a box without area has no overlap with itself
    partners = is_partner.sum(axis=1)
    remaining = np.ones(len(corners), bool)
    groups: list[npt.NDArray[np.intp]] = []
    while remaining.any():
        group = np.flatnonzero(is_partner[np.argmax(np.where(remaining, partners, 0))] & remaining)
        remaining[group] = False
        partners = partners - is_partner[:, group].sum(axis=1)
        groups.append(group)
    merged = np.array([corners[group].mean(axis=0) for group in groups]).reshape(-1, 4)
    return MergedTruth(merged, tuple(tuple(texts[index] for index in group) for group in groups))


def match_image(
    boxes: npt.ArrayLike,
    captions: Sequence[str],
    scores: npt.ArrayLike,
    truth: MergedTruth,
    *,
    best: Literal["highest", "lowest"] = "highest",
) -> MatchedImage:
    """Find the merged box of each of an image's detections.

    Args:
        boxes: (R, 4). Leave out regions that the model does not see.
        captions: R captions.
        scores: (R,).
        best: which scores are the best ones: "lowest" for perplexities (``score="reference"`` of ViECap and MeaCap).
            The published rows of these two rank perplexities by "highest", so the worst caption first.

    Raises:
        DenseMapError: boxes that are not (R, 4), finite and with corners in order, scores that are not finite, or
            another number of captions or scores.
    """
    corners = _corners(boxes, "boxes")
    values = np.asarray(scores, np.float64).reshape(-1)
    _check_count("captions", len(captions), len(corners), "boxes")
    _check_count("scores", len(values), len(corners), "boxes")
    if not np.isfinite(values).all():
        at = int(np.flatnonzero(~np.isfinite(values))[0])
        raise DenseMapError(
            f"scores: {at}: expected a finite number, got {values[at]}; a caption of one token has no perplexity, and "
            'score="natural" ranks every caption'
        )
    ranks = -values if best == "lowest" else values
    order = _best_first(ranks)
    ious, nearest = _nearest(corners[order], truth.boxes)
    overlaps = ious > 0
    is_first = np.zeros(len(order), bool)
    is_first[np.flatnonzero(overlaps)[np.unique(nearest[overlaps], return_index=True)[1]]] = True
    return MatchedImage(
        scores=ranks[order],
        ious=ious,
        is_first=is_first,
        captions=tuple(captions[index] for index in order),
        references=tuple(truth.texts[box] if has else () for box, has in zip(nearest, overlaps, strict=True)),
        truth_count=len(truth.boxes),
    )


def dense_map(images: Iterable[MatchedImage], similarity: Similarity) -> DenseMap:
    """Return dense captioning mAP over images.

    Equal scores stand in the order that `torch.sort` gives them, as in the published evaluation, which is not the order
    that they came in: it is the same in every run, but torch does not promise it to another version. Where many scores
    are equal, mAP depends on it in the third decimal.

    Args:
        similarity: METEOR; called once, with the captions that can be right.

    Raises:
        DenseMapError: no image has annotated boxes, or ``similarity`` gives another number of scores.
        MetricsError: METEOR fails.
    """
    held = list(images)
    truth_count = sum(image.truth_count for image in held)
    if not truth_count:
        raise DenseMapError("dense captioning mAP: expected at least one annotated box, got none")
    order = _best_first(np.concatenate([image.scores for image in held]))
    ious = np.concatenate([image.ious for image in held])
    is_candidate = np.concatenate([image.is_first for image in held]) & (ious >= IOU_THRESHOLDS[0])
    meteor = _similarities(held, is_candidate, similarity)[order]
    ious, is_candidate = ious[order], is_candidate[order]
    by_iou = {iou: average_precision(is_candidate & (ious >= iou), truth_count) for iou in IOU_THRESHOLDS}
    by_both = {
        (iou, threshold): average_precision(is_candidate & (ious >= iou) & (meteor > threshold), truth_count)
        for iou in IOU_THRESHOLDS
        for threshold in METEOR_THRESHOLDS
    }
    return DenseMap(
        value=float(np.mean(list(by_both.values()))),
        detection=float(np.mean(list(by_iou.values()))),
        by_iou_and_meteor=by_both,
        by_iou=by_iou,
        detections=len(order),
        truth_count=truth_count,
    )


def average_precision(is_right: Bools, truth_count: int) -> float:
    """Return the mean, over recalls of 0, 0.01, ..., 0.99, of the best precision at that recall or more.

    Args:
        is_right: (R,), of the detections from best to worst.
        truth_count: how many could be found; at least 1.
    """
    found = np.cumsum(is_right)
    precision = found / np.arange(1, len(found) + 1)
    best_from = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    needed = -(-np.arange(_RECALL_POINTS) * truth_count // _RECALL_POINTS)  # whole numbers: a recall is reached or not
    return float(best_from[np.searchsorted(found, needed)].mean())


def _similarities(held: Sequence[MatchedImage], is_candidate: Bools, similarity: Similarity) -> Floats:
    """Return the similarity of every detection, 0 of those that cannot be right."""
    captions = list(chain.from_iterable(image.captions for image in held))
    references = list(chain.from_iterable(image.references for image in held))
    asked = np.flatnonzero(is_candidate)
    scores = np.zeros(len(captions))
    if len(asked):
        found = similarity([captions[index] for index in asked], [references[index] for index in asked])
        _check_count("similarities", len(found), len(asked), "captions")
        scores[asked] = found
    return scores


def _nearest(boxes: Floats, merged: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Return the largest overlap (R,) of each box, and the merged box that has it, the first of several."""
    if not len(merged):
        return np.zeros(len(boxes)), np.zeros(len(boxes), np.intp)
    ious = _iou(boxes, merged)
    return ious.max(axis=1), ious.argmax(axis=1)


def _iou(boxes: Floats, others: Floats) -> Floats:
    """Return the overlaps (R, M) of boxes (R, 4) with others (M, 4); 0 where neither has an area."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    union = _areas(boxes)[:, None] + _areas(others)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _areas(boxes: Floats) -> Floats:
    sides = boxes[:, 2:] - boxes[:, :2]
    return np.asarray(sides.prod(axis=1))


def _best_first(scores: Floats) -> npt.NDArray[np.int64]:
    """Return the order from the highest score to the lowest."""
    order: npt.NDArray[np.int64] = torch.sort(torch.from_numpy(scores), descending=True).indices.numpy()
    return order


def _corners(boxes: npt.ArrayLike, name: str) -> Floats:
    try:
        corners = np.asarray(boxes, np.float64)
    except (TypeError, ValueError) as error:
        raise DenseMapError(f"{name}: expected numbers (R, 4), got {error}") from None
    corners = corners.reshape(-1, 4) if corners.size == 0 else corners
    if corners.ndim != 2 or corners.shape[1] != 4:
        raise DenseMapError(f"{name}: expected an array (R, 4) of x1, y1, x2, y2, got shape {corners.shape}")
    is_box = np.isfinite(corners).all(axis=1) & (corners[:, 2:] >= corners[:, :2]).all(axis=1)
    if not is_box.all():
        at = int(np.flatnonzero(~is_box)[0])
        raise DenseMapError(f"{name}: {at}: expected finite x1 <= x2 and y1 <= y2, got {corners[at].tolist()}")
    return corners


def _check_count(name: str, got: int, expected: int, of: str) -> None:
    if got != expected:
        raise DenseMapError(f"{name}: expected as many as {of}, {expected}, got {got}")
