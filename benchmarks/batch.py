"""Caption many images here and through Ray, in turns: `python benchmarks/batch.py`.

What is compared is the same loop: images a second from the first part that is done to the last, on all cores of this
machine. Beside them stand the whole time, with what starting and joining take, the backbone alone in batches, which is
the ceiling, and what the process keeps in memory after a quarter of its parts and at the end.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

if not __package__:  # run by its path: the packages of this clone, whatever is installed
    sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
from PIL import Image
from rich.console import Console

from benchmarks.timing.http_sessions import scenes
from benchmarks.timing.machine_limits import calls_a_second, machine_line
from export.command_line import run_command
from runtime import Captioner, PatchcaptionError
from runtime.backends import BACKEND_NAMES, PRECISIONS
from runtime.batch.part_captioner import CaptionerSettings
from runtime.batch.plan import PlannedPart
from runtime.batch.ray_cluster import RayExecutor
from runtime.batch.result_files import ResultFormat
from runtime.batch.run import BatchJob, DoneParts, Executor, execute_here, run_batch
from runtime.bundle import Bundle
from runtime.options import DescribeKeywords
from runtime.system.machine import usable_cores

_CEILING_S = 3.0
_BATCH = 8


@dataclass
class BatchTurn:
    """One run over the images.

    Attributes:
        done_s: when each part was done, in seconds from the start.
        memory_mib: what this process kept then, without files that are mapped.
        total_s: until the file of results was there.
    """

    done_s: list[float]
    memory_mib: list[float]
    total_s: float = 0.0

    def rate(self, part_images: int) -> float:
        """Images a second, from the first part that was done to the last."""
        return part_images * (len(self.done_s) - 1) / (self.done_s[-1] - self.done_s[0])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    parser = argparse.ArgumentParser(description="Caption many images here and through Ray, in turns.")
    parser.add_argument("bundle", type=Path, nargs="?", default=Path("engines/demo"), help="default: %(default)s")
    parser.add_argument("--images", type=int, default=512, help="default: %(default)s")
    parser.add_argument("--regions", type=int, default=4, help="of each image (default: %(default)s)")
    parser.add_argument("--side", type=int, default=480, help="of the images, in pixels (default: %(default)s)")
    parser.add_argument("--part-images", type=int, default=32, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=3, help="default: %(default)s")
    parser.add_argument("--mode", choices=("decode", "nearest"), default="decode")
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")
    parser.add_argument("--without-ray", action="store_true")
    return run_command(partial(_run, parser.parse_args(arguments)))


def _run(options: argparse.Namespace) -> None:
    if options.images < 3 * options.part_images:
        raise PatchcaptionError("--images: expected at least 3 parts")
    console = Console(width=140)
    console.print(machine_line(), markup=False)
    executors: dict[str, Executor] = {"here": execute_here}
    if not options.without_ray:
        executors["ray"] = RayExecutor("local", usable_cores())
    rates: dict[str, list[float]] = {name: [] for name in executors}
    with TemporaryDirectory() as folder:
        images = _make_images(Path(folder), options.images, options.side)
        for _ in range(options.rounds):
            console.print(f"- ceiling: {_ceiling(options, images):.1f} images/s", markup=False)
            for name, executor in executors.items():
                turn = _turn(options, executor, images)
                rates[name].append(turn.rate(options.part_images))
                quarter = turn.memory_mib[len(turn.memory_mib) // 4]
                console.print(
                    f"- {name}: {rates[name][-1]:.1f} images/s, {options.images / turn.total_s:.1f} with start and end "
                    f"({turn.total_s:.1f} s); {quarter:.1f} MiB after a quarter, {turn.memory_mib[-1]:.1f} at the end",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
    if not options.without_ray:
        ratios = [ray / here for ray, here in zip(rates["ray"], rates["here"], strict=True)]
        console.print(
            f"- ratio of ray to here: {statistics.median(ratios):.3f} (median of {len(ratios)})", markup=False
        )


def _turn(options: argparse.Namespace, executor: Executor, images: Path) -> BatchTurn:
    """Caption all images once."""
    start, turn = time.perf_counter(), BatchTurn([], [])

    def execute(parts: Iterable[PlannedPart], settings: CaptionerSettings, form: ResultFormat) -> DoneParts:
        for done in executor(parts, settings, form):
            turn.done_s.append(time.perf_counter() - start)
            turn.memory_mib.append(_memory_mib())
            yield done

    bundle = Bundle(options.bundle, verify=False)
    keywords: DescribeKeywords = {"mode": options.mode}
    settings = CaptionerSettings(
        str(options.bundle.absolute()),
        bundle.manifest_sha256(),
        options.backend,
        precision=options.precision,
        threads=usable_cores(),
        options=keywords,
    )
    with TemporaryDirectory() as folder:
        regions = Path(folder) / "regions.json"
        boxes = np.random.default_rng(0).uniform((0, 0, 0.5, 0.5), (0.5, 0.5, 1, 1), (options.regions, 4))
        regions.write_text(json.dumps((boxes * options.side).tolist()), encoding="utf-8")
        job = BatchJob([str(images)], regions, Path(folder) / "out.parquet", part_images=options.part_images)
        summary = run_batch(job, settings, execute, print)
        if summary.counts.errors or summary.counts.rows != options.images * options.regions:
            raise PatchcaptionError(f"expected {options.images * options.regions} captions, got {summary.counts}")
    turn.total_s = time.perf_counter() - start
    return turn


def _make_images(folder: Path, count: int, side: int) -> Path:
    """Write images under so many names; those of one scene are one file."""
    files = []
    for number, scene in enumerate(scenes()):
        files.append(folder / f"{number}.jpg")
        with Image.open(io.BytesIO(scene)) as image:
            image.resize((side, side)).save(files[-1], quality=90)
    for number in range(count):
        name = folder / "images" / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        name.parent.mkdir(parents=True, exist_ok=True)
        name.hardlink_to(files[number % len(files)])
    return folder / "images"


def _ceiling(options: argparse.Namespace, images: Path) -> float:
    """Return the images a second of the backbone alone."""
    files = [str(path) for path in sorted(images.rglob("*.jpg"))[:_BATCH]]
    with Captioner.load(
        options.bundle, options.backend, precision=options.precision, threads=usable_cores(), verify=False
    ) as captioner:
        opened = [np.asarray(Image.open(file)) for file in files]
        return _BATCH * calls_a_second(partial(captioner.encode, opened), _CEILING_S)


def _memory_mib() -> float:
    _, resident, mapped = Path("/proc/self/statm").read_text(encoding="ascii").split()[:3]
    return (int(resident) - int(mapped)) * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    sys.exit(main())
