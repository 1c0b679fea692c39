"""The contract of every graph in a bundle: names, dtypes and axes of its inputs and outputs.

Exporter, TensorRT profiles, backends' users and the documents read it here; nothing else spells these names.

A decoder of kind "decap" is one step, whose position 0 takes the vector. Others have a prompt: `mapping` makes vectors
soft tokens, `prefill` reads soft tokens and token ids in one run, left-padded to Q prompt tokens, and steps follow.

The cache of a decoder with L layers is `past_key_values.i.key` and `.value` for i in 0..L-1, (R, H, P, d) each: R
regions, H heads, P positions, d head width. A step returns `present.i.key` and `.value`, the entries of its own
position only, (R, H, 1, d), and `prefill` those of the prompt, (R, H, Q, d); the runtime writes them into the cache, so
that no step copies it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

TensorDtype: TypeAlias = Literal["bool", "uint8", "int64", "float32", "cache"]
"""``cache`` is the precision that the manifest gives for the decoder's cache."""

PIXEL_VALUES, TOKENS, CLS_ATTENTION_LOGITS = "pixel_values", "tokens", "cls_attention_logits"
TOKEN_MASK, TOKEN_WEIGHTS, VECTORS = "token_mask", "token_weights", "vectors"
INPUT_IDS, POSITION = "input_ids", "position"
NEXT_TOKEN_IDS, LOG_PROBS, ALL_LOG_PROBS = "next_token_ids", "log_probs", "all_log_probs"
SOFT_PROMPT, PROMPT_IDS, POSITION_IDS, ATTENTION_MASK = "soft_prompt", "prompt_ids", "position_ids", "attention_mask"

IMAGES, REGIONS, REGION_TOKENS, PROMPT_TOKENS = "images", "regions", "region_tokens", "prompt_tokens"
"""The axes whose sizes are chosen at run time, by their names in the graphs."""
VOCABULARY = "vocabulary"
"""The axis of the tokens that have text: no more than the manifest's vocabulary."""


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph.

    Attributes:
        axes: what each axis counts; a number for an axis of fixed size.
    """

    name: str
    dtype: TensorDtype
    axes: tuple[str | int, ...]


@dataclass(frozen=True)
class GraphIo:
    """The inputs and outputs of one graph, in order."""

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def file(self) -> str:
        """The graph's file in a bundle."""
        return f"{self.name}.onnx"

    @property
    def input_names(self) -> list[str]:
        """The names of the inputs, in order."""
        return [spec.name for spec in self.inputs]

    @property
    def output_names(self) -> list[str]:
        """The names of the outputs, in order."""
        return [spec.name for spec in self.outputs]


def backbone(has_attention: bool, channels: int = 3) -> GraphIo:
    """Return the contract of a backbone, whose family has cls attention or has not, and sees so many planes."""
    attention = TensorSpec(CLS_ATTENTION_LOGITS, "float32", (IMAGES, "attention_heads", "patches"))
    return GraphIo(
        "backbone",
        inputs=(TensorSpec(PIXEL_VALUES, "uint8", (IMAGES, "image_size", "image_size", channels)),),
        outputs=(
            TensorSpec(TOKENS, "float32", (IMAGES, "tokens", "width")),
            *((attention,) if has_attention else ()),
        ),
    )


REENCODER = GraphIo(
    "reencoder",
    inputs=(
        TensorSpec(TOKENS, "float32", (REGIONS, REGION_TOKENS, "width")),
        TensorSpec(TOKEN_MASK, "bool", (REGIONS, REGION_TOKENS)),
        TensorSpec(TOKEN_WEIGHTS, "float32", (REGIONS, REGION_TOKENS)),
    ),
    outputs=(TensorSpec(VECTORS, "float32", (REGIONS, "width")),),
)


_REENCODED_TOKENS, _REENCODED_LOGITS = 2**14, 2**24
"""The most regions x tokens, and regions x tokens x tokens, of one run of the re-encoder. Its memory grows by both: in
float16 by up to 20 kB a token of ViT-B; where attention is no single kernel, by 4 bytes a logit and head."""


class ReencoderBatch(NamedTuple):
    """The largest run of the re-encoder: so many regions, of so many tokens each."""

    regions: int
    tokens: int


def reencoder_batches(num_tokens: int, max_regions: int) -> list[ReencoderBatch]:
    """Return the largest runs of the re-encoder, from few regions of all tokens to ``max_regions`` of few tokens."""
    batches: list[ReencoderBatch] = []
    tokens = num_tokens
    while not batches or (batches[-1].regions < max_regions and batches[-1].tokens > 1):
        regions = max(1, min(_REENCODED_TOKENS // tokens, _REENCODED_LOGITS // tokens**2))
        batches.append(ReencoderBatch(min(regions, max_regions), tokens))
        tokens = max(1, tokens // 4)
    return batches


MAPPING = GraphIo(
    "mapping",
    inputs=(TensorSpec(VECTORS, "float32", (REGIONS, "width")),),
    outputs=(TensorSpec(SOFT_PROMPT, "float32", (REGIONS, "soft_tokens", "embed_dim")),),
)


def prefill(num_layers: int) -> GraphIo:
    """Return the contract of reading prompts: the log-probability of every token after them, and their cache entries.

    Prompts are left-padded. An id V + k stands for the prompt's soft token k; the attention mask is false for padding.
    """
    return GraphIo(
        "prefill",
        inputs=(
            TensorSpec(SOFT_PROMPT, "float32", (REGIONS, "soft_tokens", "embed_dim")),
            TensorSpec(PROMPT_IDS, "int64", (REGIONS, PROMPT_TOKENS)),
            TensorSpec(POSITION_IDS, "int64", (REGIONS, PROMPT_TOKENS)),
            TensorSpec(ATTENTION_MASK, "bool", (REGIONS, PROMPT_TOKENS)),
        ),
        outputs=(
            TensorSpec(ALL_LOG_PROBS, "float32", (REGIONS, VOCABULARY)),
            *_present(num_layers, PROMPT_TOKENS),
        ),
    )


def decoder_step(num_layers: int, has_prompt: bool = False) -> GraphIo:
    """Return the contract of one greedy step: the likeliest next token and its log-probability."""
    chosen = (TensorSpec(NEXT_TOKEN_IDS, "int64", (REGIONS,)), TensorSpec(LOG_PROBS, "float32", (REGIONS,)))
    return _step("decoder", num_layers, has_prompt, chosen)


def beam_decoder_step(num_layers: int, has_prompt: bool = False) -> GraphIo:
    """Return the contract of one step that gives the log-probability of every token that has text."""
    return _step("beam_decoder", num_layers, has_prompt, (TensorSpec(ALL_LOG_PROBS, "float32", (REGIONS, VOCABULARY)),))


def past_names(num_layers: int) -> list[str]:
    """Return the names of the cache's inputs: keys, then values, layer by layer."""
    return [f"past_key_values.{entry}" for entry in _cache_entries(num_layers)]


def present_names(num_layers: int) -> list[str]:
    """Return the names of the cache entries that a step returns, in the order of `past_names`."""
    return [f"present.{entry}" for entry in _cache_entries(num_layers)]


def is_cache(name: str) -> bool:
    """Return whether an input or output is part of a decoder's cache."""
    return name.startswith(("past_key_values.", "present."))


def _cache_entries(num_layers: int) -> Iterator[str]:
    return (f"{layer}.{kind}" for layer in range(num_layers) for kind in ("key", "value"))


def _present(num_layers: int, positions: str | int) -> Iterator[TensorSpec]:
    return (TensorSpec(one, "cache", (REGIONS, "heads", positions, "head_dim")) for one in present_names(num_layers))


_AFTER_VECTOR = (
    TensorSpec(VECTORS, "float32", (REGIONS, "width")),
    TensorSpec(INPUT_IDS, "int64", (REGIONS,)),
    TensorSpec(POSITION, "int64", (1,)),
)
_AFTER_PROMPT = (
    TensorSpec(INPUT_IDS, "int64", (REGIONS,)),
    TensorSpec(POSITION_IDS, "int64", (REGIONS,)),
    TensorSpec(ATTENTION_MASK, "bool", (REGIONS, "attended_positions")),
)
"""The mask has the cache's entries, and after them the step's own, which is always true."""


def _step(name: str, num_layers: int, has_prompt: bool, first_outputs: tuple[TensorSpec, ...]) -> GraphIo:
    past = (TensorSpec(one, "cache", (REGIONS, "heads", "positions", "head_dim")) for one in past_names(num_layers))
    return GraphIo(
        name,
        inputs=(*(_AFTER_PROMPT if has_prompt else _AFTER_VECTOR), *past),
        outputs=(*first_outputs, *_present(num_layers, 1)),
    )
