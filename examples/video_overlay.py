"""Captions drawn on a video, region by region: `python examples/video_overlay.py clip.mp4 out.mp4 --box 10,20,200,180`.

What `patchcaption video` does, as a program to begin with. Frames keep their times; sound is left out, which
`patchcaption video --save` keeps.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av

from patchcaption import Box, Captioner, Region, WholeImage, draw_captions

TICK = Fraction(1, 90_000)
"""The unit of the frames' times, in seconds."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw captions on a video.")
    parser.add_argument("source", help="a video file")
    parser.add_argument("target", help="the video with captions")
    parser.add_argument("--bundle", default="engines/demo")
    parser.add_argument("--box", action="append", default=[], metavar="X1,Y1,X2,Y2")
    options = parser.parse_args(arguments)
    if Path(options.target).exists() and Path(options.target).samefile(options.source):
        parser.error("source and target are one file")
    regions: list[Region] = [Box(*map(float, box.split(","))) for box in options.box] or [WholeImage()]
    with (
        Captioner.load(options.bundle) as captioner,
        captioner.stream(options.source, regions) as frames,
        av.open(options.target, "w") as target,
    ):
        stream = None
        for described in frames:
            picture = draw_captions(described.frame.image, described.captions)
            if stream is None:
                stream = target.add_stream("libx264", rate=frames.source.rate)
                stream.width, stream.height = (side // 2 * 2 for side in picture.size)  # as its colours ask for
                stream.pix_fmt, stream.codec_context.time_base = "yuv420p", TICK
            frame = av.VideoFrame.from_image(picture.resize((stream.width, stream.height)))
            frame.pts, frame.time_base = round((described.frame.seconds or 0) / TICK), TICK
            target.mux(stream.encode(frame))
        if stream is not None:
            target.mux(stream.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
