"""Products of activations and weights that are both rounded to 8 bits, as graphs write them.

Shapes: K inputs and N outputs of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.native_linear import INPUT_MULTIPLE, LinearLayer
from runtime.backends.openvino_nodes.reading import constant, users

_LEAST, _MOST = -128, 127
_TOLERANCE = 1e-4
"""How far, in parts of a step, the bounds of rounding may be from whole steps."""


@dataclass(frozen=True)
class QuantizedProduct:
    """A product in a graph.

    Attributes:
        source: the port of the activations before they are rounded (..., K).
        rounding: the node that rounds them.
        result: the port of the product, with its bias if it has one (..., N).
    """

    source: Any
    rounding: Any
    result: Any
    layer: LinearLayer


def quantized_products(model: Any) -> list[QuantizedProduct]:
    """Return the products of a graph whose activations have one scale, in the order in which they are computed."""
    products = (_product(node) for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    return [product for product in products if product is not None]


def _product(matmul: Any) -> QuantizedProduct | None:
    attributes = matmul.get_attributes()
    if attributes["transpose_a"] or attributes["transpose_b"]:
        return None
    rounded, weight = _rounded(matmul.input_value(0)), _rounded_weight(matmul.input_value(1))
    if rounded is None or weight is None or weight[0].shape[0] % INPUT_MULTIPLE:
        return None
    rounding, input_scale = rounded
    steps, scales = weight
    result, biases = _biased(matmul.output(0), steps.shape[1])
    layer = LinearLayer(steps, scales * input_scale, biases, float(input_scale))
    return QuantizedProduct(rounding.input_value(0), rounding, result, layer)


def _rounded(value: Any) -> tuple[Any, np.float32] | None:
    """Return the node that rounds what a value is of, and its scale; None if none does so by one scale around 0."""
    steps, scale = _steps(value)
    if steps is None or scale is None or scale.size != 1 or steps.get_type_name() != "Convert":
        return None
    rounding = steps.input_value(0).get_node()
    return (rounding, scale.ravel()[0]) if _rounds_to_steps(rounding, scale) else None


def _rounded_weight(value: Any) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
    """Return the steps (K, N) of a constant that was rounded, and their scales (N,); None if it was not."""
    steps, scale = _steps(value)
    if steps is None or scale is None:
        return None
    array = steps.data if steps.get_type_name() == "Constant" else _rounded_constant(steps, scale)
    if array is None or array.dtype != np.int8 or array.ndim != 2 or scale.size not in (1, array.shape[1]):
        return None
    return array, np.broadcast_to(scale.ravel().astype(np.float32), array.shape[1:])


def _rounded_constant(convert: Any, scale: Any) -> npt.NDArray[np.int8] | None:
    """Return the steps of a constant that the graph rounds itself."""
    if convert.get_type_name() != "Convert":
        return None
    rounding = convert.input_value(0).get_node()
    values = constant(rounding.input_value(0)) if _rounds_to_steps(rounding, scale) else None
    if values is None or values.ndim != 2:
        return None
    return np.clip(np.rint(values / scale.reshape(1, -1)), _LEAST, _MOST).astype(np.int8)


def _steps(value: Any) -> tuple[Any | None, Any | None]:
    """Return the node of 8 bits that a value is (steps - 0) * scale of, and the scale; None twice if it is not."""
    multiply = value.get_node()
    if multiply.get_type_name() != "Multiply":
        return None, None
    scale, centred = _parameter(multiply.input_value(1)), multiply.input_value(0).get_node()
    if centred.get_type_name() == "Subtract":
        zero = _parameter(centred.input_value(1))
        if zero is None or np.any(zero):
            return None, None
        centred = centred.input_value(0).get_node()
    if centred.get_type_name() != "Convert" or centred.get_input_element_type(0).get_type_name() != "i8":
        return None, None
    return centred.input_value(0).get_node(), scale


def _rounds_to_steps(rounding: Any, scale: Any) -> bool:
    """Return whether a node rounds to whole steps of a scale, from -128 to 127."""
    if rounding.get_type_name() != "FakeQuantize" or rounding.get_attributes()["levels"] != _MOST - _LEAST + 1:
        return False
    bounds = [constant(rounding.input_value(index)) for index in range(1, 5)]
    if any(bound is None for bound in bounds):
        return False
    first, last, first_step, last_step = (bound.ravel() for bound in bounds if bound is not None)
    steps = scale.ravel()
    expected = ((first / steps, _LEAST), (last / steps, _MOST), (first_step, _LEAST), (last_step, _MOST))
    return all(bool(np.all(np.abs(found - step) < _TOLERANCE * abs(step))) for found, step in expected)


def _biased(product: Any, width: int) -> tuple[Any, npt.NDArray[np.float32]]:
    """Return the port of a product with its bias, and the bias (N,): zeros where there is none."""
    following = users(product)
    if len(following) == 1 and following[0].get_type_name() in ("Add", "Subtract"):
        node = following[0]
        place = 1 if node.input_value(0) == product else 0
        bias = constant(node.input_value(place))
        is_subtracted = node.get_type_name() == "Subtract"
        if bias is not None and bias.size == width and not (is_subtracted and place == 0):
            return node.output(0), bias.ravel() * np.float32(-1 if is_subtracted else 1)
    return product, np.zeros(width, np.float32)


def _parameter(value: Any) -> Any | None:
    """Return a constant, whatever shape it is given."""
    node = value.get_node()
    return constant(node.input_value(0) if node.get_type_name() == "Reshape" else value)
