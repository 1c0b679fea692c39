"""The machine: its processor, the packages and programs installed on it, and the power mode of a Jetson."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib import metadata
from pathlib import Path

_CPUINFO = Path("/proc/cpuinfo")
_BOARD = Path("/proc/device-tree/model")
_COMMAND_TIMEOUT_S = 10

_ARM_CORES = {
    ("0x41", "0xd03"): "Cortex-A53",
    ("0x41", "0xd05"): "Cortex-A55",
    ("0x41", "0xd07"): "Cortex-A57",
    ("0x41", "0xd08"): "Cortex-A72",
    ("0x41", "0xd0b"): "Cortex-A76",
    ("0x41", "0xd0c"): "Neoverse-N1",
    ("0x41", "0xd0e"): "Cortex-A76AE",
    ("0x41", "0xd40"): "Neoverse-V1",
    ("0x41", "0xd41"): "Cortex-A78",
    ("0x41", "0xd42"): "Cortex-A78AE",
    ("0x41", "0xd49"): "Neoverse-N2",
    ("0x41", "0xd4f"): "Neoverse-V2",
    ("0x41", "0xd83"): "Neoverse-V3AE",
    ("0x4e", "0x004"): "Carmel",
}
"""Names of cores by the codes of implementer and part, as lscpu gives them: those of edge boards and Arm servers."""

_BFLOAT16_FLAGS = ("amx_bf16", "avx512_bf16", "bf16")
_INT8_FLAGS = frozenset({"avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm"})


def cpu_name() -> str:
    """Return the processor's model: "Intel(R) Xeon(R) ...", or on Arm its kinds of cores, "Cortex-A55 + Cortex-A76"."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.machine()
    names = [_core_name(block) for block in text.split("\n\n")]
    return " + ".join(dict.fromkeys(name for name in names if name)) or platform.machine()


def _core_name(block: str) -> str | None:
    """Return the name of one core from its paragraph of /proc/cpuinfo, None where that names none."""
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in block.splitlines())}
    implementer, part = fields.get("CPU implementer"), fields.get("CPU part")
    if implementer is None or part is None:
        return fields.get("model name")
    # First, for some Arm kernels, Jetson's too, have a "model name" that is the same for all: ARMv8 Processor rev 1.
    return _ARM_CORES.get((implementer, part), f"{platform.machine()} implementer {implementer} part {part}")


def board_name() -> str | None:
    """Return the model of a board that has a device tree, such as a Jetson or a Raspberry Pi; None elsewhere."""
    try:
        return _BOARD.read_text(encoding="utf-8", errors="replace").strip("\0\n ") or None
    except OSError:
        return None


def usable_cores() -> int:
    """Return the number of cores that this process may use; a container may leave fewer than there are."""
    if hasattr(os, "sched_getaffinity"):  # on Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def multiplies_bfloat16() -> bool:
    """Return whether the processor has instructions that multiply bfloat16: AMX, AVX-512 BF16, or Arm's BF16."""
    return not _processor_flags().isdisjoint(_BFLOAT16_FLAGS)


def multiplies_int8() -> bool:
    """Return whether the processor has instructions that multiply 8 bits: VNNI, AMX, or Arm's dot products and I8MM."""
    return not _processor_flags().isdisjoint(_INT8_FLAGS)


def _processor_flags() -> set[str]:
    """Return the names that Linux has for what the processor can do; none where it does not tell."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return set()
    lines = (line.partition(":") for line in text.splitlines())
    return {flag for name, _, value in lines if name.strip() in ("flags", "Features") for flag in value.split()}


def threads_per_caller(callers: int, threads: int | None) -> int | None:
    """Return the threads that each of ``callers`` concurrent callers gets of an engine's ``threads``.

    None stands for all usable cores, in ``threads`` as in the result.
    """
    return threads if callers == 1 else max(1, (threads or usable_cores()) // callers)


def package_version(name: str) -> str | None:
    """Return the version of an installed package, None where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def power_mode() -> str | None:
    """Return the power mode of a Jetson as nvpmodel prints it, on one line; None elsewhere."""
    printed = command_output("nvpmodel", "-q")
    return " ".join(printed.split()) if printed else None


def command_output(*command: str) -> str | None:
    """Return what a program prints; None where it is not installed, fails or prints nothing."""
    if shutil.which(command[0]) is None:
        return None
    try:
        finished = subprocess.run(command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return finished.stdout.strip() or None
