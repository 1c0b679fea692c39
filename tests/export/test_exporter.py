"""The exported graphs against transformers' own DINOv2 and GPT-2, filled with the same weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel, GPT2Config, GPT2LMHeadModel

from export.bundle_builder import decoder_settings
from export.graphs.exporter import ExportError, compare, export_backbone, export_decoder
from export.models.decap_decoder import DecapStep
from export.models.dinov2 import IMAGENET_MEAN, IMAGENET_STD, Backbone, BackboneConfig, resize_position_embedding
from export.readers.decap import decoder_from_state
from export.readers.dinov2 import backbone_from_state
from runtime.backends import Engine, OrtBackend
from runtime.decoding.greedy import Decoded, decode

WIDTH, DEPTH, TRAINED_SIZE = 128, 2, 98
TEXT_VOCABULARY, VOCABULARY, STEPS = 90, 100, 30
END = TEXT_VOCABULARY - 1


def randomized(module: torch.nn.Module) -> torch.nn.Module:
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
    export_backbone(backbone_from_state(dinov2_state, size, "test"), tmp_path)
    engine = OrtBackend().open(tmp_path / "backbone.onnx")
    torch.testing.assert_close(engine.run({"pixels": pixels})["tokens"], expected, rtol=1e-4, atol=1e-5)
    engine.close()


def test_cls_scores_are_the_last_blocks_attention_before_softmax(
    their_dinov2: Dinov2WithRegistersModel, dinov2_state: dict[str, Tensor]
) -> None:
    pixels = torch.randint(0, 256, (2, 98, 98, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    backbone = backbone_from_state(dinov2_state, TRAINED_SIZE, "test")
    mean, std = backbone.mean, backbone.std
    their_dinov2.set_attn_implementation("eager")
    with torch.inference_mode():
        out = their_dinov2((pixels.permute(0, 3, 1, 2) / 255 - mean) / std, output_attentions=True)
        _, scores = backbone(pixels)
    over_patches = out.attentions[-1][:, :, 0, 5:]  # softmax over all tokens: over the patches alone after dividing
    expected = over_patches / over_patches.sum(-1, keepdim=True)
    torch.testing.assert_close(scores.softmax(-1), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 16), (1024, 16), (192, 3)])
def test_the_cls_attention_is_split_as_published(width: int, heads: int) -> None:
    assert BackboneConfig(width=width, depth=1, registers=4, size=28).score_heads == heads


def test_models_without_registers_resize_positions_by_a_scale_factor() -> None:
    # (8 + 0.1) / 4 samples a little nearer to each corner than 8 / 4 does: the two rules must differ, slightly
    pos_embed = torch.randn(1, 1 + 16, 4, generator=torch.Generator().manual_seed(0))
    old, new = (resize_position_embedding(pos_embed, 8, has_registers=flag) for flag in (False, True))
    assert old.shape == new.shape == (1, 65, 4)
    assert 1e-3 < (old - new).abs().max() < 0.5
    torch.testing.assert_close(resize_position_embedding(pos_embed, 4, has_registers=True), pos_embed)


@pytest.fixture(scope="module")
def their_gpt2() -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=64, n_embd=64, n_layer=3, n_head=4, eos_token_id=None)
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


def decoded_by_engine(decoder: DecapStep, vectors: Tensor, folder: Path) -> Decoded:
    export_decoder(decoder, folder)
    settings = decoder_settings(decoder.config, END)
    return decode(OrtBackend().open(folder / "decoder.onnx"), settings, vectors)


def decoded_from_scratch(model: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor) -> Decoded:
    """Greedy decoding the long way: each step runs the whole sequence again, a caption at a time, without a cache."""
    all_ids, sums = [], []
    with torch.inference_mode():
        for vector in vectors:
            inputs, ids, total = decoder.clip_project.model(vector)[None], [], 0.0
            while len(ids) < STEPS and END not in ids:
                logits = model(inputs_embeds=inputs[None]).logits[0, -1]
                ids.append(int(logits[:TEXT_VOCABULARY].argmax()))
                total += float(logits.log_softmax(0)[ids[-1]])
                inputs = torch.cat([inputs, model.transformer.wte.weight[ids[-1]][None]])
            all_ids.append(ids)
            sums.append(total)
    return Decoded(all_ids, sums)


def test_cached_decoding_is_decoding_from_scratch_with_transformers_gpt2(
    their_gpt2: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor, tmp_path: Path
) -> None:
    got = decoded_by_engine(decoder, vectors, tmp_path)
    expected = decoded_from_scratch(their_gpt2, decoder, vectors)
    lengths = {len(ids) for ids in expected.ids}
    assert len(lengths) > 3, "the captions should end at different steps"
    assert max(lengths) == STEPS, "and some never"
    assert got.ids == expected.ids
    assert got.log_probabilities == pytest.approx(expected.log_probabilities, rel=1e-4)


def test_ids_without_text_are_never_chosen_however_likely(
    their_gpt2: GPT2LMHeadModel, decoder: DecapStep, vectors: Tensor, tmp_path: Path
) -> None:
    """The published code fails on the whole batch when one of them is chosen (SPEC section 6)."""
    with torch.inference_mode():
        first = their_gpt2(inputs_embeds=decoder.clip_project.model(vectors)[:, None]).logits[:, 0]
    assert (first.argmax(dim=1) >= TEXT_VOCABULARY).any(), "some would win"
    got = decoded_by_engine(decoder, vectors, tmp_path)
    assert max(max(ids) for ids in got.ids) < TEXT_VOCABULARY


class CountingEngine:
    """An engine that notes how many rows each of its calls has."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.rows = engine, list[int]()

    def run(self, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        self.rows.append(len(inputs["tokens"]))
        return self.engine.run(inputs)

    def close(self) -> None:
        self.engine.close()


@pytest.fixture(scope="module")
def counting(decoder: DecapStep, tmp_path_factory: pytest.TempPathFactory) -> CountingEngine:
    folder = tmp_path_factory.mktemp("decoder")
    export_decoder(decoder, folder)
    return CountingEngine(OrtBackend().open(folder / "decoder.onnx"))


@pytest.fixture(scope="module")
def whole(decoder: DecapStep, counting: CountingEngine, vectors: Tensor) -> Decoded:
    """What all vectors decode to at once."""
    return decode(counting, decoder_settings(decoder.config, END), vectors)


def test_decoding_stops_when_every_row_has_ended(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: Decoded
) -> None:
    shortest = min(range(len(vectors)), key=lambda row: len(whole.ids[row]))
    counting.rows.clear()
    alone = decode(counting, decoder_settings(decoder.config, END), vectors[shortest : shortest + 1])
    assert len(counting.rows) == len(whole.ids[shortest]) < STEPS
    assert alone.ids[0] == whole.ids[shortest]


def test_rows_that_have_ended_leave_the_batch(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: Decoded, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = decoder_settings(decoder.config, END)
    for share in (0.0, 0.25, 2.0):  # at once; when they are many; never
        monkeypatch.setattr("runtime.decoding.greedy._DROPPED_SHARE", share)
        counting.rows.clear()
        got = decode(counting, settings, vectors)
        assert got.ids == whole.ids
        assert got.log_probabilities == pytest.approx(whole.log_probabilities, rel=1e-5)
        going = [sum(len(ids) > step for ids in whole.ids) for step in range(STEPS)]
        if share == 0.0:
            assert counting.rows == going
        elif share == 2.0:
            assert set(counting.rows) == {len(vectors)}
        else:
            assert all(live <= rows <= live / 0.75 for live, rows in zip(going, counting.rows, strict=True))


def test_many_rows_are_decoded_in_batches_with_progress(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: Decoded
) -> None:
    settings = decoder_settings(decoder.config, END).model_copy(update={"batches": (4, 16)})
    counting.rows.clear()
    told: list[tuple[int, int]] = []
    got = decode(
        counting,
        settings,
        vectors,
        progress=lambda done, total: told.append((done, total)),
    )
    assert got.ids == whole.ids
    assert max(counting.rows) == 16
    assert told == [(16, 40), (32, 40), (40, 40)]


def test_equal_vectors_are_decoded_once(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: Decoded
) -> None:
    counting.rows.clear()
    order = [3, 1, 3, 3, 0, 1]
    got = decode(counting, decoder_settings(decoder.config, END), vectors[order])
    assert counting.rows[0] == 3
    assert got.ids == [whole.ids[row] for row in order]
    assert got.log_probabilities == pytest.approx([whole.log_probabilities[row] for row in order], rel=1e-5)


def test_decoding_may_stop_after_fewer_steps(
    decoder: DecapStep, counting: CountingEngine, vectors: Tensor, whole: Decoded
) -> None:
    got = decode(counting, decoder_settings(decoder.config, END), vectors, at_most=4)
    assert got.ids == [ids[:4] for ids in whole.ids]


def test_the_token_embedding_is_stored_once(decoder: DecapStep, tmp_path: Path) -> None:
    export_decoder(decoder, tmp_path)
    parameters = sum(parameter.numel() * 4 for parameter in decoder.parameters())
    assert (tmp_path / "decoder.onnx.data").stat().st_size < parameters * 1.05


def test_a_graph_that_differs_from_its_module_is_refused(dinov2_state: dict[str, Tensor], tmp_path: Path) -> None:
    own = {name: value.clone() for name, value in dinov2_state.items()}  # a module shares memory with its state dict
    backbone: Backbone = backbone_from_state(own, 56, "test")
    export_backbone(backbone, tmp_path)
    pixels = torch.zeros(1, 56, 56, 3, dtype=torch.uint8)
    with torch.no_grad():
        backbone.blocks[1].mlp.fc1.bias[0] += 0.5
    with pytest.raises(ExportError, match=r"backbone.onnx: output tokens differs from its module by .*e-0"):
        compare(tmp_path / "backbone.onnx", backbone, [pixels])


def test_graphs_carry_no_path_of_the_machine_they_were_made_on(dinov2_state: dict[str, Tensor], tmp_path: Path) -> None:
    export_backbone(backbone_from_state(dinov2_state, 56, "test"), tmp_path)
    graph = (tmp_path / "backbone.onnx").read_bytes()
    assert b".py" not in graph
    assert b"/home" not in graph
    assert str(Path.cwd()).encode() not in graph
