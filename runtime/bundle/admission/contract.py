"""What a bundle's manifest says of its engines: shapes of inputs and outputs, and how much work they may be.

Shapes: B images, T tokens, D width, H heads, R regions, E decoder width, P positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from runtime.bundle.admission.shape_rules import TensorFacts
from runtime.bundle.admission.sizes import AxisSize
from runtime.bundle.dtypes import StoragePrecision
from runtime.bundle.engine_io import engine_io, fixed_sizes
from runtime.bundle.graph_io import (
    IMAGES,
    INPUT_IDS,
    NEXT_TOKEN_IDS,
    POSITION,
    POSITION_IDS,
    PROMPT_IDS,
    PROMPT_TOKENS,
    REGION_TOKENS,
    REGIONS,
    GraphIo,
    TensorDtype,
    TensorSpec,
)
from runtime.bundle.manifest import EngineName, Manifest

_ELEMENT_TYPES: Mapping[TensorDtype, str] = {"bool": "bool", "uint8": "u8", "int64": "i64", "float32": "f32"}
_CACHE_TYPES: Mapping[StoragePrecision, str] = {"fp32": "f32", "fp16": "f16", "bf16": "bf16"}


@dataclass(frozen=True)
class WorkLimits:
    """How much a graph may compute at the largest sizes of its contract.

    Attributes:
        tensor: values of one tensor.
        total: values of all tensors that it computes.
        multiply_adds: terms of all sums of products.
    """

    tensor: int
    total: int
    multiply_adds: int


@dataclass(frozen=True)
class EngineContract:
    """What is agreed on an engine, in numbers.

    Attributes:
        fixed: the sizes of axes by their names in `runtime.bundle.graph_io`.
        at_most: those of axes that a graph fixes, but the manifest does not know.
        largest: those of axes that are chosen at run time.
        last_ids: the largest values of inputs and outputs that count from 0.
    """

    io: GraphIo
    fixed: Mapping[str, int]
    at_most: Mapping[str, int]
    largest: Mapping[str, int]
    last_ids: Mapping[str, int]
    cache_type: str
    limits: WorkLimits

    def input_facts(self, spec: TensorSpec) -> TensorFacts:
        """Return what is known of an input."""
        shape = tuple(
            AxisSize(axis)
            if isinstance(axis, int)
            else AxisSize(1, (axis,))
            if axis in self.largest
            else AxisSize(self.fixed[axis])
            for axis in spec.axes
        )
        last = self.last_ids.get(spec.name)
        return TensorFacts(self.element_type(spec), shape, None if last is None else (0, last))

    def element_type(self, spec: TensorSpec) -> str:
        """Return the element type of an input or output."""
        return self.cache_type if spec.dtype == "cache" else _ELEMENT_TYPES[spec.dtype]


def engine_contract(manifest: Manifest, name: EngineName) -> EngineContract:
    """Return the contract of an engine of a bundle."""
    decoder, backbone, prompt = manifest.decoder, manifest.backbone, manifest.decoder.prompt
    return EngineContract(
        io=engine_io(name, manifest),
        fixed=fixed_sizes(manifest),
        at_most={"vocabulary": decoder.vocab_size},
        largest={
            IMAGES: backbone.max_batch_size,
            REGIONS: max(decoder.batch_sizes),
            REGION_TOKENS: backbone.tokens.num_tokens,
            PROMPT_TOKENS: prompt.max_tokens if prompt else 1,
        },
        last_ids={
            INPUT_IDS: decoder.vocab_size - 1,
            POSITION: decoder.cache_positions - 1,
            POSITION_IDS: decoder.cache_positions - 1,
            PROMPT_IDS: decoder.vocab_size - 1 + (prompt.soft_tokens if prompt else 0),
            NEXT_TOKEN_IDS: decoder.vocab_size - 1,
        },
        cache_type=_CACHE_TYPES[decoder.cache_precision],
        limits=_LIMITS[name](manifest),
    )


def _backbone_limits(manifest: Manifest) -> WorkLimits:
    backbone = manifest.backbone
    side, channels = backbone.preprocessing.image_size, backbone.preprocessing.channels
    return _transformer_limits(
        sequences=backbone.max_batch_size,
        tokens=backbone.tokens.num_tokens,
        width=max(backbone.embed_dim, backbone.output_dim),
        heads=backbone.num_heads,
        layers=backbone.depth,
        other=backbone.max_batch_size * channels * side**2,
    )


def _reencoder_limits(manifest: Manifest) -> WorkLimits:
    backbone = manifest.backbone
    return _transformer_limits(
        sequences=max(manifest.decoder.batch_sizes),
        tokens=backbone.tokens.num_tokens,
        width=max(backbone.embed_dim, backbone.output_dim),
        heads=backbone.num_heads,
        layers=1,
        other=0,
    )


def _decoder_limits(manifest: Manifest) -> WorkLimits:
    decoder = manifest.decoder
    rows, width = max(decoder.batch_sizes), max(decoder.embed_dim, decoder.num_heads * decoder.head_dim)
    cache = decoder.num_heads * decoder.head_dim * decoder.cache_positions
    vocabulary = max(decoder.vocab_size, manifest.backbone.output_dim)
    return _transformer_limits(
        sequences=rows,
        tokens=1,
        width=width,
        heads=decoder.num_heads,
        layers=decoder.num_layers,
        other=rows * (cache * decoder.num_layers + vocabulary),
        other_multiply_adds=rows * width * vocabulary,
    )


_MAX_MAPPED_TOKENS = 4
"""The most tokens of a mapping network for each soft token that it makes; published ones have two."""
_MAX_MAPPING_LAYERS = 32


def _mapping_limits(manifest: Manifest) -> WorkLimits:
    decoder, prompt = manifest.decoder, manifest.decoder.prompt
    assert prompt is not None  # it has no mapping otherwise
    rows, tokens = max(decoder.batch_sizes), _MAX_MAPPED_TOKENS * prompt.soft_tokens
    mapped = tokens * decoder.embed_dim
    return _transformer_limits(
        sequences=rows,
        tokens=tokens,
        width=decoder.embed_dim,
        heads=decoder.num_heads,
        layers=_MAX_MAPPING_LAYERS,
        other=rows * mapped,
        other_multiply_adds=rows * mapped * (manifest.backbone.output_dim + mapped),
    )


def _prefill_limits(manifest: Manifest) -> WorkLimits:
    decoder, prompt = manifest.decoder, manifest.decoder.prompt
    assert prompt is not None  # it has no prefill otherwise
    rows, width = max(decoder.batch_sizes), max(decoder.embed_dim, decoder.num_heads * decoder.head_dim)
    return _transformer_limits(
        sequences=rows,
        tokens=prompt.max_tokens,
        width=width,
        heads=decoder.num_heads,
        layers=decoder.num_layers,
        other=rows * decoder.vocab_size,
        other_multiply_adds=rows * width * (decoder.vocab_size + prompt.max_tokens * prompt.soft_tokens),
    )


def _transformer_limits(
    *, sequences: int, tokens: int, width: int, heads: int, layers: int, other: int, other_multiply_adds: int = 0
) -> WorkLimits:
    """Return about twice of what exported transformers compute.

    Args:
        other: values of the largest tensors outside of blocks.
        other_multiply_adds: of products outside of blocks.
    """
    scores, values = sequences * heads * tokens**2, sequences * tokens * width
    return WorkLimits(
        tensor=max(scores, 8 * values, 2 * other),
        total=(layers + 2) * (8 * scores + 64 * values) + 16 * other,
        multiply_adds=2 * ((layers + 2) * values * (16 * width + 2 * tokens) + other_multiply_adds),
    )


_LIMITS: Mapping[EngineName, Callable[[Manifest], WorkLimits]] = {
    "backbone": _backbone_limits,
    "reencoder": _reencoder_limits,
    "mapping": _mapping_limits,
    "prefill": _prefill_limits,
    "decoder": _decoder_limits,
    "beam_decoder": _decoder_limits,
}
