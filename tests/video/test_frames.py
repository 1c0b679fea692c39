"""Frames: a number and a time that every file can hold."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from PIL import Image

from runtime import Frame, OptionError

IMAGE = Image.new("RGB", (8, 8))


@pytest.mark.parametrize("number", [0, 7, np.int64(7), 2**40])
@pytest.mark.parametrize("seconds", [None, 0, 0.5, -0.1, np.float32(0.5), Fraction(1, 3)])
def test_numbers_of_any_library_are_taken(number: Any, seconds: Any) -> None:
    frame = Frame(number, seconds, IMAGE)
    assert (frame.number, frame.seconds) == (number, seconds)


@pytest.mark.parametrize("number", [-1, 0.5, float("nan"), float("inf"), "7", None, True, [1], np.arange(2), 1j])
def test_a_number_that_is_none_is_refused(number: Any) -> None:
    with pytest.raises(OptionError, match="Frame number: expected a whole number from 0 on, got "):
        Frame(number, 0.0, IMAGE)


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf"), 1e300, 10**400, "1", False, [1.0], 1j])
def test_a_time_that_is_none_is_refused(seconds: Any) -> None:
    with pytest.raises(OptionError, match="Frame seconds: expected a number from -1000000000000.0 to 1"):
        Frame(0, seconds, IMAGE)
