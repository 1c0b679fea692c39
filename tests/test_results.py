"""The nesting of regions: what goes in as one list or as a list for each image comes out so."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from runtime import Box, Caption, Captioner, Point, Region, RegionError, WholeImage
from runtime.results import RegionBatch

SIZE = (640, 480)
BOX, POINT, WHOLE = Box(0, 0, 9, 9), Point(3, 4), WholeImage()


def captions(count: int) -> list[Caption]:
    return [Caption(str(index), 1.0, ()) for index in range(count)]


def unflatten(batch: RegionBatch) -> Any:
    """Return the texts of a batch's captions, which are their indices, in the batch's nesting."""
    found = batch.unflatten(captions(len(batch)))
    return [[one.text for one in of_image] if isinstance(of_image, list) else of_image.text for of_image in found]


@pytest.mark.parametrize(
    ("regions", "num_images", "by_image", "is_nested", "texts"),
    [
        ([BOX, POINT], 1, [[BOX, POINT]], False, ["0", "1"]),
        ((BOX, POINT), 1, [[BOX, POINT]], False, ["0", "1"]),
        ([[BOX, POINT]], 1, [[BOX, POINT]], True, [["0", "1"]]),
        ([[BOX], [POINT, WHOLE]], 2, [[BOX], [POINT, WHOLE]], True, [["0"], ["1", "2"]]),
        (([BOX], (POINT,)), 2, [[BOX], [POINT]], True, [["0"], ["1"]]),
        ([[], [BOX], []], 3, [[], [BOX], []], True, [[], ["0"], []]),
        ([], 1, [[]], False, []),
        ([[]], 1, [[]], True, [[]]),
        ([[], []], 2, [[], []], True, [[], []]),
        ([], 0, [], True, []),
    ],
)
def test_captions_come_out_in_the_nesting_that_regions_went_in(
    regions: Any, num_images: int, by_image: list[list[Region]], is_nested: bool, texts: list[Any]
) -> None:
    batch = RegionBatch.of(regions, [SIZE] * num_images)
    assert batch.regions() == by_image
    assert batch.is_nested is is_nested
    assert len(batch) == sum(map(len, by_image))
    assert unflatten(batch) == texts


def test_each_caption_gets_its_region_and_those_given_stay_as_they_were() -> None:
    given = captions(3)
    regions: list[list[Region]] = [[BOX], [POINT, WHOLE]]
    first, second = cast("list[list[Caption]]", RegionBatch.of(regions, [SIZE] * 2).unflatten(given))
    assert [one.region for one in (*first, *second)] == [BOX, POINT, WHOLE]
    assert [one.text for one in (*first, *second)] == ["0", "1", "2"]
    assert [one.region for one in given] == [None] * 3


@pytest.mark.parametrize("count", [1, 3])
def test_captions_that_are_not_one_a_region_are_a_bug(count: int) -> None:
    regions: list[Region] = [BOX, POINT]
    batch = RegionBatch.of(regions, [SIZE])
    with pytest.raises(ValueError, match="zip"):
        batch.unflatten(captions(count))


@pytest.mark.parametrize(
    ("regions", "num_images", "message"),
    [
        ("boxes", 1, "regions: expected a list of regions, got str; boxes .*"),
        (b"boxes", 1, "regions: expected a list of regions, got bytes; boxes .*"),
        (None, 0, "regions: expected a list of regions, got NoneType; boxes .*"),
        ({BOX}, 1, "regions: expected a list of regions, got set; boxes .*"),
        (BOX, 2, "regions: 2 images were encoded; give a list of regions for each of them"),
        (np.zeros((2, 4)), 2, "regions: 2 images were encoded; give a list of regions for each of them"),
        ([[BOX], [BOX]], 1, "regions: expected 1 lists, one for each image, got 2"),
        ([[BOX]], 2, "regions: expected 2 lists, one for each image, got 1"),
        ([[]], 0, "regions: expected 0 lists, one for each image, got 1"),
        ([BOX, BOX], 2, "regions: 2 images were encoded; give a list of regions for each of them"),
        ([BOX], 0, "regions: 0 images were encoded; give a list of regions for each of them"),
        ([], 2, "regions: 2 images were encoded; give a list of regions for each of them"),
        ([[BOX], BOX], 2, "regions: 2 images were encoded; give a list of regions for each of them"),
    ],
)
def test_regions_that_are_no_lists_or_not_as_many_as_images_are_refused(
    regions: Any, num_images: int, message: str
) -> None:
    with pytest.raises(RegionError, match=f"^{message}$"):
        RegionBatch.of(regions, [SIZE] * num_images)


def test_no_images_and_no_regions_are_no_captions(demo: Captioner) -> None:
    assert demo.caption([], []) == []
    with demo.batching() as batching:
        assert batching.caption([], []) == []
