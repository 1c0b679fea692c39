"""AlphaCLIP's tower, which sees in an alpha plane what is to be described: CLIP's, with a convolution more."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.clip import ClipBackbone
from export.models.vit import PatchEmbed
from export.readers import made_up_decoders, read_checkpoint
from export.readers.backbone_family import BackboneRequest
from export.readers.clip import ARCHITECTURES, ClipArchitecture, ClipOptions, from_state, recognizes, state_shapes
from export.readers.seeded_decoders import seeded_decap_state
from runtime import (
    BackendError,
    Box,
    BoxSet,
    Captioner,
    Crop,
    Fit,
    Patch,
    PoolingOptions,
    Region,
    RegionError,
    WholeImage,
)
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import EngineFiles
from runtime.image import prepare, with_alpha
from runtime.regions import PublishedBox, marked_pixels
from tests.conftest import build_once

ALPHA = replace(ARCHITECTURES["alphaclip_vitb16"], width=64, depth=2, output_dim=32, trained_size=32)
PIXELS = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in state_shapes(ALPHA, 32).items()}


def tower(state: dict[str, Tensor], architecture: ClipArchitecture | None) -> ClipBackbone:
    return from_state(state, BackboneRequest(32, "test", architecture, ClipOptions()))


def plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights as OpenAI names CLIP's, without the alpha plane's."""
    renamed = {f"visual.{name.replace('in_proj.', 'in_proj_')}": value for name, value in state.items()}
    return {name: value for name, value in renamed.items() if "alpha" not in name}


class WithAlpha(nn.Module):
    """Patches of pixels, and of an alpha plane by a convolution of its own."""

    def __init__(self, patches: PatchEmbed, weights: Tensor, alpha: Tensor) -> None:
        super().__init__()
        self.patches, self.weights, self.alpha = patches, weights, alpha

    def forward(self, images: Tensor) -> Tensor:
        of_alpha = F.conv2d(self.alpha[:, None], self.weights, stride=16)
        return self.patches(images) + of_alpha.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("architecture", [ALPHA, None])
@pytest.mark.parametrize("marked", ["all", "a part", "nothing"])
def test_patches_are_of_pixels_and_of_what_is_marked(
    architecture: ClipArchitecture | None, marked: str, state: dict[str, Tensor]
) -> None:
    assert recognizes(state)
    alpha = torch.zeros(2, 32, 32)
    if marked != "nothing":
        alpha[:, 5:] = 1
        alpha[:, :5] = float(marked == "all")
    expected = tower(plain(state), None)
    without = expected(PIXELS)[0]
    patches = WithAlpha(expected.patch_embed, state["conv1_alpha.weight"], alpha)
    expected.patch_embed = patches  # type: ignore[assignment]
    backbone = tower(state, architecture)
    planes = torch.cat([PIXELS, (alpha[..., None] * 255).to(torch.uint8)], dim=-1)
    with torch.inference_mode():
        tokens = backbone(planes)[0]
        torch.testing.assert_close(tokens, expected(PIXELS)[0], rtol=1e-4, atol=1e-5)
    assert torch.allclose(tokens, without, atol=1e-5) == (marked == "nothing")
    if marked == "all":
        torch.testing.assert_close(with_alpha(PIXELS), planes, rtol=0, atol=0)
    (note,) = backbone.notes
    assert "a pass for each region" in note


@pytest.fixture
def shallow_decoders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let seeded decoders have a layer instead of four, which take seconds to trace."""

    def first_layer(*given: Any) -> dict[str, Tensor]:
        state = seeded_decap_state(*given)
        return {name: value for name, value in state.items() if not re.search(r"\.h\.[1-9]", name)}

    monkeypatch.setattr(made_up_decoders, "seeded_decap_state", first_layer)


@pytest.mark.slow
@pytest.mark.usefixtures("shallow_decoders")
def test_a_bundle_describes_each_region_in_a_pass_that_sees_it_marked(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Against the tower in torch: of the regions of two images, alone and together, all kinds and both fits."""
    name = "seeded:alphaclip_vitb16,size=32,depth=1,memory=20"
    bundle = build_once(tmp_path_factory, name, "alphaclip", "--max-images", "2")
    backbone = read_checkpoint(name).backbone
    noise = np.random.default_rng(0)
    images = [Image.fromarray(noise.integers(0, 256, (40, 64, 3), np.uint8)) for _ in range(2)]
    regions: list[list[Region]] = [
        [Box(4, 4, 30, 20), Box.published(3, 5, 20.5, 17.2), Patch(1, 0), WholeImage()],
        [BoxSet([Box(0, 0, 32, 10), Box(32, 20, 64, 40)])],
    ]
    for fit in Fit:
        with Captioner.load(bundle, "cpu", fit=fit) as captioner:
            assert captioner.pipeline.encodes_each_region(PoolingOptions(reencode="cls"))
            assert not captioner.pipeline.encodes_each_region(PoolingOptions())
            features = captioner.encode(images)
            pixels, _ = prepare(images, 32, fit)
            flat = [(image, region) for image, own in enumerate(regions) for region in own]
            marks = [marked_pixels(_exclusive(region), features.canvases[image]) for image, region in flat]
            planes = torch.stack(
                [
                    torch.cat(
                        [pixels[image], torch.from_numpy(mark)[..., None] * torch.tensor(255, dtype=torch.uint8)], -1
                    )
                    for (image, _), mark in zip(flat, marks, strict=True)
                ]
            )
            with torch.inference_mode():
                tokens = backbone(planes)[0]
                whole = backbone(with_alpha(pixels))[0]
            torch.testing.assert_close(features.tokens, whole, rtol=1e-4, atol=1e-4)
            vectors = captioner.vectors(features, regions, reencode="cls")
            torch.testing.assert_close(vectors, tokens[:, 0], rtol=1e-4, atol=1e-4)
            assert not torch.allclose(vectors[0], vectors[1], atol=1e-2)
            alone = captioner.vectors(features[1], regions[1], reencode="cls")
            torch.testing.assert_close(alone, vectors[4:], rtol=1e-4, atol=1e-4)
            mean = captioner.vectors(features, regions, reencode="mean")
            torch.testing.assert_close(mean[2], tokens[2, 3], rtol=1e-4, atol=1e-4)  # patch (1, 0) of 2 x 2, after cls
            assert all(one.text for one in captioner.describe(features, regions, reencode="cls")[0])
            assert captioner.vectors(features, [[], []], reencode="cls").shape == (0, 512)
            with pytest.raises(RegionError, match=r"image 1: region 1: Box.* lies outside the image of 64 x 40"):
                captioner.vectors(features, [[], [Box(20, 0, 29, 9), Box(70, 0, 90, 9)]], reencode="cls")
            with pytest.raises(RegionError, match="these features were made without their image"):
                captioner.vectors(replace(features, images=None), regions, reencode="cls")
            with pytest.raises(RegionError, match='Crop.*: reencode="cls" takes regions of patches only'):
                captioner.vectors(features, [[Crop(0, 0, 9, 9)], []], reencode="cls")


def _exclusive(region: Region) -> Region:
    return replace(region, rounding="corners_without_end") if isinstance(region, PublishedBox) else region


def test_towers_with_and_without_an_alpha_plane_are_told_apart(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="test: conv1_alpha.weight: expected it in AlphaCLIP's towers"):
        tower(plain(state), ALPHA)
    with pytest.raises(CheckpointError, match="test: conv1_alpha.weight: expected it in AlphaCLIP's towers"):
        tower(state, replace(ALPHA, has_alpha=False))
    with pytest.raises(CheckpointError, match="test: transformer.resblocks.0.attn.in_proj_weight is not a weight"):
        tower({name.replace("in_proj.", "in_proj_"): value for name, value in state.items()}, ALPHA)
    wrong = state | {"conv1_alpha.weight": torch.zeros(64, 1, 8, 8)}
    with pytest.raises(CheckpointError, match=r"test: patch_embed.alpha.weight: expected"):
        tower(wrong, ALPHA)


def test_openvino_in_bfloat16_sees_alpha_as_float32_does(state: dict[str, Tensor], tmp_path: Path) -> None:
    """Which a convolution of four channels is not: its patches are unlike those of float32."""
    try:
        backend = OpenVinoBackend(1, "bf16")
    except BackendError as error:
        pytest.skip(str(error))
    backbone = tower(state, ALPHA)
    export_graph(backbone_spec(backbone), tmp_path)
    engine = backend.open(EngineFiles(tmp_path / "backbone.onnx"))
    tokens = engine.run({"pixel_values": with_alpha(PIXELS)})["tokens"]
    engine.close()
    with torch.inference_mode():
        expected = backbone(with_alpha(PIXELS))[0]
    assert F.cosine_similarity(tokens, expected, dim=-1).min() > 0.999
