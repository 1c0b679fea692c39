"""Checks a mapping inside of a configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from export.checkpoint import CheckpointError

SettingsT = TypeVar("SettingsT", bound=BaseModel)


def check_settings(kind: type[SettingsT], settings: Mapping[str, Any], where: str) -> SettingsT:
    """Return settings as a model of their kind.

    Raises:
        CheckpointError: a value is not of its kind; it begins with ``where``.
    """
    try:
        return kind.model_validate(settings)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise CheckpointError(f"{where}: {name}: {first['msg']}, got {first['input']!r}") from None
