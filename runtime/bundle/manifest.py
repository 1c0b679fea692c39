"""The manifest: all that the runtime must know of a bundle before it opens anything else."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

SCHEMA: Literal[1] = 1
MANIFEST = "manifest.json"
PositiveInt = Annotated[int, Field(gt=0)]
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
FileName = Annotated[str, Field(pattern=f"^{_NAME}$")]
"""A file right inside the bundle: no separators, so no path in a manifest leaves its folder."""


MemoryPrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
BundleBackend: TypeAlias = Literal["cpu", "ort-cuda", "ort-tensorrt", "tensorrt"]
PlanHardware: TypeAlias = Literal["same", "same-capability", "ampere+"]
EnginePrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Part):
    """What a file must be."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


GraphName = Annotated[str, Field(pattern=rf"^{_NAME}\.onnx$")]
"""By another ending ONNX Runtime would take the file for its own format, in which nobody looks for what it reads."""


class EngineRecord(_Part):
    """One executable graph."""

    file: GraphName
    precision: EnginePrecision
    """Of its products; norms, sums and what would suffer are float32."""
    opset: PositiveInt
    largest_difference: float
    """Between the graph and the torch module it was made from, on random input: of the best log-probabilities as it is,
    of all else relative to the largest value."""


Shape: TypeAlias = tuple[PositiveInt, ...]


class ShapeRange(_Part):
    """The shapes of an input that a plan takes: at least, at best and at most."""

    least: Shape
    best: Shape
    most: Shape

    @model_validator(mode="after")
    def _rises(self) -> ShapeRange:
        sizes = list(zip(self.least, self.best, self.most, strict=True))
        if not all(low <= best <= high for low, best, high in sizes):
            raise ValueError(f"expected least <= best <= most, got {self.least}, {self.best}, {self.most}")
        return self


class PlanRecord(_Part):
    """A graph as TensorRT has built it, for one kind of GPU."""

    graph: FileName
    """What it was built from."""
    file: FileName
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """A hash of all that it depends on: while that is the same it need not be built again."""
    tensorrt: str
    gpu: str
    compute_capability: str
    hardware: PlanHardware
    """What else may load it: no other GPU, those of the same compute capability, or all from Ampere on."""
    version_compatible: bool
    """Whether newer versions of the same major of TensorRT may load it."""
    profiles: tuple[dict[str, ShapeRange], ...]
    """The shapes it takes, by input, for each way of using it."""


class Architecture(_Part):
    """The backbone and its tokens: T = 1 cls + registers + (size / patch) ** 2 patches."""

    name: str
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    patch: PositiveInt
    registers: Annotated[int, Field(ge=0)]
    size: PositiveInt
    """Side of the square input, in pixels."""
    resize: PositiveInt | None = None
    """What fit="crop" makes of an image's short side before it cuts out the centre; None for `size`."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_at_once: PositiveInt = 8
    """The most images that the backbone takes at once: its scratch memory grows with each, its speed hardly."""


class DecoderSettings(_Part):
    """The decoder: its cache is (regions, heads, steps, head_width) for the keys and the values of each layer."""

    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    head_width: PositiveInt
    steps: Annotated[int, Field(gt=0, le=4096)]
    vocabulary: PositiveInt
    end_id: Annotated[int, Field(ge=0)]
    cache: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What the decoder's keys and values are in."""
    batches: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 4, 16, 64, 256)
    """How many captions are decoded at once, rising: more than the last are split; a GPU, which has memory and plans
    for just these numbers, fills them up."""


class MemorySettings(_Part):
    """The memory bank; a bundle for a noise-trained decoder has none."""

    embeddings: FileName
    captions: FileName
    rows: PositiveInt
    temperature: Annotated[float, Field(gt=0)]
    normalize: bool
    precision: MemoryPrecision = "fp32"
    """What the embeddings are stored in."""
    fine: FileName | None = None
    """What rounding to it left, where that is felt."""
    rounding: Annotated[float, Field(ge=0)] = 0.0
    """The most that rounding took from a row, as a share of its length."""
    best: Annotated[int, Field(ge=0)] = 0
    """How many rows nearest to a region are always taken with what rounding left of them."""


class Build(_Part):
    """Where a bundle came from."""

    checkpoint: str
    built_at: str
    machine: str
    versions: dict[str, str]


class Manifest(_Part):
    """All that the runtime must know of a bundle before it opens anything else."""

    schema_version: Literal[1] = SCHEMA
    backend: BundleBackend = "cpu"
    """What it was built for, and "auto" opens it with."""
    architecture: Architecture
    backbone: EngineRecord
    decoder: EngineRecord
    reencoder: EngineRecord | None = None
    """The backbone's last block by itself; bundles from before it existed have none."""
    beam_decoder: EngineRecord | None = None
    """The decoder for beam search, on the same weights; bundles from before it existed have none."""
    plans: tuple[PlanRecord, ...] = ()
    """What TensorRT has built of the graphs; none in a bundle for other backends."""
    decoding: DecoderSettings
    memory: MemorySettings | None
    tokenizer: FileName
    build: Build
    files: dict[FileName, FileRecord]

    @property
    def engines(self) -> tuple[EngineRecord, ...]:
        """All that it has."""
        return tuple(
            engine for engine in (self.backbone, self.decoder, self.reencoder, self.beam_decoder) if engine is not None
        )

    @model_validator(mode="after")
    def _lists_what_it_uses(self) -> Manifest:
        used = [*(engine.file for engine in self.engines), self.tokenizer]
        used += [plan.file for plan in self.plans]
        used += [self.memory.embeddings, self.memory.captions] if self.memory else []
        used += [self.memory.fine] if self.memory and self.memory.fine else []
        for name in used:
            if name not in self.files:
                raise ValueError(f"files: {name} is used but not listed")
        return self
