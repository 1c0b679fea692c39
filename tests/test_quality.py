"""The demo's world and how well the demo model describes it."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from benchmarks import quality
from export.demo import sample, scenes
from export.demo.scenes import Look
from export.readers import DEMO_CONFIG
from runtime import Captioner

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
        assert sum(one.visible.astype(int) for one in scene.objects).max() <= 1  # what is hidden does not show
        for one in scene.objects:
            if one.look.texture == "solid":
                middle = np.median(scene.image[one.visible], axis=0)
                assert np.abs(middle - scenes.COLOURS[one.look.colour]).max() < 20


def test_questions_ask_of_every_object_and_pair() -> None:
    scene = scenes.draw_scene(3)
    asked = list(quality.questions(scene, 3))
    kinds = [question.kind for question in asked]
    objects = len(scene.objects)
    assert kinds.count("box") == kinds.count("mask") == kinds.count("trace") == objects
    assert kinds.count("two boxes") <= objects * (objects - 1) / 2


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a red circle and an orange square", True),
        ("a orange square and a red circle", True),
        ("a large dotted red circle and an orange square", True),  # of what a pair's caption need not say
        ("a red circle", False),
        ("a red circle and a red square", False),
        ("an orange circle and a red square", False),
        ("a red circle and an orange square and a red circle", False),
        ("", False),
    ],
)
def test_a_caption_names_two_objects_when_it_names_exactly_these(text: str, right: bool) -> None:
    assert quality.names_objects(text, [CIRCLE, SQUARE]) is right


def test_the_demo_reaches_its_scores_on_held_out_scenes(demo: Captioner) -> None:
    scores = quality.measure(demo, scenes.HELD_OUT_SEED, count=60)
    for kind in ("box", "mask", "trace"):
        assert scores[kind].named is not None
        assert scores[kind].named >= 0.95, kind
        assert scores[kind].exact >= 0.85, kind
    assert scores["two boxes"].named >= 0.85


def test_the_committed_scores_are_those_of_the_bars() -> None:
    record = json.loads((DEMO_CONFIG.parent / "scores.json").read_text())
    assert record["first_seed"] == scenes.HELD_OUT_SEED
    assert record["scenes"] >= 300
    for kind in ("box", "mask", "trace"):
        assert record["scores"][kind]["named"] >= 0.95
        assert record["scores"][kind]["exact"] >= 0.85
    assert record["scores"]["two boxes"]["named"] >= 0.85


def test_the_sample_is_a_held_out_scene() -> None:
    assert sample.SEED >= scenes.HELD_OUT_SEED
    with Image.open(sample.FOLDER / "scene.jpg") as stored:
        small = np.asarray(stored.resize((scenes.SIZE, scenes.SIZE), Image.Resampling.BOX), float)
    assert np.abs(small - scenes.draw_scene(sample.SEED).image).mean() < 4  # JPEG and resizing
