"""Builds a bundle from a checkpoint: graphs, memory bank, tokenizer, plans and manifest.

The folder appears when all of it is complete, or not at all.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from export.checkpoint import Checkpoint, CheckpointError
from export.graphs.calibration_images import prepare_calibration, read_calibration
from export.graphs.errors import ExportError
from export.graphs.exporter import export_graph
from export.graphs.specs import backbone_spec, decoder_specs, reencoder_spec
from export.memory.bank_file import write_memory
from export.models import BundleNumbers
from export.plans.builder import PlanOptions, open_previous_bundle
from export.plans.bundle_plans import BuildReporter, build_plans, open_target
from export.plans.profiles import batch_sizes
from export.readers import read_checkpoint
from export.readers.families import find_architecture
from export.text_spaces import have_same_vectors, how_to_make_banks
from runtime.backends import BACKENDS
from runtime.backends.imports import import_onnxruntime
from runtime.bundle import (
    SCHEMA,
    BuildInfo,
    BundleBackend,
    ConceptsConfig,
    EngineName,
    EnginePrecision,
    EngineRecord,
    EntitiesConfig,
    GraphPrecision,
    Manifest,
    MemoryConfig,
    new_bundle,
    record_files,
    write_manifest,
)
from runtime.bundle.dtypes import StoragePrecision

_TOKENIZER_FILE = "tokenizer.json"
_SAMPLE_VECTORS = 32
_VERSIONED_PACKAGES = ("patchcaption", "torch", "onnx", "onnxscript", "onnxruntime")
_FLOATS: tuple[EnginePrecision, ...] = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class BuildOptions:
    """How a bundle is built.

    Attributes:
        checkpoint_dir: where the checkpoint's files are looked for before they are downloaded.
        backend: the backend that it is for.
        precision: the precision of the graphs' matrix products.
        memory_precision: the precision that the memory bank is stored in.
        max_images: the most images that the backbone takes at once.
        max_regions: the most captions that are decoded at once.
        plans: how TensorRT builds; None for a bundle that gets its plans elsewhere, by build_plans.py.
        calibration: a folder of images that show how large activations become; None for those that the checkpoint
            comes with, else for a pattern and noise, which is not enough for fp8 and int8.
    """

    checkpoint_dir: Path | None = None
    backend: BundleBackend = "cpu"
    precision: EnginePrecision = "fp32"
    memory_precision: StoragePrecision = "fp32"
    max_images: int = 8
    max_regions: int = 256
    plans: PlanOptions | None = field(default_factory=PlanOptions)
    calibration: Path | None = None

    @property
    def quantizes(self) -> bool:
        """Whether the backbone's products are in 8 bits, by scales that images show."""
        return self.precision not in _FLOATS

    @property
    def other_precision(self) -> GraphPrecision:
        """The precision of the graphs other than the backbone."""
        if not self.quantizes:
            return self.precision
        return "fp16" if BACKENDS[self.backend].device == "cuda" else "int8_weights"

    @property
    def has_plans(self) -> bool:
        """Whether TensorRT builds plans."""
        return BACKENDS[self.backend].needs_plans and self.plans is not None

    @property
    def steps(self) -> int:
        """The number of steps that a build reports by `BuildReporter.step`."""
        return 11 if self.has_plans else 7


_DEFAULT_OPTIONS = BuildOptions()


def build(name: str, out: Path, progress: BuildReporter, options: BuildOptions = _DEFAULT_OPTIONS) -> None:
    """Build the bundle of a checkpoint at ``out``; whatever was there stays until the new one is complete.

    Raises:
        PatchcaptionError: the checkpoint cannot be read, a graph is not what its module is, ``out`` cannot be written,
            TensorRT is asked for and is not there or refuses a graph.
    """
    # Checked first, so that what is missing is reported before the minutes that an export takes.
    import_onnxruntime()
    _check_options(options)
    plan_options = options.plans if options.has_plans else None
    target = open_target(options.backend, options.precision, plan_options) if plan_options else None
    with new_bundle(out) as folder:
        progress.step(f"reading {name}")
        checkpoint = read_checkpoint(name, options.checkpoint_dir)
        _check_samples(checkpoint, options)
        for note in checkpoint.notes:
            progress.note(note)
        _check_text_space(checkpoint)
        engines = _export_graphs(checkpoint, folder, options, progress)
        progress.step("memory bank and tokenizer")
        memory = None
        if checkpoint.memory:
            memory = write_memory(checkpoint.memory, folder, checkpoint.text_space, options.memory_precision)
        checkpoint.tokenizer.save(str(folder / _TOKENIZER_FILE))
        prompts = checkpoint.prompts.write(folder) if checkpoint.prompts else None
        manifest = _manifest(checkpoint, engines, memory, prompts, options)
        if target and plan_options:
            plans = build_plans(target, manifest, folder, open_previous_bundle(out), plan_options, progress)
            manifest = manifest.model_copy(update={"plans": plans})
        progress.step("manifest")
        write_manifest(folder, Manifest.model_validate(dict(manifest) | {"files": record_files(folder)}))


def _check_options(options: BuildOptions) -> None:
    """Raise if a backend does not have a precision, or what the precision needs was not given."""
    backend, precision = options.backend, options.precision
    quantized = (one for one in BACKENDS[backend].graph_precisions if one not in _FLOATS)
    available = (*_FLOATS, *quantized)
    if precision not in available:
        raise ExportError(f"--precision {precision}: the backend {backend} has {', '.join(available)}")
    if options.quantizes and BACKENDS[backend].device == "cuda" and options.calibration is None:
        raise _needs_calibration(options)


def _check_samples(checkpoint: Checkpoint, options: BuildOptions) -> None:
    """Raise if nothing shows how large the activations of a backbone in 8 bits become."""
    if options.quantizes and options.calibration is None and checkpoint.sample_images is None:
        raise _needs_calibration(options)


def _needs_calibration(options: BuildOptions) -> ExportError:
    return ExportError(
        f"--precision {options.precision} --backend {options.backend}: needs --calibration FOLDER with images like "
        "those to be described"
    )


def _check_text_space(checkpoint: Checkpoint) -> None:
    """Raise if decoder and memory bank are of another space than the backbone's vectors, or of two."""
    space, bank, backbone = checkpoint.text_space, checkpoint.memory, checkpoint.backbone_name
    found = find_architecture(backbone)
    own = space if found is None or found[1].text_space is None else found[1].text_space
    if not have_same_vectors(own, space):
        raise CheckpointError(
            f"{checkpoint.source}: text_space: expected {own!r}, the space of {backbone}, got {space!r}; take the "
            "decoder and the bank of that space, or the backbone of this one"
        )
    if bank is not None and bank.text_space not in (None, space):
        renamed = ", or name its space by text_space in the configuration"
        raise CheckpointError(
            f"{bank.source}: expected embeddings in the text space {space!r}, the decoder's, got {bank.text_space!r}; "
            f"{how_to_make_banks(space)}{renamed if have_same_vectors(own, bank.text_space) else ''}"
        )


def _export_graphs(
    checkpoint: Checkpoint, folder: Path, options: BuildOptions, progress: BuildReporter
) -> dict[EngineName, EngineRecord]:
    precision, device = options.other_precision, BACKENDS[options.backend].device
    progress.step("backbone to ONNX, checked against torch")
    images = _calibration_images(checkpoint, options)
    backbone = export_graph(backbone_spec(checkpoint.backbone, images), folder, options.precision, device)
    engines: dict[EngineName, EngineRecord] = {"backbone": backbone}
    progress.step("re-encoder to ONNX, checked against torch")
    if checkpoint.backbone.last_block is not None:
        engines["reencoder"] = export_graph(reencoder_spec(checkpoint.backbone), folder, precision, device)
    checkpoint.decoder.prepare_for(device, rounds_weights=precision == "int8_weights")
    progress.step("decoder to ONNX, checked against torch")
    vectors = _sample_vectors(checkpoint) if precision == "int8_weights" else None
    for name, spec in decoder_specs(checkpoint.decoder, vectors).items():
        if name == "beam_decoder":
            progress.step("decoder for beam search to ONNX, checked against torch")
        engines[name] = export_graph(spec, folder, precision, device)
    return engines


def _sample_vectors(checkpoint: Checkpoint) -> Tensor | None:
    """Return some vectors (R, D) like those that are decoded, of a memory bank's captions; None without a bank."""
    if checkpoint.memory is None:
        return None
    rows, _ = next(checkpoint.memory.rows())
    chosen = rows[:: max(1, len(rows) // _SAMPLE_VECTORS)][:_SAMPLE_VECTORS].float()
    return F.normalize(chosen, dim=1) if checkpoint.memory.normalize else chosen


def _calibration_images(checkpoint: Checkpoint, options: BuildOptions) -> Tensor | None:
    """Return images (B, S, S, 3) uint8 that show how large activations become; None for a pattern and noise."""
    if options.calibration is not None:
        return read_calibration(options.calibration, checkpoint)
    if not options.quantizes or checkpoint.sample_images is None:
        return None
    return prepare_calibration(checkpoint.sample_images(), checkpoint)


def _manifest(
    checkpoint: Checkpoint,
    engines: dict[EngineName, EngineRecord],
    memory: MemoryConfig | None,
    prompts: EntitiesConfig | ConceptsConfig | None,
    options: BuildOptions,
) -> Manifest:
    """Return the manifest without plans and files."""
    numbers = BundleNumbers(
        text_space=checkpoint.text_space,
        eos_token_ids=checkpoint.eos_token_ids,
        max_images=options.max_images,
        batch_sizes=batch_sizes(options.max_regions),
        precision=options.other_precision,
        resize_short_side=checkpoint.resize_short_side,
        hard_prompt=prompts,
    )
    return Manifest.model_construct(
        schema_version=SCHEMA,
        backend=options.backend,
        backbone=checkpoint.backbone.manifest_entry(checkpoint.backbone_name, numbers),
        decoder=checkpoint.decoder.manifest_entry(numbers),
        memory=memory,
        engines=engines,
        plans=(),
        tokenizer=_TOKENIZER_FILE,
        build=_build_info(checkpoint.source),
        files={},
    )


def _build_info(source: str) -> BuildInfo:
    return BuildInfo(
        checkpoint=source,
        built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        versions={name: metadata.version(name) for name in _VERSIONED_PACKAGES},
    )
