"""CUDA tensors that pass from one thread to another: who waits for whom, on a double of CUDA."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from runtime import Caption, Captioner, FeatureMap, Frame, WholeImage
from runtime.serving.decoding_together import describe_together
from runtime.system.handover import Handover
from tests.cuda_double import CUDA, CudaDouble, StreamDouble


class OnGpu(Tensor):
    """A tensor that says that it is on a GPU."""

    is_cuda = True
    device = CUDA
    waits: list[str]

    def record_stream(self, stream: Any) -> None:
        self.waits.append(f"memory used by {stream.name}")


def on_gpu(cuda: CudaDouble, *shape: int) -> OnGpu:
    tensor = torch.zeros(shape, dtype=torch.uint8).as_subclass(OnGpu)
    tensor.waits = cuda.log
    return tensor


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> CudaDouble:
    double = CudaDouble()
    double.install(monkeypatch)
    return double


def in_thread(cuda: CudaDouble, name: str, call: Any) -> None:
    """Call in a thread with a current stream of its own."""

    def run() -> None:
        cuda.current = StreamDouble(cuda, name)
        call()

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()


def test_the_receiver_waits_for_the_giver_and_keeps_the_memory(cuda: CudaDouble) -> None:
    handover = Handover([on_gpu(cuda, 2), torch.zeros(2), "path.jpg", on_gpu(cuda, 3)])
    assert cuda.log == ["outside recorded"]
    in_thread(cuda, "other", handover.receive)
    assert cuda.log[1:] == ["other waits for event of outside", *["memory used by other"] * 2]


def test_a_device_is_waited_for_without_its_tensors(cuda: CudaDouble) -> None:
    in_thread(cuda, "other", Handover(device=CUDA).receive)
    assert cuda.log == ["outside recorded", "other waits for event of outside"]


def test_nothing_is_asked_of_cuda_where_nothing_is_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "current_stream")
    Handover([torch.zeros(2), "path.jpg"], torch.device("cpu")).receive()


@pytest.fixture
def handovers(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The handovers of a test: who gives what, and who receives it."""
    log: list[str] = []

    class Noted:
        def __init__(self, values: Any = (), device: Any = None) -> None:
            self.what = "device" if device is not None else ", ".join(type(value).__name__ for value in values)
            log.append(f"{_thread()} gives {self.what}")

        def receive(self) -> None:
            log.append(f"{_thread()} receives {self.what}")

    for module in ("captioner", "serving.batching", "video.stream"):
        monkeypatch.setattr(f"runtime.{module}.Handover", Noted)
    return log


def _thread() -> str:
    name = threading.current_thread().name
    return "asyncio" if name.startswith("asyncio") else name.split("_")[0]


IMAGE = torch.zeros(3, 32, 32, dtype=torch.uint8)


def test_batching_hands_vectors_to_its_worker(demo: Captioner, handovers: list[str]) -> None:
    with demo.batching(max_wait_ms=0) as batching:
        batching.caption(IMAGE, [WholeImage()])
    assert handovers == ["MainThread gives Tensor", "patchcaption batching receives Tensor"]


def test_asyncio_hands_images_to_a_thread_that_does_all_of_it(demo: Captioner, handovers: list[str]) -> None:
    asyncio.run(demo.acaption(IMAGE, [WholeImage()]))
    assert handovers == ["MainThread gives Tensor", "asyncio receives Tensor"]
    handovers.clear()
    features = demo.encode(IMAGE)
    with demo.batching(max_wait_ms=0) as batching:
        asyncio.run(batching.acaption(IMAGE, [WholeImage()]))
        first, handovers[:] = list(handovers), []
        asyncio.run(batching.adescribe(features, [WholeImage()]))
    worker = ["asyncio gives Tensor", "patchcaption batching receives Tensor"]
    assert first == ["MainThread gives Tensor", "asyncio receives Tensor", *worker]
    assert handovers == [
        "MainThread gives Tensor, Tensor, Image",
        "asyncio receives Tensor, Tensor, Image",
        *worker,
    ]


def test_a_batch_is_received_before_its_vectors_are_read(
    demo: Captioner, handovers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def describe_noted(*arguments: Any) -> Any:
        handovers.append("reads")
        return describe_together(*arguments)

    monkeypatch.setattr("runtime.serving.batching.describe_together", describe_noted)
    with demo.batching(max_wait_ms=0) as batching:
        batching.caption(IMAGE, [WholeImage()])
    assert handovers[1:] == ["patchcaption batching receives Tensor", "reads"]


def test_a_stream_hands_its_frames_from_thread_to_thread(
    demo: Captioner, handovers: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def regions(_: Frame) -> list[WholeImage]:
        handovers.append("detects")
        return [WholeImage()]

    encode = type(demo.pipeline.encoder).__call__

    def encode_noted(self: Any, images: Any) -> FeatureMap:
        handovers.append("encodes")
        return encode(self, images)

    monkeypatch.setattr(type(demo.pipeline.encoder), "__call__", encode_noted)
    with demo.stream(iter([IMAGE]), regions, policy="drop") as stream:
        (described,) = stream
    assert isinstance(described.captions[0], Caption)
    assert handovers[:3] == [
        "MainThread gives device",
        "patchcaption read receives device",
        "patchcaption read gives Tensor",
    ]
    in_pool, in_order = "patchcaption encoding receives Tensor", "patchcaption encode receives Tensor"
    assert handovers.index(in_pool) < handovers.index("encodes")
    assert handovers.index(in_order) < handovers.index("detects")
