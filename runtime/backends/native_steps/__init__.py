"""Decoders' steps with weights in 8 bits, which the native kernels compute where they are faster than runtimes.

Their graphs are read with OpenVINO. To be imported once `import_openvino` has.
"""

from __future__ import annotations

from typing import Any

from runtime.backends.native_gpt2 import native_gpt2
from runtime.backends.native_steps.engine import NativeStepEngine
from runtime.backends.native_steps.graph import read_step
from runtime.bundle import EngineFiles

__all__ = ["NativeStepEngine", "native_step"]


def native_step(model: Any, files: EngineFiles, threads: int) -> NativeStepEngine | None:
    """Return the engine of a step; None where a graph is something else, or the kernels have none for this processor.

    Args:
        model: the graph, as OpenVINO reads it.
        threads: the most that a run uses.

    Raises:
        BackendError: there is a native library that cannot be used.
    """
    gpt2 = native_gpt2(threads)
    graph = None if gpt2 is None else read_step(model)
    return None if gpt2 is None or graph is None else NativeStepEngine(graph, files, gpt2)
