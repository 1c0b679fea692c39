"""The page's pure modules, imported in the browser: tables worked by hand, and the runtime's own answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from runtime.regions import BoxSet, Mask, Region, WholeImage, from_dict, run_lengths, to_dict
from tests.serving.http.page.browser import opened

_MODULES = ["geometry", "history", "labels", "masks", "regions", "tools"]
WIDE, STAGE = "{width: 400, height: 200}", "{width: 300, height: 300}"
SQUARE = "p([[0, 0], [10, 0], [10, 10], [0, 10]])"
SETTINGS = {"mode": "decode", "beams": 1, "pools": {"box": "gaussian", "trace": "attention", "whole_image": "mean"}}

GEOMETRY: list[tuple[str, Any]] = [
    # a wide image on a square stage: 0.75 as large, a quarter of the stage free above it
    (f"geometry.fit({WIDE}, {STAGE})", {"scale": 0.75, "left": 0, "top": 75}),
    ("geometry.fit({width: 100, height: 200}, {width: 300, height: 100})", {"scale": 0.5, "left": 125, "top": 0}),
    ("geometry.toStage({x: 400, y: 200}, {scale: 0.75, left: 0, top: 75})", {"x": 300, "y": 225}),
    ("geometry.toImage({x: 300, y: 225}, {scale: 0.75, left: 0, top: 75})", {"x": 400, "y": 200}),
    ("geometry.toImage({x: 0, y: 0}, {scale: 0.5, left: 125, top: 0})", {"x": -250, "y": 0}),
    ("geometry.bitmapSize({width: 300.4, height: 100}, 1.5)", {"width": 451, "height": 150}),
    # a quarter of the pixels: half of each side
    (f"geometry.within({WIDE}, 20000)", {"width": 200, "height": 100}),
    (f"geometry.within({WIDE}, 80000)", {"width": 400, "height": 200}),
    ("geometry.within({width: 9000, height: 1}, 1000)", {"width": 3000, "height": 1}),
    (f"geometry.clamp({{x: -5, y: 250}}, {WIDE})", {"x": 0, "y": 200}),
    (f"geometry.isOnImage({{x: 400, y: 200}}, {WIDE})", True),
    (f"geometry.isOnImage({{x: 400.1, y: 200}}, {WIDE})", False),
    ("geometry.distance({x: 1, y: 1}, {x: 4, y: 5})", 5),
    ("geometry.distanceToSegment({x: 5, y: 3}, {x: 0, y: 0}, {x: 10, y: 0})", 3),
    ("geometry.distanceToSegment({x: 13, y: 4}, {x: 0, y: 0}, {x: 10, y: 0})", 5),
    ("geometry.distanceToSegment({x: 3, y: 4}, {x: 0, y: 0}, {x: 0, y: 0})", 5),
    ("geometry.distanceToLine({x: 12, y: 5}, p([[0, 0], [10, 0], [10, 10]]))", 2),
    ("geometry.distanceToLine({x: 3, y: 4}, p([[0, 0]]))", 5),
    (f"geometry.isInside({{x: 5, y: 5}}, {SQUARE})", True),
    (f"geometry.isInside({{x: 11, y: 5}}, {SQUARE})", False),
    # in the notch of an L, which its bounds cover
    ("geometry.isInside({x: 8, y: 2}, p([[0, 0], [5, 0], [5, 5], [10, 5], [10, 10], [0, 10]]))", False),
    ("geometry.between({x: 9, y: 2}, {x: 3, y: 7})", {"left": 3, "top": 2, "right": 9, "bottom": 7}),
    ("geometry.boundsOf(p([[3, 9], [1, 4]]))", {"left": 1, "top": 4, "right": 3, "bottom": 9}),
    ("geometry.overlap(geometry.boundsOf(p([[0, 0], [4, 4]])), geometry.boundsOf(p([[3, 1], [9, 3]])))", 2),
    ("geometry.overlap(geometry.boundsOf(p([[0, 0], [4, 4]])), geometry.boundsOf(p([[5, 5], [9, 9]])))", 0),
    ("pairs(geometry.simplify(p([[0, 0], [5, 0.5], [10, 0]]), 1))", [[0, 0], [10, 0]]),
    ("pairs(geometry.simplify(p([[0, 0], [5, 0], [10, 0], [10, 5], [10, 10]]), 1))", [[0, 0], [10, 0], [10, 10]]),
    ("pairs(geometry.simplify(p([[0, 0], [10, 0], [10, 10], [0, 0.5]]), 1))", [[0, 0], [10, 0], [10, 10], [0, 0.5]]),
    ("pairs(geometry.simplify(p([[3, 3], [3.2, 3], [3, 3.1]]), 1))", [[3, 3]]),
    ("pairs(geometry.simplify(p([[3, 3]]), 1))", [[3, 3]]),
    ("pairs(geometry.inSteps({x: 0, y: 0}, {x: 9, y: 0}, 3))", [[3, 0], [6, 0], [9, 0]]),
    ("pairs(geometry.inSteps({x: 0, y: 0}, {x: 1, y: 0}, 3))", [[1, 0]]),
]
MASKS: list[tuple[str, Any]] = [
    # within 1 of the segment from (1.5, 0.5) to (1.5, 2.5): the middle column, and the centres 1 beside it
    (
        "Array.from(masks.paint([p([[1.5, 0.5], [1.5, 2.5]])], 1, {width: 4, height: 4}).cells)",
        [1, 1, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 1, 0, 0],
    ),
    ("Array.from(masks.paint([p([[0.5, 0.5]])], 0.1, {width: 2, height: 1}).cells)", [1, 0]),
    ("masks.runLengths({rows: 2, columns: 2, cells: [0, 1, 1, 1]})", [1, 3]),
    ("masks.runLengths({rows: 2, columns: 2, cells: [1, 0, 0, 0]})", [0, 1, 3]),
    ("masks.runLengths({rows: 2, columns: 2, cells: [0, 0, 0, 0]})", [4]),
    ("Array.from(masks.fromRunLengths([1, 3], 2, 2).cells)", [0, 1, 1, 1]),
    # a grid of 512 cells at most, both sides rounded up
    ("(({rows, columns}) => [rows, columns])(masks.emptyGrid({width: 1000, height: 333}))", [171, 512]),
    ("(({rows, columns}) => [rows, columns])(masks.emptyGrid({width: 30, height: 20}))", [20, 30]),
    # cells of 2 x 2 pixels
    ("masks.covers({rows: 2, columns: 2, cells: [0, 1, 0, 0]}, {x: 3, y: 1}, {width: 4, height: 4})", True),
    ("masks.covers({rows: 2, columns: 2, cells: [0, 1, 0, 0]}, {x: 3, y: 2}, {width: 4, height: 4})", False),
    ("masks.covers({rows: 2, columns: 2, cells: [1, 1, 1, 1]}, {x: 4, y: 4}, {width: 4, height: 4})", False),
    (
        "masks.gridBounds({rows: 2, columns: 2, cells: [0, 1, 0, 0]}, {width: 4, height: 8})",
        {"left": 2, "top": 0, "right": 4, "bottom": 4},
    ),
]
BOUNDS = "{left: 0, top: 0, right: 100, bottom: 100}"
LABEL = "{size: {width: 40, height: 10}, region: {left: 20, top: 40, right: 70, bottom: 60}}"
AT_TOP = "{size: {width: 40, height: 10}, region: {left: 90, top: 2, right: 99, bottom: 20}}"
LABELS: list[tuple[str, Any]] = [
    ("labels.wrap('a large red ring', 9, (text) => text.length)", ["a large", "red ring"]),
    ("labels.wrap('incomprehensible ring', 9, (text) => text.length)", ["incomprehensible", "ring"]),
    ("labels.wrap('', 9, (text) => text.length)", []),
    # 4 above its region; the second of the same region, as that place is taken, 4 below it
    (f"pairs(labels.placeLabels([{LABEL}, {LABEL}], {BOUNDS}))", [[20, 26], [20, 64]]),
    # above the stage and too far to the right: moved inside
    (f"pairs(labels.placeLabels([{AT_TOP}], {BOUNDS}))", [[60, 0]]),
    # 18 to the lower right of the cursor
    (
        "labels.placeBeside({x: 10, y: 10}, {width: 30, height: 10}, {left: 10, top: 10, right: 10, bottom: 10}, "
        f"{BOUNDS})",
        {"x": 28, "y": 28},
    ),
    # in the corner: moved up onto the stage, and to the left of the cursor
    (
        "labels.placeBeside({x: 95, y: 95}, {width: 30, height: 10}, {left: 95, top: 95, right: 95, bottom: 95}, "
        f"{BOUNDS})",
        {"x": 47, "y": 90},
    ),
    # while a box is drawn to the upper left, the lower right is free
    (
        "labels.placeBeside({x: 30, y: 30}, {width: 20, height: 10}, {left: 30, top: 30, right: 60, bottom: 60}, "
        f"{BOUNDS})",
        {"x": 0, "y": 48},
    ),
]


@pytest.fixture(scope="module")
def page(browser: Browser, service: str) -> Iterator[Page]:
    """A page whose window has the modules under their names (of history: `past`), and `p` for points of pairs."""
    with opened(browser, service, lambda _: None) as (page, _):
        page.evaluate(
            """async (names) => {
                for (const name of names)
                    window[name === "history" ? "past" : name] = await import(`/page/${name}.js`);
                window.p = (pairs) => pairs.map(([x, y]) => ({x, y}));
                window.pairs = (points) => points.map(({x, y}) => [x, y]);
            }""",
            _MODULES,
        )
        yield page


def test_tables_worked_by_hand(page: Page) -> None:
    table = [*GEOMETRY, *MASKS, *LABELS]
    found = [(source, page.evaluate(f"({source})")) for source, _ in table]
    assert found == table


def test_placed_captions_cover_neither_the_cursor_nor_what_is_drawn(page: Page) -> None:
    """All over a stage, while a box is drawn to each side, as long as there is room anywhere."""
    worst = page.evaluate(
        """() => {
            const bounds = {left: 0, top: 0, right: 400, bottom: 300};
            const size = {width: 90, height: 30};
            let worst = 0;
            for (let x = 0; x <= 400; x += 20) for (let y = 0; y <= 300; y += 20)
                for (const [dx, dy] of [[80, 60], [-80, 60], [80, -60], [-80, -60], [0, 0]]) {
                    const drawn = geometry.between({x, y}, {x: x + dx, y: y + dy});
                    const at = labels.placeBeside({x, y}, size, drawn, bounds);
                    const place = {left: at.x, top: at.y, right: at.x + size.width, bottom: at.y + size.height};
                    const isInside = at.x >= 0 && at.y >= 0 && place.right <= 400 && place.bottom <= 300;
                    worst = Math.max(worst, geometry.overlap(place, drawn), isInside ? 0 : Infinity);
                }
            return worst;
        }"""
    )
    assert worst == 0


def test_run_lengths_are_the_runtimes(page: Page) -> None:
    numbers = np.random.default_rng(0)
    for rows, columns in ((1, 1), (1, 7), (7, 1), (5, 9), (40, 31)):
        for share in (0.0, 0.3, 1.0):
            mask = numbers.random((rows, columns)) < share
            grid = {"rows": rows, "columns": columns, "cells": mask.ravel().astype(int).tolist()}
            counts = page.evaluate("(grid) => masks.runLengths(grid)", grid)
            assert counts == run_lengths.encode(mask)
            cells = page.evaluate(
                "([counts, rows, columns]) => Array.from(masks.fromRunLengths(counts, rows, columns).cells)",
                [counts, rows, columns],
            )
            assert cells == mask.ravel().astype(int).tolist()


@pytest.mark.parametrize("image_wh", [(672, 672), (4000, 3001), (333, 1000), (7, 2000)])
def test_painted_masks_fit_their_image(page: Page, image_wh: tuple[int, int]) -> None:
    """The runtime takes a mask of the image's aspect ratio, up to a pixel's rounding."""
    width, height = image_wh
    region = page.evaluate(
        """([width, height]) => tools.TOOLS.find(({name}) => name === "brush").region(
            [p([[0, 0], [width, height]])], {width, height}, {brush: 20})""",
        [width, height],
    )
    mask = from_dict(region)
    assert isinstance(mask, Mask)
    mask._check_size(image_wh)
    assert mask.array[0, 0]
    assert mask.array[-1, -1]


def drawn(page: Page, tool: str, strokes: list[list[list[float]]]) -> Region:
    """Return the region of a tool's strokes, pooled as `SETTINGS` say, as the runtime reads it."""
    region = page.evaluate(
        """([name, strokes, settings]) => regions.withPool(
            tools.TOOLS.find((tool) => tool.name === name).region(
                strokes.map(p), {width: 40, height: 20}, {step: 1, tolerance: 2, brush: 3}), settings)""",
        [tool, strokes, SETTINGS],
    )
    return from_dict(json.loads(json.dumps(region)))


def test_the_json_of_each_kind_is_the_runtimes(page: Page) -> None:
    box = {"kind": "box", "xyxy": [1, 2, 9, 8], "pool": "gaussian"}
    other = {"kind": "box", "xyxy": [20, 3, 30, 9], "pool": "gaussian"}
    expected: dict[str, tuple[list[list[list[float]]], dict[str, Any]]] = {
        "box": ([[[9.2, 1.6], [0.8, 8.3]]], box),
        "boxes": ([[[1, 2], [9, 8]], [[30, 9], [20, 3]]], {"kind": "box_set", "boxes": [box, other]}),
        "polygon": ([[[1, 2]], [[9, 8]], [[3, 9.6]]], {"kind": "polygon", "points": [[1, 2], [9, 8], [3, 10]]}),
        "trace": ([[[1, 2], [1.2, 2], [5, 6]]], {"kind": "trace", "points": [[1, 2], [5, 6]], "pool": "attention"}),
        "point": ([[[1.4, 2.6]]], {"kind": "point", "x": 1, "y": 3}),
    }
    for tool, (strokes, region) in expected.items():
        assert to_dict(drawn(page, tool, strokes)) == to_dict(from_dict(region))
    mask = drawn(page, "brush", [[[5, 5], [20, 5]]])
    assert isinstance(mask, Mask)
    assert mask.array[4].tolist() == [2 <= column <= 22 for column in range(40)]
    whole = page.evaluate("(settings) => regions.withPool({kind: 'whole_image'}, settings)", SETTINGS)
    assert from_dict(whole) == WholeImage("mean")
    assert isinstance(drawn(page, "boxes", expected["boxes"][0]), BoxSet)


def test_strokes_that_draw_nothing_are_no_region(page: Page) -> None:
    nothing = {
        "select": [[[1, 1]]],
        "box": [[[1, 1], [1.3, 9]]],
        "boxes": [],
        "polygon": [[[1, 1]], [[2, 2]]],
        "brush": [],
        "trace": [[[1, 1]]],
        "point": [],
    }
    for tool, strokes in nothing.items():
        region = page.evaluate(
            """([name, strokes]) => tools.TOOLS.find((tool) => tool.name === name).region(
                strokes.map(p), {width: 40, height: 20}, {step: 1, tolerance: 2, brush: 3})""",
            [tool, strokes],
        )
        assert region is None, tool
    assert set(nothing) == set(page.evaluate("tools.TOOLS.map(({name}) => name)"))


def test_history_goes_back_and_forth(page: Page) -> None:
    states = page.evaluate(
        """() => {
            const states = new past.History(0);
            const seen = [];
            const see = () => seen.push([states.present, states.canUndo, states.canRedo]);
            for (const step of [() => states.undo(), () => states.push(1), () => states.push(2), () => states.undo(),
                                () => states.redo(), () => states.undo(), () => states.push(3), () => states.redo()]) {
                step();
                see();
            }
            return seen;
        }"""
    )
    assert states == [
        [0, False, False],
        [1, True, False],
        [2, True, False],
        [1, True, True],
        [2, True, False],
        [1, True, True],
        [3, True, False],
        [3, True, False],
    ]


def test_the_latest_job_wins(page: Page) -> None:
    """Of five jobs asked for while one runs, only the last runs after it."""
    ran = page.evaluate(
        """async () => {
            const {Latest} = await import("/page/api.js");
            const ran = [];
            let end;
            const latest = new Latest((job) => {
                ran.push(job);
                return new Promise((resolve) => { end = resolve; });
            });
            const all = latest.ask(0);
            for (const job of [1, 2, 3, 4, 5]) latest.ask(job);
            end();
            await null;
            await null;
            end();
            await all;
            return ran;
        }"""
    )
    assert ran == [0, 5]
