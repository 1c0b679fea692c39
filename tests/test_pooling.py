"""From tokens to vectors, on the demo bundle: against the published algorithm written plainly, and what must hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import eager
from export.checkpoint import Checkpoint
from export.demo import scenes
from export.readers import read_checkpoint
from runtime import (
    AttentionHead,
    Box,
    BoxSet,
    BundleError,
    Captioner,
    Crop,
    FeatureMap,
    Mask,
    Patch,
    PatchcaptionError,
    Point,
    RegionError,
    Register,
    Trace,
    WholeImage,
)

SCENES = [scenes.draw_scene(scenes.HELD_OUT_SEED + number) for number in range(2)]
BOXES = [(0.0, 0.0, 223.0, 223.0), (20.0, 35.5, 90.2, 60.0), (150.0, 100.0, 0.0, 0.0), (70.0, 70.0, 40.0, 120.0)]
# Vectors are sums of float32 numbers in another order; their largest values are about 1.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return read_checkpoint("demo")


@pytest.fixture(scope="module")
def features(demo: Captioner) -> FeatureMap:
    return demo.encode([scene.image for scene in SCENES])


@pytest.fixture(scope="module")
def seen(checkpoint: Checkpoint) -> list[eager.EncodedImage]:
    return [eager.encode_image(checkpoint.backbone, Image.fromarray(scene.image)) for scene in SCENES]


@pytest.fixture(scope="module")
def bank(demo: Captioner) -> torch.Tensor:
    assert demo._memory is not None
    return demo._memory.rows.stored


def each(*boxes: tuple[float, ...], **pooled: object) -> list[list[Box]]:
    """The same boxes in published form on both images."""
    return [[Box.published(*box, **pooled) for box in boxes]] * 2


@pytest.mark.parametrize("pool", ["mean", "gaussian", "attention"])
def test_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner, features: FeatureMap, seen: list[eager.EncodedImage], pool: eager.Pool
) -> None:
    expected = [eager.box_vector(image, box, pool) for image in seen for box in BOXES]
    torch.testing.assert_close(demo.vectors(features, each(*BOXES, pool=pool)), torch.stack(expected), **CLOSE)


def test_sets_and_traces_are_those_of_the_algorithm_written_plainly(
    demo: Captioner, features: FeatureMap, seen: list[eager.EncodedImage]
) -> None:
    points = [(0.1, 0.2), (0.15, 0.2), (0.9, 0.5), (1.2, 0.5)]
    regions = [
        BoxSet.published(BOXES, pool="attention"),
        Trace.published(points, pool="attention"),
        WholeImage("attention"),
    ]
    expected = [
        vector
        for image in seen
        for vector in (
            eager.box_set_vector(image, BOXES, "attention"),
            eager.trace_vector(image, points, with_attention=True),
            image.average_attention,
        )
    ]
    torch.testing.assert_close(demo.vectors(features, [regions] * 2), torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("clean", ["orthogonal", "contrastive"])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("common", ["cls", "attention"])
def test_cleaned_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner,
    features: FeatureMap,
    seen: list[eager.EncodedImage],
    bank: torch.Tensor,
    clean: str,
    after: bool,
    common: str,
) -> None:
    vectors = demo.vectors(
        features, each(*BOXES), clean=clean, alpha=0.7, clean_from=common, clean_after_projection=after
    )
    expected = []
    for image in seen:
        shared = image.cls if common == "cls" else image.average_attention
        cleaned = eager.clean_patches(image, bank, clean, after, shared, alpha=0.7)
        expected += [eager.box_vector(cleaned, box) for box in BOXES]
    torch.testing.assert_close(vectors, torch.stack(expected), **CLOSE)


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_reencoded_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner, features: FeatureMap, seen: list[eager.EncodedImage], checkpoint: Checkpoint, kind: str
) -> None:
    block = checkpoint.backbone.blocks[-1]
    expected = [
        eager.reencoded_vector(image, block, (x, y, x + width, y + height), kind)
        for image in seen
        for x, y, width, height in BOXES
    ]
    torch.testing.assert_close(demo.vectors(features, each(*BOXES), reencode=kind), torch.stack(expected), **CLOSE)


def test_gaussian_reencoding_is_a_gaussian_box_with_the_corners_rounded(demo: Captioner, features: FeatureMap) -> None:
    # 9 + 9 = 18 reaches the second patch of 14; 9 and 9 quantize_rows down by themselves do not
    reencoded = demo.vectors(features, each((9, 9, 9, 9)), reencode="gaussian")
    expected = demo.vectors(features, each((0, 0, 14, 14), pool="gaussian", variance=0.5))
    torch.testing.assert_close(reencoded, expected, **CLOSE)


def test_the_decoder_is_that_of_the_algorithm_written_plainly(demo: Captioner, checkpoint: Checkpoint) -> None:
    vectors = torch.randn(6, demo.manifest.architecture.width, generator=torch.Generator().manual_seed(0))
    tokens, log_probabilities = eager.decode(checkpoint.decoder.state_dict(), vectors)
    end = demo.manifest.decoding.eos_token_id
    natural, reference = demo.decode(vectors), demo.decode(vectors, score="reference")
    for row, caption in enumerate(natural):
        chosen = tokens[row].tolist()
        length = chosen.index(end) + 1 if end in chosen else len(chosen)
        assert list(caption.ids) == chosen[:length]
        assert caption.score == pytest.approx(log_probabilities[row, :length].sum().exp().item(), rel=1e-3)
        assert reference[row].score == pytest.approx(log_probabilities[row].sum().exp().item(), rel=1e-3)
        assert reference[row].ids == caption.ids


def test_reencoding_many_regions_at_once_is_reencoding_each_alone(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions = [
        Box(0, 0, 30, 200),
        Mask(SCENES[0].background),
        Point(100, 100),
        Box(3, 3, 221, 221),
        Box(40, 40, 60, 55),
    ]
    both = demo.vectors(features, [regions, regions[::-1]], reencode="cls")
    alone = [demo.vectors(features[0], [region], reencode="cls") for region in regions]
    alone += [demo.vectors(features[1], [region], reencode="cls") for region in regions[::-1]]
    torch.testing.assert_close(both, torch.cat(alone), **CLOSE)
    monkeypatch.setattr("runtime.pooling._REENCODED_SCORES_AT_ONCE", 1)
    torch.testing.assert_close(demo.vectors(features, [regions, regions[::-1]], reencode="cls"), both, **CLOSE)


def test_reencoding_calls_the_engine_for_groups_of_regions(demo: Captioner, features: FeatureMap) -> None:
    engine, calls = demo._open_reencoder(), []

    class Counting:
        def run(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
            calls.append(inputs["tokens"].shape)
            return engine.run(inputs)

    demo._reencoder = Counting()
    try:
        demo.vectors(features, [[Box(x, 0, x + 40, 40) for x in range(0, 180, 6)]] * 2, reencode="mean")
    finally:
        demo._reencoder = engine
    assert len(calls) == 1
    assert calls[0][0] == 60


@pytest.mark.parametrize(
    ("region", "options"),
    [
        (WholeImage(), {"reencode": "mean"}),
        (Register(0), {"reencode": "cls"}),
        (AttentionHead(0), {"reencode": "mean"}),
        (Crop(0, 0, 9, 9), {"reencode": "mean"}),
        (Trace([(5, 5)]), {"reencode": "gaussian"}),
    ],
)
def test_what_cannot_be_reencoded_is_refused_by_number(
    demo: Captioner, features: FeatureMap, region: object, options: dict[str, str]
) -> None:
    with pytest.raises(RegionError, match=r"image 1: region 1: .*: reencode=.* takes .* only"):
        demo.vectors(features, [[], [Box(0, 0, 9, 9), region]], **options)


def test_a_bundle_from_before_reencoding_says_so(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = demo.manifest.model_copy(update={"reencoder": None})
    monkeypatch.setattr(demo._bundle, "manifest", old)
    monkeypatch.setattr(demo, "_reencoder", None)
    with pytest.raises(BundleError, match="built without a re-encoder; build the bundle again"):
        demo.vectors(features[0], [Box(0, 0, 9, 9)], reencode="mean")


def test_tokens_of_the_whole_image_are_projected_but_not_cleaned(demo: Captioner, features: FeatureMap) -> None:
    regions = [[WholeImage(), Register(0)]] * 2
    vectors = demo.vectors(features, regions, clean="orthogonal")
    torch.testing.assert_close(vectors, demo.project(demo.vectors(features, regions)), **CLOSE)


def test_cleaned_vectors_are_not_projected_again(demo: Captioner, features: FeatureMap) -> None:
    regions = each(*BOXES)
    described = demo.describe(features, regions, clean="contrastive")
    decoded = demo.decode(demo.vectors(features, regions, clean="contrastive"))
    assert [caption.ids for of_image in described for caption in of_image] == [caption.ids for caption in decoded]


def test_crops_are_encoded_by_themselves(demo: Captioner, features: FeatureMap) -> None:
    crop = Crop(30, 40, 130.4, 90)
    cut = SCENES[1].image[40:90, 30:130]
    vectors = demo.vectors(features, [[WholeImage()], [Point(5, 5), crop]])
    expected = torch.cat([features.cls[:1], features[1].patches[:, 0], demo.encode(cut).cls])
    torch.testing.assert_close(vectors, expected, **CLOSE)
    cropping = demo.describe(features, [[crop], []])[0][0]
    assert cropping.region is crop
    cleaned = demo.vectors(features, [[], [crop]], clean="orthogonal")
    torch.testing.assert_close(cleaned, demo.project(demo.encode(cut).cls), **CLOSE)


def test_crops_stretch_whatever_the_fit(demo_bundle: Path) -> None:
    image = np.concatenate([SCENES[0].image, SCENES[1].image], axis=1)
    with Captioner.load(demo_bundle, fit="crop") as cropping:
        both = cropping.vectors(cropping.encode(image), [Crop(0, 0, 448, 224), Crop(224, 0, 448, 224)])
    with Captioner.load(demo_bundle) as stretching:
        expected = stretching.encode([image, SCENES[1].image]).cls
    torch.testing.assert_close(both, expected, **CLOSE)


@pytest.mark.parametrize(
    ("crop", "message"),
    [(Crop(300, 0, 310, 5), "lies outside the image"), (Crop(5.1, 0, 5.4, 9), "at least one whole pixel")],
)
def test_crops_with_no_place_on_the_image_are_refused_by_number(
    demo: Captioner, features: FeatureMap, crop: Crop, message: str
) -> None:
    with pytest.raises(RegionError, match=f"image 1: region 0: .*{message}"):
        demo.vectors(features, [[], [crop]])


def test_nearest_captions_are_those_of_the_largest_cosines(
    demo: Captioner, features: FeatureMap, bank: torch.Tensor
) -> None:
    regions = [[Box(0, 0, 50, 50), WholeImage()], [Patch(3, 4)]]
    cosines = torch.cosine_similarity(demo.vectors(features, regions)[:, None], bank[None], dim=2)
    best = cosines.topk(3, dim=1)
    assert demo._memory is not None
    texts = [[demo._memory.captions[place] for place in row] for row in best.indices.tolist()]
    for mode in ("decode", "nearest"):
        captions = [one for of in demo.describe(features, regions, mode=mode, n_best=3) for one in of]
        assert [[match.text for match in caption.nearest] for caption in captions] == texts
        for caption, values in zip(captions, best.values.tolist(), strict=True):
            assert [match.similarity for match in caption.nearest] == pytest.approx(values, abs=1e-5)
    nearest = [one for of in demo.describe(features, regions, mode="nearest") for one in of]
    assert [one.text for one in nearest] == [row[0] for row in texts]
    assert [one.score for one in nearest] == pytest.approx(best.values[:, 0].tolist(), abs=1e-5)
    assert all(one.ids == () and one.nearest == () for one in nearest)


def test_more_neighbours_than_the_memory_has_are_all_of_them(demo: Captioner, features: FeatureMap) -> None:
    rows = demo.manifest.memory.rows
    assert len(demo.describe(features[0], [WholeImage()], n_best=rows + 5)[0].nearest) == rows


def test_without_a_memory_there_are_no_neighbours(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "_memory", None)
    for options in ({"mode": "nearest"}, {"n_best": 1}):
        with pytest.raises(PatchcaptionError, match="this bundle has no memory"):
            demo.describe(features[0], [WholeImage()], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": "soap"}, 'clean: expected "orthogonal" or "contrastive", got .soap.'),
        ({"clean": "orthogonal", "clean_from": "mean"}, 'clean_from: expected "cls" or "attention"'),
        ({"reencode": "max"}, 'reencode: expected "mean", "cls" or "gaussian"'),
        ({"clean": "orthogonal", "reencode": "mean"}, "exclude each other"),
        ({"mode": "best"}, 'mode: expected "decode" or "nearest"'),
        ({"score": "high"}, 'score: expected "natural" or "reference"'),
        ({"n_best": -1}, "n_best: expected at least 0"),
    ],
)
def test_options_that_do_not_exist_are_refused(
    demo: Captioner, features: FeatureMap, options: dict[str, object], message: str
) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        demo.describe(features[0], [Box(0, 0, 9, 9)], **options)


# What the published code gets wrong (SPEC section 8, last lines), and this does not.


def test_every_kind_of_region_takes_several_images_at_once(demo: Captioner, features: FeatureMap) -> None:
    heads = [AttentionHead(index) for index in range(demo.manifest.architecture.heads)]
    regions = [[*heads, Register(1), WholeImage("attention"), *each(*BOXES)[0]]] * 2
    together = demo.describe(features, regions)
    for image in range(2):
        alone = demo.describe(features[image], regions[image])
        assert [caption.text for caption in alone] == [caption.text for caption in together[image]]


def test_nothing_that_was_given_is_changed(demo: Captioner, features: FeatureMap) -> None:
    boxes = np.array(BOXES, np.float32)
    regions = [[BoxSet.published(boxes, pool="attention"), *each(*boxes, pool="attention")[0], Patch(0, 0)]] * 2
    before = boxes.copy(), features.tokens.clone(), features.cls_attention_logits.clone()
    first = demo.vectors(features, regions)
    demo.describe(features, regions, clean="orthogonal", n_best=2)
    demo.describe(features, [own[:-1] for own in regions], reencode="mean", score="reference")
    np.testing.assert_array_equal(boxes, before[0])
    torch.testing.assert_close(features.tokens, before[1], rtol=0, atol=0)
    torch.testing.assert_close(features.cls_attention_logits, before[2], rtol=0, atol=0)
    torch.testing.assert_close(demo.vectors(features, regions), first, rtol=0, atol=0)


def test_boxes_that_overlap_see_the_same_attention(demo: Captioner, features: FeatureMap) -> None:
    box = Box.published(0, 0, 100, 100, pool="attention")
    other = Box.published(50, 50, 100, 100, pool="attention")
    alone = demo.vectors(features[0], [other])
    torch.testing.assert_close(demo.vectors(features[0], [box, other, box])[1:2], alone, **CLOSE)
