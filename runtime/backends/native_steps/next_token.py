"""The choice of the next token in a step's graph, or the log-probability of every one: see `export.models.next_token`.

Shapes: R rows, E width, V vocabulary, C candidates.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime.backends.native_gpt2 import CANDIDATES
from runtime.backends.openvino_nodes.products import WeightProduct
from runtime.backends.openvino_nodes.reading import (
    NamedValues,
    Pattern,
    counts_up,
    follow,
    is_last_axis_of,
    is_made_by,
    is_number,
    size,
    users,
)
from runtime.bundle.graph_io import ALL_LOG_PROBS, LOG_PROBS, NEXT_TOKEN_IDS

_LAST = is_last_axis_of(2)


@dataclass(frozen=True)
class StepOutputs:
    """What a step does with its logits.

    Attributes:
        word_count: the words with text, the first of V.
        chooses: whether it returns the likeliest word, not the log-probability of each.
    """

    word_count: int
    chooses: bool


@dataclass(frozen=True)
class _Candidates:
    """Ports of the candidates (R, C) and of their logits."""

    word_count: int
    words: Any
    logits: Any


def result_of(results: dict[str, Any], product: WeightProduct, embeddings: Any) -> StepOutputs | None:
    """Return what a step does with its logits; None if it is none of what the kernels do.

    Args:
        results: the ports of the graph's outputs by name.
        product: that of states and vocabulary (R, V).
        embeddings: the port of the vocabulary (V, E) in float32.
    """
    if ALL_LOG_PROBS in results:
        return _all_log_probs(results[ALL_LOG_PROBS], product.result)
    candidates = _candidates(product.result)
    if candidates is None or NEXT_TOKEN_IDS not in results or LOG_PROBS not in results:
        return None
    logits, words = product.result, candidates.words
    largest: Pattern = ("ReduceMax", logits, _LAST)
    in_float32: Pattern = ("Gather", embeddings, words, is_number(0)), ("Unsqueeze", product.source, is_number(1))
    exact: Pattern = ("ReduceSum", ("Multiply", *in_float32), is_last_axis_of(3))
    error: Pattern = ("Subtract", _sum_of_exp(exact, largest), _sum_of_exp(candidates.logits, largest))
    total: Pattern = ("Add", _sum_of_exp(logits, largest), error)
    log_sum: Pattern = ("Add", ("Gather", largest, is_number(0), is_number(1)), ("Log", total))

    def is_place_of_best(value: Any) -> bool:
        return value.get_index() == 1 and _takes_largest(value.get_node(), 1) and is_made_by(value, ("TopK", exact))

    place: Pattern = ("Unsqueeze", ("Squeeze", is_place_of_best), is_number(1))
    chosen: Pattern = ("Reshape", ("GatherElements", words, place))
    is_log_prob = is_made_by(results[LOG_PROBS], ("Subtract", ("ReduceMax", exact, _LAST), log_sum))
    is_choice = is_log_prob and is_made_by(results[NEXT_TOKEN_IDS], chosen)
    return StepOutputs(candidates.word_count, True) if is_choice else None


def _sum_of_exp(logits: Pattern, largest: Pattern) -> Pattern:
    return ("ReduceSum", ("Exp", ("Subtract", logits, largest)), _LAST)


def _all_log_probs(result: Any, logits: Any) -> StepOutputs | None:
    """Return the words whose log-probabilities are a result, as those of logits (R, V) are."""
    subtract = result.get_node()
    taken = logits
    if subtract.get_type_name() == "Subtract" and subtract.input_value(0) != logits:
        taken = subtract.input_value(0)
        if not is_made_by(taken, ("Slice", logits, is_number(0))) or not is_number(1)(taken.get_node().input_value(4)):
            return None
    largest: Pattern = ("ReduceMax", logits, _LAST)
    sums = _sum_of_exp(logits, ("Unsqueeze", largest, is_number(1)))
    log_sum: Pattern = ("Unsqueeze", ("Add", largest, ("Log", sums)), is_number(1))
    word_count = size(taken, 1)
    is_log_prob = is_made_by(result, ("Subtract", taken, log_sum))
    return StepOutputs(word_count, False) if is_log_prob and word_count is not None else None


def _candidates(logits: Any) -> _Candidates | None:
    """Return the words with the largest of logits (R, V), found in the blocks with the largest maxima."""
    readers = [user for user in users(logits) if user.get_type_name() == "GatherElements"]
    best = None if len(readers) != 1 else follow(readers[0], ("TopK",))
    if best is None or not _takes_largest(best[0], CANDIDATES):
        return None
    in_blocks, chosen = readers[0].output(0), readers[0].input_value(1)
    words = [user.output(0) for user in users(best[0].output(1))]
    is_of_words: Pattern = ("GatherElements", chosen, best[0].output(1))
    if len(words) != 1 or not is_made_by(words[0], is_of_words) or in_blocks != best[0].input_value(0):
        return None
    word_count = _searched_words(chosen, logits)
    return None if word_count is None else _Candidates(word_count, words[0], best[0].output(0))


def _searched_words(chosen: Any, logits: Any) -> int | None:
    """Return how many words are searched, where ``chosen`` are all of the blocks with the largest maxima."""
    found = NamedValues()
    first: Pattern = ("Multiply", ("Unsqueeze", found.named("blocks"), is_number(2)), found.named("width"))
    if not is_made_by(chosen, ("Reshape", ("Add", first, counts_up))):
        return None
    best = found["blocks"].get_node()
    maxima = best.input_value(0)
    count = size(maxima, 1)
    if is_made_by(maxima, ("Slice", ("ReduceMax",), is_number(0))) and is_number(1)(maxima.get_node().input_value(4)):
        maxima = maxima.get_node().input_value(0)  # without those of words that have no text
    if count is None or not is_made_by(maxima, ("ReduceMax", ("Reshape", logits), is_last_axis_of(3))):
        return None
    width, taken = size(maxima.get_node().input_value(0), 2), min(CANDIDATES, count)
    takes_best = found["blocks"].get_index() == 1 and _takes_largest(best, taken)
    if width is None or not takes_best or not is_number(width)(found["width"]) or size(chosen, 1) != taken * width:
        return None
    return count * width


def _takes_largest(best: Any, count: int) -> bool:
    """Return whether a node finds so many of the largest values of the last axis."""
    if best.get_type_name() != "TopK":
        return False
    attributes, rank = best.get_attributes(), len(list(best.get_input_partial_shape(0)))
    is_last = attributes["axis"] in (-1, rank - 1)
    return bool(is_last and attributes["mode"] == "max" and size(best.output(0), rank - 1) == count)
