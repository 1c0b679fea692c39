"""The tables of readers: which name, architecture, layout and text space a checkpoint has, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
)

from export.bundle_builder import build
from export.checkpoint import Checkpoint, CheckpointError
from export.memory.bank_file import write_memory
from export.models.dinov2 import Dinov2Backbone
from export.readers import CHECKPOINT_READERS, DEMO_CONFIG, clip
from export.readers import read_checkpoint as read_by_name
from export.readers.backbone_family import AnyFamily, Architecture, BackboneRequest
from export.readers.dinov2 import ARCHITECTURES
from export.readers.families import BACKBONE_FAMILIES, architecture_names, find_architecture, recognize_family
from export.readers.seeded import TEXT_SPACE
from export.readers.talk2dino import PUBLISHED_FILES
from export.text_spaces import text_space
from runtime.bundle import Bundle, sha256_of
from tests.export.conftest import change_config

PUBLISHED = [(family, name) for family in BACKBONE_FAMILIES for name in family.architectures]
REPOSITORY = "Ruggero1912/Patch-ioner_talk2dino_decap_COCO_Captions"


def repositories_of(architecture: Architecture) -> tuple[str, ...]:
    """The repositories that are all of it; one of several files may be a backbone of another name."""
    return architecture.files[0].repositories if len(architecture.files) == 1 else ()


@pytest.mark.parametrize(("family", "name"), PUBLISHED, ids=[name for _, name in PUBLISHED])
def test_every_published_architecture_is_found_by_its_names(family: AnyFamily, name: str) -> None:
    architecture = family.architectures[name]
    repositories = repositories_of(architecture)
    for one in (name, *architecture.aliases, *repositories):
        assert find_architecture(one) == (family, architecture)
    assert all(len(repository.split("/")) == 2 for repository in repositories)
    assert architecture.text_space is None or text_space(architecture.text_space, 0).width == architecture.output_dim


def test_no_two_architectures_share_a_name_and_others_are_not_found() -> None:
    assert architecture_names() == [name for _, name in PUBLISHED]
    assert len(set(architecture_names())) == len(PUBLISHED) >= 8
    for name in ("", "dinov2", "dinov2_vitx14", "dinov2_vits14_reg4_pretrain.pth", "ViT-B/14"):
        assert find_architecture(name) is None


def test_no_name_means_two_architectures() -> None:
    names = [
        one
        for family, name in PUBLISHED
        for one in {name, *family.architectures[name].aliases, *repositories_of(family.architectures[name])}
    ]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(("family", "name"), PUBLISHED, ids=[name for _, name in PUBLISHED])
def test_the_published_layout_is_recognised_and_makes_a_model_of_its_family(family: AnyFamily, name: str) -> None:
    architecture = family.architectures[name]
    size = architecture.default_size
    shapes = family.state_shapes(architecture, size)
    state = {part: torch.empty(shape, device="meta") for part, shape in shapes.items()}
    assert recognize_family(state, name) is family
    backbone = family.from_state(state, BackboneRequest(size, name, architecture, family.options()))
    assert (backbone.family, backbone.image_size) == (family.name, size)
    assert (backbone.output_dim, backbone.numbers.depth) == (architecture.output_dim, architecture.depth)


def test_an_option_that_a_family_does_not_have_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"^x: salt: clip has no such option; it has invite, published$"):
        clip.FAMILY.read_options({"salt": "1"}, "x")
    with pytest.raises(CheckpointError, match=r"^x: invite: input should be .*, got '-1'$"):
        clip.FAMILY.read_options({"invite": "-1"}, "x")


@pytest.mark.parametrize(
    ("model", "config"),
    [
        (Dinov2Model, Dinov2Config),
        (Dinov2WithRegistersModel, Dinov2WithRegistersConfig),
        (Dinov2ForImageClassification, Dinov2Config),
    ],
)
def test_the_layout_of_transformers_is_recognised(model: type, config: type, tmp_path: Path) -> None:
    model(config(hidden_size=64, num_hidden_layers=1, num_attention_heads=1, image_size=28)).save_pretrained(tmp_path)
    family = recognize_family(load_file(tmp_path / "model.safetensors"), "model.safetensors")
    assert family.name == Dinov2Backbone.family == "dinov2"


@pytest.mark.parametrize("names", [[], ["conv1.weight", "layer1.0.conv1.weight"], ["text_projection", "positions"]])
def test_a_state_dict_of_no_family_is_refused(names: list[str]) -> None:
    state = {name: torch.zeros(1) for name in names}
    message = r"^resnet\.pth: expected the weights of a backbone of one of the families dinov2, .*$"
    with pytest.raises(CheckpointError, match=message):
        recognize_family(state, "resnet.pth")


@pytest.mark.parametrize(
    ("name", "expects"),
    [
        ("demo", "demo"),
        ("demo-viecap", "demo-viecap"),
        ("seeded:dinov2_vits14_reg", "seeded:ARCHITECTURE"),
        ("seeded:dinov2_vits14_reg,size=224,salt=a/b.yaml", "seeded:ARCHITECTURE"),
        ("config.yaml", "the path of a Patch-ioner .yaml"),
        ("owner/name.yml", "the path of a Patch-ioner .yaml"),
        (str(DEMO_CONFIG), "the path of a Patch-ioner .yaml"),
        (REPOSITORY, "OWNER/NAME on the Hugging Face hub"),
        ("owner/demo", "OWNER/NAME on the Hugging Face hub"),
    ],
)
def test_each_way_to_name_a_checkpoint_has_its_reader(name: str, expects: str) -> None:
    reader = next(reader for reader in CHECKPOINT_READERS if reader.accepts(name))
    assert reader.expects.startswith(expects)


@pytest.mark.parametrize(
    "name", ["", "dmo", "Demo", "a/b/c", "config.json", "dinov2_vits14_reg", str(DEMO_CONFIG.parent)]
)
def test_a_name_that_no_reader_accepts_is_refused_with_all_that_there_are(name: str) -> None:
    assert not any(reader.accepts(name) for reader in CHECKPOINT_READERS)
    with pytest.raises(CheckpointError) as caught:
        read_by_name(name)
    assert str(caught.value).startswith(f"checkpoint {name!r}: expected demo, seeded:ARCHITECTURE (for example ")
    assert str(caught.value).endswith(", the path of a Patch-ioner .yaml, or OWNER/NAME on the Hugging Face hub")


# Text spaces


def read(folder: Path, **settings: object) -> Checkpoint:
    return read_by_name(str(change_config(folder, **settings)))


def mark_bank(folder: Path, text_space: object) -> None:
    with h5py.File(folder / "memory.h5", "a") as file:
        file.attrs["text_space"] = text_space


class ExportBeganError(Exception):
    """Raised where a build has accepted a checkpoint."""


class StopBeforeExport:
    """Stops a build at its first graph."""

    def step(self, description: str) -> None:
        if "ONNX" in description:
            raise ExportBeganError

    def phase(self, name: str, done: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...


def begin_build(folder: Path, **settings: object) -> None:
    build(str(change_config(folder, **settings)), folder.parent / "bundle", StopBeforeExport())


def test_the_text_space_is_that_of_the_talk2dino_file_beside_the_configuration(
    demo_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256_of(demo_files / "talk2dino.pth")
    assert read(demo_files).text_space == f"t2d-{digest[:12]}"
    monkeypatch.setitem(PUBLISHED_FILES, digest, ("t2d-dinov2-b-2025", "another published file"))
    assert read(demo_files, talk2dino_weights="/elsewhere/talk2dino.pth").text_space == "t2d-dinov2-b-2025"


def test_the_text_space_may_be_named(demo_files: Path) -> None:
    assert read(demo_files, text_space="robots-2026").text_space == "robots-2026"


@pytest.mark.parametrize("text_space", ["two words", "../up", "-", ["a"]])
def test_a_text_space_that_is_no_name_is_refused_before_the_export(demo_files: Path, text_space: object) -> None:
    with pytest.raises(CheckpointError, match="config.yaml: text_space: expected letters, digits, .*, got "):
        begin_build(demo_files, text_space=text_space)


@pytest.mark.parametrize("name", ["dinov2_vitb14_reg", "dinov2_vitb14"])
def test_published_checkpoints_are_of_the_space_of_2024(
    demo_files: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo = read(demo_files).backbone
    assert isinstance(demo, Dinov2Backbone)
    small = replace(ARCHITECTURES[name], output_dim=192, depth=demo.config.depth, num_registers=4)
    monkeypatch.setitem(ARCHITECTURES, name, small)
    settings = {"dino_model": name, "talk2dino_weights": "/elsewhere/weights/vitb_mlp_infonce.pth"}
    assert read(demo_files, **settings).text_space == "t2d-dinov2-b-2024"


@pytest.mark.slow
def test_other_checkpoints_are_of_a_space_of_their_backbones_name(demo_files: Path) -> None:
    assert read(demo_files, talk2dino_weights=None).text_space == "t2d-dinov2_vitdemo14_reg"
    assert read(demo_files, dino_model="my model/2").text_space == "t2d-my-model-2"
    assert read_by_name("seeded:dinov2_vits14,size=28,memory=3").text_space == TEXT_SPACE == "seeded"


def test_a_bank_of_another_space_is_refused_before_the_export(demo_files: Path) -> None:
    mark_bank(demo_files, "t2d-dinov2-b-2025")
    message = (
        "memory.h5: .*: expected embeddings in the text space 't2d-dinov2-b-2024', the decoder's, got "
        "'t2d-dinov2-b-2025'; make the bank with the Talk2DINO weights that the decoder was trained with, or name its "
        "space by text_space in the configuration"
    )
    with pytest.raises(CheckpointError, match=message):
        begin_build(demo_files, text_space="t2d-dinov2-b-2024")
    with pytest.raises(ExportBeganError):
        begin_build(demo_files, text_space="t2d-dinov2-b-2025")
    assert not (demo_files.parent / "bundle").exists()


@pytest.mark.parametrize("stored", ["t2d-other", b"t2d-other", np.bytes_(b"t2d-other")])
def test_a_banks_space_is_read_however_its_text_is_stored(demo_files: Path, stored: object) -> None:
    mark_bank(demo_files, stored)
    bank = read(demo_files).memory
    assert bank is not None
    assert bank.text_space == "t2d-other"


def test_a_bank_that_does_not_say_is_of_the_checkpoints_space(demo_files: Path, tmp_path: Path) -> None:
    checkpoint = read(demo_files, text_space="robots-2026")
    assert checkpoint.memory is not None
    assert checkpoint.memory.text_space is None
    assert write_memory(checkpoint.memory, tmp_path, checkpoint.text_space).text_space == "robots-2026"
    with pytest.raises(ExportBeganError):
        begin_build(demo_files)


def test_all_parts_of_a_bundle_are_of_the_checkpoints_space(demo_bundle: Path) -> None:
    manifest = Bundle(demo_bundle, verify=False).manifest
    assert manifest.memory is not None
    expected = read_by_name("demo").text_space
    assert {manifest.backbone.text_space, manifest.decoder.text_space, manifest.memory.text_space} == {expected}
