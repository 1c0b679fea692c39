from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from runtime.batch.region_files import RegionEntry, read_regions
from runtime.errors import RegionError

BOX = {"kind": "box", "xyxy": [1, 2, 3, 4]}
SUPERVISION = """[
    {"x_min": 1.0, "y_min": 2.0, "x_max": 30.0, "y_max": 40.5, "class_id": 1, "confidence": 0.5, "tracker_id": 7,
     "class_name": "cat", "image": "a.jpg"},
    {"x_min": 1.0, "y_min": 2.0, "x_max": 3.0, "y_max": 4.0, "class_id": "", "confidence": "", "tracker_id": "",
     "image": "b.jpg"}
]"""
"""As supervision's JSONSink writes them with custom_data={"image": ...}; its CSVSink's are in `CSV`."""
CSV = """x_min,y_min,x_max,y_max,class_id,confidence,tracker_id,class_name,image
1.0,2.0,30.0,40.5,1,0.5,7,cat,a.jpg
1.0,2.0,3.0,4.0,,,,,b.jpg
"""
FROM_SUPERVISION = [
    RegionEntry(
        "a.jpg",
        [
            {
                "x_min": 1.0, "y_min": 2.0, "x_max": 30.0, "y_max": 40.5, "class_id": 1, "confidence": 0.5,
                "tracker_id": 7, "class_name": "cat",
            }
        ],
    ),
    RegionEntry("b.jpg", [{"x_min": 1.0, "y_min": 2.0, "x_max": 3.0, "y_max": 4.0}]),
]  # fmt: skip


def read(folder: Path, name: str, content: str | bytes) -> list[RegionEntry]:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return list(read_regions(file))


def table(folder: Path, rows: list[dict[str, Any]]) -> list[RegionEntry]:
    parquet.write_table(pa.Table.from_pylist(rows), folder / "regions.parquet")
    return list(read_regions(folder / "regions.parquet"))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps([BOX, [1, 2, 3, 4]]),
        "\ufeff  " + json.dumps([BOX, [1, 2, 3, 4]]),
    ],
)
def test_a_json_list_that_names_no_images_is_of_every_image(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, "regions.json", text) == [RegionEntry(None, [BOX, [1, 2, 3, 4]])]


@pytest.mark.parametrize("value", [BOX, {"boxes": [[1, 2, 3, 4]], "labels": ["cat"]}])
def test_an_object_that_is_one_images_regions_is_of_every_image(tmp_path: Path, value: object) -> None:
    assert read(tmp_path, "regions.json", json.dumps(value)) == [RegionEntry(None, value)]


def test_an_empty_list_is_of_every_image(tmp_path: Path) -> None:
    assert read(tmp_path, "regions.json", "[]") == [RegionEntry(None, [])]


def test_supervisions_sinks_are_read_by_image(tmp_path: Path) -> None:
    assert read(tmp_path, "found.json", SUPERVISION) == FROM_SUPERVISION
    assert read(tmp_path, "found.csv", CSV) == FROM_SUPERVISION


def test_an_object_may_hold_each_images_detections(tmp_path: Path) -> None:
    detections = {"xyxy": [[1, 2, 3, 4]], "class_id": [3]}
    assert read(tmp_path, "found.json", json.dumps({"a.jpg": detections, "b.jpg": [BOX], "c.jpg": BOX})) == [
        RegionEntry("a.jpg", detections),
        RegionEntry("b.jpg", [BOX]),
        RegionEntry("c.jpg", [BOX]),
    ]


def test_a_data_set_gives_each_image_its_annotations_with_the_names_of_their_classes(tmp_path: Path) -> None:
    data = {
        "annotations": [
            {"id": 11, "image_id": 2, "category_id": 5, "bbox": [1, 2, 3, 4]},
            {"id": 12, "image_id": 1, "category_id": 6, "bbox": [1, 2, 3, 4]},
        ],
        "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}, {"id": 3, "file_name": "c.jpg"}],
        "categories": [{"id": 5, "name": "cat"}],
    }
    assert read(tmp_path, "instances.json", json.dumps(data)) == [
        RegionEntry("a.jpg", []),
        RegionEntry("b.jpg", []),
        RegionEntry("c.jpg", []),
        RegionEntry("b.jpg", [{"category_name": "cat", **data["annotations"][0]}]),
        RegionEntry("a.jpg", [data["annotations"][1]]),
    ]


def test_lines_hold_a_region_or_all_of_an_image(tmp_path: Path) -> None:
    lines = [
        {"image": "a.jpg", "regions": [BOX, BOX]},
        {"file_name": "b.jpg", "xyxy": [1, 2, 3, 4], "id": 9},
        {"image": "c.jpg", "detections": {"xyxy": [[1, 2, 3, 4]]}},
        {"image": "d.jpg", "boxes": [[1, 2, 3, 4]], "scores": [0.5]},
        {"image": "e.jpg"},
    ]
    assert read(tmp_path, "regions.jsonl", "\n\n".join(map(json.dumps, lines))) == [
        RegionEntry("a.jpg", [BOX, BOX]),
        RegionEntry("b.jpg", [{"xyxy": [1, 2, 3, 4], "id": 9}]),
        RegionEntry("c.jpg", {"xyxy": [[1, 2, 3, 4]]}),
        RegionEntry("d.jpg", {"boxes": [[1, 2, 3, 4]], "scores": [0.5]}),
        RegionEntry("e.jpg", []),
    ]


def test_tables_hold_regions_as_json_texts_as_lists_and_as_columns(tmp_path: Path) -> None:
    text = json.dumps(BOX)
    assert table(tmp_path, [{"image": "a.jpg", "region": text, "id": "7", "score": 0.9, "text": "a cat"}]) == [
        RegionEntry("a.jpg", [{**BOX, "id": "7"}])
    ]
    assert table(tmp_path, [{"image": "a.jpg", "regions": [text, text]}]) == [RegionEntry("a.jpg", [BOX, BOX])]
    point = {"kind": "point", "x": 1.0, "y": 2.0}
    assert table(tmp_path, [{"image": "a.jpg", "regions": [{**BOX, "xyxy": [1.0, 2.0, 3.0, 4.0]}, point]}]) == [
        RegionEntry("a.jpg", [{**BOX, "xyxy": [1.0, 2.0, 3.0, 4.0]}, point])
    ]
    assert table(tmp_path, [{"image": "a.jpg", "bbox": [1.0, 2.0, 3.0, 4.0], "id": None}]) == [
        RegionEntry("a.jpg", [{"bbox": [1.0, 2.0, 3.0, 4.0]}])
    ]


def test_results_in_cocos_form_name_their_images_by_number(tmp_path: Path) -> None:
    rows = [{"image_id": 42, "category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}]
    assert read(tmp_path, "results.json", json.dumps(rows)) == [
        RegionEntry("42", [{"category_id": 5, "bbox": [1, 2, 3, 4], "score": 0.5}])
    ]


def test_rows_of_results_that_tell_only_an_error_have_no_region(tmp_path: Path) -> None:
    row = {"image": "a.jpg", "index": None, "region": None, "text": None, "error": "a.jpg: no such file"}
    assert read(tmp_path, "captions.jsonl", json.dumps(row)) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("regions.xml", "", "expected regions in a file that ends in .json, .jsonl, .ndjson, .csv, .parquet"),
        ("regions.json", "nonsense", "expected a JSON list or object"),
        ("regions.json", "[1, ", "expected JSON"),
        ("regions.json", '[{"kind": "box", "xyxy": [NaN, 1, 2, 3]}]', "expected JSON"),
        ("regions.json", '{"a.jpg": 5}', "an object of the regions of each image by its name, got int as 'a.jpg'"),
        (
            "regions.json",
            '[{"image": "a.jpg", "bbox": [1, 2, 3, 4]}, {"bbox": [1, 2, 3, 4]}]',
            "row 1: expected",
        ),
        ("regions.json", '{"annotations": [5]}', "annotations: expected a list of dictionaries"),
        ("regions.json", '{"annotations": [{"image_id": 4}], "images": []}', "row 0: no image has the id 4"),
        ("regions.jsonl", '{"image": "a.jpg"}\n{"image"', "line 2: expected JSON"),
        ("regions.jsonl", "[1, 2]", "line 1: expected an object with the name of an image"),
        ("regions.jsonl", '{"xyxy": [1, 2, 3, 4]}', 'line 1: .* as "image", got xyxy'),
        ("regions.jsonl", '{"image": 5}', 'as "image", got image'),
        ("regions.csv", "image,x_min\na.jpg,1,2\n", "row 0: expected as many values"),
        ("regions.csv", b"image\n\xff\n", "expected text in UTF-8"),
        ("regions.parquet", "PAR0", "expected Parquet"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(RegionError, match=message) as caught:
        read(tmp_path, name, content)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RegionError, match="lost.jsonl: no such file"):
        list(read_regions(tmp_path / "lost.jsonl"))
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(RegionError, match="folder.csv: cannot be read: Is a directory"):
        list(read_regions(tmp_path / "folder.csv"))
