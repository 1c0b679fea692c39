"""Products with weights in 8 bits, as graphs write them.

Shapes: K inputs and N outputs of a product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.backends.native_linear import INPUT_MULTIPLE, LinearLayer, Norm
from runtime.backends.openvino_nodes.reading import constant, lead_back, size, users

_LEAST, _MOST = -128, 127
_TOLERANCE = 1e-4
"""How far, in parts of a step, the bounds of rounding may be from whole steps."""


@dataclass(frozen=True)
class WeightProduct:
    """A product in a graph whose weight is in 8 bits.

    Attributes:
        source: the port of the activations (..., K), before they are rounded if they are.
        result: the port of the product, with its bias if it has one (..., N).
        layer: its input scale is 0 where activations are not rounded, and the weight has one for each block of inputs.
    """

    source: Any
    result: Any
    layer: LinearLayer


@dataclass(frozen=True)
class QuantizedProduct(WeightProduct):
    """One whose activations are rounded too, by one scale.

    Attributes:
        rounding: the node that rounds them.
    """

    rounding: Any


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
    return QuantizedProduct(rounding.input_value(0), result, layer, rounding)


def weight_products(model: Any) -> list[WeightProduct]:
    """Return the products of a graph with weights in 8 bits."""
    return [*quantized_products(model), *compressed_products(model)]


def compressed_products(model: Any) -> list[WeightProduct]:
    """Return the products of a graph with weights in blocks of 8 bits, in the order in which they are computed."""
    products = (_compressed(node) for node in model.get_ordered_ops() if node.get_type_name() == "MatMul")
    return [product for product in products if product is not None]


def _compressed(matmul: Any) -> WeightProduct | None:
    attributes = matmul.get_attributes()
    weight = _compressed_weight(matmul.input_value(1))
    if attributes["transpose_a"] or attributes["transpose_b"] or weight is None:
        return None
    steps, scales = weight
    result, biases = _biased(matmul.output(0), steps.shape[1])
    return WeightProduct(matmul.input_value(0), result, LinearLayer(steps, scales, biases, input_scale=0.0))


def _compressed_weight(value: Any) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]] | None:
    """Return the steps (K, N) of a constant that was rounded in blocks of inputs, and their scales (blocks, N)."""
    in_blocks = list(lead_back(value, ("Reshape", "Multiply", "Convert", "Reshape")))
    in_one_block = list(lead_back(value, ("Multiply", "Convert")))
    if len(in_blocks) == 4:
        multiply, source = in_blocks[1], in_blocks[3]
        form = [size(source.output(0), axis) for axis in range(3)]
    elif len(in_one_block) == 2:
        multiply, source = in_one_block
        form = [1, *(size(source.output(0), axis) for axis in range(2))]
    else:
        return None
    steps, scales = constant(source.input_value(0)), constant(_before_unsqueeze(multiply.input_value(1)))
    if steps is None or scales is None or steps.dtype != np.int8 or steps.ndim != 2 or scales.dtype != np.float32:
        return None
    inputs, outputs = steps.shape
    count = inputs // INPUT_MULTIPLE
    fits = form == [count, INPUT_MULTIPLE, outputs] and scales.shape == (count, outputs)
    return (steps, scales) if fits and size(value, 0) == inputs == count * INPUT_MULTIPLE else None


def _before_unsqueeze(value: Any) -> Any:
    node = value.get_node()
    return node.input_value(0) if node.get_type_name() == "Unsqueeze" else value


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


def norm_of(value: Any) -> tuple[Any, Norm] | None:
    """Return the inputs of the LayerNorm that makes a value, and the norm; None if none does."""
    shifted = value.get_node()
    biases = vector_operand(shifted, "Add")
    if biases is None:
        return None
    scaled = shifted.input_value(0).get_node()
    weights, normalized = vector_operand(scaled, "Multiply"), scaled.input_value(0).get_node()
    if weights is None or normalized.get_type_name() != "MVN":
        return None
    attributes, axes = normalized.get_attributes(), _axes(normalized.input_value(1))
    rank = normalized.get_input_partial_shape(0).rank.get_length()
    of_rows = axes in ([-1], [rank - 1]) and attributes["normalize_variance"]
    if not of_rows or attributes["eps_mode"] != "INSIDE_SQRT":
        return None
    return normalized.input_value(0), Norm(weights.ravel(), biases.ravel(), attributes["eps"])


def residual_after(result: Any) -> tuple[Any | None, Any]:
    """Return what alone a result is added to, of the same shape, and the sum; without it None and the result."""
    following = users(result)
    if len(following) != 1 or following[0].get_type_name() != "Add":
        return None, result
    operands = [following[0].input_value(place) for place in (0, 1)]
    if not any(operand == result for operand in operands):
        return None, result
    other = operands[1] if operands[0] == result else operands[0]
    if constant(other) is not None or other.get_partial_shape() != result.get_partial_shape():
        return None, result
    return other, following[0].output(0)


def vector_operand(node: Any, op_type: str) -> Any | None:
    """Return the constant vector of the last axis that is a node's second operand; None if that is not so."""
    if node.get_type_name() != op_type:
        return None
    operand, width = constant(node.input_value(1)), size(node.output(0), -1)
    is_vector = operand is not None and operand.ndim > 0 and operand.size == operand.shape[-1] == width
    return operand if is_vector else None


def _axes(value: Any) -> list[int] | None:
    """Return axes that a graph names, or counts from constants."""
    node = value.get_node()
    if node.get_type_name() != "Range":
        axes = constant(value)
        return None if axes is None else np.ravel(axes).tolist()
    bounds = [int(bound) for place in range(3) if (bound := constant(node.input_value(place))) is not None]
    return list(range(*bounds)) if len(bounds) == 3 else None
