"""The choice of the likeliest words by logits in 8 bits, which are not kept.

What reads the logits becomes one node: the best words and their logits, the largest logit, and the sum of the
exponentials (`export.models.next_token`).

Shapes: R rows, V the vocabulary, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import openvino

from runtime.backends.native_linear import CANDIDATES, LinearLayer, NativeLayer, NativeLinear, WordChoice
from runtime.backends.openvino_nodes.base import NativeNode, NativeNodes, address
from runtime.backends.openvino_nodes.products import QuantizedProduct, quantized_products
from runtime.backends.openvino_nodes.reading import constant, follow, size, users


@dataclass(frozen=True)
class _ChoiceInGraph:
    """A choice in a graph: ports of states (R, K), words and logits (R, C), the largest (R, 1) and the sum (R,)."""

    states: Any
    layer: LinearLayer
    word_count: int
    words: Any
    logits: Any
    largest: Any
    total: Any


class ChoiceNode(NativeNode):
    """Words, logits, the largest and the sum, from states (R, K), in the native kernels."""

    kind = "NativeChoice"

    def __init__(
        self, inputs: list[Any], vocabulary: NativeLayer, word_count: int, linear: NativeLinear, nodes: NativeNodes
    ) -> None:
        self._vocabulary, self._word_count, self._linear = vocabulary, word_count, linear
        super().__init__(inputs, nodes, (vocabulary, word_count, linear))

    @property
    def attributes(self) -> dict[str, Any]:
        return {"vocabulary": int(self._vocabulary.handle.value or 0), "words": self._word_count}

    def validate_and_infer_types(self) -> None:
        rows = self.get_input_partial_shape(0)[0]
        integer, real = openvino.Type.i64, openvino.Type.f32
        outputs: tuple[tuple[Any, list[int]], ...] = (
            (integer, [CANDIDATES]),
            (real, [CANDIDATES]),
            (real, [1]),
            (real, []),
        )
        for index, (number_format, sizes) in enumerate(outputs):
            shape = openvino.PartialShape([rows, *(openvino.Dimension(count) for count in sizes)])
            self.set_output_type(index, number_format, shape)

    def execute(self, outputs: list[Any], inputs: list[Any]) -> None:
        chosen = WordChoice(*(address(output) for output in outputs))
        rows = inputs[0].get_shape()[0]
        self._linear.choose(self._vocabulary, address(inputs[0]), rows, self._word_count, chosen)


def use_native_choice(model: Any, linear: NativeLinear, nodes: NativeNodes) -> None:
    """Leave the choice of words to the native kernels, in place.

    Args:
        nodes: what keeps the new nodes.
    """
    for product in quantized_products(model):
        match = _match(product)
        if match is not None:
            node = ChoiceNode([match.states], linear.hold(match.layer), match.word_count, linear, nodes)
            for index, port in enumerate((match.words, match.logits, match.largest, match.total)):
                port.replace(node.output(index))


def _match(product: QuantizedProduct) -> _ChoiceInGraph | None:
    """Return the choice among a product's outputs, if that is all that they are read for."""
    readers = {user.get_type_name(): user for user in users(product.result)}
    if sorted(readers) != ["GatherElements", "ReduceMax", "Reshape", "Subtract"] or len(users(product.result)) != 4:
        return None
    maxima = follow(readers["Reshape"], ("ReduceMax",))
    exponentials = follow(readers["Subtract"], ("Exp", "ReduceSum"))
    best = follow(readers["GatherElements"], ("TopK",))
    if maxima is None or exponentials is None or best is None or not _takes_largest(best[0]):
        return None
    blocks, block_width = _blocks(maxima[0]), size(readers["Reshape"].output(0), 2)
    words = [user for user in users(best[0].output(1)) if user.get_type_name() == "GatherElements"]
    if blocks is None or block_width is None or len(words) != 1 or len(users(best[0].output(1))) != 1:
        return None
    largest = readers["ReduceMax"].output(0)
    reduced = (readers["ReduceMax"], maxima[0], exponentials[1])
    if readers["Subtract"].input_value(1) != largest or not all(_is_of_last_axis(node) for node in reduced):
        return None
    return _ChoiceInGraph(
        product.source,
        product.layer,
        blocks * block_width,
        words[0].output(0),
        best[0].output(0),
        largest,
        exponentials[1].output(0),
    )


def _takes_largest(best: Any) -> bool:
    """Return whether a node finds as many of the largest as the kernels do."""
    return best.get_attributes()["mode"] == "max" and size(best.output(0), 1) == CANDIDATES


def _is_of_last_axis(reduction: Any) -> bool:
    axes, shape = constant(reduction.input_value(1)), reduction.get_input_partial_shape(0)
    return axes is not None and axes.ravel().tolist() in ([-1], [len(list(shape)) - 1])


def _blocks(maxima: Any) -> int | None:
    """Return how many blocks of words are chosen among: all, or those that a slice leaves."""
    following = users(maxima.output(0))
    if len(following) != 1 or following[0].get_type_name() not in ("Slice", "TopK"):
        return None
    chosen = following[0] if following[0].get_type_name() == "Slice" else maxima
    return size(chosen.output(0), 1)
