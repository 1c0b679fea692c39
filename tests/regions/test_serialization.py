"""Regions as JSON and back: hand-written documents, exact round trips, and one clear error for everything else."""

from __future__ import annotations

import doctest
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema_rs import Draft202012Validator

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
from runtime.regions import (
    PolygonSet,
    from_dict,
    regions_from_json,
    regions_from_list,
    run_lengths,
    serialization,
    to_dict,
)
from runtime.regions import boxes as boxes_module
from runtime.regions.json_schema import region_schemas
from runtime.regions.published import PublishedBox, PublishedTrace
from runtime.regions.serialization import kind_of

DOCUMENTS: list[tuple[Region, dict[str, Any]]] = [
    (Box(1, 2, 3.5, 4), {"kind": "box", "xyxy": [1.0, 2.0, 3.5, 4.0], "pool": "mean", "variance": 0.5}),
    (
        BoxSet([Box(1, 2, 3, 4, "gaussian", 0.25), PublishedBox(5, 6, 7, 8, rounding="corners")]),
        {
            "kind": "box_set",
            "boxes": [
                {"kind": "box", "xyxy": [1.0, 2.0, 3.0, 4.0], "pool": "gaussian", "variance": 0.25},
                {
                    **{"kind": "published_box", "x": 5.0, "y": 6.0, "width": 7.0, "height": 8.0, "pool": "mean"},
                    **{"variance": 0.5, "frame": "crop", "rounding": "corners"},
                },
            ],
        },
    ),
    (Crop(1, 2, 3, 4), {"kind": "crop", "xyxy": [1.0, 2.0, 3.0, 4.0]}),
    # down each column, from the left: two pixels outside, one inside; one inside, two outside
    (Mask([[0, 1], [0, 0], [1, 0]]), {"kind": "mask", "size": [3, 2], "counts": [2, 2, 2]}),
    (Mask([[1, 0]]), {"kind": "mask", "size": [1, 2], "counts": [0, 1, 1]}),
    (Polygon([(0, 0), (1, 2), (3, 4)]), {"kind": "polygon", "points": [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]}),
    (
        PolygonSet([[(0, 0), (1, 2), (3, 4)]]),
        {"kind": "polygon_set", "polygons": [{"kind": "polygon", "points": [[0.0, 0.0], [1.0, 2.0], [3.0, 4.0]]}]},
    ),
    (
        Trace([{"x": 1, "y": 2, "t": 3}], pool="attention"),
        {"kind": "trace", "points": [[1.0, 2.0]], "pool": "attention", "is_normalized": False},
    ),
    (
        Trace.normalized([(0.1, 0.2)]),
        {"kind": "trace", "points": [[0.1, 0.2]], "pool": "count", "is_normalized": True},
    ),
    (Point(1, 2), {"kind": "point", "x": 1.0, "y": 2.0}),
    (Patch(3, 4), {"kind": "patch", "row": 3, "column": 4}),
    (WholeImage(), {"kind": "whole_image", "pool": "cls", "variance": 1.0}),
    (Register(0), {"kind": "register", "index": 0}),
    (AttentionHead(5), {"kind": "attention_head", "index": 5}),
    (
        Box.published(1, 2, 3, 4, frame="image"),
        {
            **{"kind": "published_box", "x": 1.0, "y": 2.0, "width": 3.0, "height": 4.0, "pool": "mean"},
            **{"variance": 0.5, "frame": "image", "rounding": "size"},
        },
    ),
    (Trace.published([(0.5, 1)]), {"kind": "published_trace", "points": [[0.5, 1.0]], "pool": "count"}),
]


def assert_same(one: Region, other: Region) -> None:
    if isinstance(one, Mask):
        assert isinstance(other, Mask)
        np.testing.assert_array_equal(one.array, other.array, strict=True)
    else:
        assert one == other


def through_json(region: Region) -> Region:
    return from_dict(json.loads(json.dumps(to_dict(region), allow_nan=False)))


@pytest.mark.parametrize(("region", "document"), DOCUMENTS)
def test_every_kind_has_the_form_written_here(region: Region, document: dict[str, Any]) -> None:
    assert to_dict(region) == document
    assert list(to_dict(region)) == list(document), "in this order"
    assert_same(from_dict(document), region)


def test_no_kind_is_left_out() -> None:
    assert {document["kind"] for _, document in DOCUMENTS} == set(serialization.FORMS)


@pytest.mark.parametrize("document", [document for _, document in DOCUMENTS])
def test_the_schema_of_a_kind_takes_what_is_written_and_no_other(document: dict[str, Any]) -> None:
    schema = region_schemas()[document["kind"]]
    validator = Draft202012Validator(schema)
    assert validator.is_valid(document)
    required = {name: document[name] for name in schema["required"]}
    assert validator.is_valid(required)
    from_dict(required)
    for name in required:
        assert not validator.is_valid({key: value for key, value in document.items() if key != name})
    for name in document:
        assert not validator.is_valid({**document, name: {"of": "another type"}})


@pytest.mark.parametrize(
    ("document", "region"),
    [
        ({"kind": "box", "xyxy": [1, 2, 3, 4]}, Box(1, 2, 3, 4)),
        ({"xyxy": (1, 2, 3, 4), "pool": "attention", "kind": "box"}, Box(1, 2, 3, 4, "attention")),
        ({"kind": "box_set", "boxes": [{"kind": "box", "xyxy": [1, 2, 3, 4]}]}, BoxSet([(1, 2, 3, 4)])),
        ({"kind": "whole_image"}, WholeImage()),
        ({"kind": "whole_image", "pool": "gaussian"}, WholeImage("gaussian")),
        ({"kind": "trace", "points": [[1, 2]]}, Trace([(1, 2)])),
        ({"kind": "trace", "points": [[0.5, 0]], "is_normalized": True}, Trace.normalized([(0.5, 0)])),
        ({"kind": "published_trace", "points": [[0.5, 0]]}, Trace.published([(0.5, 0)])),
        ({"kind": "published_box", "x": 1, "y": 2, "width": 3, "height": 4}, Box.published(1, 2, 3, 4)),
        ({"kind": "patch", "row": 3.0, "column": 4}, Patch(3, 4)),
        # COCO's compressed string, as pycocotools writes it: 2 outside, 2 inside, 2 outside
        ({"kind": "mask", "size": [3, 2], "counts": "222"}, Mask([[0, 1], [0, 0], [1, 0]])),
        # runs of no length are allowed, as by pycocotools
        ({"kind": "mask", "size": [1, 3], "counts": [1, 0, 1, 1]}, Mask([[0, 0, 1]])),
    ],
)
def test_documents_may_be_short(document: dict[str, Any], region: Region) -> None:
    assert_same(from_dict(document), region)


finite = st.floats(allow_nan=False, allow_infinity=False)
variances = st.floats(0, allow_infinity=False)
pools = st.sampled_from(["mean", "gaussian", "attention"])
counting = st.sampled_from(["count", "attention"])
whole_numbers = st.integers(0, 2**53)
points = st.tuples(finite, finite)
corners = st.tuples(finite, finite, finite, finite).filter(lambda box: box[0] < box[2] and box[1] < box[3])
positive = st.floats(0, allow_infinity=False)
boxes = st.builds(lambda xyxy, **how: Box(*xyxy, **how), corners, pool=pools, variance=variances)
published_boxes = st.builds(
    PublishedBox,
    *[positive] * 4,
    pools,
    variances,
    st.sampled_from(["crop", "image"]),
    st.sampled_from(["size", "corners"]),
)
masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda wh: st.lists(st.booleans(), min_size=wh[0] * wh[1], max_size=wh[0] * wh[1]).map(
        lambda pixels: np.array(pixels).reshape(wh)
    )
)
REGIONS: dict[str, st.SearchStrategy[Region]] = {
    "box": boxes,
    "box_set": st.builds(BoxSet, st.lists(boxes | published_boxes, min_size=1, max_size=4)),
    "crop": st.builds(lambda xyxy: Crop(*xyxy), corners),
    "mask": st.builds(Mask, masks.filter(lambda mask: mask.any())),
    "polygon": st.builds(Polygon, st.lists(points, min_size=3, max_size=6)),
    "polygon_set": st.builds(PolygonSet, st.lists(st.lists(points, min_size=3, max_size=5), min_size=1, max_size=3)),
    "trace": st.builds(Trace, st.lists(points, min_size=1, max_size=6), counting, st.booleans()),
    "point": st.builds(Point, finite, finite),
    "patch": st.builds(Patch, whole_numbers, whole_numbers),
    "whole_image": st.builds(WholeImage, st.sampled_from(["cls", "mean", "gaussian", "attention"]), variances),
    "register": st.builds(Register, whole_numbers),
    "attention_head": st.builds(AttentionHead, whole_numbers),
    "published_box": published_boxes,
    "published_trace": st.builds(PublishedTrace, st.lists(points, min_size=1, max_size=6), counting),
}


@pytest.mark.parametrize("kind", sorted(serialization.FORMS))
@settings(deadline=None)
@given(st.data())
def test_a_region_comes_back_exactly_as_it_was(kind: str, data: st.DataObject) -> None:
    region = data.draw(REGIONS[kind])
    assert to_dict(region)["kind"] == kind_of(region) == kind
    assert_same(through_json(region), region)


@settings(deadline=None)
@given(masks)
def test_runs_are_those_of_pycocotools(mask: np.ndarray[Any, Any]) -> None:
    coco = pytest.importorskip("pycocotools.mask")
    compressed = coco.encode(np.asfortranarray(mask, np.uint8))
    height, width = compressed["size"]
    runs = run_lengths.encode(mask)
    assert run_lengths.parse_compressed(compressed["counts"].decode()) == runs
    assert coco.frPyObjects({"size": [height, width], "counts": runs}, height, width) == compressed
    np.testing.assert_array_equal(run_lengths.decode(runs, height, width), mask, strict=True)


def test_a_large_mask_is_a_short_document() -> None:
    array = np.zeros((1080, 1920), bool)
    array[100:900, 300:1500] = True
    document = to_dict(Mask(array))
    assert len(json.dumps(document)) < 20_000
    np.testing.assert_array_equal(from_dict(document).array, array)  # type: ignore[attr-defined]


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


NAN, INFINITY = math.nan, math.inf
BOX = {"kind": "box", "xyxy": [1, 2, 3, 4]}
KINDS = (
    "box, box_set, crop, mask, polygon, polygon_set, trace, point, patch, whole_image, register, attention_head, "
    "published_box or published_trace"
)


@pytest.mark.parametrize(
    ("document", "message"),
    [
        # no region
        (None, 'region: expected an object with a "kind", got NoneType'),
        ([], 'region: expected an object with a "kind", got list'),
        ("box", "region: expected an object with a \"kind\", got 'box'"),
        ({}, f'region: expected as "kind" {KINDS}, got NoneType'),
        ({"kind": "circle"}, f"region: expected as \"kind\" {KINDS}, got 'circle'"),
        ({"kind": "Box"}, f"region: expected as \"kind\" {KINDS}, got 'Box'"),
        ({"kind": ["box"]}, f'region: expected as "kind" {KINDS}, got list'),
        ({"kind": nested(2000)}, f'region: expected as "kind" {KINDS}, got list'),
        # keys
        ({"kind": "box"}, "box: expected xyxy, got no xyxy"),
        ({"kind": "published_box", "x": 1, "y": 2}, "published_box: expected x, y, width and height, got no width"),
        ({**BOX, "pol": "mean"}, "box: expected xyxy, pool and variance, got 'pol'"),
        ({"kind": "box", "x1": 1, "y1": 2, "x2": 3, "y2": 4}, "box: expected xyxy, pool and variance, got 'x1'"),
        ({**BOX, "x" * 10**6: 1}, "box: expected xyxy, pool and variance, got 'xxxxxxxxxxxx...xxxxxxxxxxxxx'"),
        (BOX | {7: 1}, "box: expected xyxy, pool and variance, got 7"),
        # numbers
        ({"kind": "box", "xyxy": [1, 2, 3]}, "box xyxy: expected a list of 4 numbers, got 3"),
        ({"kind": "box", "xyxy": {"x1": 1}}, "box xyxy: expected a list of 4 numbers, got dict"),
        ({"kind": "box", "xyxy": "1,2,3,4"}, "box xyxy: expected a list of 4 numbers, got '1,2,3,4'"),
        ({"kind": "box", "xyxy": [1, 2, "3", 4]}, "box xyxy[2]: expected a number, got '3'"),
        ({"kind": "box", "xyxy": [1, 2, True, 4]}, "box xyxy[2]: expected a number, got True"),
        ({"kind": "box", "xyxy": [1, 2, None, 4]}, "box xyxy[2]: expected a number, got NoneType"),
        ({"kind": "box", "xyxy": [1, 2, nested(2000), 4]}, "box xyxy[2]: expected a number, got list"),
        ({"kind": "box", "xyxy": [1, 2, NAN, 4]}, "box xyxy[2]: expected a finite number, got nan"),
        ({"kind": "box", "xyxy": [-INFINITY, 2, 3, 4]}, "box xyxy[0]: expected a finite number, got -inf"),
        (
            {"kind": "point", "x": 10**400, "y": 0},
            "point x: expected a finite number, got an integer beyond 1e308",
        ),
        ({**BOX, "variance": False}, "box variance: expected a number, got False"),
        ({**BOX, "variance": -1}, "Box: expected a variance of at least 0, got -1.0"),
        ({"kind": "box", "xyxy": [3, 2, 1, 4]}, "expected x1 < x2 and y1 < y2"),
        ({"kind": "patch", "row": 1.5, "column": 0}, "patch row: expected a whole number from 0 on, got 1.5"),
        ({"kind": "patch", "row": True, "column": 0}, "patch row: expected a number, got True"),
        ({"kind": "register", "index": -1}, "register index: expected a whole number from 0 on, got -1"),
        # words and truth
        ({**BOX, "pool": "max"}, 'box pool: expected "mean", "gaussian" or "attention", got \'max\''),
        ({**BOX, "pool": None}, 'box pool: expected "mean", "gaussian" or "attention", got NoneType'),
        ({**BOX, "pool": 10**5000}, 'box pool: expected "mean", "gaussian" or "attention", got int'),
        (
            {"kind": "published_box", "x": 1, "y": 2, "width": 3, "height": 4, "rounding": "up"},
            'published_box rounding: expected "size", "corners" or "corners_without_end", got \'up\'',
        ),
        (
            {"kind": "trace", "points": [[1, 2]], "is_normalized": 1},
            "trace is_normalized: expected true or false, got 1",
        ),
        # points
        ({"kind": "polygon", "points": 5}, "polygon points: expected a list, got 5"),
        ({"kind": "polygon", "points": "1,2"}, "polygon points: expected a list, got '1,2'"),
        ({"kind": "trace", "points": [[1, 2], [3]]}, "trace points[1]: expected a list of 2 numbers, got 1"),
        ({"kind": "trace", "points": [[1, NAN]]}, "trace points[0][1]: expected a finite number, got nan"),
        ({"kind": "trace", "points": []}, "Trace: expected at least one point, got none"),
        ({"kind": "polygon", "points": [[1, 2]]}, "Polygon: expected at least three points, got 1"),
        # boxes of a set
        ({"kind": "box_set", "boxes": []}, "BoxSet: expected at least one box"),
        ({"kind": "box_set", "boxes": BOX}, "box_set boxes: expected a list, got dict"),
        (
            {"kind": "box_set", "boxes": [BOX, [1, 2, 3, 4]]},
            'box_set boxes[1]: box: expected an object with a "kind", got list',
        ),
        (
            {"kind": "box_set", "boxes": [BOX, {"kind": "box", "xyxy": []}]},
            "box_set boxes[1]: box xyxy: expected a list of 4 numbers, got 0",
        ),
        (
            {"kind": "box_set", "boxes": [{"kind": "box_set", "boxes": [BOX]}]},
            "box_set boxes[0]: box: expected as \"kind\" box or published_box, got 'box_set'",
        ),
        # masks
        ({"kind": "mask", "size": [2], "counts": [4]}, "mask size: expected a list of 2 numbers, got 1"),
        (
            {"kind": "mask", "size": [0, 5], "counts": []},
            "mask size: expected a height and width of 1 to 268435456 pixels",
        ),
        ({"kind": "mask", "size": [2, -2], "counts": [4]}, "mask size: .* pixels, got 2 and -2"),
        ({"kind": "mask", "size": [2, 2], "counts": 4}, "mask counts: expected a list, got 4"),
        ({"kind": "mask", "size": [2, 2], "counts": [1, 2.0, 1]}, "mask counts: expected whole numbers from 0 to"),
        ({"kind": "mask", "size": [2, 2], "counts": [3, True]}, "mask counts: expected whole numbers from 0 to"),
        ({"kind": "mask", "size": [2, 2], "counts": [5, -1]}, "mask counts: .* from 0 to 268435456, got -1"),
        ({"kind": "mask", "size": [2, 2], "counts": [10**5000]}, "mask counts: .* from 0 to 268435456, got int"),
        (
            {"kind": "mask", "size": [2, 2], "counts": [1, 2]},
            "mask counts: expected runs that sum to 4 (2 x 2 pixels), got 3",
        ),
        ({"kind": "mask", "size": [2, 2], "counts": []}, "mask counts: expected runs that sum to 4 .*, got 0"),
        (
            {"kind": "mask", "size": [2**14, 2**15], "counts": [0, 2**28, 2**28]},
            "mask counts: expected at most 268435456 pixels, got 32768 x 16384",
        ),
        ({"kind": "mask", "size": [10**300, 1], "counts": [1]}, "mask size: .* pixels, got 1e+300 and 1"),
        ({"kind": "mask", "size": [1.5, 2], "counts": [3]}, "mask size: expected a whole number from 0 on, got 1.5"),
        ({"kind": "mask", "size": [2, 2], "counts": [4]}, "Mask: it is empty"),
        ({"kind": "mask", "size": [2, 2], "counts": "1 2"}, "mask counts: .*compressed runs, got ' ' at character 1"),
        ({"kind": "mask", "size": [2, 2], "counts": "1é"}, "mask counts: .*compressed runs, got 'é' at character 1"),
        ({"kind": "mask", "size": [2, 2], "counts": "1P"}, "mask counts: .*a string that ends within a run"),
        ({"kind": "mask", "size": [2, 2], "counts": "o" * 10**6}, "mask counts: .*got 'o' at character 7"),
        ({"kind": "mask", "size": [2, 2], "counts": "O5"}, "mask counts: expected runs of at least 0 pixels, got -1"),
    ],
)
def test_what_is_no_region_is_refused_in_one_clear_line(document: Any, message: str) -> None:
    with pytest.raises(RegionError) as caught:
        from_dict(document)
    assert len(str(caught.value)) < 300
    assert "\n" not in str(caught.value)
    start, *rest = message.split(".*")
    assert start in str(caught.value)
    assert all(part in str(caught.value) for part in rest)


def test_nothing_is_allocated_for_runs_that_do_not_fill_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was allocated")

    monkeypatch.setattr(np, "repeat", refuse)
    with pytest.raises(RegionError, match="expected runs that sum to 268435456"):
        from_dict({"kind": "mask", "size": [2**14, 2**14], "counts": [1, 2]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "regions: expected JSON: Expecting value: line 1 column 1"),
        ("[{]", "regions: expected JSON: "),
        (b"\xff\xfe\xff", "regions: expected JSON: "),
        ("[" * 100_000, "regions: expected JSON, got some that is nested too deeply"),
        ("9" * 5000, "regions: expected "),
        ("{}", "regions: expected a list, got dict"),
        ("null", "regions: expected a list, got NoneType"),
        ('[{"kind": "whole_image"}, 5]', 'region 1: region: expected an object with a "kind", got 5'),
        ('[{"kind": "point", "x": NaN, "y": 1}]', "region 0: point x: expected a finite number, got nan"),
        ('[{"kind": "point", "x": 1e999, "y": 1}]', "region 0: point x: expected a finite number, got inf"),
    ],
)
def test_lists_that_are_none_are_refused(text: str | bytes, message: str) -> None:
    with pytest.raises(RegionError) as caught:
        regions_from_json(text)
    assert message in str(caught.value)


def test_lists_keep_their_order() -> None:
    text = json.dumps([{"kind": "point", "x": 1, "y": 2}, {"kind": "whole_image"}])
    assert regions_from_json(text) == regions_from_json(text.encode()) == [Point(1, 2), WholeImage()]
    assert regions_from_list([]) == []


def test_classes_of_others_are_not_written() -> None:
    class Disc:
        def weights(self, canvas: object) -> None: ...

    class Box(boxes_module.Box):
        """Another class of the same name."""

    assert kind_of(Disc()) == "disc"  # type: ignore[arg-type]
    for region in (Disc(), Box(1, 2, 3, 4)):
        with pytest.raises(RegionError, match=f"{type(region).__name__} cannot be written as JSON: expected box, "):
            to_dict(region)  # type: ignore[arg-type]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(deadline=None)
@given(st.data(), json_values)
def test_a_document_with_anything_in_it_is_a_region_or_a_region_error(data: st.DataObject, value: Any) -> None:
    document = dict(data.draw(st.sampled_from([document for _, document in DOCUMENTS])))
    key = data.draw(st.sampled_from(sorted(document)) | st.text(max_size=5))
    assume(key != "kind")
    document[key] = value
    try:
        region = from_dict(document)
    except RegionError:
        return
    assert_same(through_json(region), region)


@settings(deadline=None)
@given(st.text(alphabet="".join(map(chr, range(46, 113))), max_size=20))
def test_any_string_of_runs_is_a_mask_or_a_region_error(text: str) -> None:
    try:
        counts = run_lengths.parse_compressed(text)
        run_lengths.decode(counts, 1, sum(counts))
    except RegionError:
        return


@pytest.mark.parametrize("module", [serialization, run_lengths])
def test_the_examples_say_what_they_print(module: Any) -> None:
    tried = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.ELLIPSIS)
    assert tried.failed == 0
    assert tried.attempted >= 3
