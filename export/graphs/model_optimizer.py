"""FP8 and INT8 for TensorRT: NVIDIA's Model Optimizer quantizes a graph, in an environment of its own.

It requires other versions of onnx and onnxruntime than this project, so it is run as a program and never imported.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from runtime.errors import PatchcaptionError

QuantizedPrecision: TypeAlias = Literal["fp8", "int8"]

_INSTALL = (
    "python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]', then --modelopt modelopt/bin/python"
)


class ModelOptError(PatchcaptionError):
    """Model Optimizer is not installed, or could not quantize a graph."""


@dataclass(frozen=True)
class ModelOpt:
    """The Model Optimizer of a Python environment.

    Attributes:
        python: the environment's interpreter.
    """

    python: Path

    def check(self) -> None:
        """Raise ModelOptError if it is not installed there."""
        self._run("-c", "import modelopt.onnx.quantization")

    def quantize(self, graph: Path, to: QuantizedPrecision, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Quantize the weights and activations of a float32 graph's products, in place; all else becomes float16.

        Attention's own products stay float16, which TensorRT fuses; in INT8 they would change tokens most, and are not
        fused beyond 512 tokens. LayerNorm stays float32.

        Args:
            feeds: inputs that show how large activations become, by name.

        Raises:
            ModelOptError: it failed; with the last line of its errors.
        """
        with tempfile.TemporaryDirectory(dir=graph.parent) as name:
            folder = Path(name)
            np.savez(folder / "calibration.npz", **feeds)  # type: ignore[arg-type]
            quantized = folder / "quantized.onnx"
            self._run(
                *("-m", "modelopt.onnx.quantization"),
                *("--onnx_path", str(graph.absolute()), "--output_path", str(quantized.absolute())),
                *("--quantize_mode", to, "--high_precision_dtype", "fp16", "--use_external_data_format"),
                *("--calibration_data_path", str((folder / "calibration.npz").absolute()), "--calibration_eps", "cpu"),
                *("--disable_mha_qdq", "--op_types_to_exclude_fp16", "LayerNormalization"),
            )
            model = onnx_ir.load(quantized)
            onnx_ir.external_data.load_to_model(model)
        onnx_ir.save(model, graph, external_data=f"{graph.name}.data")

    def _run(self, *arguments: str) -> None:
        try:
            done = subprocess.run([self.python, *arguments], capture_output=True, text=True, check=False)
        except OSError as error:
            raise ModelOptError(f"--modelopt {self.python}: cannot be started ({error.strerror}): {_INSTALL}") from None
        if done.returncode != 0:
            raise ModelOptError(f"--modelopt {self.python}: {_last_line(done.stderr)}; to install it: {_INSTALL}")


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it failed without an error message"
