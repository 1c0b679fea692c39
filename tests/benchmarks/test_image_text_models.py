"""CLIP's two towers in each published layout, against transformers' own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from benchmarks.scoring.image_text_models import CLIP_WEIGHTS, PAC_FILE, ImageTextModel, load_image_text_model
from export.checkpoint import CheckpointError
from export.models.clip import CLIP_MEAN, CLIP_STD
from export.readers.clip_bpe import VOCABULARY, find_merges, read_clip_bpe
from tests.export.test_clip import as_openai
from tests.export.test_exporter import randomized
from tests.export.test_text_towers import DEPTH, WIDTH, openai_state

SIZE, PATCH, OUT = 32, 8, 24
TEXTS = ["A photo depicts a red circle", "A photo depicts ", "two dogs, " * 60]

pytestmark = [
    pytest.mark.skipif(find_merges() is None, reason="needs pip install --no-deps open_clip_torch"),
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),
]


@pytest.fixture(scope="module")
def theirs() -> CLIPModel:
    blocks = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 2}
    shared = blocks | {"num_hidden_layers": DEPTH, "projection_dim": OUT, "hidden_act": "quick_gelu"}
    text = {"vocab_size": VOCABULARY, "max_position_embeddings": 77, "eos_token_id": VOCABULARY - 1}
    vision = {"image_size": SIZE, "patch_size": PATCH}
    return randomized(
        CLIPModel(CLIPConfig(text_config=shared | text, vision_config=shared | vision, projection_dim=OUT))
    )


@pytest.fixture(scope="module")
def state(theirs: CLIPModel) -> dict[str, Tensor]:
    """The weights by OpenAI's names."""
    vision = {name: value for name, value in theirs.state_dict().items() if name.startswith("vis")}
    tower = {name: value for name, value in as_openai(vision).items() if name.startswith("visual.")}
    return tower | openai_state(theirs) | {"logit_scale": torch.tensor(4.6)}


@pytest.fixture(scope="module")
def folder(theirs: CLIPModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("transformers")
    theirs.save_pretrained(path)
    return path


def images() -> list[Image.Image]:
    generator = torch.Generator().manual_seed(3)
    sizes = [(40, 50), (97, 41), (32, 32)]
    return [
        Image.fromarray(torch.randint(0, 256, (h, w, 3), dtype=torch.uint8, generator=generator).numpy())
        for w, h in sizes
    ]


def clip_preprocess(image: Image.Image) -> Tensor:
    """OpenAI's: the short side resized, bicubic, the long side cut to a whole number, and the centre cut out."""
    width, height = image.size
    scale = SIZE / min(width, height)
    resized = image.resize(
        (SIZE, int(height * scale)) if width <= height else (int(width * scale), SIZE), Image.Resampling.BICUBIC
    )
    left, top = round((resized.width - SIZE) / 2), round((resized.height - SIZE) / 2)
    pixels = torch.tensor(list(resized.crop((left, top, left + SIZE, top + SIZE)).tobytes())).reshape(SIZE, SIZE, 3)
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    return ((pixels / 255 - mean) / std).permute(2, 0, 1)


@torch.inference_mode()
def assert_is_theirs(model: ImageTextModel, theirs: CLIPModel, atol: float = 1e-5) -> None:
    tokenizer = read_clip_bpe()
    tokenizer.enable_truncation(77)
    pixels = torch.stack([clip_preprocess(image) for image in images()])
    vision = theirs.visual_projection(theirs.vision_model(pixels).pooler_output)
    ids = [torch.tensor([encoding.ids]) for encoding in tokenizer.encode_batch(TEXTS)]
    assert ids[2].shape == (1, 77), "the last text is cut"
    text = torch.cat([theirs.text_projection(theirs.text_model(row).pooler_output) for row in ids])
    for found, expected in ((model.embed_images(images()), vision), (model.embed_texts(TEXTS), text)):
        torch.testing.assert_close(found, F.normalize(expected, dim=-1), rtol=0, atol=atol)
        torch.testing.assert_close(found.norm(dim=-1), torch.ones(3))


def test_a_folder_of_transformers_is_transformers_own(theirs: CLIPModel, folder: Path) -> None:
    model = load_image_text_model(str(folder), "--clip-weights")
    assert_is_theirs(model, theirs)
    assert model.image_size == SIZE
    assert model.identity.startswith(f"{folder} ")


def test_the_checkpoint_of_pac_s_holds_a_clip_under_its_key(
    theirs: CLIPModel, state: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / PAC_FILE)
    assert_is_theirs(load_image_text_model(str(tmp_path / PAC_FILE), "--pac-weights"), theirs)


def test_openais_archive_holds_a_clip_in_half_precision(
    theirs: CLIPModel, state: dict[str, Tensor], tmp_path: Path
) -> None:
    numbers = {"input_resolution": torch.tensor(SIZE), "context_length": torch.tensor(77)}
    module = nested({name: value.half() for name, value in state.items()} | numbers)
    torch.jit.save(torch.jit.script(module), tmp_path / "ViT-B-32.pt")
    model = load_image_text_model(str(tmp_path / "ViT-B-32.pt"), "--clip-weights")
    assert_is_theirs(model, theirs, atol=0.02)  # weights of 11 bits


def nested(state: dict[str, Tensor]) -> nn.Module:
    """A module whose parts have the names of a state dict."""
    root = nn.Module()
    for name, value in state.items():
        module = root
        *parts, last = name.split(".")
        for part in parts:
            if part not in dict(module.named_children()):
                module.add_module(part, nn.Module())
            module = getattr(module, part)
        module.register_buffer(last, value)
    return root


def test_another_clip_than_b32_is_said_to_be_one(folder: Path) -> None:
    (note,) = load_image_text_model(str(folder), "--clip-weights").notes
    assert "not CLIP ViT-B/32 (width 128, patches of 8 px, 32 px)" in note


def test_texts_are_cleaned_as_openais_tokenizer_does(folder: Path) -> None:
    model = load_image_text_model(str(folder), "--clip-weights")
    found = model.embed_texts(["Salt &amp;amp; “pepper”", 'salt & "pepper"', "salt & pepper"])
    assert found[0].equal(found[1])
    assert not found[1].equal(found[2])


def test_long_images_are_seen_in_the_middle_without_gigabytes(folder: Path) -> None:
    model = load_image_text_model(str(folder), "--clip-weights")
    long = Image.new("RGB", (2, 100_000), "blue")
    long.paste("red", (0, 49_000, 2, 51_000))
    assert model.pixels(long).unique(dim=0).tolist() == [[[255, 0, 0]] * SIZE]
    assert model.pixels(long.rotate(90, expand=True)).shape == (SIZE, SIZE, 3)


def test_batches_make_what_single_ones_make(folder: Path) -> None:
    model = load_image_text_model(str(folder), "--clip-weights")
    texts = [f"text {'very ' * (number % 7)}{number}" for number in range(70)]
    singles = torch.cat([model.embed_texts([text]) for text in texts[60:]])
    torch.testing.assert_close(model.embed_texts(texts)[60:], singles, rtol=0, atol=1e-5)


@pytest.mark.parametrize("damage", ["missing", "no archive", "text only", "image only", "one weight"])
def test_what_cannot_be_used_is_told_with_its_flag_and_its_origin(
    damage: str, state: dict[str, Tensor], tmp_path: Path
) -> None:
    file = tmp_path / PAC_FILE
    kept: dict[str, Callable[[str], bool]] = {
        "text only": lambda name: not name.startswith("visual."),
        "image only": lambda name: name.startswith("visual."),
        "one weight": lambda name: name != "visual.transformer.resblocks.1.mlp.c_fc.weight",
    }
    reason = {
        "missing": "no such file or folder",
        "no archive": "not a file of weights",
        "text only": "expected the weights of a CLIP vision tower",
        "image only": "expected the weights of a text tower",
        "one weight": "blocks.1.mlp.fc1.weight is missing",
    }
    if damage == "no archive":
        file.write_bytes(b"no archive")
    elif damage != "missing":
        torch.save({name: value for name, value in state.items() if kept[damage](name)}, file)
    with pytest.raises(CheckpointError) as error:
        load_image_text_model(str(file), "--pac-weights")
    message = str(error.value)
    assert message.startswith(f"--pac-weights {file}: {reason[damage]}")
    assert message.count(str(file)) == 1
    assert CLIP_WEIGHTS in message
    assert "aimagelab/pacscore" in message
    assert "\n" not in message


def test_a_folder_without_a_model_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^--clip-weights .*: cannot be loaded: .*CLIP ViT-B/32"):
        load_image_text_model(str(tmp_path), "--clip-weights")


def test_a_path_to_nothing_is_not_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^--clip-weights .*nothing: no such file or folder; expected CLIP"):
        load_image_text_model(str(tmp_path / "nothing"), "--clip-weights")


def test_weights_that_make_no_numbers_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    broken = state | {"text_projection": state["text_projection"] * torch.nan}
    torch.save(broken, tmp_path / "clip.pt")
    model = load_image_text_model(str(tmp_path / "clip.pt"), "--clip-weights")
    with pytest.raises(CheckpointError, match="expected finite embeddings, got NaN"):
        model.embed_texts(["a"])


def test_a_device_that_is_not_there_is_told(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="^--device meteor: "):
        load_image_text_model(str(folder), "--clip-weights", "meteor")
