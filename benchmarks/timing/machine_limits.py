"""The machine of a run, and the best rates that it reaches."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.timing.report import Limits, Machine
from runtime.system.machine import board_name, cpu_name, package_version, power_mode, usable_cores

_VERSIONS_OF = ("patchcaption", "torch", "numpy", "pillow", "tokenizers", "onnxruntime", "onnxruntime-gpu", "openvino")

_COPIED_BYTES = {"cpu": 2**28, "cuda": 2**30}
"""Bytes copied, by device type: far more than a cache holds."""
_SIDE = {"cpu": 2048, "cuda": 8192}
"""Side of the multiplied matrices, by device type: 17 GFLOP or 1.1 TFLOP, bound by arithmetic and not by the launch."""
_SECONDS = 1.5
"""Time for the tries of each rate: a machine that does other work shows its best only now and then."""
_MIN_TRIES = 5


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work; a CPU always has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def describe_machine() -> Machine:
    """Return the machine that this process runs on, and the versions of what it runs."""
    versions = {name: version for name in _VERSIONS_OF if (version := package_version(name))}
    return Machine(
        cpu=cpu_name(),
        board=board_name(),
        cores=os.cpu_count() or 1,
        usable_cores=usable_cores(),
        torch_threads=torch.get_num_threads(),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        power_mode=power_mode(),
        load_average=os.getloadavg()[0],
        versions={"python": platform.python_version()} | versions,
    )


def machine_line() -> str:
    """Return the machine and the versions as one line of a list."""
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    return f"- {machine.usable_cores} cores, {machine.cpu}; {versions}"


def calls_a_second(call: Callable[[], object], seconds: float) -> float:
    """Call again and again for so long, and once before; return how many calls there were a second."""
    call()
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        call()
        done += 1
    return done / (time.perf_counter() - start)


def measure_limits(
    device: torch.device, copied_bytes: int | None = None, side: int | None = None, seconds: float = _SECONDS
) -> Limits:
    """Return the best rates of a large copy, a large sum and large matrix products, each tried for ``seconds``."""

    def best_s(call: Callable[[], object]) -> float:
        return _best_s(call, device, seconds)

    copied_bytes, side = copied_bytes or _COPIED_BYTES[device.type], side or _SIDE[device.type]
    source = torch.ones(copied_bytes // 4, device=device)
    target = torch.zeros_like(source)
    copy_s = best_s(partial(target.copy_, source))
    read_s = best_s(source.sum)
    del source, target
    product_s = {}
    for dtype in (torch.float32, torch.bfloat16):
        left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
        product_s[dtype] = best_s(partial(torch.matmul, left, right))
    gflop = 2 * side**3 / 1e9
    return Limits(
        copy_gb_per_s=2 * copied_bytes / copy_s / 1e9,
        read_gb_per_s=copied_bytes / read_s / 1e9,
        fp32_gflop_per_s=gflop / product_s[torch.float32],
        bf16_gflop_per_s=gflop / product_s[torch.bfloat16],
    )


def _best_s(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    taken_s: list[float] = []
    while len(taken_s) < _MIN_TRIES or sum(taken_s) < seconds:
        synchronize(device)
        start = time.perf_counter()
        call()
        synchronize(device)
        taken_s.append(time.perf_counter() - start)
    return min(taken_s)
