"""Rounds the products of weights in a float16 graph to 8 bits, for TensorRT: int8 or fp8, by scales fixed beforehand.

Each product's activations and weight pass a pair of QuantizeLinear and DequantizeLinear, which TensorRT makes a product
in 8 bits of ("explicit quantization" in its documents; symmetric, for it has no zero points). Weights stay float16 in
the graph: of weights that are stored in 8 bits TensorRT does not join the products with queries, keys and values.
Attention's products of activations with each other stay float16 and so are fused; the patch embedding, whose input is
pixels, stays float16 too.

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

from export.graphs.constants import ConstantPool

EightBits: TypeAlias = Literal["int8", "fp8"]


@dataclass(frozen=True)
class _Format:
    """An 8-bit number format.

    Attributes:
        largest: its largest value.
        by_channel: whether each output of a weight has a scale of its own. The values of fp8 lie as close to zero as
            they need to be; those of int8 are evenly spaced, so a large weight would spoil all others.
    """

    dtype: npt.DTypeLike
    largest: float
    by_channel: bool


_FORMATS: dict[EightBits, _Format] = {
    "int8": _Format(np.int8, 127.0, by_channel=True),
    "fp8": _Format(ml_dtypes.float8_e4m3fn, 448.0, by_channel=False),
}

_HALF = onnx_ir.DataType.FLOAT16
_MIN_LARGEST = 1e-3
"""Stands for the largest of weights that are all zero, or nearly: float16 could not hold the scale of a smaller one."""


def quantize_products(model: onnx_ir.Model, to: EightBits, ranges: Mapping[str, float]) -> None:
    """Round the products of weights to 8 bits, in place.

    Args:
        model: in float16.
        ranges: the largest absolute values of its activations, by tensor (`export.graphs.value_ranges`).

    Raises:
        KeyError: of an activation there is none.
    """
    quantizer = _Quantizer(model.graph, _FORMATS[to])
    for node in list(_weight_products(model.graph)):
        activations, weight = node.inputs[0], node.inputs[1]
        quantizer.quantize_activations(node, ranges[_measured_name(activations, ranges)])
        quantizer.quantize_weight(node, weight)


def _weight_products(graph: onnx_ir.Graph) -> Iterator[onnx_ir.Node]:
    """Yield each MatMul in float16 whose second input is a weight (K, N): what makes an output stays float32."""
    for node in graph:
        if node.op_type == "MatMul" and node.inputs[1].is_initializer() and node.inputs[0].dtype == _HALF:
            yield node


def _measured_name(value: onnx_ir.Value, ranges: Mapping[str, float]) -> str:
    """Return the name under which a tensor was measured: that of what the casts before it convert."""
    producer = value.producer()
    while value.name not in ranges and producer is not None and producer.op_type == "Cast":
        value = producer.inputs[0]
        producer = value.producer()
    return str(value.name)


@dataclass
class _Quantizer:
    """Inserts the pairs, for activations that several products read only once."""

    graph: onnx_ir.Graph
    format: _Format
    _rounded: dict[onnx_ir.Value, onnx_ir.Value] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._constants = ConstantPool(self.graph)

    def quantize_activations(self, product: onnx_ir.Node, largest: float) -> None:
        activations = product.inputs[0]
        if activations not in self._rounded:
            self._rounded[activations] = self._insert_pair(product, activations, np.array(largest))
        product.replace_input_with(0, self._rounded[activations])

    def quantize_weight(self, product: onnx_ir.Node, weight: onnx_ir.Value) -> None:
        values = np.abs(weight.const_value.numpy())
        largest = values.max(axis=0) if self.format.by_channel else values.max()
        product.replace_input_with(1, self._insert_pair(product, weight, largest))

    def _insert_pair(
        self, before: onnx_ir.Node, value: onnx_ir.Value, largest: npt.NDArray[np.floating]
    ) -> onnx_ir.Value:
        """Return a tensor rounded to 8 bits and converted back.

        Args:
            largest: its largest absolute value, or that of each column (N,).
        """
        scales = (np.maximum(largest, _MIN_LARGEST) / self.format.largest).astype(value.dtype.numpy())
        scale = self._constants.add(f"{value.name}.scale", scales)
        zero_point = self._constants.add(f"{value.name}.zero", np.zeros(scales.shape, self.format.dtype))
        attributes = {"axis": onnx_ir.AttrInt64("axis", 1)} if scales.ndim else {}
        quantize = onnx_ir.Node("", "QuantizeLinear", [value, scale, zero_point], attributes)
        dequantize = onnx_ir.Node("", "DequantizeLinear", [quantize.outputs[0], scale, zero_point], attributes)
        for output, like in ((quantize.outputs[0], zero_point), (dequantize.outputs[0], value)):
            output.type, output.shape = like.type, value.shape
        self.graph.insert_before(before, [quantize, dequantize])
        return dequantize.outputs[0]
