"""Engines that read and write where they are told, and decoding that stays in one place: the same captions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor

from runtime import BackendError, Captioner
from runtime.backends.base import BindableEngine
from runtime.backends.cuda import graph_replay as replay_module
from runtime.backends.cuda.graph_replay import CudaGraphEngine
from runtime.backends.cuda.stream import Stream
from runtime.backends.onnxruntime_gpu import CPU, CUDA, TENSORRT, OrtGpuBackend, OrtGpuEngine, operators_on
from runtime.bundle import Bundle, DecoderConfig, EnginePrecision
from runtime.decoding.gpu_greedy import DeviceGreedyDecoder
from runtime.decoding.greedy import Decoded, GreedyDecoder

DEVICE = torch.device("cpu")
SESSIONS_SAY_WHERE_OPERATORS_RUN = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


@pytest.fixture(scope="module")
def backend() -> OrtGpuBackend:
    """What runs on a GPU elsewhere, on the provider that is here."""
    return OrtGpuBackend(CPU, DEVICE)


@pytest.fixture(scope="module")
def engine(bundle: Bundle, backend: OrtGpuBackend) -> Iterator[OrtGpuEngine]:
    engine = backend.open(bundle.path("decoder.onnx"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def settings(bundle: Bundle) -> DecoderConfig:
    return bundle.manifest.decoding


@pytest.fixture(scope="module")
def vectors(bundle: Bundle) -> Tensor:
    return torch.randn(40, bundle.manifest.architecture.width, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def whole(demo: Captioner, settings: DecoderConfig, vectors: Tensor) -> Decoded:
    return GreedyDecoder(demo._decoder, settings).decode(vectors)


def same(one: Decoded, other: Decoded) -> bool:
    """Exactly the same tokens, and the same log-probabilities up to another order of sums."""
    return one.ids == other.ids and one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-4)


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 40])
def test_any_number_of_rows_gives_the_captions_of_the_plain_loop(
    engine: OrtGpuEngine, settings: DecoderConfig, vectors: Tensor, whole: Decoded, count: int
) -> None:
    assert isinstance(engine, BindableEngine)
    got = GreedyDecoder(engine, settings).decode(vectors[:count])
    assert same(got, Decoded(whole.ids[:count], whole.log_probabilities[:count]))


def test_memory_is_made_once_for_each_number_of_rows_and_nothing_of_the_last_call_is_left_in_it(
    engine: OrtGpuEngine, settings: DecoderConfig, vectors: Tensor, whole: Decoded
) -> None:
    decoder = GreedyDecoder(engine, settings)
    for rows in (range(16), range(16, 32), range(5), range(20, 29), range(16)):
        got = decoder.decode(vectors[list(rows)])
        assert same(got, Decoded([whole.ids[row] for row in rows], [whole.log_probabilities[row] for row in rows]))
    assert sorted(decoder._resident) == [16]


def test_what_comes_past_the_end_counts_where_it_is_asked_for(
    engine: OrtGpuEngine, demo: Captioner, settings: DecoderConfig, vectors: Tensor
) -> None:
    plain, resident = GreedyDecoder(demo._decoder, settings), GreedyDecoder(engine, settings)
    assert same(resident.decode(vectors, past_end=True), plain.decode(vectors, past_end=True))
    assert same(resident.decode(vectors), plain.decode(vectors)), "the call before was another"
    assert same(resident.decode(vectors, at_most=3), plain.decode(vectors, at_most=3))


def test_more_rows_than_the_largest_batch_are_split(
    engine: OrtGpuEngine, settings: DecoderConfig, vectors: Tensor, whole: Decoded
) -> None:
    decoder = GreedyDecoder(engine, settings.model_copy(update={"batches": (2, 16)}))
    assert same(decoder.decode(vectors), whole)
    assert sorted(decoder._resident) == [16]


def test_steps_stop_soon_after_all_captions_have_ended(
    engine: OrtGpuEngine, settings: DecoderConfig, vectors: Tensor, whole: Decoded
) -> None:
    resident = DeviceGreedyDecoder(engine, settings, 16, vectors.shape[1], DEVICE)
    steps = 0
    line_up = resident.step_work.run

    def counted() -> None:
        nonlocal steps
        steps += 1
        line_up()

    object.__setattr__(resident.step_work, "run", counted)
    resident.decode(vectors[:10], past_end=False, steps=settings.steps)
    longest = max(len(ids) for ids in whole.ids[:10])
    assert longest < settings.steps
    assert longest <= steps <= longest + 8


def test_every_engine_of_a_bundle_gives_what_it_gives_elsewhere(bundle: Bundle, backend: OrtGpuBackend) -> None:
    from runtime import Box
    from runtime.image import Fit

    regions = [Box(20, 30, 200, 180), Box(90, 10, 150, 190)]
    pixels = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with Captioner(bundle, backend, Fit.STRETCH) as bound, Captioner.load(bundle.folder, "cpu", verify=False) as plain:
        ours, theirs = bound.encode(pixels), plain.encode(pixels)
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=1e-5)
        for options in ({}, {"reencode": "mean"}, {"beams": 3}):
            got, expected = bound.describe(ours, regions, **options), plain.describe(theirs, regions, **options)
            assert [caption.text for caption in got] == [caption.text for caption in expected]


def test_shapes_that_come_again_are_run_in_memory_that_stays(bundle: Bundle, backend: OrtGpuBackend) -> None:
    engine = backend.open(bundle.path("backbone.onnx"))
    replay, size = CudaGraphEngine(engine), bundle.manifest.architecture.size
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = engine.run({"pixels": images})["tokens"]
    with torch.inference_mode():
        replay.run({"pixels": images[:1]})
        replay.run({"pixels": images[:1]})
    for image, tokens in zip(images, expected, strict=True):
        torch.testing.assert_close(replay.run({"pixels": image[None]})["tokens"][0], tokens, rtol=0, atol=1e-5)
    first = replay.run({"pixels": images[:1]})["tokens"]
    replay.run({"pixels": images[1:2]})
    torch.testing.assert_close(first[0], expected[0], rtol=0, atol=1e-5)  # a copy: the next run leaves it alone
    replay.run({"pixels": images})
    assert len(replay.captured) == 1, "a shape that came once is not kept"
    replay.close()
    with pytest.raises(BackendError, match="it was closed"):
        replay.run({"pixels": images})


def test_only_a_few_shapes_are_kept(bundle: Bundle, backend: OrtGpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_module, "_MOST_SHAPES", 1)
    replay, size = CudaGraphEngine(backend.open(bundle.path("backbone.onnx"))), bundle.manifest.architecture.size
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    outputs = [replay.run({"pixels": images[:count]})["tokens"] for count in (1, 1, 2, 2, 2)]
    assert [len(one) for one in outputs] == [1, 1, 2, 2, 2]
    assert len(replay.captured) == 1


def test_a_backend_that_binds_is_warm_when_it_is_loaded(
    bundle: Bundle, backend: OrtGpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.captioner.open_backend", lambda *_: backend)
    with Captioner.load(bundle.folder, verify=False) as captioner:
        assert captioner.captured() == {"backbone": ["not on a CUDA device"], "decoder": ["not on a CUDA device"]}
        provider = "CPUExecutionProvider (" if SESSIONS_SAY_WHERE_OPERATORS_RUN else "CPUExecutionProvider"
        assert captioner.runs_on()["backbone"].startswith(provider)


def decoder_memory(engine: OrtGpuEngine, settings: DecoderConfig, width: int) -> tuple[dict[str, Tensor], ...]:
    cache = (2, settings.heads, settings.steps, settings.head_width)
    places = [f"{kind}_{layer}" for layer in range(settings.layers) for kind in ("key", "value")]
    inputs = {"vectors": torch.zeros(2, width), "tokens": torch.zeros(2, dtype=torch.int64)}
    inputs |= {"step": torch.zeros(1, dtype=torch.int64)} | {f"past_{place}": torch.zeros(cache) for place in places}
    return inputs, engine.run(inputs)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("tokens", torch.zeros(2), "tokens: expected contiguous torch.int64 on cpu, got torch.float32 on cpu"),
        ("step", None, "expected .*'step'.*, got "),
        ("other", torch.zeros(2), "expected .*, got .*'other'"),
    ],
)
def test_memory_that_does_not_fit_is_one_message(
    engine: OrtGpuEngine,
    settings: DecoderConfig,
    vectors: Tensor,
    name: str,
    tensor: Tensor | None,
    message: str,
) -> None:
    inputs, outputs = decoder_memory(engine, settings, vectors.shape[1])
    inputs.pop(name, None)
    if tensor is not None:
        inputs[name] = tensor
    with pytest.raises(BackendError, match=message):
        engine.bind(inputs, outputs)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_not_there_is_an_error_that_names_the_fix(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="has no CUDAExecutionProvider: .* pip install 'patchcaption.gpu.'"):
        OrtGpuBackend(CUDA, DEVICE)
    both = [CUDA, CPU]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: both)
    with pytest.raises(BackendError, match="torch finds no CUDA device"):
        OrtGpuBackend(CUDA)
    fallen_back = OrtGpuBackend(CUDA, DEVICE)
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        fallen_back.open(bundle.path("decoder.onnx"))


@pytest.mark.skipif(not SESSIONS_SAY_WHERE_OPERATORS_RUN, reason="ONNX Runtime says it from 1.24 on")
def test_where_operators_run_is_read_from_the_session(engine: OrtGpuEngine) -> None:
    assert {"Gemm", "LayerNormalization"} <= set(operators_on(engine._session, CPU))
    assert operators_on(engine._session, CUDA) == []


def test_work_on_a_cpu_is_no_graph(engine: OrtGpuEngine) -> None:
    assert engine.stream.handle != 0
    done: list[int] = []
    piece = Stream(DEVICE).piece(lambda: done.append(1))
    assert done == []
    assert not piece.is_captured
    piece.run()
    assert done == [1]


@pytest.mark.parametrize(
    ("precision", "told"),
    [("fp32", set()), ("fp16", {"fp16"}), ("bf16", {"fp16", "bf16"}), ("int8", {"fp16", "int8"})],
)
def test_the_tensorrt_provider_is_told_what_it_may_compute_in_and_where_engines_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: EnginePrecision, told: set[str]
) -> None:
    class AsOnAGpu:
        handle = 7

        def __init__(self, _: torch.device) -> None: ...

    monkeypatch.setattr("runtime.backends.onnxruntime_gpu.Stream", AsOnAGpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    backend = OrtGpuBackend(TENSORRT, torch.device("cuda", 1), tmp_path, precision)
    (first, options), (second, of_cuda) = backend._providers(tmp_path / "backbone.onnx", captures=False)
    assert (first, second) == (TENSORRT, CUDA)
    assert {name for name in ("fp16", "bf16", "int8", "fp8") if options.get(f"trt_{name}_enable") == "1"} == told
    assert options["trt_engine_cache_path"] == str(tmp_path)
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "7")
    assert of_cuda["use_tf32"] == "0"
