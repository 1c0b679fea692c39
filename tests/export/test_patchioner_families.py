"""Patch-ioner configurations of other families than DINOv2: what their published keys choose, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from export import build_engines
from export.checkpoint import Checkpoint, CheckpointError
from export.models import BackboneModel
from export.models.clip import ClipBackbone
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.readers import clip, configured_backbone, configured_decoder, patchioner, read_checkpoint
from export.readers.backbone_family import (
    Architecture,
    BackboneFamily,
    BackboneRequest,
    FamilyOptions,
    Settings,
    WeightFile,
)
from export.readers.clip_bpe import find_merges, read_clip_bpe
from export.readers.hub import FileRequest, resolve_files
from export.readers.patchioner import Origin, read_patchioner
from export.text_spaces import TextSpace
from tests.export.conftest import whole_bank

WIDTH, ROWS = 512, 6
SIGLIP2 = "Ruggero1912/Patch-ioner_siglip2_base_patch16_512_COCO_Captions"
# The keys of the published configurations; their paths are of another machine.
SHARED = {
    "decap_weights": "/elsewhere/clip-b16-ksplits/coco_karpathy-009.pt",
    "prefix_size": WIDTH,
    "support_memory_size": ROWS,
    "normalize": False,
    "use_talk2dino_project": False,
    "projection_type": "/elsewhere/coco_train_karpathy.json",
    "resize_dim": 32,
    "crop_dim": 32,
    "clip_model_name": "ViT-B/16",
}
CLIP = SHARED | {"dino_model": "vit_base_patch16_clip_224.openai"}
INVITE = SHARED | {
    "dino_model": "INViTE_B16",
    "linear_talk2dino": False,
    "invite_config": {"name": "ViT-B/16", "jit": False, "extract_last_k_th_token": 1, "viz": False},
}
OPEN_CLIP = SHARED | {"dino_model": "ViT-H/14", "use_open_clip": True, "crop_dim": 28, "resize_dim": 28}
DENSECLIP = SHARED | {"dino_model": "INViTE_B16", "denseclip_config": "denseclip_segmentation_vitb16_long_ctx"}
ALPHACLIP = SHARED | {
    "dino_model": "AlphaClip",
    "alphaclip_config": {
        "patch_size": 16,
        "name": "ViT-B/16",
        "alpha_vision_checkpoint": "/elsewhere/clip_b16_grit1m_fultune_8xe.pth",
        "use_cls_for_localized_captions": True,
        "embed_dim": 512,
    },
}
BANK = f"clip-coco_captions_text_embeddings-ViT-B.16-{ROWS}.h5"
INVITE_BANK = f"invite-coco_captions_text_embeddings-ViT-B.16-{ROWS}.h5"

pytestmark = pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")


@lru_cache
def cached_clip_bpe(merges: Path | None) -> Tokenizer:
    return read_clip_bpe(merges)


@pytest.fixture(autouse=True)
def small_towers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Towers of the published names, but one narrow block; and a torch hub that has downloaded nothing."""
    for name, architecture in list(clip.ARCHITECTURES.items()):
        small = replace(architecture, width=64, depth=1, trained_size=2 * architecture.patch_size)
        monkeypatch.setitem(clip.ARCHITECTURES, name, small)
    monkeypatch.setattr(configured_decoder, "read_clip_bpe", cached_clip_bpe)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def tower_state(name: str, size: int = 32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = clip.state_shapes(clip.ARCHITECTURES[name], size)
    return {part: torch.randn(shape, generator=generator) * 0.2 for part, shape in shapes.items()}


def write_decoder(folder: Path, width: int = WIDTH) -> None:
    torch.manual_seed(0)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=49408, n_positions=8, n_embd=8, n_layer=1, n_head=1))
    state = {f"decoder.{name}": value for name, value in gpt.state_dict().items()}
    state |= {"clip_project.model.0.weight": torch.randn(8, width), "clip_project.model.0.bias": torch.zeros(8)}
    torch.save(state, folder / "coco_karpathy-009.pt")


def write_bank(file: Path, width: int = WIDTH) -> None:
    with h5py.File(file, "w") as bank:
        bank["coco_captions-embeddings"] = np.random.default_rng(0).standard_normal((ROWS, width)).astype(np.float32)
        bank["coco_captions-text"] = [f"caption {number}".encode() for number in range(ROWS)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Decoder, bank and CLIP's file by their published names."""
    write_decoder(tmp_path)
    write_bank(tmp_path / BANK)
    torch.save(tower_state("clip_vitb16"), tmp_path / "ViT-B-16.pt")
    return tmp_path


def read(folder: Path, settings: Settings, **changes: object) -> Checkpoint:
    """Read a configuration, without the keys that are None."""
    config = folder / "config.yaml"
    config.write_text(
        yaml.safe_dump({key: value for key, value in {**settings, **changes}.items() if value is not None})
    )
    return read_patchioner(config, Origin(str(config), ()))


def test_clip_is_chosen_by_the_name_of_timm(folder: Path) -> None:
    """Rows of its bank get unit length, what is projected keeps its own."""
    checkpoint = read(folder, CLIP)
    assert isinstance(checkpoint.backbone, ClipBackbone)
    assert (checkpoint.backbone_name, checkpoint.text_space) == ("clip_vitb16", "clip-b16")
    assert (checkpoint.backbone.image_size, checkpoint.backbone.numbers.patch_size) == (32, 16)
    assert checkpoint.memory is not None
    assert not checkpoint.memory.normalize
    torch.testing.assert_close(whole_bank(checkpoint.memory)[0].norm(dim=1), torch.ones(ROWS))
    assert checkpoint.notes == ()
    normalized = read(folder, CLIP, normalize=None).memory
    assert normalized is not None
    assert normalized.normalize


@pytest.mark.parametrize(
    "name",
    ["ViT-B/16", "openai/clip-vit-base-patch16", "timm/vit_base_patch16_clip_224.openai", "clip_vitb16"],
)
def test_a_backbone_has_many_names(name: str, folder: Path) -> None:
    assert read(folder, CLIP, dino_model=name).backbone_name == "clip_vitb16"


def test_the_size_is_the_architectures_where_none_is_set(folder: Path) -> None:
    assert read(folder, CLIP, crop_dim=None, resize_dim=None).backbone.image_size == 224


def test_a_bank_keeps_the_rules_of_the_space_that_is_named(folder: Path) -> None:
    """A space that was never published goes by the backbone's own."""
    for name, is_unit in (("clip-b32", True), ("mine", True), ("t2d-dinov2-b-2024", False)):
        memory = read(folder, CLIP, text_space=name).memory
        assert memory is not None
        assert memory.unit_rows is is_unit


@pytest.mark.parametrize("dino_model", ["INViTE_B16", "vit_base_patch16_clip_224.openai", None])
def test_invite_is_chosen_by_its_own_key(dino_model: str | None, folder: Path) -> None:
    """By any dino_model; its bank is plain CLIP's, by its own name or CLIP's."""
    backbone = read(folder, INVITE, dino_model=dino_model).backbone
    assert isinstance(backbone, ClipBackbone)
    assert backbone.config.self_attending == 1
    plain = read(folder, CLIP).backbone
    pixels = torch.randint(0, 256, (1, 32, 32, 3), dtype=torch.uint8)
    assert not torch.allclose(backbone(pixels)[0], plain(pixels)[0])
    write_bank(folder / INVITE_BANK)
    memory = read(folder, INVITE).memory
    assert memory is not None
    assert INVITE_BANK in memory.source


@pytest.mark.parametrize(("blocks", "expected"), [(1, 1), (-1, 0), (0, 0)])
def test_invite_changes_as_many_blocks_as_configured(blocks: int, expected: int, folder: Path) -> None:
    backbone = read(folder, INVITE, invite_config={"name": "ViT-B/16", "extract_last_k_th_token": blocks}).backbone
    assert isinstance(backbone, ClipBackbone)
    assert backbone.config.self_attending == expected


def test_invites_resolution_is_the_size_of_its_input(folder: Path) -> None:
    invite = {**INVITE["invite_config"], "resolution": 48}  # type: ignore[dict-item]
    assert read(folder, INVITE, invite_config=invite, crop_dim=48, resize_dim=48).backbone.image_size == 48
    assert read(folder, INVITE, invite_config=invite, crop_dim=None, resize_dim=None).backbone.image_size == 48
    with pytest.raises(CheckpointError, match="crop_dim: expected 48, the size that is set for it, got 32"):
        read(folder, INVITE, invite_config=invite)


def test_open_clip_leaves_out_its_last_norm_only_as_published(folder: Path) -> None:
    torch.save(tower_state("openclip_vith14"), folder / "open_clip_pytorch_model.bin")
    write_decoder(folder, 1024)
    bank = f"clip-coco_captions_text_embeddings-open_clip-ViT-H.14-{ROWS}.h5"
    write_bank(folder / bank, 1024)
    settings = OPEN_CLIP | {"prefix_size": 1024, "clip_model_name": None}
    right, published = (read(folder, settings, published=flag).backbone for flag in (None, True))
    assert isinstance(right, ClipBackbone)
    assert isinstance(published, ClipBackbone)
    assert (right.config.norms_output, published.config.norms_output) == (True, False)
    with pytest.raises(CheckpointError, match="use_open_clip: expected ViT-H/14 by dino_model, got 'ViT-B/16'"):
        read(folder, settings, dino_model="ViT-B/16")


def test_published_changes_nothing_where_no_row_rests_on_a_fault(folder: Path) -> None:
    backbone = read(folder, CLIP, published=True).backbone
    assert isinstance(backbone, ClipBackbone)
    assert backbone.config.norms_output


def test_denseclip_is_chosen_by_the_name_of_its_configuration(folder: Path) -> None:
    """The one with long texts has another file, and its bank names it."""
    state = tower_state("denseclip_vitb16")
    torch.save({"meta": {"epoch": 3}, "state_dict": state}, folder / "ViT-B-DenseCLIP_long_ctx.pth")
    write_bank(
        folder / "denseclip-coco_captions_text_embeddings-denseclip-"
        f"denseclip_segmentation_vitb16_long_ctx-ViT-B.16-{ROWS}.h5"
    )
    checkpoint = read(folder, DENSECLIP)
    assert (checkpoint.backbone_name, checkpoint.text_space) == ("denseclip_vitb16", "denseclip-b16")
    with pytest.raises(CheckpointError, match=r"missing ViT-B-DenseCLIP.pth \(denseclip_vitb16, the backbone; of "):
        read(folder, DENSECLIP, denseclip_config="denseclip_segmentation_vitb16")
    with pytest.raises(CheckpointError, match="denseclip_config: expected denseclip_segm.*, or .* got 'rn50'"):
        read(folder, DENSECLIP, denseclip_config="rn50")


def test_alphaclip_is_its_own_tower_or_plain_clip_as_published(folder: Path) -> None:
    """Its file is found by the name that the configuration gives; its bank is plain CLIP's."""
    checkpoint = read(folder, ALPHACLIP, published=True)
    assert (checkpoint.backbone_name, checkpoint.notes) == ("clip_vitb16", ())
    with pytest.raises(CheckpointError, match="missing clip_b16_grit1m.* the backbone; of AlphaCLIP's model zoo"):
        read(folder, ALPHACLIP)
    torch.save(tower_state("alphaclip_vitb16"), folder / "clip_b16_grit1m_fultune_8xe.pth")
    checkpoint = read(folder, ALPHACLIP)
    assert (checkpoint.backbone_name, checkpoint.text_space) == ("alphaclip_vitb16", "clip-b16")
    assert len(checkpoint.notes) == 1
    assert "a pass for each region" in checkpoint.notes[0]
    with pytest.raises(CheckpointError, match="alphaclip_config: name: expected ViT-B/16, got 'ViT-L/14'"):
        read(folder, ALPHACLIP, alphaclip_config={"name": "ViT-L/14"})


@pytest.mark.parametrize(
    ("settings", "changes", "bank"),
    [
        (CLIP, {"dino_model": "vit_base_patch32_clip_224.openai", "clip_model_name": "ViT-B/32"},
         "clip-coco_captions_text_embeddings-ViT-B.32-7.h5"),
        (CLIP, {"dino_model": "vit_base_patch32_clip_224.openai", "clip_model_name": None},
         "clip-coco_captions_text_embeddings-ViT-B.32-7.h5"),
        (CLIP, {"projection_type": "vg"}, "clip-vg_captions_text_embeddings-ViT-B.16-7.h5"),
        (CLIP, {"projection_type": "/elsewhere/flickr30k.json"}, BANK.replace(f"-{ROWS}.", "-7.")),
        (INVITE, {}, INVITE_BANK.replace(f"-{ROWS}.", "-7.")),
        (OPEN_CLIP, {}, "clip-coco_captions_text_embeddings-open_clip-ViT-B.16-7.h5"),
        (DENSECLIP, {"clip_model_name": None, "denseclip_config": "configs/denseclip_segmentation_vitb16.yaml"},
         "denseclip-coco_captions_text_embeddings-denseclip-denseclip_segmentation_vitb16-DenseClip-7.h5"),
        (CLIP, {"dino_model": "dinov2_vitb14_reg", "use_talk2dino_project": "-L14", "talk2dino_attn_type": "kkv"},
         "coco_captions_text_embeddings_kkv-L14-ViT-B.16-7.h5"),
    ],
)  # fmt: skip
def test_the_name_of_a_banks_file_follows_from_its_family(
    settings: Settings, changes: dict[str, object], bank: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, settings, support_memory_size=7, **changes)
    assert f", {bank} (the memory bank; " in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        (INVITE, {"denseclip_config": "denseclip_segmentation_vitb16"}, "invite_config, denseclip_config: they ask"),
        (INVITE, {"dino_model": "dinov2_vitb14_reg"},
         "dino_model, invite_config: they ask for backbones of .* and .*; leave those of one"),
        (INVITE, {"invite_config": {"name": "ViT-L/14"}}, "name: expected ViT-B/16 or ViT-B/32, got 'ViT-L/14'"),
        (INVITE, {"invite_config": "ViT-B/16"}, "invite_config: expected keys and values, got 'ViT-B/16'"),
        (INVITE, {"invite_config": {"name": "ViT-B/16", "extract_last_k_th_token": "all"}}, "yaml: invite: .*'all'"),
        (INVITE, {"invite_config": {"name": "ViT-B/16", "resolution": "big"}, "crop_dim": None},
         "expected a whole number of at least 1, got 'big'"),
        (CLIP, {"clip_model_name": "ViT-B/32"}, "clip_model_name: expected ViT-B/16, the backbone's own"),
        (CLIP, {"crop_dim": 40}, "size 40: expected a multiple of the patch size, 16"),
        (CLIP, {"published": "yes please"}, "published: expected true or false, got 'yes please'"),
        (CLIP, {"dino_model": None}, "dino_model is missing; it names the backbone, or a key such as invite_config"),
        (CLIP, {"dino_model": "vit_large_patch14_clip_224.openai"}, "dino_model: expected one of .*clip_vitb16"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_or_name_nothing_are_refused(
    settings: Settings, changes: dict[str, object], message: str, folder: Path
) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        read(folder, settings, **changes)
    assert "\n" not in str(caught.value)


PROXYCLIP = {"proxyclip_clipmodel": "ViT-B/16", "proxyclip_vfm": "dino", "crop_dim": 296, "clip_model_name": "ViT-B/16"}
DINOTXT = {"dino_model": "dinov2_vitl14_reg4_dinotxt_tet1280d20h24l", "use_talk2dino_project": False}
SIGLIP2_KEYS = {"siglip2_config": {"model_id": "google/siglip2-base-patch16-512", "image_size": 512}, "crop_dim": 512}
T2D_BANK = "coco_captions_text_embeddings-B16-ViT-B.16-7.h5"


@pytest.mark.parametrize(
    ("settings", "name", "size", "space", "banks"),
    [
        (PROXYCLIP, "proxyclip_vitb16_dino", 296, "clip-b16", [BANK.replace(f"-{ROWS}.", "-7.")]),
        (PROXYCLIP | {"proxyclip_vfm": "dinov2", "crop_dim": 518}, "proxyclip_vitb16_dinov2", 518, "clip-b16", None),
        (DINOTXT, "dinotxt_vitl14", 518, "dinotxt-patch", ["clip-coco_captions_text_embeddings-DINO.txt-7.h5"]),
        (SIGLIP2_KEYS | {"dino_model": "siglip2_base_patch16_512"}, "siglip2_base_patch16", 512, "siglip2-b", None),
        ({"dino_model": "google/siglip2-base-patch16-512"}, "siglip2_base_patch16", 512, "siglip2-b", None),
        ({"dino_model": "facebook/dinov3-vitb16-pretrain-lvd1689m"}, "dinov3_vitb16", 448, "t2d-dinov3-b", [T2D_BANK]),
        ({"dino_model": "vit_base_patch16_dinov3.lvd1689m"}, "dinov3_vitb16", 448, "t2d-dinov3-b", [T2D_BANK]),
    ],
)  # fmt: skip
def test_the_published_configurations_of_other_families_choose_them(
    settings: Settings, name: str, size: int, space: str, banks: list[str] | None
) -> None:
    backbone = configured_backbone.configured_backbone(settings, "config.yaml")
    assert (backbone.name, backbone.image_size, backbone.text_space) == (name, size, space)
    found = [one.replace("{captions}", "coco_captions").replace("{rows}", "7") for one in backbone.banks]
    assert banks is None or found == banks


def test_a_published_row_of_proxyclip_has_raw_rows() -> None:
    for published in (False, True):
        settings = PROXYCLIP | {"published": published}
        space = configured_backbone.configured_backbone(settings, "config.yaml").space_called("clip-b16", WIDTH)
        assert space.unit_rows is not published


def test_siglip2s_bank_is_never_that_of_talk2dino(tmp_path: Path) -> None:
    """Which is as wide: a bank of unknown name has SigLIP in it, or begins as those of CLIP's family do."""
    backbone = configured_backbone.configured_backbone(SIGLIP2_KEYS, "config.yaml")
    names = tuple(one.replace("{captions}", "coco_captions").replace("{rows}", "7") for one in backbone.banks)
    (tmp_path / T2D_BANK).touch()
    with pytest.raises(CheckpointError, match="missing"):
        resolve_files([FileRequest("bank", names)], [tmp_path], "test")
    for bank in ("clip-coco_captions_text_embeddings-x-7.h5", "siglip2-coco_captions_text_embeddings-SigLIP2-7.h5"):
        (tmp_path / bank).touch()
        assert resolve_files([FileRequest("bank", names)], [tmp_path], "test") == [tmp_path / bank]


# Families by tables alone


class TwoTowers(FamilyOptions):
    """Attributes: ``mode``, what is made of them."""

    mode: str = "plain"
    published: bool = False


@pytest.fixture
def made_up_family(monkeypatch: pytest.MonkeyPatch) -> list[tuple[dict[str, Tensor], BackboneRequest[Any, TwoTowers]]]:
    """A family of two files that the readers know from its record alone; returns what a model was asked of it for."""
    asked: list[tuple[dict[str, Tensor], BackboneRequest[Any, TwoTowers]]] = []

    def from_state(state: dict[str, Tensor], request: BackboneRequest[Any, TwoTowers]) -> BackboneModel:
        asked.append((state, request))
        return Dinov2Backbone(
            Dinov2Config(WIDTH, 1, 8, num_registers=0, image_size=request.image_size, attention_heads=8)
        )

    files = (
        WeightFile("clip.pt", None, seed="clip/", prefix="clip.", origin="of a model zoo"),
        WeightFile("vfm.pth", "owner/vfm", seed="vfm/", prefix="vfm.", mirrors=("timm/vfm",)),
    )
    architecture = Architecture(output_dim=WIDTH, depth=1, files=files, text_space="clip-b16", default_size=28)
    family: BackboneFamily[Architecture, TwoTowers] = BackboneFamily(
        "made-up",
        {"made_up": architecture},
        TwoTowers,
        lambda _: False,
        from_state,
        lambda *_: {},
        chosen_by=lambda settings: "made_up" if settings.get("made_up_config") else None,
        settings=frozenset({"made_up_config"}),
        options_of=lambda settings: {"mode": settings["made_up_config"].get("mode", "plain")},
        space_of=lambda _, options: TextSpace("clip", WIDTH, unit_rows=not options.published, unit_output=False),
        banks_of=lambda *_: ("siglip2-*{captions}*-{rows}.h5",),
    )
    for module in (configured_backbone, patchioner):
        monkeypatch.setattr(module, "BACKBONE_FAMILIES", (*module.BACKBONE_FAMILIES, family))
    return asked


MADE_UP = {key: value for key, value in SHARED.items() if "dim" not in key} | {"made_up_config": {"mode": "mlp"}}


def write_towers(folder: Path) -> None:
    for name, part in (("clip.pt", "proj"), ("vfm.pth", "norm.weight")):
        torch.save({part: torch.ones(2)}, folder / name)


@pytest.mark.parametrize("published", [False, True])
def test_several_files_make_one_state_dict(
    published: bool, folder: Path, made_up_family: list[tuple[dict[str, Tensor], BackboneRequest[Any, TwoTowers]]]
) -> None:
    """Each behind its prefix; a bank whose published rows are raw is so only as published."""
    write_towers(folder)
    write_bank(folder / f"siglip2-coco_captions_text_embeddings-x-{ROWS}.h5")
    checkpoint = read(folder, MADE_UP, published=published)
    ((state, request),) = made_up_family
    assert set(state) == {"clip.proj", "vfm.norm.weight"}
    assert (request.image_size, request.options) == (28, TwoTowers(mode="mlp", published=published))
    assert checkpoint.memory is not None
    assert checkpoint.memory.unit_rows is not published
    read(folder, MADE_UP, dino_weights=["vfm.pth", "clip.pt"])
    assert set(made_up_family[1][0]) == {"clip.norm.weight", "vfm.proj"}


@pytest.mark.usefixtures("made_up_family", "hub")
def test_all_files_that_are_missing_are_named_with_where_they_are(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(tmp_path, MADE_UP)
    assert str(caught.value).endswith("put what is missing into one folder and name it with --checkpoint-dir")
    for part in (
        "missing coco_karpathy-009.pt (decap_weights, the decoder), "
        "clip.pt (made_up, the backbone; of a model zoo), "
        "vfm.pth (made_up, the backbone; also as owner/vfm or timm/vfm on the hub), "
        f"siglip2-*coco_captions*-{ROWS}.h5 (the memory bank; ",
        f"not in {tmp_path}",
        "not to be downloaded (owner/vfm: Name or service not known)",
    ):
        assert part in str(caught.value)


@pytest.mark.usefixtures("made_up_family")
@pytest.mark.parametrize("bank", [f"siglip2-coco_captions_text_embeddings-x-{ROWS}.h5", "bank.h5"])
def test_a_repository_may_call_its_configuration_and_bank_as_it_likes(
    bank: str, tmp_path: Path, hub: dict[tuple[str, str], Path]
) -> None:
    files = tmp_path / "files"
    files.mkdir()
    write_decoder(files)
    write_bank(files / bank)
    write_towers(files)
    (files / "siglip2_base_patch16_512.k.yaml").write_text(yaml.safe_dump(MADE_UP | {"dino_model": "any"}))
    for file in ("siglip2_base_patch16_512.k.yaml", "coco_karpathy-009.pt", bank):
        hub[SIGLIP2, file] = files / file
    hub[SIGLIP2, "README.md"] = files
    hub["timm/vfm", "model.safetensors"] = files / "vfm.pth"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "clip.pt").symlink_to(files / "clip.pt")
    checkpoint = read_checkpoint(SIGLIP2, folder)
    assert (checkpoint.source, checkpoint.backbone_name) == (SIGLIP2, "made_up")
    assert checkpoint.memory is not None
    assert bank in checkpoint.memory.source


@pytest.mark.usefixtures("made_up_family")
def test_a_folder_with_a_configuration_of_the_repositorys_name_needs_no_hub(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.readers.hub.download", lambda *_: pytest.fail("it was downloaded"))
    monkeypatch.setattr("export.readers.download", lambda *_: pytest.fail("it was downloaded"))
    write_towers(folder)
    write_bank(folder / f"siglip2-coco_captions_text_embeddings-x-{ROWS}.h5")
    (folder / "other.yaml").write_text("other: true")
    (folder / "siglip2_base_patch16_512.k.yaml").write_text(yaml.safe_dump(MADE_UP))
    assert read_checkpoint(SIGLIP2, folder).backbone_name == "made_up"


@pytest.mark.usefixtures("made_up_family", "hub")
def test_a_repository_in_the_hubs_cache_needs_no_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither does its configuration, whatever it is called."""
    cached = folder / "snapshot"
    cached.mkdir()
    (cached / "other.k.yaml").write_text(yaml.safe_dump(MADE_UP))
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cached))
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda _, name: str(cached / name) if (cached / name).exists() else None,
    )
    write_towers(folder)
    write_bank(folder / f"siglip2-coco_captions_text_embeddings-x-{ROWS}.h5")
    assert read_checkpoint("owner/name", folder).backbone_name == "made_up"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["README.md"], r"^owner/name: expected a Patch-ioner configuration \(.yaml\) in it, got none$"),
        (["b.yaml", "a.k.yaml"], r"^owner/name: expected one file \*.yaml, got a.k.yaml, b.yaml$"),
    ],
)
def test_a_repository_without_one_configuration_is_refused(
    names: list[str], message: str, tmp_path: Path, hub: dict[tuple[str, str], Path]
) -> None:
    hub.update({("owner/name", name): tmp_path for name in names})
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint("owner/name")


def test_a_name_that_several_files_fit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "A-1.h5").touch()
    (found,) = resolve_files([FileRequest("bank", ("none.h5", "a-*.h5"))], [tmp_path], "test")
    assert found.name == "A-1.h5"
    (tmp_path / "a-2.h5").touch()
    with pytest.raises(CheckpointError, match=r"expected one file a-\*.h5, got A-1.h5, a-2.h5"):
        resolve_files([FileRequest("bank", ("a-*.h5",))], [tmp_path], "test")


# Backbones alone


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("openai/clip-vit-base-patch16", ", clip-b16"),
        ("vit_base_patch32_clip_224.openai", ", clip-b32"),
        ("facebook/dinov2-with-registers-base", ", t2d-dinov2-b-2024"),
        ("facebook/dinov2-with-registers-small", ""),
    ],
)
def test_a_backbone_alone_is_told_from_a_checkpoint(
    name: str, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("export.readers.hub.download", lambda *_: pytest.fail("it was downloaded"))
    assert build_engines.main([name]) == 1
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"error: {name}: the backbone " in error
    assert f"captions need a decoder of its text space{space}, too: name the file of one by decap_weights" in error
    assert f"with dino_model: {name}" in error
    assert not list(tmp_path.glob("engines/*"))
