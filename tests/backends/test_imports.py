"""Executors are imported without their reports, and leave everything else as it was."""

from __future__ import annotations

import pytest

from tests.children import run_child

USE = """
import os, sys
os.environ.update(zip(sys.argv[1::2], sys.argv[2::2]))
os.environ.pop("ORT_DISABLE_TELEMETRY" if len(sys.argv) == 1 else "", None)
from concurrent.futures import ThreadPoolExecutor
from runtime.backends.imports import import_onnxruntime, import_openvino
with ThreadPoolExecutor(8) as threads:
    modules = set(threads.map(lambda _: import_openvino(), range(8)))
assert len(modules) == 1 and hasattr(modules.pop(), "Core")
assert "openvino_telemetry" not in sys.modules
import openvino_telemetry
assert import_onnxruntime() is sys.modules["onnxruntime"]
assert import_openvino() is sys.modules["openvino"]
assert sys.modules["openvino_telemetry"] is openvino_telemetry
print(os.environ["ORT_DISABLE_TELEMETRY"])
"""


@pytest.mark.parametrize(("variables", "expected"), [((), "1"), (("ORT_DISABLE_TELEMETRY", "0"), "0")])
def test_imports_are_mute_and_leave_the_rest_alone(variables: tuple[str, ...], expected: str) -> None:
    done = run_child(USE, *variables)
    assert (done.stderr, done.stdout.strip()) == ("", expected)
