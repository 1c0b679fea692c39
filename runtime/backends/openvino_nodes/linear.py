"""Products in 8 bits of many rows, with what surrounds them in a transformer.

A product takes the norm before it, the GELU, scale and residual after it, and an MLP's first product the second.

Shapes: T tokens, K inputs and N outputs of a product.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import openvino
from openvino import opset13

from runtime.backends.native_linear import LinearLayer, NativeLayer, NativeLinear, Norm
from runtime.backends.openvino_nodes.base import KernelNode, NativeNodes, address
from runtime.backends.openvino_nodes.products import (
    QuantizedProduct,
    norm_of,
    quantized_products,
    residual_after,
    vector_operand,
)
from runtime.backends.openvino_nodes.reading import size, users

MIN_TOKENS = 600
"""Of fewer OpenVINO itself is as fast or faster."""


@dataclass(frozen=True)
class _LayersInGraph:
    """Layers in a graph, their ports of inputs and residual (..., T, K or N), if any, and of the result (..., T, N)."""

    inputs: Any
    residual: Any | None
    result: Any
    layers: tuple[LinearLayer, ...]


class LinearNode(KernelNode):
    """One layer or two (..., T, N), in the native kernels. Its inputs are theirs (..., T, K), and a residual."""

    kind = "NativeLinear"

    def __init__(
        self,
        inputs: list[Any],
        layers: Sequence[NativeLayer],
        adds_inputs: bool,
        linear: NativeLinear,
        nodes: NativeNodes,
    ) -> None:
        self._layers, self._adds_inputs, self._linear = layers, adds_inputs, linear
        super().__init__(inputs, nodes, (layers, adds_inputs, linear))

    @property
    def attributes(self) -> dict[str, Any]:
        return {"layer": int(self._layers[0].handle.value or 0)}

    def output_shape(self, inputs: list[Any]) -> Any:
        width = openvino.Dimension(self._layers[-1].output_width)
        return openvino.PartialShape([*list(inputs[0])[:-1], width])

    def prepare(self, outputs: list[Any], inputs: list[Any]) -> Callable[[], None]:
        shape, number_format = inputs[0].get_shape(), inputs[0].get_element_type().get_type_name()
        residual = 0 if len(inputs) == 1 and not self._adds_inputs else address(inputs[-1])
        rows = math.prod(shape[:-1])
        read, result = address(inputs[0]), address(outputs[0])
        return lambda: self._linear.run(self._layers, read, residual, rows, number_format, result)


def use_native_linear(
    model: Any,
    linear: NativeLinear,
    nodes: NativeNodes,
    number_format: str = "bf16",
    min_tokens: int | None = None,
) -> None:
    """Leave the products in 8 bits of many rows to the native kernels, in place.

    Args:
        nodes: what keeps the new nodes.
        number_format: what their tensors become: "f32" or "bf16".
        min_tokens: of how many tokens they must be; by default `MIN_TOKENS`.
    """
    least = MIN_TOKENS if min_tokens is None else min_tokens
    replaced: list[tuple[Any, Any]] = []  # results and what stands for them, which later matches begin with
    for match in list(_matches(model, least)):
        ports = [match.inputs] if match.residual in (None, match.inputs) else [match.inputs, match.residual]
        current = [next((new for old, new in replaced if old == port), port) for port in ports]
        converted = [opset13.convert(port, number_format).output(0) for port in current]
        layers = [linear.hold(layer) for layer in match.layers]
        node = LinearNode(converted, layers, match.residual is not None, linear, nodes)
        result = opset13.convert(node.output(0), match.result.get_element_type()).output(0)
        replaced.append((match.result, result))
        match.result.replace(result)


def _matches(model: Any, min_tokens: int) -> Iterator[_LayersInGraph]:
    products = [product for product in quantized_products(model) if (size(product.source, -2) or 0) >= min_tokens]
    roundings = [product.rounding.output(0) for product in products]
    seconds = set()
    for index, product in enumerate(products):
        if index in seconds:
            continue
        inputs, norm = _norm_before(product, roundings)
        layer = replace(product.layer, norm=norm)
        result, layer = _gelu_after(product.result, layer)
        second = next(
            (other for other in range(index + 1, len(products)) if _reads_only(products[other], result)), None
        )
        layers = [layer]
        if second is not None:
            seconds.add(second)
            result = products[second].result
            layers.append(products[second].layer)
        result, layers[-1] = _scale_after(result, layers[-1])
        residual, result = residual_after(result)
        yield _LayersInGraph(inputs, residual, result, tuple(layers))


def _norm_before(product: QuantizedProduct, roundings: list[Any]) -> tuple[Any, Norm | None]:
    """Return the inputs of the norm that makes a product's activations, and the norm; without one the activations.

    A norm that others read too stays.
    """
    if any(user.output(0) not in roundings for user in users(product.source)):
        return product.source, None
    return norm_of(product.source) or (product.source, None)


def _gelu_after(result: Any, layer: LinearLayer) -> tuple[Any, LinearLayer]:
    """Take in the GELU that alone reads a result."""
    following = users(result)
    if len(following) != 1 or following[0].get_type_name() != "Gelu":
        return result, layer
    gelu = following[0]
    if gelu.get_attributes()["approximation_mode"] != "ERF":
        return result, layer
    return gelu.output(0), replace(layer, has_gelu=True)


def _reads_only(product: QuantizedProduct, value: Any) -> bool:
    """Return whether a product's activations are a value that nothing else reads, also after rounding."""
    return bool(product.source == value) and len(users(value)) == 1 and _readers_of(product.rounding) == 1


def _readers_of(rounding: Any) -> int:
    """Return how many products read what a node rounded, which passes through operators of one input."""
    value = rounding.output(0)
    while len(following := users(value)) == 1 and following[0].get_type_name() != "MatMul":
        value = following[0].output(0)
    return len(following)


def _scale_after(result: Any, layer: LinearLayer) -> tuple[Any, LinearLayer]:
    """Take in the scale of outputs that alone reads a result: LayerScale."""
    following = users(result)
    if layer.has_gelu or len(following) != 1:
        return result, layer
    factors = vector_operand(following[0], "Multiply")
    if factors is None or factors.size != layer.scales.size:
        return result, layer
    factors = factors.ravel()
    scaled = replace(layer, scales=layer.scales * factors, biases=layer.biases * factors)
    return following[0].output(0), scaled
