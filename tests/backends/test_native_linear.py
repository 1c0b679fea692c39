"""Linear layers of the native kernels, against float64."""

from __future__ import annotations

import ctypes
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.native_linear import LinearLayer, NativeLinear, Norm, native_linear
from runtime.errors import BackendError
from runtime.system.native_library import native_library
from tests.backends.native import needs_kernels, or_skip
from tests.backends.native_steps.definition import apply

ROWS = [1, 15, 16, 17, 33, 256, 257, 700]
"""Less than a tile, one more than a tile and than a block, and several blocks of several threads."""
WIDTHS = [(64, 1), (128, 40), (192, 64), (1024, 33)]
"""K and N: one output, parts of a panel, whole panels, and one more than a panel."""
MAX_ERROR, MAX_BFLOAT16_ERROR = 1.1e-4, 5e-3
"""Of max(1, |y|): GELU's polynomial, and the rounding of a bfloat16 result."""
INVALID_ARGUMENT = 1  # of enum patchcaption_status


@pytest.fixture
def linear() -> NativeLinear:
    return or_skip(native_linear(threads=2))


def made_up(inputs: int, outputs: int, has_norm: bool = False, has_gelu: bool = False, seed: int = 0) -> LinearLayer:
    generator = np.random.default_rng(seed)
    weights, biases = generator.normal(size=(2, inputs)).astype(np.float32)
    norm = Norm(weights, biases, 1e-5) if has_norm else None
    return LinearLayer(
        generator.integers(-128, 128, (inputs, outputs), np.int8),
        generator.uniform(0.5, 1.5, outputs).astype(np.float32) * 0.0004 / inputs**0.5,
        generator.normal(size=outputs).astype(np.float32),
        0.03125,
        norm,
        has_gelu,
    )


def by_definition(layer: LinearLayer, inputs: Tensor) -> Tensor:
    """Return a layer's outputs in float64. Inputs are rounded in float32, as a tie would else fall to either side."""
    outputs = apply(layer, inputs)
    return F.gelu(outputs) if layer.has_gelu else outputs


def run(linear: NativeLinear, layers: list[LinearLayer], inputs: Tensor, residual: Tensor | None = None) -> Tensor:
    outputs = torch.full((len(inputs), layers[-1].weights.shape[1]), torch.nan, dtype=inputs.dtype)
    number_format = {torch.float32: "f32", torch.bfloat16: "bf16"}[inputs.dtype]
    held = [linear.hold(layer) for layer in layers]
    added = 0 if residual is None else residual.data_ptr()
    linear.run(held, inputs.data_ptr(), added, len(inputs), number_format, outputs.data_ptr())
    return outputs


def largest_error(found: Tensor, expected: Tensor) -> float:
    return float(((found.double() - expected).abs() / expected.abs().clamp(min=1)).max())


@needs_kernels
@pytest.mark.parametrize("has_gelu", [False, True])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inputs", "outputs"), WIDTHS)
def test_a_layer_is_its_definition(linear: NativeLinear, rows: int, inputs: int, outputs: int, has_gelu: bool) -> None:
    layer = made_up(inputs, outputs, has_gelu=has_gelu)
    generator = torch.Generator().manual_seed(rows)
    values, residual = (
        torch.randn(rows, inputs, generator=generator) * 2,
        torch.randn(rows, outputs, generator=generator),
    )
    expected = by_definition(layer, values)
    assert largest_error(run(linear, [layer], values), expected) < MAX_ERROR
    assert largest_error(run(linear, [layer], values, residual), expected + residual.double()) < MAX_ERROR


@needs_kernels
@pytest.mark.parametrize("rows", [3, 300])
def test_bfloat16_is_read_and_written(linear: NativeLinear, rows: int) -> None:
    layer, generator = made_up(128, 72, has_gelu=True), torch.Generator().manual_seed(0)
    values, residual = (torch.randn(rows, width, generator=generator).bfloat16() for width in (128, 72))
    expected = by_definition(layer, values) + residual.double()
    assert largest_error(run(linear, [layer], values, residual), expected) < MAX_BFLOAT16_ERROR


@needs_kernels
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("outputs", [1600, 1601, 1616])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_large_outputs_go_where_small_ones_do(
    linear: NativeLinear, dtype: torch.dtype, outputs: int, has_gelu: bool
) -> None:
    """Above 2 MiB they are written past the caches, if they are whole lines and begin with one."""
    layer = made_up(64, outputs, has_gelu=has_gelu)
    values = torch.randn(700, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = torch.cat([run(linear, [layer], part) for part in values.split(100)])
    assert expected.nbytes > 2**21
    assert torch.equal(run(linear, [layer], values), expected)
    shifted = torch.full((expected.numel() + 2,), torch.nan, dtype=dtype)
    number_format = "bf16" if dtype == torch.bfloat16 else "f32"
    place = shifted.data_ptr() + shifted.element_size()
    linear.run([linear.hold(layer)], values.data_ptr(), 0, len(values), number_format, place)
    assert torch.equal(shifted[1:-1].view_as(expected), expected)
    assert shifted[[0, -1]].isnan().all()


@needs_kernels
@pytest.mark.parametrize("rows", [1, 40, 600])
def test_inputs_are_normalized_first(linear: NativeLinear, rows: int) -> None:
    layer = made_up(192, 50, has_norm=True)
    values = torch.randn(rows, 192, generator=torch.Generator().manual_seed(0)) * 3 + 5
    difference = run(linear, [layer], values).double() - by_definition(layer, values)
    # A norm that is rounded otherwise may move a value to the next step.
    step = float((np.abs(layer.weights.astype(np.float32)) * layer.scales).max())
    assert difference.abs().max() < 3 * step
    assert (difference.abs() > MAX_ERROR).float().mean() < 0.01


@needs_kernels
@pytest.mark.parametrize("rows", [2, 100, 500])
@pytest.mark.parametrize("has_gelu", [False, True])
def test_a_second_layer_takes_the_outputs_of_the_first(linear: NativeLinear, rows: int, has_gelu: bool) -> None:
    first, second = made_up(64, 128, has_gelu=has_gelu), made_up(128, 40, seed=1)
    values = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    between = run(linear, [first], values)
    # To rounding: what falls between two steps may be one step off.
    assert largest_error(run(linear, [first, second], values, values[:, :40].contiguous()),
                         by_definition(second, between) + values[:, :40].double()) < 0.02  # fmt: skip


@needs_kernels
@pytest.mark.parametrize("rows", [5, 300])
def test_any_number_of_threads_gives_the_same(linear: NativeLinear, rows: int) -> None:
    layers = [made_up(128, 192, has_norm=True, has_gelu=True), made_up(192, 128, seed=1)]
    values = torch.randn(rows, 128, generator=torch.Generator().manual_seed(0))
    expected = run(linear, layers, values, values)
    for threads in (1, 3, 64, 0):
        other = native_linear(threads)
        assert other is not None
        assert torch.equal(run(other, layers, values, values), expected)


@needs_kernels
@pytest.mark.parametrize(
    "layer",
    [
        made_up(63, 8),
        replace(made_up(64, 8), input_scale=0.0),
        replace(made_up(64, 8), norm=Norm(np.ones(64, np.float32), np.ones(64, np.float32), -1.0)),
    ],
)
def test_layers_that_make_no_sense_are_refused(linear: NativeLinear, layer: LinearLayer) -> None:
    with pytest.raises(BackendError, match="native kernels: invalid argument"):
        linear.hold(layer)


@needs_kernels
def test_the_c_interface_refuses_what_makes_no_sense(linear: NativeLinear) -> None:
    library = native_library()
    assert library is not None
    layer, normed, other = (linear.hold(made_up(64, 64, has_norm)) for has_norm in (False, True, False))
    narrow = linear.hold(made_up(128, 8))
    memory = torch.zeros(1, 128)
    place = memory.data_ptr()

    def run(
        layers: list[ctypes.c_void_p | None], inputs: int | None, rows: int, storage: int, outputs: int | None
    ) -> int:
        handles = (ctypes.c_void_p * len(layers))(*layers)
        return int(library.patchcaption_linear_run(handles, len(layers), inputs, None, rows, storage, 1, outputs))

    assert run([layer.handle], place, 1, 0, place) == 0
    assert run([layer.handle, other.handle], place, 1, 0, place) == 0
    for arguments in (
        ([None], place, 1, 0, place),
        ([layer.handle, None], place, 1, 0, place),
        ([layer.handle, normed.handle], place, 1, 0, place),
        ([layer.handle, narrow.handle], place, 1, 0, place),
        ([layer.handle] * 3, place, 1, 0, place),
        ([], place, 1, 0, place),
        ([layer.handle], None, 1, 0, place),
        ([layer.handle], place, 0, 0, place),
        ([layer.handle], place, 1, 1, place),
        ([layer.handle], place, 1, 0, None),
    ):
        assert run(*arguments) == INVALID_ARGUMENT
    library.patchcaption_linear_free(None)


@needs_kernels
def test_a_layer_s_memory_is_freed_with_it(linear: NativeLinear, monkeypatch: pytest.MonkeyPatch) -> None:
    library = native_library()
    freed = []
    monkeypatch.setattr(library, "patchcaption_linear_free", lambda handle: freed.append(handle.value))
    held = linear.hold(made_up(64, 8))
    handle = held.handle.value
    del held
    gc.collect()
    assert freed == [handle]


def test_there_are_none_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.system.native_library.native_library", lambda: None)
    assert native_linear(1) is None
