"""Feature maps of backbones with other tokens than the demo's: which token is what, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from runtime import AttentionHead, Box, Crop, FeatureMap, Fit, PoolingOptions, Region, RegionError, Register, WholeImage
from runtime.bundle import TokenLayout
from runtime.features import RegionVectors
from runtime.image import OpenImage, View
from runtime.options import PoolingKeywords
from runtime.pooling import Pooler
from runtime.regions import Canvas, Patch, weight_rows

if TYPE_CHECKING:
    from typing_extensions import Unpack

GRID, WIDTH, IMAGE_WH = 4, 3, (80, 40)
LAYOUTS = {
    "cls and registers": TokenLayout(global_tokens=("cls", "register", "register"), grid=GRID),
    "registers before cls": TokenLayout(global_tokens=("register", "register", "cls"), grid=GRID),
    "cls": TokenLayout(global_tokens=("cls",), grid=GRID),
    "pooled": TokenLayout(global_tokens=("pooled",), grid=GRID),
    "patches only": TokenLayout(global_tokens=(), grid=GRID),
}
PATCHES_ONLY = LAYOUTS["patches only"]


def feature_map(layout: TokenLayout, images: int = 2) -> FeatureMap:
    """Return random features of so many images."""
    generator = torch.Generator().manual_seed(0)
    view = View.of(IMAGE_WH, 14 * layout.grid, Fit.STRETCH)
    return FeatureMap(
        tokens=torch.randn(images, layout.num_tokens, WIDTH, generator=generator),
        cls_attention_logits=torch.randn(images, 2, layout.num_patches, generator=generator),
        views=(view,) * images,
        layout=layout,
        images=tuple(Image.new("RGB", IMAGE_WH) for _ in range(images)),
    )


def pool(
    features: FeatureMap, regions: Sequence[Sequence[Region]], **options: Unpack[PoolingKeywords]
) -> RegionVectors:
    """Pool without any engine: crops become ones, and projected vectors their negatives."""

    def encode_crops(images: Sequence[OpenImage]) -> Tensor:
        return torch.ones(len(images), WIDTH)

    def reencode(*_: Tensor) -> Tensor:
        pytest.fail("regions were re-encoded")

    return Pooler(encode_crops, reencode, torch.neg)(features, regions, PoolingOptions(**options))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_patches_and_registers_are_found_wherever_they_are(layout: TokenLayout) -> None:
    features = feature_map(layout)
    assert features.patches.shape == (2, 16, WIDTH)
    assert features.registers.shape == (2, len(layout.register_indices), WIDTH)
    for index, token in enumerate(layout.register_indices):
        torch.testing.assert_close(features.registers[:, index], features.tokens[:, token], rtol=0, atol=0)
    torch.testing.assert_close(features.patches, features.tokens[:, layout.num_global :], rtol=0, atol=0)
    vectors = pool(features, [[Patch(0, 1), Box(20, 0, 40, 10)], []]).data
    torch.testing.assert_close(vectors, features.patches[0, [1, 1]])
    registers = pool(features, [[], [Register(index) for index in range(len(layout.register_indices))]]).data
    torch.testing.assert_close(registers, features.registers[1])


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_whole_image_is_its_cls_or_pooled_token_or_refused(layout: TokenLayout) -> None:
    features = feature_map(layout)
    mean = pool(features, [[WholeImage(pool="mean")]] * 2).data
    torch.testing.assert_close(mean, features.patches.mean(dim=1))
    if layout is PATCHES_ONLY:
        with pytest.raises(
            RegionError, match='^image 1: region 0: the backbone has no cls token; use WholeImage.pool="mean".$'
        ):
            pool(features, [[], [WholeImage()]])
        with pytest.raises(RegionError, match="^the backbone has no cls token; use the mean of its patches$"):
            _ = features.cls
        return
    torch.testing.assert_close(features.cls, features.tokens[:, layout.cls_index], rtol=0, atol=0)
    torch.testing.assert_close(pool(features, [[WholeImage()]] * 2).data, features.cls)


@pytest.mark.parametrize(
    ("region", "options", "message"),
    [
        (Box(0, 0, 9, 9), {"clean": "orthogonal"}, "the backbone has no cls token; leave out clean"),
        (Box(0, 0, 9, 9), {"reencode": "cls"}, 'the backbone has no cls token; use reencode="mean"'),
        (Crop(0, 0, 9, 9), {}, "image 0: region 0: Crop.*: the backbone has no cls token; use a Box"),
        (Register(0), {}, "image 0: region 0: Register.*: the backbone has 0 registers, numbered from 0"),
    ],
)
def test_what_needs_a_token_that_a_backbone_lacks_is_refused_with_the_fix(
    region: Region, options: PoolingKeywords, message: str
) -> None:
    with pytest.raises(RegionError, match=message):
        pool(feature_map(PATCHES_ONLY), [[region], []], **options)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_global_tokens_are_projected_but_not_cleaned_wherever_they_are(layout: TokenLayout) -> None:
    features = feature_map(layout, images=1)
    kinds: list[Region] = [Register(index) for index in range(len(layout.register_indices))]
    if layout.cls_index is not None:
        kinds.append(WholeImage())
    found = pool(features, [[*kinds, Patch(0, 0)]], clean="orthogonal", clean_from="attention", alpha=0.5)
    assert found.space == "text"
    indices = [*layout.register_indices, *([] if layout.cls_index is None else [layout.cls_index])]
    units = torch.nn.functional.normalize(features.tokens[0, indices], dim=-1)
    torch.testing.assert_close(found.data[:-1], -units)
    unclean = -torch.nn.functional.normalize(features.patches[0, 0], dim=0)
    assert not torch.allclose(found.data[-1], unclean), "a patch is cleaned"


def test_a_region_vector_says_which_space_it_is_in() -> None:
    features = feature_map(LAYOUTS["cls"], images=1)
    plain, crops = pool(features, [[WholeImage()]]), pool(features, [[Crop(0, 0, 9, 9), WholeImage()]])
    assert (plain.space, len(plain), len(crops)) == ("visual", 1, 2)
    torch.testing.assert_close(crops.data[0], torch.ones(WIDTH))
    torch.testing.assert_close(crops.data[1], features.cls[0])
    cleaned = pool(features, [[Crop(0, 0, 9, 9)]], clean="contrastive")
    assert cleaned.space == "text"
    torch.testing.assert_close(cleaned.data[0], -torch.ones(WIDTH))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_rows_of_weights_have_a_column_for_each_token(layout: TokenLayout) -> None:
    canvas = Canvas(View.of(IMAGE_WH, 14 * layout.grid, Fit.STRETCH), layout)
    rows = weight_rows([Box(0, 0, 40, 20), Patch(1, 1)], canvas)
    assert rows.shape == (2, layout.num_tokens)
    assert not rows[:, : layout.num_global].any()
    np.testing.assert_allclose(rows.sum(dim=1), 1, rtol=1e-6)
    assert (canvas.grid, canvas.patch) == (GRID, 14)


def test_attention_that_was_not_given_is_refused() -> None:
    canvas = Canvas(View.of(IMAGE_WH, 14 * GRID, Fit.STRETCH), PATCHES_ONLY)
    with pytest.raises(RegionError, match="region 0: it asks for the attention of cls, which was not given"):
        weight_rows([WholeImage(pool="attention")], canvas)


@pytest.mark.parametrize(
    "region",
    [WholeImage("attention"), Box(0, 0, 40, 40, pool="attention"), AttentionHead(0)],
    ids=["whole image", "box", "head"],
)
def test_attention_of_a_backbone_that_has_none_is_refused(region: Region) -> None:
    features = feature_map(LAYOUTS["cls"])
    features = replace(features, cls_attention_logits=features.cls_attention_logits[:, :0])
    assert features[1].cls_attention_logits.shape == (1, 0, GRID**2)
    with pytest.raises(RegionError, match="attention"):
        region.weights(features.canvases[0])
    with pytest.raises(RegionError, match="which this bundle's backbone does not have; pool by mean or gaussian"):
        _ = features.cls_attention


def test_a_feature_map_is_taken_image_by_image_without_copies() -> None:
    features = feature_map(LAYOUTS["cls and registers"], images=3)
    assert len(features) == 3
    assert features[-1].tokens.data_ptr() == features.tokens[2:].data_ptr()
    assert features[1].views == features.views[1:2]
    assert features[1].layout is features.layout
    assert features.images is not None
    assert features[1].images == features.images[1:2]
    with pytest.raises(IndexError):
        features[3]
