"""Captions drawn on a video, region by region: `python examples/video_overlay.py clip.mp4 out.mp4 --box 10,20,200,180`.

What `patchcaption video` does, as a program to begin with.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import av

from patchcaption import Box, Captioner, Region, WholeImage, draw_captions


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Draw captions on a video.")
    parser.add_argument("source", help="a video file")
    parser.add_argument("target", help="the video with captions")
    parser.add_argument("--bundle", default="engines/demo")
    parser.add_argument("--box", action="append", default=[], metavar="X1,Y1,X2,Y2")
    options = parser.parse_args(arguments)
    regions: list[Region] = [Box(*map(float, box.split(","))) for box in options.box] or [WholeImage()]
    with Captioner.load(options.bundle) as captioner, av.open(options.target, "w") as target:
        stream = None
        for described in captioner.stream(options.source, regions):
            picture = draw_captions(described.frame.image, described.captions)
            if stream is None:
                stream = target.add_stream("mpeg4", rate=30)
                stream.width, stream.height, stream.pix_fmt = picture.width, picture.height, "yuv420p"
            target.mux(stream.encode(av.VideoFrame.from_image(picture)))
        if stream is not None:
            target.mux(stream.encode())
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
