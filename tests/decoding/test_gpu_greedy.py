"""Engines that read and write given memory, and greedy decoding that stays on the device: the same captions."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from runtime import BackendError, Box, Captioner
from runtime.backends import Engine
from runtime.backends.cuda import graph_replay
from runtime.backends.cuda.graph_replay import CudaGraphEngine, with_cuda_graphs
from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.backends.onnxruntime_gpu import CPU, CUDA, TENSORRT, OrtGpuBackend, OrtGpuEngine, operators_on
from runtime.bundle import MANIFEST, Bundle, DecoderConfig, EngineFiles, EnginePrecision, record_files, write_manifest
from runtime.decoding.batches import TokenSequences
from runtime.decoding.gpu_greedy import DeviceGreedyDecoder
from runtime.decoding.greedy import GreedyDecoder
from runtime.decoding.kv_cache import KvCache
from tests.doubles import RecordingEngine, captioner_of

DEVICE = torch.device("cpu")
SESSIONS_REPORT_PLACEMENT = hasattr(onnxruntime.InferenceSession, "get_provider_graph_assignment_info")
"""From ONNX Runtime 1.24 on sessions report which provider executes which operator."""


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


@pytest.fixture(scope="module")
def backend() -> OrtGpuBackend:
    """The backend of GPUs, on the provider of the CPU."""
    return OrtGpuBackend(CPU, DEVICE)


@pytest.fixture(scope="module")
def engine(bundle: Bundle, backend: OrtGpuBackend) -> Iterator[OrtGpuEngine]:
    engine = backend.open(bundle.engine("decoder"))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def config(bundle: Bundle) -> DecoderConfig:
    return bundle.manifest.decoder


@pytest.fixture(scope="module")
def vectors(bundle: Bundle) -> Tensor:
    return torch.randn(40, bundle.manifest.backbone.output_dim, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def plain(bundle: Bundle, config: DecoderConfig) -> Iterator[GreedyDecoder]:
    """The plain loop, over an engine that cannot be bound to memory."""
    decoder = GreedyDecoder(OrtBackend().open(bundle.engine("decoder")), config)
    yield decoder
    decoder.close()


@pytest.fixture(scope="module")
def expected(plain: GreedyDecoder, vectors: Tensor) -> TokenSequences:
    return plain.decode(vectors)


def are_equal(one: TokenSequences, other: TokenSequences) -> bool:
    """Return whether tokens are the same, and log-probabilities too up to another order of sums."""
    return one.ids == other.ids and one.log_probs == pytest.approx(other.log_probs, abs=1e-4)


def rows_of(sequences: TokenSequences, rows: range) -> TokenSequences:
    return TokenSequences([sequences.ids[row] for row in rows], [sequences.log_probs[row] for row in rows])


@pytest.mark.parametrize("count", [1, 3, 4, 5, 16, 40])
def test_any_number_of_rows_gives_the_captions_of_the_plain_loop(
    engine: OrtGpuEngine, config: DecoderConfig, vectors: Tensor, expected: TokenSequences, count: int
) -> None:
    assert engine.bindable is engine
    got = GreedyDecoder(engine, config).decode(vectors[:count])
    assert are_equal(got, rows_of(expected, range(count)))


def bound_rows(engine: RecordingEngine) -> list[int]:
    """Return how many rows each binding of a decoder has memory for."""
    return [shapes["vectors"][0] for shapes in engine.bindings]


def test_memory_is_made_once_for_each_number_of_rows_and_nothing_of_the_last_call_is_left_in_it(
    engine: OrtGpuEngine, config: DecoderConfig, vectors: Tensor, expected: TokenSequences
) -> None:
    recording = RecordingEngine(engine)
    decoder = GreedyDecoder(recording, config)
    for rows in (range(16), range(16, 32), range(5), range(20, 29), range(16)):
        assert are_equal(decoder.decode(vectors[list(rows)]), rows_of(expected, rows))
    assert bound_rows(recording) == [16]
    assert decoder.report().graph_fallbacks == ("not on a CUDA device",)


def test_tokens_after_the_end_count_where_that_is_asked_for(
    engine: OrtGpuEngine, plain: GreedyDecoder, config: DecoderConfig, vectors: Tensor
) -> None:
    on_device = GreedyDecoder(engine, config)
    assert are_equal(on_device.decode(vectors, ignore_eos=True), plain.decode(vectors, ignore_eos=True))
    assert are_equal(on_device.decode(vectors), plain.decode(vectors)), "the call before was another"
    assert are_equal(on_device.decode(vectors, max_new_tokens=3), plain.decode(vectors, max_new_tokens=3))


def test_more_rows_than_the_largest_batch_are_split(
    engine: OrtGpuEngine, config: DecoderConfig, vectors: Tensor, expected: TokenSequences
) -> None:
    recording = RecordingEngine(engine)
    decoder = GreedyDecoder(recording, config.model_copy(update={"batch_sizes": (2, 16)}))
    assert are_equal(decoder.decode(vectors), expected)
    assert bound_rows(recording) == [16]


def test_steps_stop_soon_after_all_captions_have_ended(
    engine: OrtGpuEngine, config: DecoderConfig, vectors: Tensor, expected: TokenSequences
) -> None:
    decoder = DeviceGreedyDecoder(engine, config, 16, vectors.shape[1], DEVICE)
    steps = 0
    enqueue = decoder.step_work.run

    def counting() -> None:
        nonlocal steps
        steps += 1
        enqueue()

    decoder.step_work = replace(decoder.step_work, run=counting)
    decoder.decode(vectors[:10], ignore_eos=False, steps=config.max_new_tokens)
    longest = max(len(ids) for ids in expected.ids[:10])
    assert longest < config.max_new_tokens
    assert longest <= steps <= longest + 8


def test_a_closed_decoder_says_so_though_it_had_memory(
    bundle: Bundle, backend: OrtGpuBackend, config: DecoderConfig, vectors: Tensor
) -> None:
    decoder = GreedyDecoder(backend.open(bundle.engine("decoder")), config)
    decoder.decode(vectors[:3])
    decoder.close()
    decoder.close()
    with pytest.raises(BackendError, match="decoder.onnx: it was closed"):
        decoder.decode(vectors[:3])


def test_every_engine_of_a_bundle_gives_what_it_gives_elsewhere(bundle: Bundle, backend: OrtGpuBackend) -> None:
    regions = [Box(20, 30, 200, 180), Box(90, 10, 150, 190)]
    pixels = torch.randint(0, 256, (3, 240, 320), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with captioner_of(bundle, backend) as bound, captioner_of(bundle) as plain:
        ours, theirs = bound.encode(pixels), plain.encode(pixels)
        torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=1e-5)
        for options in ({}, {"reencode": "mean"}, {"beams": 3}):
            got, expected = bound.describe(ours, regions, **options), plain.describe(theirs, regions, **options)
            assert [caption.text for caption in got] == [caption.text for caption in expected]


def test_shapes_that_come_again_are_run_in_memory_that_stays(bundle: Bundle, backend: OrtGpuBackend) -> None:
    engine = backend.open(bundle.engine("backbone"))
    replayed, size = CudaGraphEngine(engine), bundle.manifest.backbone.preprocessing.image_size
    images = torch.randint(0, 256, (3, size, size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = engine.run({"pixel_values": images})["tokens"]
    with torch.inference_mode():
        replayed.run({"pixel_values": images[:1]})
        replayed.run({"pixel_values": images[:1]})
    for image, tokens in zip(images, expected, strict=True):
        got = replayed.run({"pixel_values": image[None]})["tokens"][0]
        torch.testing.assert_close(got, tokens, rtol=0, atol=1e-5)
    first = replayed.run({"pixel_values": images[:1]})["tokens"]
    replayed.run({"pixel_values": images[1:2]})
    torch.testing.assert_close(first[0], expected[0], rtol=0, atol=1e-5)  # a copy: the next run leaves it alone
    replayed.run({"pixel_values": images})
    assert len(replayed.report().graph_fallbacks) == 1, "a shape that came once is not kept"
    replayed.close()
    with pytest.raises(BackendError, match="it was closed"):
        replayed.run({"pixel_values": images})


def test_only_a_few_shapes_are_kept(bundle: Bundle, backend: OrtGpuBackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_replay, "_MAX_SHAPES", 1)
    replayed = CudaGraphEngine(backend.open(bundle.engine("backbone")))
    size = bundle.manifest.backbone.preprocessing.image_size
    images = torch.zeros(2, size, size, 3, dtype=torch.uint8)
    outputs = [replayed.run({"pixel_values": images[:count]})["tokens"] for count in (1, 1, 2, 2, 2)]
    assert [len(tokens) for tokens in outputs] == [1, 1, 2, 2, 2]
    assert len(replayed.report().graph_fallbacks) == 1


def test_only_engines_that_can_be_bound_are_replayed(bundle: Bundle, engine: OrtGpuEngine) -> None:
    assert isinstance(with_cuda_graphs(engine), CudaGraphEngine)
    unbindable: Engine = OrtBackend().open(bundle.engine("decoder"))
    assert with_cuda_graphs(unbindable) is unbindable
    assert CudaGraphEngine(engine).bindable is None, "its memory is its own"


def test_a_backend_that_binds_is_warm_when_it_is_loaded(
    bundle: Bundle, backend: OrtGpuBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.captioner.open_selected", lambda *_: backend)
    with Captioner.load(bundle.folder, verify=False) as captioner:
        assert captioner.captured() == {"backbone": ["not on a CUDA device"], "decoder": ["not on a CUDA device"]}
        provider = "CPUExecutionProvider (" if SESSIONS_REPORT_PLACEMENT else "CPUExecutionProvider"
        assert captioner.runs_on()["backbone"].startswith(provider)


def decoder_memory(engine: OrtGpuEngine, config: DecoderConfig, width: int) -> tuple[dict[str, Tensor], ...]:
    """Return inputs of 2 rows, and outputs."""
    inputs = {"vectors": torch.zeros(2, width), "input_ids": torch.zeros(2, dtype=torch.int64)}
    inputs |= {"position": torch.zeros(1, dtype=torch.int64)} | KvCache(config, 2, DEVICE).inputs()
    return inputs, engine.run(inputs)


@pytest.mark.parametrize(
    ("name", "tensor", "message"),
    [
        ("input_ids", torch.zeros(2), "input_ids: expected contiguous torch.int64 on cpu, got torch.float32 on cpu"),
        ("position", None, "expected .*'position'.*, got "),
        ("other", torch.zeros(2), "expected .*, got .*'other'"),
    ],
)
def test_memory_that_does_not_fit_is_one_message(
    engine: OrtGpuEngine,
    config: DecoderConfig,
    vectors: Tensor,
    name: str,
    tensor: Tensor | None,
    message: str,
) -> None:
    inputs, outputs = decoder_memory(engine, config, vectors.shape[1])
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
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CUDA, CPU])
    with pytest.raises(BackendError, match="torch finds no CUDA device"):
        OrtGpuBackend(CUDA)
    without_libraries = OrtGpuBackend(CUDA, DEVICE)
    with pytest.raises(BackendError, match="asked for CUDAExecutionProvider, got CPUExecutionProvider"):
        without_libraries.open(bundle.engine("decoder"))


@pytest.mark.skipif(not SESSIONS_REPORT_PLACEMENT, reason="ONNX Runtime reports it from 1.24 on")
def test_where_operators_run_is_read_from_the_session(bundle: Bundle, engine: OrtGpuEngine) -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(bundle.path("decoder.onnx")), options, providers=[CPU])
    assert {"Gemm", "LayerNormalization"} <= set(operators_on(session, CPU))
    assert operators_on(session, CUDA) == []
    count, rest = engine.report().provider.removeprefix("CPUExecutionProvider (").split(maxsplit=1)
    assert int(count) > len(operators_on(session, CPU)), "one kind may be there several times"
    assert rest == "operators)"


class NeverCaptured:
    capture_mode: CaptureMode = "none"


def test_work_on_a_cpu_is_no_graph(engine: OrtGpuEngine) -> None:
    assert engine.stream.handle != 0
    runs: list[int] = []
    work = Stream(DEVICE).capture(lambda: runs.append(1), NeverCaptured())
    assert runs == []
    assert work.fallback_reason == "not on a CUDA device"
    work.run()
    assert runs == [1]


Providers = list[tuple[str, dict[str, str]]]


@pytest.fixture
def requested_providers(monkeypatch: pytest.MonkeyPatch) -> list[Providers]:
    """The providers that each session was asked for with, on a machine whose GPU refuses them all."""
    requested: list[Providers] = []

    class StreamOnGpu:
        handle = 7

        def __init__(self, _: torch.device) -> None: ...

    def refuse(_path: str, _options: Any, providers: Providers) -> None:
        requested.append(providers)
        raise RuntimeError("no GPU here")

    monkeypatch.setattr("runtime.backends.onnxruntime_gpu.Stream", StreamOnGpu)
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None, raising=False)
    monkeypatch.setattr(onnxruntime, "InferenceSession", refuse)
    return requested


@pytest.mark.parametrize(
    ("precision", "enabled"),
    [("fp32", set()), ("fp16", {"fp16"}), ("bf16", {"fp16", "bf16"}), ("int8", {"fp16", "int8"})],
)
def test_the_tensorrt_provider_is_told_what_it_may_compute_in_and_where_engines_are_kept(
    requested_providers: list[Providers], tmp_path: Path, precision: EnginePrecision, enabled: set[str]
) -> None:
    backend = OrtGpuBackend(TENSORRT, torch.device("cuda", 1), tmp_path, precision)
    with pytest.raises(BackendError, match="backbone.onnx: ONNX Runtime cannot load it: no GPU here"):
        backend.open(EngineFiles(tmp_path / "backbone.onnx", sha256="abc"))
    (((first, options), (second, cuda_options)),) = requested_providers
    assert (first, second) == (TENSORRT, CUDA)
    assert {name for name in ("fp16", "bf16", "int8", "fp8") if options.get(f"trt_{name}_enable") == "1"} == enabled
    assert options["trt_engine_cache_path"] == options["trt_timing_cache_path"] == str(tmp_path)
    assert options["trt_engine_cache_prefix"] == "backbone-abc"
    assert (options["device_id"], options["user_compute_stream"]) == ("1", "7")
    assert (cuda_options["use_tf32"], cuda_options["enable_cuda_graph"]) == ("0", "0")


def test_engines_of_other_weights_are_other_engines(
    requested_providers: list[Providers], demo_bundle: Path, tmp_path: Path
) -> None:
    backend = OrtGpuBackend(TENSORRT, torch.device("cuda", 0), tmp_path / "cache")
    retrained = tmp_path / "retrained"
    shutil.copytree(demo_bundle, retrained)
    weights = retrained / "backbone.onnx.data"
    contents = bytearray(weights.read_bytes())
    contents[-1] ^= 1
    weights.write_bytes(contents)
    manifest = Bundle(retrained, verify=False).manifest
    (retrained / MANIFEST).unlink()
    write_manifest(retrained, manifest.model_copy(update={"files": record_files(retrained)}))
    graphs = [Bundle(folder).engine("backbone") for folder in (demo_bundle, demo_bundle, retrained)]
    for files in (*graphs, EngineFiles(graphs[0].graph)):
        with pytest.raises(BackendError, match="no GPU here"):
            backend.open(files)
    first, again, other, unknown = (options for ((_, options), _) in requested_providers)
    assert first["trt_engine_cache_prefix"] == again["trt_engine_cache_prefix"]
    assert first["trt_engine_cache_prefix"] != other["trt_engine_cache_prefix"]
    assert "trt_engine_cache_enable" not in unknown, "what cannot be told apart is not kept"


def test_the_cuda_provider_is_asked_to_capture_graphs_and_where_it_cannot_to_run_without(
    requested_providers: list[Providers], tmp_path: Path
) -> None:
    with pytest.raises(BackendError, match="no GPU here"):
        OrtGpuBackend(CUDA, torch.device("cuda", 0)).open(EngineFiles(tmp_path / "backbone.onnx"))
    assert [(name, options["enable_cuda_graph"]) for ((name, options),) in requested_providers] == [
        (CUDA, "1"),
        (CUDA, "0"),
    ]
