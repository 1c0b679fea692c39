"""Exported graphs against transformers' own DINOv2 and GPT-2 with the same weights, and greedy decoding with them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar, get_args

import pytest
import torch
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, GPT2Config, GPT2LMHeadModel

from export.graphs.errors import ExportError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec, decap_specs
from export.graphs.verification import compare
from export.models import BundleNumbers
from export.models.decap_decoder import DecapStep
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD
from export.readers.decap import decoder_from_state
from export.readers.dinov2 import backbone_from_state
from runtime.backends import Engine, EngineReport
from runtime.backends.base import Device
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import DecoderConfig, EngineFiles
from runtime.decoding.batches import TokenSequences
from runtime.decoding.greedy import GreedyDecoder

WIDTH, DEPTH, TRAINED_SIZE = 128, 2, 98
TEXT_VOCABULARY, VOCABULARY, STEPS = 90, 100, 30
END = TEXT_VOCABULARY - 1
ModuleT = TypeVar("ModuleT", bound=torch.nn.Module)


def randomized(module: ModuleT) -> ModuleT:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return module.eval()


@pytest.fixture(scope="module")
def their_dinov2() -> Dinov2WithRegistersModel:
    config = Dinov2WithRegistersConfig(
        hidden_size=WIDTH, num_hidden_layers=DEPTH, num_attention_heads=2, image_size=TRAINED_SIZE, patch_size=14
    )
    return randomized(Dinov2WithRegistersModel(config))


@pytest.fixture(scope="module")
def dinov2_state(their_dinov2: Dinov2WithRegistersModel) -> dict[str, Tensor]:
    """Their weights under facebookresearch/dinov2's names."""
    embeddings, state = their_dinov2.embeddings, {}
    state["cls_token"] = embeddings.cls_token
    state["register_tokens"] = embeddings.register_tokens
    state["pos_embed"] = embeddings.position_embeddings
    state["mask_token"] = torch.zeros(1, WIDTH)
    state |= named("patch_embed.proj", embeddings.patch_embeddings.projection)
    state |= named("norm", their_dinov2.layernorm)
    for number, layer in enumerate(their_dinov2.encoder.layer):
        block = f"blocks.{number}"
        attention = layer.attention
        thirds = [attention.q_proj, attention.k_proj, attention.v_proj]
        state[f"{block}.attn.qkv.weight"] = torch.cat([third.weight for third in thirds])
        state[f"{block}.attn.qkv.bias"] = torch.cat([third.bias for third in thirds])
        state |= named(f"{block}.attn.proj", attention.o_proj)
        state |= named(f"{block}.norm1", layer.norm1) | named(f"{block}.norm2", layer.norm2)
        state |= named(f"{block}.mlp.fc1", layer.mlp.fc1) | named(f"{block}.mlp.fc2", layer.mlp.fc2)
        state[f"{block}.ls1.gamma"] = layer.layer_scale1.lambda1
        state[f"{block}.ls2.gamma"] = layer.layer_scale2.lambda1
    return {name: value.detach() for name, value in state.items()}


def named(prefix: str, module: torch.nn.Module) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in module.named_parameters()}


@pytest.mark.parametrize("size", [TRAINED_SIZE, 56, 140])  # at, below and above the size of the position embedding
def test_the_backbone_engine_computes_what_transformers_dinov2_does(
    their_dinov2: Dinov2WithRegistersModel, dinov2_state: dict[str, Tensor], size: int, tmp_path: Path
) -> None:
    pixels = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    mean, std = torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)
    with torch.inference_mode():
        expected = their_dinov2((pixels.permute(0, 3, 1, 2) / 255 - mean) / std).last_hidden_state
    export_graph(backbone_spec(backbone_from_state(dinov2_state, size, "test")), tmp_path)
    engine = OrtBackend().open(EngineFiles(tmp_path / "backbone.onnx"))
    torch.testing.assert_close(engine.run({"pixel_values": pixels})["tokens"], expected, rtol=1e-4, atol=1e-5)
    engine.close()


def test_cls_attention_logits_are_the_last_blocks_attention_before_softmax(
    their_dinov2: Dinov2WithRegistersModel, dinov2_state: dict[str, Tensor]
) -> None:
    pixels = torch.randint(0, 256, (2, 98, 98, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    backbone = backbone_from_state(dinov2_state, TRAINED_SIZE, "test")
    mean, std = backbone.pixel_norm.mean, backbone.pixel_norm.std
    their_dinov2.set_attn_implementation("eager")
    with torch.inference_mode():
        out = their_dinov2((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, output_attentions=True)
        _, logits = backbone(pixels)
    over_patches = out.attentions[-1][:, :, 0, 5:]  # softmax over all tokens: over the patches alone after dividing
    expected = over_patches / over_patches.sum(-1, keepdim=True)
    torch.testing.assert_close(logits.softmax(-1), expected, rtol=1e-4, atol=1e-6)


@pytest.fixture(scope="module")
def their_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=3, n_head=4, eos_token_id=None)
    torch.manual_seed(0)  # or its first weights, and when its captions end, depend on the tests before
    model = randomized(GPT2LMHeadModel(config))
    with torch.no_grad():
        model.transformer.wte.weight[TEXT_VOCABULARY:] *= 3  # likely, so that masking them matters
        model.transformer.wte.weight[END] *= 2.5  # so that captions end, at different steps
    return model


@pytest.fixture(scope="module")
def decoder(their_gpt2: GPT2LMHeadModel) -> DecapStep:
    generator = torch.Generator().manual_seed(3)
    state = {f"decoder.{name}": value for name, value in their_gpt2.state_dict().items()}
    state["clip_project.model.0.weight"] = torch.randn(64, 48, generator=generator)
    state["clip_project.model.0.bias"] = torch.randn(64, generator=generator)
    state["decoder.transformer.h.0.attn.bias"] = torch.ones(1, 1, 64, 64)  # buffers of old files
    state["decoder.transformer.h.0.attn.masked_bias"] = torch.tensor(-1e4)
    return decoder_from_state(state, TEXT_VOCABULARY, "test")


@pytest.fixture(scope="module")
def vectors() -> Tensor:
    return torch.randn(40, 48, generator=torch.Generator().manual_seed(4))


def manifest_entry(decoder: DecapStep) -> DecoderConfig:
    numbers = BundleNumbers("test", (END,), max_images=1, batch_sizes=(1, 4, 16, 64, 256), precision="fp32")
    return decoder.manifest_entry(numbers)


def export_decoder(decoder: DecapStep, folder: Path, device: Device = "cpu") -> EngineFiles:
    greedy, _ = decap_specs(decoder)
    export_graph(greedy, folder, device=device)
    return EngineFiles(folder / "decoder.onnx")


def decode_by_engine(decoder: DecapStep, vectors: Tensor, folder: Path, device: Device = "cpu") -> TokenSequences:
    engine = OrtBackend().open(export_decoder(decoder, folder, device))
    return GreedyDecoder(engine, manifest_entry(decoder)).decode(vectors)


def decode_from_scratch(model: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor) -> TokenSequences:
    """Greedy decoding the long way: each step runs the whole sequence again, a caption at a time, without a cache."""
    all_ids, sums = [], []
    with torch.inference_mode():
        for vector in vectors:
            inputs, ids, total = decoder.clip_project.model(vector)[None], list[int](), 0.0
            while len(ids) < STEPS and END not in ids:
                logits = model(inputs_embeds=inputs[None]).logits[0, -1]
                ids.append(int(logits[:TEXT_VOCABULARY].argmax()))
                total += float(logits.log_softmax(0)[ids[-1]])
                inputs = torch.cat([inputs, model.transformer.wte.weight[ids[-1]][None]])
            all_ids.append(ids)
            sums.append(total)
    return TokenSequences(all_ids, sums)


@pytest.fixture(scope="module")
def expected(their_gpt2: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor) -> TokenSequences:
    return decode_from_scratch(their_gpt2, decoder, vectors)


@pytest.mark.slow
@pytest.mark.parametrize("device", get_args(Device))
def test_cached_decoding_is_decoding_from_scratch_with_transformers_gpt2(
    decoder: DecapStep, vectors: Tensor, expected: TokenSequences, device: Device, tmp_path: Path
) -> None:
    prepared = copy.deepcopy(decoder)
    prepared.prepare_for(device)
    got = decode_by_engine(prepared, vectors, tmp_path, device)
    lengths = {len(ids) for ids in expected.ids}
    assert len(lengths) > 3, "the captions should end at different steps"
    assert max(lengths) == STEPS, "and some never"
    assert got.ids == expected.ids
    assert got.log_probs == pytest.approx(expected.log_probs, rel=1e-4)


def test_ids_without_text_are_never_chosen_however_likely(
    their_gpt2: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor, tmp_path: Path
) -> None:
    """The published code fails on the whole batch when one of them is chosen (published-system.md, section 6)."""
    with torch.inference_mode():
        first = their_gpt2(inputs_embeds=decoder.clip_project.model(vectors)[:, None]).logits[:, 0]
    assert (first.argmax(dim=1) >= TEXT_VOCABULARY).any(), "some would win"
    got = decode_by_engine(decoder, vectors, tmp_path)
    assert max(max(ids) for ids in got.ids) < TEXT_VOCABULARY


class CountingEngine:
    """An engine that notes how many rows each of its calls has."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, list[int]()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.rows.append(len(inputs["input_ids"]))
        return self.engine.run(inputs)

    @property
    def bindable(self) -> None:
        return None

    def report(self) -> EngineReport:
        return self.engine.report()

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def counting(decoder: DecapStep, tmp_path_factory: pytest.TempPathFactory) -> CountingEngine:
    folder = tmp_path_factory.mktemp("decoder")
    return CountingEngine(OrtBackend().open(export_decoder(decoder, folder)))


@pytest.fixture(scope="module")
def greedy(decoder: DecapStep, counting: CountingEngine) -> GreedyDecoder:
    return GreedyDecoder(counting, manifest_entry(decoder))


@pytest.fixture(scope="module")
def whole(greedy: GreedyDecoder, vectors: Tensor) -> TokenSequences:
    """The captions of all vectors, decoded at once."""
    return greedy.decode(vectors)


def test_decoding_stops_when_every_row_has_ended(
    greedy: GreedyDecoder, counting: CountingEngine, vectors: Tensor, whole: TokenSequences
) -> None:
    shortest = min(range(len(vectors)), key=lambda row: len(whole.ids[row]))
    counting.rows.clear()
    alone = greedy.decode(vectors[shortest : shortest + 1])
    assert len(counting.rows) == len(whole.ids[shortest]) < STEPS
    assert alone.ids[0] == whole.ids[shortest]


def test_rows_that_have_ended_leave_the_batch(
    greedy: GreedyDecoder,
    counting: CountingEngine,
    vectors: Tensor,
    whole: TokenSequences,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for share in (0.0, 0.25, 2.0):  # at once; when they are many; never
        monkeypatch.setattr("runtime.decoding.greedy._MIN_ENDED_SHARE", share)
        counting.rows.clear()
        got = greedy.decode(vectors)
        assert got.ids == whole.ids
        assert got.log_probs == pytest.approx(whole.log_probs, rel=1e-5)
        active = [sum(len(ids) > step for ids in whole.ids) for step in range(STEPS)]
        if share == 0.0:
            assert counting.rows == active
        elif share == 2.0:
            assert set(counting.rows) == {len(vectors)}
        else:
            assert all(live <= rows <= live / 0.75 for live, rows in zip(active, counting.rows, strict=True))


def test_many_rows_are_decoded_in_batches_with_progress(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: TokenSequences
) -> None:
    config = manifest_entry(decoder).model_copy(update={"batch_sizes": (4, 16)})
    counting.rows.clear()
    reported: list[tuple[int, int]] = []
    got = GreedyDecoder(counting, config).decode(vectors, progress=lambda *counts: reported.append(counts))
    assert got.ids == whole.ids
    assert max(counting.rows) == 16
    assert reported == [(16, 40), (32, 40), (40, 40)]


def test_equal_vectors_are_decoded_once(
    greedy: GreedyDecoder, counting: CountingEngine, vectors: Tensor, whole: TokenSequences
) -> None:
    counting.rows.clear()
    order = [3, 1, 3, 3, 0, 1]
    got = greedy.decode(vectors[order])
    assert counting.rows[0] == 3
    assert got.ids == [whole.ids[row] for row in order]
    assert got.log_probs == pytest.approx([whole.log_probs[row] for row in order], rel=1e-5)


def test_decoding_may_stop_after_fewer_steps(greedy: GreedyDecoder, vectors: Tensor, whole: TokenSequences) -> None:
    got = greedy.decode(vectors, max_new_tokens=4)
    assert got.ids == [ids[:4] for ids in whole.ids]


def test_the_token_embedding_is_stored_once(decoder: DecapStep, tmp_path: Path) -> None:
    export_decoder(decoder, tmp_path)
    parameters = sum(parameter.numel() * 4 for parameter in decoder.parameters())
    assert (tmp_path / "decoder.onnx.data").stat().st_size < parameters * 1.05


def test_a_graph_that_differs_from_its_module_is_refused(dinov2_state: dict[str, Tensor], tmp_path: Path) -> None:
    own = {name: value.clone() for name, value in dinov2_state.items()}  # a module shares memory with its state dict
    backbone = backbone_from_state(own, 56, "test")
    export_graph(backbone_spec(backbone), tmp_path)
    pixels = torch.zeros(1, 56, 56, 3, dtype=torch.uint8)
    with torch.no_grad():
        backbone.get_parameter("blocks.1.mlp.fc1.bias")[0] += 0.5
    with pytest.raises(ExportError, match=r"backbone.onnx: output tokens differs from its module by .*e-0"):
        compare(tmp_path / "backbone.onnx", backbone, [pixels])


def test_graphs_carry_no_path_of_the_machine_they_were_made_on(dinov2_state: dict[str, Tensor], tmp_path: Path) -> None:
    export_graph(backbone_spec(backbone_from_state(dinov2_state, 56, "test")), tmp_path)
    graph = (tmp_path / "backbone.onnx").read_bytes()
    assert b".py" not in graph
    assert b"/home" not in graph
    assert str(Path.cwd()).encode() not in graph
