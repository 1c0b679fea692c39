"""Attention of the native kernels, against float64."""

from __future__ import annotations

import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.native_attention import QKV, AttentionShape, Heads, NativeAttention, native_attention
from runtime.errors import BackendError
from runtime.system.native_library import native_library
from tests.backends.native import needs_kernels, or_skip

SHAPES = [(1, 1, 1, 32), (1, 5, 2, 32), (2, 33, 3, 64), (1, 256, 1, 96), (1, 257, 2, 64), (3, 600, 2, 128)]
"""B, T, heads, head width: less than a block of queries, one more than one of keys, several, and odd heads."""
MAX_ERROR = 5e-3
"""Of the length of a result: what weights to 0.35% and, in bfloat16, the result's own rounding may cost."""
INVALID_ARGUMENT = 1  # of enum patchcaption_status


@pytest.fixture
def attention() -> NativeAttention:
    return or_skip(native_attention(threads=2))


def made_up(shape: AttentionShape, dtype: torch.dtype, size: float = 1) -> Tensor:
    """Return queries, keys and values (B, T, 3, heads, head width)."""
    sizes = (shape.images, shape.tokens, 3, shape.heads, shape.head_width)
    return (torch.randn(sizes, generator=torch.Generator().manual_seed(0)) * size).to(dtype)


def places_of(tensors: tuple[Tensor, ...]) -> QKV:
    """Return where tensors (B, heads, T, head width) are."""
    return QKV(*(Heads(tensor.data_ptr(), *tensor.stride()[:3]) for tensor in tensors))


def attend(attention: NativeAttention, tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """Return what the kernels compute of tensors (B, heads, T, head width), in the same order of axes."""
    images, heads, tokens, width = tensors[0].shape
    attended = torch.full((images, tokens, heads, width), torch.nan, dtype=tensors[0].dtype)
    number_format = {torch.float32: "f32", torch.bfloat16: "bf16"}[attended.dtype]
    shape = AttentionShape(images, tokens, heads, width)
    attention.attend(places_of(tensors), shape, scale, number_format, attended.data_ptr())
    return attended.transpose(1, 2)


def attend_by_definition(tensors: tuple[Tensor, ...], scale: float) -> Tensor:
    """Return exact attention, in float64, of the bfloat16 nearest to queries, keys and values."""
    queries, keys, values = (tensor.bfloat16().double() for tensor in tensors)
    return torch.softmax(scale * queries @ keys.transpose(2, 3), dim=-1) @ values


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["f32", "bf16"])
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_attention_is_that_of_the_definition(
    attention: NativeAttention, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    shape = AttentionShape(*sizes)
    packed = made_up(shape, dtype).permute(2, 0, 3, 1, 4).unbind()
    separate = tuple(tensor.contiguous() for tensor in packed)
    for scale in (shape.head_width**-0.5, 1.0):
        found, expected = attend(attention, packed, scale), attend_by_definition(packed, scale)
        assert relative_error(found, expected) < MAX_ERROR
        assert torch.equal(found, attend(attention, separate, scale)), "it depends on the order of the axes"


@pytest.mark.parametrize("rising", [True, False])
def test_scores_may_grow_from_block_to_block_of_keys_or_shrink(attention: NativeAttention, rising: bool) -> None:
    """By 400 in all: weights relative to the first score would be infinite, or all too small for float32."""
    queries, _, values = made_up(AttentionShape(1, 1200, 1, 32), torch.float32).permute(2, 0, 3, 1, 4).unbind()
    direction = F.normalize(queries[..., :1, :], dim=-1)
    steps = torch.linspace(0, 400, 1200) if rising else torch.linspace(400, 0, 1200)
    queries, keys = direction.expand_as(queries).contiguous(), steps[:, None] * direction
    tensors = (queries, keys, values)
    assert relative_error(attend(attention, tensors, 1.0), attend_by_definition(tensors, 1.0)) < MAX_ERROR


def test_equal_scores_give_the_mean_of_the_values_whatever_their_size(attention: NativeAttention) -> None:
    values = made_up(AttentionShape(1, 300, 1, 32), torch.float32)[:, :, 2].transpose(1, 2)
    for score in (0.0, 1e4, -1e4):
        queries, keys = torch.full_like(values, score / 32), torch.ones_like(values)
        found = attend(attention, (queries, keys, values), 1.0)
        expected = values.bfloat16().double().mean(dim=2, keepdim=True).expand_as(values)
        assert relative_error(found, expected) < MAX_ERROR


def test_nan_spreads_to_the_tokens_that_attend_to_it_and_no_further(attention: NativeAttention) -> None:
    shape = AttentionShape(2, 70, 2, 32)
    for token in (0, 69):
        tensors = made_up(shape, torch.float32).permute(2, 0, 3, 1, 4).unbind()
        for tensor in tensors:
            tensor[0, 1, token] = torch.nan
        found = attend(attention, tensors, 1.0)
        assert found[0, 1].isnan().all()
        assert found[0, 0].isfinite().all()
        assert found[1].isfinite().all()


def test_a_query_of_nan_gets_nan_and_the_others_do_not(attention: NativeAttention) -> None:
    tensors = made_up(AttentionShape(1, 70, 1, 32), torch.float32).permute(2, 0, 3, 1, 4).unbind()
    tensors[0][0, 0, 5] = torch.nan
    found = attend(attention, tensors, 1.0)[0, 0]
    assert found[5].isnan().all()
    assert found[:5].isfinite().all()
    assert found[6:].isfinite().all()


@pytest.mark.parametrize("threads", [1, 3, 64])
def test_the_number_of_threads_does_not_change_the_result(attention: NativeAttention, threads: int) -> None:
    tensors = made_up(AttentionShape(1, 300, 3, 64), torch.bfloat16).permute(2, 0, 3, 1, 4).unbind()
    other = native_attention(threads)
    assert other is not None
    assert torch.equal(attend(other, tensors, 0.125), attend(attention, tensors, 0.125))


def test_widths_that_it_does_not_take_are_an_error(attention: NativeAttention) -> None:
    tensors = made_up(AttentionShape(1, 4, 1, 48), torch.float32).permute(2, 0, 3, 1, 4).unbind()
    with pytest.raises(BackendError, match="invalid argument"):
        attend(attention, tensors, 1.0)


@needs_kernels
@pytest.mark.parametrize(
    "sizes",
    [(0, 4, 1, 32), (1, 0, 1, 32), (1, 4, -1, 32), (1, 4, 1, 0), (1, 4, 1, 2048), (2**40, 4, 1, 32), (2**62,) * 4],
)
def test_sizes_that_no_attention_has_are_refused_before_anything_is_read(sizes: tuple[int, ...]) -> None:
    status = call(sizes, storage=0)
    assert status == INVALID_ARGUMENT


@needs_kernels
def test_formats_scales_and_addresses_that_it_does_not_take_are_refused() -> None:
    sizes = (1, 4, 1, 32)
    assert call(sizes, storage=1) == INVALID_ARGUMENT
    assert call(sizes, storage=0, address=None) == INVALID_ARGUMENT
    for scale in (0.0, -1.0, torch.nan):
        assert call(sizes, storage=0, scale=scale) == INVALID_ARGUMENT


def test_a_processor_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.system.native_library.native_library", lambda: None)
    assert native_attention(1) is None


def call(sizes: tuple[int, ...], storage: int, address: int | None = 64, scale: float = 1.0) -> int:
    """Return the status of a call that must not touch its arrays."""
    library = native_library()
    assert library is not None
    NativeAttention(library, threads=1)  # declares the arguments
    heads = Heads(address, 0, 0, 0)
    return int(library.patchcaption_attend(heads, heads, heads, *sizes, scale, storage, 1, ctypes.c_void_p(64)))
