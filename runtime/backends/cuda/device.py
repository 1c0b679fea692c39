"""The GPU that torch works on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from runtime.errors import BackendError

_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True)
class Gpu:
    """A GPU as TensorRT plans identify it."""

    name: str
    compute_capability: str

    @classmethod
    def current(cls) -> Gpu:
        """Return the GPU that torch works on.

        Raises:
            BackendError: torch finds none.
        """
        return cls.of(current_gpu())

    @classmethod
    def of(cls, device: torch.device) -> Gpu:
        """Return the identity of a device; that of a CPU, which only tests ask for, has capability 0.0."""
        if device.type != "cuda":
            return cls(device.type, "0.0")
        major, minor = torch.cuda.get_device_capability(device)
        return cls(torch.cuda.get_device_name(device), f"{major}.{minor}")


def current_gpu() -> torch.device:
    """Return the GPU that torch works on.

    Raises:
        BackendError: torch finds none.
    """
    if not torch.cuda.is_available():
        raise BackendError(
            "torch finds no CUDA device: check nvidia-smi, and that torch is a CUDA build (torch.version.cuda)"
        )
    return torch.device("cuda", torch.cuda.current_device())


def gpu_name() -> str | None:
    """Return the name of the GPU that torch works on; None where it finds none."""
    try:
        return Gpu.current().name
    except BackendError:
        return None


def driver_version() -> str:
    """Return the first line of what NVIDIA's kernel driver says of itself; "" where there is none."""
    try:
        return _DRIVER.read_text(encoding="utf-8", errors="replace").partition("\n")[0]
    except OSError:
        return ""
