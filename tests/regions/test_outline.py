"""Where regions are drawn, and which of them are choices of patches."""

from __future__ import annotations

import doctest

import numpy as np
import pytest

from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    Crop,
    Mask,
    Patch,
    Point,
    Polygon,
    Region,
    Register,
    Trace,
    WholeImage,
)
from runtime.regions import outline
from runtime.regions.canvas import is_of_patches
from runtime.regions.outline import BoxesOutline, MaskOutline, Outline, PolygonOutline, PolylineOutline, outline_of


class Disc:
    """A region of somebody else's."""

    def weights(self, canvas: object) -> None: ...


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (Box(1, 2, 3, 4), BoxesOutline(((1, 2, 3, 4),))),
        (Crop(-1, 2, 300, 4), BoxesOutline(((-1, 2, 300, 4),))),
        (BoxSet([(1, 2, 3, 4), (5, 6, 7, 8)]), BoxesOutline(((1, 2, 3, 4), (5, 6, 7, 8)))),
        # boxes of the published form lie on the backbone's input
        (BoxSet([Box(1, 2, 3, 4), Box.published(5, 6, 7, 8)]), BoxesOutline(((1, 2, 3, 4),))),
        (BoxSet([Box.published(5, 6, 7, 8)]), None),
        (Box.published(5, 6, 7, 8), None),
        (Trace.published([(0.5, 0.5)]), None),
        (Polygon([(0, 0), (1, 2), (3, 4)]), PolygonOutline(((0, 0), (1, 2), (3, 4)))),
        (Trace([(1, 2), (3, 4)]), PolylineOutline(((1, 2), (3, 4)))),
        (Trace.normalized([(0.5, 0.25)]), PolylineOutline(((40, 10),))),
        (Point(1, 2), PolylineOutline(((1, 2),))),
        *[(region, None) for region in (WholeImage(), Patch(0, 0), Register(0), AttentionHead(0), Disc(), None)],
    ],
)
def test_a_region_with_a_place_on_the_image_has_an_outline(region: Region | None, expected: Outline | None) -> None:
    assert outline_of(region, (80, 40)) == expected


def test_a_mask_is_its_own_outline() -> None:
    mask = Mask(np.eye(3))
    outlined = outline_of(mask, (3, 3))
    assert isinstance(outlined, MaskOutline)
    assert outlined.array is mask.array


@pytest.mark.parametrize(
    ("region", "expected"),
    [
        (Box(1, 2, 3, 4), True),
        (Patch(0, 0), True),
        (Trace.published([(0.5, 0.5)]), True),
        (Disc(), True),
        (Crop(1, 2, 3, 4), False),
        (WholeImage(), False),
        (Register(0), False),
        (AttentionHead(0), False),
    ],
)
def test_whole_maps_tokens_and_crops_are_not_of_patches(region: Region, expected: bool) -> None:
    assert is_of_patches(region) is expected


def test_the_example_says_what_it_prints() -> None:
    assert doctest.testmod(outline, extraglobs={"Trace": Trace, "WholeImage": WholeImage}) == (0, 2)
