"""`patchcaption video`: captions over the frames of a file, a camera or a URL."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import get_args

from runtime.cli import exits
from runtime.cli.captioner_arguments import add_bundle_flag, add_captioner_flags, load_captioner
from runtime.cli.region_arguments import add_region_flags, regions_or_whole_image
from runtime.errors import PatchcaptionError, VideoError
from runtime.options import DecodingOptions, Policy, StreamOptions
from runtime.output.video_file import Recorder, annotated_video, json_lines
from runtime.video.stream import CaptionStream, FrameCaptions


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_video)
    parser.add_argument("source", help="a video file, a folder of images, a camera's number or a URL (rtsp://...)")
    add_bundle_flag(parser, "the bundle", required=True)
    add_region_flags(parser)
    parser.add_argument("--save", type=Path, metavar="VIDEO", help="write the frames with their captions drawn on them")
    parser.add_argument("--jsonl", type=Path, metavar="FILE", help="write one JSON object a frame")
    parser.add_argument(
        "--every",
        type=int,
        default=StreamOptions.every,
        metavar="N",
        help="each N-th frame only (default: %(default)s)",
    )
    parser.add_argument(
        "--policy",
        choices=get_args(Policy),
        help="what happens to frames that arrive too fast (default: drop for cameras and URLs, block for files)",
    )
    parser.add_argument(
        "--reuse",
        type=float,
        default=StreamOptions.reuse,
        metavar="COSINE",
        help="reuse a caption while its region looks so much the same; 0 decodes each frame (default: %(default)s)",
    )
    parser.add_argument(
        "--beams",
        type=int,
        default=DecodingOptions.beams,
        metavar="N",
        help="beam search with N beams (default: %(default)s, none)",
    )
    add_captioner_flags(parser)


def run_video(options: argparse.Namespace) -> int:
    """Caption every frame of the source; without --jsonl, print new captions with their time."""
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise VideoError(f"tqdm cannot be imported ({error}): pip install 'patchcaption[video]'") from None
    source = int(options.source) if options.source.isdecimal() else options.source
    with ExitStack() as stack:
        captioner = stack.enter_context(load_captioner(options))
        stream: CaptionStream = stack.enter_context(
            captioner.stream(
                source,
                regions_or_whole_image(options),
                policy=options.policy,
                every=options.every,
                reuse=options.reuse or None,
                beams=options.beams,
            )
        )
        recorders = _open_recorders(options, stack)
        frames = stream.source.frame_count
        total = None if frames is None else -(-frames // options.every)
        bar = stack.enter_context(tqdm(total=total, unit=" frames", disable=None))
        for described in stream:
            for recorder in recorders:
                recorder.add(described)
            if not options.jsonl:
                _print_new_captions(described, tqdm.write)
            bar.update()
            bar.set_postfix(dropped=stream.dropped, broken=stream.source.decode_errors)
    return exits.DONE


def _open_recorders(options: argparse.Namespace, stack: ExitStack) -> list[Recorder]:
    if options.save and options.save.suffix.lower() not in (".mp4", ".mkv", ".mov", ".avi"):
        raise PatchcaptionError(f"{options.save}: expected a video's ending, .mp4 for example")
    wanted = [(json_lines, options.jsonl), (annotated_video, options.save)]
    return [stack.enter_context(open_recorder(path)) for open_recorder, path in wanted if path]


def _print_new_captions(described: FrameCaptions, write: Callable[[str], object]) -> None:
    seconds = described.frame.seconds
    time = f"{seconds:8.2f} s" if seconds is not None else f"frame {described.frame.number:>4}"
    for number, caption in enumerate(described.captions):
        if not caption.reused:
            write(f"{time}  {number}  {caption.score:.3f}  {caption.text}")
