"""Region weights, by hand-worked tables, by properties and against the published algorithm written plainly.

The canvas of most: an image of 40 x 40 pixels on 4 x 4 patches of 10, after 1 cls and 2 register tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks import eager
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
    RegionError,
    Register,
    Trace,
    WholeImage,
)
from runtime.bundle import TokenLayout
from runtime.image import Fit, View
from runtime.regions import Canvas, weight_rows

REGISTERS, HEADS = 2, 3
SCORES = torch.randn(HEADS, 16, generator=torch.Generator().manual_seed(0))
ATTENTION = SCORES.mean(0).softmax(0).double().numpy().reshape(4, 4)


def canvas(image_wh: tuple[int, int] = (40, 40), fit: Fit = Fit.STRETCH) -> Canvas:
    return Canvas(View.of(image_wh, 40, fit), TokenLayout.with_cls(REGISTERS, 4), SCORES)


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
        (WholeImage(pool="mean"), {(row, column): 1 for row in range(4) for column in range(4)}),
        (WholeImage(pool="gaussian", variance=100), {(row, column): 1 for row in range(4) for column in range(4)}),
        # of the two rows and columns in the middle of an even grid the lower ones
        (WholeImage(pool="gaussian", variance=0), {(1, 1): 1}),
        (Patch(2, 3), {(2, 3): 1}),
        # a Gaussian over a box of whole patches has its outermost patches at -1 and 1: e^-2 in the corners
        (
            Box(0, 0, 30, 30, pool="gaussian", variance=1),
            {(row, column): np.exp(-((row - 1) ** 2) - (column - 1) ** 2) for row in range(3) for column in range(3)},
        ),
        (Box(0, 0, 30, 30, pool="gaussian", variance=0), {(1, 1): 1}),
        (Box(0, 0, 20, 10, pool="gaussian", variance=1e-9), {(0, 0): 1, (0, 1): 1}),
        # shares of patches count in every pool: a quarter of the patch at the left
        (Box(7.5, 0, 20, 10, pool="attention"), {(0, 0): 0.25 * ATTENTION[0, 0], (0, 1): ATTENTION[0, 1]}),
        # a pool of the set holds for all its boxes; without one each box keeps its own
        (
            BoxSet([Box(0, 0, 20, 10), Box(0, 30, 10, 40)], pool="gaussian", variance=0),
            {(0, 0): 1, (3, 0): 1},
        ),
        (BoxSet([Box(0, 0, 20, 10, pool="gaussian", variance=0), (0, 30, 10, 40)]), {(0, 0): 1, (3, 0): 1}),
        (Trace([(5, 5), (6, 5), (35, 15)], pool="attention"), {(0, 0): 2 * ATTENTION[0, 0], (1, 3): ATTENTION[1, 3]}),
        (Trace([{"x": 5, "y": 15, "t": 0.1}]), {(1, 0): 1}),
        # a triangle over the upper left half of two by two patches: halves on its slope, whole above it, nothing below
        (Polygon([(0, 0), (20, 0), (0, 20)]), {(0, 0): 1, (0, 1): 0.5, (1, 0): 0.5}),
        # the same the other way round
        (Polygon([(0, 20), (20, 0), (0, 0)]), {(0, 0): 1, (0, 1): 0.5, (1, 0): 0.5}),
        # a polygon that is not convex: an L
        (
            Polygon([(0, 0), (10, 0), (10, 30), (40, 30), (40, 40), (0, 40)]),
            {(0, 0): 1, (1, 0): 1, (2, 0): 1, (3, 0): 1, (3, 1): 1, (3, 2): 1, (3, 3): 1},
        ),
        # an edge that is all but upright
        (Polygon([(0, 0), (10, 0), (5e-324, 10)]), {(0, 0): 1}),
        # one within a patch; one whose inside is gone round twice; one that reaches outside the image
        (Polygon([(12, 12), (13, 12), (12, 13)]), {(1, 1): 1}),
        (Polygon([(0, 0), (10, 0), (10, 10), (0, 10)] * 2), {(0, 0): 1}),
        (Polygon([(30, -100), (200, -100), (200, 10), (30, 10)]), {(0, 3): 1}),
    ],
)
def test_weights_are_those_worked_out_by_hand(region: Region, shares: dict[tuple[int, int], float]) -> None:
    np.testing.assert_allclose(grid_of(region), table(shares), atol=1e-12)


def test_a_mask_counts_by_the_share_of_each_patch_that_it_covers() -> None:
    mask = np.zeros((40, 40), bool)
    mask[0:5, 0:10] = True  # half of patch (0, 0)
    mask[10:20, 10:20] = True  # all of patch (1, 1)
    np.testing.assert_allclose(grid_of(Mask(mask)), table({(0, 0): 0.5, (1, 1): 1}), atol=1e-12)


@pytest.mark.parametrize(
    ("region", "token"), [(WholeImage(), 0), (WholeImage(pool="cls"), 0), (Register(0), 1), (Register(1), 2)]
)
def test_cls_and_registers_are_single_tokens(region: Region, token: int) -> None:
    weights = region.weights(canvas())
    assert weights[token] == 1
    assert weights.sum() == 1


def test_attention_over_the_image_is_divided_by_its_patches_as_published() -> None:
    np.testing.assert_allclose(grid_of(WholeImage(pool="attention")), ATTENTION / 16, rtol=1e-6)
    of_heads = SCORES.softmax(1).numpy().reshape(HEADS, 4, 4)
    for head in range(HEADS):
        np.testing.assert_allclose(grid_of(AttentionHead(head)), of_heads[head] / 16, rtol=1e-6)


def test_attention_is_asked_for_only_where_it_counts() -> None:
    without = Canvas(View.of((40, 40), 40, Fit.STRETCH), TokenLayout.with_cls(REGISTERS, 4))
    assert WholeImage(pool="mean").weights(without).sum() == pytest.approx(1)
    with pytest.raises(RegionError, match="attention of cls, which was not given"):
        WholeImage(pool="attention").weights(without)


def test_a_crop_is_none_of_the_images_tokens() -> None:
    assert not Crop(0, 0, 10, 10).weights(canvas()).any()


@pytest.mark.parametrize(
    ("crop", "box"),
    [
        (Crop(10, 20, 30, 40), (10, 20, 30, 40)),
        (Crop(-5, -5, 500, 10.4), (0, 0, 40, 10)),
        (Crop(1.6, 2.4, 3.7, 5), (2, 2, 4, 5)),
    ],
)
def test_a_crop_cuts_whole_pixels_of_the_image(crop: Crop, box: tuple[int, int, int, int]) -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 40, 3), np.uint8))
    cut = crop.cut(image)
    assert isinstance(cut, Image.Image)
    assert cut.tobytes() == image.crop(box).tobytes()


# The published form (published-system.md, section 4) is on the input of 40 x 40 pixels, whatever the image.
@pytest.mark.parametrize(
    ("region", "shares"),
    [
        # x, y, width and height are rounded down each by itself; both ends count
        (Box.published(12, 25, 0, 0), {(2, 1): 1}),
        (Box.published(19, 0, 12, 0), {(0, 1): 1, (0, 2): 1}),
        (Box.published(0, 0, 40, 40), {(row, column): 1 for row in range(4) for column in range(4)}),
        # 5 to 26 touches three columns, but 21 // 10 is 2 and 5 // 10 is 0
        (Box.published(5, 39, 21, 0), {(3, 0): 1, (3, 1): 1, (3, 2): 1}),
        (Box.published(9, 39, 9, 0), {(3, 0): 1}),
        # a single patch is at -1 on both axes of its Gaussian, which makes no difference
        (Box.published(12, 25, 0, 0, pool="gaussian", variance=0.1), {(2, 1): 1}),
        (Box.published(12, 5, 10, 9, pool="attention"), {(0, 1): ATTENTION[0, 1], (0, 2): ATTENTION[0, 2]}),
        # padding is skipped, boxes count the same
        (BoxSet.published([(0, 0, 9, 9), (-1, -1, -1, -1), (20, 20, 19, 9)]), {(0, 0): 2, (2, 2): 1, (2, 3): 1}),
    ],
)
def test_published_boxes_round_as_published(region: Region, shares: dict[tuple[int, int], float]) -> None:
    for on in (canvas(), canvas((80, 40), Fit.CROP), canvas((7, 90))):
        np.testing.assert_allclose(grid_of(region, on), table(shares), atol=1e-7)


def test_published_traces_are_divided_by_the_patches_of_the_image() -> None:
    trace = Trace.published([(0.1, 0.3), (0.1, 0.3), (1, 1), (1.01, 0), (-0.01, 0.5)])
    expected = np.zeros((4, 4))
    expected[1, 0], expected[3, 3] = 2 / 16, 1 / 16
    np.testing.assert_allclose(grid_of(trace), expected)
    by_attention = Trace.published([(0.1, 0.3)], pool="attention")
    assert by_attention.weights(canvas()).sum() == pytest.approx(ATTENTION[1, 0] / 16)


def test_boxes_of_images_become_boxes_of_the_input_by_the_published_rule() -> None:
    # 80 x 40 on 40 x 40, centre crop: scale 1, offset 20. x 10 -> -10 -> 0, and the width is not shortened by that
    on = canvas((80, 40), Fit.CROP)
    np.testing.assert_allclose(
        grid_of(Box.published(10, 0, 15, 5, frame="image"), on), grid_of(Box.published(0, 0, 15, 5)), atol=1e-9
    )
    # 60 -> 40 is clamped to 39, and no width is left
    np.testing.assert_allclose(
        grid_of(Box.published(60, 5, 20, 5, frame="image"), on), grid_of(Box.published(39, 5, 1, 5)), atol=1e-9
    )
    np.testing.assert_allclose(
        grid_of(BoxSet.published([(10, 0, 15, 5)], frame="image"), on), grid_of(Box.published(0, 0, 15, 5)), atol=1e-9
    )
    # stretched: each axis by its own scale
    np.testing.assert_allclose(
        grid_of(Box.published(40, 10, 20, 10, frame="image"), canvas((80, 20))),
        grid_of(Box.published(20, 20, 10, 20)),
        atol=1e-9,
    )


numbers = st.floats(0, 139.875, width=32)
pools = st.sampled_from(["mean", "gaussian", "attention"])


@settings(deadline=None)  # the first call into torch takes long
@given(st.tuples(numbers, numbers, numbers, numbers), pools, st.floats(0.1, 2), st.integers(0, 3))
def test_published_boxes_are_those_of_the_algorithm_written_plainly(
    box: tuple[float, float, float, float], pool: eager.Pool, variance: float, seed: int
) -> None:
    seen, on = plainly_seen(seed)
    weights = Box.published(*box, pool=pool, variance=variance).weights(on)
    expected = eager.box_weights(seen, box, pool, variance)
    np.testing.assert_allclose(weights[1 + REGISTERS :].reshape(10, 10), expected, rtol=1e-4, atol=1e-9)


@settings(deadline=None)  # the first call into torch takes long
@given(st.lists(st.tuples(st.floats(-0.1, 1.1), st.floats(-0.1, 1.1)), min_size=1), st.booleans())
def test_published_traces_are_those_of_the_algorithm_written_plainly(
    points: list[tuple[float, float]], with_attention: bool
) -> None:
    seen, on = plainly_seen(0)
    expected = eager.trace_vector(seen, points, with_attention)
    try:
        weights = Trace.published(points, "attention" if with_attention else "count").weights(on)
    except RegionError:  # no point within: the published vector is zero
        assert not expected.any()
        return
    vector = torch.from_numpy(weights[1 + REGISTERS :]).float() @ seen.patches.flatten(0, 1)
    torch.testing.assert_close(vector, expected, rtol=1e-4, atol=1e-6)


def plainly_seen(seed: int) -> tuple[eager.EncodedImage, Canvas]:
    """An image of 10 x 10 patches of 14 as the oracle and as the runtime have it."""
    noise = torch.Generator().manual_seed(seed)
    patches, scores = torch.randn(10, 10, 8, generator=noise), torch.randn(HEADS, 100, generator=noise)
    seen = eager.EncodedImage(torch.zeros(8), torch.zeros(REGISTERS, 8), patches, scores)
    return seen, Canvas(View.of((140, 140), 140, Fit.STRETCH), TokenLayout.with_cls(REGISTERS, 10), scores)


@given(st.integers(0, 3), st.integers(0, 3), st.integers(1, 4), st.integers(1, 4), st.floats(0.05, 5))
def test_a_gaussian_over_whole_patches_is_the_published_one(
    row: int, column: int, rows: int, columns: int, variance: float
) -> None:
    rows, columns = min(rows, 4 - row), min(columns, 4 - column)
    x, y, width, height = 10 * column, 10 * row, 10 * columns, 10 * rows
    exact = Box.from_xywh(x, y, width, height, pool="gaussian", variance=variance)
    published = Box.published(x, y, width - 10, height - 10, pool="gaussian", variance=variance)
    np.testing.assert_allclose(grid_of(exact), grid_of(published), atol=1e-6)


corners = st.tuples(st.floats(-20, 60), st.floats(-20, 60))


@given(st.lists(corners, min_size=3, max_size=3))
def test_a_triangle_covers_of_each_patch_what_its_pixels_do(points: list[tuple[float, float]]) -> None:
    """Against a count of sample points, 160 x 160 in each patch."""
    (ax, ay), (bx, by), (cx, cy) = points
    assume(abs((bx - ax) * (cy - ay) - (by - ay) * (cx - ax)) > 1)
    fine = (np.arange(640) + 0.5) / 16
    x, y = np.meshgrid(fine, fine)
    edges = zip(points, points[1:] + points[:1], strict=True)
    sides = [(bx - ax) * (y - ay) - (by - ay) * (x - ax) for (ax, ay), (bx, by) in edges]
    inside = np.all([side >= 0 for side in sides], axis=0) | np.all([side <= 0 for side in sides], axis=0)
    shares = inside.reshape(4, 160, 4, 160).mean(axis=(1, 3))
    if shares.sum() > 0.05:
        np.testing.assert_allclose(
            grid_of(Polygon(points)) * shares.sum(), shares, atol=0.05 * max(1, shares.sum() / 4)
        )


@given(st.floats(0, 30), st.floats(0, 30), st.floats(0.1, 10), st.floats(0.1, 10))
def test_a_polygon_of_four_right_angles_is_the_box(x: float, y: float, width: float, height: float) -> None:
    polygon = Polygon([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    np.testing.assert_allclose(grid_of(polygon), grid_of(Box.from_xywh(x, y, width, height)), atol=1e-6)


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
    corners: tuple[float, float, float, float], width: int, height: int
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
    regions: list[Region] = [Point(5, 5), WholeImage(), Box(30, 30, 40, 40)]
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
            r"Box\(x1=10.0, y1=0.0, x2=5.0, y2=20.0.*\): expected x1 < x2 and y1 < y2; .* Box.from_xywh",
        ),
        (lambda: Box(0, 5, 10, 5), "expected x1 < x2 and y1 < y2"),
        (lambda: Box(NAN, 0, 10, 10), "Box x1: expected a finite number, got nan"),
        (lambda: Box(0, 0, INFINITY, 10), "finite number"),
        (lambda: Box("0", "0", "x", "1"), "Box x2: expected a number, got 'x'"),  # type: ignore[arg-type]
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
        (lambda: WholeImage(pool="max"), 'expected pool "cls" or "mean" or "gaussian" or "attention", got .max.'),  # type: ignore[arg-type]
        (lambda: WholeImage(variance=-1), "variance of at least 0"),
        (lambda: Box(0, 0, 1, 1, pool="cls"), 'Box: expected pool "mean" or "gaussian" or "attention"'),  # type: ignore[arg-type]
        (lambda: Box(0, 0, 1, 1, variance=NAN), "Box variance: expected a finite number"),
        (lambda: BoxSet([(0, 0, 1, 1)], pool="max"), "expected pool"),  # type: ignore[arg-type]
        (lambda: Trace([(1, 2)], pool="mean"), 'expected pool "count" or "attention"'),  # type: ignore[arg-type]
        (lambda: Trace([{"x": 1}]), "2 numbers"),
        (lambda: Polygon([(0, 0), (1, 1)]), "at least three points"),
        (lambda: Register(-1), "whole number from 0 on, got -1"),
        (lambda: AttentionHead(0.5), "whole number from 0 on"),  # type: ignore[arg-type]
        (lambda: Patch(0, "a"), "Patch column: expected a number"),  # type: ignore[arg-type]
        (lambda: Crop(5, 0, 5, 10), "x1 < x2"),
        (lambda: Box.published(-1, 0, 5, 5), "no number below 0"),
        (lambda: Box.published(0, 0, 5, 5, frame="patch"), 'frame "crop" or "image"'),  # type: ignore[arg-type]
        (lambda: BoxSet.published([(-1, -1, -1, -1)]), "at least one box"),
        (lambda: Trace.published([]), "at least one point"),
    ],
)
def test_regions_that_cannot_be_are_refused_when_made(make: Callable[[], Region], message: str) -> None:
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
        (Register(2), "the backbone has 2 registers, numbered from 0"),
        (AttentionHead(3), "has 3 heads"),
        (Patch(4, 0), "4 x 4 patches"),
        (Polygon([(50, 0), (60, 0), (60, 10)]), "covers nothing"),
        (Polygon([(0, 0), (10, 10), (20, 20)]), "covers nothing"),
        (Box.published(40, 0, 5, 5), "lies outside the input of 40 x 40 pixels"),
        (Trace.published([(2, 2)]), "no point of it lies in 0..1"),
        ("box", "expected a Box, Mask, Trace or another region kind, got str"),
    ],
)
def test_regions_with_no_place_on_the_image_are_refused_by_number(region: Region, message: str) -> None:
    with pytest.raises(RegionError, match=f"region 1: .*{message}"):
        weight_rows([WholeImage(), region], canvas())
