"""Ground truth: its file formats, the regions made of its numbers, and where its images lie."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.scoring.annotation_files import GroundTruthError, parse_members
from benchmarks.scoring.disk_mapping import DiskMapping
from benchmarks.scoring.ground_truth import (
    READERS,
    AnnotatedImage,
    BoxAnnotation,
    Item,
    read_captions,
    read_dense,
    read_parts,
    read_sets,
    read_traces,
)
from benchmarks.scoring.image_files import ImageFiles, find_images, missing_images
from benchmarks.scoring.region_forms import RegionForm
from runtime import Box, BoxSet, PatchcaptionError, Trace, WholeImage

EXACT = RegionForm()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        file = tmp_path / "truth.json"
        file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        return file

    return write


def test_coco_captions_of_an_image_are_its_references(write: Any) -> None:
    file = write(
        {
            "info": {"year": 2014},
            "images": [{"id": 9, "file_name": "COCO_val2014_000000000009.jpg"}, {"id": 3}, {"id": 4}],
            "annotations": [
                {"id": 1, "image_id": 3, "caption": "a cat"},
                {"id": 2, "image_id": 9, "caption": "a dog"},
                {"id": 3, "image_id": 3, "caption": "A cat on a mat. "},
            ],
        }
    )
    assert read_captions(file, EXACT) == [
        AnnotatedImage("9", (Item(WholeImage(), ("a dog",)),), "COCO_val2014_000000000009.jpg"),
        AnnotatedImage("3", (Item(WholeImage(), ("a cat", "A cat on a mat.")),)),
    ]


def test_captions_may_stand_under_their_image_id(write: Any) -> None:
    file = write({"12": ["a cat", "a mat"], "5": ["a dog"], "6": []})
    assert read_captions(file, RegionForm(pool="gaussian", variance=2)) == [
        AnnotatedImage("12", (Item(WholeImage("gaussian", 2), ("a cat", "a mat")),)),
        AnnotatedImage("5", (Item(WholeImage("gaussian", 2), ("a dog",)),)),
    ]


BOXES = {
    "7": {"a cat": [[1, 2, 11, 22], [30, 2, 41, 22]], "a dog": [[5, 5, 9, 9]], "a grey cat": [[30, 2, 41, 22]]},
    "8": {"two hats": [[1, 2, 3, 4]]},
}


def test_dense_captions_every_box_by_itself_and_joins_captions_of_the_same_box(write: Any) -> None:
    seven, eight = read_dense(write(BOXES), EXACT)
    assert seven == AnnotatedImage(
        "7",
        (
            Item(Box(1, 2, 11, 22), ("a cat",)),
            Item(Box(30, 2, 41, 22), ("a cat", "a grey cat")),
            Item(Box(5, 5, 9, 9), ("a dog",)),
        ),
        annotations=(
            BoxAnnotation((1, 2, 11, 22), "a cat", 0),
            BoxAnnotation((30, 2, 41, 22), "a cat", 1),
            BoxAnnotation((5, 5, 9, 9), "a dog", 2),
            BoxAnnotation((30, 2, 41, 22), "a grey cat", 1),
        ),
    )
    assert eight.items == (Item(Box(1, 2, 3, 4), ("two hats",)),)


def test_dense_takes_coco_annotations_with_boxes(write: Any) -> None:
    annotations = [
        {"image_id": 7, "caption": "a cat", "bbox": [1, 2, 11, 22]},
        {"image_id": 7, "caption": "a tom", "bbox": [1, 2, 11, 22]},
        {"image_id": 7, "caption": "a dog", "bbox": [5, 5, 9, 9]},
    ]
    (image,) = read_dense(write({"images": [{"id": 7, "file_name": "7.jpg"}], "annotations": annotations}), EXACT)
    assert image.file_name == "7.jpg"
    assert image.items == (Item(Box(1, 2, 11, 22), ("a cat", "a tom")), Item(Box(5, 5, 9, 9), ("a dog",)))


def test_every_annotated_box_has_its_caption_and_corners_whatever_the_form(write: Any) -> None:
    file = write({"7": {"a cat\na tom": [[10, 20, 30, 50], [10, 20, 10, 50]], "a dog": [[10, 20, 30, 50]]}})
    for form, item in ((RegionForm(), 0), (RegionForm("published"), 2)):
        (image,) = read_dense(file, form)
        assert [(one.caption, one.box, one.item) for one in image.annotations] == [
            ("a cat\na tom", (10, 20, 30, 50), 0),
            ("a cat\na tom", (10, 20, 11, 50), 1),
            ("a dog", (10, 20, 30, 50), item),
        ]
        assert image.items[0].references[:2] == ("a cat", "a tom")
        assert image.items[item].references[-1] == "a dog"
    (image,) = read_dense(file, RegionForm(box_format="xywh"))
    assert image.annotations[1].box == (10, 20, 20, 70)


@pytest.mark.parametrize("form", [RegionForm(), RegionForm("published"), RegionForm(box_format="xywh")])
def test_dense_takes_the_region_descriptions_of_visual_genome(write: Any, form: RegionForm) -> None:
    region = {"region_id": 5, "image_id": 107, "x": 10, "y": 20, "width": 40, "height": 30, "phrase": "a cat"}
    (image,) = read_dense(write([{"id": 107, "regions": [region, region | {"width": 0, "phrase": "a pole"}]}]), form)
    assert image.id == "107"
    assert [(one.box, one.caption) for one in image.annotations] == [
        ((10, 20, 50, 50), "a cat"),
        ((10, 20, 11, 50), "a pole"),
    ]
    expected = Box.published(10, 20, 40, 30, frame="image") if form.form == "published" else Box(10, 20, 50, 50)
    assert image.items[0] == Item(expected, ("a cat",))


def test_captions_take_the_test_split_of_karpathy(write: Any) -> None:
    sentences = [{"raw": "A cat.", "tokens": ["a", "cat"]}, {"raw": "a tom"}]
    images = [
        {"filename": "COCO_val2014_000000000042.jpg", "cocoid": 42, "split": "test", "sentences": sentences},
        {"filename": "1007129816.jpg", "imgid": 3, "split": "test", "sentences": sentences[1:]},
        {"filename": "7.jpg", "split": "train", "sentences": sentences},
    ]
    assert read_captions(write({"dataset": "coco", "images": images}), EXACT) == [
        AnnotatedImage("42", (Item(WholeImage(), ("A cat.", "a tom")),), "COCO_val2014_000000000042.jpg"),
        AnnotatedImage("1007129816", (Item(WholeImage(), ("a tom",)),), "1007129816.jpg"),
    ]


@pytest.mark.parametrize("read", [read_dense, read_sets])
def test_boxes_that_fill_a_list_up_are_none(write: Any, read: Any) -> None:
    padding = [-1, -1, -1.0, -1]
    full = read(write({"7": {"a cat": [[1, 2, 11, 22], padding, padding], "a dog": [padding, [5, 5, 9, 9]]}}), EXACT)
    assert full == read(write({"7": {"a cat": [[1, 2, 11, 22]], "a dog": [[5, 5, 9, 9]]}}), EXACT)
    assert read(write({"7": {"a cat": [[-1, -1, 9, 9]]}}), EXACT)[0].items


def test_a_ground_truth_may_come_in_several_files(tmp_path: Path) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps({"7": {"a cat": [[1, 2, 11, 22]]}, "8": {"a hat": [[1, 2, 3, 4]]}}))
    second.write_text(json.dumps({"9": {"a bat": [[1, 2, 3, 4]]}, "7": {"a dog": [[5, 5, 9, 9], [1, 1, 2, 2]]}}))
    images = list(read_parts("dense", [first, second], EXACT).values())
    assert [image.id for image in images] == ["7", "8", "9"]
    assert [item.references[0] for item in images[0].items] == ["a cat", "a dog", "a dog"]
    assert [(one.caption, one.item) for one in images[0].annotations] == [("a cat", 0), ("a dog", 1), ("a dog", 2)]
    assert list(read_parts("dense", [first], EXACT).values()) == read_dense(first, EXACT)


def test_files_that_name_an_image_differently_are_refused(tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.json" for name in ("a", "b")]
    for path in paths:
        images = [{"id": 7, "file_name": f"{path.stem}.jpg"}]
        path.write_text(json.dumps({"images": images, "annotations": [{"image_id": 7, "caption": "a cat"}]}))
    with pytest.raises(GroundTruthError, match=r"b\.json: 7: expected the file name a\.jpg, .* got b\.jpg"):
        read_parts("captions", paths, EXACT)


def test_sets_put_the_boxes_of_a_caption_into_one_region(write: Any) -> None:
    seven, _ = read_sets(write(BOXES), EXACT)
    cats = BoxSet([Box(1, 2, 11, 22), Box(30, 2, 41, 22)])
    assert seven.items == (
        Item(cats, ("a cat",)),
        Item(BoxSet([Box(5, 5, 9, 9)]), ("a dog",)),
        Item(BoxSet([Box(30, 2, 41, 22)]), ("a grey cat",)),
    )


def test_captions_of_the_same_boxes_in_any_order_are_references_of_one_set(write: Any) -> None:
    one, other = [1, 2, 11, 22], [30, 2, 41, 22]
    (image,) = read_sets(write({"7": {"two cats": [one, other], "cats": [other, one]}}), EXACT)
    assert [item.references for item in image.items] == [("two cats", "cats")]


def test_the_published_form_scores_captions_of_the_same_boxes_by_themselves(write: Any) -> None:
    one, other = [1, 2, 11, 22], [30, 2, 41, 22]
    (image,) = read_sets(write({"7": {"two cats": [one, other], "cats": [other, one]}}), RegionForm("published"))
    assert [item.references for item in image.items] == [("two cats",), ("cats",)]
    (image,) = read_dense(write({"7": {"a cat": [one, other], "a tom": [one]}}), RegionForm("published"))
    assert [item.references for item in image.items] == [("a cat",), ("a cat",), ("a tom",)]
    assert [(one.caption, one.item) for one in image.annotations] == [("a cat", 0), ("a cat", 1), ("a tom", 2)]


def test_the_lines_of_a_caption_are_references_by_themselves(write: Any) -> None:
    (image,) = read_sets(write({"7": {"a man on a bicycle\na guy riding his bike\n": [[1, 2, 3, 4]]}}), EXACT)
    assert image.items[0].references == ("a man on a bicycle", "a guy riding his bike")


POINTS = [{"x": 0.25, "y": 0.5, "t": 0.0}, {"x": 1.25, "y": 0.75, "t": 0.1}]


@pytest.mark.parametrize("trace", [POINTS, [POINTS[:1], POINTS[1:]], [POINTS, []]])
def test_traces_belong_to_their_captions_by_place(write: Any, trace: Any) -> None:
    file = write({"3": {"captions": ["a cat", "a mat"], "traces": [trace, POINTS[:1]]}})
    (image,) = read_traces(file, EXACT)
    assert image.items == (
        Item(Trace.normalized([(0.25, 0.5), (1.25, 0.75)]), ("a cat",)),
        Item(Trace.normalized([(0.25, 0.5)]), ("a mat",)),
    )


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (RegionForm(), Box(10, 20, 30, 50)),
        (RegionForm(box_format="xywh"), Box(10, 20, 40, 70)),
        (RegionForm(pool="gaussian", variance=2), Box(10, 20, 30, 50, "gaussian", 2)),
        (RegionForm("published"), Box.published(10, 20, 20, 30, frame="image")),
        (RegionForm("published", "xywh"), Box.published(10, 20, 30, 50, frame="image")),
        (RegionForm("published", pool="attention"), Box.published(10, 20, 20, 30, "attention", frame="image")),
    ],
)
def test_the_numbers_of_a_box_are_read_as_asked(form: RegionForm, expected: object) -> None:
    assert form.box((10, 20, 30, 50)) == expected


def test_a_box_of_no_size_is_taken_one_pixel_large() -> None:
    assert RegionForm().box((10, 20, 10, 20)) == Box(10, 20, 11, 21)
    assert RegionForm(box_format="xywh").box((10, 20, 0, 0)) == Box(10, 20, 11, 21)
    assert RegionForm("published").box((10, 20, 10, 20)) == Box.published(10, 20, 1, 1, frame="image")


def test_the_published_form_makes_published_sets_and_traces() -> None:
    form = RegionForm("published", pool="attention")
    boxes = [(10.0, 20.0, 30.0, 50.0), (0.0, 0.0, 5.0, 5.0)]
    xywh = [(10, 20, 20, 30), (0, 0, 5, 5)]
    assert form.box_set(boxes) == BoxSet.published(xywh, "attention", frame="image")
    assert form.trace([(0.1, 0.2)]) == Trace.published([(0.1, 0.2)], "attention")


@pytest.mark.parametrize(
    ("kind", "content", "expected"),
    [
        ("captions", "{", "expected JSON"),
        ("captions", {}, "expected at least one caption, got none"),
        ("captions", ["a cat"], "valid dictionary, got ['a cat']"),
        ("captions", {"1": "a cat"}, "1: Input should be a valid list, got 'a cat'"),
        ("captions", {"1": ["a cat", 5]}, "1: 1: Input should be a valid string, got 5"),
        ("captions", {"1": ["a cat", " "]}, "1: expected a caption, got an empty one"),
        ("captions", {"annotations": [{"image_id": 1}]}, "annotations: 0: caption: Field required"),
        (
            "captions",
            {"images": [{"id": 1}], "annotations": [{"image_id": 2, "caption": "a cat"}]},
            "annotations: 0: expected image_id among its images, got 2",
        ),
        ("dense", {"1": {"a cat": [[1, 2, 3]]}}, "1: a cat: 0: 3: Field required"),
        ("dense", {"1": {"a cat": [[1, 2, 3, "wide"]]}}, "1: a cat: 0: 3: Input should be a valid number"),
        ("dense", '{"1": {"a cat": [[1, 2, 3, NaN]]}}', "1: a cat: 0: 3: Input should be a finite number, got nan"),
        ("dense", {"1": {"a cat": []}}, "1: a cat: List should have at least 1 item"),
        ("dense", {"1": {"a cat": [[30, 2, 3, 4]]}}, "expected x1 < x2"),
        ("dense", {"1": {"a cat": [[-1, -1, -1, -1]]}}, "1: a cat: List should have at least 1 item"),
        ("dense", [{"id": 1, "regions": [{"x": 1}]}], "0: regions: 0: y: Field required"),
        (
            "dense",
            [{"id": 1, "regions": []}, {"id": 1, "regions": []}],
            "images: expected each image once, got 1 again",
        ),
        (
            "dense",
            [{"id": 1, "regions": [{"x": 1, "y": 1, "width": -2, "height": 5, "phrase": "a"}]}],
            "boxes are read as xywh",
        ),
        ("captions", {"images": [{"split": "test", "filename": "1.jpg"}]}, "images: 0: sentences: Field required"),
        (
            "captions",
            {"images": [{"split": "val", "filename": "1.jpg", "sentences": []}]},
            "images: expected some of the split test, got val",
        ),
        ("sets", {"1": {"a cat": [[30, 2, 3, 4]]}}, "boxes are read as xyxy"),
        ("sets", {"1": [[30, 2, 3, 4]]}, "1: Input should be a valid dictionary"),
        ("traces", {"1": {"captions": ["a cat"]}}, "1: traces: Field required"),
        (
            "traces",
            {"1": {"captions": ["a", "b"], "traces": [POINTS]}},
            "1: expected as many traces as captions, 2, got 1",
        ),
        ("traces", {"1": {"captions": ["a"], "traces": [[{"x": 0.5}]]}}, "1: traces: 0: 0: y: Field required"),
        ("traces", {"1": {"captions": ["a"], "traces": [[]]}}, "1: trace 0: Trace: expected at least one point"),
    ],
)
def test_a_malformed_file_is_refused_by_name_and_entry(write: Any, kind: str, content: Any, expected: str) -> None:
    file = write(content)
    with pytest.raises(GroundTruthError, match=re.escape(expected)) as refused:
        list(READERS[kind](file, EXACT))
    assert str(refused.value).startswith(f"{file}: ")


@pytest.mark.parametrize("kind", READERS)
def test_a_file_that_is_not_there_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(GroundTruthError, match=r"nothing\.json: no such file"):
        list(READERS[kind](tmp_path / "nothing.json", EXACT))


def annotated(image_id: str, file_name: str | None = None) -> AnnotatedImage:
    return AnnotatedImage(image_id, (Item(WholeImage(), ("a cat",)),), file_name)


@pytest.mark.parametrize(
    ("image", "file"),
    [
        (annotated("42"), "42.jpg"),
        (annotated("42"), "000000000042.jpeg"),
        (annotated("42"), "COCO_val2014_000000000042.PNG"),
        (annotated("sofa"), "sofa.png"),
        (annotated("0", "1007129816.jpg"), "1007129816.jpg"),
        (annotated("0", "val2014/COCO_val2014_000000000042.jpg"), "COCO_val2014_000000000042.jpg"),
        (annotated("0", "COCO_train2014_000000000042_3.jpg"), "000000000042.jpg"),
        (annotated("42", "elsewhere.jpg"), "42.jpg"),
    ],
)
def test_an_image_is_found_by_its_name_or_id(tmp_path: Path, image: AnnotatedImage, file: str) -> None:
    for name in (file, "4.jpg", "000000000142.jpg", "42.txt"):
        (tmp_path / name).touch()
    assert find_images([image], [tmp_path]) == ImageFiles({image.id: tmp_path / file}, {})


def test_the_name_goes_before_the_id_and_the_first_folder_before_the_next(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for file in (first / "1.jpg", second / "1.jpg", second / "2.jpg", second / "named.jpg"):
        file.parent.mkdir(exist_ok=True)
        file.touch()
    found = find_images([annotated("1"), annotated("2", "named.jpg")], [first, second])
    assert found.found == {"1": first / "1.jpg", "2": second / "named.jpg"}


def test_missing_images_are_counted_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "3.jpg").touch()
    files = find_images([annotated(str(number)) for number in range(1, 7)], [tmp_path])
    assert files.found == {"3": tmp_path / "3.jpg"}
    assert missing_images(files.missing, 6, [tmp_path]) == (
        f"{tmp_path}: 5 of 6 images are missing: expected 1 or 000000000001, 2 or 000000000002, 4 or 000000000004, ... "
        "with one of .jpg, .jpeg, .png"
    )


def test_a_folder_without_any_of_the_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError, match="2 of 2 images are missing: expected 1 or 000000000001, 2 or"):
        find_images([annotated("1"), annotated("2")], [tmp_path])


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GroundTruthError, match="expected a folder of images, got nothing there"):
        find_images([annotated("1")], [tmp_path / "nowhere"])


MEMBERS = ['"1": {"a": [1, 2]}', '"x\\u00e9\\"": [ ]', ' "" : null ', '"2":-1.5e3', '"1": 7']


@pytest.mark.parametrize("count", range(len(MEMBERS) + 1))
@pytest.mark.parametrize("form", ["{{{}}}", " \n{{ {} \t}}\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_members_are_those_that_json_has(tmp_path: Path, count: int, form: str, encoding: str) -> None:
    text = form.format(",".join(MEMBERS[:count]))
    (tmp_path / "truth.json").write_text(text, encoding=encoding)
    found = list(parse_members(tmp_path / "truth.json"))
    assert len(found) == count
    assert dict(found) == json.loads(text)


def test_what_is_no_json_has_no_members(tmp_path: Path) -> None:
    path = tmp_path / "truth.json"
    whole = "{" + ",".join(MEMBERS) + "}"
    broken = [whole[:end] for end in range(len(whole))]
    broken += [whole + "}", whole[:-1] + ",}", "{,}", "{1: 2}", '{"a" 1}', '{"a": 1 "b": 2}', '{"a": }', "[" * 100_000]
    for text in broken:
        path.write_text(text)
        with pytest.raises(GroundTruthError, match=r"truth\.json: expected JSON"):
            list(parse_members(path))
    path.write_bytes(b'{"a": "\xff"}')
    with pytest.raises(GroundTruthError, match=r"truth\.json: expected JSON"):
        list(parse_members(path))
    path.write_text("[]")
    with pytest.raises(GroundTruthError, match=r"truth\.json: Input should be a valid dictionary"):
        list(parse_members(path))


def test_an_image_with_traces_stands_there_once(write: Any) -> None:
    traces = '{"captions": ["a"], "traces": [[{"x": 0.5, "y": 0.5}]]}'
    with pytest.raises(GroundTruthError, match="7: expected each image once, got it again"):
        list(read_traces(write(f'{{"7": {traces}, "8": {traces}, "7": {traces}}}'), EXACT))


def test_values_on_the_disk_are_those_that_were_put_there() -> None:
    with DiskMapping[AnnotatedImage]() as images:
        for number in (3, 1, 2):
            images[str(number)] = annotated(str(number))
        images["1"] = annotated("1", "one.jpg")
        assert list(images) == ["3", "1", "2"]
        assert dict(images) == {"3": annotated("3"), "1": annotated("1", "one.jpg"), "2": annotated("2")}
        with pytest.raises(KeyError):
            images["4"]


def test_a_full_disk_for_the_ground_truth_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with DiskMapping[AnnotatedImage]() as images:
        monkeypatch.setattr(images, "_file", FullFile())
        with pytest.raises(PatchcaptionError, match="cannot be written: No space left on device; TMPDIR names another"):
            images["1"] = annotated("1")


class FullFile(io.BytesIO):
    def write(self, _: object) -> int:
        raise OSError(28, "No space left on device")
