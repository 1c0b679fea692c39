"""Inputs and outputs of ONNX Runtime's sessions, in torch's terms."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from runtime.bundle.contract import DeclaredTensor

DTYPES = {
    "tensor(float)": (torch.float32, 1),
    "tensor(float16)": (torch.float16, 10),
    "tensor(bfloat16)": (torch.bfloat16, 16),
    "tensor(uint8)": (torch.uint8, 2),
    "tensor(int8)": (torch.int8, 3),
    "tensor(int32)": (torch.int32, 6),
    "tensor(int64)": (torch.int64, 7),
    "tensor(bool)": (torch.bool, 9),
}
"""Torch's dtype and the number that ONNX has for it, by ONNX Runtime's names."""


def declared_tensors(nodes: Iterable[Any]) -> list[DeclaredTensor]:
    """Return what `get_inputs` or `get_outputs` of a session declare."""
    return [
        DeclaredTensor(
            node.name,
            DTYPES.get(node.type, (None, 0))[0],
            tuple(size if isinstance(size, int) else None for size in node.shape),
        )
        for node in nodes
    ]
