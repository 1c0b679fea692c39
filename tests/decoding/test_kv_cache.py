"""The KV cache: both ways of storing a step's entries, and rows that leave and change places."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from runtime.bundle import DecoderConfig
from runtime.bundle.graph_io import decoder_step, past_names, present_names
from runtime.decoding.kv_cache import KvCache

ROWS, STEPS = 5, 4
DEVICE = torch.device("cpu")
CONFIG = DecoderConfig(
    kind="decap",
    text_space="tests",
    embed_dim=6,
    num_layers=2,
    num_heads=2,
    head_dim=3,
    max_new_tokens=STEPS,
    vocab_size=9,
    eos_token_ids=(8,),
)


def step_outputs(step: int, rows: int = ROWS) -> dict[str, Tensor]:
    """Return a step's entries, (R, H, 1, d) each, among another output."""
    generator = torch.Generator().manual_seed(step)
    entries = {name: torch.randn(rows, 2, 1, 3, generator=generator) for name in present_names(CONFIG.num_layers)}
    return {"next_token_ids": torch.zeros(rows, dtype=torch.int64), **entries}


def assert_equal(one: KvCache, other: KvCache) -> None:
    torch.testing.assert_close(one.inputs(), other.inputs(), rtol=0, atol=0)


def test_inputs_are_those_of_the_decoders_graph() -> None:
    inputs = KvCache(CONFIG, ROWS, DEVICE).inputs()
    assert list(inputs) == [name for name in decoder_step(CONFIG.num_layers).input_names if name in inputs]
    assert list(inputs) == past_names(CONFIG.num_layers)
    assert {tuple(past.shape) for past in inputs.values()} == {(ROWS, 2, STEPS, 3)}
    assert all(past.is_contiguous() and not past.any() for past in inputs.values())


def test_appending_and_writing_at_a_position_give_the_same() -> None:
    appended, written = KvCache(CONFIG, ROWS, DEVICE), KvCache(CONFIG, ROWS, DEVICE)
    for step in range(STEPS):
        outputs = step_outputs(step)
        appended.append(outputs)
        written.write(outputs, torch.tensor([step]))
        assert_equal(appended, written)
    for past, present in zip(past_names(CONFIG.num_layers), present_names(CONFIG.num_layers), strict=True):
        expected = torch.cat([step_outputs(step)[present] for step in range(STEPS)], dim=2)
        torch.testing.assert_close(appended.inputs()[past], expected, rtol=0, atol=0)


def test_nothing_but_the_position_is_written() -> None:
    cache = KvCache(CONFIG, ROWS, DEVICE)
    cache.append(step_outputs(0))
    for past in cache.inputs().values():
        assert past[:, :, 0].all()
        assert not past[:, :, 1:].any()


@pytest.mark.parametrize("rows", [[0, 1, 2], [4, 2, 0], [3], [1, 1, 4, 0], [], [4, 3, 2, 1, 0]])
def test_rows_leave_repeat_and_change_places_in_the_same_memory(rows: list[int]) -> None:
    cache = KvCache(CONFIG, ROWS, DEVICE)
    cache.append(step_outputs(0))
    cache.append(step_outputs(1))
    before = {name: past.clone() for name, past in cache.inputs().items()}
    addresses = [past.data_ptr() for past in cache.inputs().values()]
    cache.select_rows(torch.tensor(rows, dtype=torch.int64))
    for name, past in cache.inputs().items():
        torch.testing.assert_close(past[:, :, :2], before[name][rows, :, :2], rtol=0, atol=0)
    cache.append(step_outputs(2, len(rows)))
    for past, present in zip(cache.inputs().values(), present_names(CONFIG.num_layers), strict=True):
        torch.testing.assert_close(past[:, :, 2:3], step_outputs(2, len(rows))[present], rtol=0, atol=0)
    if rows:
        assert [past.data_ptr() for past in cache.inputs().values()] == addresses


def test_more_rows_may_be_selected_than_are_in_use_up_to_those_it_was_made_with() -> None:
    """Beam search begins with one beam a region and goes on with several."""
    cache = KvCache(CONFIG, ROWS, DEVICE)
    cache.select_rows(torch.arange(2))
    cache.append(step_outputs(0, 2))
    cache.select_rows(torch.tensor([1, 1, 0, 0, 1]))
    for past, present in zip(cache.inputs().values(), present_names(CONFIG.num_layers), strict=True):
        expected = step_outputs(0, 2)[present][[1, 1, 0, 0, 1], :, 0]
        torch.testing.assert_close(past[:, :, 0], expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp32", torch.float32), ("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_it_has_the_precision_of_the_graph(precision: str, dtype: torch.dtype) -> None:
    cache = KvCache(CONFIG.model_copy(update={"cache_precision": precision}), ROWS, DEVICE)
    buffers = cache.present_buffers()
    assert list(buffers) == present_names(CONFIG.num_layers)
    assert {tuple(buffer.shape) for buffer in buffers.values()} == {(ROWS, 2, 1, 3)}
    assert {tensor.dtype for tensor in (*cache.inputs().values(), *buffers.values())} == {dtype}
