"""Weights in 8 bits: what is stored and by which scales, and what products become of it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from export.graphs import verification, weight_compression
from export.graphs.errors import ExportError
from export.graphs.exporter import export_graph
from export.graphs.specs import GraphSpec, decap_specs
from export.graphs.verification import compare
from export.graphs.weight_compression import BLOCK
from export.models.decap_decoder import DecapConfig, DecapStep
from runtime.bundle.graph_io import GraphIo, TensorSpec
from tests.exported_forms import randomized

WIDTH, WORDS, ODD = 2 * BLOCK, 70, BLOCK - 1


class Tied(nn.Module):
    """An embedding, a biased and a plain product, one with the embedding, and one whose inputs are no whole blocks."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.words = nn.Embedding(WORDS, WIDTH)
        self.biased = nn.Linear(WIDTH, 2 * WIDTH)
        self.plain = nn.Linear(2 * WIDTH, WIDTH, bias=False)
        self.odd = nn.Linear(ODD, WIDTH, bias=False)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            self.plain.weight[:, :BLOCK] = 0

    def forward(self, tokens: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.biased(vectors)
        states = self.plain(hidden) + self.odd(vectors[:, :ODD])
        return self.words(tokens), hidden, F.linear(states, self.words.weight)


TOKENS = torch.tensor([0, 5, WORDS - 1])
VECTORS = torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(1))
Run = Callable[[Tensor, Tensor], list[np.ndarray]]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tied")
    rows = {0: torch.export.Dim("rows", min=1)}
    inputs = TensorSpec("tokens", "int64", ("rows",)), TensorSpec("vectors", "float32", ("rows", WIDTH))
    outputs = [TensorSpec(name, "float32", ("rows", "width")) for name in ("embeddings", "hidden", "logits")]
    io = GraphIo("tied", inputs, tuple(outputs))
    spec = GraphSpec(Tied().eval(), io, (TOKENS, VECTORS), (rows, rows), calibration=[], checks=[])
    record = export_graph(spec, folder, "int8_weights")
    assert (record.precision, record.opset) == ("int8_weights", 21)
    return folder / "tied.onnx"


@pytest.fixture(scope="module")
def run(graph: Path) -> Run:
    """The graph without optimizations, of which some round activations too."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return lambda tokens, vectors: session.run(None, {"tokens": tokens.numpy(), "vectors": vectors.numpy()})


@pytest.fixture(scope="module")
def weights(graph: Path) -> dict[str, np.ndarray]:
    return {one.name: onnx.numpy_helper.to_array(one) for one in onnx.load(graph).graph.initializer}


def test_weights_are_stored_once_in_8_bits_and_embeddings_as_they_are(weights: dict[str, np.ndarray]) -> None:
    stored = sorted((array.shape, array.dtype.name) for array in weights.values() if array.size > 1000)
    assert stored == [
        ((WORDS, WIDTH), "float32"),
        ((WIDTH, ODD), "float32"),
        ((WIDTH, WORDS), "int8"),
        ((WIDTH, 2 * WIDTH), "int8"),
        ((2 * WIDTH, WIDTH), "int8"),
    ]


def test_each_block_of_an_output_has_a_scale_by_which_its_largest_weight_is_127(weights: dict[str, np.ndarray]) -> None:
    weight = Tied().biased.weight.detach().numpy().T
    (name,) = (name for name, array in weights.items() if array.shape == (WIDTH, 2 * WIDTH))
    scales = weights[name.removesuffix(".int8") + ".scales"]
    blocks, steps = (array.reshape(2, BLOCK, 2 * WIDTH) for array in (weight, weights[name]))
    np.testing.assert_allclose(scales, np.abs(blocks).max(axis=1) / 127, rtol=1e-6)
    assert (np.abs(steps.astype(int)).max(axis=1) == 127).all()
    assert (np.abs(steps * scales[:, None] - blocks) <= scales[:, None] * 0.5001).all()


def test_products_are_those_of_the_rounded_weights(run: Run, weights: dict[str, np.ndarray]) -> None:
    def rounded(shape: tuple[int, int]) -> np.ndarray:
        (name,) = (name for name, array in weights.items() if array.shape == shape and array.dtype == np.int8)
        return weights[name] * weights[name.removesuffix(".int8") + ".scales"].repeat(BLOCK, axis=0)

    module = Tied()
    embeddings, hidden, logits = run(TOKENS, VECTORS)
    np.testing.assert_array_equal(embeddings, module.words.weight.detach().numpy()[TOKENS])
    expected = VECTORS.numpy() @ rounded((WIDTH, 2 * WIDTH)) + module.biased.bias.detach().numpy()
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-4)
    states = hidden @ rounded((2 * WIDTH, WIDTH)) + VECTORS[:, :ODD].numpy() @ module.odd.weight.detach().numpy().T
    np.testing.assert_allclose(logits, states @ rounded((WIDTH, WORDS)), rtol=1e-3, atol=1e-2)


def test_a_row_does_not_depend_on_the_others_of_its_batch(run: Run) -> None:
    loud = torch.cat([VECTORS, VECTORS[:1] * 1e4])
    together = run(torch.cat([TOKENS, TOKENS[:1]]), loud)
    for row in range(len(TOKENS)):
        for one, many in zip(run(TOKENS[row : row + 1], VECTORS[row : row + 1]), together, strict=True):
            np.testing.assert_allclose(one[0], many[row], rtol=1e-4, atol=1e-4)


def test_a_graph_that_is_wrong_is_refused_too(graph: Path) -> None:
    assert 0 < compare(graph, Tied().eval(), (TOKENS, VECTORS), precision="int8_weights") < 0.02
    with pytest.raises(ExportError, match="output hidden differs from its module by .*; at most 1e-04 is rounding"):
        compare(graph, Tied().eval(), (TOKENS, VECTORS))
    other = Tied().eval()
    with torch.no_grad():
        other.plain.weight.neg_()
    with pytest.raises(ExportError, match="output logits differs from its module by .*; at most 2e-01 is rounding"):
        compare(graph, other, (TOKENS, VECTORS), precision="int8_weights")


GAIN = 5.0


class AllOrNothing(nn.Module):
    """A softmax of numbers so large that the rounding of weights decides it."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed)))

    def forward(self, vectors: Tensor) -> Tensor:
        return torch.softmax(self.linear(vectors) * GAIN, dim=-1)


def test_rounding_that_a_module_makes_much_of_is_rounding(tmp_path: Path) -> None:
    vectors = torch.randn(400, WIDTH, generator=torch.Generator().manual_seed(1))
    io = GraphIo(
        "sharp",
        (TensorSpec("vectors", "float32", ("rows", WIDTH)),),
        (TensorSpec("weights", "float32", ("rows", "width")),),
    )
    rows = {0: torch.export.Dim("rows", min=1)}
    spec = GraphSpec(AllOrNothing().eval(), io, (vectors[:2],), (rows,), calibration=[], checks=[(vectors,)])
    assert export_graph(spec, tmp_path, "int8_weights").max_error > 0.2
    with pytest.raises(ExportError, match="at most .* is rounding"):
        compare(tmp_path / "sharp.onnx", AllOrNothing(seed=1).eval(), (vectors,), precision="int8_weights")


@pytest.mark.slow
def test_beam_search_needs_a_decoder_of_its_own_precision(tmp_path: Path) -> None:
    config = DecapConfig(prefix_width=64, embed_dim=64, num_layers=1, vocab_size=100, text_vocab_size=90)
    greedy, beam = decap_specs(randomized(DecapStep(config)))
    assert export_graph(greedy, tmp_path, "int8_weights").precision == "int8_weights"
    assert export_graph(beam, tmp_path, "int8_weights").precision == "int8_weights"
    assert not (tmp_path / "beam_decoder.onnx.data").exists()
    with pytest.raises(ExportError, match="decoder.onnx.data: has no weight .* export both again"):
        export_graph(beam, tmp_path)


@pytest.fixture(scope="module")
def decoder() -> DecapStep:
    """One whose vocabulary is padded, so that its product has a bias."""
    config = DecapConfig(prefix_width=64, embed_dim=64, num_layers=2, vocab_size=301, text_vocab_size=200)
    made = randomized(DecapStep(config))
    made.prepare_for("cpu", rounds_weights=True)
    assert len(made.decoder.transformer.wte.weight) > config.vocab_size
    return made


@pytest.fixture(scope="module")
def sampled(decoder: DecapStep) -> GraphSpec:
    greedy, beam = decap_specs(decoder, F.normalize(torch.randn(4, 64, generator=torch.Generator().manual_seed(2))))
    assert [len(spec.samples) for spec in (greedy, beam)] == [10, 10]
    return greedy


def test_samples_are_steps_of_captions(decoder: DecapStep, sampled: GraphSpec) -> None:
    with torch.no_grad():
        for earlier, later in zip(sampled.samples, sampled.samples[1:], strict=False):
            vectors, ids, position, *past = (one.clone() for one in earlier)
            for step in range(3):
                ids, _, *present = decoder(vectors, ids, position + step, *past)
                for entries, new in zip(past, present, strict=True):
                    entries[:, :, position + step] = new
            for one, other in zip((vectors, ids, position + 3, *past), later, strict=True):
                torch.testing.assert_close(one, other)


def roundings(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    """Return what rounds activations, by the end of the name of the weight that they are multiplied by."""
    producers = {name: node for node in model.graph.node for name in node.output}
    found = {}
    for node in model.graph.node:
        if node.op_type == "MatMul" and all(name in producers for name in node.input):
            activations, weight = (producers[name] for name in node.input)
            rounding = producers.get(activations.input[0])
            if rounding is not None and rounding.op_type == "QuantizeLinear":
                found[weight.input[0].removesuffix(".columns.steps")] = rounding
    return found


def test_products_of_what_norms_make_have_8_bits_on_both_sides(tmp_path: Path, sampled: GraphSpec) -> None:
    export_graph(sampled, tmp_path, "int8_weights")
    model = onnx.load(tmp_path / "decoder.onnx")
    of_layers = {
        f"decoder.transformer.h.{layer}.{own}.weight" for layer in range(2) for own in ("attn.c_attn", "mlp.c_fc")
    }
    assert set(roundings(model)) == {*of_layers, "decoder.transformer.wte.weight"}
    operators = operators_in_onnx_runtime(tmp_path / "decoder.onnx", tmp_path)
    assert operators.count("MatMulIntegerToFloat") == 5


def test_states_before_the_vocabulary_are_rounded_by_the_largest_of_samples(
    tmp_path: Path, decoder: DecapStep, sampled: GraphSpec
) -> None:
    export_graph(sampled, tmp_path, "int8_weights")
    model = onnx.load(tmp_path / "decoder.onnx")
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    with torch.no_grad():
        states = [decoder.states(vectors, ids, position, past)[0] for vectors, ids, position, *past in sampled.samples]
    largest = max(float(one.abs().max()) for one in states)
    scale = weights[roundings(model)["decoder.transformer.wte.weight"].input[1]]
    np.testing.assert_allclose(scale, 1.25 * largest / 127, rtol=1e-4)


def test_what_a_norm_makes_and_its_weight_have_like_columns(tmp_path: Path, sampled: GraphSpec) -> None:
    """The largest activation of each column, times its headroom, is the largest weight there."""
    export_graph(sampled, tmp_path, "int8_weights")
    model = onnx.load(tmp_path / "decoder.onnx")
    weights = {one.name: onnx.numpy_helper.to_array(one) for one in model.graph.initializer}
    name = "decoder.transformer.h.1.mlp.c_fc.weight"
    made_by_norm = roundings(model)[name].input[0]
    model.graph.output.append(onnx.helper.make_tensor_value_info(made_by_norm, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    largest = np.zeros(64)
    for inputs in sampled.samples:
        feeds = dict(zip(sampled.io.input_names, (one.numpy() for one in inputs), strict=True))
        largest = np.maximum(largest, np.abs(session.run([made_by_norm], feeds)[0]).reshape(-1, 64).max(axis=0))
    columns = np.abs(weights[f"{name}.columns.steps"] * weights[f"{name}.columns.scale"]).max(axis=1)
    np.testing.assert_allclose(1.25 * largest, columns, rtol=0.05)


def test_columns_that_are_much_larger_than_others_spoil_nothing(
    tmp_path: Path, decoder: DecapStep, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As GPT-2's norms make them."""
    loud = copy.deepcopy(decoder)
    with torch.no_grad():
        for layer in range(2):
            block = loud.decoder.transformer.get_submodule(f"h.{layer}")
            block.get_parameter("ln_1.weight")[:2] *= 100
            block.get_parameter("attn.c_attn.weight")[:2] /= 100
    vectors = F.normalize(torch.randn(8, 64, generator=torch.Generator().manual_seed(2)))

    def error() -> float:
        spec, _ = decap_specs(loud, vectors)
        return export_graph(spec, tmp_path, "int8_weights").max_error

    evened = error()
    monkeypatch.setattr(weight_compression, "_evening_factors", lambda largest, _: np.ones_like(largest))
    monkeypatch.setattr(verification, "_MAX_ERROR", dict.fromkeys(verification._MAX_ERROR, 10.0))
    assert evened < 0.2 < error()


def test_vectors_may_be_of_any_length(tmp_path: Path, decoder: DecapStep, sampled: GraphSpec) -> None:
    export_graph(sampled, tmp_path, "int8_weights")
    for factor in (0.01, 100.0):
        cases = [(factor * vectors, *others) for vectors, *others in sampled.checks]
        assert compare(tmp_path / "decoder.onnx", decoder, *cases, precision="int8_weights") < 0.2


def operators_in_onnx_runtime(graph: Path, folder: Path) -> list[str]:
    """Return what ONNX Runtime makes of a graph: products that it cannot fuse it would do in float32."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimized.onnx")
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimized.onnx", load_external_data=False).graph.node]


def test_the_chosen_tokens_are_those_of_exact_products(tmp_path: Path, decoder: DecapStep, sampled: GraphSpec) -> None:
    """Of the graph's own states, which the rounding of all other weights changes."""
    export_graph(sampled, tmp_path, "int8_weights")
    model = onnx.load(tmp_path / "decoder.onnx")
    rounding = roundings(model)["decoder.transformer.wte.weight"]
    model.graph.output.append(onnx.helper.make_tensor_value_info(rounding.input[0], onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    vocabulary = decoder.decoder.transformer.wte.weight.detach()[: decoder.config.vocab_size]
    for inputs in sampled.samples:
        feeds = dict(zip(sampled.io.input_names, (one.numpy() for one in inputs), strict=True))
        ids, log_probs, *_, states = (torch.from_numpy(one) for one in session.run(None, feeds))
        exact = torch.from_numpy(states.numpy()) @ vocabulary.T
        expected = exact[:, : decoder.config.text_vocab_size].argmax(dim=1)
        torch.testing.assert_close(ids, expected)
        exact_log_probs = exact.log_softmax(dim=1).gather(1, expected[:, None])[:, 0]
        torch.testing.assert_close(log_probs, exact_log_probs, rtol=0, atol=0.05)  # those of other tokens are rounded
