"""Patch-ioner checkpoints as they are published: where their files are found, and what their settings mean."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import yaml
from transformers import GPT2Config, GPT2LMHeadModel

from export import build_engines
from export.checkpoint import Checkpoint, CheckpointError
from export.models.decap_decoder import DecapStep
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.readers import DEMO_CONFIG, is_repository, read_checkpoint
from export.readers.backbone_family import WeightFile
from export.readers.clip_bpe import find_merges
from export.readers.dinov2 import ARCHITECTURES, Dinov2Architecture
from export.readers.patchioner import Origin, read_patchioner
from runtime import Captioner, Point, WholeImage

MEMORY, NOISE = (f"Ruggero1912/Patch-ioner_talk2dino_{kind}_COCO_Captions" for kind in ("decap", "capdec"))
DINOV2, BACKBONE = "dinov2_vits14_reg", "dinov2_vits14_reg4_pretrain.pth"
WIDTH, ROWS = 128, 40
BANK = f"coco_captions_text_embeddings-B16-ViT-B.16-{ROWS}.h5"
# As published: paths of another machine, no backbone file, and of the memory the captions that it was made of.
CONFIG = {
    "decap_weights": "/elsewhere/weights/coco_karpathy-009.pt",
    "prefix_size": WIDTH,
    "linear_talk2dino": False,
    "support_memory_size": ROWS,
    "dino_model": DINOV2,
    "normalize": True,
    "kkv_attention": False,
    "projection_type": "/elsewhere/coco_train_karpathy.json",
    "crop_dim": 28,
    "resize_dim": 28,
}

pytestmark = pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch")


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a small checkpoint under their published names, the decoder with the buffers of old files."""
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    backbone = Dinov2Backbone(Dinov2Config(WIDTH, 1, 2, num_registers=4, image_size=518, attention_heads=2))
    torch.save(backbone.state_dict(), folder / BACKBONE)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=50257, n_positions=40, n_embd=64, n_layer=2, n_head=4))
    state = {f"decoder.{name}": value for name, value in gpt.state_dict().items()}
    state |= {"clip_project.model.0.weight": torch.randn(64, WIDTH), "clip_project.model.0.bias": torch.zeros(64)}
    for layer in range(2):
        state[f"decoder.transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 40, 40, dtype=torch.uint8)
        state[f"decoder.transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, folder / "coco_karpathy-009.pt")
    with h5py.File(folder / BANK, "w") as file:
        file["coco_captions-embeddings"] = np.random.default_rng(0).standard_normal((ROWS, WIDTH)).astype(np.float32)
        file["coco_captions-text"] = [f"caption {number}".encode() for number in range(ROWS)]
    return folder


@pytest.fixture(autouse=True)
def small_vits(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ViT-S of the size of the files above, and a torch hub that has downloaded nothing."""
    monkeypatch.setitem(
        ARCHITECTURES,
        DINOV2,
        Dinov2Architecture(
            output_dim=WIDTH,
            depth=1,
            num_registers=4,
            attention_heads=2,
            swiglu_width=None,
            files=(WeightFile(BACKBONE, "facebook/dinov2-with-registers-small", seed=f"{DINOV2}/"),),
        ),
    )
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))


def write_config(folder: Path, **changes: object) -> Path:
    folder.mkdir(exist_ok=True)
    settings = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    return folder / "config.yaml"


def serve(hub: dict[tuple[str, str], Path], repository: str, files: Path, config: Path) -> None:
    hub[repository, "config.yaml"] = config
    hub[repository, "coco_karpathy-009.pt"] = files / "coco_karpathy-009.pt"
    hub[repository, BANK] = files / BANK


@pytest.mark.slow
def test_a_repository_becomes_a_bundle_that_captions(
    hub: dict[tuple[str, str], Path], files: Path, tmp_path: Path
) -> None:
    """From its id alone: the repository's files, and the backbone in transformers' layout from its own repository."""
    from safetensors.torch import save_file

    serve(hub, MEMORY, files, write_config(tmp_path / "repository"))
    hub_state = torch.load(files / BACKBONE, weights_only=True)
    save_file(transformers_state(hub_state), tmp_path / "model.safetensors")
    hub["facebook/dinov2-with-registers-small", "model.safetensors"] = tmp_path / "model.safetensors"
    assert build_engines.main([MEMORY]) == 0
    with Captioner.load(tmp_path / "engines" / MEMORY.split("/")[1]) as captioner:
        assert captioner.manifest.memory is not None
        assert captioner.manifest.memory.num_rows == ROWS
        assert captioner.manifest.build.checkpoint == MEMORY
        image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
        captions = captioner.caption(image, [WholeImage(), Point(3, 3)], n_best=2)
        assert captions[0].nearest[0].text.startswith("caption ")


def transformers_state(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A hub state dict of one block as transformers names it."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("blocks.0.", "encoder.layer.0.").replace("ls1.gamma", "layer_scale1.lambda1")
        name = name.replace("ls2.gamma", "layer_scale2.lambda1").replace("attn.proj", "attention.output.dense")
        if "attn.qkv" in name:
            for third, part in zip(("query", "key", "value"), value.chunk(3), strict=True):
                renamed[name.replace("attn.qkv", f"attention.attention.{third}")] = part.clone()
            continue
        if name.startswith("norm."):
            name = name.replace("norm.", "layernorm.")
        elif not name.startswith("encoder"):
            name = "embeddings." + name.replace("pos_embed", "position_embeddings")
            name = name.replace("patch_embed.proj", "patch_embeddings.projection")
        renamed[name] = value
    return renamed


def read(config: Path, *folders: Path) -> Checkpoint:
    return read_patchioner(config, Origin(str(config), folders))


def test_files_are_found_in_a_folder_by_their_names_alone(files: Path, tmp_path: Path) -> None:
    checkpoint = read(write_config(tmp_path / "config"), files)
    assert checkpoint.memory is not None
    assert sum(len(captions) for _, captions in checkpoint.memory.rows()) == ROWS
    assert isinstance(checkpoint.decoder, DecapStep)
    assert checkpoint.decoder.config.text_vocab_size == 49408
    assert (checkpoint.backbone_name, checkpoint.backbone.image_size) == (DINOV2, 28)
    assert checkpoint.notes == ()


def test_a_backbone_that_torch_hub_has_downloaded_is_used(
    files: Path, tmp_path: Path, hub: dict[tuple[str, str], Path]
) -> None:
    checkpoints = tmp_path / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / BACKBONE).symlink_to(files / BACKBONE)
    serve(hub, NOISE, files, write_config(tmp_path / "config", support_memory_size=0))
    assert read_checkpoint(NOISE).backbone.output_dim == WIDTH


def test_a_noise_trained_checkpoint_has_no_memory_and_asks_for_none(
    files: Path, tmp_path: Path, hub: dict[tuple[str, str], Path]
) -> None:
    config = write_config(tmp_path / "config", support_memory_size=0, projection_type=None)
    assert read(config, files).memory is None
    serve(hub, NOISE, files, config)
    del hub[NOISE, BANK]
    assert read_checkpoint(NOISE, files).memory is None


@pytest.mark.usefixtures("hub")
def test_what_is_missing_is_named_all_at_once_with_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_config(tmp_path / "folder")
    assert build_engines.main([MEMORY, "--checkpoint-dir", str(tmp_path / "folder")]) == 1
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    for part in (
        f"error: {MEMORY}: missing coco_karpathy-009.pt (decap_weights, the decoder), ",
        "dinov2_vits14_reg4_pretrain.pth (dinov2_vits14_reg, the backbone; also as "
        "facebook/dinov2-with-registers-small on the hub), ",
        f"{BANK} (the memory bank; patchcaption build-memory-bank makes one of captions)",
        f"not in {tmp_path / 'folder'}",
        f"not to be downloaded ({MEMORY}: Name or service not known)",
        "put what is missing into one folder and name it with --checkpoint-dir",
    ):
        assert part in error
    assert not (tmp_path / "engines").exists() or not list((tmp_path / "engines").iterdir())


@pytest.mark.usefixtures("hub")
def test_a_repository_that_cannot_be_reached_names_the_files_wanted() -> None:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(MEMORY)
    for part in (
        "missing config.yaml",
        "the decoder (.pt)",
        "coco_captions_text_embeddings-B16-ViT-B.16-591753.h5",
        "dinov2_vitb14_reg4_pretrain.pth",
        "--checkpoint-dir",
    ):
        assert part in str(caught.value)


def test_a_folder_that_holds_everything_needs_no_hub(
    files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("export.readers.hub._download", lambda _: pytest.fail("it was downloaded"))
    folder = write_config(tmp_path / "folder").parent
    for file in files.iterdir():
        (folder / file.name).symlink_to(file)
    assert read_checkpoint(MEMORY, folder).source == MEMORY
    with pytest.raises(CheckpointError, match="gone: expected a folder of checkpoint files"):
        read_checkpoint(MEMORY, tmp_path / "gone")


@pytest.mark.parametrize(
    ("projection_type", "bank"),
    [
        ("coco", "coco_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        (None, "coco_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        ("msmarco", "ms_marco_queries_a_text_embeddings-B16-ViT-B.16-7.h5"),
        ("blip", "cc3m_blip_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        ("vg", "vg_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        ("vg-test", "vg_dense_captions_test_text_embeddings-B16-ViT-B.16-7.h5"),
        ("vg_captions", "vg_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        ("/elsewhere/vg_train.json", "vg_captions_text_embeddings-B16-ViT-B.16-7.h5"),
        ("/elsewhere/marco.tsv", "ms_marco_queries_a_text_embeddings-B16-ViT-B.16-7.h5"),
        ("/elsewhere/my_bank.h5", "my_bank.h5"),
    ],
)
def test_the_name_of_a_banks_file_follows_from_its_captions(
    projection_type: str | None, bank: str, tmp_path: Path, files: Path
) -> None:
    config = write_config(tmp_path / "config", projection_type=projection_type, support_memory_size=7)
    with pytest.raises(CheckpointError, match=f"missing {bank} "):
        read(config, files)


def test_the_short_side_may_be_larger_than_the_crop(files: Path, tmp_path: Path) -> None:
    assert read(write_config(tmp_path / "config", resize_dim=56), files).resize_short_side == 56
    assert read(write_config(tmp_path / "config"), files).resize_short_side is None


@pytest.mark.parametrize("settings", [{"kkv_attention": True}, {"attention_type": "kkv"}])
def test_the_attention_of_the_last_block_is_reordered_as_configured(
    settings: dict[str, Any], files: Path, tmp_path: Path
) -> None:
    last_block = read(write_config(tmp_path / "config", **settings), files).backbone.last_block
    assert last_block is not None
    query, key, _ = last_block.get_parameter("attn.qkv.weight").chunk(3)
    torch.testing.assert_close(query, key, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"viecap": {"meacap": True}},
            "config.yaml: viecap: meacap: Input should be a valid dictionary",
        ),
        ({"linear_talk2dino": True}, "linear_talk2dino: not supported"),
        ({"aggregation_config": {"depth": 2}}, "aggregation_config: not supported"),
        ({"ifcap_config": {"name": "x"}}, "ifcap_config: not supported"),
        ({"decoder_config": {"decoder_family": "qwen3"}}, "decoder_config: decoder_family: expected gpt2, got 'qwen3'"),
        ({"projection_type": "banana"}, r"projection_type: expected coco, .* or a bank \(.h5\), got 'banana'"),
        ({"resize_dim": 0}, "resize_dim: expected a whole number of at least 1, got 0"),
        ({"talk2dino_config": "x.yaml"}, "talk2dino_config: not supported"),
        ({"dino_model": "ViT-L/14"}, "dino_model: expected one of dinov2_vits14, .* got 'ViT-L/14'"),
        ({"dino_model": None}, "dino_model is missing"),
        ({"dino_weights": []}, "dino_weights: expected 1 to 1 names of files, got 0"),
        ({"normalize": "yes please"}, "normalize: expected true or false, got 'yes please'"),
        ({"dino_weights": [BACKBONE, BACKBONE]}, "dino_weights: expected 1 to 1 names of files, got 2"),
        (
            {"dino_model": "dinov2_vitb14_reg", "dino_weights": BACKBONE},
            "expected dinov2_vitb14_",
        ),
        ({"prefix_size": 768}, "and 768, the configuration's prefix_size, got 128"),
        ({"support_memory_size": "many"}, "support_memory_size: expected a whole number of at least 0, got 'many'"),
        ({"crop_dim": 30}, "size 30: expected a multiple of the patch size"),
        ({"attention_type": "abc"}, "three of the letters q, k, v"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(
    settings: dict[str, Any], message: str, files: Path, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        read(write_config(tmp_path / "config", **settings), files)


def test_settings_without_effect_are_noted(files: Path, tmp_path: Path) -> None:
    checkpoint = read(write_config(tmp_path / "config", colour="red", viecap=None, use_talk2dino_project=True), files)
    assert checkpoint.notes == ("settings without effect: colour",)


@pytest.mark.parametrize(
    ("name", "expected"),
    [(MEMORY, True), ("demo", False), ("a/b/c", False), ("no such/name", False), (str(DEMO_CONFIG), False)],
)
def test_repositories_are_told_from_paths(name: str, expected: bool) -> None:
    assert is_repository(name) is expected
