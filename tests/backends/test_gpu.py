"""NVIDIA GPUs: the results of the CPU, without leaving the device. `pytest -m gpu`."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from runtime import BackendError, Box, Caption, Captioner, Region
from runtime.backends import open_backend
from runtime.backends.cuda.stream import CaptureMode, Stream
from runtime.bundle import HeldFile
from runtime.bundle.dtypes import StoragePrecision
from runtime.decoding.decap import DecapDecoder
from runtime.image import Fit, prepare
from runtime.memory.bank import MemoryBank
from runtime.memory.rows import StoredRows
from tests.conftest import build_once
from tests.memory.test_stored_banks import (
    MAX_ERROR,
    PRECISIONS,
    all_different,
    build_bank,
    duplicates,
    normal,
    project_by_definition,
)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]

MAX_TOKEN_ERROR = {"fp32": 1e-3, "fp16": 1e-2}
"""Relative to the largest value: other kernels sum in another order; float16 has 11 bits."""
MIN_EQUAL_SHARE = 0.99
"""Share of captions: where two tokens are as likely, the last bits decide."""
REGIONS: list[Region] = [Box(x, y, x + 150, y + 130) for x in range(0, 480, 60) for y in range(0, 340, 60)]


def require_backend(backend: str) -> None:
    """Skip the test where a backend cannot be opened."""
    if backend == "tensorrt":
        if importlib.util.find_spec("tensorrt") is None:
            pytest.skip("TensorRT is not installed")
        return
    try:
        open_backend(backend)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["fp32", "fp16"])
def precision(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=["ort-cuda", "ort-tensorrt", "tensorrt"])
def captioner(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, precision: str
) -> Iterator[Captioner]:
    backend = str(request.param)
    require_backend(backend)
    options = ("--backend", backend, "--precision", precision, "--max-regions", "64", "--max-images", "2")
    folder = build_once(tmp_path_factory, "demo", f"demo-{backend}-{precision}", *options)
    with Captioner.load(folder, backend) as opened:
        yield opened


@pytest.fixture(scope="module")
def scene() -> Image.Image:
    with Image.open(Path(__file__).parents[2] / "export" / "demo" / "sample" / "scene.jpg") as image:
        return image.convert("RGB").resize((640, 480))


def on_gpu(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().cuda()


def equal_share(ours: list[Caption], theirs: list[Caption]) -> float:
    return float(np.mean([one.text == other.text for one, other in zip(ours, theirs, strict=True)]))


@pytest.mark.parametrize("backend", ["ort-cuda", "tensorrt"])
def test_captions_after_prompts_are_those_of_the_cpu_and_their_steps_are_captured(
    tmp_path_factory: pytest.TempPathFactory, viecap: Captioner, scene: Image.Image, precision: str, backend: str
) -> None:
    require_backend(backend)
    options = ("--backend", backend, "--precision", precision, "--max-regions", "64", "--max-images", "2")
    folder = build_once(tmp_path_factory, "demo-viecap", f"demo-viecap-{backend}-{precision}", *options)
    vectors = viecap.project(viecap.vectors(viecap.encode(scene), REGIONS))
    with Captioner.load(folder, backend) as captioner:
        for count in (1, 5, len(REGIONS)):
            got, expected = captioner.decode(vectors[:count].cuda()), viecap.decode(vectors[:count])
            assert equal_share(got, expected) >= MIN_EQUAL_SHARE
        assert set(captioner.captured()["decoder"]) == {""}


def test_tokens_and_captions_are_those_of_the_cpu(
    captioner: Captioner, demo: Captioner, scene: Image.Image, precision: str
) -> None:
    images = [scene, scene.rotate(180), scene]  # two at once, then one
    ours, theirs = captioner.encode(images), demo.encode(images)
    assert ours.tokens.is_cuda
    difference = (ours.tokens.float().cpu() - theirs.tokens).abs().max() / theirs.tokens.abs().max()
    assert difference < MAX_TOKEN_ERROR[precision]
    for number in range(len(images)):
        got, expected = captioner.describe(ours[number], REGIONS), demo.describe(theirs[number], REGIONS)
        assert equal_share(got, expected) >= MIN_EQUAL_SHARE


def test_other_ways_of_describing_give_the_same_too(captioner: Captioner, demo: Captioner, scene: Image.Image) -> None:
    ours, theirs = captioner.encode(scene), demo.encode(scene)
    for options in ({"beams": 3}, {"reencode": "mean"}, {"clean": "orthogonal"}, {"mode": "nearest"}):
        got, expected = captioner.describe(ours, REGIONS, **options), demo.describe(theirs, REGIONS, **options)
        assert equal_share(got, expected) >= MIN_EQUAL_SHARE, options


def test_the_backbone_and_the_steps_are_captured(captioner: Captioner, scene: Image.Image) -> None:
    captioner.describe(captioner.encode(scene), REGIONS)
    captured = captioner.captured()
    if "TensorrtExecutionProvider" in captioner.backend.name:
        assert set(captured["decoder"]) == {"this backend's runs cannot be captured"}
    else:
        assert captured["backbone"]
        assert captured["decoder"]
        assert {reason for reasons in captured.values() for reason in reasons} == {""}


def test_what_runs_is_what_was_asked_for(captioner: Captioner) -> None:
    for runs_on in captioner.runs_on().values():
        assert runs_on.split(" ")[0] in captioner.backend.name or runs_on.startswith("TensorRT ")


def test_a_frame_on_the_gpu_gives_what_the_same_frame_elsewhere_gives(captioner: Captioner, scene: Image.Image) -> None:
    frame = on_gpu(scene)
    ours, theirs = captioner.encode(frame), captioner.encode(scene)
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=0)
    assert ours.images is not None
    assert isinstance(ours.images[0], Tensor)
    got, expected = captioner.describe(ours, REGIONS), captioner.describe(theirs, REGIONS)
    assert [one.text for one in got] == [one.text for one in expected]


def test_callers_on_streams_of_their_own_get_what_they_asked_for(captioner: Captioner, scene: Image.Image) -> None:
    expected = captioner.describe(captioner.encode(scene), REGIONS)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        frame = on_gpu(scene)
        busy = torch.randn(4096, 4096, device="cuda")
        for _ in range(20):
            busy = busy @ busy / 64
        got = captioner.describe(captioner.encode(frame), REGIONS)
    assert [one.text for one in got] == [one.text for one in expected]


def late_frame(scene: Image.Image) -> Tensor:
    """Return the scene on the GPU, where it arrives only once the current stream has done a lot else."""
    busy = torch.randn(4096, 4096, device="cuda")
    for _ in range(20):
        busy = busy @ busy / 64
    return (on_gpu(scene).float() + 0 * busy[0, 0].nan_to_num(0, 0, 0)).to(torch.uint8)


def test_other_threads_wait_for_frames_of_callers_streams(captioner: Captioner, scene: Image.Image) -> None:
    expected = [one.text for one in captioner.describe(captioner.encode(scene), REGIONS)]
    with torch.cuda.stream(torch.cuda.Stream()):
        with captioner.batching() as batching:
            by_batching = batching.describe(captioner.encode(late_frame(scene)), REGIONS)
            by_asyncio = asyncio.run(batching.acaption(late_frame(scene), REGIONS))
        frames = [late_frame(scene)]
        with captioner.stream(frames, REGIONS) as stream:
            by_stream = next(stream).captions
    for got in (by_batching, by_asyncio, by_stream):
        assert [one.text for one in got] == expected


def test_threads_with_streams_of_their_own_share_the_engines(captioner: Captioner, scene: Image.Image) -> None:
    scenes = [scene, scene.rotate(90), scene.rotate(180), scene.rotate(270)]
    expected = [[one.text for one in captioner.caption(one, REGIONS[:9])] for one in scenes]

    def caption(image: Image.Image) -> list[list[str]]:
        with torch.cuda.stream(torch.cuda.Stream()):
            return [[one.text for one in captioner.caption(image, REGIONS[:9])] for _ in range(5)]

    with ThreadPoolExecutor(len(scenes)) as threads:
        for got, texts in zip(threads.map(caption, scenes), expected, strict=True):
            assert got == [texts] * 5


def test_results_are_left_alone_by_the_work_of_others(captioner: Captioner, scene: Image.Image) -> None:
    vectors = captioner.vectors(captioner.encode(scene), REGIONS[:4])
    decoder = captioner.pipeline.decoder
    assert isinstance(decoder, DecapDecoder)
    expected = decoder.greedy.decode(vectors)
    with torch.cuda.stream(torch.cuda.Stream()):
        features = captioner.encode(scene)
        tokens = features.tokens.clone()
        for _ in range(20):
            captioner.caption(scene.rotate(90), REGIONS[:4])
        assert torch.equal(features.tokens, tokens)
        assert decoder.greedy.decode(vectors).ids == expected.ids


def test_graphs_are_captured_while_other_threads_allocate(captioner: Captioner, scene: Image.Image) -> None:
    if captioner.backend.name.startswith("onnxruntime"):
        pytest.skip("ONNX Runtime captures in the mode that forbids it")
    done = Event()

    def allocate() -> None:
        while not done.is_set():
            torch.empty(1 << 24, device="cuda")
            torch.cuda.empty_cache()

    with ThreadPoolExecutor(1) as threads:
        allocating = threads.submit(allocate)
        try:
            with Captioner.load(captioner.pipeline.bundle.folder) as other:
                other.caption(scene, REGIONS[:2])
                reasons = {reason for reasons in other.captured().values() for reason in reasons}
        finally:
            done.set()
        allocating.result()
    assert reasons == {""}


def test_a_capture_that_fails_leaves_the_stream_as_it_was() -> None:
    class Run:
        capture_mode: CaptureMode = "around"

    device = torch.device("cuda", torch.cuda.current_device())
    stream, total = Stream(device), torch.zeros(1, device=device)

    def add() -> None:
        total.add_(1)

    def add_and_wait() -> None:
        add()
        torch.cuda.current_stream().synchronize()  # which cannot be captured

    before = torch.cuda.current_stream()
    failed = stream.capture(add_and_wait, Run())
    assert failed.fallback_reason
    assert torch.cuda.current_stream() == before
    captured = stream.capture(add, Run())
    assert captured.fallback_reason is None
    total.zero_()
    with stream.active():
        failed.run()
        captured.run()
    assert total.item() == 2


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is one GPU")
def test_threads_run_on_the_captioners_gpu_whichever_is_current_there(
    tmp_path_factory: pytest.TempPathFactory, scene: Image.Image, demo: Captioner
) -> None:
    folder = build_once(tmp_path_factory, "demo", "demo-ort-cuda-fp32", "--backend", "ort-cuda", "--max-regions", "64")
    expected = [one.text for one in demo.caption(scene, REGIONS[:4])]
    with torch.cuda.device(1), Captioner.load(folder, "ort-cuda") as captioner, ThreadPoolExecutor(1) as threads:
        got = threads.submit(captioner.caption, scene, REGIONS[:4], beams=2).result()  # GPU 0 is current there
        assert captioner.backend.device == torch.device("cuda", 1)
        assert len(got) == len(expected)


def test_a_backend_gives_its_memory_back(tmp_path_factory: pytest.TempPathFactory, scene: Image.Image) -> None:
    require_backend("ort-cuda")
    folder = build_once(tmp_path_factory, "demo", "demo-ort-cuda-fp32", "--backend", "ort-cuda", "--max-regions", "64")

    def bytes_after_use() -> int:
        with Captioner.load(folder, "ort-cuda") as captioner:
            captioner.caption(scene, REGIONS[:4])
        del captioner
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    first = bytes_after_use()
    assert max(bytes_after_use() for _ in range(5)) <= first


@pytest.mark.parametrize("image_wh", [(640, 480), (480, 640), (1920, 1080), (300, 1200), (37, 90)])
@pytest.mark.parametrize("fit", list(Fit))
def test_frames_are_resized_as_pillow_does_it(image_wh: tuple[int, int], fit: Fit) -> None:
    width, height = image_wh
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8))
    expected, views = prepare([image], 224, fit)
    for source in (image, on_gpu(image)):
        pixels, gpu_views = prepare([source], 224, fit, device=torch.device("cuda"))
        assert pixels.is_cuda
        assert gpu_views == views
        difference = (pixels.cpu().int() - expected.int()).abs()
        assert difference.max() <= 2
        assert (difference > 1).float().mean() <= 1e-3


@pytest.mark.parametrize("stored", PRECISIONS)
@pytest.mark.parametrize("rows", [all_different, duplicates])
def test_projected_vectors_are_those_of_float32_to_a_thousandth(
    rows: object, stored: StoragePrecision, tmp_path: Path
) -> None:
    assert callable(rows)
    embeddings = rows()
    bank = build_bank(embeddings, stored, tmp_path)
    residual = HeldFile(tmp_path / bank.config.residual) if bank.config.residual else None
    on_device = StoredRows.load(HeldFile(tmp_path / bank.config.embeddings), residual, torch.device("cuda"))
    moved = MemoryBank(on_device, bank.config, bank.captions_file)
    vectors = torch.cat([embeddings[:20], normal(20, embeddings.shape[1], seed=4)])
    difference = moved.project(vectors.cuda()).double().cpu() - project_by_definition(embeddings, vectors)
    assert float(difference.norm(dim=1).max()) < (1e-4 if stored == "fp32" else MAX_ERROR)
    nearest = moved.nearest(vectors[:4].cuda(), 3)
    similarities = [[match.similarity for match in matches] for matches in nearest]
    expected = [[match.similarity for match in matches] for matches in bank.nearest(vectors[:4], 3)]
    assert np.allclose(similarities, expected, atol=2e-4)
