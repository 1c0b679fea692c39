"""The backend tensorrt-rtx: plans by NVIDIA's own builder, which needs no GPU; what runs them is a double."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from export import build_engines, build_plans
from runtime import BackendError, Box, Captioner, Region, WholeImage
from runtime.backends.cuda.device import Gpu
from runtime.backends.selection import Selection, select_backend
from runtime.backends.tensorrt.engine import TrtBackend, TrtBoundRun, TrtEngine
from runtime.backends.tensorrt.rtx import CAPABILITIES, check_supported, open_tensorrt_rtx, runtime_cache_file
from runtime.bundle import Bundle
from runtime.cli.main import main
from runtime.doctor.tuning import rounds
from runtime.doctor.tuning.combinations import candidates
from tests.conftest import build_once, without_home
from tests.tensorrt_double import Double, tensorrt_double

VERSION = "1.7.1.116"
SMALL = ("--max-regions", "4", "--max-images", "1")

Install = Callable[[], Double]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Install:
    """A function that installs a double of TensorRT for RTX, and a GPU that it supports."""

    def install() -> Double:
        double = tensorrt_double(VERSION, is_rtx=True)
        monkeypatch.setitem(sys.modules, "tensorrt_rtx", double)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr("runtime.backends.tensorrt.engine.current_gpu", lambda: torch.device("cpu"))
        monkeypatch.setattr(Gpu, "of", classmethod(lambda cls, _: cls("RTX 4090", "8.9")))
        return double

    return install


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The demo with plans by the real builder, on this machine, whatever it is."""
    return Bundle(build_once(tmp_path_factory, "demo", "demo-rtx", "--backend", "tensorrt-rtx", *SMALL))


def test_plans_are_built_without_a_gpu_and_recorded(built: Bundle) -> None:
    manifest = built.manifest
    assert manifest.backend == "tensorrt-rtx"
    assert {engine.precision for engine in manifest.engines.values()} == {"fp16"}, "the default there"
    assert {plan.graph for plan in manifest.plans} == {engine.file for engine in manifest.engines.values()}
    for plan in manifest.plans:
        assert (plan.product, plan.version, plan.gpu) == ("tensorrt-rtx", open_tensorrt_rtx().version, None)
        assert plan.compute_capabilities == ("8.6", "8.9", "12.0", "12.1")
        assert built.path(plan.file).stat().st_size > 100_000


def test_the_graphs_still_run_on_a_cpu(built: Bundle) -> None:
    scene = Path("export/demo/sample/scene.jpg")
    with Captioner.load(built.folder, "cpu") as captioner:
        assert captioner.caption(scene, [Box(276, 174, 507, 399)])[0].text == "a large striped red triangle"


@pytest.mark.slow
def test_plans_for_chosen_gpus_are_added_to_a_bundle(built: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "ada"
    assert build_plans.main([str(built.folder), "--out", str(out), "--compute-capability", "8.9,12.0"]) == 0
    plans = Bundle(out).manifest.plans
    assert {plan.compute_capabilities for plan in plans} == {("8.9", "12.0")}
    assert not {plan.key for plan in plans} & {plan.key for plan in built.manifest.plans}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--backend", "tensorrt-rtx", "--compute-capability", "9.0"), "9.0: tensorrt-rtx builds for 7.5, 8.6"),
        (("--backend", "tensorrt-rtx", "--hardware", "ampere+"), "are for the backend tensorrt; tensorrt-rtx takes"),
        (("--backend", "tensorrt-rtx", "--dla", "0"), "are for the backend tensorrt; tensorrt-rtx takes"),
        (("--backend", "tensorrt", "--compute-capability", "8.9"), "tensorrt builds for this machine's GPU"),
    ],
)
def test_an_option_of_another_product_is_refused(
    options: tuple[str, ...], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build_engines.main(["demo", "--out", str(tmp_path / "bundle"), *options]) == 1
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("capability", ["8.7", "9.0", "11.0"])
def test_a_gpu_that_it_does_not_run_on_is_told_which_backend_does(capability: str) -> None:
    with pytest.raises(BackendError, match=rf"GPU has compute capability {capability}, .* use the backend 'tensorrt'"):
        check_supported(open_tensorrt_rtx(), Gpu("GPU", capability))
    for supported in CAPABILITIES:
        check_supported(open_tensorrt_rtx(), Gpu("GPU", supported))


def test_what_is_missing_is_said_with_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.backends.tensorrt.rtx.find_spec", lambda _: None)
    with pytest.raises(BackendError, match=r"pip install 'patchcaption\[tensorrt-rtx\]', or tensorrt-rtx"):
        open_tensorrt_rtx()


@pytest.mark.slow
def test_captions_are_those_of_the_cpu_and_what_was_compiled_is_kept(
    install: Install, tmp_path: Path, demo: Captioner
) -> None:
    double = install()
    folder = tmp_path / "bundle"
    options = ("--backend", "tensorrt-rtx", "--precision", "fp32", *SMALL)
    assert build_engines.main(["demo", "--out", str(folder), *options]) == 0
    scene = Path("export/demo/sample/scene.jpg")
    regions: list[Region] = [Box(276, 174, 507, 399), WholeImage()]
    expected = [caption.text for caption in demo.caption(scene, regions)]
    with Captioner.load(folder) as captioner:
        assert captioner.backend.name == f"tensorrt-rtx {VERSION} RTX 4090"
        assert [caption.text for caption in captioner.caption(scene, regions)] == expected
    contexts = double.state.count("create_execution_context")
    plan = folder / "backbone.plan"
    cache = runtime_cache_file(Bundle(folder).manifest.files[plan.name].sha256, Gpu("RTX 4090", "8.9"))
    assert cache is not None
    kept = cache.read_bytes()
    assert kept.startswith(b"rtx.")
    with Captioner.load(folder) as captioner:
        assert [caption.text for caption in captioner.caption(scene, regions)] == expected
    assert len(cache.read_bytes()) > len(kept), "the second start went on from what the first had compiled"
    assert contexts > 0
    cache.write_bytes(b"another environment's")
    with Captioner.load(folder) as captioner:
        assert [caption.text for caption in captioner.caption(scene, regions)] == expected
    assert cache.read_bytes().startswith(b"rtx."), "what cannot be used is replaced"


def test_a_plan_of_the_other_product_is_named(install: Install, built: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    install()
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt_double("11.4.0.106"))
    with pytest.raises(BackendError, match="built by TensorRT-RTX; use the backend 'tensorrt-rtx'"):
        Captioner.load(built.folder, "tensorrt")


@pytest.fixture
def decoder(install: Install, tmp_path: Path) -> tuple[Bundle, Double]:
    """The demo's decoder with a plan, and the double that runs it."""
    double = install()
    folder = tmp_path / "bundle"
    options = ("--backend", "tensorrt-rtx", "--precision", "fp32", *SMALL)
    assert build_engines.main(["demo", "--out", str(folder), *options]) == 0
    return Bundle(folder), double


def bound_run(bundle: Bundle) -> tuple[TrtEngine, TrtBoundRun]:
    config = bundle.manifest.decoder
    engine = TrtBackend(open_tensorrt_rtx()).open(bundle.engine("decoder"))
    cache = (1, config.num_heads, config.max_new_tokens, config.head_dim)
    shapes = {"vectors": (1, bundle.manifest.backbone.output_dim), "input_ids": (1,), "position": (1,)}
    inputs = {name: torch.zeros(shapes.get(name, cache), dtype=engine.dtype(name)) for name in engine._io.inputs}
    return engine, engine.bind(inputs, engine.run(inputs))


def test_a_context_that_is_captured_compiles_in_its_first_run_and_others_in_the_background(
    decoder: tuple[Bundle, Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, double = decoder
    strategies: list[Any] = []
    create = TrtEngine._new_context

    def new_context(self: TrtEngine, profile: int, fixed_shapes: bool) -> Any:
        assert self._runtime_cache is not None
        config = self._runtime_cache.config(fixed_shapes)
        strategies.append(config.dynamic_shapes_kernel_specialization_strategy)
        return create(self, profile, fixed_shapes)

    monkeypatch.setattr(TrtEngine, "_new_context", new_context)
    bound_run(bundle)
    kinds = double.DynamicShapesKernelSpecializationStrategy
    assert strategies == [kinds.LAZY, kinds.EAGER]


def test_what_a_bound_run_compiles_is_kept_though_nothing_is_closed(decoder: tuple[Bundle, Double]) -> None:
    bundle, _ = decoder
    cache = runtime_cache_file(bundle.manifest.files["decoder.plan"].sha256, Gpu("RTX 4090", "8.9"))
    assert cache is not None
    _, bound = bound_run(bundle)
    before = cache.read_bytes()
    bound.run()
    assert len(cache.read_bytes()) > len(before)


def test_the_context_is_asked_on_its_stream_whether_it_can_be_captured(
    decoder: tuple[Bundle, Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, bound = bound_run(decoder[0])
    asked: list[int] = []
    modes = [bound.capture_mode]

    def refuse(stream: int) -> bool:
        asked.append(stream)
        return False

    monkeypatch.setattr(bound._context._context, "is_stream_capturable", refuse)
    modes.append(bound.capture_mode)
    assert modes == ["around", "none"]
    assert asked == [engine.stream.handle]


def test_a_user_without_a_home_keeps_nothing_of_what_was_compiled(
    decoder: tuple[Bundle, Double], monkeypatch: pytest.MonkeyPatch
) -> None:
    without_home(monkeypatch)
    assert runtime_cache_file("abc", Gpu("RTX 4090", "8.9")) is None
    monkeypatch.setattr("runtime.backends.tensorrt.engine.check_trusted", lambda *_: None)
    engine, _ = bound_run(decoder[0])
    engine.close()


def test_tune_times_the_backends_of_the_gpu_that_have_plans(
    decoder: tuple[Bundle, Double], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, _ = decoder
    assert select_backend(bundle) == Selection("tensorrt-rtx", "the bundle was built for it")
    assert candidates(bundle) == ["ort-cuda", "ort-tensorrt", "tensorrt-rtx"], "of TensorRT it has no plans"
    monkeypatch.setattr(rounds, "_SECONDS", 0.0)
    assert main(["tune", str(bundle.folder), "--seconds", "1"]) == 0
    out, err = capsys.readouterr()
    assert err.count("left out: ") == 2, "no ONNX Runtime for GPUs is here"
    assert f"chosen: {bundle.folder} on tensorrt-rtx in fp32" in out
    selection = select_backend(bundle)
    assert (selection.backend, selection.is_measured) == ("tensorrt-rtx", True)
