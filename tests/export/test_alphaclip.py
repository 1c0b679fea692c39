"""AlphaCLIP's tower, whose whole image is what matters: CLIP's, with a bias in place of a convolution of ones."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.checkpoint import CheckpointError
from export.models.clip import ClipBackbone
from export.models.vit import PatchEmbed
from export.readers.backbone_family import BackboneRequest
from export.readers.clip import ARCHITECTURES, ClipArchitecture, ClipOptions, from_state, recognizes, state_shapes

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
    """Patches of pixels and of an alpha plane of ones."""

    def __init__(self, patches: PatchEmbed, alpha: Tensor) -> None:
        super().__init__()
        self.patches, self.alpha = patches, alpha

    def forward(self, images: Tensor) -> Tensor:
        ones = torch.ones_like(images[:, :1])
        return self.patches(images) + F.conv2d(ones, self.alpha, stride=16).flatten(2).transpose(1, 2)


@pytest.mark.parametrize("architecture", [ALPHA, None])
def test_an_alpha_of_ones_is_a_bias(architecture: ClipArchitecture | None, state: dict[str, Tensor]) -> None:
    assert recognizes(state)
    expected = tower(plain(state), None)
    without = expected(PIXELS)[0]
    expected.patch_embed = WithAlpha(expected.patch_embed, state["conv1_alpha.weight"])  # type: ignore[assignment]
    backbone = tower(state, architecture)
    with torch.inference_mode():
        tokens = backbone(PIXELS)[0]
        torch.testing.assert_close(tokens, expected(PIXELS)[0], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(tokens, without, atol=0.01)
    (note,) = backbone.notes
    assert "those of regions are pooled from the same pass" in note


def test_towers_with_and_without_an_alpha_plane_are_told_apart(state: dict[str, Tensor]) -> None:
    with pytest.raises(CheckpointError, match="test: conv1_alpha.weight: expected it in AlphaCLIP's towers"):
        tower(plain(state), ALPHA)
    with pytest.raises(CheckpointError, match="test: conv1_alpha.weight: expected it in AlphaCLIP's towers"):
        tower(state, replace(ALPHA, has_alpha=False))
    with pytest.raises(CheckpointError, match="test: transformer.resblocks.0.attn.in_proj_weight is not a weight"):
        tower({name.replace("in_proj.", "in_proj_"): value for name, value in state.items()}, ALPHA)
