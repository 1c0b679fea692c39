"""Region weights, by hand-worked tables and by properties. The canvas of most: an image of 40 x 40 pixels on 4 x 4
patches of 10, after 1 cls and 2 register tokens, unless said otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime import Box, BoxSet, Mask, Point, Region, RegionError, Trace, WholeImage
from runtime.image import Fit, View
from runtime.regions import Canvas, weight_rows

REGISTERS = 2


def canvas(image_wh: tuple[int, int] = (40, 40), fit: Fit = Fit.STRETCH) -> Canvas:
    return Canvas(View.of(image_wh, 40, fit), patch=10, registers=REGISTERS)


def grid_of(region: Region, on: Canvas | None = None) -> np.ndarray:
    """The weights of the patches (4, 4), after checking that cls and registers have none."""
    weights = region.weights(on or canvas())
    assert weights[: 1 + REGISTERS].tolist() == [0, 0, 0]
    return weights[1 + REGISTERS :].reshape(4, 4)


def table(shares: dict[tuple[int, int], float]) -> np.ndarray:
    """Weights by (row, column), from shares that need not sum to one."""
    grid = np.zeros((4, 4))
    for place, share in shares.items():
        grid[place] = share
    return grid / grid.sum()


@pytest.mark.parametrize(
    ("region", "shares"),
    [
        # one whole patch; two patches side by side; two above each other
        (Box(10, 20, 20, 30), {(2, 1): 1}),
        (Box(0, 0, 20, 10), {(0, 0): 1, (0, 1): 1}),
        (Box(30, 20, 40, 40), {(2, 3): 1, (3, 3): 1}),
        # a patch counts by the share of it that is covered: half of one, all of the next
        (Box(5, 0, 20, 10), {(0, 0): 0.5, (0, 1): 1}),
        # in both directions: 0.5 x 0.2 of the corner
        (Box(5, 8, 20, 20), {(0, 0): 0.5 * 0.2, (0, 1): 0.2, (1, 0): 0.5, (1, 1): 1}),
        # a box within one patch is that patch, however small
        (Box(12.5, 12.5, 12.6, 12.6), {(1, 1): 1}),
        # what reaches outside the image is cut off
        (Box(-100, -100, 10, 10), {(0, 0): 1}),
        (Box(35, 30, 1e9, 1e9), {(3, 3): 1}),
        # boxes of a set count the same whatever their size: 1 / 2 for one patch, 1 / 2 shared by four
        (BoxSet([Box(0, 0, 10, 10), Box(20, 20, 40, 40)]), {(0, 0): 4, (2, 2): 1, (2, 3): 1, (3, 2): 1, (3, 3): 1}),
        # and add up where they overlap
        (BoxSet([(0, 0, 10, 10), (0, 0, 20, 10)]), {(0, 0): 3, (0, 1): 1}),
        # points count as often as they come; the far edges belong to the last patch
        (Trace([(5, 5), (6, 5), (35, 15)]), {(0, 0): 2, (1, 3): 1}),
        (Trace([(40, 40)]), {(3, 3): 1}),
        (Trace([(10, 0)]), {(0, 1): 1}),
        # points outside the image are left out
        (Trace([(5, 5), (-1, 5), (5, 41)]), {(0, 0): 1}),
        # in shares of the image
        (Trace.normalized([(0.1, 0.1), (0.9, 0.3)]), {(0, 0): 1, (1, 3): 1}),
        (Point(39.9, 0), {(0, 3): 1}),
        (WholeImage(), {(row, column): 1 for row in range(4) for column in range(4)}),
    ],
)
def test_weights_are_those_worked_out_by_hand(region: Region, shares: dict[tuple[int, int], float]) -> None:
    np.testing.assert_allclose(grid_of(region), table(shares), atol=1e-12)


def test_a_mask_counts_by_the_share_of_each_patch_that_it_covers() -> None:
    mask = np.zeros((40, 40), bool)
    mask[0:5, 0:10] = True  # half of patch (0, 0)
    mask[10:20, 10:20] = True  # all of patch (1, 1)
    np.testing.assert_allclose(grid_of(Mask(mask)), table({(0, 0): 0.5, (1, 1): 1}), atol=1e-12)


def test_the_cls_token_alone_stands_for_the_image_when_asked() -> None:
    weights = WholeImage(pool="cls").weights(canvas())
    assert weights[0] == 1
    assert weights.sum() == 1


def test_stretching_scales_both_axes() -> None:
    # 80 x 20 pixels on 40 x 40: x halves, y doubles
    np.testing.assert_allclose(grid_of(Box(0, 0, 20, 5), canvas((80, 20))), table({(0, 0): 1}), atol=1e-12)
    np.testing.assert_allclose(grid_of(Point(79, 1), canvas((80, 20))), table({(0, 3): 1}))


def test_cropping_keeps_the_centre_square() -> None:
    # 80 x 40 pixels: the short side is 40 already, the crop shows x from 20 to 60
    wide = canvas((80, 40), Fit.CROP)
    np.testing.assert_allclose(grid_of(Box(20, 0, 30, 10), wide), table({(0, 0): 1}), atol=1e-12)
    np.testing.assert_allclose(grid_of(Box(0, 0, 30, 10), wide), table({(0, 0): 1}), atol=1e-12)  # the part in view
    with pytest.raises(RegionError, match="covers nothing of what the model sees.*stretch"):
        Box(0, 0, 20, 40).weights(wide)


boxes = st.tuples(*[st.floats(-50, 150, width=32)] * 4)


@given(boxes, st.integers(1, 120), st.integers(1, 120))
def test_a_box_that_is_accepted_has_weights_that_sum_to_one(
    corners: tuple[float, ...], width: int, height: int
) -> None:
    try:
        weights = Box(*corners).weights(canvas((width, height)))
    except RegionError:
        return
    assert weights.min() >= 0
    assert weights.sum() == pytest.approx(1)


@given(st.integers(0, 30), st.integers(0, 20), st.integers(1, 31), st.integers(1, 21))
def test_a_box_on_whole_pixels_is_the_mask_of_its_pixels(x: int, y: int, width: int, height: int) -> None:
    wide = canvas((31, 21))
    x2, y2 = min(x + width, 31), min(y + height, 21)
    mask = np.zeros((21, 31), bool)
    mask[y:y2, x:x2] = True
    np.testing.assert_allclose(Box(x, y, x2, y2).weights(wide), Mask(mask).weights(wide), atol=1e-9)


def test_rows_come_in_the_order_of_the_regions() -> None:
    regions = [Point(5, 5), WholeImage(), Box(30, 30, 40, 40)]
    rows = weight_rows(regions, canvas())
    assert rows.shape == (3, 1 + REGISTERS + 16)
    for row, region in zip(rows.numpy(), regions, strict=True):
        np.testing.assert_allclose(row, region.weights(canvas()), atol=1e-7)


def test_no_regions_are_no_rows() -> None:
    assert weight_rows([], canvas()).shape == (0, 1 + REGISTERS + 16)


def test_a_mask_does_not_keep_the_callers_array() -> None:
    array = np.ones((40, 40), bool)
    mask = Mask(array)
    array[:] = False
    assert mask.array.all()


NAN, INFINITY = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: Box(10, 0, 5, 20),
            r"Box\(x1=10.0, y1=0.0, x2=5.0, y2=20.0\): expected x1 < x2 and y1 < y2; .* Box.from_xywh",
        ),
        (lambda: Box(0, 5, 10, 5), "expected x1 < x2 and y1 < y2"),
        (lambda: Box(NAN, 0, 10, 10), "Box x1: expected a finite number, got nan"),
        (lambda: Box(0, 0, INFINITY, 10), "finite number"),
        (lambda: Box("0", "0", "x", "1"), "Box x2: expected a number, got 'x'"),
        (lambda: BoxSet([]), "at least one box"),
        (lambda: BoxSet([(1, 2, 3)]), "4 numbers"),
        (lambda: Trace([]), "at least one point"),
        (lambda: Trace([(1, 2, 3)]), "2 numbers"),
        (lambda: Trace([(1, NAN)]), "finite number"),
        (lambda: Point(NAN, 1), "finite number"),
        (lambda: Mask(np.zeros((4, 4))), "empty"),
        (lambda: Mask(np.zeros((0, 4))), "empty"),
        (lambda: Mask(np.ones((4, 4, 3))), r"expected a numeric array \(H, W\), got shape \(4, 4, 3\)"),
        (lambda: Mask(np.full((4, 4), NAN)), "finite"),
        (lambda: Mask([["a"]]), "numeric array"),
        (lambda: WholeImage(pool="max"), "mean"),
    ],
)
def test_regions_that_cannot_be_are_refused_when_made(make: object, message: str) -> None:
    with pytest.raises(RegionError, match=message):
        make()


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Box(40, 0, 50, 10), r"Box.* lies outside the image of 40 x 40 pixels"),
        (Box(-10, -10, 0, 0), "outside the image"),
        (Point(41, 5), "outside the image"),
        (Trace([(-1, 5), (50, 5)]), "no point of it lies on the image"),
        (Mask(np.ones((40, 41), bool)), r"Mask\(41x40, 1640 set\): expected the image's size, 40 x 40 pixels"),
        ("box", "expected a Box, Mask, Trace or another region kind, got str"),
    ],
)
def test_regions_with_no_place_on_the_image_are_refused_by_number(region: Region, message: str) -> None:
    with pytest.raises(RegionError, match=f"region 1: .*{message}"):
        weight_rows([WholeImage(), region], canvas())
