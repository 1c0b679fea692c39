"""Imports executors without their reports of usage to their makers.

A program that has imported one itself before has made its own choice; so has a user who sets ORT_DISABLE_TELEMETRY.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

_OPENVINO_REPORTS = "openvino_telemetry"
"""The package with which OpenVINO reports; without it OpenVINO reports nothing."""

_hiding = Lock()


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, which from version 1.29 on opens its reports when it is imported.

    Raises:
        ImportError: it is not installed, or cannot be loaded here.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    import onnxruntime

    return onnxruntime


def import_openvino() -> Any:
    """Import OpenVINO, which would report each import and keep an identifier of the user in ~/intel.

    Raises:
        ImportError: it is not installed, or cannot be loaded here.
    """
    with _hidden(_OPENVINO_REPORTS):
        import openvino

    return openvino


@contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Let imports of a package fail."""
    with _hiding:
        absent = object()
        before = sys.modules.get(package, absent)
        sys.modules[package] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
        try:
            yield
        finally:
            if before is absent:
                del sys.modules[package]
            else:
                sys.modules[package] = before  # type: ignore[assignment]
