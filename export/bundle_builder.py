"""A bundle from a checkpoint: graphs, memory bank, tokenizer, plans and manifest, in a folder whole or not there."""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from export.checkpoint import Checkpoint
from export.graphs.calibration_images import read_calibration
from export.graphs.exporter import ExportError, export_backbone, export_beam_decoder, export_decoder, export_reencoder
from export.graphs.model_optimizer import ModelOpt
from export.memory.bank_file import write_memory
from export.models.decap_decoder import DecoderConfig
from export.plans.builder import PlanOptions, last_bundle
from export.plans.bundle_plans import Progress, build_plans, open_for
from export.plans.profiles import batches
from export.readers import read_checkpoint
from runtime.bundle import (
    SCHEMA,
    Architecture,
    Build,
    BundleBackend,
    DecoderSettings,
    EnginePrecision,
    EngineRecord,
    Manifest,
    MemoryPrecision,
    MemorySettings,
    new_bundle,
    record_files,
    write_manifest,
)

_TOKENIZER_FILE = "tokenizer.json"
_VERSIONS_OF = ("patchcaption", "torch", "onnx", "onnxscript", "onnxruntime")
_FLOATS: tuple[EnginePrecision, ...] = ("fp32", "fp16", "bf16")
_QUANTIZED: dict[BundleBackend, tuple[EnginePrecision, ...]] = {"tensorrt": ("int8", "fp8"), "ort-tensorrt": ("int8",)}
"""What Model Optimizer prepares a graph for. ONNX Runtime's networks are not strongly typed, and have no fp8."""


@dataclass(frozen=True)
class BuildOptions:
    """How a bundle is built.

    Attributes:
        checkpoint_dir: where the checkpoint's files are looked for before they are downloaded.
        backend: what it is for.
        precision: what the graphs multiply their weights in.
        memory_precision: what the memory bank is stored in.
        max_images: images that the backbone takes at once.
        max_regions: captions that are decoded at once.
        plans: how TensorRT builds; None for a bundle that gets its plans elsewhere, by build_plans.py.
        calibration: a folder of images that show how large activations become; None for a pattern and noise, which is
            not enough for fp8 and int8 of TensorRT.
        modelopt: the interpreter of an environment with Model Optimizer, for those.
    """

    checkpoint_dir: Path | None = None
    backend: BundleBackend = "cpu"
    precision: EnginePrecision = "fp32"
    memory_precision: MemoryPrecision = "fp32"
    max_images: int = 8
    max_regions: int = 256
    plans: PlanOptions | None = field(default_factory=PlanOptions)
    calibration: Path | None = None
    modelopt: Path | None = None

    @property
    def quantizes_for_tensorrt(self) -> bool:
        """Whether the backbone is quantized as TensorRT takes it, and the other graphs are fp16."""
        return self.precision in _QUANTIZED.get(self.backend, ())

    @property
    def other_precision(self) -> EnginePrecision:
        """Of the graphs but the backbone."""
        return "fp16" if self.quantizes_for_tensorrt else self.precision

    @property
    def has_plans(self) -> bool:
        """Whether TensorRT builds plans."""
        return self.backend == "tensorrt" and self.plans is not None

    @property
    def steps(self) -> int:
        """Of a build, as `Progress.step` is told."""
        return 11 if self.has_plans else 7


_AS_ASKED = BuildOptions()


def build(name: str, out: Path, progress: Progress, options: BuildOptions = _AS_ASKED) -> None:
    """Builds the bundle of a checkpoint at ``out``; whatever was there stays until the new one is complete.

    Raises:
        PatchcaptionError: the checkpoint cannot be read, a graph is not what its module is, ``out`` cannot be written,
            TensorRT is asked for and is not there or refuses a graph.
    """
    # First, so that what is missing is said before the minutes that an export takes.
    _check(options)
    trt = open_for(options.precision) if options.has_plans else None
    with new_bundle(out) as folder:
        progress.step(f"reading {name}")
        checkpoint = read_checkpoint(name, options.checkpoint_dir)
        for note in checkpoint.notes:
            progress.note(note)
        graphs = _export_graphs(checkpoint, folder, options, progress)
        progress.step("memory bank and tokenizer")
        memory = write_memory(checkpoint.memory, folder, options.memory_precision) if checkpoint.memory else None
        checkpoint.tokenizer.save(str(folder / _TOKENIZER_FILE))
        manifest = _manifest(checkpoint, graphs, memory, options)
        if trt and options.plans:
            plans = build_plans(trt, manifest, folder, last_bundle(out), options.plans, progress)
            manifest = manifest.model_copy(update={"plans": plans})
        progress.step("manifest")
        write_manifest(folder, Manifest.model_validate(dict(manifest) | {"files": record_files(folder)}))


def _check(options: BuildOptions) -> None:
    """Raises if a precision is not to be had for a backend, or what it takes was not given."""
    backend, precision = options.backend, options.precision
    fits = (*_FLOATS, *(("int8",) if backend == "cpu" else _QUANTIZED.get(backend, ())))
    if precision not in fits:
        raise ExportError(f"--precision {precision}: the backend {backend} has {', '.join(fits)}")
    if options.quantizes_for_tensorrt and (options.calibration is None or options.modelopt is None):
        raise ExportError(
            f"--precision {precision} --backend {backend}: needs --calibration FOLDER with images like those to be "
            "described, and --modelopt PYTHON, the interpreter of an environment with nvidia-modelopt[onnx]"
        )
    if options.quantizes_for_tensorrt and options.modelopt:
        ModelOpt(options.modelopt).check()


@dataclass(frozen=True)
class _Graphs:
    """The graphs of a bundle, by what the manifest calls them."""

    backbone: EngineRecord
    reencoder: EngineRecord
    decoder: EngineRecord
    beam_decoder: EngineRecord


def _export_graphs(checkpoint: Checkpoint, folder: Path, options: BuildOptions, progress: Progress) -> _Graphs:
    step, precision = progress.step, options.other_precision
    step("backbone to ONNX, checked against torch")
    images = None if options.calibration is None else read_calibration(options.calibration, checkpoint)
    modelopt = ModelOpt(options.modelopt) if options.modelopt and options.quantizes_for_tensorrt else None
    backbone = export_backbone(checkpoint.backbone, folder, options.precision, images, modelopt)
    step("re-encoder to ONNX, checked against torch")
    reencoder = export_reencoder(checkpoint.backbone, folder, precision)
    step("decoder to ONNX, checked against torch")
    decoder = export_decoder(checkpoint.decoder, folder, precision)
    step("decoder for beam search to ONNX, checked against torch")
    return _Graphs(backbone, reencoder, decoder, export_beam_decoder(checkpoint.decoder, folder, precision))


def _manifest(
    checkpoint: Checkpoint, graphs: _Graphs, memory: MemorySettings | None, options: BuildOptions
) -> Manifest:
    """All but the plans and the files."""
    seen = checkpoint.backbone.config
    decoding = decoder_settings(checkpoint.decoder.config, checkpoint.end_id)
    return Manifest.model_construct(
        schema_version=SCHEMA,
        backend=options.backend,
        architecture=Architecture(
            name=checkpoint.backbone_name,
            width=seen.width,
            depth=seen.depth,
            heads=seen.heads,
            patch=seen.patch,
            registers=seen.registers,
            size=seen.size,
            resize=checkpoint.resize,
            mean=seen.mean,
            std=seen.std,
            images_at_once=options.max_images,
        ),
        backbone=graphs.backbone,
        decoder=graphs.decoder,
        reencoder=graphs.reencoder,
        beam_decoder=graphs.beam_decoder,
        decoding=decoding.model_copy(
            update={
                "batches": batches(options.max_regions),
                "cache": "fp32" if options.other_precision == "int8" else options.other_precision,
            }
        ),
        memory=memory,
        tokenizer=_TOKENIZER_FILE,
        build=Build(
            checkpoint=checkpoint.source,
            built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            versions={name: metadata.version(name) for name in _VERSIONS_OF},
        ),
        plans=(),
        files={},
    )


def decoder_settings(config: DecoderConfig, end_id: int) -> DecoderSettings:
    """What the runtime must know to step a decoder."""
    return DecoderSettings(
        width=config.width,
        layers=config.layers,
        heads=config.heads,
        head_width=config.head_width,
        steps=config.steps,
        vocabulary=config.vocabulary,
        end_id=end_id,
    )
