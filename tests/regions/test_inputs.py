"""Regions as people have them: arrays, detectors' results, data sets."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from runtime import Box, Captioner, ImageError, Mask, Point, Polygon, Region, RegionError, WholeImage
from runtime.cli.main import main
from runtime.regions import Canvas, Detection, PolygonSet, run_lengths
from runtime.regions.detections import as_rows
from tests.conftest import SAMPLE

WH = (64, 48)
CORNERS = [8, 4, 40, 30]
BOX = Box(8, 4, 40, 30)
TRIANGLE = [8, 4, 40, 4, 8, 30]
POLYGON = Polygon([(8, 4), (40, 4), (8, 30)])
INSIDE = np.zeros((48, 64), bool)
INSIDE[4:30, 8:40] = True
RUNS = run_lengths.encode(INSIDE)
IDS = np.full((48, 64), -1)
IDS[4:30, 8:40], IDS[31:40, 8:40] = 3, 7


def compressed(runs: list[int]) -> str:
    """Return runs as COCO's compressed string, by its rule."""
    text = ""
    for index, run in enumerate(runs):
        value, more = run - (runs[index - 2] if index > 2 else 0), True
        while more:
            bits, value = value & 0x1F, value >> 5
            more = value != (-1 if bits & 0x10 else 0)
            text += chr((bits | (0x20 if more else 0)) + 48)
    return text


def results(**parts: Any) -> SimpleNamespace:
    """Return results with the attributes of ultralytics' `Results`."""
    return SimpleNamespace(
        **{"boxes": None, "masks": None, "obb": None, "orig_shape": (48, 64), "names": {0: "cat", 2: "dog"}} | parts
    )


def boxes_of_results(**parts: Any) -> SimpleNamespace:
    xyxy = torch.tensor([CORNERS], dtype=torch.float32)
    return SimpleNamespace(
        **{"xyxy": xyxy, "conf": torch.tensor([0.5]), "cls": torch.tensor([2.0]), "id": None, "orig_shape": (48, 64)}
        | parts
    )


def padded(inside: np.ndarray[Any, Any], size: int) -> np.ndarray[Any, Any]:
    """Return a mask in the middle of a square of a model's size, as it comes from there."""
    left, top = (size - inside.shape[1]) // 2, (size - inside.shape[0]) // 2
    square = np.zeros((1, size, size), np.float32)
    square[0, top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    return square


LINES: list[tuple[str, Any, Any]] = [
    ("a list of corners", [CORNERS], [BOX]),
    ("corners alone", CORNERS, [BOX]),
    ("a tuple of corners", [tuple(CORNERS)], [BOX]),
    ("corners as decimals", [[Decimal(number) for number in CORNERS]], [BOX]),
    ("corners as numpy's numbers", [list(np.array(CORNERS, np.float32))], [BOX]),
    ("an array (n, 4)", np.array([CORNERS, CORNERS]), [BOX, BOX]),
    ("an array (4,)", np.array(CORNERS, np.uint16), [BOX]),
    ("an array without rows", np.empty((0, 4)), []),
    ("an array without anything", np.empty(0), []),
    ("no regions", [], []),
    ("arrays in a list", [np.array(CORNERS), torch.tensor(CORNERS)], [BOX, BOX]),
    *[
        (f"a tensor of {dtype}", torch.tensor([CORNERS]).to(dtype), [BOX])
        for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.uint8, torch.int64)
    ],
    ("a tensor with a gradient", torch.tensor([CORNERS], dtype=torch.float32, requires_grad=True), [BOX]),
    ("a flat polygon", [TRIANGLE], [POLYGON]),
    ("a flat polygon alone", TRIANGLE, [POLYGON]),
    ("points", [[(8, 4), (40, 4), (8, 30)]], [POLYGON]),
    ("an array of points", [np.array(TRIANGLE).reshape(3, 2)], [POLYGON]),
    ("OpenCV's contours", [np.array(TRIANGLE, np.int32).reshape(3, 1, 2)] * 2, [POLYGON] * 2),
    ("OpenCV's contour in a list", [np.array(TRIANGLE, np.int32).reshape(3, 1, 2)], [POLYGON]),
    ("OpenCV's contour alone", np.array(TRIANGLE, np.int32).reshape(3, 1, 2), [POLYGON]),
    ("an array (n, P, 2)", np.array(TRIANGLE).reshape(1, 3, 2), [POLYGON]),
    ("a mask", INSIDE, [Mask(INSIDE)]),
    ("masks", np.stack([INSIDE, ~INSIDE]), [Mask(INSIDE), Mask(~INSIDE)]),
    ("masks (n, 1, H, W)", torch.from_numpy(np.stack([INSIDE, ~INSIDE]))[:, None], [Mask(INSIDE), Mask(~INSIDE)]),
    ("a mask (1, H, W)", [INSIDE[None]], [Mask(INSIDE)]),
    ("masks in a list", [INSIDE, INSIDE.astype(np.uint8) * 255], [Mask(INSIDE)] * 2),
    ("probabilities", [np.where(INSIDE, 0.5, 0.49)], [Mask(INSIDE)]),
    ("floats of 255", [INSIDE * 255.0], [Mask(INSIDE)]),
    ("a picture", Image.fromarray(INSIDE.astype(np.uint8) * 7), [Mask(INSIDE)]),
    ("a picture of bits", [Image.fromarray(INSIDE)], [Mask(INSIDE)]),
    ("a picture with alpha", [Image.fromarray(np.dstack([INSIDE * np.uint8(9)] * 4))], [Mask(INSIDE)]),
    ("our JSON", [{"kind": "box", "xyxy": CORNERS}, {"kind": "point", "x": 5, "y": 6}], [BOX, Point(5, 6)]),
    ("our JSON alone", {"kind": "box_set", "boxes": [{"kind": "box", "xyxy": CORNERS}]}, []),
    ("a region alone", BOX, [BOX]),
    ("kinds together", [BOX, CORNERS, TRIANGLE, INSIDE, WholeImage()], [BOX, BOX, POLYGON, Mask(INSIDE), WholeImage()]),
    ("run lengths", {"size": [48, 64], "counts": RUNS}, [Mask(INSIDE)]),
    ("compressed run lengths", [{"size": [48, 64], "counts": compressed(RUNS)}], [Mask(INSIDE)]),
    ("run lengths as bytes", [{"size": (48, 64), "counts": compressed(RUNS).encode()}], [Mask(INSIDE)]),
    ("COCO's box", [{"bbox": [8, 4, 32, 26], "segmentation": []}], [BOX]),
    ("COCO's polygon", [{"bbox": [8, 4, 32, 26], "segmentation": [TRIANGLE]}], [POLYGON]),
    ("COCO's polygons", [{"segmentation": [TRIANGLE, TRIANGLE]}], [PolygonSet([POLYGON, POLYGON])]),
    ("COCO's crowd", [{"segmentation": {"size": [48, 64], "counts": RUNS}, "iscrowd": 1}], [Mask(INSIDE)]),
    ("SAM's masks", [{"segmentation": INSIDE, "bbox": [1, 2, 3, 4], "crop_box": [0, 0, 64, 48]}], [Mask(INSIDE)]),
    ("supervision's boxes", SimpleNamespace(xyxy=np.array([CORNERS]), mask=None), [BOX]),
    ("supervision's masks", SimpleNamespace(xyxy=np.array([CORNERS]), mask=INSIDE[None]), [Mask(INSIDE)]),
    ("boxes in 0..1", SimpleNamespace(xyxyn=np.array([[0.125, 0.25, 0.5, 0.75]])), [Box(8, 12, 32, 36)]),
    ("ultralytics' boxes", boxes_of_results(), [BOX]),
    ("ultralytics' results", results(boxes=boxes_of_results()), [BOX]),
    ("ultralytics' results in their list", [results(boxes=boxes_of_results())], [BOX]),
    ("ultralytics' outlines", results(masks=SimpleNamespace(xy=[np.array(TRIANGLE).reshape(3, 2)])), [POLYGON]),
    (
        "ultralytics' masks",
        results(boxes=boxes_of_results(), masks=SimpleNamespace(data=torch.from_numpy(padded(INSIDE, 64)))),
        [Mask(INSIDE)],
    ),
    (
        "ultralytics' rotated boxes",
        results(obb=SimpleNamespace(xyxyxyxy=torch.tensor(TRIANGLE).reshape(1, 3, 2), xyxy=np.array([CORNERS]))),
        [POLYGON],
    ),
    ("Hugging Face's boxes", {"scores": torch.ones(1), "boxes": torch.tensor([CORNERS])}, [BOX]),
    ("Hugging Face's boxes of one image", [{"boxes": torch.tensor([CORNERS])}], [BOX]),
    ("no boxes of Hugging Face", {"scores": torch.ones(0), "labels": torch.ones(0), "boxes": torch.empty(0, 4)}, []),
    ("its pipeline's boxes", [{"box": {"xmin": 8, "ymin": 4, "xmax": 40, "ymax": 30}, "label": "a"}], [BOX]),
    ("its pipeline's masks", [{"mask": Image.fromarray(INSIDE), "label": "a", "score": None}], [Mask(INSIDE)]),
    ("its map of ids", {"segmentation": torch.from_numpy(IDS), "segments_info": [{"id": 3}]}, [Mask(INSIDE)]),
    ("a map without segments", {"segmentation": torch.from_numpy(IDS), "segments_info": []}, []),
    ("its maps of bits", {"segmentation": INSIDE[None], "segments_info": [{"id": 0}]}, [Mask(INSIDE)]),
    ("torchvision's masks", {"masks": torch.from_numpy(INSIDE)[None, None] * 0.9}, [Mask(INSIDE)]),
    ("masks and scores", {"masks": [INSIDE], "scores": torch.ones(1)}, [Mask(INSIDE)]),
    ("a data set", {"annotations": [{"bbox": [8, 4, 32, 26], "image_id": 5}], "images": [{"id": 5}]}, [BOX]),
]  # fmt: skip


@pytest.mark.parametrize(("given", "regions"), [line[1:] for line in LINES], ids=[line[0] for line in LINES])
def test_every_form_gives_its_regions(given: Any, regions: list[Region]) -> None:
    found = [row.region for row in as_rows(given, WH)]
    if isinstance(given, dict) and given.get("kind") == "box_set":
        assert [type(one).__name__ for one in found] == ["BoxSet"]
        return
    assert [type(one) for one in found] == [type(one) for one in regions]
    for one, expected in zip(found, regions, strict=True):
        if isinstance(expected, Mask):
            np.testing.assert_array_equal(one.array, expected.array)  # type: ignore[union-attr]
        else:
            assert one == expected


@pytest.mark.parametrize(
    ("given", "detections"),
    [
        (
            SimpleNamespace(
                xyxy=np.array([CORNERS] * 2),
                mask=None,
                confidence=np.array([0.5, 0.25], np.float32),
                class_id=np.array([1, 0]),
                tracker_id=np.array([7, -1]),
                data={"class_name": np.array(["dog", "cat"])},
            ),
            [Detection(7, 1, "dog", 0.5), Detection(-1, 0, "cat", 0.25)],
        ),
        (results(boxes=boxes_of_results(id=torch.tensor([9.0]))), [Detection(9, 2, "dog", 0.5)]),
        (results(boxes=boxes_of_results(cls=torch.tensor([5.0]))), [Detection(None, 5, None, 0.5)]),
        (boxes_of_results(), [Detection(None, 2, None, 0.5)]),
        (results(boxes=boxes_of_results(), names=["cat", "bird", "dog"]), [Detection(None, 2, "dog", 0.5)]),
        (
            {"scores": torch.tensor([0.5]), "labels": torch.tensor([17]), "boxes": torch.tensor([CORNERS])},
            [Detection(None, 17, None, 0.5)],
        ),
        (
            {"scores": [0.5], "labels": ["a cat"], "boxes": torch.tensor([CORNERS])},
            [Detection(None, None, "a cat", 0.5)],
        ),
        (
            [{"score": 0.5, "label": "cat", "box": {"xmin": 8, "ymin": 4, "xmax": 40, "ymax": 30}}],
            [Detection(None, None, "cat", 0.5)],
        ),
        (
            {"segmentation": IDS, "segments_info": [{"id": 3, "label_id": 17, "was_fused": False, "score": 0.5}]},
            [Detection(3, 17, None, 0.5)],
        ),
        (
            [{"bbox": [8, 4, 32, 26], "category_id": 17, "id": 4, "score": 0.5}],
            [Detection(4, 17, None, 0.5)],
        ),
        (
            {
                "images": [{"id": 5, "file_name": "a.jpg"}],
                "categories": [{"id": 17, "name": "cat"}],
                "annotations": [{"bbox": [8, 4, 32, 26], "category_id": 17, "id": 4, "image_id": 5}],
            },
            [Detection(4, 17, "cat", None)],
        ),
        (
            [{"segmentation": INSIDE, "predicted_iou": 0.75, "stability_score": 0.9}],
            [Detection(None, None, None, 0.75)],
        ),
        ([{"kind": "box", "xyxy": CORNERS, "id": "a7", "class_id": 3, "confidence": 1}], [Detection("a7", 3, None, 1)]),
        (
            [{"name": "cat", "class": 0, "box": {"x1": 8, "y1": 4, "x2": 9, "y2": 5}, "track_id": 3}],
            [Detection(3, 0, "cat", None)],
        ),
        ([{"x_min": 8, "y_min": 4, "x_max": 40, "y_max": 30, "tracker_id": 3}], [Detection(3, None, None, None)]),
        ({"xyxy": [CORNERS], "confidence": [0.5], "tracker_id": [3]}, [Detection(3, None, None, 0.5)]),
        (results(boxes=boxes_of_results(), names={"2": "dog"}), [Detection(None, 2, "dog", 0.5)]),
        ([CORNERS, BOX], [None, None]),
    ],
)  # fmt: skip
def test_ids_classes_and_confidences_are_kept(given: Any, detections: list[Detection | None]) -> None:
    assert [row.detection for row in as_rows(given, WH)] == detections


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("boxes", "expected a list of regions, got str; boxes .*"),
        (5, "expected a list of regions, got int; boxes .*"),
        ({BOX}, "got set"),
        ((one for one in [BOX]), "got generator"),
        ([1, 2, 3], "expected a box as x1, y1, x2, y2 or a polygon as x, y, x, y, x, y, ..., got 3 numbers"),
        ([(1, 2), (3, 4), (5, 6)], "got a list of points .x, y.: give Polygon"),
        (np.ones((5, 2)), r"got shape \(5, 2\), of points: give Polygon"),
        (np.ones((1, 5, 4)), r"expected boxes \(n, 4\), got shape \(1, 5, 4\): give those of one image"),
        (np.ones((5, 6)), r"expected boxes \(n, 4\), got shape \(5, 6\): give the first four columns"),
        (np.ones((2, 3, 48, 64)), r"expected mask of shape \(n, H, W\), got \(2, 3, 48, 64\); take one mask of each"),
        (np.array(["a"] * 4), r"expected numbers as numbers of shape \(n,\), got <U1"),
        (IDS, "expected 0 outside and one other number inside, got 3 numbers; of a map of labels, give"),
        (np.where(INSIDE, 5.0, -5.0), "expected floats in 0..1, got -5 to 5; of logits, give logits > 0"),
        ({}, "got none"),
        ({"rectangle": CORNERS}, "expected a region with one of the keys kind, .*, got rectangle"),
        ({"bbox": [1, 2, 3]}, "bbox: expected the 4 numbers x, y, width, height"),
        ({"box": CORNERS}, "box: expected a dictionary of xmin, ymin, xmax and ymax, got list"),
        ({"counts": RUNS}, "mask: expected size and counts, got no size"),
        ({"size": [48, 64], "counts": [5]}, "mask counts: expected runs that sum to 3072"),
        ({"segmentation": [[1, 2, 3, 4]]}, "Polygon: expected at least three points, got 2"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6, 7]]}, "expected x and y of each point in turn, got 7 numbers"),
        ({"segmentation": [RUNS], "segments_info": [{"id": 1}]}, "leave out return_coco_annotation"),
        ({"boxes": [CORNERS], "scores": [1, 2]}, "expected 1 of confidence, one for each region, got 2"),
        ({"boxes": [CORNERS[:3]]}, r"expected boxes of shape \(n, 4\), got \(1, 3\)"),
        ({"boxes": [CORNERS], "masks": [INSIDE, INSIDE]}, "expected as many masks as boxes, got 2 and 1"),
        (results(), "expected boxes or masks, got neither"),
        (results(boxes=boxes_of_results(), orig_shape=(96, 128)), "of an image of 128 x 96 pixels, and this one has"),
        (SimpleNamespace(xyxy=None), "expected xyxy or mask, got SimpleNamespace with neither"),
        (
            {"annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4]}, {"image_id": 2, "bbox": [1, 2, 3, 4]}]},
            "expected those of one image, got those of 2",
        ),
        ({"annotations": 5}, "annotations: expected a list of dictionaries"),
        ([[BOX], [BOX]], "expected those of one image, got a list of 2 for an image each"),
        (SimpleNamespace(xyxy=[[10**400, 2, 3, 4]]), r"expected xyxy as numbers of shape \(n, 4\): int too large"),
        (np.array([[10**400, 2, 3, 4]], object), r"expected boxes as numbers of shape \(n, 4\): int too large"),
        (np.array([[1j, 2, 3, 4]]), r"expected boxes as numbers of shape \(n, 4\), got complex128"),
    ],
)  # fmt: skip
def test_what_is_in_no_form_is_refused_with_words(given: Any, message: str) -> None:
    with pytest.raises(RegionError, match=message) as raised_error:
        as_rows(given, WH)
    assert "\n" not in str(raised_error.value)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ([8, 4, 40, 30, 0.9, 2], "6 numbers, which may be a triangle, or a box with its confidence and class"),
        ([np.nan, 4, 40, 30], "Box x1: expected a finite number, got nan"),
        ([40, 4, 8, 30], "expected x1 < x2"),
        ([100, 4, 120, 30], "lies outside the image of 64 x 48 pixels"),
        (np.zeros((48, 64)), "Mask: it is empty"),
        ([1, True, 3, 4], "expected a Box"),
        (
            {"bbox": [30, 20, 60, 44]},
            "outside the image of 64 x 48 pixels as x, y, width and height; give corners as xyxy",
        ),
        ({"x_min": 8, "y_min": 4, "x_max": 40}, "expected x_min, y_min, x_max, y_max, got no y_max"),
        (None, "expected a Box, Mask, Trace or another region kind, or a box of 4 numbers, got NoneType"),
        (WholeImage, "or a box of 4 numbers, got the class WholeImage itself"),
        (np.broadcast_to(True, (2**20, 2**20)), "Mask: expected at most 268435456 pixels, got 1048576 x 1048576"),
        (torch.ones(1, 1).expand(2**20, 2**20), "Mask: expected at most 268435456 pixels, got 1048576 x 1048576"),
        ("box", "got str"),
        ({"kind": "box", "xyxy": CORNERS, "colour": "red"}, "box: expected xyxy, pool and variance, got 'colour'"),
        ({"bbox": [8, 4, 32, 26], "score": float("nan")}, "confidence: expected a finite number, got nan"),
        ({"bbox": [8, 4, 32, 26], "id": 0.5}, "id: expected a whole number, got 0.5"),
        ({"segmentation": INSIDE[None, None]}, r"mask: expected an array \(H, W\)"),
    ],
)
def test_one_bad_region_is_no_matter_of_the_others(entry: Any, message: str) -> None:
    rows = as_rows([BOX, entry, BOX], WH)
    assert [rows[0].region, rows[2].region] == [BOX, BOX]
    with pytest.raises(RegionError, match=message):
        raise rows[1].region if isinstance(rows[1].region, RegionError) else AssertionError(rows[1])


@pytest.mark.parametrize("entry", [[None, 4, 40, 30], [True, 4, 40, 30], ["8", 4, 40, 30], [True] * 4])
def test_one_bad_row_of_numbers_is_one_bad_region(demo: Captioner, entry: list[Any]) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    (caption,) = demo.caption(image, [entry], on_bad="skip")
    assert "expected a Box, Mask, Trace or another region kind, or a box of 4 numbers, got list of 4" in str(
        caption.error
    )
    assert [one.error is None for one in demo.caption(image, [CORNERS, entry], on_bad="skip")] == [True, False]


def nested(depth: int) -> list[Any]:
    inner: list[Any] = []
    for _ in range(depth):
        inner = [inner]
    return inner


def in_itself() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


@pytest.mark.parametrize("given", [nested(100_000), in_itself(), [[in_itself()]]], ids=["deep", "endless", "in two"])
def test_lists_of_any_depth_are_refused(given: Any) -> None:
    with pytest.raises(RegionError, match="expected a list of regions, got lists of lists of lists"):
        as_rows(given, WH)
    with pytest.raises(RegionError, match="Box x1: expected a number"):
        Box(given, 0, 1, 1)


class Weighted:
    """A region of a user's own class."""

    def __init__(self, weights: Any) -> None:
        self.row = weights

    def weights(self, _: Canvas) -> Any:
        return self.row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (np.zeros(3), r"Weighted.weights: expected numbers of shape \(261,\), got float64 of shape \(3,\)"),
        (None, r"Weighted.weights: expected numbers of shape \(261,\), got object of shape \(\)"),
        (np.array(["a"] * 261), "Weighted.weights: expected numbers of shape"),
        (np.full(261, np.nan), "Weighted.weights: expected finite numbers"),
        (np.full(261, 1e300), "Weighted.weights: expected finite numbers"),
    ],
)
def test_weights_of_a_users_class_that_are_none_are_no_matter_of_the_others(
    demo: Captioner, row: Any, message: str
) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    given: list[Any] = [BOX, Weighted(row), Weighted(torch.ones(261, requires_grad=True))]
    good, bad, own = demo.caption(image, given, on_bad="skip")
    assert good.error is own.error is None
    assert re.search(message, str(bad.error))
    with pytest.raises(RegionError, match=f"region 1: {message}"):
        demo.caption(image, given)


def test_masks_of_another_size_are_laid_over_the_image(demo: Captioner) -> None:
    image = np.zeros((240, 320, 3), np.uint8)
    features = demo.encode(image)
    small = np.zeros((60, 80), bool)
    small[10:40, 20:60] = True
    large = np.kron(small, np.ones((4, 4), bool))
    given: list[Any] = [small, large, Box(80, 40, 240, 160)]
    vectors = demo.vectors(features, given)
    torch.testing.assert_close(vectors[0], vectors[1])
    torch.testing.assert_close(vectors[0], vectors[2])
    np.testing.assert_array_equal(Mask(small).outline((320, 240)).array, large)
    for rounded in ((59, 79), (61, 81), (107, 142)):  # (142.67, 107)
        demo.vectors(features, [np.ones(rounded)])
    for other in ((80, 60), (60, 60), (240, 322), (640, 640)):
        with pytest.raises(RegionError, match="expected the image's size, 320 x 240 pixels, or its aspect ratio"):
            demo.vectors(features, [np.ones(other)])


@pytest.mark.parametrize("image_wh", [(1280, 720), (720, 1280), (1000, 667), (641, 479), (300, 100), (64, 64)])
@pytest.mark.parametrize("model_wh", [(640, 640), (640, 384), (416, 640)])
def test_what_a_model_pads_is_cut_off(image_wh: tuple[int, int], model_wh: tuple[int, int]) -> None:
    """By ultralytics' own steps: the image is resized by one factor, and the rest is divided between both sides."""
    (width, height), (model_width, model_height) = image_wh, model_wh
    gain = min(model_width / width, model_height / height)
    resized = round(width * gain), round(height * gain)
    down, right = (model_height - resized[1]) / 2, (model_width - resized[0]) / 2
    data = np.zeros((1, model_height, model_width), np.float32)
    data[0, round(down - 0.1) : model_height - round(down + 0.1), round(right - 0.1) :][:, : resized[0]] = 1
    found = results(orig_shape=(height, width), masks=SimpleNamespace(data=data))
    (row,) = as_rows(found, image_wh)
    assert isinstance(row.region, Mask)
    assert row.region.array.mean() > 0.99
    assert row.region.outline(image_wh).array.shape == (height, width)


def test_several_polygons_are_one_region(demo: Captioner) -> None:
    features = demo.encode(np.zeros((240, 320, 3), np.uint8))
    left, right = [20, 20, 100, 20, 100, 100, 20, 100], [200, 40, 280, 40, 280, 200, 200, 200]
    inside = np.zeros((240, 320), bool)
    inside[20:100, 20:100] = inside[40:200, 200:280] = True
    given: list[Any] = [{"segmentation": [left, right]}, inside, {"segmentation": [left, right, right]}]
    both, mask, twice = demo.vectors(features, given)
    torch.testing.assert_close(both, mask)
    torch.testing.assert_close(both, twice, atol=0.01, rtol=0)  # at their edges patches count twice


@pytest.mark.parametrize(
    ("given", "counts"),
    [
        ([np.array([CORNERS] * 2), np.array([CORNERS])], [2, 1]),
        ([results(boxes=boxes_of_results())] * 2, [1, 1]),
        ([{"boxes": [CORNERS]}, {"boxes": []}], [1, 0]),
        ([INSIDE[None], np.stack([INSIDE] * 3)], [1, 3]),
        ([[CORNERS, TRIANGLE], SimpleNamespace(xyxy=np.array([CORNERS]))], [2, 1]),
    ],
)
def test_each_of_several_images_has_its_own(demo: Captioner, given: Any, counts: list[int]) -> None:
    images = [np.zeros((48, 64, 3), np.uint8)] * 2
    assert [len(captions) for captions in demo.caption(images, given)] == counts


def test_an_error_names_the_image_and_the_region(demo: Captioner) -> None:
    images = [np.zeros((48, 64, 3), np.uint8)] * 2
    with pytest.raises(RegionError, match="image 1: region 1: .*lies outside"):
        demo.caption(images, [[CORNERS], [CORNERS, [100, 4, 120, 30]]])
    with pytest.raises(RegionError, match="image 1: detections: expected boxes or masks"):
        demo.caption(images, [[CORNERS], results()])


def test_bad_regions_are_skipped_with_their_reasons(demo: Captioner) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    given = {"boxes": [CORNERS, [100, 4, 120, 30], [np.nan] * 4], "labels": ["a", "b", "c"]}
    captions = demo.caption(image, given, on_bad="skip")
    assert [caption.error is None for caption in captions] == [True, False, False]
    assert captions[0].text == demo.caption(image, [CORNERS])[0].text
    assert [caption.detection and caption.detection.class_name for caption in captions] == ["a", "b", "c"]
    lists: list[Any] = [[CORNERS, None], [None]]
    with demo.batching() as batching:
        assert batching.caption(image, given, on_bad="skip") == captions
        assert asyncio.run(batching.acaption(image, given, on_bad="skip")) == captions
    assert asyncio.run(demo.acaption(image, given, on_bad="skip")) == captions
    nested = demo.caption([image, image], lists, on_bad="skip")
    assert [[caption.error is None for caption in own] for own in nested] == [[True, False], [False]]


def test_an_image_that_cannot_be_read_ends_none_of_the_others(demo: Captioner) -> None:
    image = np.zeros((48, 64, 3), np.uint8)
    images: list[Any] = [image, "gone.jpg", image]
    lists: list[Any] = [[CORNERS], [CORNERS, POLYGON], [[100, 4, 120, 30]]]
    captions = demo.caption(images, lists, on_bad="skip")
    assert captions[0] == demo.caption(image, [CORNERS])
    assert [one.error for one in captions[1]] == ["image 1: gone.jpg: no such file"] * 2
    assert [one.region for one in captions[1]] == [BOX, POLYGON]
    assert "lies outside" in str(captions[2][0].error)
    nothing: list[list[Any]] = [[]]
    assert demo.caption(["gone.jpg"], nothing, on_bad="skip") == nothing
    assert demo.caption([], [], on_bad="skip") == []
    with pytest.raises(RegionError, match="expected 3 lists, one for each image, got 2"):
        demo.caption(images, lists[:2], on_bad="skip")
    with pytest.raises(ImageError, match="image 1: gone.jpg: no such file"):
        demo.caption(images, lists)


SCENE_CORNERS = [276, 174, 507, 399]
SCENE_FORMS: dict[str, Any] = {
    "corners": [SCENE_CORNERS],
    "array": np.array([SCENE_CORNERS], np.float32),
    "bfloat16": torch.tensor([[276, 174, 508, 400]], dtype=torch.bfloat16),
    "detections": SimpleNamespace(xyxy=np.array([SCENE_CORNERS]), class_id=np.array([4]), confidence=np.array([0.5])),
    "COCO": [{"bbox": [276, 174, 231, 225], "category_id": 4, "id": 11, "score": 0.5}],
}


@pytest.mark.parametrize("form", SCENE_FORMS)
def test_every_way_in_takes_the_same(demo: Captioner, form: str) -> None:
    image, given = np.asarray(Image.open(SAMPLE / "scene.jpg")), SCENE_FORMS[form]
    expected = demo.caption(image, given)
    assert expected[0].text == "a large striped red triangle"
    features = demo.encode(image)
    assert demo.describe(features, given) == expected
    assert demo.vectors(features, given).shape == (1, demo.manifest.backbone.output_dim)
    assert asyncio.run(demo.acaption(image, given)) == expected
    with demo.batching() as batching:
        assert batching.caption(image, given) == expected
        assert asyncio.run(batching.acaption(image, given)) == expected
        assert asyncio.run(batching.adescribe(features, given)) == expected
    for regions in (given, lambda _: given):
        (described,) = demo.stream([image], regions)
        assert described.captions == expected


@pytest.mark.parametrize(
    ("document", "detection"),
    [
        ([SCENE_CORNERS], None),
        ([{"kind": "box", "xyxy": SCENE_CORNERS, "class_name": "shape"}], {"class_name": "shape"}),
        (
            [{"bbox": [276, 174, 231, 225], "category_id": 4, "id": 11, "score": 0.5}],
            {"id": 11, "class_id": 4, "confidence": 0.5},
        ),
        (
            {
                "images": [{"id": 8, "file_name": "photos/scene.jpg"}, {"id": 9, "file_name": "other.jpg"}],
                "annotations": [
                    {"image_id": 9, "id": 1, "category_id": 4, "bbox": [0, 0, 5, 5]},
                    {"image_id": 8, "id": 2, "category_id": 4, "bbox": [276, 174, 231, 225]},
                ],
                "categories": [{"id": 4, "name": "shape"}],
            },
            {"id": 2, "class_id": 4, "class_name": "shape"},
        ),
    ],
)
def test_the_command_line_takes_the_same_in_a_file(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], document: Any, detection: Any
) -> None:
    file = tmp_path / "regions.json"
    file.write_text(json.dumps(document))
    arguments = ["caption", str(SAMPLE / "scene.jpg"), "--bundle", str(demo_bundle), "--regions", str(file), "--json"]
    assert main(arguments) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["text"] == "a large striped red triangle"
    assert json.loads(line).get("detection") == detection


def test_supervision_itself() -> None:
    supervision = pytest.importorskip("supervision")
    found = supervision.Detections(
        xyxy=np.array([CORNERS], float), mask=INSIDE[None], class_id=np.array([1]), data={"class_name": np.array(["a"])}
    )
    (row,) = as_rows(found, WH)
    assert row.detection == Detection(None, 1, "a", None)
    assert as_rows(supervision.Detections.empty(), WH) == []


@pytest.mark.parametrize(
    "encode", [lambda coco, mask: coco.encode(mask), lambda _, __: {"size": [48, 64], "counts": RUNS}]
)
def test_pycocotools_itself(encode: Callable[..., Any]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    runs = encode(coco, np.asfortranarray(INSIDE, np.uint8))
    (row,) = as_rows([{"segmentation": runs}], WH)
    assert isinstance(row.region, Mask)
    np.testing.assert_array_equal(row.region.array, INSIDE)
