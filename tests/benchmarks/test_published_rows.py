"""The paper's rows: which bundle and which file each is of, and how they stand beside a bundle's own."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.scoring.annotation_files import GroundTruthError
from benchmarks.scoring.annotation_kinds import recognize_kind
from benchmarks.scoring.evaluation import CaptionedImages, Evaluation
from benchmarks.scoring.metric_score import MetricScore
from benchmarks.scoring.published_rows import DATA_SETS, ROWS, find_data_set, find_row
from benchmarks.scoring.region_forms import RegionForm
from benchmarks.scoring.score_report import ScoreReport
from benchmarks.scoring.scores import EvaluationScores
from export.readers.families import architecture_names
from runtime.bundle import Bundle, Manifest


@pytest.fixture(scope="module")
def manifest(demo_bundle: Path) -> Manifest:
    return Bundle(demo_bundle).manifest


def named(manifest: Manifest, name: str, size: int, **parts: Any) -> Manifest:
    """Return a manifest of another backbone."""
    preprocessing = manifest.backbone.preprocessing.model_copy(update={"image_size": size})
    backbone = manifest.backbone.model_copy(update={"name": name, "preprocessing": preprocessing})
    return manifest.model_copy(update={"backbone": backbone, **parts})


@pytest.mark.parametrize(
    ("kind", "backbone", "size", "form", "scores"),
    [
        ("dense", "dinov2_vitb14_reg", 518, RegionForm(pool="mean"), (21, 31.94, 78.82)),
        ("dense", "dinov2_vitb14_reg", 518, RegionForm(pool="gaussian", variance=1), (22, 32.8, 79.14)),
        ("dense", "dinov2_vitb14_reg", 518, RegionForm(pool="gaussian", variance=0.5), None),
        ("dense", "dinov2_vitb14_reg", 518, RegionForm(pool="attention"), (21, 30.58, 78.69)),
        ("dense", "dinov2_vitb14_reg", 224, RegionForm(pool="mean"), None),
        ("dense", "dinov2_vits14_reg", 518, RegionForm(pool="mean"), None),
        ("dense", "clip_vitb16", 592, RegionForm(pool="mean"), (12, 10.89, 74.15)),
        ("dense", "clip_vitb16", 224, RegionForm(pool="mean"), (12, 10.69, 74.07)),
        ("dense", "clip_vitb32", 224, RegionForm(pool="gaussian", variance=1), (9, 5.41, 71.9)),
        ("traces", "dinov2_vitb14_reg", 518, RegionForm(pool="count"), (27.9, 78.7)),
        ("traces", "dinov2_vitb14_reg", 518, RegionForm(pool="attention"), (27.6, 78.1)),
        ("sets", "dinov2_vitb14_reg", 518, RegionForm(pool="mean"), (109.1, 87.5)),
        ("captions", "dinov2_vitb14_reg", 518, RegionForm(pool="gaussian", variance=1), (88.5, 90.2)),
        ("captions", "regionclip_rn50", 512, RegionForm(pool="cls"), (93.4, 91.2)),
        ("captions", "siglip2_base_patch16", 512, RegionForm(pool="cls"), None),
    ],
)
def test_a_bundle_has_the_row_of_its_backbone_and_pool(
    manifest: Manifest, kind: str, backbone: str, size: int, form: RegionForm, scores: tuple[float, ...] | None
) -> None:
    row = find_row(kind, None, named(manifest, backbone, size), form)
    assert (row and tuple(row.scores.values())) == scores


def test_the_rows_are_of_the_memory_decoder_alone(manifest: Manifest) -> None:
    other = manifest.decoder.model_copy(update={"kind": "viecap"})
    form = RegionForm(pool="mean")
    assert find_row("dense", None, named(manifest, "dinov2_vitb14_reg", 518), form)
    assert find_row("dense", None, named(manifest, "dinov2_vitb14_reg", 518, decoder=other), form) is None
    assert find_row("dense", None, named(manifest, "dinov2_vitb14_reg", 518, memory=None), form) is None


def test_rows_name_backbones_that_readers_make() -> None:
    assert {name for row in ROWS for name in row.backbones} <= set(architecture_names())
    assert len({(row.kind, row.name) for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize(
    ("kind", "file", "images", "captions", "name"),
    [
        ("sets", "any.json", 3569, 6617, "COCO Entities"),
        ("sets", "coco_entities_test.json", 3569, 6616, None),
        ("sets", "any.json", 1000, 3968, "Flickr30k Entities"),
        ("dense", "any.json", 5000, 200_000, "Visual Genome 1.2, dense test"),
        ("captions", "any.json", 5000, 25_010, "COCO"),
        ("captions", "any.json", 1000, 5000, "Flickr30k"),
        ("captions", "any.json", 1000, 5010, None),
        ("captions", "any.json", 10, 10, None),
        ("traces", "trace_capt_coco_test.json", 7, 7, "COCO traces"),
        ("traces", "traces.json", 7, 7, None),
    ],
)
def test_the_papers_files_are_known_by_their_counts(
    kind: str, file: str, images: int, captions: int, name: str | None
) -> None:
    found = find_data_set(kind, file, images, captions)
    assert (found and found.name) == name


def test_a_file_of_the_paper_without_rows_has_none(manifest: Manifest) -> None:
    flickr = next(one for one in DATA_SETS if one.name == "Flickr30k")
    form = RegionForm(pool="gaussian", variance=1.0)
    assert find_row("captions", flickr, named(manifest, "dinov2_vitb14_reg", 518), form) is None


def report(manifest: Manifest, images: int, captions: int, **reasons: str) -> str:
    """Return the Markdown of made scores."""
    form = RegionForm("published", pool="mean")
    evaluation = Evaluation(Path("engines/mine"), "sets", (Path("sets.json"),), (Path("photos"),), form, "stretch")
    captioned = SimpleNamespace(manifest=manifest, backend="onnxruntime", reasons=reasons)
    scores = {"BLEU-4": MetricScore(0.12345, 0.5), "CIDEr": MetricScore(1.0914, 0.98765)}
    found = EvaluationScores(images, captions, captions, len(reasons), scores, None)
    return ScoreReport.of(evaluation, cast(CaptionedImages, captioned), found).markdown()


def test_the_row_stands_beside_the_papers_own(manifest: Manifest) -> None:
    table, _, notes = report(named(manifest, "dinov2_vitb14_reg", 518), 3569, 6617).partition("\n\n")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert rows[0] == ["scores x 100", "data", "BLEU-4", "CIDEr", "RefPAC-S (text to text)"]
    assert rows[2:] == [
        ["engines/mine, mean", "3569 images, 6617 sets of boxes", "12.3 ± 50.0", "109.1 ± 98.8", "–"],
        [
            "published (paper): Patch-ioner, DINOv2 ViT-B/14 with Talk2DINO",
            "COCO Entities",
            "–",
            "109.1",
            "87.5",
        ],
    ]
    assert len({len(line) for line in table.splitlines()}) == 1
    assert "the rows compare if this is the paper's file" in notes


def test_rows_of_other_data_say_so(manifest: Manifest) -> None:
    text = report(named(manifest, "dinov2_vitb14_reg", 518), 10, 20)
    assert "| other data " in text
    assert "its row is of other data, so the two do not compare" in text


def test_a_bundle_without_a_row_is_told_so_in_a_line(manifest: Manifest) -> None:
    text = report(manifest, 3569, 6617, a="no file a")
    assert text.count("\n| ") == 1
    line = "no row is known for dinov2_vitdemo14_reg @224 with this decoder, on sets of boxes pooled by mean"
    assert f"- published (paper): {line}\n" in text
    assert "- bad images: 1 are missing or cannot be read" in text


BOXES = {"a cat": [[1, 2, 3, 4]]}


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        ({"annotations": [{"image_id": 1, "caption": "a cat"}], "images": []}, "captions"),
        ({"1": ["a cat"], "2": []}, "captions"),
        ({"images": [{"filename": "1.jpg", "split": "val", "sentences": [{"raw": "a cat"}]}]}, "captions"),
        ([{"id": 1, "regions": [{"x": 1, "y": 2, "width": 3, "height": 4, "phrase": "a cat"}]}], "dense"),
        ({"annotations": [{"image_id": 1, "caption": "a cat", "bbox": [1, 2, 3, 4]}]}, "dense"),
        ({"1": {"captions": ["a cat"], "traces": [[{"x": 0, "y": 0, "t": 0}]]}}, "traces"),
        (
            {
                str(image): BOXES if image else {**BOXES, **{f"dog {n}": [[1, 2, 3, 4]] for n in range(3048)}}
                for image in range(3569)
            },
            "sets",
        ),
    ],
)
def test_a_file_says_its_kind(tmp_path: Path, content: Any, kind: str) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(content))
    assert recognize_kind([tmp_path / "truth.json"]) == kind


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"1": BOXES}, "its boxes stand by caption: say --kind dense if each"),
        ({}, "its contents do not say which kind of ground truth it is: say --kind captions, dense, sets or traces"),
        ([], "its contents do not say"),
        ({"annotations": "none"}, "its contents do not say"),
        ({"1": ["a cat"], "2": BOXES}, "its contents do not say"),
        ({"annotations": [{"caption": "a"}, {"caption": "b", "bbox": []}]}, "its contents do not say"),
    ],
)
def test_a_file_of_which_the_kind_must_be_said_is_refused(tmp_path: Path, content: Any, reason: str) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(content))
    with pytest.raises(GroundTruthError, match=reason):
        recognize_kind([tmp_path / "truth.json"])


def test_parts_are_of_one_kind(tmp_path: Path) -> None:
    one, other = tmp_path / "one.json", tmp_path / "other.json"
    one.write_text('{"1": ["a cat"]}')
    other.write_text('{"2": ["a dog"]}')
    assert recognize_kind([one, other]) == "captions"
    other.write_text('{"2": {"captions": [], "traces": []}}')
    with pytest.raises(GroundTruthError, match=r"one\.json: captions, .*other\.json: traces: expected one kind"):
        recognize_kind([one, other])
