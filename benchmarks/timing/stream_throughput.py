"""Times a stream of frames beside the same work done one step after another."""

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
from runtime.video.frames import Frame
from runtime.video.sources import open_source

_FRAMES, _WH, _RATE = 90, (640, 480), 30
_SHIFT = 2
"""Pixels of motion between frames, so that no frame equals the one before."""


def write_clip(path: Path) -> None:
    """Write three seconds of video in which everything moves."""
    random = np.random.default_rng(0)
    wide = Image.fromarray(random.integers(0, 256, (12, 20, 3), np.uint8))
    wide = wide.resize((_WH[0] + _SHIFT * _FRAMES, _WH[1]), Image.Resampling.BICUBIC)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=_RATE)
        stream.width, stream.height, stream.pix_fmt = *_WH, "yuv420p"
        for left in range(0, _SHIFT * _FRAMES, _SHIFT):
            image = wide.crop((left, 0, left + _WH[0], _WH[1]))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))  # type: ignore[no-untyped-call]
        container.mux(stream.encode())


def stream_table(
    captioner: Captioner, clip: Path, counts: Sequence[int], runs: int, report_progress: Callable[[str], None]
) -> Table:
    """Return frames per second in turn and streamed, and those of the clip played by a camera at its own rate."""
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
    backbone = captioner.manifest.backbone
    for count in counts:
        regions = as_regions(sample_boxes(backbone.tokens, backbone.patch_size, count))
        in_turn_fps, streamed_fps = _clip_rates(captioner, clip, regions, runs, report_progress)
        camera_fps, latencies_ms, dropped = _play_as_camera(captioner, clip, regions)
        p50_ms, p95_ms = np.percentile(latencies_ms, [50, 95])
        numbers = (in_turn_fps, streamed_fps, streamed_fps / in_turn_fps, camera_fps, p50_ms, p95_ms)
        table.add_row(str(count), *(f"{number:.1f}" for number in numbers), str(dropped))
    return table


def _clip_rates(
    captioner: Captioner, clip: Path, regions: Sequence[Region], runs: int, report_progress: Callable[[str], None]
) -> tuple[float, float]:
    """Return the median frames per second, one step after another and streamed."""

    def in_turn() -> int:
        frames = open_source(clip).frames()
        return sum(bool(captioner.describe(captioner.encode(frame.image), regions)) for frame in frames)

    def streamed() -> int:
        return sum(1 for _ in captioner.stream(clip, regions, reuse=None))

    rates = [list[float](), list[float]()]
    for run in range(1 + runs):
        report_progress(f"video, {len(regions)} regions, run {run} of {runs}")
        for index, play in enumerate((in_turn, streamed)):
            start = time.perf_counter()
            frames = play()
            if run:  # the first warms up
                rates[index].append(frames / (time.perf_counter() - start))
    return statistics.median(rates[0]), statistics.median(rates[1])


def _play_as_camera(captioner: Captioner, clip: Path, regions: Sequence[Region]) -> tuple[float, list[float], int]:
    """Return frames per second, latencies in milliseconds, and the number of dropped frames."""
    start = time.perf_counter()
    with captioner.stream(_frames_at_their_times(clip), regions, reuse=None, policy="drop") as camera:
        latencies_ms = [described.latency_ms for described in camera]
        return len(latencies_ms) / (time.perf_counter() - start), latencies_ms, camera.dropped


def _frames_at_their_times(clip: Path) -> Iterator[Frame]:
    """Yield the frames when a camera would."""
    start = time.perf_counter()
    for frame in open_source(clip).frames():
        time.sleep(max(0.0, (frame.seconds or 0.0) - (time.perf_counter() - start)))
        yield frame
