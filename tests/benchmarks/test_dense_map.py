"""Dense captioning mAP: worked examples, the rules written out plainly, the recorded case, and what is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import parity
from benchmarks.densecap_recording import compare_dense_evaluation, f1_scores, is_dense_evaluation
from benchmarks.reference_recording import RECORDINGS
from benchmarks.scoring.dense_map import (
    IOU_THRESHOLDS,
    METEOR_THRESHOLDS,
    DenseMapError,
    MatchedImage,
    MergedTruth,
    average_precision,
    dense_map,
    match_image,
    merge_truth,
)

RECORDED = json.loads((RECORDINGS / "densecap_eval_main.json").read_text())
LEFT, RIGHT = (0, 0, 10, 10), (20, 0, 30, 10)
Box = tuple[float, float, float, float]


def exact(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Stands in for METEOR: 1 for a caption that is one of its references, else 0."""
    return [float(caption in own) for caption, own in zip(captions, references, strict=True)]


def test_the_recorded_case_is_reproduced(capsys: pytest.CaptureFixture[str]) -> None:
    assert parity.main([str(RECORDINGS / "densecap_eval_main.json")]) == 0
    assert "137 / 137" in capsys.readouterr().out
    assert is_dense_evaluation(RECORDED)
    found = list(compare_dense_evaluation(RECORDED))
    assert [fault for one in found for fault in one.faults] == []
    assert all(one.scores is None or one.scores < 1e-7 for one in found)


@pytest.mark.parametrize(
    ("change", "task"),
    [
        (lambda it: it["ap_breakdown"].update({"iou_0.5_meteor_0.1": 0.3}), "mAP"),
        (lambda it: it.update(map=it["map"] + 2e-6), "mAP"),
        (lambda it: it.update(detmap=it["detmap"] - 2e-6), "detmAP"),
        (lambda it: it.update(npos=106), "merged boxes"),
        (lambda it: it["records"][9].update(ok=0), "detections"),
        (lambda it: it["records"][9].update(iou=0.5), "detections"),
        (lambda it: it["records"][9]["references"].reverse(), "detections"),
        (lambda it: it["records"].pop(), "detections"),
    ],
)
def test_any_other_case_is_a_fault(change: Any, task: str) -> None:
    contents = copy.deepcopy(RECORDED)
    change(contents)
    faults = [fault for one in compare_dense_evaluation(contents) for fault in one.faults]
    assert [fault.split(": ")[1] for fault in faults] == [task]


def test_boxes_of_one_thing_are_merged_around_the_one_with_most_partners() -> None:
    # Of these rows the second overlaps both of its neighbours by 9/11, which overlap each other by 8/12 only.
    boxes = [(0, 0, 10, 1), (1, 0, 11, 1), (2, 0, 12, 1), (50, 0, 60, 1), (0, 50, 10, 51)]
    merged = merge_truth(boxes, ["a", "b", "c", "d", "e"])
    assert merged.boxes.tolist() == [[1, 0, 11, 1], [50, 0, 60, 1], [0, 50, 10, 51]]
    assert merged.texts == (("a", "b", "c"), ("d",), ("e",))
    # Without the second there are no partners; an overlap of exactly 0.7 is one.
    assert merge_truth(boxes[::2], ["a", "c", "e"]).texts == (("a",), ("c",), ("e",))
    assert merge_truth([(0, 0, 10, 1), (0, 0, 7, 1)], ["a", "b"]).boxes.tolist() == [[0, 0, 8.5, 1]]
    assert merge_truth([], []).boxes.shape == (0, 4)


def test_a_box_without_area_stays_by_itself() -> None:
    merged = merge_truth([(5, 5, 5, 9), LEFT, (5, 5, 5, 9)], ["a", "b", "c"])
    assert merged.texts == (("a",), ("b",), ("c",))
    image = match_image([(5, 5, 5, 9)], ["a"], [1], merged)
    assert (image.ious.tolist(), image.references) == ([0], ((),))


def test_the_best_detection_takes_the_box_and_the_next_is_late() -> None:
    truth = merge_truth([LEFT, RIGHT], ["a cat", "a dog"])
    boxes = [(0, 0, 10, 5), LEFT, RIGHT, (100, 100, 110, 110)]
    image = match_image(boxes, ["half", "whole", "dog", "nothing"], [0.9, 0.8, 0.7, 0.99], truth)
    assert image.captions == ("nothing", "half", "whole", "dog")
    assert image.is_first.tolist() == [False, True, False, True]
    assert image.ious.tolist() == [0, 0.5, 1, 1]
    assert image.references == ((), ("a cat",), ("a cat",), ("a dog",))
    assert image.truth_count == 2


def test_perplexities_rank_from_the_lowest() -> None:
    truth = merge_truth([LEFT], ["a cat"])
    for best, order in (("lowest", ("likely", "odd")), ("highest", ("odd", "likely"))):
        image = match_image([LEFT, LEFT], ["odd", "likely"], [300.5, 12.25], truth, best=best)  # type: ignore[arg-type]
        assert image.captions == order
        assert image.is_first.tolist() == [True, False]


def test_average_precision_is_that_of_a_worked_example() -> None:
    # Right, wrong, right of 4: recalls 0.25, 0.25, 0.5 at precisions 1, 1/2, 2/3. The best at recalls up to 0.25 is 1,
    # of which there are 26 in hundredths, up to 0.5 it is 2/3 (25 more), and no more are found.
    assert average_precision(np.array([True, False, True]), 4) == pytest.approx((26 + 25 * 2 / 3) / 100)
    assert average_precision(np.array([True, True, True, True]), 4) == 1
    assert average_precision(np.array([False, False]), 4) == 0
    assert average_precision(np.zeros(0, bool), 4) == 0


@pytest.mark.parametrize("count", [1, 7, 20, 50, 100, 300])
def test_a_recall_of_whole_hundredths_is_reached_whatever_its_rounding(count: int) -> None:
    for found in range(1, count + 1):
        is_right = np.arange(count) < found
        assert average_precision(is_right, count) == pytest.approx(min(100, found * 100 // count + 1) / 100), found


def test_map_needs_the_place_and_the_caption() -> None:
    truth = merge_truth([LEFT, RIGHT], ["a cat", "a dog"])
    perfect = match_image([LEFT, RIGHT], ["a cat", "a dog"], [1, 1], truth)
    assert (dense_map([perfect], exact).value, dense_map([perfect], exact).detection) == (1, 1)
    mute = dense_map([match_image([LEFT, RIGHT], ["a dog", ""], [1, 1], truth)], exact)
    assert (mute.value, mute.detection) == (0, 1)
    near = dense_map([match_image([(0, 0, 10, 5.5), RIGHT], ["a cat", "a dog"], [0.5, 1], truth)], exact)
    assert near.by_iou == pytest.approx({0.3: 1, 0.4: 1, 0.5: 1, 0.6: 0.51, 0.7: 0.51})
    assert near.by_iou_and_meteor[0.6, 0.25] == pytest.approx(0.51)


def test_meteor_has_to_exceed_its_threshold_and_overlap_to_reach_its_own() -> None:
    image = match_image([(0, 0, 10, 3)], ["a"], [1], merge_truth([LEFT], ["a"]))
    found = dense_map([image], lambda *_: [0.05])
    right = {pair for pair, value in found.by_iou_and_meteor.items() if value}
    assert right == {(0.3, 0.0)}
    assert found.by_iou == {0.3: 1, 0.4: 0, 0.5: 0, 0.6: 0, 0.7: 0}


def test_images_without_annotations_or_without_detections_count() -> None:
    truth, none = merge_truth([LEFT], ["a cat"]), merge_truth([], [])
    seen = match_image([LEFT], ["a cat"], [0.5], truth)
    assert dense_map([seen, match_image([], [], [], truth)], exact).value == pytest.approx(0.51)
    assert dense_map([seen, match_image([LEFT], ["a cat"], [0.9], none)], exact).value == pytest.approx(0.5)
    assert dense_map([match_image([], [], [], truth)], exact).value == 0


def test_meteor_is_asked_once_and_only_where_it_can_count() -> None:
    asked: list[tuple[list[str], list[Sequence[str]]]] = []

    def similarity(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
        asked.append((list(captions), list(references)))
        return [1.0] * len(captions)

    truth = merge_truth([LEFT, RIGHT], ["a cat", "a dog"])
    boxes = [LEFT, (0, 0, 10, 9), (20, 0, 30, 2), (50, 50, 60, 60)]
    images = [match_image(boxes, ["right", "late", "far", "nowhere"], [4, 3, 2, 1], truth) for _ in range(2)]
    dense_map(images, similarity)
    assert asked == [(["right", "right"], [("a cat",), ("a cat",)])]


boxes_of_image = st.lists(
    st.tuples(*(st.integers(0, 12) for _ in range(2)), *(st.integers(1, 12) for _ in range(2))).map(
        lambda it: (it[0], it[1], it[0] + it[2], it[1] + it[3])
    ),
    max_size=7,
)
image_sets = st.lists(st.tuples(boxes_of_image, boxes_of_image), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=60, deadline=None, derandomize=True)
@given(image_sets, st.randoms(use_true_random=False))
def test_it_is_the_evaluation_written_plainly(boxes: list[tuple[list[Box], list[Box]]], random: Any) -> None:
    words = ["cat", "dog", "a", "red"]
    ranks = iter(random.sample(range(1000), 1000))
    cases = [
        (
            own,
            [random.choice(words) for _ in own],
            [next(ranks) for _ in own],
            truth,
            [random.choice(words) for _ in truth],
        )
        for own, truth in boxes
    ]
    if not any(truth for _, truth in boxes):
        cases.append(([], [], [], [LEFT], ["a"]))
    matched = [match_image(own, said, scores, merge_truth(truth, texts)) for own, said, scores, truth, texts in cases]
    found = dense_map(matched, f1_scores)
    wanted = plain_average_precisions(cases)
    assert {**found.by_iou_and_meteor, **{(iou, -1.0): value for iou, value in found.by_iou.items()}} == pytest.approx(
        wanted
    )
    assert found.value == pytest.approx(np.mean([value for (_, meteor), value in wanted.items() if meteor >= 0]))
    assert dense_map(matched[::-1], f1_scores) == found


def plain_average_precisions(cases: list[tuple[list[Box], list[str], list[int], list[Box], list[str]]]) -> Any:
    """The published rules, one detection at a time."""
    records, positives = [], 0
    for boxes, captions, scores, truth, texts in cases:
        remaining, merged = list(range(len(truth))), []
        while remaining:
            groups = [[j for j in remaining if plain_iou(truth[i], truth[j]) >= 0.7] for i in remaining]
            group = max(groups, key=len)
            merged.append((np.mean([truth[j] for j in group], axis=0), [texts[j] for j in group]))
            remaining = [j for j in remaining if j not in group]
        positives += len(merged)
        used = set()
        for score, box, caption in sorted(zip(scores, boxes, captions, strict=True), reverse=True):
            overlaps = [plain_iou(box, one) for one, _ in merged] or [0.0]
            best = overlaps.index(max(overlaps))
            is_first = overlaps[best] > 0 and best not in used
            if overlaps[best] > 0:
                used.add(best)
            meteor = f1_scores([caption], [merged[best][1] if overlaps[best] > 0 else []])[0]
            records.append((score, is_first, overlaps[best], meteor))
    records.sort(reverse=True)
    return {
        (iou, meteor): plain_average_precision(
            [is_first and own >= iou and f1 > meteor for _, is_first, own, f1 in records], positives
        )
        for iou in IOU_THRESHOLDS
        for meteor in (-1.0, *METEOR_THRESHOLDS)
    }


def plain_average_precision(is_right: list[bool], positives: int) -> float:
    points = [(sum(is_right[:end]), end) for end in range(1, len(is_right) + 1)]
    return (
        sum(
            max((found / end for found, end in points if found * 100 >= t * positives), default=0.0) for t in range(100)
        )
        / 100
    )


def plain_iou(one: Any, other: Any) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return float(shared / (sum(areas) - shared))


TRUTH = merge_truth([LEFT], ["a cat"])


@pytest.mark.parametrize(
    ("boxes", "captions", "scores", "reason"),
    [
        ([LEFT], ["a"], [float("nan")], "scores: 0: expected a finite number, got nan; a caption of one token"),
        ([LEFT, LEFT], ["a", "b"], [1, float("-inf")], "scores: 1: expected a finite number, got -inf"),
        ([LEFT], ["a"], [1, 2], "scores: expected as many as boxes, 1, got 2"),
        ([LEFT], [], [1], "captions: expected as many as boxes, 1, got 0"),
        ([(0, 0, 10)], ["a"], [1], r"boxes: expected an array \(R, 4\) of x1, y1, x2, y2, got shape \(1, 3\)"),
        (LEFT, ["a"], [1], r"got shape \(4,\)"),
        ([(0, 0, 10, "wide")], ["a"], [1], "boxes: expected numbers"),
        ([LEFT, (9, 0, 1, 4)], ["a", "b"], [1, 1], r"boxes: 1: expected finite x1 <= x2 and y1 <= y2, got \[9.0, 0.0"),
        ([(0, 0, float("nan"), 4)], ["a"], [1], "boxes: 0: expected finite"),
    ],
)
def test_detections_that_cannot_be_ranked_are_refused(boxes: Any, captions: Any, scores: Any, reason: str) -> None:
    with pytest.raises(DenseMapError, match=reason):
        match_image(boxes, captions, scores, TRUTH)


def test_annotations_that_are_none_are_refused() -> None:
    with pytest.raises(DenseMapError, match="annotated boxes: 0: expected finite x1 <= x2"):
        merge_truth([(9, 0, 1, 4)], ["a"])
    with pytest.raises(DenseMapError, match="texts: expected as many as annotated boxes, 1, got 2"):
        merge_truth([LEFT], ["a", "b"])
    nothing: list[MatchedImage] = []
    for images in (nothing, [match_image([LEFT], ["a"], [1], MergedTruth(np.zeros((0, 4)), ()))]):
        with pytest.raises(DenseMapError, match="expected at least one annotated box, got none"):
            dense_map(images, exact)
    with pytest.raises(DenseMapError, match="similarities: expected as many as captions, 1, got 0"):
        dense_map([match_image([LEFT], ["a"], [1], TRUTH)], lambda *_: [])
