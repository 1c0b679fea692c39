"""The native kernels of other processors, against float64: of Arm under emulation, of AVX-VNNI in another encoding."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.memory.native_build import build_native

ARM_COMPILER = "aarch64-linux-gnu-g++"
EMULATOR = "qemu-aarch64"
ARM_LIBRARIES = "/usr/aarch64-linux-gnu"
ARM_VARIANTS = {"cortex-a72": ["neon"], "cortex-a76": ["dotprod", "neon"], "max": ["i8mm", "dotprod", "neon"]}
MAX_DIFFERENCE = 1e-3


def cpu_flags() -> set[str]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return {flag for line in lines if line.startswith("flags") for flag in line.split()}


def differences(*command: str | Path) -> dict[str, float]:
    """Run the program; return the largest difference of each variant, the fastest first."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = [line.split(": ") for line in done.stdout.splitlines()]
    return {variant: float(result.rsplit(" ", 1)[1]) for variant, result in lines}


@pytest.fixture(scope="module")
def arm_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for tool in (ARM_COMPILER, EMULATOR):
        if not shutil.which(tool):
            if os.environ.get("CI"):
                pytest.fail(f"CI has no {tool}: .ci/install-arm-tools")
            pytest.skip(f"no {tool}: .ci/install-arm-tools")
    options = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={ARM_COMPILER}"]
    return build_native(tmp_path_factory.mktemp("arm"), "-DPATCHCAPTION_ACCURACY=ON", *options)


@pytest.mark.slow
@pytest.mark.parametrize("cpu", ARM_VARIANTS)
def test_arm_takes_the_variants_that_its_processor_has_and_all_are_exact(cpu: str, arm_build: Path) -> None:
    emulator = [EMULATOR, "-L", ARM_LIBRARIES, "-cpu", cpu]
    found = differences(*emulator, arm_build / "patchcaption_accuracy")
    assert list(found) == ARM_VARIANTS[cpu]
    assert max(found.values()) < MAX_DIFFERENCE


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variants of x86-64")
def test_every_variant_of_this_processor_is_exact(tmp_path: Path) -> None:
    """AVX-VNNI too: a processor that has AVX512-VNNI instead runs the same code in that encoding."""
    flags = cpu_flags()
    is_encoded = "avx_vnni" not in flags and {"avx512_vnni", "avx512vl"} <= flags
    folder = build_native(
        tmp_path, "-DPATCHCAPTION_ACCURACY=ON", f"-DPATCHCAPTION_EVEX_VNNI={'ON' if is_encoded else 'OFF'}"
    )
    found = differences(folder / "patchcaption_accuracy")
    assert ("avxvnni" in found) == (is_encoded or "avx_vnni" in flags)
    assert ("avx512vnni" in found) == ("avx512_vnni" in flags)
    assert "baseline" in found
    assert max(found.values()) < MAX_DIFFERENCE
