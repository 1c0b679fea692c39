"""The demo's world, how well the demo model describes it, and the command that says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from benchmarks.scoring.demo_scenes import evaluation_cases, names_objects, score_scenes
from benchmarks.scoring.ground_truth import READERS, AnnotatedImage, Item
from benchmarks.scoring.metrics import CaptionMetrics, MetricsError
from benchmarks.scoring.predictions import PredictedImage, Prediction, predict
from benchmarks.scoring.region_forms import RegionForm
from export.demo import annotations as scene_annotations
from export.demo import sample, scenes
from export.demo.scenes import Look
from export.demo.sentences import sentence_of
from export.readers import DEMO_CONFIG
from runtime import Box, Captioner, FeatureMap
from runtime.bundle import sha256_of

CIRCLE = Look("red", "circle", "striped", "small")
SQUARE = Look("orange", "square", "solid", "large")


def test_captions_say_what_a_scene_shows() -> None:
    assert CIRCLE.caption == "a small striped red circle"
    assert scenes.pair_caption(CIRCLE, SQUARE) == scenes.pair_caption(SQUARE, CIRCLE)
    assert scenes.pair_caption(CIRCLE, SQUARE) == "a red circle and an orange square"
    scene = scenes.draw_scene(5)
    for caption in (scene.caption, scene.background_caption, *(one.look.caption for one in scene.objects)):
        assert caption in scenes.all_captions()


def test_a_swapped_pair_has_its_shapes_exchanged() -> None:
    assert scenes.swapped_pair("a red circle and a blue square") == "a red square and a blue circle"
    assert scenes.swapped_pair("a red circle and an orange circle") == "a red circle and an orange circle"
    assert scenes.swapped_pair(CIRCLE.caption) == CIRCLE.caption


def test_every_caption_is_there_once() -> None:
    # 2 sizes x 3 textures x 8 colours x 8 shapes, 64 x 63 / 2 pairs, 4 x 5 backgrounds, with 5 counts of shapes
    assert len(scenes.all_captions()) == len(set(scenes.all_captions())) == 384 + 2016 + 20 + 100


def test_a_scene_depends_on_its_seed_alone() -> None:
    one, again, other = scenes.draw_scene(7), scenes.draw_scene(7), scenes.draw_scene(8)
    np.testing.assert_array_equal(one.image, again.image)
    assert (one.image != other.image).any()


def test_objects_show_where_their_masks_say() -> None:
    for seed in range(20):
        scene = scenes.draw_scene(seed)
        assert 2 <= len(scene.objects) <= 6
        assert np.sum([one.visible for one in scene.objects], axis=0).max() <= 1  # what is hidden does not show
        for one in scene.objects:
            if one.look.texture == "solid":
                middle = np.median(scene.image[one.visible], axis=0)
                assert np.abs(middle - scenes.COLOURS[one.look.colour]).max() < 20


def test_there_is_a_case_for_every_object_and_pair() -> None:
    scene = scenes.draw_scene(3)
    kinds = [case.kind for case in evaluation_cases(scene, 3)]
    objects = len(scene.objects)
    assert kinds.count("box") == kinds.count("mask") == kinds.count("trace") == objects
    assert kinds.count("two boxes") <= objects * (objects - 1) / 2


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a red circle and an orange square", True),
        ("a orange square and a red circle", True),
        ("a large dotted red circle and an orange square", True),  # of what a pair's caption need not say
        ("There is a red circle and an orange square.", True),
        ("There is a red circle and a red square.", False),
        ("a red circle", False),
        ("a red circle and a red square", False),
        ("an orange circle and a red square", False),
        ("a red circle and an orange square and a red circle", False),
        ("", False),
    ],
)
def test_a_caption_names_two_objects_when_it_names_exactly_these(text: str, right: bool) -> None:
    assert names_objects(text, [CIRCLE, SQUARE]) is right


@pytest.mark.slow
def test_the_demo_reaches_its_scores_on_held_out_scenes(demo: Captioner) -> None:
    scores = score_scenes(demo, scenes.HELD_OUT_SEED, count=60)
    for kind in ("box", "mask", "trace"):
        named = scores[kind].named
        assert named is not None
        assert named >= 0.95, kind
        assert scores[kind].exact >= 0.85, kind
    named = scores["two boxes"].named
    assert named is not None
    assert named >= 0.85


@pytest.mark.slow
def test_the_demos_second_decoder_reaches_its_scores(viecap: Captioner) -> None:
    scores = score_scenes(viecap, scenes.HELD_OUT_SEED, count=24)
    for kind in ("box", "mask", "trace"):
        assert scores[kind].exact >= 0.9, kind
    named = scores["two boxes"].named
    assert named is not None
    assert named >= 0.75


@pytest.mark.slow
def test_the_two_demos_say_the_same_in_other_words(demo: Captioner, viecap: Captioner) -> None:
    region = Box(276, 174, 507, 399)
    texts = [one.caption(sample.FOLDER / "scene.jpg", [region])[0].text for one in (demo, viecap)]
    assert texts == ["a large striped red triangle", "There is a large red striped triangle."]
    assert texts[1] == sentence_of(texts[0])


@pytest.mark.parametrize(("name", "pairs"), [("scores.json", 0.85), ("scores_entities.json", 0.8)])
def test_the_committed_scores_are_those_of_the_bars(name: str, pairs: float) -> None:
    record = json.loads((DEMO_CONFIG.parent / name).read_text())
    assert record["first_seed"] == scenes.HELD_OUT_SEED
    assert record["scenes"] >= 300
    for kind in ("box", "mask", "trace"):
        assert record["scores"][kind]["named"] >= 0.95
        assert record["scores"][kind]["exact"] >= 0.85
    assert record["scores"]["two boxes"]["named"] >= pairs


def test_the_sample_is_a_held_out_scene() -> None:
    assert sample.SEED >= scenes.HELD_OUT_SEED
    with Image.open(sample.FOLDER / "scene.jpg") as stored:
        small = np.asarray(stored.resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BOX), float)
    assert np.abs(small - scenes.draw_scene(sample.SEED).image).mean() < 4  # JPEG and resizing


@pytest.fixture(scope="module")
def annotated_scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes") / "ten"
    assert scene_annotations.main([str(folder), "--scenes", "10"]) == 0
    return folder


def run(bundle: Path, scenes_folder: Path, kind: str, *more: str | Path) -> int:
    images, truth = scenes_folder / "images", scenes_folder / f"{kind}.json"
    kinds = ["--kind", kind] if kind in ("dense", "sets") else []
    return quality.main([str(bundle), "--images", str(images), "--annotations", str(truth), *kinds, *map(str, more)])


def test_annotations_are_those_of_the_held_out_scenes(annotated_scenes: Path) -> None:
    content = {name: json.loads((annotated_scenes / f"{name}.json").read_text()) for name in READERS}
    for number in range(10):
        scene, name = scenes.draw_scene(scenes.HELD_OUT_SEED + number), str(number + 1)
        with Image.open(annotated_scenes / "images" / f"{number + 1:012d}.png") as image:
            np.testing.assert_array_equal(np.asarray(image), scene.image)
        assert content["captions"]["annotations"][number]["caption"] == scene.caption
        assert sum(map(len, content["dense"][name].values())) == len(scene.objects)
        for one in scene.objects:
            assert [one.box.x1, one.box.y1, one.box.x2, one.box.y2] in content["dense"][name][one.look.caption]
        assert all(len(boxes) == 2 for boxes in content["sets"][name].values())
        assert content["traces"][name]["captions"] == [one.look.caption for one in scene.objects]
        for trace in content["traces"][name]["traces"]:
            assert all(0 <= point["x"] <= 1 and 0 <= point["y"] <= 1 for point in trace)
            assert [point["t"] for point in trace] == sorted({point["t"] for point in trace})


def test_annotations_are_written_whole_or_not_at_all(
    annotated_scenes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert scene_annotations.main([str(annotated_scenes), "--scenes", "1"]) == 1
    assert "it is there already" in capsys.readouterr().err

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    assert scene_annotations.main([str(tmp_path / "out"), "--scenes", "1"]) == 1
    assert "No space left on device" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["exact", "published"])
@pytest.mark.parametrize(("kind", "share"), [("captions", 0.6), ("dense", 0.6), ("sets", 0.6), ("traces", 0.85)])
@pytest.mark.usefixtures("cache")
def test_the_demo_is_scored_against_every_kind_of_ground_truth(
    demo_bundle: Path, annotated_scenes: Path, tmp_path: Path, kind: str, form: str, share: float
) -> None:
    out = tmp_path / "scores.json"
    assert run(demo_bundle, annotated_scenes, kind, "--form", form, "--json", out) == 0
    record = json.loads(out.read_text())
    assert record["scores"]["exact"]["value"] >= share
    assert (record["options"]["form"], record["options"]["fit"]) == (form, "stretch")
    assert record["bundle"]["manifest_sha256"] == sha256_of(demo_bundle / "manifest.json")
    truth = READERS[kind](annotated_scenes / f"{kind}.json", RegionForm())
    wanted = [(image.id, number, list(item.references)) for image in truth for number, item in enumerate(image.items)]
    assert [(one["image"], one["number"], one["references"]) for one in record["captions"]] == wanted
    assert (record["images"], record["items"], record["unseen"], record["bad_images"]) == (10, len(wanted), 0, {})
    assert (record["dense"] is not None) == ("mAP" in record["scores"]) == (kind == "dense")
    assert list(tmp_path.iterdir()) == [out]  # and no log


@pytest.mark.usefixtures("cache")
def test_few_images_are_held_at_once(
    demo_bundle: Path, annotated_scenes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[int] = []
    encode = Captioner.encode

    def spy(self: Captioner, images: list[Path]) -> FeatureMap:
        held.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Captioner, "encode", spy)
    assert run(demo_bundle, annotated_scenes, "captions") == 0
    assert held == [8, 2]


def test_a_region_that_the_model_does_not_see_has_an_empty_caption(demo_bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (448, 224)).save(tmp_path / "1.png")
    seen, cut_off = Item(Box(200, 100, 250, 150), ("a cat",)), Item(Box(0, 0, 50, 50), ("a dog",))
    with Captioner.load(demo_bundle, fit="crop") as captioner:
        image = AnnotatedImage("1", (cut_off, seen))
        (predicted,) = predict(captioner, [image], {"1": tmp_path / "1.png"})
    assert isinstance(predicted, PredictedImage)
    assert predicted.items[0] == Prediction("", None, ("a dog",))
    assert predicted.items[1].caption
    assert predicted.items[1].score is not None
    assert predicted.items[1].references == ("a cat",)


@pytest.mark.usefixtures("cache")
def test_captions_are_kept_when_the_metrics_fail(
    demo_bundle: Path,
    annotated_scenes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> dict[str, float]:
        raise MetricsError("the caption metrics failed: METEOR: no memory")

    out = tmp_path / "scores.json"
    with monkeypatch.context() as patch:
        patch.setattr(CaptionMetrics, "score", fail)
        assert run(demo_bundle, annotated_scenes, "captions", "--limit", "2", "--json", out) == 1
    assert capsys.readouterr().err.strip() == "error: the caption metrics failed: METEOR: no memory"
    assert not out.exists()
    monkeypatch.setattr(Captioner, "encode", None)
    assert run(demo_bundle, annotated_scenes, "captions", "--limit", "2", "--json", out) == 0
    assert len(json.loads(out.read_text())["captions"]) == 2


TRUTH = ["--images", "photos", "--annotations", "t.json"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images", "photos"], "expected --annotations with --images"),
        (["--kind", "sets"], "expected --annotations with --kind"),
        (["--annotations", "sets.json"], "expected --images with --annotations"),
        ([*TRUTH, "--kind", "sets", "--pool", "cls"], "--pool: for --kind sets expected mean or gaussian or attention"),
        ([*TRUTH, "--kind", "traces", "--pool", "mean"], "--kind traces expected count or attention, got mean"),
        ([*TRUTH, "--kind", "dense", "--variance", "2"], "--variance: it is of --pool gaussian, got --pool mean"),
        ([*TRUTH, "--limit", "0"], "--limit: expected at least 1, got 0"),
        ([*TRUTH, "--kind", "dense", "--clip", "nowhere"], "--clip nowhere: no such file or folder"),
        ([*TRUTH, "--json", "one", "--markdown", "one"], "--markdown one: --json writes there too"),
        (["--json", "nowhere/scores.json"], "the folder nowhere does not exist"),
        (TRUTH, "t.json: no such file"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_a_mistake_in_the_command_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert quality.main(["bundle", *arguments]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert reason in line


def test_the_command_scores_held_out_scenes_by_itself(
    demo_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scores.json"
    assert quality.main([str(demo_bundle), "--scenes", "2", "--json", str(out)]) == 0
    record = json.loads(out.read_text())
    assert (record["scenes"], record["first_seed"]) == (2, scenes.HELD_OUT_SEED)
    assert set(record["scores"]["box"]) == {"asked", "named", "exact"}
    assert "two boxes" in capsys.readouterr().out
