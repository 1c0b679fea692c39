"""`python -m runtime video`: captions over the frames of a file, a camera or an address."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from runtime.backends import BACKENDS, PRECISIONS
from runtime.captioner import Captioner
from runtime.cli.region_arguments import add_region_flags
from runtime.errors import PatchcaptionError
from runtime.image import Fit
from runtime.output.video_file import Recorder, annotated_video, json_lines
from runtime.regions import Region, WholeImage
from runtime.video.sources import VideoError
from runtime.video.stream import CaptionStream, FrameCaptions


def add_video(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.set_defaults(run=run_video)
    parser.add_argument("source", help="a video file, a folder of images, a camera's number or an address (rtsp://...)")
    parser.add_argument("--engines", type=Path, required=True, metavar="FOLDER", help="the bundle")
    add_region_flags(parser)
    parser.add_argument("--save", type=Path, metavar="VIDEO", help="write the frames with their captions drawn on them")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="write one JSON object a frame")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="look at each N-th frame (default: 1)")
    parser.add_argument(
        "--policy",
        choices=["drop", "block"],
        help="what happens to frames that come too fast (default: drop of cameras and addresses, block of files)",
    )
    parser.add_argument(
        "--reuse",
        type=float,
        default=0.995,
        metavar="COSINE",
        help="use a caption again while its region looks so much the same; 0 decodes each frame (default: 0.995)",
    )
    parser.add_argument("--beams", type=int, default=1, metavar="N", help="beam search with N beams (default: 1, none)")
    parser.add_argument("--fit", choices=[fit.value for fit in Fit], default=Fit.STRETCH.value)
    parser.add_argument("--backend", choices=BACKENDS, default="auto")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32")


def run_video(options: argparse.Namespace) -> int:
    """Describes the source; without --jsonl, captions that are new go to stdout with their time."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise VideoError(f"tqdm cannot be imported ({error}): pip install 'patchcaption[video]'") from None
    source = int(options.source) if options.source.isdecimal() else options.source
    regions: list[Region] = options.regions or [WholeImage()]
    how = {"policy": options.policy, "every": options.every, "reuse": options.reuse or None, "beams": options.beams}
    with ExitStack() as held:
        captioner = Captioner.load(options.engines, options.backend, options.fit, precision=options.precision)
        held.enter_context(captioner)
        stream: CaptionStream = held.enter_context(captioner.stream(source, regions, **how))
        recorders = _recorders(options, held)
        frames = stream.source.frame_count
        total = None if frames is None else -(-frames // options.every)
        bar = held.enter_context(tqdm(total=total, unit=" frames", disable=None))
        for described in stream:
            for recorder in recorders:
                recorder.add(described)
            if not options.jsonl:
                _print(described, tqdm.write)
            bar.update()
            bar.set_postfix(dropped=stream.dropped, broken=stream.source.broken)
    return 0


def _recorders(options: argparse.Namespace, held: ExitStack) -> list[Recorder]:
    if options.save and options.save.suffix.lower() not in (".mp4", ".mkv", ".mov", ".avi"):
        raise PatchcaptionError(f"{options.save}: expected a video's ending, .mp4 for example")
    made = [(json_lines, options.jsonl), (annotated_video, options.save)]
    return [held.enter_context(make(path)) for make, path in made if path]


def _print(described: FrameCaptions, write: Callable[[str], object]) -> None:
    seconds = described.frame.seconds
    when = f"{seconds:8.2f} s" if seconds is not None else f"frame {described.frame.number:>4}"
    for number, caption in enumerate(described.captions):
        if not caption.reused:
            write(f"{when}  {number}  {caption.score:.3f}  {caption.text}")
