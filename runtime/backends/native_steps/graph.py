"""A decoder's step, read from its graph, where the native kernels can compute all of it.

Shapes: R rows, D vector width, E decoder width, H heads, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from runtime.backends.native_linear import Floats, LinearLayer
from runtime.backends.native_steps.blocks import BlockLayers, StepBlock, blocks_of
from runtime.backends.native_steps.next_token import StepOutputs, result_of
from runtime.backends.openvino_nodes.products import WeightProduct, norm_of, weight_products
from runtime.backends.openvino_nodes.reading import Pattern, constant, counts_up, is_made_by, lead_back, size
from runtime.bundle.graph_io import (
    ATTENTION_MASK,
    INPUT_IDS,
    POSITION,
    POSITION_IDS,
    VECTORS,
    past_names,
    present_names,
)

Node: TypeAlias = Any


@dataclass(frozen=True)
class StepGraph:
    """What a step computes.

    Attributes:
        embeddings: of words (V, E).
        positions: of positions (P, E).
        projection: (D, E), of the vectors that position 0 takes; None for a decoder with a prompt.
        heads: H.
        vocabulary: (E, V), from the last norm on.
    """

    embeddings: Floats
    positions: Floats
    projection: LinearLayer | None
    blocks: tuple[BlockLayers, ...]
    heads: int
    vocabulary: LinearLayer
    next_token: StepOutputs


@dataclass(frozen=True)
class _FirstStates:
    """How the states before the blocks are made; ``embeddings`` is the port of those of words."""

    embeddings: Any
    positions: Floats
    projection: LinearLayer | None


def read_step(model: Any) -> StepGraph | None:
    """Return the step that a graph is; None if the native kernels cannot compute it."""
    products = weight_products(model)
    blocks = blocks_of(model, products)
    results = {name: result.input_value(0) for result in model.get_results() for name in result.input_value(0).names}
    if not blocks or not _has_cache(results, blocks):
        return None
    first = _first_states(blocks[0].inputs, products)
    vocabulary = [product for product in products if (norm_of(product.source) or [None])[0] == blocks[-1].outputs]
    if first is None or len(vocabulary) != 1 or not _attends_to_past(blocks[0], first):
        return None
    next_token, normed = result_of(results, vocabulary[0], first.embeddings), norm_of(vocabulary[0].source)
    embeddings, heads = constant(first.embeddings), size(blocks[0].attention.past_keys, 1)
    if next_token is None or normed is None or embeddings is None or heads is None:
        return None
    layer = replace(vocabulary[0].layer, norm=normed[1])
    if embeddings.shape != layer.weights.shape[::-1] or embeddings.dtype != np.float32:
        return None
    layers = tuple(block.layers for block in blocks)
    return StepGraph(embeddings, first.positions, first.projection, layers, heads, layer, next_token)


def _has_cache(results: dict[str, Any], blocks: list[StepBlock]) -> bool:
    """Return whether the blocks read and make the entries of the cache, in order."""
    attentions = [block.attention for block in blocks]
    past = [entry for one in attentions for entry in (one.past_keys, one.past_values)]
    present = [entry for one in attentions for entry in (one.keys, one.values)]
    reads = all(_is_parameter(entry, name) for entry, name in zip(past, past_names(len(blocks)), strict=True))
    made = zip(present, present_names(len(blocks)), strict=True)
    return reads and all(results.get(name) == entry for entry, name in made)


def _first_states(states: Any, products: Sequence[WeightProduct]) -> _FirstStates | None:
    """Return how the states before the blocks are made: of words or a vector, and of positions."""
    added = states.get_node()
    if added.get_type_name() != "Add":
        return None
    words, position = (added.input_value(place) for place in (0, 1))
    projection = None
    position_input = POSITION_IDS
    if words.get_node().get_type_name() == "Select":
        chosen, position_input = words.get_node(), POSITION
        projection = _projection(chosen, products)
        words = chosen.input_value(2)
        if projection is None:
            return None
    embeddings, positions = _gathered(words, INPUT_IDS), _gathered(position, position_input)
    array = None if positions is None else constant(positions)
    if embeddings is None or array is None or array.dtype != np.float32:
        return None
    return _FirstStates(embeddings, array, projection)


def _projection(select: Node, products: Sequence[WeightProduct]) -> LinearLayer | None:
    """Return the projection of vectors that a node selects at position 0."""
    is_first, projected = select.input_value(0).get_node(), select.input_value(1)
    found = [product for product in products if product.result == projected]
    if is_first.get_type_name() != "Equal" or not _is_parameter(is_first.input_value(0), POSITION):
        return None
    zero = constant(is_first.input_value(1))
    if zero is None or zero.size != 1 or zero.ravel()[0] != 0 or len(found) != 1:
        return None
    product = found[0]
    if product.layer.input_scale > 0 or not _is_parameter(product.source, VECTORS):
        return None
    return product.layer


def _gathered(value: Any, places: str) -> Any | None:
    """Return the port of the matrix whose rows an input names; None if a value is something else."""
    node = value.get_node()
    if node.get_type_name() != "Gather" or not _is_parameter(node.input_value(1), places):
        return None
    axis, matrix = constant(node.input_value(2)), node.input_value(0)
    is_of_rows = axis is not None and axis.ravel().tolist() == [0] and len(list(matrix.get_partial_shape())) == 2
    return matrix if is_of_rows else None


def _attends_to_past(block: StepBlock, first: _FirstStates) -> bool:
    """Return whether a mask is that of all positions before one's own, or of an input but for its last entry."""
    mask, positions = block.attention.is_attended, len(first.positions)
    if first.projection is not None:
        is_before: Pattern = ("Less", counts_up, lambda value: _is_parameter(value, POSITION))
        return is_made_by(mask, is_before) and size(mask, 0) == positions
    chain = list(lead_back(mask, ("Unsqueeze", "Slice")))
    if len(chain) != 2 or not _is_parameter(chain[1].input_value(0), ATTENTION_MASK):
        return False
    start, axes = constant(chain[1].input_value(1)), constant(chain[1].input_value(4))
    takes_first = start is not None and start.tolist() == [0] and axes is not None and axes.tolist() == [1]
    return bool(takes_first) and size(chain[1].output(0), 1) == size(block.attention.past_keys, 2) == positions


def _is_parameter(value: Any, name: str) -> bool:
    return value.get_node().get_type_name() == "Parameter" and name in value.names
