"""The doctor's findings, on machines that have a part, lack it or have it broken."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from runtime import BackendError
from runtime.cli.main import main
from runtime.doctor import Finding, backends, bundles, examine, machine
from runtime.memory import native_kernels
from tests.conftest import build_once
from tests.tensorrt_double import Faults, tensorrt_double

CPU = torch.device("cpu")


def by_subject(findings: object) -> dict[str, Finding]:
    return {finding.subject: finding for finding in findings}  # type: ignore[attr-defined]


def test_the_small_graph_is_what_it_says() -> None:
    weights = numpy_helper.from_array(np.arange(16, dtype=np.float32).reshape(4, 4) / 8, "w")
    rows = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["rows", 4]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Relu", ["p"], ["y"])]
    graph = helper.make_graph(nodes, "g", rows[:1], rows[1:], [weights])
    expected = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(expected)
    assert expected.SerializeToString() == backends.SMALL_GRAPH


def test_the_machine_is_described_line_by_line() -> None:
    found = by_subject(machine.on_machine())
    assert list(found) == [
        *("cpu", "patchcaption", "native kernels", "torch", "gpu", "onnxruntime", "openvino", "tensorrt", "jetson"),
    ]
    assert found["cpu"].state == found["torch"].state == "pass"
    assert found["jetson"].state == "unavailable"


def test_two_wheels_of_onnxruntime_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "package_version", lambda name: "1.30" if name.startswith("onnxruntime") else None)
    found = by_subject(machine.on_machine())
    assert found["onnxruntime"].state == "fail"
    assert found["onnxruntime"].fix.startswith("pip uninstall onnxruntime onnxruntime-gpu")
    assert found["openvino"].state == found["tensorrt"].state == "unavailable"
    monkeypatch.setattr(machine, "package_version", lambda _: None)
    found = by_subject(machine.on_machine())
    assert found["onnxruntime"].state == "unavailable", "plans need no ONNX Runtime"
    assert "pip install 'patchcaption[cpu]'" in found["onnxruntime"].detail


def test_native_kernels_that_are_broken_are_a_fault_and_absent_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> native_kernels.NativeKernels:
        raise BackendError("its ABI version is 0, expected 1")

    monkeypatch.setattr(native_kernels, "library", broken)
    found = by_subject(machine.on_machine())["native kernels"]
    assert (found.state, found.detail, found.fix) == ("fail", "its ABI version is 0, expected 1", "run make native")
    monkeypatch.setattr(native_kernels, "library", lambda: None)
    assert by_subject(machine.on_machine())["native kernels"].state == "unavailable"


def test_a_gpu_that_torch_cannot_use_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    output = {"nvidia-smi": "NVIDIA H200, 580.1, 143771 MiB"}
    monkeypatch.setattr(machine, "command_output", lambda *command: output.get(command[0]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = by_subject(machine.on_machine())["gpu"]
    assert found.state == "fail"
    assert found.detail.startswith("NVIDIA H200, 580.1, 143771 MiB, but torch is built for ")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert by_subject(machine.on_machine())["gpu"].state == "pass"


def test_a_jetson_is_described_by_its_release_and_power_mode(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    release = tmp_path / "nv_tegra_release"
    release.write_text("# R36 (release), REVISION: 4.3\nmore\n")
    monkeypatch.setattr(machine, "_JETSON_RELEASE", release)
    monkeypatch.setattr(machine, "power_mode", lambda: "NV Power Mode: MAXN 0")
    found = by_subject(machine.on_machine())["jetson"]
    assert (found.state, found.detail) == ("pass", "R36 (release), REVISION: 4.3; NV Power Mode: MAXN 0")


def test_backends_that_are_here_are_right_and_others_are_unavailable() -> None:
    found = by_subject(backends.on_backends())
    gpus = ["backend ort-cuda", "backend ort-tensorrt", "backend tensorrt", "backend tensorrt-rtx"]
    assert list(found) == ["backend cpu", "backend openvino", "backend openvino bf16", *gpus]
    assert found["backend cpu"].state == "pass"
    assert found["backend cpu"].detail.endswith("right on a small graph")
    for name in gpus:
        if not torch.cuda.is_available():
            assert found[name].state == "unavailable"


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """The faults of an installed double of TensorRT, which a test may change."""
    double = tensorrt_double()
    monkeypatch.setitem(sys.modules, "tensorrt", double)
    for module in ("runtime.backends.cuda.device", "runtime.backends.tensorrt.engine", "runtime.doctor.backends"):
        monkeypatch.setattr(f"{module}.current_gpu", lambda: CPU)
    return double.state.faults


def test_tensorrt_builds_and_runs_a_small_engine(faults: Faults) -> None:
    found = by_subject(backends.on_backends())["backend tensorrt"]
    assert (found.state, found.detail) == ("pass", "tensorrt 10.3.0.30, right on a small graph")
    faults.logged_error, faults.returns_nothing = "out of memory", frozenset({"execute_async_v3"})
    found = by_subject(backends.on_backends())["backend tensorrt"]
    assert found.state == "fail"
    assert "running it: TensorRT 10.3.0.30 refused: out of memory" in found.detail
    assert found.fix


def test_wrong_results_are_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "SMALL_GRAPH", backends.SMALL_GRAPH.replace(b"Relu", b"Sqrt"))
    found = by_subject(backends.on_backends())["backend cpu"]
    assert found.state == "fail"
    monkeypatch.setattr(backends, "SMALL_GRAPH", b"no graph")
    found = by_subject(backends.on_backends())["backend cpu"]
    assert "cannot load it" in found.detail


@pytest.mark.slow
def test_a_bundle_is_run_on_every_backend_that_opens_it(
    tmp_path_factory: pytest.TempPathFactory, faults: Faults, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ("--backend", "tensorrt", "--max-regions", "6", "--max-images", "2")
    folder = build_once(tmp_path_factory, "demo", "demo-trt-10.3.0.30", *options)
    found = by_subject(bundles.on_bundle(folder))
    name = folder.name
    assert found[f"{name} on cpu: parity"].state == "pass"
    assert found[f"{name} on tensorrt: parity"].state == "pass"
    assert "4 of 4 captions the same" in found[f"{name} on tensorrt: parity"].detail
    assert found[f"{name} on tensorrt: speed"].detail.startswith("encode ")
    assert found[f"{name} on tensorrt: attention"].state == "fail", "the double fuses nothing"
    assert found[f"{name} on ort-cuda"].state == "unavailable"
    faults.returns_nothing = frozenset({"deserialize_cuda_engine"})
    refused = by_subject(bundles.on_bundle(folder))[f"{name} on tensorrt"]
    assert refused.state == "fail"
    assert "loading it" in refused.detail


@pytest.fixture
def only_plans(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `pip install .[plans]` leaves out."""
    for package in ("onnxruntime", "openvino"):
        monkeypatch.setitem(sys.modules, package, None)


@pytest.mark.usefixtures("only_plans", "faults")
def test_plans_are_checked_where_nothing_else_is_installed(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = ("--backend", "tensorrt", "--max-regions", "6", "--max-images", "2")
    folder = build_once(tmp_path_factory, "demo", "demo-trt-10.3.0.30", *options)
    found = by_subject(examine(folder))
    name = folder.name
    assert found[f"{name} on cpu"].state == found[f"{name} on openvino"].state == "unavailable"
    parity = found[f"{name} on tensorrt: parity"]
    assert parity.state == "unavailable"
    assert "no backend of the CPU to compare with; pip install 'patchcaption[cpu]'" in parity.detail
    assert found[f"{name} on tensorrt: speed"].state == "pass"
    failed = [finding.subject for finding in found.values() if finding.state == "fail"]
    assert failed == [f"{name} on tensorrt: attention"], "the double fuses nothing"


@pytest.mark.usefixtures("only_plans")
def test_a_machine_where_no_backend_works_is_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = by_subject(examine())["backends"]
    assert (found.state, found.fix) == ("fail", "pip install 'patchcaption[cpu]'")


def test_the_command_prints_a_line_a_finding_and_fails_if_one_does(
    demo_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    main(["doctor", "--bundle", str(demo_bundle)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[:2] == ["pass", "cpu"]
    assert any(line.split()[-4:] == ["the", "same"] or "captions the same" in line for line in lines)

    def broken(_: Path | None) -> list[Finding]:
        return [Finding("cpu", "pass", "8 cores"), Finding("gpu", "fail", "gone", "plug it in")]

    monkeypatch.setattr("runtime.cli.machine_commands.examine", broken)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.splitlines()[1] == f"{'fail':<11} {'gpu':<28} gone; fix: plug it in"
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[1] == {
        "subject": "gpu",
        "state": "fail",
        "detail": "gone",
        "fix": "plug it in",
    }


def test_a_folder_that_is_no_bundle_is_a_finding(tmp_path: Path) -> None:
    (found,) = list(bundles.on_bundle(tmp_path))
    assert found.state == "fail"
    assert "no bundle there" in found.detail
    assert len(list(examine())) == 16
