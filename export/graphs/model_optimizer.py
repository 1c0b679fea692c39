"""FP8 and INT8 for TensorRT: NVIDIA's Model Optimizer puts quantization into a graph, in an environment of its own.

It asks for other versions of onnx and onnxruntime than this project has, so it is run as a program and never imported.
"""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir

from runtime.errors import PatchcaptionError

Quantized: TypeAlias = Literal["fp8", "int8"]

_INSTALL = (
    "python -m venv modelopt && modelopt/bin/pip install 'nvidia-modelopt[onnx]', then --modelopt modelopt/bin/python"
)


class ModelOptError(PatchcaptionError):
    """Model Optimizer is not there, or could not quantize a graph."""


@dataclass(frozen=True)
class ModelOpt:
    """The Model Optimizer of an environment.

    Attributes:
        python: the environment's interpreter.
    """

    python: Path

    def check(self) -> None:
        """Raises ModelOptError if it is not there."""
        self._run("-c", "import modelopt.onnx.quantization")

    def quantize(self, graph: Path, to: Quantized, feeds: Mapping[str, npt.NDArray[Any]]) -> None:
        """Quantizes the weights and activations of a float32 graph's products, in place; all else becomes float16.

        Attention's own products stay float16, which TensorRT fuses; in INT8 they would change tokens most, and are not
        fused beyond 512 tokens. LayerNorm stays float32.

        Args:
            feeds: inputs that show how large activations become.

        Raises:
            ModelOptError: with its own last words.
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
            raise ModelOptError(
                f"--modelopt {self.python}: {_last_words(done.stderr.splitlines())}; to install it: {_INSTALL}"
            )


def _last_words(lines: Sequence[str]) -> str:
    said = [line.strip() for line in lines if line.strip()]
    return said[-1] if said else "it failed without a word"
