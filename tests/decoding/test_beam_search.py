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

from export.bundle_builder import decoder_settings
from export.graphs.exporter import ExportError, export_beam_decoder, export_decoder
from export.models.decap_decoder import DecapBeamStep, DecapStep, DecoderConfig
from runtime import BackendError, Box, BundleError, Caption, Captioner, PatchcaptionError, Point, WholeImage
from runtime.backends import Backend, Engine, OpenVinoBackend, OrtBackend
from runtime.bundle import DecoderConfig
from runtime.cli.main import main
from runtime.decoding.beam_search import beam_search
from runtime.decoding.greedy import Decoded
from tests.conftest import SAMPLE

TEXT_VOCABULARY, VOCABULARY, STEPS, WIDTH = 90, 100, 14, 32
END = TEXT_VOCABULARY - 1
WITHOUT_TEXT = list(range(TEXT_VOCABULARY, VOCABULARY))


class TorchEngine:
    """A decoder's step as an engine, without a graph; notes how many rows each call has."""

    def __init__(self, step: DecapStep) -> None:
        self.module = DecapBeamStep(step)
        self.places = [f"{kind}_{layer}" for layer in range(step.config.layers) for kind in ("key", "value")]
        self.rows = list[int]()

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.rows.append(len(inputs["tokens"]))
        names = ("vectors", "tokens", "step", *(f"past_{place}" for place in self.places))
        assert set(names) == set(inputs)
        assert all(inputs[name].is_contiguous() for name in names)
        with torch.inference_mode():
            outputs = self.module(*(inputs[name] for name in names))
        return dict(zip(["all_log_probabilities", *(f"new_{place}" for place in self.places)], outputs, strict=True))

    def close(self) -> None:
        pass


@dataclass(frozen=True, eq=False)
class Model:
    """A seeded GPT-2, theirs and ours on the same weights, and vectors for it."""

    theirs: GPT2LMHeadModel
    ours: DecapStep
    settings: DecoderConfig
    vectors: Tensor

    def search(self, beams: int, length_penalty: float = 1.0, engine: Engine | None = None) -> Decoded:
        return beam_search(engine or TorchEngine(self.ours), self.settings, self.vectors, beams, length_penalty)

    def generate(self, beams: int, length_penalty: float = 1.0) -> Decoded:
        """What transformers' generate makes of the same vectors."""
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
                eos_token_id=END,
                pad_token_id=END,
                return_dict_in_generate=True,
                output_scores=True,
            )
        ids = [row[: row.index(END) + 1] if END in row else row for row in out.sequences.tolist()]
        scores = out.sequences_scores.tolist()
        sums = [score * len(row) ** length_penalty for score, row in zip(scores, ids, strict=True)]
        return Decoded(ids, sums)


def model(seed: int, end_scale: float = 3.0, regions: int = 8) -> Model:
    """``end_scale`` says how gladly its captions end."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    config = GPT2Config(
        vocab_size=VOCABULARY,
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
        theirs.transformer.wte.weight[TEXT_VOCABULARY:] *= 2  # likely, so that leaving them out matters
        theirs.transformer.wte.weight[END] *= end_scale
    ours = DecapStep(
        DecoderConfig(
            prefix_width=24, width=WIDTH, layers=2, vocabulary=VOCABULARY, text_vocabulary=TEXT_VOCABULARY, steps=STEPS
        )
    ).eval()
    ours.decoder.load_state_dict({name: value for name, value in theirs.state_dict().items() if "lm_head" not in name})
    projection = {"model.0.weight": normal(WIDTH, 24), "model.0.bias": normal(WIDTH)}
    ours.clip_project.load_state_dict(projection)
    return Model(theirs, ours, decoder_settings(ours.config, END), normal(regions, 24))


@pytest.fixture(scope="module")
def models() -> list[Model]:
    return [model(seed, end_scale) for seed in range(10) for end_scale in (2.0, 3.0)]


def assert_same(got: Decoded, expected: Decoded) -> None:
    assert got.ids == expected.ids
    # Float32: sums of up to 14 log-probabilities, in two orders of additions.
    assert got.log_probabilities == pytest.approx(expected.log_probabilities, rel=0, abs=1e-4)


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
    for beams in (20, TEXT_VOCABULARY // 2):
        assert_same(models[1].search(beams), models[1].generate(beams))


def test_more_beams_than_half_the_words_are_refused(models: list[Model]) -> None:
    with pytest.raises(PatchcaptionError, match="beams: expected at most 45, half of the decoder's words, got 46"):
        models[0].search(TEXT_VOCABULARY // 2 + 1)


@pytest.mark.parametrize("beams", [2, 5])
def test_a_region_has_the_same_beams_whatever_is_in_the_batch_and_leaves_it_when_done(beams: int) -> None:
    many = model(seed=3, regions=24)
    whole_engine = TorchEngine(many.ours)
    whole = many.search(beams, engine=whole_engine)
    calls = []
    for region in range(24):
        engine = TorchEngine(many.ours)
        alone = beam_search(engine, many.settings, many.vectors[region : region + 1], beams)
        assert alone.ids == [whole.ids[region]]
        assert alone.log_probabilities == pytest.approx([whole.log_probabilities[region]], rel=1e-5)
        calls.append(len(engine.rows))
    assert len(set(calls)) > 3, "the searches should end at different steps"
    going = [sum(count > step for count in calls) for step in range(max(calls))]
    assert whole_engine.rows == [24, *(beams * count for count in going[1:])]


def test_many_regions_are_searched_in_batches_and_equal_vectors_once() -> None:
    many = model(seed=3, regions=10)
    whole = many.search(3)
    settings = many.settings.model_copy(update={"batches": (14,)})
    order = [*range(10), 3, 3, 0]
    told: list[tuple[int, int]] = []
    engine = TorchEngine(many.ours)
    got = beam_search(engine, settings, many.vectors[order], 3, progress=lambda done, total: told.append((done, total)))
    assert got.ids == [whole.ids[row] for row in order]
    assert max(engine.rows) == 12, "four regions of three beams"
    assert engine.rows.count(4) + engine.rows.count(2) >= 3
    assert len(told) == 3
    assert told[-1] == (13, 13)


def test_no_vectors_are_no_captions(models: list[Model]) -> None:
    assert beam_search(TorchEngine(models[0].ours), models[0].settings, torch.zeros(0, 24), 3).ids == []


@pytest.fixture(scope="module")
def exported(models: list[Model], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("decoder")
    export_decoder(models[1].ours, folder)
    export_beam_decoder(models[1].ours, folder)
    return folder


def open_with(backend: type[Backend], path: Path) -> Engine:
    if backend is OpenVinoBackend:
        pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")
    return backend().open(path)


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
    assert all(weight.nbytes < 1024 for weight in weights.values()), "what else there is are shapes and constants"


def test_weights_that_another_decoder_has_stored_are_refused(
    models: list[Model], exported: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(exported, tmp_path / "decoder")
    with pytest.raises(ExportError, match=r"decoder.onnx.data: has no weight greedy\..* of these values"):
        export_beam_decoder(models[2].ours, folder)


@pytest.fixture(scope="module")
def vectors(demo: Captioner) -> Tensor:
    """In text space: of points of a scene, between two of those, and of no caption at all."""
    features = demo.encode(SAMPLE / "scene.jpg")
    points = demo.project(demo.vectors(features, [Point(x, y) for x in range(10, 672, 48) for y in range(10, 672, 48)]))
    generator = torch.Generator().manual_seed(0)
    between = (points + points[torch.randperm(len(points), generator=generator)]) / 2
    return torch.cat([points, between, F.normalize(torch.randn(points.shape, generator=generator))])


def test_one_beam_is_greedy_and_opens_nothing(demo_bundle: Path, vectors: Tensor) -> None:
    with Captioner.load(demo_bundle) as captioner:
        assert captioner.decode(vectors, beams=1, length_penalty=3) == captioner.decode(vectors)
        assert captioner._beam_decoder is None


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_beams_find_captions_that_score_at_least_as_well_as_greedy_ones_nearly_always(
    demo: Captioner, vectors: Tensor, length_penalty: float
) -> None:
    """Always, but where the beginning of the greedy caption was not among the beams at some step."""

    def score(caption: Caption) -> float:
        return math.log(caption.score) / len(caption.ids) ** length_penalty

    found = demo.decode(vectors, beams=4, length_penalty=length_penalty)
    pairs = list(zip(demo.decode(vectors), found, strict=True))
    gains = [score(two) - score(one) for one, two in pairs]
    assert sum(gain >= -1e-4 for gain in gains) >= 0.99 * len(gains)
    assert sum(two.score >= one.score * (1 - 1e-4) for one, two in pairs) >= 0.97 * len(pairs), "likelier too"
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
    projected = demo.project(demo.vectors(features, [box, WholeImage()]))
    told: list[tuple[int, int]] = []
    captions = demo.describe(
        features,
        [box, WholeImage()],
        beams=3,
        length_penalty=-2.0,
        progress=lambda done, total: told.append((done, total)),
    )
    expected = demo.decode(projected, beams=3, length_penalty=-2.0)
    assert [caption.ids for caption in captions] == [caption.ids for caption in expected]
    assert captions[0].region is box
    assert told == [(2, 2)]


@pytest.mark.parametrize("beams", [0, -1, 257, 2.0, "2", None])
def test_a_number_of_beams_that_is_none_is_refused(demo: Captioner, vectors: Tensor, beams: object) -> None:
    with pytest.raises(PatchcaptionError, match="beams: expected a whole number from 1 to 256, got"):
        demo.decode(vectors, beams=beams)


@pytest.mark.parametrize("length_penalty", [math.nan, math.inf, -10.5, "1", None])
def test_a_length_penalty_that_is_no_small_number_is_refused(
    demo: Captioner, vectors: Tensor, length_penalty: object
) -> None:
    with pytest.raises(PatchcaptionError, match="length_penalty: expected a number from -10 to 10, got"):
        demo.decode(vectors, beams=2, length_penalty=length_penalty)


def test_the_published_score_takes_one_beam_only(demo: Captioner, vectors: Tensor) -> None:
    with pytest.raises(PatchcaptionError, match='score="reference" with beams=2: the published score is of one beam'):
        demo.decode(vectors, "reference", beams=2)
    assert demo.decode(vectors[:2], "reference", beams=1) == demo.decode(vectors[:2], "reference")


def test_a_bundle_from_before_beam_search_says_so(
    demo: Captioner, vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = demo.manifest.model_copy(update={"beam_decoder": None})
    monkeypatch.setattr(demo._bundle, "manifest", old)
    monkeypatch.setattr(demo, "_beam_decoder", None)
    with pytest.raises(BundleError, match="built without a decoder for beam search; build the bundle again"):
        demo.decode(vectors, beams=2)


def test_the_decoder_for_beam_search_is_opened_once_and_closed(demo_bundle: Path, vectors: Tensor) -> None:
    captioner = Captioner.load(demo_bundle)
    captioner.decode(vectors[:1], beams=2)
    engine = captioner._beam_decoder
    captioner.decode(vectors[:1], beams=3)
    assert captioner._beam_decoder is engine is not None
    captioner.close()
    with pytest.raises(BackendError, match=r"beam_decoder.onnx: it was closed"):
        captioner.decode(vectors[:1], beams=2)


def test_the_command_takes_beams(demo_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scene, box = str(SAMPLE / "scene.jpg"), "276,174,507,399"
    assert main(["caption", scene, "--engines", str(demo_bundle), "--box", box, "--beams", "3"]) == 0
    assert capsys.readouterr().out.split(maxsplit=1)[1].strip() == "a large striped red triangle"


@pytest.mark.parametrize(
    ("beams", "message"), [("0", "from 1 to 256, got 0"), ("two", "expected a whole number, got 'two'")]
)
def test_beams_that_are_no_number_are_a_mistake_on_the_command_line(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], beams: str, message: str
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["caption", str(SAMPLE / "scene.jpg"), "--engines", str(demo_bundle), "--beams", beams])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert "argument --beams" in error
    assert message in error
    assert error.count("\n") == 1
