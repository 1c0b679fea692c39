"""The kernels' linear layers, computed by torch, for processors that they have none for."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.native_linear import LinearLayer, NativeLayer, NativeLinear, native_linear
from tests.backends.native import or_skip

_TYPES: dict[str, tuple[torch.dtype, Any]] = {
    "f32": (torch.float32, ctypes.c_float),
    "bf16": (torch.bfloat16, ctypes.c_uint16),
}


class TorchLinear:
    """`NativeLinear`, but for the speed."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []  # the rows and layers of each
        self._held = 0

    def hold(self, layer: LinearLayer) -> NativeLayer:
        self._held += 1
        handle = ctypes.c_void_p(self._held)
        return cast(NativeLayer, SimpleNamespace(output_width=layer.weights.shape[1], handle=handle, layer=layer))

    def run(
        self, layers: Sequence[NativeLayer], inputs: int, residual: int, rows: int, number_format: str, outputs: int
    ) -> None:
        self.runs.append((rows, len(layers)))
        described = [_described(layer) for layer in layers]
        values = tensor_at(inputs, number_format, (rows, described[0].weights.shape[0])).float()
        for layer in described:
            values = _computed(layer, values)
        if residual:
            values = values + tensor_at(residual, number_format, values.shape).float()
        tensor_at(outputs, number_format, values.shape).copy_(values)


def _described(layer: NativeLayer) -> LinearLayer:
    return cast(LinearLayer, cast(SimpleNamespace, layer).layer)


def tensor_at(address: int, number_format: str, sizes: Sequence[int], strides: Sequence[int] | None = None) -> Tensor:
    """Return the tensor of some memory, contiguous if no strides are given."""
    dtype, element = _TYPES[number_format]
    strides = torch.empty(tuple(sizes), device="meta").stride() if strides is None else strides
    count = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
    memory = (element * count).from_address(address)
    return torch.frombuffer(memory, dtype=dtype).as_strided(tuple(sizes), tuple(strides))


def _computed(layer: LinearLayer, values: Tensor) -> Tensor:
    if layer.norm is not None:
        weights, biases = torch.tensor(layer.norm.weights), torch.tensor(layer.norm.biases)
        values = F.layer_norm(values, values.shape[-1:], weights, biases, layer.norm.epsilon)
    steps = torch.round(values / layer.input_scale).clamp(-128, 127)
    outputs = (steps @ torch.tensor(layer.weights).float()) * torch.tensor(layer.scales) + torch.tensor(layer.biases)
    return F.gelu(outputs) if layer.has_gelu else outputs


@pytest.fixture(params=["kernels", "torch"])
def linear(request: pytest.FixtureRequest) -> NativeLinear:
    if request.param == "torch":
        return cast(NativeLinear, TorchLinear())
    return or_skip(native_linear(threads=2))
