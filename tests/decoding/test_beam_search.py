"""Beam search against transformers' generate, and on the demo bundle."""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from export.graphs.errors import ExportError
from export.graphs.exporter import export_graph
from export.graphs.specs import decap_specs
from export.models import BundleNumbers
from export.models.decap_decoder import DecapBeamStep, DecapConfig, DecapStep
from runtime import BackendError, Box, BundleError, Caption, Captioner, PatchcaptionError, Point, Region, WholeImage
from runtime.backends import Backend, Engine, EngineReport
from runtime.backends.base import BindableEngine
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.openvino import OpenVinoBackend
from runtime.bundle import Bundle, DecoderConfig, EngineFiles
from runtime.bundle.graph_io import INPUT_IDS, beam_decoder_step
from runtime.cli.main import main
from runtime.decoding.batches import TokenSequences
from runtime.decoding.beam_search import beam_search
from tests.conftest import SAMPLE
from tests.doubles import RecordingBackend, captioner_of, without_engine

TEXT_VOCAB_SIZE, VOCAB_SIZE, STEPS, WIDTH, PREFIX_WIDTH = 90, 100, 14, 32, 24
EOS = TEXT_VOCAB_SIZE - 1
WITHOUT_TEXT = list(range(TEXT_VOCAB_SIZE, VOCAB_SIZE))


class TorchEngine:
    """A decoder's step as an engine, without a graph.

    Attributes:
        rows: the rows of each run.
    """

    bindable: BindableEngine | None = None

    def __init__(self, step: DecapStep) -> None:
        self._module = DecapBeamStep(step)
        self._io = beam_decoder_step(step.config.num_layers)
        self.rows: list[int] = []

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.rows.append(len(inputs[INPUT_IDS]))
        names = self._io.input_names
        assert set(names) == set(inputs)
        assert all(inputs[name].is_contiguous() for name in names)
        with torch.inference_mode():
            outputs = self._module(*(inputs[name] for name in names))
        return dict(zip(self._io.output_names, outputs, strict=True))

    def report(self) -> EngineReport:
        return EngineReport("torch")

    def close(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Model:
    """A seeded GPT-2, theirs and ours on the same weights, and vectors for it."""

    theirs: GPT2LMHeadModel
    ours: DecapStep
    config: DecoderConfig
    vectors: Tensor

    def search(self, beams: int, length_penalty: float = 1.0, engine: Engine | None = None) -> TokenSequences:
        return beam_search(engine or TorchEngine(self.ours), self.config, self.vectors, beams, length_penalty)

    def generate(self, beams: int, length_penalty: float = 1.0) -> TokenSequences:
        """Return what transformers' generate makes of the same vectors."""
        with torch.inference_mode():
            out = self.theirs.generate(
                inputs_embeds=self.ours.clip_project.model(self.vectors)[:, None],
                attention_mask=torch.ones(len(self.vectors), 1, dtype=torch.int64),
                num_beams=beams,
                do_sample=False,
                early_stopping=False,
                length_penalty=length_penalty,
                max_new_tokens=STEPS,
                suppress_tokens=WITHOUT_TEXT,
                eos_token_id=EOS,
                pad_token_id=EOS,
                return_dict_in_generate=True,
                output_scores=True,
            )
        ids = [row[: row.index(EOS) + 1] if EOS in row else row for row in out.sequences.tolist()]
        scores = out.sequences_scores.tolist()
        sums = [score * len(row) ** length_penalty for score, row in zip(scores, ids, strict=True)]
        return TokenSequences(ids, sums)


def model(seed: int, eos_scale: float = 3.0, regions: int = 8) -> Model:
    """Return a model whose captions end the sooner the larger ``eos_scale`` is."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = GPT2Config(
        vocab_size=VOCAB_SIZE,
        n_positions=STEPS,
        n_embd=WIDTH,
        n_layer=2,
        n_head=4,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    theirs = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.add_(normal(*parameter.shape) * 0.3)
        theirs.transformer.wte.weight[TEXT_VOCAB_SIZE:] *= 2  # likely, so that leaving them out matters
        theirs.transformer.wte.weight[EOS] *= eos_scale
    ours = DecapStep(
        DecapConfig(
            prefix_width=PREFIX_WIDTH,
            embed_dim=WIDTH,
            num_layers=2,
            vocab_size=VOCAB_SIZE,
            text_vocab_size=TEXT_VOCAB_SIZE,
            max_new_tokens=STEPS,
        )
    ).eval()
    ours.decoder.load_state_dict({name: value for name, value in theirs.state_dict().items() if "lm_head" not in name})
    projection = {"model.0.weight": normal(WIDTH, PREFIX_WIDTH), "model.0.bias": normal(WIDTH)}
    ours.clip_project.load_state_dict(projection)
    numbers = BundleNumbers("tests", (EOS,), max_images=1, batch_sizes=(1, 4, 16, 64, 256), precision="fp32")
    return Model(theirs, ours, ours.manifest_entry(numbers), normal(regions, PREFIX_WIDTH))


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return [model(seed, eos_scale) for seed in range(10) for eos_scale in (2.0, 3.0)]


def assert_same(got: TokenSequences, expected: TokenSequences) -> None:
    assert got.ids == expected.ids
    # Float32: sums of up to 14 log-probabilities, in two orders of additions.
    assert got.log_probs == pytest.approx(expected.log_probs, rel=0, abs=1e-4)


@pytest.mark.parametrize("beams", [2, 3, 5])
def test_captions_are_those_of_transformers_generate(models: list[Model], beams: int) -> None:
    lengths, early = set[int](), 0
    for each in models:
        engine = TorchEngine(each.ours)
        got = each.search(beams, engine=engine)
        assert_same(got, each.generate(beams))
        lengths |= {len(ids) for ids in got.ids}
        early += engine.rows[-1] < beams * len(each.vectors)
    assert len(lengths) > 5, "the captions should end at different steps"
    assert max(lengths) == STEPS, "and some never"
    assert early > 5, "and searches before the last step"


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 0.5, 2.0])
def test_length_penalties_are_those_of_transformers_generate(models: list[Model], length_penalty: float) -> None:
    different = 0
    for each in models:
        got = each.search(3, length_penalty)
        assert_same(got, each.generate(3, length_penalty))
        different += got.ids != each.search(3).ids
    assert different > 3, "the penalty should matter"


def test_more_beams_than_a_block_of_the_vocabulary_has_ids(models: list[Model]) -> None:
    for beams in (20, TEXT_VOCAB_SIZE // 2):
        assert_same(models[1].search(beams), models[1].generate(beams))


def test_more_beams_than_half_the_words_are_refused(models: list[Model]) -> None:
    with pytest.raises(PatchcaptionError, match="beams: expected at most 45, half of the decoder's words, got 46"):
        models[0].search(TEXT_VOCAB_SIZE // 2 + 1)


@pytest.mark.parametrize("beams", [2, 5])
def test_a_region_has_the_same_beams_whatever_is_in_the_batch_and_leaves_it_when_done(beams: int) -> None:
    many = model(seed=3, regions=24)
    whole_engine = TorchEngine(many.ours)
    whole = many.search(beams, engine=whole_engine)
    calls = []
    for region in range(24):
        engine = TorchEngine(many.ours)
        alone = beam_search(engine, many.config, many.vectors[region : region + 1], beams)
        assert alone.ids == [whole.ids[region]]
        assert alone.log_probs == pytest.approx([whole.log_probs[region]], rel=1e-5)
        calls.append(len(engine.rows))
    assert len(set(calls)) > 3, "the searches should end at different steps"
    active = [sum(count > step for count in calls) for step in range(max(calls))]
    assert whole_engine.rows == [24, *(beams * count for count in active[1:])]


def test_many_regions_are_searched_in_batches_and_equal_vectors_once() -> None:
    many = model(seed=3, regions=10)
    whole = many.search(3)
    config = many.config.model_copy(update={"batch_sizes": (14,)})
    order = [*range(10), 3, 3, 0]
    reported: list[tuple[int, int]] = []
    engine = TorchEngine(many.ours)
    vectors = many.vectors[order]
    got = beam_search(engine, config, vectors, 3, progress=lambda done, total: reported.append((done, total)))
    assert got.ids == [whole.ids[row] for row in order]
    assert max(engine.rows) == 12, "four regions of three beams"
    assert engine.rows.count(4) + engine.rows.count(2) >= 3
    assert len(reported) == 3
    assert reported[-1] == (13, 13)


def test_no_vectors_are_no_captions(models: list[Model]) -> None:
    assert beam_search(TorchEngine(models[0].ours), models[0].config, torch.zeros(0, PREFIX_WIDTH), 3).ids == []


@pytest.fixture(scope="module")
def exported(models: list[Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    for spec in decap_specs(models[1].ours):
        export_graph(spec, folder)
    return folder


def open_with(backend: type[Backend], path: Path) -> Engine:
    if backend is OpenVinoBackend:
        pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")
    return backend().open(EngineFiles(path))


@pytest.mark.parametrize("backend", [OrtBackend, OpenVinoBackend])
def test_the_exported_graph_finds_the_same_captions(
    models: list[Model], exported: Path, backend: type[Backend]
) -> None:
    engine = open_with(backend, exported / "beam_decoder.onnx")
    assert_same(models[1].search(3, engine=engine), models[1].generate(3))
    engine.close()


def test_weights_are_stored_once(models: list[Model], exported: Path) -> None:
    assert sorted(path.name for path in exported.iterdir()) == [
        "beam_decoder.onnx",
        "decoder.onnx",
        "decoder.onnx.data",
    ]
    initializers = onnx_ir.load(exported / "beam_decoder.onnx").graph.initializers
    weights = {name: value.const_value for name, value in initializers.items()}
    for name, parameter in DecapBeamStep(models[1].ours).named_parameters():
        weight = weights.pop(name)
        assert weight.numpy().tobytes() == parameter.detach().numpy().tobytes()
        assert weight.nbytes < 256 or weight.location == "decoder.onnx.data"
    assert all(weight.nbytes < 1024 for weight in weights.values()), "all others are shapes and constants"


def test_weights_that_another_decoder_has_stored_are_refused(
    models: list[Model], exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "decoder")
    _, beam = decap_specs(models[2].ours)
    with pytest.raises(ExportError, match=r"decoder.onnx.data: has no weight greedy\..* of these values"):
        export_graph(beam, folder)


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


@pytest.fixture(scope="module")
def vectors(demo: Captioner) -> Tensor:
    """Vectors in text space: those of points of a scene, between two of them, and of no caption at all."""
    features = demo.encode(SAMPLE / "scene.jpg")
    points = demo.project(demo.vectors(features, [Point(x, y) for x in range(10, 672, 48) for y in range(10, 672, 48)]))
    generator = torch.Generator().manual_seed(0)
    between = (points + points[torch.randperm(len(points), generator=generator)]) / 2
    return torch.cat([points, between, F.normalize(torch.randn(points.shape, generator=generator))])


def test_one_beam_is_greedy_and_opens_nothing(bundle: Bundle, vectors: Tensor) -> None:
    backend = RecordingBackend()
    with captioner_of(bundle, backend) as captioner:
        assert captioner.decode(vectors, beams=1, length_penalty=3) == captioner.decode(vectors)
    assert sorted(backend.opened) == ["backbone", "decoder"]


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_find_captions_that_score_at_least_as_well_as_greedy_ones_nearly_always(
    demo: Captioner, vectors: Tensor, length_penalty: float
) -> None:
    """Always, but where the beginning of the greedy caption was not among the beams at some step."""

    def score(caption: Caption) -> float:
        return math.log(caption.score) / len(caption.ids) ** length_penalty

    with_beams = demo.decode(vectors, beams=4, length_penalty=length_penalty)
    pairs = list(zip(demo.decode(vectors), with_beams, strict=True))
    gains = [score(searched) - score(greedy) for greedy, searched in pairs]
    assert sum(gain >= -1e-4 for gain in gains) >= 0.99 * len(gains)
    likelier = sum(searched.score >= greedy.score * (1 - 1e-4) for greedy, searched in pairs)
    assert likelier >= 0.97 * len(pairs), "likelier too"
    assert sum(gain > 1e-4 for gain in gains) >= 4, "and some score better"


def test_the_score_is_the_probability_of_exactly_this_caption(demo: Captioner, vectors: Tensor) -> None:
    greedy, found = demo.decode(vectors), demo.decode(vectors, beams=3, length_penalty=0.5)
    same = [(one, two) for one, two in zip(greedy, found, strict=True) if one.ids == two.ids]
    assert len(same) > len(greedy) / 2
    for one, two in same:
        assert two.text == one.text
        assert two.score == pytest.approx(one.score, rel=1e-4)


def test_regions_are_described_with_beams(demo: Captioner) -> None:
    features, box = demo.encode(SAMPLE / "scene.jpg"), Box(276, 174, 507, 399)
    regions: list[Region] = [box, WholeImage()]
    projected = demo.project(demo.vectors(features, regions))
    reported: list[tuple[int, int]] = []
    captions = demo.describe(
        features,
        [box, WholeImage()],
        beams=3,
        length_penalty=-2.0,
        progress=lambda done, total: reported.append((done, total)),
    )
    expected = demo.decode(projected, beams=3, length_penalty=-2.0)
    assert [caption.ids for caption in captions] == [caption.ids for caption in expected]
    assert captions[0].region is box
    assert reported == [(2, 2)]


@pytest.mark.parametrize("beams", [0, -1, 257, 2.0, "2", None])
def test_a_number_of_beams_that_is_none_is_refused(demo: Captioner, vectors: Tensor, beams: object) -> None:
    with pytest.raises(PatchcaptionError, match="beams: expected a whole number from 1 to 256, got"):
        demo.decode(vectors, beams=beams)  # type: ignore[arg-type]


@pytest.mark.parametrize("length_penalty", [math.nan, math.inf, -10.5, "1", None])
def test_a_length_penalty_that_is_no_small_number_is_refused(
    demo: Captioner, vectors: Tensor, length_penalty: object
) -> None:
    with pytest.raises(PatchcaptionError, match="length_penalty: expected a number from -10 to 10, got"):
        demo.decode(vectors, beams=2, length_penalty=length_penalty)  # type: ignore[arg-type]


def test_the_published_score_takes_one_beam_only(demo: Captioner, vectors: Tensor) -> None:
    with pytest.raises(PatchcaptionError, match='score="reference" with beams=2: the published score of decap'):
        demo.decode(vectors, score="reference", beams=2)
    one_beam = demo.decode(vectors[:2], score="reference", beams=1)
    assert one_beam == demo.decode(vectors[:2], score="reference")


def test_a_bundle_from_before_beam_search_says_so(bundle: Bundle, vectors: Tensor) -> None:
    with (
        captioner_of(without_engine(bundle, "beam_decoder")) as captioner,
        pytest.raises(BundleError, match="built without a decoder for beam search; build the bundle again"),
    ):
        captioner.decode(vectors, beams=2)


def test_the_decoder_for_beam_search_is_opened_once_and_closed(bundle: Bundle, vectors: Tensor) -> None:
    backend = RecordingBackend()
    captioner = captioner_of(bundle, backend)
    captioner.decode(vectors[:1], beams=2)
    captioner.decode(vectors[:1], beams=3)
    assert backend.opened.count("beam_decoder") == 1
    captioner.close()
    with pytest.raises(BackendError, match=r"the captioner was closed; load the bundle again"):
        captioner.decode(vectors[:1], beams=2)


def test_the_command_takes_beams(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, box = str(SAMPLE / "scene.jpg"), "276,174,507,399"
    assert main(["caption", scene, "--bundle", str(demo_bundle), "--box", box, "--beams", "3"]) == 0
    assert capsys.readouterr().out.split(maxsplit=1)[1].strip() == "a large striped red triangle"


@pytest.mark.parametrize(
    ("beams", "message"), [("0", "from 1 to 256, got 0"), ("two", "expected a whole number, got 'two'")]
)
def test_beams_that_are_no_number_are_a_mistake_on_the_command_line(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], beams: str, message: str
) -> None:
    assert main(["caption", str(SAMPLE / "scene.jpg"), "--bundle", str(demo_bundle), "--beams", beams]) == 2
    error = capsys.readouterr().err
    assert "argument --beams" in error
    assert message in error
    assert error.count("\n") == 1
