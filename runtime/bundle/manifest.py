"""The manifest: all that the runtime must know of a bundle before it opens anything else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator

from runtime.bundle.dtypes import NUMBER_FORMATS, StoragePrecision

SCHEMA: Literal[3] = 3
MANIFEST = "manifest.json"

PositiveInt = Annotated[int, Field(gt=0, lt=2**31)]
Width = Annotated[int, Field(gt=0, le=2**14)]
"""Of a vector, or a number of parts of one: four times the widest published."""
Layers = Annotated[int, Field(gt=0, le=256)]
Pixels = Annotated[int, Field(gt=0, le=2**12)]
FileBytes = Annotated[int, Field(ge=0, le=2**34)]
FiniteFloat = Annotated[float, Field(allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1024)]
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
FileName = Annotated[str, Field(pattern=f"^{_NAME}$", max_length=255)]
"""A file directly inside the bundle: no separators, so no path in a manifest leaves its folder."""
GraphFile = Annotated[str, Field(pattern=rf"^{_NAME}\.onnx$", max_length=255)]
"""A graph's file. With another ending ONNX Runtime would take it for its own format, which is not checked."""
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
TextSpaceName = Annotated[str, Field(pattern=f"^{_NAME}$", max_length=255)]
"""The identity of a space that vectors and text share: "t2d-dinov2-b-2024" is that of Talk2DINO's weights of 2024."""

BundleBackend: TypeAlias = Literal["cpu", "ort-cuda", "ort-tensorrt", "tensorrt", "tensorrt-rtx"]
PlanProduct: TypeAlias = Literal["tensorrt", "tensorrt-rtx"]
EngineName: TypeAlias = Literal["backbone", "reencoder", "mapping", "prefill", "decoder", "beam_decoder"]
EnginePrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "fp8"]
"""What a bundle is built in."""
GraphPrecision: TypeAlias = Literal[EnginePrecision, "int8_weights"]
"""What one graph's products are in; with "int8_weights" only their weights are in 8 bits, for CPUs."""
PlanHardware: TypeAlias = Literal["same", "same-capability", "ampere+"]
Rgb: TypeAlias = tuple[FiniteFloat, FiniteFloat, FiniteFloat]
DecoderKind: TypeAlias = Literal["decap", "viecap", "meacap", "clipcap"]
PromptOrder: TypeAlias = Literal["soft_first", "hard_first", "soft_only", "hard_only"]
GlobalToken: TypeAlias = Literal["cls", "pooled", "register"]
Shape: TypeAlias = tuple[PositiveInt, ...]

DECODER_NAMES: Mapping[DecoderKind, str] = {
    "decap": "DeCap",
    "viecap": "ViECap",
    "meacap": "MeaCap",
    "clipcap": "ClipCap",
}


_MAX_CACHE_BYTES = 2**34
"""Of the largest batch: a hundred times that of the published decoder."""
_MAX_CAPTION_BYTES = 2**12
"""Of the mean caption of a memory bank, as JSON."""


class Part(BaseModel):
    """A part of the manifest: immutable, and without fields that this version does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(Part):
    """The size and hash that a file must have."""

    bytes: FileBytes
    sha256: Sha256


class EngineRecord(Part):
    """One executable graph; `runtime.bundle.graph_io` has its inputs and outputs."""

    file: GraphFile
    precision: GraphPrecision
    """The precision of its matrix products; norms, sums and what would suffer stay float32."""
    opset: PositiveInt
    max_error: Annotated[FiniteFloat, Field(ge=0)]
    """The largest difference between the graph and its torch module on random input: absolute for the best
    log-probabilities, relative to the largest value for all other outputs."""


class ShapeRange(Part):
    """The shapes of one input that a TensorRT profile takes."""

    min: Shape
    opt: Shape
    max: Shape

    @model_validator(mode="after")
    def _check_order(self) -> ShapeRange:
        sizes = list(zip(self.min, self.opt, self.max, strict=True))
        if not all(low <= best <= high for low, best, high in sizes):
            raise ValueError(f"expected min <= opt <= max, got {self.min}, {self.opt}, {self.max}")
        return self


class PlanRecord(Part):
    """A graph as TensorRT built it, for some kinds of GPU."""

    graph: GraphFile
    file: FileName
    key: Sha256
    """A hash of all that the plan depends on; while it is the same the plan is not built again."""
    product: PlanProduct = "tensorrt"
    version: str
    """The version of the product that built it."""
    gpu: str | None
    """The GPU that it was built on; None where the builder needs none."""
    compute_capabilities: tuple[str, ...]
    """Of the GPUs that it was built for."""
    hardware: PlanHardware
    """The GPUs that may load it: this model only, those of a compute capability of the list, or all from Ampere on."""
    version_compatible: bool
    """Whether newer versions of the same major may load it."""
    profiles: Annotated[tuple[dict[str, ShapeRange], ...], Field(max_length=64)]
    """The shapes it takes, by input, one profile for each use."""


class TokenLayout(Part):
    """The tokens of an image, T = global tokens + grid * grid: global tokens first, then patches row by row."""

    global_tokens: Annotated[tuple[GlobalToken, ...], Field(max_length=64)]
    """The kind of each token before the patches: ``cls``, a vector ``pooled`` in its place, or a ``register``."""
    grid: Annotated[int, Field(gt=0, le=256)]
    """G, patches per side."""

    @classmethod
    def with_cls(cls, num_registers: int, grid: int) -> TokenLayout:
        """Return the layout of cls, registers and patches, which DINOv2 has."""
        registers: list[GlobalToken] = ["register"] * num_registers
        return cls(global_tokens=("cls", *registers), grid=grid)

    @property
    def cls_index(self) -> int | None:
        """The index of the token that stands for the whole image; None where there is none."""
        return next((index for index, kind in enumerate(self.global_tokens) if kind in ("cls", "pooled")), None)

    @property
    def register_indices(self) -> tuple[int, ...]:
        """The indices of the register tokens."""
        return tuple(index for index, kind in enumerate(self.global_tokens) if kind == "register")

    @property
    def num_global(self) -> int:
        """The number of tokens before the first patch."""
        return len(self.global_tokens)

    @property
    def num_patches(self) -> int:
        """N."""
        return self.grid**2

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.num_global + self.num_patches


class Preprocessing(Part):
    """How an image becomes the backbone's input."""

    image_size: Pixels
    """Side of the square input, in pixels."""
    resize_short_side: Pixels | None = None
    """The length of an image's short side before fit="crop" cuts out the centre; None for `image_size`."""
    resample: Literal["bicubic"] = "bicubic"
    mean: Rgb
    std: Rgb
    has_alpha: bool = False
    """Whether the input has a fourth plane that marks what is to be described: 255 there, 0 elsewhere."""

    @property
    def channels(self) -> int:
        """The planes of the input: red, green, blue and, if it has one, alpha."""
        return 3 + self.has_alpha


class BackboneConfig(Part):
    """The backbone's numbers and the tokens that it returns."""

    family: Text
    """Which family of models it is of, "dinov2" for example."""
    name: Text
    """Its published name, "dinov2_vitb14_reg" for example."""
    text_space: TextSpaceName
    embed_dim: Width
    """Width of its blocks."""
    output_dim: Width
    """D, width of the tokens that it returns."""
    depth: Layers
    num_heads: Width
    patch_size: Pixels
    attention_heads: Annotated[int, Field(ge=0, le=2**14)]
    """H, heads of the cls token's attention logits; 0 where the family has none."""
    max_batch_size: Annotated[int, Field(gt=0, le=1024)] = 8
    """Images per run: workspace grows with each, speed hardly."""
    tokens: TokenLayout
    preprocessing: Preprocessing

    @model_validator(mode="after")
    def _check_grid(self) -> BackboneConfig:
        if self.tokens.grid * self.patch_size != self.preprocessing.image_size:
            raise ValueError(
                f"expected grid * patch_size = image_size, got {self.tokens.grid} * {self.patch_size} and "
                f"{self.preprocessing.image_size}"
            )
        return self


class EntitiesConfig(Part):
    """Hard prompts of the entities of a vocabulary that a region looks like."""

    source: Literal["entities"] = "entities"
    embeddings: FileName
    """K unit rows of width D, float32."""
    pieces: FileName
    """The prompt's pieces, K entities among them."""
    num_entities: Annotated[int, Field(gt=0, le=2**20)]
    """K."""
    temperature: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)]
    top_k: Annotated[int, Field(gt=0, le=1024)]
    """The most entities of a prompt."""
    threshold: FiniteFloat
    """The least probability of an entity that is named."""


class ConceptsConfig(Part):
    """Hard prompts of what the memory bank's captions near a region have in common."""

    source: Literal["concepts"] = "concepts"
    graphs: FileName
    """The scene graph of each caption of the bank, as tables."""
    pieces: FileName
    """The prompt's pieces: entities and attributes."""
    num_captions: Annotated[int, Field(gt=0, le=32)]
    """The number of captions that are looked up for a region."""


class PromptConfig(Part):
    """What a decoder reads before its first token: soft tokens made of the vector, token ids, or both."""

    soft_tokens: Annotated[int, Field(gt=0, le=1024)]
    """S, the soft tokens that a vector is mapped to."""
    order: PromptOrder
    max_tokens: Annotated[int, Field(gt=0, le=2**13)]
    """The most tokens of a prompt, soft and hard together."""
    unit_vectors: bool
    """Whether vectors get unit length first."""
    hard: Annotated[EntitiesConfig | ConceptsConfig, Field(discriminator="source")] | None = None
    """What its hard part is made of; None for a prompt of soft tokens alone."""

    @property
    def files(self) -> list[str]:
        """The files that its hard part is made of."""
        if self.hard is None:
            return []
        return [self.hard.pieces, self.hard.embeddings if isinstance(self.hard, EntitiesConfig) else self.hard.graphs]

    @model_validator(mode="after")
    def _check_hard(self) -> PromptConfig:
        if (self.hard is None) != (self.order == "soft_only"):
            raise ValueError(f"expected hard exactly where the order has a hard part, got {self.order}")
        return self


class DecoderConfig(Part):
    """The decoder's numbers; each layer's keys and values are (R, num_heads, cache_positions, head_dim)."""

    kind: DecoderKind
    """Which decoder it is: "decap" for one prefix position, which is the vector itself; the others read a prompt."""
    text_space: TextSpaceName
    embed_dim: Width
    num_layers: Layers
    num_heads: Width
    head_dim: Width
    max_new_tokens: Annotated[int, Field(gt=0, le=4096)]
    vocab_size: Annotated[int, Field(gt=0, le=2**24)]
    eos_token_ids: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1, max_length=16)]
    """The tokens that end a caption."""
    keeps_eos: bool = False
    """Whether the end token is part of the text, a full stop for example."""
    text_end: Annotated[str, Field(max_length=16)] = ""
    """What ends every text: it is cut after the first, and gets one where it has none; "" for nothing."""
    reference_score: Literal["probability", "perplexity", "inverse_perplexity"] = "probability"
    """What score="reference" is: the probability of all steps, or of the text alone by the decoder without a prompt."""
    prompt: PromptConfig | None = None
    """What it reads before its first token; None for "decap"."""
    cache_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    batch_sizes: Annotated[tuple[Annotated[int, Field(gt=0, le=2**14)], ...], Field(min_length=1, max_length=32)] = (
        1,
        4,
        16,
        64,
        256,
    )
    """The numbers of captions decoded at once, rising: larger batches are split by the last. A GPU, which has memory
    and plans for exactly these numbers, pads to the next."""

    @property
    def eos_token_id(self) -> int:
        """The first of the tokens that end a caption, which also pads."""
        return self.eos_token_ids[0]

    @property
    def cache_positions(self) -> int:
        """P, the positions of the cache: those of the prompt, and of all tokens but the last, which nothing follows."""
        return self.max_new_tokens if self.prompt is None else self.prompt.max_tokens + self.max_new_tokens - 1

    @model_validator(mode="after")
    def _check_prompt(self) -> DecoderConfig:
        if (self.prompt is None) != (self.kind == "decap"):
            raise ValueError(f"expected a prompt for every kind but decap, got kind {self.kind}")
        return self

    @model_validator(mode="after")
    def _check_end(self) -> DecoderConfig:
        if max(self.eos_token_ids) >= self.vocab_size:
            raise ValueError(
                f"expected eos_token_ids below vocab_size, got {max(self.eos_token_ids)} of {self.vocab_size} tokens"
            )
        return self

    @model_validator(mode="after")
    def _check_batches(self) -> DecoderConfig:
        if list(self.batch_sizes) != sorted(set(self.batch_sizes)):
            raise ValueError(f"expected batch_sizes that rise, got {', '.join(map(str, self.batch_sizes))}")
        entries = 2 * self.num_layers * self.num_heads * self.head_dim * self.cache_positions
        cache_bytes = self.batch_sizes[-1] * entries * NUMBER_FORMATS[self.cache_precision].bytes
        if cache_bytes > _MAX_CACHE_BYTES:
            raise ValueError(
                f"expected a cache of at most {_MAX_CACHE_BYTES} bytes for {self.batch_sizes[-1]} captions, got "
                f"{cache_bytes}"
            )
        return self


class MemoryConfig(Part):
    """The memory bank; a bundle for a noise-trained decoder has none."""

    text_space: TextSpaceName
    projects: bool = True
    """Whether vectors are projected onto it before they are decoded; else its captions are looked up only."""
    embeddings: FileName
    captions: FileName
    num_rows: Annotated[int, Field(gt=0, lt=2**31)]
    temperature: Annotated[FiniteFloat, Field(ge=1e-6, le=1e6)]
    normalize: bool
    precision: StoragePrecision = "fp32"
    """The precision that the embeddings are stored in."""
    residual: FileName | None = None
    """The file with what rounding left of each row, where that matters."""
    max_relative_error: Annotated[FiniteFloat, Field(ge=0)] = 0.0
    """The largest rounding error of a row without its residual, relative to the row's length."""
    max_alike_rows: Annotated[int, Field(gt=0, lt=2**31)] | None = None
    """The largest number of rows that are alike but for their rounding; None where nobody counted."""
    refine_top_k: Annotated[int, Field(ge=0, le=2**14)] = 0
    """The most rows that are refined by their residuals for each region, the nearest; all rows, if it is more."""


class BuildInfo(Part):
    """Where and when a bundle was built."""

    checkpoint: str
    built_at: str
    machine: str
    versions: dict[str, str]


class Manifest(Part):
    """All that the runtime must know of a bundle before it opens anything else."""

    schema_version: Literal[3] = SCHEMA
    backend: BundleBackend = "cpu"
    """The backend that it was built for, which "auto" opens it with."""
    backbone: BackboneConfig
    decoder: DecoderConfig
    memory: MemoryConfig | None
    engines: dict[EngineName, EngineRecord]
    plans: Annotated[tuple[PlanRecord, ...], Field(max_length=64)] = ()
    """TensorRT's plans of the graphs; none in a bundle for other backends."""
    tokenizer: FileName
    build: BuildInfo
    files: Annotated[dict[FileName, FileRecord], Field(max_length=256)]
    """Few enough to be held open."""

    @property
    def backbone_bytes(self) -> int:
        """The size of the backbone's graph and weights."""
        graph = self.engines["backbone"].file
        return sum(record.bytes for name, record in self.files.items() if name.startswith(graph))

    @property
    def decoder_name(self) -> str:
        """What the decoder is called; DeCap's, trained with noise, reads vectors that no bank was projected onto."""
        return "CapDec" if self.decoder.kind == "decap" and self.memory is None else DECODER_NAMES[self.decoder.kind]

    @model_validator(mode="after")
    def _check_engines(self) -> Manifest:
        for name in ("backbone", "decoder", *(("mapping", "prefill") if self.decoder.prompt else ())):
            if name not in self.engines:
                raise ValueError(f"engines: {name} is missing")
        return self

    @model_validator(mode="after")
    def _check_files(self) -> Manifest:
        used = [*(engine.file for engine in self.engines.values()), self.tokenizer]
        used += [plan.file for plan in self.plans]
        used += [self.memory.embeddings, self.memory.captions] if self.memory else []
        used += [self.memory.residual] if self.memory and self.memory.residual else []
        used += self.decoder.prompt.files if self.decoder.prompt else []
        for name in used:
            if name not in self.files:
                raise ValueError(f"files: {name} is used but not listed")
        return self

    @model_validator(mode="after")
    def _check_concepts(self) -> Manifest:
        prompt = self.decoder.prompt
        if prompt and isinstance(prompt.hard, ConceptsConfig) and self.memory is None:
            raise ValueError("memory: expected the bank whose captions have the concepts of the decoder's prompts")
        return self

    @model_validator(mode="after")
    def _check_captions(self) -> Manifest:
        if self.memory is None:
            return self
        most, found = self.memory.num_rows * _MAX_CAPTION_BYTES, self.files[self.memory.captions].bytes
        if found > most:
            raise ValueError(
                f"files.{self.memory.captions}: expected at most {most} bytes for the bank's rows, got {found}"
            )
        return self

    @model_validator(mode="after")
    def _check_text_space(self) -> Manifest:
        parts = {"backbone": self.backbone, "decoder": self.decoder, "memory": self.memory}
        spaces = {name: part.text_space for name, part in parts.items() if part is not None}
        if len(set(spaces.values())) > 1:
            got = ", ".join(f"{name} {space!r}" for name, space in spaces.items())
            raise ValueError(f"text_space: expected one for backbone, decoder and memory bank, got {got}")
        return self
