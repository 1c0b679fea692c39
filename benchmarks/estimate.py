"""Estimate how long a bundle takes on a board that is not here: `python benchmarks/estimate.py engines/demo`.

Worked out, not measured: the least work of each stage (`benchmarks/timing/work_estimate.py`) at a share of the board's
published peak. A run of `benchmarks/latency.py` on the board is what counts.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

from rich import box
from rich.console import Console
from rich.table import Table

from benchmarks.timing.stages import TYPICAL_TOKENS
from benchmarks.timing.work_estimate import WorkEstimate, backbone_work, decoding_work, projection_work
from export.command_line import bundle_folder, run_command
from runtime import PatchcaptionError
from runtime.bundle import Bundle, Manifest
from runtime.bundle.dtypes import NUMBER_FORMATS, StoragePrecision


@dataclass(frozen=True)
class Board:
    """A board's published peaks, without sparsity.

    Attributes:
        gigabytes_per_s: of its memory.
        fp16_tflop_per_s: of its tensor cores, in float16 and bfloat16.
        fp32_tflop_per_s: of its CUDA cores.
    """

    gigabytes_per_s: float
    fp16_tflop_per_s: float
    fp32_tflop_per_s: float


BOARDS = {
    "Orin Nano 8 GB, 25 W (Super)": Board(102.4, 16.7, 2.1),
    "Orin NX 16 GB, 25 W": Board(102.4, 15.0, 1.9),
    "AGX Orin 64 GB, MAXN": Board(204.8, 42.5, 5.3),
    "AGX Thor 128 GB": Board(273.0, 259.0, 8.1),
}
"""The boards by name. A published figure of INT8 with sparsity, of the GPU alone, is four times float16 without."""

_BANK_READS = 2
"""One for the similarities and one for the weighted sum: the bank is larger than any cache."""

SHARES = {"backbone": 0.6, "projection": 0.8, "decoding": 0.7}
"""Shares of a board's peak that well-made kernels reach; small models, which keep a GPU less busy, reach less."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Work out how long a bundle should take on Jetson boards.")
    parser.add_argument("bundle", type=bundle_folder)
    parser.add_argument("--regions", type=int, nargs="+", default=[1, 16, 64], help="default: 1 16 64")
    parser.add_argument("--precision", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: %(default)s")
    parser.add_argument("--memory-precision", choices=NUMBER_FORMATS, default="fp16", help="default: %(default)s")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    manifest = Bundle(options.bundle, verify=False).manifest
    if min(options.regions) < 1:
        raise PatchcaptionError(f"--regions: expected at least 1, got {min(options.regions)}")
    Console(width=120).print(_table(manifest, options.regions, options.precision, options.memory_precision))


def estimate_ms(work: WorkEstimate, stage: str, board: Board) -> float:
    """Return the longer of arithmetic and traffic, at the share of the peak that the stage reaches."""
    tflop_per_s = board.fp16_tflop_per_s if work.reduced_precision else board.fp32_tflop_per_s
    return max(work.flop / tflop_per_s / 1e9, work.bytes / board.gigabytes_per_s / 1e6) / SHARES[stage]


def stage_works(
    manifest: Manifest, regions: int, precision: StoragePrecision, memory_precision: StoragePrecision
) -> dict[str, WorkEstimate]:
    """Return the work of each stage for an image and some regions of it, with captions of a typical length."""
    backbone, weight_bytes = manifest.backbone, NUMBER_FORMATS[precision].bytes
    width, rows = backbone.output_dim, manifest.memory.num_rows if manifest.memory else 0
    bank_bytes = _BANK_READS * rows * width * NUMBER_FORMATS[memory_precision].bytes
    return {
        "backbone": backbone_work(backbone, weight_bytes),
        "projection": projection_work(width, regions, rows, bank_bytes),
        "decoding": decoding_work(
            manifest.decoder, width, regions, TYPICAL_TOKENS, weight_bytes, _mapping_weights(manifest)
        ),
    }


def _mapping_weights(manifest: Manifest) -> int:
    """Return the number of the mapping's weights by the size of their file; 0 for a decoder without a prompt."""
    mapping = manifest.engines.get("mapping")
    if mapping is None:
        return 0
    number_bytes = {"fp16": 2, "bf16": 2, "int8": 1}.get(mapping.precision, 4)
    return manifest.files[f"{mapping.file}.data"].bytes // number_bytes


def _table(
    manifest: Manifest, counts: Sequence[int], precision: StoragePrecision, memory_precision: StoragePrecision
) -> Table:
    backbone = manifest.backbone
    size = backbone.preprocessing.image_size
    title = f"estimates, ms: {backbone.name}, {size} px, {precision}, memory bank in {memory_precision}"
    table = Table(title=title, box=box.MARKDOWN)
    for heading in ("board", "regions", *SHARES, "together"):
        table.add_column(heading, justify="left" if heading == "board" else "right")
    for name, board in BOARDS.items():
        for count in counts:
            works = stage_works(manifest, count, precision, memory_precision)
            estimates_ms = [estimate_ms(works[stage], stage, board) for stage in SHARES]
            table.add_row(name, str(count), *(f"{ms:.1f}" for ms in (*estimates_ms, sum(estimates_ms))))
    return table


if __name__ == "__main__":
    sys.exit(main())
