"""The fixtures that tests share: the demo bundle, built once for all of them, and the sample scene."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import pytest
from filelock import FileLock
from PIL import Image

from export import build_engines
from runtime import Captioner
from runtime.backends.base import Device
from tests.exported_forms import export_prompted_bundle
from tests.seeded_numbers import draw_once
from tests.tensorrt_double.verdicts import keep_verdicts
from tests.traced_graphs import trace_once

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # tests import ONNX Runtime themselves

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "export" / "demo" / "sample"


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect tests without the garbage collector, and let it leave alone for good what is there then.

    Modules and tests are millions of objects: going through them takes it a second and more, each time that a test asks
    for it, or that much was made. What tests make is looked through more seldom, too: tracing a graph makes most of it.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.set_threshold(10_000)
        gc.enable()


def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of the whole test run, which pytest-xdist may run in several processes."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def build_once(tmp_path_factory: pytest.TempPathFactory, checkpoint: str, name: str, *options: str) -> Path:
    """Return a bundle that the whole test run shares."""
    shared = shared_folder(tmp_path_factory)
    folder = shared / "bundles" / name
    with FileLock(shared / f"{name}.lock"):
        if not folder.exists():
            assert build_engines.main([checkpoint, "--out", str(folder), *options]) == 0
    return folder


def without_home(patch: pytest.MonkeyPatch) -> None:
    """Let the user have neither a home nor a cache folder of another place."""

    def home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    patch.delenv("XDG_CACHE_HOME", raising=False)
    patch.setattr(Path, "home", home)


@pytest.fixture(scope="session", autouse=True)
def data_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A data folder of its own, so that tests neither see nor change the user's decisions."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_DATA_HOME", str(shared_folder(tmp_path_factory) / "data"))
        yield


@pytest.fixture(scope="session", autouse=True)
def traced_graphs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        trace_once(shared_folder(tmp_path_factory) / "traced", patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def seeded_numbers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        draw_once(shared_folder(tmp_path_factory) / "numbers", patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        keep_verdicts(shared_folder(tmp_path_factory) / "verdicts", patch)
        yield


@pytest.fixture(scope="session", autouse=True)
def compiled_objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let CMake compile each file of the native kernels once, whatever builds them, and wherever its copy lies."""
    folder = shared_folder(tmp_path_factory) / "objects"
    folder.mkdir(exist_ok=True)
    launcher = [sys.executable, "-I", "-S", str(ROOT / "tests" / "compile_once.py"), str(folder)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CMAKE_CXX_COMPILER_LAUNCHER", ";".join(launcher))
        yield


@pytest.fixture(scope="session")
def demo_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_once(tmp_path_factory, "demo", "demo")


@pytest.fixture(scope="session")
def prompted_bundle(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Path:
    """A bundle of the demo's backbone and a small decoder with prompts, its weights random."""
    return _export_prompted_once(tmp_path_factory, demo_bundle, "cpu")


@pytest.fixture(scope="session")
def prompted_gpu_bundle(tmp_path_factory: pytest.TempPathFactory, demo_bundle: Path) -> Path:
    """The same with the decoder's graphs in the form for GPUs."""
    return _export_prompted_once(tmp_path_factory, demo_bundle, "cuda")


def _export_prompted_once(tmp_path_factory: pytest.TempPathFactory, demo: Path, device: Device) -> Path:
    folder = shared_folder(tmp_path_factory) / "bundles" / f"prompted-{device}"
    with FileLock(folder.with_suffix(".lock")):
        return folder if folder.exists() else export_prompted_bundle(demo, folder, device)


@pytest.fixture(scope="session")
def demo(demo_bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(demo_bundle) as captioner:
        yield captioner


@pytest.fixture(scope="session")
def viecap_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with its second decoder, whose prompts name entities."""
    return build_once(tmp_path_factory, "demo-viecap", "demo-viecap")


@pytest.fixture(scope="session")
def viecap(viecap_bundle: Path) -> Iterator[Captioner]:
    with Captioner.load(viecap_bundle) as captioner:
        yield captioner


@pytest.fixture
def sample_image() -> Image.Image:
    with Image.open(SAMPLE / "scene.jpg") as image:
        return image.convert("RGB")


def write_clip(path: Path, images: Sequence[Image.Image], rate: int = 10) -> Path:
    """Write a video of images of one size, each a key frame; return its path."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate, options={"g": "1"})
        stream.width, stream.height, stream.pix_fmt = *images[0].size, "yuv420p"
        for image in images:
            container.mux(stream.encode(av.VideoFrame.from_image(image)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode())
    return path


@pytest.fixture
def bundle_copy(demo_bundle: Path, tmp_path: Path) -> Callable[[], Path]:
    """A function that makes a copy of the demo bundle to spoil."""
    import shutil

    def copy() -> Path:
        return Path(shutil.copytree(demo_bundle, tmp_path / "bundle"))

    return copy
