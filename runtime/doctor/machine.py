"""Findings about the machine: processor, GPU, Jetson, and the packages that bring backends."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from runtime.doctor.finding import Finding
from runtime.errors import BackendError
from runtime.memory import native_kernels as native
from runtime.system.installation import NATIVE_FIX, describe_installation
from runtime.system.machine import command_output, cpu_name, package_version, power_mode, usable_cores

_JETSON_RELEASE = Path("/etc/nv_tegra_release")


def on_machine() -> Iterator[Finding]:
    """Yield a finding for each part that a backend may need, there or not."""
    yield Finding("cpu", "pass", f"{cpu_name()}, {usable_cores()} cores, Python {platform.python_version()}")
    yield Finding("patchcaption", "pass", describe_installation())
    yield _native_kernels()
    yield Finding("torch", "pass", f"{torch.__version__}, {torch.get_num_threads()} threads")
    yield _gpu()
    yield _onnxruntime_wheels()
    for package in ("openvino", "tensorrt"):
        version = package_version(package)
        yield Finding(package, "pass" if version else "unavailable", version or f"pip install {package}")
    yield _jetson()


def _native_kernels() -> Finding:
    try:
        library = native.library()
    except BackendError as error:
        return Finding("native kernels", "fail", str(error), NATIVE_FIX)
    if library is None:
        detail = f"torch serves, several times slower on large banks; {NATIVE_FIX}"
        return Finding("native kernels", "unavailable", detail)
    return Finding("native kernels", "pass", ", ".join(library.variants))


def _gpu() -> Finding:
    driver = command_output("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        detail = (
            f"{driver or torch.cuda.get_device_name()}, capability {major}.{minor}, torch's CUDA {torch.version.cuda}"
        )
        return Finding("gpu", "pass", detail)
    if driver is None:
        return Finding("gpu", "unavailable", "no nvidia-smi, and torch finds no CUDA device")
    torch_cuda = torch.version.cuda or "no CUDA"
    return Finding(
        "gpu",
        "fail",
        f"{driver}, but torch is built for {torch_cuda}",
        "install a torch that is built for the driver's CUDA",
    )


def _onnxruntime_wheels() -> Finding:
    found = {name: version for name in ("onnxruntime", "onnxruntime-gpu") if (version := package_version(name))}
    versions = ", ".join(f"{name} {version}" for name, version in found.items())
    if len(found) == 2:
        fix = "pip uninstall onnxruntime onnxruntime-gpu, then install the one you want"
        return Finding("onnxruntime", "fail", f"{versions}: both install one module, and one has broken the other", fix)
    if not found:
        return Finding("onnxruntime", "unavailable", "pip install 'patchcaption[cpu]' or [gpu]; plans need neither")
    return Finding("onnxruntime", "pass", versions)


def _jetson() -> Finding:
    try:
        release = _JETSON_RELEASE.read_text(encoding="utf-8").splitlines()[0].lstrip("# ")
    except (OSError, IndexError):
        return Finding("jetson", "unavailable", f"no {_JETSON_RELEASE}")
    return Finding("jetson", "pass", f"{release}; {power_mode() or 'power mode unknown'}")
