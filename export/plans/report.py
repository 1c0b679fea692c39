"""What NVIDIA's builder (TensorRT for RTX), which needs no GPU, says of a plan: its kernels and its memory.

Its layer list names kernels: `_gemm_mha_v2` is one attention over many queries, `_gemv_mha_v1` over one, and
`__myl_AddCast...` one kernel of the operations in its name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.plans.builder import PlanOptions, PlanTarget, set_options
from runtime.backends.tensorrt.build import Profile, build_plan_bytes
from runtime.backends.tensorrt.rtx import DEFAULT_CAPABILITIES, open_tensorrt_rtx

if TYPE_CHECKING:
    import tensorrt

_LAYER = re.compile(r"^Name: (\S+), LayerType: \w+.*$", re.MULTILINE)
_INPUTS = re.compile(r"Inputs: \[(.*)\], Constants: \[(.*)\], Outputs: ")
_DATATYPE = re.compile(r"Datatype: (\w+)")
_ONNX_NODE = re.compile(r"\[ONNX Layer: ([^]]+)\]")
_CONVERSIONS = re.compile(r"__myl_(?:Cast|Move)+_myl")


@dataclass(frozen=True)
class PlanReport:
    """A plan as its builder describes it.

    Attributes:
        layers: the names of its kernels, for all profiles.
        eight_bit_nodes: the ONNX nodes in kernels that read activations and a weight of 8 bits.
        scratch_bytes: the most that a kernel needs beside its inputs and outputs.
        activation_bytes: for each profile.
    """

    plan_bytes: int
    layers: tuple[str, ...]
    eight_bit_nodes: frozenset[str]
    weights_bytes: int
    scratch_bytes: int
    activation_bytes: tuple[int, ...]

    @property
    def fused_attentions(self) -> int:
        """How many kernels are a whole attention."""
        return sum("_mha_" in name for name in self.layers)

    @property
    def conversions(self) -> list[str]:
        """The kernels that do nothing but convert or copy."""
        return [name for name in self.layers if _CONVERSIONS.match(name)]


def build_report(
    graph: Path, profiles: Sequence[Profile], compute_capabilities: tuple[str, ...] = DEFAULT_CAPABILITIES
) -> PlanReport:
    """Build a graph by NVIDIA's builder, as the product does.

    Raises:
        BackendError: it cannot be parsed or built.
    """
    api = open_tensorrt_rtx()
    module: Any = api.module
    lines: list[str] = []

    class Recorder(module.ILogger):  # type: ignore[misc]  # the module is known at run time only
        def __init__(self) -> None:
            module.ILogger.__init__(self)

        def log(self, severity: tensorrt.ILogger.Severity, msg: str) -> None:
            lines.append(msg)
            api.logger.log(severity, msg)  # whose errors `require` reports

    target = PlanTarget(api, None, compute_capabilities)
    recording = replace(api, logger=Recorder())
    plan = build_plan_bytes(
        recording,
        lambda parser: parser.parse_from_file(str(graph)),
        profiles,
        str(graph),
        lambda config: set_options(target, graph, config, PlanOptions()),
    )
    log = "\n".join(lines)
    layers = list(_LAYER.finditer(log))
    return PlanReport(
        plan_bytes=len(plan),
        layers=tuple(layer[1] for layer in layers),
        eight_bit_nodes=frozenset(name for layer in layers for name in _eight_bit_nodes(layer[0])),
        weights_bytes=sum(map(int, re.findall(r"Total Weights Memory: (\d+)", log))),
        scratch_bytes=max(map(int, re.findall(r"Max Scratch Memory: (\d+)", log))),
        activation_bytes=tuple(map(int, re.findall(r"Total Activation Memory: (\d+)", log))),
    )


def _eight_bit_nodes(layer: str) -> list[str]:
    """Return the ONNX nodes of a layer if its activations and weight are of 8 bits; none for all other layers.

    Beside the weight there are float32 constants, the scales.
    """
    found = _INPUTS.search(layer)
    if found is None:
        return []
    activations, constants = ({*_DATATYPE.findall(part)} for part in found.groups())
    weights = constants - {"Float"}
    return _ONNX_NODE.findall(layer) if weights and activations == weights and weights <= {"Int8", "FP8"} else []
