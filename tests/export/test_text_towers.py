"""Text towers against transformers' and torch's own, in each published layout, and against the published system."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModelWithProjection,
    SiglipConfig,
    SiglipModel,
    SiglipTextConfig,
    SiglipTextModel,
)

from benchmarks.reference_recording import RECORDINGS, Recording
from benchmarks.text_recording import compare_text, dinotxt_shapes, made_up_tower, openai_shapes
from export.checkpoint import CheckpointError
from export.readers import DEMO_CONFIG
from export.text_spaces import TALK2DINO, TEXT_SPACES
from export.text_towers import TEXT_TOWERS, open_text_tower
from export.text_towers.base import TextTower, TowerRequest
from export.text_towers.siglip2 import pad_to_end
from tests.export.conftest import talk2dino_state
from tests.export.test_exporter import randomized

DEMO_TOKENIZER = DEMO_CONFIG.parent / "tokenizer.json"
WIDTH, DEPTH, VOCABULARY, POSITIONS, OUTPUT = 128, 2, 90, 16, 24

IDS = torch.tensor([[88, 3, 5, 89, 0, 0], [88, 7, 1, 2, 4, 89], [88, 89, 0, 0, 0, 0]])
"""Start 88, end 89, and what comes after it."""


def opened(kind: str, weights: Path, **more: Any) -> TextTower:
    return TEXT_TOWERS[kind].load(TowerRequest("tests", str(weights), **{"tokenizer_file": DEMO_TOKENIZER} | more))


def their_clip(activation: str) -> CLIPTextModelWithProjection:
    config = CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=OUTPUT,
        num_hidden_layers=DEPTH,
        num_attention_heads=2,
        max_position_embeddings=POSITIONS,
        hidden_act=activation,
        eos_token_id=VOCABULARY - 1,
    )
    return randomized(CLIPTextModelWithProjection(config))


def openai_state(theirs: CLIPTextModelWithProjection, prefix: str = "") -> dict[str, Tensor]:
    """Their weights by OpenAI's names."""
    text = {name.removeprefix("text_model."): value for name, value in theirs.state_dict().items()}
    state = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "text_projection": text["text_projection.weight"].T,
    }
    modules = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
    for kind in ("weight", "bias"):
        state[f"ln_final.{kind}"] = text[f"final_layer_norm.{kind}"]
        for layer in range(DEPTH):
            block, ours = f"encoder.layers.{layer}", f"transformer.resblocks.{layer}"
            qkv = [text[f"{block}.self_attn.{part}_proj.{kind}"] for part in "qkv"]
            state[f"{ours}.attn.in_proj_{kind}"] = torch.cat(qkv)
            for module, name in (modules | {"self_attn.out_proj": "attn.out_proj"}).items():
                state[f"{ours}.{name}.{kind}"] = text[f"{block}.{module}.{kind}"]
    return {f"{prefix}{name}": value.clone() for name, value in state.items()}


def beside(name: str) -> dict[str, Tensor]:
    """What a published file holds beside its text tower."""
    return {f"{name}.weight": torch.zeros(2), "logit_scale": torch.zeros(())}


@pytest.mark.parametrize(
    ("kind", "activation", "prefix", "others", "key"),
    [
        ("clip", "quick_gelu", "", beside("visual.ln_pre"), None),
        ("clip", "quick_gelu", "lang_encoder.", beside("backbone.conv1"), "model"),
        ("open_clip", "gelu", "", beside("visual.ln_pre"), None),
    ],
)
def test_towers_in_openais_layout_are_transformers(
    kind: str, activation: str, prefix: str, others: dict[str, Tensor], key: str | None, tmp_path: Path
) -> None:
    theirs = their_clip(activation)
    state = openai_state(theirs, prefix) | others
    torch.save({key: state} if key else state, tmp_path / "tower.pt")
    tower = opened(kind, tmp_path / "tower.pt")
    with torch.inference_mode():
        expected = theirs(IDS).text_embeds
    torch.testing.assert_close(tower.embed_ids(IDS), expected, rtol=1e-4, atol=1e-5)
    assert (tower.width, tower.text_space) == (OUTPUT, "tests")


def test_denseclips_embeddings_have_unit_length(tmp_path: Path) -> None:
    theirs = their_clip("quick_gelu")
    torch.save({"state_dict": openai_state(theirs, "text_encoder.") | beside("backbone.conv1")}, tmp_path / "tower.pth")
    with torch.inference_mode():
        expected = nn.functional.normalize(theirs(IDS).text_embeds)
    embeddings = opened("denseclip", tmp_path / "tower.pth").embed_ids(IDS)
    torch.testing.assert_close(embeddings, expected, rtol=1e-4, atol=1e-6)


def test_a_folder_of_transformers_and_openais_file_make_the_same_embeddings(tmp_path: Path) -> None:
    theirs = their_clip("quick_gelu")
    theirs.save_pretrained(tmp_path / "folder")
    torch.save(openai_state(theirs), tmp_path / "tower.pt")
    captions = ["a red circle", "a small blue square on the left " * 9]
    folder, file = opened("clip", tmp_path / "folder"), opened("clip", tmp_path / "tower.pt")
    assert file.tokenize(captions).shape == (2, POSITIONS), "cut to the tower's positions"
    ids = file.tokenize(captions) % (VOCABULARY - 1)
    ids[:, -1] = VOCABULARY - 1
    torch.testing.assert_close(file.embed_ids(ids), folder.embed_ids(ids), rtol=1e-4, atol=1e-5)
    assert folder.identity != file.identity


def dinotxt_state(theirs: nn.TransformerEncoder, generator: torch.Generator) -> dict[str, Tensor]:
    """The weights of torch's encoder, and made-up ones beside it, by DINO.txt's names."""
    state = {
        "backbone.token_embedding.weight": torch.randn(VOCABULARY, WIDTH, generator=generator),
        "backbone.positional_embedding": torch.randn(POSITIONS, WIDTH, generator=generator),
        "backbone.ln_final.weight": torch.randn(WIDTH, generator=generator),
        "backbone.ln_final.bias": torch.randn(WIDTH, generator=generator),
        "head.linear_projection.weight": torch.randn(2 * OUTPUT, WIDTH, generator=generator),
    }
    modules = {
        "self_attn.out_proj": "attention.proj",
        "norm1": "attention_norm",
        "norm2": "ffn_norm",
        "linear1": "feed_forward.fc1",
        "linear2": "feed_forward.fc2",
    }
    for number, layer in enumerate(theirs.layers):
        block, parameters = f"backbone.blocks.{number}", dict(layer.named_parameters())
        state[f"{block}.attention.qkv.weight"] = parameters["self_attn.in_proj_weight"]
        for theirs_name, name in modules.items():
            for kind in ("weight", "bias"):
                state[f"{block}.{name}.{kind}"] = parameters[f"{theirs_name}.{kind}"]
    return {name: value.detach() for name, value in state.items()}


def test_dinotxts_tower_is_torchs_causal_encoder(tmp_path: Path) -> None:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 2, 4 * WIDTH, dropout=0, activation="gelu", norm_first=True, batch_first=True
    )
    theirs = randomized(nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False))
    for encoder_layer in theirs.layers:
        nn.init.zeros_(encoder_layer.self_attn.in_proj_bias)
    state = dinotxt_state(theirs, torch.Generator().manual_seed(1))
    torch.save(state, tmp_path / "text_encoder.pth")
    x = state["backbone.token_embedding.weight"][IDS] + state["backbone.positional_embedding"][: IDS.shape[1]]
    with torch.inference_mode():
        out = theirs(x, mask=nn.Transformer.generate_square_subsequent_mask(IDS.shape[1]), is_causal=True)
        ends = out[torch.arange(3), (IDS == VOCABULARY - 1).int().argmax(1)]
        weight, bias = (state[f"backbone.ln_final.{kind}"] for kind in ("weight", "bias"))
        normed = nn.functional.layer_norm(ends, (WIDTH,), weight, bias)
        expected = normed @ state["head.linear_projection.weight"].T
    tower = opened("dinotxt", tmp_path / "text_encoder.pth")
    assert tower.width == 2 * OUTPUT, "both halves"
    torch.testing.assert_close(tower.embed_ids(IDS), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["clip", "dinotxt"])
def test_clips_tokens_are_cut_to_77_with_the_end_token_last(kind: str, tmp_path: Path) -> None:
    theirs = their_clip("quick_gelu")
    layer = nn.TransformerEncoderLayer(WIDTH, 2, 4 * WIDTH, norm_first=True)
    states = {
        "clip": openai_state(theirs) | {"positional_embedding": torch.zeros(100, WIDTH)},
        "dinotxt": dinotxt_state(nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False), torch.Generator())
        | {"backbone.positional_embedding": torch.zeros(100, WIDTH)},
    }
    torch.save(states[kind], tmp_path / "tower.pth")
    tower = opened(kind, tmp_path / "tower.pth")
    tokenizer = Tokenizer.from_file(str(DEMO_TOKENIZER))
    end = tokenizer.token_to_id("<|endoftext|>")
    ids = tower.tokenize(["a red circle " * 60, "a red circle"])
    assert ids.shape == (2, 77)
    assert ids[0, -1] == end
    assert end not in ids[0, :-1]
    short = tokenizer.encode("a red circle").ids
    assert ids[1].tolist() == short + [end] * (77 - len(short))


@pytest.fixture
def gemma(tmp_path: Path) -> Path:
    """A tokenizer with the special tokens of Gemma's, and words."""
    words = ["<pad>", "<eos>", "<bos>", "<unk>", "a", "red", "circle"]
    tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.normalizer = normalizers.Replace("\t", " ")
    tokenizer.add_special_tokens(words[:4])
    folder = tmp_path / "siglip2"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def test_siglip2s_tokens_are_lower_cased_ended_cut_and_padded(gemma: Path) -> None:
    tokenizer = Tokenizer.from_file(str(gemma / "tokenizer.json"))
    ids = pad_to_end(tokenizer, 6, ["A red CIRCLE", "red " * 20, ""])
    assert ids.tolist() == [[4, 5, 6, 1, 0, 0], [5, 5, 5, 5, 5, 1], [1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("whole", [True, False])
def test_siglip2s_tower_is_transformers_with_the_tokenizer_of_its_folder(whole: bool, gemma: Path) -> None:
    text = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": DEPTH,
        "num_attention_heads": 2,
        "max_position_embeddings": 8,
        "projection_size": OUTPUT,
    }
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    if whole:
        model = randomized(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))
        theirs = model.text_model
    else:
        theirs = model = randomized(SiglipTextModel(SiglipTextConfig(**text)))
    model.save_pretrained(gemma)
    tower = opened("siglip2", gemma, tokenizer_file=None)
    ids = torch.tensor([[4, 5, 6, 1, 0, 0, 0, 0], [5, 1, 0, 0, 0, 0, 0, 0]])
    with torch.inference_mode():
        expected = theirs(ids).pooler_output
    torch.testing.assert_close(tower.embed(["a Red circle", "red"]), expected, rtol=1e-4, atol=1e-5)
    assert tower.width == OUTPUT


def without(name: str, **more: Tensor) -> Any:
    return lambda state: {key: value for key, value in state.items() if key != name} | more


@pytest.mark.parametrize(
    ("kind", "spoil", "message"),
    [
        ("clip", without("ln_final.bias"), "norm.bias is missing"),
        ("clip", without("token_embedding.weight"), "token_embedding.weight is missing"),
        (
            "clip",
            without("", text_projection=torch.zeros(3, 3)),
            r"head.weight: expected shape \(3, 128\), got \(3, 3\)",
        ),
        ("clip", without("", **{"transformer.more": torch.zeros(3)}), "transformer.more is not a weight of this arch"),
        ("clip", without("text_projection"), "expected the weights of a text tower, text_projection among them"),
        ("dinotxt", without(""), "expected the weights of a text tower, head.linear_projection.weight among them"),
    ],
)
def test_a_file_that_is_no_such_tower_is_refused(kind: str, spoil: Any, message: str, tmp_path: Path) -> None:
    torch.save(spoil(openai_state(their_clip("quick_gelu"))), tmp_path / "tower.pth")
    with pytest.raises(CheckpointError, match=f"tower.pth: {message}"):
        opened(kind, tmp_path / "tower.pth")


def test_a_tokenizer_that_is_missing_or_another_is_named(gemma: Path) -> None:
    text = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    SiglipTextModel(SiglipTextConfig(**text)).save_pretrained(gemma)
    (gemma / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="missing tokenizer.json .the text tower's tokenizer.: not in .*siglip2"):
        opened("siglip2", gemma, tokenizer_file=None)
    with pytest.raises(CheckpointError, match="the tokenizer has no <eos>"):
        opened("siglip2", gemma).embed(["a red circle"])


@pytest.mark.parametrize(
    ("kind", "name"), [("siglip2", "model.safetensors"), ("siglip2", "gone.pth"), ("clip", "notes")]
)
def test_a_file_in_the_place_of_a_folder_is_refused(kind: str, name: str, tmp_path: Path) -> None:
    if name != "gone.pth":
        (tmp_path / name).write_text("no")
    with pytest.raises(CheckpointError, match=f"{name}: expected a folder of transformers, or a repository of"):
        opened(kind, tmp_path / name)


def test_every_text_space_has_a_tower() -> None:
    assert {space.tower for space in TEXT_SPACES.values()} == set(TEXT_TOWERS)
    assert [name for name, kind in TEXT_TOWERS.items() if kind.has_projection] == [TALK2DINO]


@pytest.mark.parametrize(
    ("space", "projection", "message"),
    [
        (
            None,
            False,
            "--space is missing; expected the text space of the decoder, one of t2d-dinov2-b-2024, .*clip-b16",
        ),
        ("clip-b8", False, "--space clip-b8: expected one of .*clip-b16, clip-b32"),
        (
            "t2d-dinov2-b-2024",
            False,
            "--space t2d-dinov2-b-2024: --talk2dino is missing; expected the file of the proj",
        ),
        (
            "clip-b16",
            True,
            "--talk2dino .*projection.pth: the text space clip-b16 has no such projection; leave it out",
        ),
        ("t2d-dinov2-b-2024", True, "expected a projection into the text space t2d-dinov2-b-2024, got one into t2d-"),
        ("clip-b16", False, "--text-tower .*tower: expected embeddings of width 512, clip-b16's, got 24"),
        (None, True, "projection.pth: expected a projection of texts of width 24, .*tower's, got 4"),
    ],
)
def test_spaces_towers_and_projections_that_do_not_fit_are_refused(
    space: str | None, projection: bool, message: str, tmp_path: Path
) -> None:
    their_clip("quick_gelu").save_pretrained(tmp_path / "tower")
    torch.save(talk2dino_state("hidden_layers.0"), tmp_path / "projection.pth")
    file = tmp_path / "projection.pth" if projection else None
    with pytest.raises(CheckpointError, match=message):
        open_text_tower(space, str(tmp_path / "tower"), file, DEMO_TOKENIZER, "cpu")


@pytest.mark.parametrize("space", ["dinotxt-patch", "denseclip-b16", "regionclip-rn50"])
def test_a_tower_that_is_a_file_is_asked_for_by_its_published_name(
    space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    name = TEXT_SPACES[space].tower_weights
    with pytest.raises(
        CheckpointError, match=f"the text tower: missing {name} .a file of weights.: not in .*--text-tower"
    ):
        open_text_tower(space, None, None, DEMO_TOKENIZER, "cpu")


def test_a_device_that_is_not_there_is_named(tmp_path: Path) -> None:
    torch.save(openai_state(their_clip("quick_gelu")), tmp_path / "tower.pt")
    with pytest.raises(CheckpointError, match="--device banana: "):
        opened("clip", tmp_path / "tower.pt", device="banana")


RECORDED = json.loads((Path(__file__).parent / "text_embeddings.json").read_text())
"""Parts of embeddings that the published system made of token ids: norms, and every so many columns."""


MADE_UP: Mapping[str, Callable[[], dict[str, Tensor]]] = {
    "clip-b16": lambda: made_up_tower({"prefix": "clip_vitb16/"}, openai_shapes(512, 12)),
    "dinotxt-patch": lambda: made_up_tower({"prefix": "dinotxt/text/"}, dinotxt_shapes(1280, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize("space", MADE_UP)
def test_towers_make_the_embeddings_of_the_published_system(space: str, tmp_path: Path) -> None:
    path = tmp_path / "tower.pth"
    torch.save(MADE_UP[space](), path)
    recorded = RECORDED[space]
    ids = torch.zeros(2, 64, dtype=torch.int64)  # of CLIP's 77 positions the last ones are not looked at
    for row, found in zip(ids, recorded["ids"], strict=True):
        row[: len(found)] = torch.tensor(found)
    embeddings = opened(TEXT_SPACES[space].tower, path).embed_ids(ids)
    expected = torch.tensor(recorded["values"])
    torch.testing.assert_close(
        embeddings[:, :: recorded["every"]], expected, rtol=0, atol=2e-5 * expected.abs().max().item()
    )
    torch.testing.assert_close(embeddings.norm(dim=1), torch.tensor(recorded["norms"]), rtol=1e-5, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["siglip2_base_224", "denseclip_vitb16_320", "dinotxt_vitl14_224"])
def test_recorded_texts_are_compared_by_their_made_up_towers(name: str) -> None:
    recording = Recording.load(RECORDINGS / f"{name}.npz").variants()[0]
    (found,) = compare_text(recording)
    assert found.vectors is not None
    assert found.faults == []
    scales = recording.settings.get("scales", {})
    other = replace(recording, settings={**recording.settings, "scales": {**scales, "*token_embedding.weight": 1.01}})
    (found,) = compare_text(other)
    assert found.faults != []


def test_a_salt_makes_another_tower() -> None:
    towers = [made_up_tower({"prefix": "a/", "salt": salt}, {"head.weight": (2, 3)}) for salt in ("", "another/")]
    assert not towers[0]["head.weight"].equal(towers[1]["head.weight"])


def test_a_recorded_text_of_an_unknown_tower_is_refused() -> None:
    recording = Recording.load(RECORDINGS / "siglip2_base_224.npz").variants()[0]
    with pytest.raises(CheckpointError, match="siglip2_base_224: text: expected the number of blocks of a known text"):
        list(compare_text(replace(recording, settings={**recording.settings, "arch": "another"})))
    without = {name: array for name, array in recording.arrays.items() if not name.startswith("text.")}
    assert list(compare_text(replace(recording, arrays=without))) == []
