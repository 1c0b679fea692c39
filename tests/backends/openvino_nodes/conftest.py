"""The kernels' linear layers, computed by torch, for processors that they have none for."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

import pytest
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.native_linear import LinearLayer, NativeLayer, NativeLinear, native_linear
from tests.backends.native import DTYPES, or_skip, tensor_at
from tests.backends.native_steps.definition import apply


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
        values = tensor_at(inputs, DTYPES[number_format], (rows, described[0].weights.shape[0])).float()
        for layer in described:
            values = _computed(layer, values)
        if residual:
            values = values + tensor_at(residual, DTYPES[number_format], values.shape).float()
        tensor_at(outputs, DTYPES[number_format], values.shape).copy_(values)


def _described(layer: NativeLayer) -> LinearLayer:
    return cast(LinearLayer, cast(SimpleNamespace, layer).layer)


def _computed(layer: LinearLayer, values: Tensor) -> Tensor:
    outputs = apply(layer, values).float()
    return F.gelu(outputs) if layer.has_gelu else outputs


@pytest.fixture(params=["kernels", "torch"])
def linear(request: pytest.FixtureRequest) -> NativeLinear:
    if request.param == "torch":
        return cast(NativeLinear, TorchLinear())
    return or_skip(native_linear(threads=2))
