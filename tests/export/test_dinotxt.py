"""DINO.txt's files as they are published, written here: transformers' own DINOv2 and blocks say what must come out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, DINOv3ViTConfig
from transformers.models.dinov3_vit.modeling_dinov3_vit import DINOv3ViTLayer

from export.checkpoint import CheckpointError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec
from export.models.dinotxt import DinotxtBackbone
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from export.readers.backbone_family import BackboneRequest
from export.readers.dinotxt import ARCHITECTURES, FAMILY, DinotxtOptions, from_state, state_shapes
from export.readers.families import find_architecture, recognize_family

WIDTH, DEPTH, SIZE, HIDDEN = 128, 2, 42, 88
PIXELS = torch.randint(0, 256, (2, SIZE, SIZE, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
State = dict[str, Tensor]


class TheirDinotxt(torch.nn.Module):
    """DINO.txt of transformers' modules: its head's blocks are DINOv3's, of which nothing is rotated."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(
                hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=SIZE, patch_size=14
            )
        )
        block = DINOv3ViTConfig(
            hidden_size=WIDTH,
            intermediate_size=HIDDEN,
            num_attention_heads=2,
            use_gated_mlp=True,
            hidden_act="silu",
            query_bias=False,
            value_bias=False,
            attn_implementation="eager",
        )
        self.blocks = torch.nn.ModuleList(DINOv3ViTLayer(block) for _ in range(2))
        self.norm = torch.nn.LayerNorm(WIDTH, eps=1e-5)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.add_(torch.randn(parameter.shape) * 0.1)
        self.eval()

    def forward(self, pixel_values: Tensor) -> tuple[Tensor, Tensor]:
        """Return DINOv2's tokens, and those after the head."""
        mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
        x = plain = self.backbone((pixel_values.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
        not_rotated = torch.ones(x.shape[1], 64), torch.zeros(x.shape[1], 64)
        for block in self.blocks:
            x = block(x, position_embeddings=not_rotated)
        return plain, self.norm(x)

    def published_state(self, folder: Path) -> State:
        """Return the weights of both files by their published names, the head's with the prefix that they get here."""
        self.backbone.save_pretrained(folder)
        names = {
            "attention.o_proj": "attn.proj",
            "layer_scale1.lambda1": "ls1.gamma",
            "layer_scale2.lambda1": "ls2.gamma",
            "gate_proj": "w1",
            "up_proj": "w2",
            "down_proj": "w3",
        }
        head: State = {"ln_final.weight": self.norm.weight, "ln_final.bias": self.norm.bias}
        for number, block in enumerate(self.blocks):
            weights = block.state_dict()
            qkv = [weights.pop(f"attention.{part}_proj.weight") for part in "qkv"]
            head[f"block_list.{number}.attn.qkv.weight"] = torch.cat(qkv)
            for name, value in weights.items():
                for theirs, ours in names.items():
                    name = name.replace(theirs, ours)
                head[f"block_list.{number}.{name}"] = value
        return load_file(folder / "model.safetensors") | {
            f"vision_head.{name}": value.detach().clone() for name, value in head.items()
        }


@pytest.fixture(scope="module")
def theirs() -> TheirDinotxt:
    return TheirDinotxt()


@pytest.fixture(scope="module")
def state(theirs: TheirDinotxt, tmp_path_factory: pytest.TempPathFactory) -> State:
    return theirs.published_state(tmp_path_factory.mktemp("dinotxt"))


def read(state: State, published: bool = False) -> DinotxtBackbone:
    return from_state(state, BackboneRequest(SIZE, "test", None, DinotxtOptions(published=published)))


def test_tokens_pass_the_head_unless_the_published_way_is_asked_for(theirs: TheirDinotxt, state: State) -> None:
    assert recognize_family(state, "test") is FAMILY
    with torch.inference_mode():
        plain, aligned = theirs(PIXELS)
        torch.testing.assert_close(read(state)(PIXELS)[0], aligned, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(read(state, published=True)(PIXELS)[0], plain, rtol=1e-5, atol=1e-5)
    assert (plain - aligned).abs().max() > 0.1


def test_the_cls_attention_is_the_backbones_in_both_ways(state: State) -> None:
    with torch.inference_mode():
        aligned, published = (read(state, way)(PIXELS)[1] for way in (False, True))
    torch.testing.assert_close(aligned, published, rtol=0, atol=0)
    assert aligned.shape == (2, 2, 9)


def test_the_published_way_needs_no_head_and_has_a_reencoder(state: State) -> None:
    without_head = {name: value for name, value in state.items() if not name.startswith("vision_head.")}
    published = read(without_head, published=True)
    assert published.last_block is published.backbone.blocks[-1]
    with pytest.raises(
        CheckpointError,
        match=r"test: vision head: ln_final.weight is missing; expected the weights of "
        r"dinov2_vitl14_reg4_dinotxt_tet1280d20h24l_vision_head.pth, or the option published",
    ):
        read(without_head)
    assert read(state).last_block is None


def test_the_published_backbone_has_the_names_and_numbers_of_its_files() -> None:
    architecture = ARCHITECTURES["dinotxt_vitl14"]
    assert find_architecture("dinov2_vitl14_reg4_dinotxt_tet1280d20h24l") == (FAMILY, architecture)
    found = find_architecture("facebook/dinov2-with-registers-large")
    assert found is not None
    assert found[0].name == "dinov2", "the repository of its backbone alone"
    assert [file.name for file in architecture.files] == [
        "dinov2_vitl14_reg4_pretrain.pth",
        "dinov2_vitl14_reg4_dinotxt_tet1280d20h24l_vision_head.pth",
    ]
    shapes = state_shapes(architecture, 518)
    assert shapes["vision_head.block_list.1.mlp.w1.weight"] == (2752, 1024)
    assert "vision_head.block_list.0.attn.qkv.bias" not in shapes
    assert "vision_head.block_list.2.norm1.weight" not in shapes


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("vision_head.block_list.1.norm1.bias", None, "vision head: blocks.1.norm1.bias is missing"),
        ("vision_head.block_list.0.mlp.w1.weight", None, "vision head: blocks.0.mlp.w1.weight is missing"),
        (
            "vision_head.block_list.0.mlp.w1.weight",
            torch.ones(3),
            r"vision head: blocks.0.mlp.w1.weight: expected 2 axes, got shape \(3,\)",
        ),
        (
            "vision_head.block_list.1.attn.qkv.bias",
            torch.ones(3 * WIDTH),
            "vision head: blocks.1.attn.qkv.bias is not a weight of this architecture",
        ),
        ("vision_head.extra", torch.ones(3), "vision head: vision_head.extra is not a weight of this architecture"),
        ("embeddings.extra", torch.ones(3), "embeddings.extra is not a weight of DINOv2"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_key(
    state: State, name: str, value: Tensor | None, message: str
) -> None:
    spoilt = dict(state)
    if value is None:
        del spoilt[name]
    else:
        spoilt[name] = value
    with pytest.raises(CheckpointError, match=f"test: {message}"):
        read(spoilt)


def test_a_head_of_other_blocks_than_the_published_ones_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export.readers.dinov2.load_weights", lambda *_: None)  # they have no memory
    architecture = ARCHITECTURES["dinotxt_vitl14"]
    state = {
        name: torch.empty(shape, device="meta")
        for name, shape in state_shapes(architecture, 518).items()
        if not name.startswith("vision_head.block_list.1.")
    }
    with pytest.raises(CheckpointError, match="made up: vision head: expected 2 blocks, got 1"):
        from_state(state, BackboneRequest(518, "made up", architecture, DinotxtOptions()))


@pytest.mark.slow
def test_the_exported_graph_computes_what_the_module_does(state: State, tmp_path: Path) -> None:
    assert export_graph(backbone_spec(read(state)), tmp_path).max_error < 1e-5
