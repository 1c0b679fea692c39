"""Rounds the products of weights to 8 bits, int8 or fp8, by scales that are fixed beforehand.

Each product's activations and weight pass a pair of QuantizeLinear and DequantizeLinear, which OpenVINO, ONNX Runtime
and TensorRT make a product in 8 bits of (TensorRT's "explicit quantization"; symmetric, for it has no zero points).
Attention's products of activations with each other are not rounded, nor is the patch embedding, whose input is pixels,
nor what makes an output.

For GPUs the graph is in float16, and so are the weights in it. For CPUs it is in float32, and weights are stored in 8
bits, but not those of queries, keys and values: TensorRT, which should read the same graph, would multiply these in
float32 (10.x and RTX 1.7). The file is half as large as in float32.

Shapes: K inputs, N outputs of a product.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir

from export.graphs.constants import ConstantPool, drop_unused_constants
from export.graphs.half_precision import becomes_output
from runtime.backends.base import Device

EightBits: TypeAlias = Literal["int8", "fp8"]


@dataclass(frozen=True)
class EightBitFormat:
    """An 8-bit number format.

    Attributes:
        largest: its largest value.
        by_channel: whether each output of a weight has a scale of its own. The values of fp8 lie as close to zero as
            they need to be; those of int8 are evenly spaced, so a large weight would spoil all others.
    """

    dtype: npt.DTypeLike
    largest: float
    by_channel: bool


FORMATS: dict[EightBits, EightBitFormat] = {
    "int8": EightBitFormat(np.int8, 127.0, by_channel=True),
    "fp8": EightBitFormat(ml_dtypes.float8_e4m3fn, 448.0, by_channel=False),
}

_DTYPES: dict[Device, onnx_ir.DataType] = {"cpu": onnx_ir.DataType.FLOAT, "cuda": onnx_ir.DataType.FLOAT16}
"""Of the graphs for a device, and so of the products that are rounded."""
CPU_WEIGHT_STEPS = 63.0
"""The largest step of a weight for CPUs, of 127: on x86 CPUs without VNNI ONNX Runtime adds two products of 8 bits in
16, which 255 * 127 twice overflows silently."""
_MIN_LARGEST = 1e-3
"""Stands for the largest of weights that are all zero, or nearly: float16 could not hold the scale of a smaller one."""


def quantize_products(model: onnx_ir.Model, to: EightBits, ranges: Mapping[str, float], device: Device) -> None:
    """Round the products of weights to 8 bits, in place.

    Args:
        model: for a GPU in float16, for a CPU in float32.
        ranges: the largest absolute values of its activations, by tensor (`export.graphs.value_ranges`).

    Raises:
        KeyError: of an activation there is none.
    """
    weight_steps = FORMATS[to].largest if device == "cuda" else CPU_WEIGHT_STEPS
    quantizer = ProductQuantizer(model.graph, FORMATS[to], weight_steps)
    for node in list(_weight_products(model.graph, _DTYPES[device])):
        activations, weight = node.inputs[0], node.inputs[1]
        quantizer.quantize_activations(node, ranges[_measured_name(activations, ranges)])
        quantizer.quantize_weight(node, weight, stores_steps=device == "cpu" and not _makes_queries(node))
    drop_unused_constants(model.graph)


def _weight_products(graph: onnx_ir.Graph, dtype: onnx_ir.DataType) -> Iterator[onnx_ir.Node]:
    """Yield each MatMul of a dtype whose second input is a weight (K, N), but none that makes an output."""
    for node in graph:
        is_product = node.op_type == "MatMul" and node.inputs[1].is_initializer() and node.inputs[0].dtype == dtype
        if is_product and not becomes_output(node.outputs[0]):
            yield node


def _measured_name(value: onnx_ir.Value, ranges: Mapping[str, float]) -> str:
    """Return the name under which a tensor was measured: that of what the casts before it convert."""
    producer = value.producer()
    while value.name not in ranges and producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
        producer = value.producer()
    return str(value.name)


@dataclass(frozen=True)
class _Scale:
    """The scale of a tensor, () or of each column (N,), and its zero point."""

    scales: onnx_ir.Value
    zero_point: onnx_ir.Value

    @property
    def attributes(self) -> dict[str, onnx_ir.Attr]:
        """What nodes that use it have."""
        return {"axis": onnx_ir.AttrInt64("axis", 1)} if len(self.scales.shape) else {}


@dataclass
class ProductQuantizer:
    """Inserts the pairs, for activations that several products read only once.

    Attributes:
        weight_steps: what the largest value of a weight is rounded to.
    """

    graph: onnx_ir.Graph
    format: EightBitFormat
    weight_steps: float
    _rounded: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._constants = ConstantPool(self.graph)

    def quantize_activations(self, product: onnx_ir.Node, largest: float) -> None:
        activations = product.inputs[0]
        if activations not in self._rounded:
            scale = self._scale(activations, np.array(largest), self.format.largest)
            self._rounded[activations] = self._quantize(product, activations, scale)
        product.replace_input_with(0, self._rounded[activations])

    def quantize_weight(self, product: onnx_ir.Node, weight: onnx_ir.Value, stores_steps: bool) -> None:
        """Round a weight.

        Args:
            stores_steps: whether it is stored in 8 bits, which leaves the second half of its pair.
        """
        values = weight.const_value.numpy()
        largest = np.abs(values).max(axis=0) if self.format.by_channel else np.abs(values).max()
        scale = self._scale(weight, largest, self.weight_steps)
        if not stores_steps:
            product.replace_input_with(1, self._quantize(product, weight, scale))
            return
        steps = np.rint(values / scale.scales.const_value.numpy()).astype(self.format.dtype)
        stored = self._constants.add(f"{weight.name}.steps", steps)
        product.replace_input_with(1, self._dequantize(product, stored, weight, scale))

    def _quantize(self, before: onnx_ir.Node, value: onnx_ir.Value, scale: _Scale) -> onnx_ir.Value:
        """Return a tensor rounded to steps and converted back."""
        node = onnx_ir.Node("", "QuantizeLinear", [value, scale.scales, scale.zero_point], scale.attributes)
        steps = node.outputs[0]
        steps.type, steps.shape = scale.zero_point.type, value.shape
        self.graph.insert_before(before, node)
        return self._dequantize(before, steps, value, scale)

    def _dequantize(
        self, before: onnx_ir.Node, steps: onnx_ir.Value, like: onnx_ir.Value, scale: _Scale
    ) -> onnx_ir.Value:
        """Return steps as a tensor like the one that they were made of."""
        node = onnx_ir.Node("", "DequantizeLinear", [steps, scale.scales, scale.zero_point], scale.attributes)
        node.outputs[0].type, node.outputs[0].shape = like.type, like.shape
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _scale(self, value: onnx_ir.Value, largest: npt.NDArray[np.floating], steps: float) -> _Scale:
        """Return the scale by which a tensor's largest value, or that of each column (N,), is so many steps."""
        scales = (np.maximum(largest, _MIN_LARGEST) / steps).astype(value.dtype.numpy())
        zeros = np.zeros(scales.shape, self.format.dtype)
        return _Scale(
            self._constants.add(f"{value.name}.scale", scales), self._constants.add(f"{value.name}.zero", zeros)
        )


def _makes_queries(product: onnx_ir.Node) -> bool:
    """Return whether a product, with its bias if it has one, makes what is reshaped into queries, keys and values."""
    users = list(product.successors())
    if [user.op_type for user in users] == ["Add"]:
        users = list(users[0].successors())
    return [user.op_type for user in users][:1] == ["Reshape"]
