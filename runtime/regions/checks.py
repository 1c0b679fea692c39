"""Checks of the values that regions are made from."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence

import numpy as np

from runtime.errors import RegionError


def number(owner: str, value: object) -> float:
    """Return the value, any library's number, as a finite float."""
    try:
        converted = float(value)  # type: ignore[arg-type]  # what cannot be one raises
    except (TypeError, ValueError, RuntimeError):  # a RuntimeError of torch's complex numbers
        raise RegionError(f"{owner}: expected a number, got {_shown(value)}") from None
    except OverflowError:  # a Python integer beyond every float
        raise RegionError(f"{owner}: expected a finite number, got an integer beyond 1e308") from None
    if not math.isfinite(converted):
        raise RegionError(f"{owner}: expected a finite number, got {converted}")
    return converted


def _shown(value: object) -> str:
    """Return a short text of one line for a message."""
    is_shown = isinstance(value, (str, int, float, list, tuple, dict)) or value is None
    text = reprlib.repr(value) if is_shown else type(value).__name__  # a list may be long, deep, or in itself
    return text if len(text) <= 80 and "\n" not in text else type(value).__name__


def whole_number(owner: str, value: object) -> int:
    """Return the value as a whole number from 0 on."""
    converted = number(owner, value)
    if converted < 0 or converted != int(converted):
        raise RegionError(f"{owner}: expected a whole number from 0 on, got {value!r}")
    return int(converted)


def whole_or_negative(owner: str, value: object) -> int:
    """Return the value as a whole number; trackers and data sets number some things from -1 on."""
    converted = number(owner, value)
    if converted != int(converted):
        raise RegionError(f"{owner}: expected a whole number, got {converted}")
    return int(value) if isinstance(value, int) else int(converted)


def point(owner: str, value: Sequence[float] | Mapping[str, float]) -> tuple[float, float]:
    """Return a point (x, y); it may be given as {"x": ..., "y": ...}, as in Localized Narratives."""
    if isinstance(value, Mapping):
        value = [value[name] for name in ("x", "y") if name in value]
    if not isinstance(value, (Sequence, np.ndarray)):
        raise RegionError(f"{owner}: expected points of 2 numbers (x, y), got {_shown(value)}")
    if len(value) != 2:
        raise RegionError(f"{owner}: expected points of 2 numbers (x, y), got {len(value)}")
    return number(f"{owner} x", value[0]), number(f"{owner} y", value[1])


def one_of(owner: str, name: str, value: object, choices: Sequence[str]) -> None:
    """Refuse a word that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        listed = " or ".join(f'"{choice}"' for choice in choices)
        raise RegionError(f"{owner}: expected {name} {listed}, got {_shown(value)}")


def variance(owner: str, value: object) -> float:
    """Return the variance of a Gaussian, which is at least 0."""
    converted = number(f"{owner} variance", value)
    if converted < 0:
        raise RegionError(f"{owner}: expected a variance of at least 0, got {converted}")
    return converted
