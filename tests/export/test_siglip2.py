"""SigLIP 2's vision tower against transformers' own, in each published layout; what is refused; made-up weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import SiglipConfig, SiglipModel, SiglipVisionConfig, SiglipVisionModel

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.siglip2 import PatchMode, Siglip2Backbone
from export.readers.backbone_family import BackboneRequest
from export.readers.families import find_architecture, recognize_family
from export.readers.seeded import parse, read_seeded, seeded_state
from export.readers.seeded_weights import normal
from export.readers.siglip2 import FAMILY, Siglip2Options, from_state
from export.text_spaces import TEXT_SPACES
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import EngineFiles
from tests.export.test_exporter import randomized

WIDTH, DEPTH, HEADS, PATCH, SIZE = 128, 2, 2, 8, 40
NUM_PATCHES = (SIZE // PATCH) ** 2
MODES: tuple[PatchMode, ...] = ("raw", "mlp", "pool")


@pytest.fixture(scope="module")
def theirs() -> SiglipVisionModel:
    config = SiglipVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=200,
        num_hidden_layers=DEPTH,
        num_attention_heads=HEADS,
        image_size=SIZE,
        patch_size=PATCH,
    )
    return randomized(SiglipVisionModel(config))


@pytest.fixture(scope="module")
def state(theirs: SiglipVisionModel) -> dict[str, Tensor]:
    """Their weights by the names of published files."""
    return {f"vision_model.{name.removeprefix('vision_model.')}": value for name, value in theirs.state_dict().items()}


@pytest.fixture(scope="module")
def pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (3, SIZE, SIZE, 3), dtype=torch.uint8, generator=generator)


def timm_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same weights by timm's names."""
    theirs = {name.removeprefix("vision_model."): value for name, value in state.items()}
    head = "head.attention"
    thirds = {kind: theirs[f"{head}.in_proj_{kind}"].chunk(3) for kind in ("weight", "bias")}
    renamed = {
        "pos_embed": theirs["embeddings.position_embedding.weight"][None],
        "attn_pool.latent": theirs["head.probe"],
    }
    modules = {
        "embeddings.patch_embedding": "patch_embed.proj",
        "post_layernorm": "norm",
        f"{head}.out_proj": "attn_pool.proj",
        "head.layernorm": "attn_pool.norm",
        "head.mlp.fc1": "attn_pool.mlp.fc1",
        "head.mlp.fc2": "attn_pool.mlp.fc2",
    }
    for kind in ("weight", "bias"):
        for layer in range(DEPTH):
            block, ours = f"encoder.layers.{layer}", f"blocks.{layer}"
            qkv = [theirs[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            renamed[f"{ours}.attn.qkv.{kind}"] = torch.cat(qkv)
            parts = {"self_attn.out_proj": "attn.proj", "layer_norm1": "norm1", "layer_norm2": "norm2"}
            for part, name in (parts | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items():
                renamed[f"{ours}.{name}.{kind}"] = theirs[f"{block}.{part}.{kind}"]
        renamed |= {f"{name}.{kind}": theirs[f"{module}.{kind}"] for module, name in modules.items()}
        renamed[f"attn_pool.q.{kind}"] = thirds[kind][0]
        renamed[f"attn_pool.kv.{kind}"] = torch.cat(thirds[kind][1:])
    return renamed


def read(state: dict[str, Tensor], size: int = SIZE, **options: Any) -> Siglip2Backbone:
    return from_state(state, BackboneRequest(size, "tower.safetensors", None, Siglip2Options(**options)))


def expected(theirs: SiglipVisionModel, pixels: Tensor, mode: PatchMode) -> Tensor:
    """The pooled vector and patches, as the published system takes them of transformers' model."""
    head = theirs.head
    with torch.inference_mode():
        out = theirs((pixels.permute(0, 3, 1, 2) / 255 - 0.5) / 0.5)
        patches = out.last_hidden_state
        if mode == "mlp":
            patches = patches + head.mlp(head.layernorm(patches))
        elif mode == "pool":
            patches = head(patches.reshape(-1, 1, WIDTH)).reshape(patches.shape)
        return torch.cat([out.pooler_output[:, None], patches], dim=1)


@pytest.mark.parametrize("mode", MODES)
def test_tokens_are_transformers_pooled_vector_and_patches(
    theirs: SiglipVisionModel, state: dict[str, Tensor], pixels: Tensor, mode: PatchMode
) -> None:
    backbone = read(state, patches=mode)
    (tokens,) = backbone(pixels)
    torch.testing.assert_close(tokens, expected(theirs, pixels, mode), rtol=1e-4, atol=1e-5)
    assert backbone.numbers.tokens.global_tokens == ("pooled",)
    assert backbone.numbers.attention_heads == 0
    assert backbone.last_block is None


def test_patches_are_pooled_by_default_and_so_of_the_pooled_vectors_space(
    theirs: SiglipVisionModel, state: dict[str, Tensor], pixels: Tensor
) -> None:
    torch.testing.assert_close(read(state)(pixels)[0], expected(theirs, pixels, "pool"), rtol=1e-4, atol=1e-5)
    one_patch = read(state | {"vision_model.embeddings.position_embedding.weight": torch.zeros(1, WIDTH)}, size=PATCH)
    pooled, patch = one_patch(pixels[:, :PATCH, :PATCH])[0].unbind(1)
    torch.testing.assert_close(pooled, patch)  # of an image of one patch both are the same


@pytest.mark.parametrize("layout", ["in memory", "whole model", "timm", "open_clip"])
def test_every_published_layout_is_recognized_and_gives_the_same_tokens(
    state: dict[str, Tensor], pixels: Tensor, layout: str
) -> None:
    whole = state | {"text_model.head.bias": torch.zeros(3), "logit_scale": torch.zeros(1), "logit_bias": torch.ones(1)}
    named = {
        "in memory": {name.removeprefix("vision_model."): value for name, value in state.items()},
        "whole model": whole | {"vision_model.embeddings.position_ids": torch.arange(NUM_PATCHES)[None]},
        "timm": timm_state(state),
        "open_clip": {f"visual.trunk.{name}": value for name, value in timm_state(state).items()}
        | {"text.transformer.resblocks.0.ln_1.weight": torch.zeros(3), "logit_bias": torch.zeros(())},
    }[layout]
    assert recognize_family(named, "tower") is FAMILY
    torch.testing.assert_close(read(named)(pixels)[0], read(state)(pixels)[0], rtol=0, atol=0)


def test_a_whole_model_of_transformers_is_read(pixels: Tensor) -> None:
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 200,
        "num_hidden_layers": 1,
        "num_attention_heads": HEADS,
        "image_size": SIZE,
        "patch_size": PATCH,
    }
    text = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9, "bos_token_id": 1}
    whole = randomized(SiglipModel(SiglipConfig(vision_config=vision, text_config=text)))
    (tokens,) = read(whole.state_dict(), patches="raw")(pixels)
    torch.testing.assert_close(tokens, expected(whole.vision_model, pixels, "raw"), rtol=1e-4, atol=1e-5)


def change(**changes: Tensor | None) -> Any:
    def changed(state: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {f"vision_model.{name.replace('__', '.')}": value for name, value in changes.items()}
        return {name: value for name, value in (state | renamed).items() if value is not None}

    return changed


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (change(post_layernorm__bias=None), "norm.bias is missing"),
        (change(head__attention__in_proj_bias=None), "head.query.bias is missing"),
        (change(head__probe=torch.zeros(1, 1, 3)), r"head.probe: expected shape \(1, 1, 128\), got \(1, 1, 3\)"),
        (change(head__extra__weight=torch.zeros(1)), "vision_model.head.extra.weight is not a weight of this archit"),
        (change(encoder__layers__0__self_attn__k_proj__weight=None), "self_attn.k_proj of that block is missing"),
        (change(embeddings__position_embedding__weight=torch.zeros(7, WIDTH)), r"expected g \* g rows, got 7"),
        (change(embeddings__patch_embedding__weight=torch.zeros(WIDTH, 192)), "a NaFlex tower, .*of a fixed size"),
        (lambda _: {"logit_scale": torch.zeros(1)}, "expected the weights of a SigLIP vision tower, head.probe or"),
    ],
)
def test_weights_that_do_not_fit_are_one_message(state: dict[str, Tensor], spoil: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=f"tower.safetensors: .*{message}"):
        read(spoil(state))


@pytest.mark.parametrize("size", [SIZE + PATCH, SIZE - 1, SIZE // 2, 0])
def test_another_size_than_that_of_the_positions_is_refused(state: dict[str, Tensor], size: int) -> None:
    with pytest.raises(CheckpointError, match=f"^size {size}: tower.safetensors has positions for 40 pixels alone"):
        read(state, size=size)


def test_another_tower_than_the_one_that_is_named_is_refused(state: dict[str, Tensor]) -> None:
    request = BackboneRequest(SIZE, "tower", FAMILY.architectures["siglip2_base_patch16"], Siglip2Options())
    with pytest.raises(CheckpointError, match="tower: expected a tower whose output_dim is 768, got 128"):
        from_state(state, request)


@pytest.mark.parametrize(
    "name",
    [
        "siglip2_base_patch16",
        "siglip2_base_patch16_512",
        "google/siglip2-base-patch16-512",
        "vit_base_patch16_siglip_512.v2_webli",
    ],
)
def test_the_tower_has_all_its_names(name: str) -> None:
    found = find_architecture(name)
    assert found is not None
    assert found[1].default_size == 512
    assert (found[0].name, found[1].text_space) == ("siglip2", "siglip2-b")


@pytest.mark.parametrize(
    ("name", "size", "patch", "heads", "space"),
    [
        ("google/siglip2-base-patch16-224", 224, 16, 12, "siglip2-b-224"),
        ("vit_large_patch16_siglip_384.v2_webli", 384, 16, 16, "siglip2-l-384"),
        ("google/siglip2-so400m-patch16-256", 256, 16, 16, "siglip2-so400m-256"),
        ("google/siglip2-so400m-patch14-224", 224, 14, 16, "siglip2-so400m-224"),
    ],
)
def test_towers_of_other_sizes_have_text_spaces_of_their_own(
    name: str, size: int, patch: int, heads: int, space: str
) -> None:
    found = find_architecture(name)
    assert found is not None
    assert found[1].text_space == space
    assert found[1].default_size == size
    numbers = read_seeded(f"seeded:{name},depth=1,memory=8").backbone.numbers
    assert (numbers.image_size, numbers.patch_size, numbers.num_heads) == (size, patch, heads)
    assert TEXT_SPACES[space].width == numbers.output_dim
    if "/" in name:
        assert TEXT_SPACES[space].tower_weights == name


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, {}),
        ({"siglip2_config": "google/siglip2-base-patch16-512"}, {"patches": "raw"}),
        ({"siglip2_config": {"project_patches_using_mlp": True}}, {"patches": "mlp"}),
        (
            {"siglip2_config": {"project_patches_using_attention_pooling_head_to_each_patch": True}},
            {"patches": "pool"},
        ),
    ],
)
def test_a_configuration_decides_what_its_patches_are(config: dict[str, Any], options: dict[str, str]) -> None:
    assert FAMILY.options_of(config) == options
    assert FAMILY.chosen_by(config) == ("siglip2_base_patch16" if config else None)


def test_a_configuration_may_name_size_and_weights() -> None:
    config = {"siglip2_config": {"image_size": 512, "checkpoint_path": "towers/siglip2"}}
    assert (FAMILY.size_of(config), FAMILY.weights_of(config)) == (512, "towers/siglip2")
    with pytest.raises(CheckpointError, match="siglip2_config: model_id: expected one of google/siglip2-base-patch16-"):
        FAMILY.chosen_by({"siglip2_config": "google/siglip2-base-patch16-naflex"})


def test_a_patch_mode_that_is_not_known_is_refused() -> None:
    with pytest.raises(CheckpointError, match="patches: input should be 'raw', 'mlp' or 'pool', got 'mean'"):
        read_seeded("seeded:siglip2_base_patch16,patches=mean")


def test_made_up_weights_follow_from_published_names() -> None:
    state = seeded_state(parse("seeded:siglip2_base_patch16,depth=1,size=32,salt=x/"))

    def number(name: str, shape: tuple[int, ...]) -> np.ndarray:
        return normal(f"x/siglip2_base_patch16/{name}", shape)

    name = "vision_model.head.probe"
    np.testing.assert_array_equal(state[name], np.float32(0.5) * number(name, (1, 1, 768)))
    name = "vision_model.embeddings.position_embedding.weight"
    np.testing.assert_array_equal(state[name], np.float32(0.3) * number(name, (4, 768)))
    name = "vision_model.head.attention.out_proj.weight"
    damped = number(name, (768, 768)) / np.float32(math.sqrt(768)) * np.float32(0.3)
    np.testing.assert_array_equal(state[name], damped)
    assert sum(value.numel() for value in state.values()) == 14_770_176


def test_the_exported_graph_computes_what_the_tower_does(
    state: dict[str, Tensor], pixels: Tensor, tmp_path: Path
) -> None:
    backbone = read(state)
    record = export_graph(backbone_spec(backbone), tmp_path)
    assert record.max_error < 1e-5
    engine = OrtBackend().open(EngineFiles(tmp_path / "backbone.onnx"))
    outputs = engine.run({"pixel_values": pixels})
    assert list(outputs) == ["tokens"]
    torch.testing.assert_close(outputs["tokens"], backbone(pixels)[0], rtol=1e-4, atol=1e-4)
    engine.close()
