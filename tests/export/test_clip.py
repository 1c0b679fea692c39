"""CLIP's vision tower against transformers' own, in each published layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModelWithProjection

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.clip import CLIP_MEAN, CLIP_STD, ClipBackbone
from export.readers.backbone_family import BackboneRequest
from export.readers.clip import ARCHITECTURES, ClipArchitecture, ClipOptions, from_state
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle.engine_files import EngineFiles

WIDTH, DEPTH, PATCH, SIZE, OUT = 128, 3, 8, 32, 48
State = dict[str, Tensor]

OPENAI_BLOCK = {
    "layer_norm1": "ln_1",
    "self_attn.out_proj": "attn.out_proj",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}
TIMM_BLOCK = {
    "layer_norm1": "norm1",
    "self_attn.out_proj": "attn.proj",
    "layer_norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


def their_model(activation: str = "quick_gelu") -> CLIPVisionModelWithProjection:
    config = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        image_size=SIZE,
        patch_size=PATCH,
        projection_dim=OUT,
        hidden_act=activation,
    )
    model = CLIPVisionModelWithProjection(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


@pytest.fixture(scope="module")
def theirs() -> CLIPVisionModelWithProjection:
    return their_model()


@pytest.fixture(scope="module")
def state(theirs: CLIPVisionModelWithProjection, tmp_path_factory: pytest.TempPathFactory) -> State:
    """What transformers saves."""
    from safetensors.torch import load_file

    folder = tmp_path_factory.mktemp("clip")
    theirs.save_pretrained(folder)
    return load_file(folder / "model.safetensors")


def pixels(size: int = SIZE) -> Tensor:
    return torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalized(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(value).reshape(3, 1, 1) for value in (CLIP_MEAN, CLIP_STD))
    return (images.permute(0, 3, 1, 2) / 255 - mean) / std


@torch.inference_mode()
def their_tokens(theirs: CLIPVisionModelWithProjection) -> Tensor:
    hidden = theirs.vision_model(normalized(pixels())).last_hidden_state
    tokens: Tensor = theirs.visual_projection(theirs.vision_model.post_layernorm(hidden))
    return tokens


def read(
    state: State, size: int = SIZE, architecture: ClipArchitecture | None = None, **options: object
) -> ClipBackbone:
    return from_state(state, BackboneRequest(size, "weights", architecture, ClipOptions.model_validate(options)))


@torch.inference_mode()
def tokens_of(backbone: ClipBackbone) -> Tensor:
    (tokens,) = backbone(pixels(backbone.image_size))
    return tokens


def renamed(state: State, block: str, parts: dict[str, str], others: dict[str, str], qkv: str) -> State:
    """Return weights by other names, queries, keys and values in one."""
    found: State = {}
    for name, value in state.items():
        match = re.fullmatch(r"vision_model\.encoder\.layers\.(\d+)\.(.+)\.(\w+)", name)
        if match is None:
            module, _, last = name.rpartition(".")
            found[others.get(name) or f"{others[module]}.{last}"] = value
        elif match[2] == "self_attn.q_proj":
            both = [state[name.replace("q_proj", other)] for other in ("k_proj", "v_proj")]
            found[block.format(match[1]) + qkv.format(match[3])] = torch.cat([value, *both])
        elif match[2] in parts:
            found[f"{block.format(match[1])}{parts[match[2]]}.{match[3]}"] = value
    return found


def as_openai(state: State) -> State:
    vision, ours = "vision_model.", "visual."
    others = {
        f"{vision}embeddings.class_embedding": f"{ours}class_embedding",
        f"{vision}embeddings.position_embedding.weight": f"{ours}positional_embedding",
        f"{vision}embeddings.patch_embedding.weight": f"{ours}conv1.weight",
        f"{vision}pre_layrnorm": f"{ours}ln_pre",
        f"{vision}post_layernorm": f"{ours}ln_post",
        "visual_projection.weight": f"{ours}proj",
    }
    found = renamed(state, "visual.transformer.resblocks.{}.", OPENAI_BLOCK, others, "attn.in_proj_{}")
    found["visual.proj"] = found["visual.proj"].T
    return found | {"positional_embedding": torch.zeros(77, 8), "ln_final.weight": torch.zeros(8)}  # of the text tower


def as_timm(state: State) -> State:
    vision = "vision_model."
    others = {
        f"{vision}embeddings.class_embedding": "cls_token",
        f"{vision}embeddings.position_embedding.weight": "pos_embed",
        f"{vision}embeddings.patch_embedding.weight": "patch_embed.proj.weight",
        f"{vision}pre_layrnorm": "norm_pre",
        f"{vision}post_layernorm": "norm",
        "visual_projection.weight": "head.weight",
    }
    found = renamed(state, "blocks.{}.", TIMM_BLOCK, others, "attn.qkv.{}")
    found["cls_token"] = found["cls_token"].reshape(1, 1, -1)
    return found | {"pos_embed": found["pos_embed"][None], "head.bias": torch.zeros(OUT)}


@pytest.mark.parametrize("layout", [dict, as_openai, as_timm], ids=["transformers", "openai", "timm"])
def test_every_layout_makes_the_tower_of_transformers(
    theirs: CLIPVisionModelWithProjection, state: State, layout: Callable[[State], State]
) -> None:
    found = read(layout(state))
    assert found.numbers.tokens.global_tokens == ("cls",)
    assert (found.numbers.attention_heads, found.last_block) == (0, None)
    torch.testing.assert_close(tokens_of(found), their_tokens(theirs), rtol=1e-4, atol=1e-5)


def test_a_whole_clip_has_a_tower(tmp_path: Path) -> None:
    from export.readers.weight_files import read_weights

    numbers = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = numbers | {"image_size": SIZE, "patch_size": PATCH, "intermediate_size": 4 * WIDTH}
    whole = CLIPModel(CLIPConfig(text_config=numbers, vision_config=vision, projection_dim=OUT)).eval()
    whole.save_pretrained(tmp_path)
    with torch.inference_mode():
        expected = whole.get_image_features(pixel_values=normalized(pixels()))
    expected = getattr(expected, "pooler_output", expected)
    found = tokens_of(read(read_weights(tmp_path)))[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_exact_gelu_and_no_last_norm_make_open_clips_published_tokens(state: State) -> None:
    theirs = their_model("gelu")
    architecture = replace(ARCHITECTURES["openclip_vith14"], output_dim=OUT, depth=DEPTH, width=WIDTH, patch_size=PATCH)
    torch.testing.assert_close(
        tokens_of(read(as_openai(state), architecture=architecture)), their_tokens(theirs), rtol=1e-4, atol=1e-5
    )
    with torch.inference_mode():
        hidden = theirs.vision_model(normalized(pixels())).last_hidden_state
        expected = theirs.visual_projection(hidden)
    published = tokens_of(read(as_openai(state), architecture=architecture, published=True))
    torch.testing.assert_close(published, expected, rtol=1e-4, atol=1e-5)


def test_invites_last_block_attends_to_each_token_alone(theirs: CLIPVisionModelWithProjection, state: State) -> None:
    """By hand: the last block's attention is the projection of its values."""
    with torch.inference_mode():
        hidden = theirs.vision_model(normalized(pixels()), output_hidden_states=True).hidden_states[-2]
        last = theirs.vision_model.encoder.layers[-1]
        x = hidden + last.self_attn.out_proj(last.self_attn.v_proj(last.layer_norm1(hidden)))
        x = x + last.mlp(last.layer_norm2(x))
        expected = theirs.visual_projection(theirs.vision_model.post_layernorm(x))
    torch.testing.assert_close(tokens_of(read(state, invite=1)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("invite", [0, 1])
def test_positions_are_resized_with_antialiasing_but_for_invite(state: State, invite: int) -> None:
    table = state["vision_model.embeddings.position_embedding.weight"]
    grid = F.interpolate(
        table[1:].T.reshape(1, WIDTH, 4, 4), size=(6, 6), mode="bicubic", antialias=not invite, align_corners=False
    )
    expected = torch.cat([table[:1], grid.reshape(WIDTH, 36).T])[None]
    torch.testing.assert_close(read(state, 48, invite=invite).pos_embed, expected)


def test_a_tower_for_one_size_is_not_resized(state: State) -> None:
    fixed = ClipArchitecture(
        output_dim=OUT, depth=DEPTH, files=(), width=WIDTH, patch_size=PATCH, trained_size=SIZE, is_resized=False
    )
    assert read(state, SIZE, fixed).image_size == SIZE
    with pytest.raises(CheckpointError, match=f"^size 48: weights has positions for {SIZE} pixels alone$"):
        read(state, 48, fixed)


def test_what_is_no_tower_or_not_the_named_one_is_refused(state: State) -> None:
    with pytest.raises(CheckpointError, match="^size 30: expected a multiple of the patch size, 8$"):
        read(state, 30)
    with pytest.raises(CheckpointError, match="^weights: expected a tower whose width is 768, got 128$"):
        read(state, 224, ARCHITECTURES["clip_vitb16"])
    with pytest.raises(CheckpointError, match="^weights: expected the weights of a CLIP vision tower"):
        read({"x": torch.zeros(1)})
    name = "vision_model.encoder.layers.1.self_attn.v_proj.weight"
    with pytest.raises(CheckpointError, match=r"^weights: blocks\.1\.attn\.qkv\.weight: self_attn\.v_proj of that"):
        read({key: value for key, value in state.items() if key != name})
    with pytest.raises(CheckpointError, match=r"^weights: vision_model\.extra\.weight is not a weight of this"):
        read(state | {"vision_model.extra.weight": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"^weights: norm\.bias is missing"):
        read({key: value for key, value in state.items() if key != "vision_model.post_layernorm.bias"})


@pytest.mark.slow
@pytest.mark.parametrize("invite", [0, 1])
def test_the_exported_graph_computes_the_same(state: State, tmp_path: Path, invite: int) -> None:
    backbone = read(state, invite=invite)
    export_graph(backbone_spec(backbone), tmp_path, "fp32", "cpu")
    engine = OrtBackend().open(EngineFiles(tmp_path / "backbone.onnx"))
    outputs = engine.run({"pixel_values": pixels()})
    engine.close()
    assert list(outputs) == ["tokens"]
    torch.testing.assert_close(outputs["tokens"], tokens_of(backbone), rtol=1e-4, atol=1e-5)
