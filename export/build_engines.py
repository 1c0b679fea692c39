"""Builds a bundle from a checkpoint: `python export/build_engines.py demo --out engines/demo`."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from export.checkpoint import Checkpoint
from export.graphs.decoder import DecoderConfig
from export.lint import lint
from export.memory_file import write_memory
from export.onnx_export import ExportError, export_backbone, export_beam_decoder, export_decoder, export_reencoder
from export.profiles import batches, of_backbone, of_beam_decoder, of_decoder, of_reencoder
from export.readers import is_repository, read_checkpoint
from export.tensorrt_build import PlanOptions, Profile, build_plan, last_bundle, timing_cache_file
from runtime.backends.gpu import Gpu
from runtime.backends.tensorrt_api import TensorRt, open_tensorrt
from runtime.bundle import (
    SCHEMA,
    Architecture,
    Build,
    Bundle,
    BundleBackend,
    DecoderSettings,
    EnginePrecision,
    EngineRecord,
    Manifest,
    MemoryPrecision,
    MemorySettings,
    PlanHardware,
    PlanRecord,
    new_bundle,
    record_files,
    write_manifest,
)
from runtime.errors import PatchcaptionError

_TOKENIZER_FILE = "tokenizer.json"
_VERSIONS_OF = ("patchcaption", "torch", "onnx", "onnxscript", "onnxruntime")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="build_engines.py", description="Build a bundle from a checkpoint.")
    parser.add_argument(
        "checkpoint",
        nargs="?",
        default="demo",
        help="demo (default); seeded:ARCHITECTURE[,size=518][,memory=2000][,salt=] with made-up weights, for example "
        "seeded:dinov2_vitb14_reg,size=224; the path of a Patch-ioner .yaml; or OWNER/NAME on the Hugging Face hub",
    )
    parser.add_argument("--out", type=Path, help="the bundle's folder (default: engines/NAME for demo and the hub)")
    parser.add_argument(
        "--checkpoint-dir", type=Path, metavar="FOLDER", help="where to look for checkpoint files before downloading"
    )
    parser.add_argument(
        "--backend",
        choices=get_args(BundleBackend),
        default="cpu",
        help="what the bundle is for, and opened with by default; tensorrt builds plans, on the GPU they are for "
        "(default: cpu)",
    )
    parser.add_argument(
        "--precision",
        choices=get_args(EnginePrecision),
        default="fp32",
        help="what the graphs compute products in: fp16 and bf16 for GPUs; int8 for CPUs, where it is smaller and "
        "faster; each changes few captions (default: fp32)",
    )
    parser.add_argument(
        "--memory-precision",
        choices=get_args(MemoryPrecision),
        default="fp32",
        help="what the memory bank is stored in; no choice changes projected vectors by 1e-3 (default: fp32)",
    )
    parser.add_argument("--max-images", type=_count, default=8, help="images the backbone takes at once (default: 8)")
    parser.add_argument("--max-regions", type=_count, default=256, help="captions decoded at once (default: 256)")
    _add_plan_options(parser.add_argument_group("TensorRT"))
    options = parser.parse_args(arguments)
    if options.out is None:
        if options.checkpoint != "demo" and not is_repository(options.checkpoint):
            parser.error("--out is needed for any checkpoint but demo and those of the hub")
        options.out = Path("engines") / options.checkpoint.split("/")[-1]
    console = Console(stderr=True)
    try:
        build(options.checkpoint, options.out, console, _build_options(options))
    except PatchcaptionError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(f"interrupted: {options.out} is as it was")
        return 130
    Console().print(_report(Bundle(options.out, verify=False)))
    return 0


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
        plans: how TensorRT builds.
    """

    checkpoint_dir: Path | None = None
    backend: BundleBackend = "cpu"
    precision: EnginePrecision = "fp32"
    memory_precision: MemoryPrecision = "fp32"
    max_images: int = 8
    max_regions: int = 256
    plans: PlanOptions = field(default_factory=PlanOptions)


_AS_ASKED = BuildOptions()


def build(name: str, out: Path, console: Console, options: BuildOptions = _AS_ASKED) -> None:
    """Builds the bundle of a checkpoint at ``out``; whatever was there stays until the new one is complete.

    Raises:
        PatchcaptionError: the checkpoint cannot be read, a graph is not what its module is, ``out`` cannot be written,
            TensorRT is asked for and is not there or refuses a graph.
    """
    # First, so that what is missing is said before the minutes that an export takes.
    trt = open_tensorrt() if options.backend == "tensorrt" else None
    with _steps(console, total=8 if trt else 7) as step, new_bundle(out) as folder:
        step(f"reading {name}")
        checkpoint = read_checkpoint(name, options.checkpoint_dir)
        for note in checkpoint.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        graphs = _export_graphs(checkpoint, folder, options.precision, step)
        step("memory bank and tokenizer")
        memory = write_memory(checkpoint.memory, folder, options.memory_precision) if checkpoint.memory else None
        checkpoint.tokenizer.save(str(folder / _TOKENIZER_FILE))
        manifest = _manifest(checkpoint, graphs, memory, options)
        if trt:
            manifest = manifest.model_copy(update={"plans": _build_plans(trt, manifest, folder, out, options, step)})
        step("manifest")
        write_manifest(folder, Manifest.model_validate(dict(manifest) | {"files": record_files(folder)}))


@dataclass(frozen=True)
class _Graphs:
    """The graphs of a bundle, by what the manifest calls them."""

    backbone: EngineRecord
    reencoder: EngineRecord
    decoder: EngineRecord
    beam_decoder: EngineRecord


def _export_graphs(
    checkpoint: Checkpoint, folder: Path, precision: EnginePrecision, step: Callable[[str], None]
) -> _Graphs:
    step("backbone to ONNX, checked against torch")
    backbone = export_backbone(checkpoint.backbone, folder, precision)
    step("re-encoder to ONNX, checked against torch")
    reencoder = export_reencoder(checkpoint.backbone, folder, precision)
    step("decoder to ONNX, checked against torch")
    decoder = export_decoder(checkpoint.decoder, folder, precision)
    step("decoder for beam search to ONNX, checked against torch")
    return _Graphs(backbone, reencoder, decoder, export_beam_decoder(checkpoint.decoder, folder, precision))


def _build_plans(
    trt: TensorRt, manifest: Manifest, folder: Path, out: Path, options: BuildOptions, step: Callable[[str], None]
) -> tuple[PlanRecord, ...]:
    """A plan of each graph, for the GPU that is here."""
    seen, decoding = manifest.architecture, manifest.decoding
    profiles = {
        "backbone.onnx": of_backbone(seen),
        "reencoder.onnx": of_reencoder(seen, decoding),
        "decoder.onnx": of_decoder(seen, decoding),
        "beam_decoder.onnx": of_beam_decoder(seen, decoding),
    }
    for graph, of_graph in profiles.items():
        _check_for_tensorrt(folder / graph, trt, of_graph)
    gpu, before = Gpu.here(), last_bundle(out)
    records = []
    for graph, of_graph in profiles.items():
        step(f"{graph} to a TensorRT plan for {gpu.name}")
        cache = timing_cache_file(trt, gpu)
        records.append(build_plan(trt, gpu, folder / graph, of_graph, options.plans, cache, before, lambda *_: None))
    return tuple(records)


def _check_for_tensorrt(graph: Path, trt: TensorRt, profiles: Sequence[Profile]) -> None:
    """Says what TensorRT would refuse before it does, minutes later and in its own words."""
    errors = [found for found in lint(graph, trt.release, profiles) if found.severity == "error"]
    if errors:
        more = f", and {len(errors) - 1} more: python -m export.lint" if len(errors) > 1 else ""
        raise ExportError(f"{graph.name}: TensorRT {trt.version} will not take it: {errors[0]}{more}")


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
                "cache": "fp32" if options.precision == "int8" else options.precision,
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


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError(f"expected at least 1, got {count}")
    return count


def _add_plan_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--workspace-mib", type=_count, help="memory that plans may take for what is in between")
    group.add_argument(
        "--version-compatible", action="store_true", help="let newer versions of the same major load them"
    )
    group.add_argument(
        "--hardware",
        choices=get_args(PlanHardware),
        default="same",
        help="which GPUs may load them: the same kind, the same compute capability, or all from Ampere on; more of "
        "them are slower (default: same)",
    )
    group.add_argument(
        "--dla", type=int, metavar="CORE", help="build for a DLA core of a Jetson, with the GPU beside it"
    )
    group.add_argument(
        "--optimization-level",
        type=int,
        choices=range(6),
        default=3,
        help="how long to look for fast kernels (default: 3)",
    )


def _build_options(options: argparse.Namespace) -> BuildOptions:
    return BuildOptions(
        checkpoint_dir=options.checkpoint_dir,
        backend=options.backend,
        precision=options.precision,
        memory_precision=options.memory_precision,
        max_images=options.max_images,
        max_regions=options.max_regions,
        plans=PlanOptions(
            workspace_mib=options.workspace_mib,
            version_compatible=options.version_compatible,
            hardware=options.hardware,
            dla=options.dla,
            optimization_level=options.optimization_level,
        ),
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


@contextmanager
def _steps(console: Console, total: int) -> Iterator[Callable[[str], None]]:
    """Shows how far a build is; yields a function that names the next step."""
    columns = (MofNCompleteColumn(), BarColumn(20), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total, completed=-1)

        def step(description: str) -> None:
            progress.update(task, advance=1, description=description)
            progress.refresh()

        yield step


def _report(bundle: Bundle) -> Table:
    manifest = bundle.manifest
    table = Table(title=f"{bundle.folder}: {manifest.build.checkpoint}, {manifest.architecture.name}")
    for heading in ("file", "MiB", "precision", "largest difference"):
        table.add_column(heading, justify="left" if heading == "file" else "right")
    records = (manifest.backbone, manifest.reencoder, manifest.decoder, manifest.beam_decoder)
    engines = {record.file: record for record in records if record is not None}
    for name, record in manifest.files.items():
        engine = engines.get(name)
        size = f"{record.bytes / 2**20:.2f}"
        precision, difference = (engine.precision, f"{engine.largest_difference:.1e}") if engine else ("", "")
        table.add_row(name, size, precision, difference)
    return table


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a build that is stopped tidies up
    sys.exit(main())
