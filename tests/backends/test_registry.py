"""The registry of backends: one line for each name, and what it says of each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from runtime import BackendError, Captioner, WholeImage
from runtime.backends import BACKEND_NAMES, BACKENDS, PRECISIONS, BackendName, EngineReport, LazyEngine, open_backend
from runtime.backends.onnxruntime_cpu import OrtBackend
from runtime.bundle import Bundle, BundleBackend, EnginePrecision
from runtime.options import Precision
from tests.doubles import RecordingBackend, RecordingEngine, with_manifest


def test_every_name_has_one_backend() -> None:
    assert tuple(BACKENDS) == get_args(BackendName)
    assert all(name == spec.name for name, spec in BACKENDS.items())
    assert list(BACKEND_NAMES) == ["auto", *get_args(BackendName)]


def test_bundles_may_be_built_for_some_of_them() -> None:
    assert set(get_args(BundleBackend)) < set(get_args(BackendName))


def test_each_is_of_a_device_and_of_precisions_that_there_are() -> None:
    for spec in BACKENDS.values():
        assert spec.device in ("cpu", "cuda")
        assert set(spec.graph_precisions) <= set(get_args(EnginePrecision))
        assert set(spec.compute_precisions) <= set(PRECISIONS)
        assert spec.compute_precisions[0] == "fp32", "it executes graphs as they are"
    assert set(PRECISIONS) == set(get_args(Precision))
    assert [spec.name for spec in BACKENDS.values() if spec.needs_plans] == ["tensorrt", "tensorrt-rtx"]


def test_an_unknown_backend_is_refused_with_the_names_there_are() -> None:
    expected = ", ".join(map(repr, BACKEND_NAMES))
    with pytest.raises(BackendError, match=f"backend 'tpu': expected one of {expected}"):
        open_backend("tpu")


def in_precision(bundle: Bundle, precision: EnginePrecision) -> Bundle:
    engines = bundle.manifest.engines
    backbone = engines["backbone"].model_copy(update={"precision": precision})
    return with_manifest(bundle, engines={**engines, "backbone": backbone})


@pytest.mark.parametrize(
    ("backend", "graphs", "message"),
    [
        (
            "cpu",
            "bf16",
            "its graphs are bf16, which the backend 'cpu' does not execute; expected fp32, fp16, int8: build",
        ),
        ("openvino", "fp8", "its graphs are fp8, which the backend 'openvino' does not execute"),
        ("ort-cuda", "int8", "its graphs are int8, which the backend 'ort-cuda' does not execute"),
    ],
)
def test_graphs_that_a_backend_does_not_execute_are_refused_before_anything_is_opened(
    demo_bundle: Path, backend: str, graphs: EnginePrecision, message: str
) -> None:
    bundle = in_precision(Bundle(demo_bundle, verify=False), graphs)
    with pytest.raises(BackendError, match=message):
        open_backend(backend, bundle=bundle)


def test_bf16_is_for_graphs_in_fp32_only(demo_bundle: Path) -> None:
    bundle = in_precision(Bundle(demo_bundle, verify=False), "fp16")
    with pytest.raises(BackendError, match="precision 'bf16': the graphs of .* are fp16, and both roundings together"):
        open_backend("openvino", precision="bf16", bundle=bundle)


def test_importing_the_registry_loads_no_backend() -> None:
    heavy = ("onnxruntime", "openvino", "tensorrt", "onnx")
    code = f"import sys, runtime.backends.registry; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["cpu", "openvino"])
def test_an_engine_reports_what_executes_it(demo: Captioner, demo_bundle: Path, name: str) -> None:
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs pip install 'patchcaption[openvino]'")
    bundle = Bundle(demo_bundle, verify=False)
    engine = open_backend(name, bundle=bundle).open(bundle.engine("reencoder"))
    report = engine.report()
    assert report.provider.startswith({"cpu": "CPUExecutionProvider", "openvino": "CPU in "}[name])
    assert report == EngineReport(report.provider, graph_fallbacks=(), fused_layers=None)
    engine.close()
    reports = demo.pipeline.reports()
    assert list(reports) == ["backbone", "decoder"]
    assert demo.runs_on() == {name: report.provider for name, report in reports.items()}


def test_the_captioner_passes_on_what_engines_report(demo: Captioner, monkeypatch: pytest.MonkeyPatch) -> None:
    report = EngineReport("a GPU", graph_fallbacks=(None, "out of memory"), fused_layers=("mha",))
    monkeypatch.setattr(demo.pipeline.encoder, "report", lambda: report)
    assert demo.captured()["backbone"] == ["", "out of memory"]
    assert demo.fused_layers() == ["mha"]
    assert demo.runs_on()["backbone"] == "a GPU"


def test_a_lazy_engine_is_opened_once_and_closed_if_it_was_opened(demo_bundle: Path) -> None:
    bundle = Bundle(demo_bundle, verify=False)
    backend = RecordingBackend(OrtBackend())
    LazyEngine(lambda: backend.open(bundle.engine("reencoder"))).close()
    assert backend.opened == []
    lazy = LazyEngine(lambda: backend.open(bundle.engine("reencoder")))
    engine = lazy.get()
    assert isinstance(engine, RecordingEngine)
    assert lazy.get() is engine
    assert backend.opened == ["reencoder"]
    lazy.close()
    with pytest.raises(BackendError, match="reencoder.onnx: it was closed"):
        engine.report()


def test_nothing_is_opened_after_the_end(demo_bundle: Path) -> None:
    """Nobody would close it: an engine of this bundle would stay in memory for ever."""
    captioner = Captioner.load(demo_bundle, "cpu", threads=1)
    vectors = captioner.vectors(captioner.encode(np.zeros((24, 32, 3), np.uint8)), [WholeImage()])
    captioner.close()
    with pytest.raises(BackendError, match="the captioner was closed; load the bundle again"):
        captioner.decode(vectors, beams=2)
    with pytest.raises(BackendError, match="the captioner was closed; load the bundle again"):
        captioner.encoder(2)
