"""The options of `Captioner.vectors`, `describe` and `decode`; their docstrings say what each value does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias, TypedDict

Progress: TypeAlias = Callable[[int, int], None]
"""Told how many of how many are done."""

Clean: TypeAlias = Literal["orthogonal", "contrastive"]
CleanFrom: TypeAlias = Literal["cls", "attention"]
Reencode: TypeAlias = Literal["mean", "cls", "gaussian"]
Mode: TypeAlias = Literal["decode", "nearest"]
Precision: TypeAlias = Literal["fp32", "bf16"]
Score: TypeAlias = Literal["natural", "reference"]


class VectorOptions(TypedDict, total=False):
    """The options of `Captioner.vectors`."""

    clean: Clean | None
    alpha: float
    clean_from: CleanFrom
    clean_after_projection: bool
    reencode: Reencode | None


class DescribeOptions(VectorOptions, total=False):
    """The options of `Captioner.describe`."""

    mode: Mode
    score: Score
    n_best: int
    beams: int
    length_penalty: float
    progress: Progress | None
