"""Products in int8: what is rounded, by how much, and what captions lose by it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.scoring.demo_scenes import evaluation_cases
from export.demo import scenes
from export.graphs.attention_fusion import fuse_attention
from export.graphs.errors import ExportError
from export.graphs.exporter import export_graph
from export.graphs.specs import GraphSpec, backbone_spec, decap_specs, reencoder_spec
from export.graphs.verification import compare
from export.models.decap_decoder import DecapConfig, DecapStep
from export.models.dinov2 import Dinov2Backbone, Dinov2Config
from runtime import BackendError, Captioner, WholeImage
from runtime.backends import open_backend
from runtime.bundle import Bundle
from runtime.bundle.graph_io import GraphIo, TensorSpec
from tests.conftest import build_once

WIDTH, WORDS = 48, 70


class Tied(nn.Module):
    """An embedding, a plain and a biased product, and one with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.biased = nn.Linear(WIDTH, 2 * WIDTH)
        self.plain = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, tokens: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.biased(vectors)
        return self.words(tokens), hidden, F.linear(self.plain(hidden), self.words.weight)


TOKENS = torch.tensor([0, 5, WORDS - 1])
VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    rows = {0: torch.export.Dim("rows", min=1)}
    inputs = TensorSpec("tokens", "int64", ("rows",)), TensorSpec("vectors", "float32", ("rows", WIDTH))
    outputs = [TensorSpec(name, "float32", ("rows", "width")) for name in ("embeddings", "hidden", "logits")]
    io = GraphIo("tied", inputs, tuple(outputs))
    spec = GraphSpec(Tied().eval(), io, (TOKENS, VECTORS), (rows, rows), calibration=[], checks=[])
    assert export_graph(spec, folder, "int8").precision == "int8"
    return folder / "tied.onnx"


@pytest.fixture(scope="module")
def run(graph: Path) -> Callable[[Tensor, Tensor], list[np.ndarray]]:
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    return lambda tokens, vectors: session.run(None, {"tokens": tokens.numpy(), "vectors": vectors.numpy()})


Run = Callable[[Tensor, Tensor], list[np.ndarray]]


def test_every_weight_is_stored_once_in_seven_bits(graph: Path) -> None:
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(graph).graph.initializer}
    large = sorted((array.shape, array.dtype.name) for array in weights.values() if array.ndim == 2)
    assert large == [((WIDTH, WORDS), "int8"), ((WIDTH, 2 * WIDTH), "int8"), ((2 * WIDTH, WIDTH), "int8")]
    for array in weights.values():
        if array.ndim == 2:  # the largest weight of each output takes the last level, and none is beyond it
            assert (np.abs(array.astype(int)).max(axis=0) == 63).all()


def test_products_differ_by_what_rounding_to_their_levels_explains(run: Run) -> None:
    module = Tied()
    embeddings, hidden, logits = run(TOKENS, VECTORS)
    with torch.inference_mode():
        expected = [value.numpy() for value in module(TOKENS, VECTORS)]
    weight = module.words.weight.detach().numpy()
    half_a_level = np.abs(weight).max(axis=1)[TOKENS] / 63 / 2
    assert (np.abs(embeddings - expected[0]) <= half_a_level[:, None] * 1.001).all()
    for got, want in ((hidden, expected[1]), (logits, expected[2])):
        assert 0 < np.linalg.norm(got - want) / np.linalg.norm(want) < 0.03


def test_a_row_does_not_depend_on_the_others_of_its_batch(run: Run) -> None:
    loud = torch.cat([VECTORS, VECTORS[:1] * 1e4])
    together = run(torch.cat([TOKENS, TOKENS[:1]]), loud)
    for row in range(len(TOKENS)):
        alone = run(TOKENS[row : row + 1], VECTORS[row : row + 1])
        for one, many in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], many[row])


def test_a_row_of_zeros_gives_the_bias(run: Run) -> None:
    _, hidden, _ = run(TOKENS[:1], torch.zeros(1, WIDTH))
    np.testing.assert_array_equal(hidden[0], Tied().biased.bias.detach().numpy())


def test_rows_of_any_size_are_rounded_alike(run: Run) -> None:
    bias = Tied().biased.bias.detach().numpy()
    _, small, _ = run(TOKENS, VECTORS * 2**-8)
    _, large, _ = run(TOKENS, VECTORS * 2**8)
    np.testing.assert_allclose((small - bias) * 2**16, large - bias, rtol=1e-2, atol=1e-1)


def test_a_graph_that_is_wrong_is_refused_in_int8_too(graph: Path) -> None:
    assert 0 < compare(graph, Tied().eval(), (TOKENS, VECTORS), precision="int8") < 0.05
    with pytest.raises(ExportError, match="output embeddings differs from its module by .*; at most 1e-04 is rounding"):
        compare(graph, Tied().eval(), (TOKENS, VECTORS))
    other = Tied().eval()
    with torch.no_grad():
        other.plain.weight.neg_()
    with pytest.raises(ExportError, match="output logits differs from its module by .*; at most 2e-01 is rounding"):
        compare(graph, other, (TOKENS, VECTORS), precision="int8")


def test_beam_search_needs_a_decoder_of_its_own_precision(tmp_path: Path) -> None:
    config = DecapConfig(prefix_width=32, embed_dim=64, num_layers=1, vocab_size=100, text_vocab_size=90)
    decoder = DecapStep(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    greedy, beam = decap_specs(decoder)
    assert export_graph(greedy, tmp_path, "int8").precision == "int8"
    assert export_graph(beam, tmp_path, "int8").precision == "int8"
    assert not (tmp_path / "beam_decoder.onnx.data").exists()
    with pytest.raises(ExportError, match="decoder.onnx.data: has no weight .* export both again"):
        export_graph(beam, tmp_path)


def test_attention_without_a_mask_becomes_one_node_of_the_same_results(tmp_path: Path) -> None:
    config = Dinov2Config(128, 2, num_heads=2, num_registers=4, image_size=56, attention_heads=2)
    backbone = Dinov2Backbone(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    export_graph(backbone_spec(backbone), tmp_path)
    model = onnx_ir.load(tmp_path / "backbone.onnx")
    assert fuse_attention(model) == 2
    assert not [node for node in model.graph if node.op_type == "Softmax"]
    onnx_ir.save(model, tmp_path / "fused.onnx")
    pixels = torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8, generator=generator)
    assert compare(tmp_path / "fused.onnx", backbone, (pixels,)) < 1e-5
    export_graph(reencoder_spec(backbone), tmp_path)
    assert fuse_attention(onnx_ir.load(tmp_path / "reencoder.onnx")) == 0, "its attention has a mask"


SEEDS = range(scenes.HELD_OUT_SEED, scenes.HELD_OUT_SEED + 40)
SCENES = [scenes.draw_scene(seed) for seed in SEEDS]
REGIONS = [[case.region for case in evaluation_cases(scene, seed)] for scene, seed in zip(SCENES, SEEDS, strict=True)]


@pytest.fixture(scope="module")
def int8_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once(tmp_path_factory, "demo", "demo-int8", "--precision", "int8")


def test_the_manifest_says_int8_and_how_far_it_is_from_the_module(int8_bundle: Path, demo_bundle: Path) -> None:
    manifest = Bundle(int8_bundle).manifest
    assert len(manifest.engines) == 4
    for record in manifest.engines.values():
        assert record.precision == "int8"
        assert 1e-3 < record.max_error < 0.2
    for name in ("backbone.onnx.data", "decoder.onnx.data", "reencoder.onnx.data"):
        assert (int8_bundle / name).stat().st_size < 0.3 * (demo_bundle / name).stat().st_size


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_int8_says_the_same_in_99_of_100_captions(int8_bundle: Path, demo: Captioner, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino")
    images = [scene.image for scene in SCENES]
    with Captioner.load(int8_bundle, backend=backend) as captioner:
        features, exact = captioner.encode(images), demo.encode(images)
        theirs, ours = captioner.describe(features, REGIONS), demo.describe(exact, REGIONS)
        alone = captioner.encode(images[3]).tokens[0]
    cosines = torch.cosine_similarity(features.tokens, exact.tokens, dim=-1)
    assert 0.9995 < cosines.mean() < 0.99999, "in float32 it would be nearer"
    texts = [[caption.text for of_image in captions for caption in of_image] for captions in (theirs, ours)]
    assert sum(one == other for one, other in zip(*texts, strict=True)) >= 0.99 * len(texts[0])
    torch.testing.assert_close(alone, features.tokens[3], rtol=0, atol=0)


def test_all_engines_of_an_int8_bundle_run(int8_bundle: Path) -> None:
    with Captioner.load(int8_bundle) as captioner:
        features = captioner.encode(SCENES[0].image)
        boxes = [one.box for one in SCENES[0].objects]
        assert all(caption.text for caption in captioner.describe(features, boxes, beams=3, reencode="mean"))
        assert captioner.describe(features, [WholeImage()])[0].text


def test_bfloat16_on_top_of_int8_is_refused(int8_bundle: Path) -> None:
    for backend in ("openvino", "auto", "cpu"):
        with pytest.raises(BackendError, match="precision 'bf16': the graphs of .* are int8, .* use fp32, or a bundle"):
            Captioner.load(int8_bundle, backend, precision="bf16")


def test_int8_is_chosen_when_building_not_when_loading() -> None:
    with pytest.raises(BackendError, match="precision 'int8': with the backend 'cpu' expected fp32"):
        open_backend("cpu", precision="int8")  # type: ignore[arg-type]
