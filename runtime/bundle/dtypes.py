"""One table of the number formats that bundles are stored and computed in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

StoragePrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


@dataclass(frozen=True)
class NumberFormat:
    """One number format by the names that torch and safetensors have for it."""

    torch: torch.dtype
    safetensors: str

    @property
    def bytes(self) -> int:
        """Bytes per value."""
        return self.torch.itemsize


NUMBER_FORMATS: Mapping[StoragePrecision, NumberFormat] = {
    "fp32": NumberFormat(torch.float32, "F32"),
    "fp16": NumberFormat(torch.float16, "F16"),
    "bf16": NumberFormat(torch.bfloat16, "BF16"),
    "int8": NumberFormat(torch.int8, "I8"),
}
