"""Decoding after prompts that stays on the device: the captions of the plain loop, in memory that stays."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime import Captioner
from runtime.backends.cuda.stream import Stream
from runtime.backends.onnxruntime_gpu import CPU, OrtGpuBackend
from runtime.bundle import Bundle
from runtime.decoding.batches import TokenSequences
from runtime.decoding.prompted import PromptedDecoder
from runtime.options import DecodeKeywords
from tests.cuda_double import CUDA, Allocations, CudaDouble
from tests.doubles import RecordingBackend, captioner_of, with_manifest

DEVICE = torch.device("cpu")


@pytest.fixture(scope="module")
def gpu_bundle(prompted_gpu_bundle: Path) -> Bundle:
    return Bundle(prompted_gpu_bundle)


@pytest.fixture(scope="module")
def cpu_bundle(prompted_bundle: Path) -> Bundle:
    return Bundle(prompted_bundle)


@pytest.fixture(scope="module")
def plain(cpu_bundle: Bundle) -> Iterator[Captioner]:
    with captioner_of(cpu_bundle) as captioner:
        yield captioner


@pytest.fixture(scope="module")
def recording() -> RecordingBackend:
    """The backend of GPUs, on the provider of the CPU."""
    return RecordingBackend(OrtGpuBackend(CPU, DEVICE))


@pytest.fixture(scope="module")
def on_device(gpu_bundle: Bundle, recording: RecordingBackend) -> Iterator[Captioner]:
    with captioner_of(gpu_bundle, recording) as captioner:
        yield captioner


@pytest.fixture(scope="module")
def vectors(cpu_bundle: Bundle) -> Tensor:
    return torch.randn(40, cpu_bundle.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def expected(plain: Captioner, vectors: Tensor) -> TokenSequences:
    return decoder_of(plain).greedy.decode(vectors)


def decoder_of(captioner: Captioner) -> PromptedDecoder:
    decoder = captioner.pipeline.decoder
    assert isinstance(decoder, PromptedDecoder)
    return decoder


def require_equal(got: TokenSequences, expected: TokenSequences, rows: Sequence[int]) -> None:
    """Tokens are the same, and log-probabilities up to another order of sums."""
    assert got.ids == [expected.ids[row] for row in rows]
    assert got.log_probs == pytest.approx([expected.log_probs[row] for row in rows], abs=1e-4)


def test_the_prompts_of_the_vectors_have_different_lengths(plain: Captioner, vectors: Tensor) -> None:
    assert len({len(words) for words in decoder_of(plain).prompts.words(vectors)}) > 2


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 40])
def test_any_number_of_rows_gives_the_captions_of_the_plain_loop(
    on_device: Captioner, vectors: Tensor, expected: TokenSequences, count: int
) -> None:
    assert len({tuple(ids) for ids in expected.ids}) > 10
    require_equal(decoder_of(on_device).greedy.decode(vectors[:count]), expected, range(count))


def test_memory_is_made_once_for_each_number_of_rows_and_nothing_of_the_last_call_is_left_in_it(
    gpu_bundle: Bundle, recording: RecordingBackend, vectors: Tensor, expected: TokenSequences
) -> None:
    with captioner_of(gpu_bundle, recording) as captioner:
        greedy, engine = decoder_of(captioner).greedy, recording.engines["decoder"]
        greedy.decode(vectors[:16])
        (kept,) = greedy._device_decoders.values()
        memory = {**kept._inputs.buffers(), **kept._cache.inputs()}
        places = {name: tensor.data_ptr() for name, tensor in memory.items()}
        for rows in (range(16, 32), range(5), range(20, 29), range(16)):
            require_equal(greedy.decode(vectors[list(rows)]), expected, rows)
        assert [shapes["input_ids"][0] for shapes in engine.bindings] == [16]
        memory = {**kept._inputs.buffers(), **kept._cache.inputs()}
        assert {name: tensor.data_ptr() for name, tensor in memory.items()} == places
        assert not engine.runs, "no step is run in other memory"


def test_the_number_of_steps_and_what_follows_the_end_are_as_asked(
    plain: Captioner, on_device: Captioner, vectors: Tensor
) -> None:
    ours, theirs = decoder_of(on_device).greedy, decoder_of(plain).greedy
    rows = range(16)
    for steps in (1, 2, 7):
        require_equal(
            ours.decode(vectors[:16], max_new_tokens=steps), theirs.decode(vectors[:16], max_new_tokens=steps), rows
        )
    require_equal(ours.decode(vectors[:16], ignore_eos=True), theirs.decode(vectors[:16], ignore_eos=True), rows)


def with_ends(bundle: Bundle, ends: Sequence[int]) -> Bundle:
    decoder = bundle.manifest.decoder.model_copy(update={"eos_token_ids": tuple(ends)})
    return with_manifest(bundle, decoder=decoder)


@pytest.mark.parametrize("which", ["one", "all"])
def test_captions_that_end_at_their_first_token_are_that_token(
    cpu_bundle: Bundle, gpu_bundle: Bundle, vectors: Tensor, expected: TokenSequences, which: str
) -> None:
    """It comes from the prompt, before any step."""
    rows = range(5)
    firsts = sorted({expected.ids[row][0] for row in rows})
    ends = [*firsts[:1], 89] if which == "one" else firsts
    with (
        captioner_of(with_ends(cpu_bundle, ends)) as plain,
        captioner_of(with_ends(gpu_bundle, ends), OrtGpuBackend(CPU, DEVICE)) as on_device,
    ):
        got, theirs = (decoder_of(one).greedy.decode(vectors[:5]) for one in (on_device, plain))
    require_equal(got, theirs, rows)
    alone = [row for row in rows if len(got.ids[row]) == 1]
    assert alone == [row for row in rows if expected.ids[row][0] in ends]
    assert which == "one" or alone == [*rows]


@pytest.mark.parametrize(
    "options",
    [{}, {"beams": 3}, {"top_p": 0.8, "seed": 3}, {"score": "reference"}, {"prompt_padding": "reference"}],
    ids=str,
)
def test_every_way_of_decoding_gives_the_captions_of_the_plain_loop(
    plain: Captioner, on_device: Captioner, vectors: Tensor, options: DecodeKeywords
) -> None:
    got, theirs = (one.decode(vectors[:7], **options) for one in (on_device, plain))
    assert [caption.ids for caption in got] == [caption.ids for caption in theirs]
    assert [caption.score for caption in got] == pytest.approx([caption.score for caption in theirs], rel=1e-3)


def test_steps_come_after_the_prompts_and_what_prompts_left_is_read_on_the_steps_stream(
    gpu_bundle: Bundle, vectors: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompts are read on the caller's stream, but for engines, which come after it and before what it does next."""
    cuda, captioner = CudaDouble(), captioner_of(gpu_bundle, OrtGpuBackend(CPU, DEVICE))
    with captioner:
        decoder = decoder_of(captioner)
        cuda.install(monkeypatch)
        for engine in (decoder.prompts.mapping, decoder.prompts.prefill, decoder.greedy._engine):
            engine.stream = Stream(CUDA)  # type: ignore[attr-defined]
        decoder.greedy.decode(vectors[:2])  # makes the memory
        cuda.log.clear()
        begin, made = decoder.greedy._begin, dict[str, Tensor]()

        def noted(batch: Tensor, captions: int) -> object:
            state = begin(batch, captions)
            cuda.log.append(f"prompts are read on {cuda.current.name}")
            made.update(state.inputs(torch.zeros(2, dtype=torch.int64)))
            return state

        decoder.greedy._begin = noted  # type: ignore[assignment]
        with Allocations(cuda) as allocations:
            decoder.greedy.decode(vectors[:2])
    around = ["own waits for outside", "outside waits for own"]
    assert cuda.log[:6] == [*around, *around, "prompts are read on outside", "own waits for outside"]
    assert cuda.log[6] == "outside waits for own", "what prompts left is released after the steps"
    assert {allocations.stream_of(tensor) for tensor in made.values()} == {"outside"}


def test_a_backend_that_binds_is_warm_when_it_is_loaded_and_reports_every_open_engine(
    gpu_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = RecordingBackend(OrtGpuBackend(CPU, DEVICE))
    monkeypatch.setattr("runtime.captioner.open_selected", lambda *_: recording)
    with Captioner.load(gpu_bundle.folder, verify=False) as captioner:
        assert len(recording.engines["mapping"].runs) == len(recording.engines["prefill"].runs) == 1
        assert [shapes["input_ids"][0] for shapes in recording.engines["decoder"].bindings] == [1]
        assert list(captioner.runs_on()) == ["backbone", "mapping", "prefill", "decoder"]
        reasons = ["not on a CUDA device"]
        assert captioner.captured() == {"backbone": reasons, "mapping": [], "prefill": [], "decoder": reasons}
