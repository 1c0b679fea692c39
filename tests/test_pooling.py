"""From tokens to vectors, on the demo bundle: the published algorithm in plain torch, and properties of any bundle."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Literal, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks import eager
from export.checkpoint import Checkpoint
from export.demo import scenes
from export.models.dinov2 import Dinov2Backbone
from export.models.vit import VitBlock
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
    Region,
    RegionError,
    Register,
    Trace,
    WholeImage,
)
from runtime.backends import Engine
from runtime.bundle import Bundle
from runtime.bundle.graph_io import ReencoderBatch, reencoder_batches
from runtime.memory import MemoryBank
from runtime.options import CleanFrom, DescribeKeywords, Mode, PoolingKeywords
from runtime.pooling import RegionReencoder
from runtime.regions.canvas import Array, Canvas
from tests.doubles import RecordingBackend, captioner_of, with_manifest, without_engine

SCENES = [scenes.draw_scene(scenes.HELD_OUT_SEED + number) for number in range(2)]
BOXES = [(0.0, 0.0, 223.0, 223.0), (20.0, 35.5, 90.2, 60.0), (150.0, 100.0, 0.0, 0.0), (70.0, 70.0, 40.0, 120.0)]
# Vectors are sums of float32 numbers in another order; their largest values are about 1.
assert_close = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return read_checkpoint("demo")


@pytest.fixture(scope="module")
def features(demo: Captioner) -> FeatureMap:
    return demo.encode([scene.image for scene in SCENES])


@pytest.fixture(scope="module")
def encoded(checkpoint: Checkpoint) -> list[eager.EncodedImage]:
    backbone = checkpoint.backbone
    assert isinstance(backbone, Dinov2Backbone)
    return [eager.encode_image(backbone, Image.fromarray(scene.image)) for scene in SCENES]


@pytest.fixture(scope="module")
def bank(demo: Captioner) -> MemoryBank:
    assert isinstance(demo.pipeline.projector, MemoryBank)
    return demo.pipeline.projector


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


def on_both_images(
    *boxes: tuple[float, float, float, float], pool: eager.Pool = "mean", variance: float = 0.5
) -> list[list[Region]]:
    """Return the same boxes in published form for each of the two images."""
    return [[Box.published(*box, pool=pool, variance=variance) for box in boxes]] * 2


@pytest.mark.parametrize("pool", ["mean", "gaussian", "attention"])
def test_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner, features: FeatureMap, encoded: list[eager.EncodedImage], pool: eager.Pool
) -> None:
    expected = [eager.box_vector(image, box, pool) for image in encoded for box in BOXES]
    assert_close(demo.vectors(features, on_both_images(*BOXES, pool=pool)), torch.stack(expected))


def test_sets_and_traces_are_those_of_the_algorithm_written_plainly(
    demo: Captioner, features: FeatureMap, encoded: list[eager.EncodedImage]
) -> None:
    points = [(0.1, 0.2), (0.15, 0.2), (0.9, 0.5), (1.2, 0.5)]
    regions: list[Region] = [
        BoxSet.published(BOXES, pool="attention"),
        Trace.published(points, pool="attention"),
        WholeImage("attention"),
    ]
    expected = [
        vector
        for image in encoded
        for vector in (
            eager.box_set_vector(image, BOXES, "attention"),
            eager.trace_vector(image, points, with_attention=True),
            image.average_attention,
        )
    ]
    assert_close(demo.vectors(features, [regions] * 2), torch.stack(expected))


@pytest.mark.parametrize("clean", ["orthogonal", "contrastive"])
@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("common", ["cls", "attention"])
def test_cleaned_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner,
    features: FeatureMap,
    encoded: list[eager.EncodedImage],
    bank: MemoryBank,
    clean: Literal["orthogonal", "contrastive"],
    after: bool,
    common: CleanFrom,
) -> None:
    vectors = demo.vectors(
        features, on_both_images(*BOXES), clean=clean, alpha=0.7, clean_from=common, clean_after_projection=after
    )
    expected = []
    for image in encoded:
        shared = image.cls if common == "cls" else image.average_attention
        cleaned = eager.clean_patches(image, bank.rows.stored, clean, after, shared, alpha=0.7)
        expected += [eager.box_vector(cleaned, box) for box in BOXES]
    assert_close(vectors, torch.stack(expected))


@pytest.mark.parametrize("kind", ["mean", "cls"])
def test_reencoded_boxes_are_those_of_the_algorithm_written_plainly(
    demo: Captioner,
    features: FeatureMap,
    encoded: list[eager.EncodedImage],
    checkpoint: Checkpoint,
    kind: Literal["mean", "cls"],
) -> None:
    block = checkpoint.backbone.last_block
    assert isinstance(block, VitBlock)
    expected = [
        eager.reencoded_vector(image, block, (x, y, x + width, y + height), kind)
        for image in encoded
        for x, y, width, height in BOXES
    ]
    assert_close(demo.vectors(features, on_both_images(*BOXES), reencode=kind), torch.stack(expected))


def test_gaussian_reencoding_is_a_gaussian_box_with_the_corners_rounded(demo: Captioner, features: FeatureMap) -> None:
    # 9 + 9 = 18 reaches the second patch of 14; 9 and 9 rounded down by themselves do not
    reencoded = demo.vectors(features, on_both_images((9, 9, 9, 9)), reencode="gaussian")
    expected = demo.vectors(features, on_both_images((0, 0, 14, 14), pool="gaussian", variance=0.5))
    assert_close(reencoded, expected)


def test_the_decoder_is_that_of_the_algorithm_written_plainly(demo: Captioner, checkpoint: Checkpoint) -> None:
    vectors = torch.randn(6, demo.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))
    tokens, log_probs = eager.decode(checkpoint.decoder.state_dict(), vectors)
    end = demo.manifest.decoder.eos_token_id
    natural, reference = demo.decode(vectors), demo.decode(vectors, score="reference")
    for row, caption in enumerate(natural):
        chosen = tokens[row].tolist()
        length = chosen.index(end) + 1 if end in chosen else len(chosen)
        assert list(caption.ids) == chosen[:length]
        assert caption.score == pytest.approx(log_probs[row, :length].sum().exp().item(), rel=1e-3)
        assert reference[row].score == pytest.approx(log_probs[row].sum().exp().item(), rel=1e-3)
        assert reference[row].ids == caption.ids


def test_reencoding_many_regions_at_once_is_reencoding_each_alone(
    demo: Captioner, features: FeatureMap, monkeypatch: pytest.MonkeyPatch
) -> None:
    regions: list[Region] = [
        Box(0, 0, 30, 200),
        Mask(SCENES[0].background),
        Point(100, 100),
        Box(3, 3, 221, 221),
        Box(40, 40, 60, 55),
    ]
    both = demo.vectors(features, [regions, regions[::-1]], reencode="cls")
    alone = [demo.vectors(features[0], [region], reencode="cls") for region in regions]
    alone += [demo.vectors(features[1], [region], reencode="cls") for region in regions[::-1]]
    assert_close(both, torch.cat(alone))
    batches = [ReencoderBatch(1, features.layout.num_tokens)]
    monkeypatch.setattr(demo.pipeline.pooler._reencode, "_batches", batches)
    assert_close(demo.vectors(features, [regions, regions[::-1]], reencode="cls"), both)


@pytest.mark.parametrize(
    ("num_tokens", "max_regions", "expected"),
    [
        (1374, 256, [(8, 1374), (47, 343), (192, 85), (256, 21)]),  # 8 x 1374 x 1374 < 2**24, 47 x 343 < 2**14
        (1374, 16, [(8, 1374), (16, 343)]),
        (1374, 1, [(1, 1374)]),
        (5000, 4, [(1, 5000), (4, 1250)]),  # one region is always taken
        (50, 100_000, [(327, 50), (1365, 12), (5461, 3), (16384, 1)]),
    ],
)
def test_the_smaller_the_regions_the_more_share_a_run_of_the_reencoder(
    num_tokens: int, max_regions: int, expected: list[tuple[int, int]]
) -> None:
    assert reencoder_batches(num_tokens, max_regions) == expected


def test_no_run_of_the_reencoder_is_larger_than_the_engine_takes() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens, most = 40, 6
    batches = [ReencoderBatch(2, tokens), ReencoderBatch(most, 10)]
    counts = torch.randint(1, tokens + 1, (100,), generator=generator)
    mask = torch.arange(tokens) < counts[:, None]
    runs: list[tuple[int, ...]] = []

    class SumsTokens:
        def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
            runs.append(tuple(inputs["token_mask"].shape))
            return {"vectors": (inputs["token_weights"][..., None] * inputs["tokens"]).sum(dim=1)}

    reencode = RegionReencoder(lambda: cast(Engine, SumsTokens()), batches)
    features, weights = torch.randn(1, tokens, 8, generator=generator), mask.float()
    vectors = reencode(features, torch.zeros(100, dtype=torch.long), mask, weights)
    torch.testing.assert_close(vectors, weights @ features[0])
    assert all(rows <= (most if width <= 10 else 2) for rows, width in runs)
    assert max(rows for rows, _ in runs) == most


def test_reencoding_calls_the_engine_for_groups_of_regions(features: FeatureMap, bundle: Bundle) -> None:
    backend = RecordingBackend()
    boxes = [[Box(x, 0, x + 40, 40) for x in range(0, 180, 6)]] * 2
    with captioner_of(bundle, backend) as captioner:
        assert "reencoder" not in backend.opened, "it is opened when it is first asked for"
        captioner.vectors(features, boxes, reencode="mean")
        (run,) = backend.engines["reencoder"].runs
        captioner.vectors(features, boxes, reencode="mean")
    assert run["tokens"][0] == 60
    assert backend.opened.count("reencoder") == 1


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
    demo: Captioner, features: FeatureMap, region: Region, options: PoolingKeywords
) -> None:
    with pytest.raises(RegionError, match=r"image 1: region 1: .*: reencode=.* takes .* only"):
        demo.vectors(features, [[], [Box(0, 0, 9, 9), region]], **options)


def test_a_users_own_kind_of_region_says_whether_it_is_of_patches(demo: Captioner, features: FeatureMap) -> None:
    class FirstPatch:
        def weights(self, canvas: Canvas) -> Array:
            return canvas.token(canvas.layout.num_global)

    class FirstToken:
        is_of_patches = False

        def weights(self, canvas: Canvas) -> Array:
            return canvas.token(0)

    regions: list[Region] = [FirstPatch(), Patch(row=0, column=0)]
    own, ours = (demo.vectors(features[0], [region], reencode="mean") for region in regions)
    torch.testing.assert_close(own, ours)
    with pytest.raises(RegionError, match='region 0: .*FirstToken.*: reencode="mean" takes regions of patches only'):
        demo.vectors(features[0], [FirstToken()], reencode="mean")


def test_a_bundle_without_a_reencoder_says_so(features: FeatureMap, bundle: Bundle) -> None:
    with (
        captioner_of(without_engine(bundle, "reencoder")) as captioner,
        pytest.raises(BundleError, match="built without a re-encoder, which some families of backbones do not have"),
    ):
        captioner.vectors(features[0], [Box(0, 0, 9, 9)], reencode="mean")


def test_tokens_of_the_whole_image_are_projected_but_not_cleaned(demo: Captioner, features: FeatureMap) -> None:
    regions: list[list[Region]] = [[WholeImage(), Register(0)]] * 2
    vectors = demo.vectors(features, regions, clean="orthogonal")
    assert_close(vectors, demo.project(demo.vectors(features, regions)))


def test_cleaned_vectors_are_not_projected_again(demo: Captioner, features: FeatureMap) -> None:
    regions = on_both_images(*BOXES)
    described = demo.describe(features, regions, clean="contrastive")
    decoded = demo.decode(demo.vectors(features, regions, clean="contrastive"))
    assert [caption.ids for caption in chain(*described)] == [caption.ids for caption in decoded]


def test_crops_are_encoded_by_themselves(demo: Captioner, features: FeatureMap) -> None:
    crop = Crop(30, 40, 130.4, 90)
    cut = SCENES[1].image[40:90, 30:130]
    regions: list[list[Region]] = [[WholeImage()], [Point(5, 5), crop]]
    vectors = demo.vectors(features, regions)
    expected = torch.cat([features.cls[:1], features[1].patches[:, 0], demo.encode(cut).cls])
    assert_close(vectors, expected)
    cropping = demo.describe(features, [[crop], []])[0][0]
    assert cropping.region is crop
    cleaned = demo.vectors(features, [[], [crop]], clean="orthogonal")
    assert_close(cleaned, demo.project(demo.encode(cut).cls))


def test_crops_stretch_whatever_the_fit(demo_bundle: Path) -> None:
    image = np.concatenate([SCENES[0].image, SCENES[1].image], axis=1)
    with Captioner.load(demo_bundle, fit="crop") as cropping:
        both = cropping.vectors(cropping.encode(image), [Crop(0, 0, 448, 224), Crop(224, 0, 448, 224)])
    with Captioner.load(demo_bundle) as stretching:
        expected = stretching.encode([image, SCENES[1].image]).cls
    assert_close(both, expected)


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
    demo: Captioner, features: FeatureMap, bank: MemoryBank
) -> None:
    regions: list[list[Region]] = [[Box(0, 0, 50, 50), WholeImage()], [Patch(3, 4)]]
    cosines = torch.cosine_similarity(demo.vectors(features, regions)[:, None], bank.rows.stored[None], dim=2)
    best = cosines.topk(3, dim=1)
    texts = [[bank.captions[index] for index in row] for row in best.indices.tolist()]
    modes: list[Mode] = ["decode", "nearest"]
    for mode in modes:
        captions = list(chain(*demo.describe(features, regions, mode=mode, n_best=3)))
        assert [[match.text for match in caption.nearest] for caption in captions] == texts
        for caption, values in zip(captions, best.values.tolist(), strict=True):
            assert [match.similarity for match in caption.nearest] == pytest.approx(values, abs=1e-5)
    nearest = list(chain(*demo.describe(features, regions, mode="nearest")))
    assert [one.text for one in nearest] == [row[0] for row in texts]
    assert [one.score for one in nearest] == pytest.approx(best.values[:, 0].tolist(), abs=1e-5)
    assert all(one.ids == () and one.nearest == () for one in nearest)


def test_more_neighbours_than_the_memory_has_are_all_of_them(demo: Captioner, features: FeatureMap) -> None:
    assert demo.manifest.memory is not None
    rows = demo.manifest.memory.num_rows
    assert len(demo.describe(features[0], [WholeImage()], n_best=rows + 5)[0].nearest) == rows


def test_without_a_memory_there_are_no_neighbours_and_vectors_go_to_the_decoder_as_they_are(
    demo: Captioner, features: FeatureMap, bundle: Bundle
) -> None:
    with captioner_of(with_manifest(bundle, memory=None)) as captioner:
        kinds: list[DescribeKeywords] = [{"mode": "nearest"}, {"n_best": 1}]
        for options in kinds:
            with pytest.raises(PatchcaptionError, match="this bundle has no memory"):
                captioner.describe(features[0], [WholeImage()], **options)
        vectors = demo.vectors(features, on_both_images(*BOXES))
        torch.testing.assert_close(captioner.project(vectors), vectors, rtol=0, atol=0)
        captions = captioner.describe(features, on_both_images(*BOXES))
    assert [caption.ids for caption in chain(*captions)] == [caption.ids for caption in demo.decode(vectors)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clean": "soap"}, 'clean: expected "orthogonal" or "contrastive", got .soap.'),
        ({"clean": "orthogonal", "clean_from": "mean"}, 'clean_from: expected "cls" or "attention"'),
        ({"reencode": "max"}, 'reencode: expected "mean", "cls" or "gaussian"'),
        ({"clean": "orthogonal", "reencode": "mean"}, "exclude each other"),
        ({"mode": "best"}, 'mode: expected "decode" or "nearest"'),
        ({"score": "high"}, 'score: expected "natural" or "reference"'),
        ({"n_best": -1}, "n_best: expected a whole number from 0 on"),
    ],
)
def test_options_that_do_not_exist_are_refused(
    demo: Captioner, features: FeatureMap, options: DescribeKeywords, message: str
) -> None:
    with pytest.raises(PatchcaptionError, match=message):
        demo.describe(features[0], [Box(0, 0, 9, 9)], **options)


# What the published code gets wrong (published-system.md, section 9), and this does not.


def test_every_kind_of_region_takes_several_images_at_once(demo: Captioner, features: FeatureMap) -> None:
    heads = [AttentionHead(index) for index in range(demo.manifest.backbone.attention_heads)]
    regions: list[list[Region]] = [[*heads, Register(1), WholeImage("attention"), *on_both_images(*BOXES)[0]]] * 2
    together = demo.describe(features, regions)
    for image in range(2):
        alone = demo.describe(features[image], regions[image])
        assert [caption.text for caption in alone] == [caption.text for caption in together[image]]


def test_nothing_that_was_given_is_changed(demo: Captioner, features: FeatureMap) -> None:
    boxes = np.array(BOXES, np.float32)
    regions: list[list[Region]] = [
        [BoxSet.published(boxes, pool="attention"), *on_both_images(*boxes, pool="attention")[0], Patch(0, 0)]
    ] * 2
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
    assert_close(demo.vectors(features[0], [box, other, box])[1:2], alone)
