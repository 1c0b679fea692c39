"""Builds a bundle from a checkpoint: `python export/build_engines.py demo --out engines/demo`."""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import get_args

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from export.checkpoint import Checkpoint
from export.graphs.decoder import DecoderConfig
from export.memory_file import write_memory
from export.onnx_export import export_backbone, export_beam_decoder, export_decoder, export_reencoder
from export.readers import is_repository, read_checkpoint
from runtime.bundle import (
    Architecture,
    Build,
    Bundle,
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
        "--precision",
        choices=get_args(EnginePrecision),
        default="fp32",
        help="what the graphs multiply their weights in; int8 is smaller and faster, and changes few captions "
        "(default: fp32)",
    )
    parser.add_argument(
        "--memory-precision",
        choices=get_args(MemoryPrecision),
        default="fp32",
        help="what the memory bank is stored in; no choice changes projected vectors by 1e-3 (default: fp32)",
    )
    options = parser.parse_args(arguments)
    if options.out is None:
        if options.checkpoint != "demo" and not is_repository(options.checkpoint):
            parser.error("--out is needed for any checkpoint but demo and those of the hub")
        options.out = Path("engines") / options.checkpoint.split("/")[-1]
    console = Console(stderr=True)
    try:
        build(
            options.checkpoint,
            options.out,
            console,
            options.checkpoint_dir,
            options.memory_precision,
            options.precision,
        )
    except PatchcaptionError as error:
        console.print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    except KeyboardInterrupt:
        console.print(f"interrupted: {options.out} is as it was")
        return 130
    Console().print(_report(Bundle(options.out, verify=False)))
    return 0


def build(
    name: str,
    out: Path,
    console: Console,
    checkpoint_dir: Path | None = None,
    memory_precision: MemoryPrecision = "fp32",
    precision: EnginePrecision = "fp32",
) -> None:
    """Builds the bundle of a checkpoint at ``out``; whatever was there stays until the new one is complete.

    Args:
        checkpoint_dir: where its files are looked for before they are downloaded.
        memory_precision: what the memory bank is stored in.
        precision: what the graphs multiply their weights in.

    Raises:
        PatchcaptionError: the checkpoint cannot be read, a graph is not what its module is, ``out`` cannot be written.
    """
    with _steps(console, total=7) as step, new_bundle(out) as folder:
        step(f"reading {name}")
        checkpoint = read_checkpoint(name, checkpoint_dir)
        for note in checkpoint.notes:
            console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
        step("backbone to ONNX, checked against torch")
        backbone = export_backbone(checkpoint.backbone, folder, precision)
        step("re-encoder to ONNX, checked against torch")
        reencoder = export_reencoder(checkpoint.backbone, folder, precision)
        step("decoder to ONNX, checked against torch")
        decoder = export_decoder(checkpoint.decoder, folder, precision)
        step("decoder for beam search to ONNX, checked against torch")
        beam_decoder = export_beam_decoder(checkpoint.decoder, folder, precision)
        step("memory bank and tokenizer")
        memory = write_memory(checkpoint.memory, folder, memory_precision) if checkpoint.memory else None
        checkpoint.tokenizer.save(str(folder / _TOKENIZER_FILE))
        step("manifest")
        write_manifest(folder, _manifest(checkpoint, backbone, reencoder, decoder, beam_decoder, memory, folder))


def _manifest(
    checkpoint: Checkpoint,
    backbone: EngineRecord,
    reencoder: EngineRecord,
    decoder: EngineRecord,
    beam_decoder: EngineRecord,
    memory: MemorySettings | None,
    folder: Path,
) -> Manifest:
    seen = checkpoint.backbone.config
    return Manifest(
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
        ),
        backbone=backbone,
        decoder=decoder,
        reencoder=reencoder,
        beam_decoder=beam_decoder,
        decoding=decoder_settings(checkpoint.decoder.config, checkpoint.end_id),
        memory=memory,
        tokenizer=_TOKENIZER_FILE,
        build=Build(
            checkpoint=checkpoint.source,
            built_at=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            machine=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            versions={name: metadata.version(name) for name in _VERSIONS_OF},
        ),
        files=record_files(folder),
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
