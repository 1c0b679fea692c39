from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from runtime.backends.measurements import MeasuredRun, Measurement, save_measurement
from runtime.bundle import Bundle
from runtime.doctor import advice
from runtime.errors import BackendError
from runtime.system import machine
from tests.doubles import with_manifest

CPU = MeasuredRun(backend="cpu", precision="fp32", milliseconds=10.0)
IN_BFLOAT16 = MeasuredRun(backend="openvino", precision="bf16", milliseconds=4.0, agreement=0.995)
BFLOAT16 = "--backend openvino --precision bf16: this processor multiplies bfloat16"


@pytest.fixture
def bundle(demo_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    """A bundle of which nothing was measured, on a machine that has nothing else."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(advice, "multiplies_int8", lambda: False)
    monkeypatch.setattr(advice, "_kernels", lambda: "avx2")
    return Bundle(demo_bundle)


def keep(bundle: Bundle, *runs: MeasuredRun, min_agreement: float = 0.99, kernels: str | None = None) -> None:
    measurement = Measurement(bundle="demo", runs=list(runs), min_agreement=min_agreement, kernels=kernels)
    save_measurement(bundle, measurement)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("model name : x\nflags : fpu avx512f avx512_bf16\n", True),
        ("flags\t\t: fpu amx_bf16 amx_tile\n", True),
        ("flags : fpu avx512f avx512_vnni\n", False),
        ("processor : 0\nFeatures : fp asimd i8mm bf16\n", True),
        ("Features : fp asimd asimddp\nmodel name : bf16\n", False),
    ],
)
def test_bfloat16_is_known_by_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.multiplies_bfloat16() == expected
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "lost")
    assert not machine.multiplies_bfloat16()


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ("flags : fpu avx2 avx_vnni\n", True),
        ("flags : fpu avx512f avx512_vnni\n", True),
        ("flags : fpu avx2 avx512f avx512_bf16\n", False),
        ("Features : fp asimd asimddp\n", True),
    ],
)
def test_products_of_8_bits_are_known_by_the_processors_flags(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, info: str, expected: bool
) -> None:
    (tmp_path / "cpuinfo").write_text(info)
    monkeypatch.setattr(machine, "_CPUINFO", tmp_path / "cpuinfo")
    assert machine.multiplies_int8() == expected


def test_what_is_in_use_is_said(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "usable_cores", lambda: 6)
    assert advice.in_use(bundle) == {
        "kernels": "projection by avx2",
        "threads": f"an engine may use all of 6 cores, torch {torch.get_num_threads()} threads",
        "precision": "that of the graphs, fp32, the memory bank is stored in fp32",
    }


def test_a_measurement_is_advised_until_there_is_one(bundle: Bundle) -> None:
    assert list(advice.faster_here(bundle)) == [
        f"cpu was not measured: patchcaption tune {bundle.folder} finds out what is fastest"
    ]
    keep(bundle, CPU)
    assert list(advice.faster_here(bundle)) == []


def test_what_was_measured_to_be_faster_is_said_with_the_flag(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: True)
    keep(bundle, CPU, IN_BFLOAT16)
    assert list(advice.faster_here(bundle)) == ["--precision auto: openvino in bf16, measured to be 2.5 times as fast"]
    keep(bundle, CPU, IN_BFLOAT16, min_agreement=0.999)
    assert list(advice.faster_here(bundle)) == [], "bfloat16 was tried, and changes too many captions"


def test_what_was_chosen_is_in_use(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "usable_cores", lambda: 6)
    keep(bundle, CPU.model_copy(update={"threads": 3}), kernels="baseline")
    found = advice.in_use(bundle)
    assert found["kernels"] == "projection by baseline, as measured"
    assert found["threads"].startswith("an engine may use 3 of 6 cores, as measured, torch ")


Change = Callable[[pytest.MonkeyPatch], None]


def with_int8_products(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(advice, "_LARGE_BACKBONE_BYTES", 1000)
    patch.setattr(advice, "multiplies_int8", lambda: True)


def test_int8_graphs_may_have_bfloat16_beside(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: True)
    engines = bundle.manifest.engines
    int8 = with_manifest(
        bundle, engines={**engines, "backbone": engines["backbone"].model_copy(update={"precision": "int8"})}
    )
    assert any(said.startswith(BFLOAT16) for said in advice.faster_here(int8))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda patch: patch.setattr(advice, "multiplies_bfloat16", lambda: True), BFLOAT16),
        (lambda patch: patch.setattr(torch.cuda, "is_available", lambda: True), "a bundle that is built for this GPU"),
        (with_int8_products, "patchcaption build with --precision int8 --calibration FOLDER, for --backend openvino: "),
        (lambda patch: patch.setattr(advice, "_kernels", lambda: "torch"), "the native kernels: "),
        (lambda patch: patch.setattr(advice, "_WIDE_BANK_BYTES", 1000), "a memory bank in int8"),
    ],
)
def test_what_this_machine_has_is_advised(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, change: Change, expected: str
) -> None:
    keep(bundle, CPU)
    change(monkeypatch)
    (said,) = advice.faster_here(bundle)
    assert said.startswith(expected)


def test_openvino_is_advised_with_the_way_to_it(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "multiplies_bfloat16", lambda: True)
    monkeypatch.setattr(advice, "package_version", lambda _: None)
    assert f"pip install 'patchcaption[openvino]', then {BFLOAT16}" in list(advice.faster_here(bundle))


def test_the_kernels_are_those_that_project(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise BackendError("altered")

    monkeypatch.setattr(
        "runtime.memory.native_kernels.library", lambda: SimpleNamespace(variants=("avx512", "baseline"))
    )
    assert advice._kernels() == "avx512"
    monkeypatch.setattr("runtime.memory.native_kernels.library", lambda: None)
    assert advice._kernels() == "torch"
    monkeypatch.setattr("runtime.memory.native_kernels.library", broken)
    assert advice._kernels() == "torch"
