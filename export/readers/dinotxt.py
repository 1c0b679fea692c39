"""Reads DINO.txt: a DINOv2 backbone and the vision head that aligns it with text (published-system.md, section 12)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import torch

from export.checkpoint import CheckpointError, load_weights
from export.models.dinotxt import DinotxtBackbone, VisionHead, VisionHeadConfig
from export.models.dinov2 import Dinov2Config
from export.readers import dinov2
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Shapes,
    StateDict,
    WeightFile,
    bank_name,
)
from export.readers.layouts import Layout, depth_of, in_each_block, linear_shapes, norm_shapes, to_our_names
from export.readers.weight_files import weight

_NAME = "dinov2_vitl14_reg4_dinotxt_tet1280d20h24l"
_BACKBONE = "dinov2_vitl14_reg"
_HEAD_PREFIX = "vision_head."
_HEAD = Layout(
    marker="ln_final.weight",
    names={"ln_final": "norm"},
    block="block_list.#.",
    block_names={
        name: name for name in ("norm1", "attn.qkv", "attn.proj", "ls1", "norm2", "mlp.w1", "mlp.w2", "mlp.w3", "ls2")
    },
)


@dataclass(frozen=True, kw_only=True)
class DinotxtArchitecture(Architecture):
    """The numbers of a published DINO.txt, whose backbone is a published DINOv2.

    Attributes:
        backbone: the name of its DINOv2.
        head_depth: the number of the vision head's blocks.
        head_hidden_width: of their gated feed-forward layers.
    """

    backbone: str
    head_depth: int
    head_hidden_width: int

    @property
    def dinov2(self) -> dinov2.Dinov2Architecture:
        """Its DINOv2, with as many blocks as this has."""
        return replace(dinov2.ARCHITECTURES[self.backbone], depth=self.depth)


class DinotxtOptions(FamilyOptions):
    """Attributes: ``published``, whether the vision head is left out, as the published system does.

    Without it patches are those of DINOv2, which nothing aligned with the text (published-system.md, section 12).
    """

    published: bool = False


DinotxtRequest: TypeAlias = BackboneRequest[DinotxtArchitecture, DinotxtOptions]

ARCHITECTURES = {
    "dinotxt_vitl14": DinotxtArchitecture(
        output_dim=1024,
        depth=24,
        backbone=_BACKBONE,
        head_depth=2,
        head_hidden_width=2752,
        default_size=518,
        text_space="dinotxt-patch",
        files=(
            *dinov2.ARCHITECTURES[_BACKBONE].files,
            WeightFile(
                f"{_NAME}_vision_head.pth",
                None,
                seed="dinotxt/vision_head/",
                prefix=_HEAD_PREFIX,
                origin="of facebookresearch/dinov2",
            ),
        ),
        aliases=(_NAME,),
    )
}
"""The published DINO.txt."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict is that of a DINOv2 with a vision head."""
    return _HEAD.prefix_in(state) == _HEAD_PREFIX


def from_state(state: StateDict, request: DinotxtRequest) -> DinotxtBackbone:
    """Return the backbone of a state dict, with the vision head unless the published way is asked for.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size is not a whole number of patches.
    """
    source, architecture = request.source, request.architecture
    head_state = {name: value for name, value in state.items() if name.startswith(_HEAD_PREFIX)}
    backbone = dinov2.backbone_from_state(
        {name: value for name, value in state.items() if name not in head_state},
        request.image_size,
        source,
        None if architecture is None else architecture.dinov2,
    )
    head = None if request.options.published else _read_head(head_state, backbone.config, request)
    return DinotxtBackbone(backbone, head).eval()


def _read_head(state: StateDict, backbone: Dinov2Config, request: DinotxtRequest) -> VisionHead:
    source, architecture = f"{request.source}: vision head", request.architecture
    if not recognizes(state):
        raise CheckpointError(
            f"{source}: {_HEAD.marker} is missing; expected the weights of {_NAME}_vision_head.pth, or the option "
            "published, which leaves the head out"
        )
    ours = to_our_names(state, _HEAD, source)
    hidden = weight(ours, "blocks.0.mlp.w1.weight", source)
    if hidden.ndim != 2:
        raise CheckpointError(f"{source}: blocks.0.mlp.w1.weight: expected 2 axes, got shape {tuple(hidden.shape)}")
    config = VisionHeadConfig(backbone.embed_dim, depth_of(ours), backbone.num_heads, hidden.shape[0])
    if architecture is not None and config.depth != architecture.head_depth:
        raise CheckpointError(f"{source}: expected {architecture.head_depth} blocks, got {config.depth}")
    with torch.device("meta"):
        head = VisionHead(config)
    load_weights(head, ours, source)
    return head


def state_shapes(architecture: DinotxtArchitecture, image_size: int) -> Shapes:
    """Return the shapes of the weights by their published names, those of the head with its prefix."""
    width, hidden = architecture.output_dim, architecture.head_hidden_width
    block: Shapes = {
        **norm_shapes("norm1", width),
        **linear_shapes("attn.qkv", width, 3 * width, bias=False),
        **linear_shapes("attn.proj", width, width),
        "ls1.gamma": (width,),
        **norm_shapes("norm2", width),
        **linear_shapes("mlp.w1", width, hidden),
        **linear_shapes("mlp.w2", width, hidden),
        **linear_shapes("mlp.w3", hidden, width),
        "ls2.gamma": (width,),
    }
    head = in_each_block("block_list.", architecture.head_depth, block) | norm_shapes("ln_final", width)
    return dinov2.state_shapes(architecture.dinov2, image_size) | {
        f"{_HEAD_PREFIX}{name}": shape for name, shape in head.items()
    }


FAMILY = BackboneFamily(
    "dinotxt",
    ARCHITECTURES,
    DinotxtOptions,
    recognizes,
    from_state,
    state_shapes,
    banks_of=lambda *_: (bank_name("clip-", "", "DINO.txt"),),
)
