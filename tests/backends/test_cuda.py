"""Streams, graphs and the memory between them: order, lifetimes, and one thread at a time; on a double of CUDA."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor

from runtime import BackendError
from runtime.backends.cuda.graph_replay import CudaGraphEngine
from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.backends.cuda.workspace import aligned
from runtime.backends.onnxruntime_gpu import CPU, OrtBoundRun, OrtGpuBackend, OrtGpuEngine
from runtime.bundle import Bundle, DecoderConfig
from runtime.decoding.gpu_greedy import DeviceGreedyDecoder
from tests.cuda_double import CUDA, Allocations, CudaDouble

DEVICE = torch.device("cpu")


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    double = CudaDouble()
    double.install(monkeypatch)
    return double


class Run:
    """A run that can be captured, or says that it cannot once it has run often enough."""

    def __init__(self, mode: CaptureMode = "around") -> None:
        self.runs, self._mode = 0, mode
        self.asked_after: list[int] = []

    def run(self) -> None:
        self.runs += 1

    @property
    def capture_mode(self) -> CaptureMode:
        self.asked_after.append(self.runs)
        return self._mode


@pytest.fixture(scope="module")
def bundle(demo_bundle: Path) -> Bundle:
    return Bundle(demo_bundle, verify=False)


@pytest.fixture(scope="module")
def config(bundle: Bundle) -> DecoderConfig:
    return bundle.manifest.decoder


@pytest.fixture
def engine(bundle: Bundle) -> Iterator[OrtGpuEngine]:
    """The demo's decoder, on the provider of the CPU."""
    engine = OrtGpuBackend(CPU, DEVICE).open(bundle.engine("decoder"))
    yield engine
    engine.close()


@pytest.fixture
def on_stream(engine: OrtGpuEngine, cuda: CudaDouble) -> OrtGpuEngine:
    """The same, on a stream of the double."""
    engine.stream = Stream(CUDA)
    cuda.log.clear()
    return engine


def decoder_of(engine: OrtGpuEngine, config: DecoderConfig, bundle: Bundle) -> DeviceGreedyDecoder:
    return DeviceGreedyDecoder(engine, config, 2, bundle.manifest.backbone.output_dim, DEVICE)


def test_work_on_the_stream_comes_after_what_was_before_and_before_what_comes_after(cuda: CudaDouble) -> None:
    with Stream(CUDA).active():
        cuda.log.append(f"work on {cuda.current.name}")
    assert cuda.log == ["own waits for outside", "work on own", "outside waits for own"]
    assert cuda.current.name == "outside"


def test_that_holds_for_work_that_fails_half_way_too(cuda: CudaDouble) -> None:
    with pytest.raises(BackendError, match="half way"), Stream(CUDA).active():
        raise BackendError("half way")
    assert cuda.log == ["own waits for outside", "outside waits for own"]
    assert cuda.current.name == "outside"


def test_work_runs_twice_and_is_then_captured_and_replayed_where_the_caller_is(cuda: CudaDouble) -> None:
    stream, run = Stream(CUDA), Run()
    work = stream.capture(run.run, run, before_each=lambda: cuda.log.append("rewound"))
    assert run.asked_after == [2], "what compiles when it first runs can tell only then"
    assert (run.runs, work.fallback_reason) == (3, None)
    assert cuda.log == [
        *("own waits for outside", "rewound", "rewound", "own synchronized", "capture begins", "capture ends"),
        "outside waits for own",
    ]
    with stream.active():
        work.run()
    assert "replayed on own" in cuda.log
    assert run.runs == 3


@pytest.mark.parametrize(("mode", "reason"), [("within", None), ("none", "this backend's runs cannot be captured")])
def test_what_cannot_be_captured_from_outside_is_left_as_it_is(
    cuda: CudaDouble, mode: CaptureMode, reason: str | None
) -> None:
    run = Run(mode)
    work = Stream(CUDA).capture(run.run, run)
    assert work.fallback_reason == reason
    assert "capture begins" not in cuda.log
    work.run()
    assert run.runs == 3


@pytest.mark.parametrize("capture_fails", [False, True])
def test_a_capture_that_fails_is_no_error_and_gives_the_stream_back(cuda: CudaDouble, capture_fails: bool) -> None:
    run, cuda.capture_fails = Run(), capture_fails

    def refuses_the_third_time() -> None:
        run.run()
        if run.runs == 3:
            raise BackendError("TensorRT refused: it is capturing\nmore")

    work = Stream(CUDA).capture(refuses_the_third_time, run)
    assert work.fallback_reason == "TensorRT refused: it is capturing"
    assert cuda.current.name == "outside"
    work.run()
    assert run.runs == 4


def test_an_invalid_capture_is_no_error_either(cuda: CudaDouble) -> None:
    run, cuda.capture_fails = Run(), True
    assert Stream(CUDA).capture(run.run, run).fallback_reason == "the capture was invalidated"
    assert cuda.current.name == "outside"


def test_nobody_else_enqueues_on_a_stream_that_is_being_captured(cuda: CudaDouble) -> None:
    stream, run = Stream(CUDA), Run()
    other_began, begin = threading.Event(), threading.Event()

    def other() -> None:
        begin.wait()
        other_began.set()
        with stream.active():
            cuda.log.append("other work")

    thread = threading.Thread(target=other)
    thread.start()

    def work() -> None:
        run.run()
        if run.runs == 3:  # in the capture
            begin.set()
            other_began.wait()
            thread.join(timeout=0.05)  # enough for it to go wrong, if it can

    stream.capture(work, run)
    thread.join()
    first, last = cuda.log.index("capture begins"), cuda.log.index("capture ends")
    assert last == first + 1
    assert cuda.log.index("other work") > last


def test_a_decoder_reads_and_returns_memory_of_its_callers_stream_and_keeps_memory_of_its_own(
    on_stream: OrtGpuEngine, config: DecoderConfig, bundle: Bundle, cuda: CudaDouble
) -> None:
    with Allocations(cuda) as allocations:
        decoder = decoder_of(on_stream, config, bundle)
        ids, sums = decoder.decode(torch.randn(2, bundle.manifest.backbone.output_dim), ignore_eos=False, steps=3)
    assert allocations.stream_of(ids) == allocations.stream_of(sums) == "outside"
    kept = [value for value in vars(decoder).values() if isinstance(value, Tensor)]
    kept += [*decoder._cache.inputs().values(), *decoder._present.values()]
    assert {allocations.stream_of(tensor) for tensor in kept} == {"own"}
    assert cuda.log[-1] == "outside waits for own"


def test_a_decoder_of_one_position_is_warmed_up_within_its_cache(
    on_stream: OrtGpuEngine, config: DecoderConfig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.onnxruntime_gpu.OrtBoundRun.capture_mode", "around")
    positions: list[int] = []
    write = DeviceGreedyDecoder._advance

    def advance(self: DeviceGreedyDecoder) -> None:
        positions.append(int(self._inputs.slot))
        write(self)

    monkeypatch.setattr(DeviceGreedyDecoder, "_advance", advance)
    decoder = decoder_of(on_stream, config, bundle)
    assert positions[:2] == [0, 0]
    assert decoder.step_work.fallback_reason is None


def test_a_closed_decoder_releases_the_engines_run_once_it_is_done(
    on_stream: OrtGpuEngine, config: DecoderConfig, bundle: Bundle, cuda: CudaDouble
) -> None:
    decoder = decoder_of(on_stream, config, bundle)
    cuda.log.clear()
    decoder.close()
    assert cuda.log == ["own synchronized"]
    assert not hasattr(decoder, "_step_run")


def test_a_replayed_engine_keeps_memory_of_its_own_and_returns_its_callers(
    on_stream: OrtGpuEngine, config: DecoderConfig, bundle: Bundle, cuda: CudaDouble
) -> None:
    replayed = CudaGraphEngine(on_stream)
    inputs = inputs_of(on_stream, config, bundle)
    with Allocations(cuda) as allocations:
        for _ in range(3):
            outputs = replayed.run(inputs)
    (fixed,) = replayed._fixed.values()
    assert {allocations.stream_of(tensor) for tensor in outputs.values()} == {"outside"}
    assert {allocations.stream_of(tensor) for tensor in (*fixed.inputs.values(), *fixed.outputs.values())} == {"own"}
    cuda.log.clear()
    replayed.close()
    assert cuda.log[0] == "own synchronized"


def test_a_graph_keeps_the_run_whose_memory_it_reads_and_writes(
    on_stream: OrtGpuEngine, config: DecoderConfig, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.backends.onnxruntime_gpu.OrtBoundRun.capture_mode", "around")
    bound: list[weakref.ref[OrtBoundRun]] = []
    bind = OrtGpuEngine.bind

    def remember(*arguments: Any) -> OrtBoundRun:
        run = bind(*arguments)
        bound.append(weakref.ref(run))
        return run

    monkeypatch.setattr(OrtGpuEngine, "bind", remember)
    replayed = CudaGraphEngine(on_stream)
    for _ in range(2):
        replayed.run(inputs_of(on_stream, config, bundle))
    gc.collect()
    (run,) = bound
    assert run() is not None
    replayed.close()
    gc.collect()
    assert run() is None


def inputs_of(engine: OrtGpuEngine, config: DecoderConfig, bundle: Bundle) -> dict[str, Tensor]:
    """Return inputs of 2 rows."""
    cache = (2, config.num_heads, config.max_new_tokens, config.head_dim)
    shapes: Mapping[str, tuple[int, ...]] = {
        "vectors": (2, bundle.manifest.backbone.output_dim),
        "input_ids": (2,),
        "position": (1,),
    }
    return {
        name: torch.zeros(shapes.get(name, cache), dtype=engine.dtype(name))
        for name in (one.name for one in engine._session.get_inputs())
    }


class Session:
    """A session that notes who runs it, and refuses a second run at the same time."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.threads: set[int] = set()
        self.graphs: list[str] = []
        self.fails_in_graphs = False
        self._running = threading.Lock()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)

    def run_with_iobinding(self, binding: Any, options: Any) -> None:
        assert self._running.acquire(blocking=False), "two runs at a time"
        self.threads.add(threading.get_ident())
        self.graphs.append(options.get_run_config_entry("gpu_graph_id"))
        try:
            if self.fails_in_graphs and self.graphs[-1] != "-1":
                raise RuntimeError("the capture failed")
            self._session.run_with_iobinding(binding, options)
        finally:
            self._running.release()


@contextmanager
def capturing(bundle: Bundle) -> Iterator[tuple[OrtGpuEngine, Session]]:
    """Yield an engine whose session would capture graphs, and the session."""
    options = onnxruntime.SessionOptions()
    session = Session(onnxruntime.InferenceSession(str(bundle.path("decoder.onnx")), options, providers=[CPU]))
    with ThreadPoolExecutor(1) as thread:
        yield OrtGpuEngine(onnxruntime, session, Path("decoder.onnx"), DEVICE, Stream(DEVICE), thread), session


def in_threads(count: int, call: Callable[[], object]) -> None:
    barrier = threading.Barrier(count)

    def begin() -> None:
        barrier.wait()
        for _ in range(5):
            call()

    with ThreadPoolExecutor(count) as threads:
        for done in [threads.submit(begin) for _ in range(count)]:
            done.result()


def test_runs_of_a_session_follow_one_another_in_one_thread(bundle: Bundle, config: DecoderConfig) -> None:
    with capturing(bundle) as (engine, session):
        inputs = inputs_of(engine, config, bundle)
        bound = engine.bind(inputs, engine.run(inputs))
        in_threads(3, bound.run)
        in_threads(3, lambda: engine.run(inputs))
    assert len(session.threads) == 1, "each thread would capture a graph of its own"
    assert threading.get_ident() not in session.threads
    assert set(session.graphs) == {"-1", "1"}


def test_a_session_that_captures_nothing_is_run_by_one_thread_at_a_time_too(
    bundle: Bundle, engine: OrtGpuEngine, config: DecoderConfig
) -> None:
    engine._session = session = Session(engine._session)
    inputs = inputs_of(engine, config, bundle)
    in_threads(3, lambda: engine.run(inputs))
    assert set(session.graphs) == {"-1"}


def test_a_session_that_cannot_capture_runs_without(bundle: Bundle, config: DecoderConfig) -> None:
    with capturing(bundle) as (engine, session):
        inputs = inputs_of(engine, config, bundle)
        bound = engine.bind(inputs, engine.run(inputs))
        session.graphs.clear()
        session.fails_in_graphs = True
        bound.run()
        bound.run()
        assert bound.capture_mode == "none"
    assert session.graphs == ["1", "-1", "-1"]


def test_a_bound_run_does_not_keep_a_closed_session(
    engine: OrtGpuEngine, config: DecoderConfig, bundle: Bundle
) -> None:
    inputs = inputs_of(engine, config, bundle)
    bound = engine.bind(inputs, engine.run(inputs))
    engine.close()
    with pytest.raises(BackendError, match="it was closed"):
        bound.run()


def test_memory_that_begins_anywhere_is_copied() -> None:
    memory = torch.zeros(1024, dtype=torch.uint8)
    begins = -memory.data_ptr() % 256
    fits, does_not = memory[begins : begins + 64], memory[begins + 12 : begins + 76]
    assert aligned(fits) is fits
    assert aligned(does_not).data_ptr() != does_not.data_ptr()
    assert torch.equal(aligned(does_not), does_not)
