"""Regions as pixels of the backbone's input, by hand: an image of 20 x 10 on 8 x 8 pixels of 2 x 2 patches."""

from __future__ import annotations

import numpy as np
import pytest

from runtime import Box, BoxSet, Mask, Patch, Region, RegionError, Trace, WholeImage
from runtime.bundle import TokenLayout
from runtime.image import Fit, View
from runtime.regions import Canvas, PublishedBox, marked_pixels


def canvas(fit: Fit = Fit.STRETCH) -> Canvas:
    return Canvas(View.of((20, 10), 8, fit), TokenLayout.with_cls(3, 2))


def published(x: float, y: float, width: float, height: float) -> PublishedBox:
    return PublishedBox(x, y, width, height, rounding="corners_without_end")


def rectangle(rows: slice, columns: slice) -> np.ndarray:
    marks = np.zeros((8, 8), np.bool_)
    marks[rows, columns] = True
    return marks


@pytest.mark.parametrize(
    ("region", "rows", "columns"),
    [
        (WholeImage(), slice(8), slice(8)),
        (Box(5, 0, 10, 5), slice(0, 4), slice(2, 4)),
        (Box(5, 0, 11, 5), slice(0, 4), slice(2, 5)),  # a pixel of which a part is covered
        (published(1.5, 2.9, 4.4, 3.2), slice(2, 6), slice(1, 5)),  # to floor(5.9) and floor(6.1), which do not count
        (published(6, 6, 9, 9), slice(6, 8), slice(6, 8)),  # cut off at the edge
        (Patch(1, 0), slice(4, 8), slice(0, 4)),
        (Mask(np.arange(200).reshape(10, 20) % 20 < 5), slice(0, 8), slice(0, 2)),
        (Trace.published([(0.5, 0.25), (1, 0.25)]), slice(2, 3), slice(4, 8, 3)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Region) else "",
)
def test_the_pixels_that_a_region_covers_are_marked(region: Region, rows: slice, columns: slice) -> None:
    np.testing.assert_array_equal(marked_pixels(region, canvas()), rectangle(rows, columns))


def test_a_set_marks_what_any_of_its_boxes_covers() -> None:
    marks = marked_pixels(BoxSet([Box(0, 0, 5, 5), Box(2.5, 2.5, 10, 5)]), canvas())
    np.testing.assert_array_equal(marks, rectangle(slice(0, 4), slice(0, 2)) | rectangle(slice(2, 4), slice(1, 4)))


def test_a_crop_marks_what_the_backbone_sees_of_a_region() -> None:
    marks = marked_pixels(Box(0, 0, 10, 10), canvas(Fit.CROP))  # of 16 x 8 pixels the middle 8
    np.testing.assert_array_equal(marks, rectangle(slice(0, 8), slice(0, 4)))


def test_what_covers_nothing_is_refused() -> None:
    with pytest.raises(RegionError, match="lies outside the image"):
        marked_pixels(Box(21, 0, 25, 5), canvas())
    with pytest.raises(RegionError, match="it reaches across nothing of the input of 8 x 8 pixels"):
        marked_pixels(published(3.2, 3, 0.5, 3), canvas())
    with pytest.raises(RegionError, match="it covers nothing of what the model sees"):
        marked_pixels(Box(0, 0, 5, 10), canvas(Fit.CROP))
