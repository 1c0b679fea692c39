"""Reads ProxyCLIP: OpenAI's CLIP and a DINO or DINOv2 over the same image (published-system.md, section 13)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from export.checkpoint import CheckpointError
from export.models.proxyclip import ProxyclipBackbone, ProxyclipConfig
from export.models.vit import resize_grid_by_factor
from export.readers import clip, dinov2
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Settings,
    Shapes,
    StateDict,
    WeightFile,
    published_space,
)
from export.readers.dinov2 import Dinov2Architecture
from export.text_spaces import TextSpace

_VISION_PREFIX = "vfm."
_CLIP = "clip_vitb16"
_PATCH_SIZE = clip.ARCHITECTURES[_CLIP].patch_size
_DINO = Dinov2Architecture(
    output_dim=768,
    depth=12,
    num_registers=0,
    attention_heads=12,
    swiglu_width=None,
    patch_size=8,
    trained_grid=28,
    has_layer_scale=False,
    default_size=296,
    files=(WeightFile("dino_vitbase8_pretrain.pth", None, seed="dino_vitb8/", origin="of facebookresearch/dino"),),
    scales={"attn.proj.weight": 0.3, "mlp.fc2.weight": 0.3},
)
"""DINO ViT-B/8: DINOv2's modules without layer scales."""


@dataclass(frozen=True, kw_only=True)
class ProxyclipArchitecture(Architecture):
    """A published pair of towers.

    Attributes:
        vision: the DINO, whose grid the patches have.
    """

    vision: Dinov2Architecture

    @property
    def towers(self) -> tuple[clip.ClipArchitecture, Dinov2Architecture]:
        """CLIP and the DINO, with as many blocks as this has."""
        return replace(clip.ARCHITECTURES[_CLIP], depth=self.depth), replace(self.vision, depth=self.depth)


class ProxyclipOptions(FamilyOptions):
    """What may be chosen; each of the three is a fault of the published system if it is not the default.

    Attributes:
        published: whether what counts as similar is averaged over all images of a batch, so that an image's captions
            depend on the others.
        raw_memory: whether rows of a memory bank keep their length and the projected vector gets none; else both have
            length 1, as what decoders were trained on.
        pixels: the mean and deviation that CLIP's pixels have: its own, or "imagenet", as published.
    """

    published: bool = False
    raw_memory: bool = False
    pixels: Literal["clip", "imagenet"] = "clip"


ProxyclipRequest: TypeAlias = BackboneRequest[ProxyclipArchitecture, ProxyclipOptions]

ARCHITECTURES = {
    f"proxyclip_vitb16_{name}": ProxyclipArchitecture(
        output_dim=512,
        depth=12,
        vision=vision,
        default_size=vision.default_size,
        text_space=clip.ARCHITECTURES[_CLIP].text_space,
        files=(
            *clip.ARCHITECTURES[_CLIP].files,
            *(replace(file, prefix=_VISION_PREFIX) for file in vision.files),
        ),
        scales=vision.scales,
    )
    for name, vision in (("dino", _DINO), ("dinov2", dinov2.ARCHITECTURES["dinov2_vitb14_reg"]))
}
"""The published pairs, by their DINO."""


def recognizes(state: StateDict) -> bool:
    """Return whether a state dict holds a CLIP tower and a DINO, whose names have the prefix ``vfm.``."""
    clip_state, vision_state = _towers(state)
    return bool(vision_state) and clip.recognizes(clip_state)


def from_state(state: StateDict, request: ProxyclipRequest) -> ProxyclipBackbone:
    """Return the backbone of a state dict, the position tables of both towers resized for the image size.

    Raises:
        CheckpointError: a weight is missing, unknown or wrongly shaped, or the size does not suit.
    """
    size, source, options = request.image_size, request.source, request.options
    clip_architecture, dinov2_architecture = request.architecture.towers if request.architecture else (None, None)
    clip_state, vision_state = _towers(state)
    vision = dinov2.backbone_from_state(vision_state, size, f"{source}: DINO", dinov2_architecture)
    if size < _PATCH_SIZE:
        raise CheckpointError(f"size {size}: expected at least {_PATCH_SIZE}, the patch size of CLIP")
    tower = clip.from_state(
        clip_state,
        BackboneRequest(size // _PATCH_SIZE * _PATCH_SIZE, source, clip_architecture, clip.ClipOptions()),
        resize_grid_by_factor,
    )
    config = ProxyclipConfig(clip_pixels=options.pixels == "clip", averages_batch=options.published)
    return ProxyclipBackbone(tower, vision, config).eval()


def _towers(state: StateDict) -> tuple[StateDict, StateDict]:
    """Return the weights of CLIP and those of the DINO, by their own names."""
    vision = {
        name.removeprefix(_VISION_PREFIX): value for name, value in state.items() if name.startswith(_VISION_PREFIX)
    }
    return {name: value for name, value in state.items() if not name.startswith(_VISION_PREFIX)}, vision


def state_shapes(architecture: ProxyclipArchitecture, image_size: int) -> Shapes:
    """Return the shapes of both towers' weights by their published names, those of the DINO with its prefix."""
    tower, vision = architecture.towers
    return clip.state_shapes(tower, image_size) | {
        f"{_VISION_PREFIX}{name}": shape for name, shape in dinov2.state_shapes(vision, image_size).items()
    }


def space_of(architecture: ProxyclipArchitecture, options: ProxyclipOptions) -> TextSpace:
    """Return CLIP's space, with rows and outputs of length 1 or, as published, neither."""
    return replace(published_space(architecture), unit_rows=not options.raw_memory, unit_output=not options.raw_memory)


def _chosen_by(settings: Settings) -> str | None:
    """Return the pair that a configuration names: a CLIP model and, in a word, a DINO."""
    if not settings.get("proxyclip_clipmodel"):
        return None
    tower, vision = str(settings["proxyclip_clipmodel"]), settings.get("proxyclip_vfm")
    if clip.FAMILY.find(tower) != _CLIP:
        raise CheckpointError(f"proxyclip_clipmodel: expected ViT-B/16, got {tower!r}")
    if f"proxyclip_vitb16_{vision}" not in ARCHITECTURES:
        raise CheckpointError(f"proxyclip_vfm: expected dino or dinov2, got {vision!r}")
    return f"proxyclip_vitb16_{vision}"


FAMILY = BackboneFamily(
    "proxyclip",
    ARCHITECTURES,
    ProxyclipOptions,
    recognizes,
    from_state,
    state_shapes,
    chosen_by=_chosen_by,
    settings=frozenset({"proxyclip_clipmodel", "proxyclip_vfm"}),
    options_of=lambda settings: {"raw_memory": True, "pixels": "imagenet"} if settings.get("published") else {},
    space_of=space_of,
)
