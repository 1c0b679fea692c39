"""A video's captions in the viewer of Rerun (`pip install rerun-sdk`): frames, boxes, captions over time, latency.

    python examples/rerun_viewer.py clip.mp4 --bundle engines/demo --box 10,20,200,180   # opens the viewer
    python examples/rerun_viewer.py clip.mp4 --save out.rrd   # without a display; `rerun out.rrd` shows it elsewhere
    python examples/rerun_viewer.py 0 --connect rerun+http://laptop:9876/proxy   # to a viewer on another machine

Rerun's viewer reports its use to its makers unless it is told not to: `rerun analytics disable`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rerun as rr
import rerun.blueprint as rrb

from patchcaption import Box, Captioner, FrameCaptions, PatchcaptionError, Region, WholeImage

LAYOUT = rrb.Horizontal(
    rrb.Spatial2DView(origin="video", name="Captions"),
    rrb.Vertical(
        rrb.TextLogView(origin="captions", name="Captions over time"),
        rrb.TimeSeriesView(origin="latency_ms", name="From a frame to its captions, in ms"),
    ),
    column_shares=[2, 1],
)


def log(described: FrameCaptions) -> None:
    """Log a frame with its captions to the current recording."""
    frame = described.frame
    rr.set_time("frame", sequence=frame.number)
    if frame.seconds is not None:
        rr.set_time("seconds", duration=frame.seconds)
    rr.log("latency_ms", rr.Scalars(described.latency_ms))
    if described.error is not None:
        rr.log("captions", rr.TextLog(described.error, level=rr.TextLogLevel.WARN))
        return
    image = np.asarray(frame.image)
    height, width, _ = image.shape
    rr.log("video", rr.Image(image).compress(jpeg_quality=85))
    boxes, labels, numbers = list[tuple[float, ...]](), list[str](), list[int]()
    for number, caption in enumerate(described.captions):
        region, level = caption.region, rr.TextLogLevel.INFO if caption.error is None else rr.TextLogLevel.WARN
        if not caption.reused:  # of an earlier frame
            rr.log(f"captions/{number}", rr.TextLog(caption.error or caption.text, level=level))
        if caption.error is None:
            is_box = isinstance(region, Box)
            boxes.append((region.x1, region.y1, region.x2, region.y2) if is_box else (0, 0, width, height))
            labels.append(caption.text)
            numbers.append(number)
    corners = np.array(boxes).reshape(-1, 4)
    boxes2d = rr.Boxes2D(mins=corners[:, :2], sizes=corners[:, 2:] - corners[:, :2], labels=labels, class_ids=numbers)
    rr.log("video/regions", boxes2d)


def box(text: str) -> Box:
    x1, y1, x2, y2 = map(float, text.split(","))
    return Box(x1, y1, x2, y2)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Show a video's captions in Rerun.")
    parser.add_argument("source", help="a video file, a folder of images, the number of a camera, or a URL")
    parser.add_argument("--bundle", default="engines/demo")
    parser.add_argument("--box", action="append", type=box, metavar="X1,Y1,X2,Y2", help="none: the whole image")
    parser.add_argument("--save", metavar="OUT.rrd", help="write a recording in place of opening the viewer")
    parser.add_argument("--connect", metavar="URL", help="send to a viewer that is open, here or elsewhere")
    options = parser.parse_args(arguments)
    has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
    if not (options.save or options.connect or has_display):
        parser.error("there is no display for the viewer: give --save OUT.rrd, or --connect URL")
    if options.save and Path(options.save).resolve() == Path(options.source).resolve():
        parser.error("source and --save are one file")
    regions: list[Region] = options.box or [WholeImage()]
    source = int(options.source) if options.source.isdigit() else options.source
    rr.set_strict_mode(True)  # a mistake in what is logged is an error, not a warning
    try:
        with (
            Captioner.load(options.bundle) as captioner,
            captioner.stream(source, regions) as frames,
            rr.RecordingStream("patchcaption") as recording,
        ):
            if options.save:
                recording.save(options.save, LAYOUT)
            elif options.connect:
                recording.connect_grpc(options.connect, default_blueprint=LAYOUT)
            else:
                recording.spawn(default_blueprint=LAYOUT)
            for described in frames:
                log(described)
    except (PatchcaptionError, RuntimeError) as error:  # the latter if Rerun cannot write, or finds no viewer
        parser.error(str(error))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
