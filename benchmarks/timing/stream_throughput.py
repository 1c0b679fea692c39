"""A stream of frames beside the same work done one step after another."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from PIL import Image
from rich import box
from rich.table import Table

from benchmarks.timing.stages import as_regions, sample_boxes
from runtime import Captioner, Region
from runtime.video.sources import Frame, open_source

_FRAMES, _WH, _RATE = 90, (640, 480), 30
_SHIFT = 2
"""Pixels from frame to frame, so that none is the one before."""


def write_clip(path: Path) -> None:
    """Three seconds of something that moves."""
    random = np.random.default_rng(0)
    wide = Image.fromarray(random.integers(0, 256, (12, 20, 3), np.uint8))
    wide = wide.resize((_WH[0] + _SHIFT * _FRAMES, _WH[1]), Image.Resampling.BICUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt = *_WH, "yuv420p"
        for left in range(0, _SHIFT * _FRAMES, _SHIFT):
            picture = wide.crop((left, 0, left + _WH[0], _WH[1]))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode())


def video_table(
    captioner: Captioner, clip: Path, counts: Sequence[int], runs: int, tell: Callable[[str], None]
) -> Table:
    """Frames per second one after another and streamed, in turns; then the clip as a camera at its own rate."""
    table = Table(title=f"video of {_WH[0]} x {_WH[1]}; {captioner.backend.name}", box=box.MARKDOWN)
    for heading in (
        "regions",
        "in turn FPS",
        "streamed FPS",
        "ratio",
        "camera FPS",
        "latency p50",
        "p95 ms",
        "dropped",
    ):
        table.add_column(heading, justify="right")
    for count in counts:
        regions = as_regions(sample_boxes(captioner.manifest.architecture, count))

        turn, stream = _rates(captioner, clip, regions, runs, tell)
        rate, latencies, dropped = _as_camera(captioner, clip, regions)
        p50, p95 = np.percentile(latencies, [50, 95])
        shown = (turn, stream, stream / turn, rate, p50, p95)
        table.add_row(str(count), *(f"{number:.1f}" for number in shown), str(dropped))
    return table


def _rates(
    captioner: Captioner, clip: Path, regions: Sequence[Region], runs: int, tell: Callable[[str], None]
) -> tuple[float, float]:
    """Frames per second one step after another, and streamed: medians."""

    def in_turn() -> int:
        frames = open_source(clip).frames()
        return sum(bool(captioner.describe(captioner.encode(frame.image), regions)) for frame in frames)

    def streamed() -> int:
        return sum(1 for _ in captioner.stream(clip, regions, reuse=None))

    rates = [list[float](), list[float]()]
    for run in range(1 + runs):
        tell(f"video, {len(regions)} regions, run {run} of {runs}")
        for place, work in enumerate((in_turn, streamed)):
            start = time.perf_counter()
            frames = work()
            if run:  # the first warms up
                rates[place].append(frames / (time.perf_counter() - start))
    return statistics.median(rates[0]), statistics.median(rates[1])


def _as_camera(captioner: Captioner, clip: Path, regions: Sequence[Region]) -> tuple[float, list[float], int]:
    """Frames per second, latencies in ms, and how many frames were dropped."""
    start = time.perf_counter()
    with captioner.stream(_at_its_rate(clip), regions, reuse=None) as camera:
        latencies = [described.latency_ms for described in camera]
        return len(latencies) / (time.perf_counter() - start), latencies, camera.dropped


def _at_its_rate(clip: Path) -> Iterator[Frame]:
    """The frames at the moments that a camera would give them."""
    start = time.perf_counter()
    for frame in open_source(clip).frames():
        time.sleep(max(0.0, (frame.seconds or 0.0) - (time.perf_counter() - start)))
        yield frame
