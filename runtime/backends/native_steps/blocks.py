"""The blocks of a GPT-2's step over a cache, read from a graph that has their weights in 8 bits.

Shapes: R rows, E width, H heads, d = E / H, P positions of the cache.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

from runtime.backends.native_gpt2 import HEAD_WIDTH_MULTIPLE
from runtime.backends.native_linear import LinearLayer
from runtime.backends.openvino_nodes.products import WeightProduct, norm_of, residual_after
from runtime.backends.openvino_nodes.reading import (
    NamedValues,
    Pattern,
    constant,
    is_last_axis_of,
    is_list,
    is_made_by,
    size,
    users,
)

_MASKED = -1e3
"""Logits of at most this much vanish in a softmax."""
_SCALE_TOLERANCE = 1e-5


@dataclass(frozen=True)
class StepAttention:
    """The attention of a step in a graph.

    Attributes:
        packed: the port of queries, keys and values in one tensor (R, 3 * E).
        keys, values: the ports of the step's own (R, H, 1, d).
        past_keys, past_values: (R, H, P, d).
        is_attended: (P,) or (R, 1, 1, P) bool.
        attended: the port of what is attended to (R, E).
    """

    packed: Any
    keys: Any
    values: Any
    past_keys: Any
    past_values: Any
    is_attended: Any
    attended: Any


class BlockLayers(NamedTuple):
    """The layers of a block: those of inputs begin with a norm, and a GELU (its tanh form) follows the MLP's."""

    attention_inputs: LinearLayer
    attention_outputs: LinearLayer
    mlp_inputs: LinearLayer
    mlp_outputs: LinearLayer


@dataclass(frozen=True)
class StepBlock:
    """A block in a graph: ports of its inputs and outputs (R, E)."""

    inputs: Any
    attention: StepAttention
    layers: BlockLayers
    outputs: Any


def blocks_of(model: Any, products: Sequence[WeightProduct]) -> list[StepBlock]:
    """Return the blocks of a step, of which each reads what the one before it computes; none if others lie between."""
    attentions = [attention for product in products if (attention := _attention(product.source)) is not None]
    blocks = [block for attention in attentions if (block := _block(attention, products)) is not None]
    softmaxes = sum(node.get_type_name() == "Softmax" for node in model.get_ordered_ops())
    follow_each_other = all(one.outputs == other.inputs for one, other in pairwise(blocks))
    one_mask = all(block.attention.is_attended == blocks[0].attention.is_attended for block in blocks)
    return blocks if len(blocks) == softmaxes and follow_each_other and one_mask else []


def _block(attention: StepAttention, products: Sequence[WeightProduct]) -> StepBlock | None:
    """Return the block that an attention is part of."""
    first = _one(product for product in products if product.result == attention.packed)
    second = _one(product for product in products if product.source == attention.attended)
    normed = None if first is None else norm_of(first.source)
    if first is None or second is None or normed is None:
        return None
    inputs, norm = normed
    between = _sum(inputs, second)
    mlp = None if between is None else _mlp(between, products)
    if mlp is None or second.layer.input_scale > 0:
        return None
    layers = BlockLayers(replace(first.layer, norm=norm), second.layer, *mlp.layers)
    return StepBlock(inputs, attention, layers, mlp.outputs)


class _MlpOfBlock(NamedTuple):
    layers: tuple[LinearLayer, LinearLayer]
    outputs: Any


def _mlp(inputs: Any, products: Sequence[WeightProduct]) -> _MlpOfBlock | None:
    """Return the norm, two layers and sum that follow the states (R, E) between attention and MLP."""
    for product in products:
        normed = norm_of(product.source)
        if normed is None or normed[0] != inputs:
            continue
        following = users(product.result)
        if len(following) != 1 or following[0].get_type_name() != "Gelu":
            return None
        if following[0].get_attributes()["approximation_mode"] != "TANH":
            return None
        second = _one(other for other in products if other.source == following[0].output(0))
        outputs = None if second is None else _sum(inputs, second)
        if second is None or outputs is None or second.layer.input_scale > 0:
            return None
        return _MlpOfBlock((replace(product.layer, norm=normed[1]), second.layer), outputs)
    return None


def _attention(attended: Any) -> StepAttention | None:
    """Return the attention of a step that makes a value (R, E): see `export.models.gpt2`, without joined caches."""
    found = NamedValues()
    scaled: Pattern = ("Multiply", _third(0, found), found.named("scale"))
    past_logits = _product_of(scaled, ("Transpose", found.named("past keys"), is_list([0, 1, 3, 2])))
    own_logit: Pattern = ("ReduceSum", ("Multiply", scaled, _third(1, found)), is_last_axis_of(4))
    weights = _softmax_of(("Concat", ("Select", found.named("mask"), past_logits, _vanishes), own_logit))
    of_past = _product_of(_part_of(weights, 0), found.named("past values"))
    of_own: Pattern = ("Multiply", _part_of(weights, -1), _third(2, found))
    if not is_made_by(attended, ("Reshape", ("Add", of_past, of_own))) or not _has_scale(found):
        return None
    past_keys, past_values = found["past keys"], found["past values"]
    if past_keys.get_partial_shape() != past_values.get_partial_shape() or not _is_mask(found["mask"], past_keys):
        return None
    keys, values = found["third 1"], found["third 2"]
    return StepAttention(found["packed"], keys, values, past_keys, past_values, found["mask"], attended)


def _third(number: int, found: NamedValues) -> Pattern:
    """Return the pattern of queries, keys or values (R, H, 1, d), which are taken from one tensor (R, 3 * E)."""
    in_heads: Pattern = ("Reshape", found.named("packed"))

    def holds(value: Any) -> bool:
        if not is_made_by(value, ("Squeeze", ("Slice", in_heads, is_list([number])), is_list([1]))):
            return False
        heads = value.get_node().input_value(0).get_node().input_value(0)
        form = [size(heads, axis) for axis in range(1, 5)]
        is_third = size(value.get_node().input_value(0), 1) == 1 and len(list(found["packed"].get_partial_shape())) == 2
        return is_third and form == [3, size(value, 1), 1, size(value, 3)] and found.named(f"third {number}")(value)

    return holds


def _product_of(first: Pattern, second: Pattern) -> Pattern:
    """Return the pattern of a product of matrices as they are."""

    def holds(value: Any) -> bool:
        attributes = value.get_node().get_attributes()
        return is_made_by(value, ("MatMul", first, second)) and not (
            attributes["transpose_a"] or attributes["transpose_b"]
        )

    return holds


def _softmax_of(logits: Pattern) -> Pattern:
    def holds(value: Any) -> bool:
        return is_made_by(value, ("Softmax", logits)) and value.get_node().get_attributes()["axis"] in (-1, 3)

    return holds


def _part_of(weights: Pattern, start: int) -> Pattern:
    """Return the pattern of the last of four axes, without its last place (from 0 on) or that alone (from -1)."""

    def holds(value: Any) -> bool:
        if not is_made_by(value, ("Slice", weights, is_list([start]))):
            return False
        whole, axes = size(value.get_node().input_value(0), 3), constant(value.get_node().input_value(4))
        if whole is None or axes is None or axes.tolist() not in ([3], [-1]):
            return False
        return size(value, 3) == (whole - 1 if start == 0 else 1)

    return holds


def _vanishes(value: Any) -> bool:
    """Return whether logits are so small that they have no weight."""
    logits = constant(value)
    return logits is not None and bool(logits.max() <= _MASKED)


def _has_scale(found: NamedValues) -> bool:
    """Return whether queries are scaled by 1 / sqrt(d)."""
    scale, head_width = constant(found["scale"]), size(found["past keys"], 3)
    if scale is None or scale.size != 1 or head_width is None or head_width % HEAD_WIDTH_MULTIPLE:
        return False
    return abs(float(scale.ravel()[0]) * math.sqrt(head_width) - 1) < _SCALE_TOLERANCE


def _is_mask(value: Any, past: Any) -> bool:
    """Return whether a value is a mask of a cache (R, H, P, d): of one row (P,), or of each (R, 1, 1, P)."""
    positions = size(past, 2)
    if positions is None:
        return False
    shape = list(value.get_partial_shape())
    if value.get_element_type().get_type_name() != "boolean" or size(value, -1) != positions:
        return False
    return len(shape) == 1 or [size(value, axis) for axis in range(1, len(shape))] == [1, 1, positions]


def _sum(states: Any, product: WeightProduct) -> Any | None:
    """Return the port of the sum of states and a product, which is read for nothing else."""
    residual, result = residual_after(product.result)
    return result if residual == states else None


def _one(found: Iterable[Any]) -> Any | None:
    """Return the only one of some; None if there are none or several."""
    all_found = list(found)
    return all_found[0] if len(all_found) == 1 else None
