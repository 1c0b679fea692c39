"""The manifest's records: the tokens that a backbone returns, and numbers that contradict each other."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from runtime.bundle import BackboneConfig, Preprocessing, ShapeRange, TokenLayout

WITH_REGISTERS = TokenLayout(global_tokens=("cls", "register", "register", "register", "register"), grid=16)
WITH_CLS = TokenLayout(global_tokens=("cls",), grid=16)
WITH_POOLED = TokenLayout(global_tokens=("pooled",), grid=16)
PATCHES_ONLY = TokenLayout(global_tokens=(), grid=16)
REGISTERS_FIRST = TokenLayout(global_tokens=("register", "register", "cls"), grid=3)


@pytest.mark.parametrize(
    ("layout", "cls_index", "registers", "num_global", "num_tokens"),
    [
        (WITH_REGISTERS, 0, (1, 2, 3, 4), 5, 261),
        (WITH_CLS, 0, (), 1, 257),
        (WITH_POOLED, 0, (), 1, 257),
        (PATCHES_ONLY, None, (), 0, 256),
        (REGISTERS_FIRST, 2, (0, 1), 3, 12),
    ],
)
def test_a_layout_says_which_token_is_what(
    layout: TokenLayout, cls_index: int | None, registers: tuple[int, ...], num_global: int, num_tokens: int
) -> None:
    assert layout.cls_index == cls_index
    assert layout.register_indices == registers
    assert layout.num_global == num_global
    assert layout.num_patches == layout.grid**2
    assert layout.num_tokens == num_tokens == num_global + layout.num_patches


@pytest.mark.parametrize("values", [{"global_tokens": ("mask",), "grid": 16}, {"global_tokens": ("cls",), "grid": 0}])
def test_a_layout_of_unknown_tokens_or_no_patches_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        TokenLayout(**values)


def test_a_grid_that_does_not_fit_the_image_is_refused() -> None:
    numbers: dict[str, Any] = {
        "family": "dinov2",
        "name": "dinov2_vits14",
        "text_space": "tests",
        "embed_dim": 384,
        "output_dim": 384,
        "depth": 12,
        "num_heads": 6,
        "patch_size": 14,
        "attention_heads": 6,
        "tokens": WITH_CLS,
        "preprocessing": Preprocessing(image_size=224, mean=(0.5, 0.5, 0.5), std=(0.2, 0.2, 0.2)),
    }
    assert BackboneConfig(**numbers).tokens.grid == 16
    with pytest.raises(ValidationError, match="expected grid . patch_size = image_size, got 16 . 16 and 224"):
        BackboneConfig(**{**numbers, "patch_size": 16})


@pytest.mark.parametrize("shapes", [((2,), (1,), (3,)), ((1,), (4,), (3,)), ((1,), (1, 2), (3,))])
def test_shapes_out_of_order_or_of_other_ranks_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    smallest, best, largest = shapes
    with pytest.raises(ValidationError):
        ShapeRange(min=smallest, opt=best, max=largest)


def test_records_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        WITH_CLS.grid = 3
