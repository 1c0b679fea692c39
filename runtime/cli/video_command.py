"""`patchcaption video`: captions over the frames of a file, a camera or a URL."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from contextlib import ExitStack
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TypeAlias, get_args

from runtime.cli import exits
from runtime.cli.captioner_arguments import add_bundle_flag, add_captioner_flags, load_captioner
from runtime.cli.output_arguments import check_outputs
from runtime.cli.region_arguments import add_region_flags, regions_or_whole_image
from runtime.errors import RegionError, VideoError
from runtime.options import DecodingOptions, OnBad, Policy, StreamOptions
from runtime.output.source_media import describe_source
from runtime.output.video_file import annotated_video, json_lines, video_format
from runtime.system.outputs import Output
from runtime.system.standard_streams import one_line, show
from runtime.video.stream import CaptionStream, FrameCaptions

Sink: TypeAlias = Callable[[FrameCaptions], object]


def add_video(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_video)
    parser.add_argument("source", help="a video file, a folder of images, a camera's number or a URL (rtsp://...)")
    add_bundle_flag(parser, "the bundle", required=True)
    add_region_flags(parser)
    parser.add_argument(
        "--save", type=Output, metavar="VIDEO", help="write the frames with their captions drawn on them; - is stdout"
    )
    parser.add_argument("--jsonl", type=Output, metavar="FILE", help="write one JSON object a frame; - is stdout")
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
        help="what happens to frames that arrive too fast (default: drop for cameras and live URLs, block for files)",
    )
    parser.add_argument(
        "--on-bad",
        choices=get_args(OnBad),
        default=StreamOptions.on_bad,
        help="what becomes of regions outside their frame and of frames that are no images (default: %(default)s)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=StreamOptions.timeout_s,
        metavar="SECONDS",
        help="after which a silent camera or URL is lost (default: %(default)s)",
    )
    parser.add_argument(
        "--reconnect",
        type=float,
        default=StreamOptions.reconnect_s,
        metavar="SECONDS",
        help="for how long a lost camera or URL is tried again; inf: for ever (default: %(default)s)",
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
    check_outputs({"--save": options.save, "--jsonl": options.jsonl}, options, Path(options.source))
    if options.save:
        video_format(options.save)
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
                on_bad=options.on_bad,
                timeout_s=options.timeout,
                reconnect_s=options.reconnect,
            )
        )
        sinks = _open_sinks(options, stack, tqdm.write)
        frames = stream.source.frame_count
        total = None if frames is None else -(-frames // options.every)
        bar = stack.enter_context(tqdm(total=total, unit=" frames", disable=None))
        reasons = _Reasons()
        for described in stream:
            reasons.add(described)
            sinks = [sink for sink in sinks if _takes(sink, described)]
            if not sinks:
                break
            bar.update()
            bar.set_postfix(
                dropped=stream.dropped,
                broken=stream.source.decode_errors,
                bad=stream.bad_frames + stream.bad_regions,
                reconnects=stream.source.reconnects,
            )
    reasons.report()
    return exits.DONE


def _open_sinks(options: argparse.Namespace, stack: ExitStack, write: Callable[..., object]) -> list[Sink]:
    """Open the outputs; return what takes each described frame."""
    sinks: list[Sink] = []
    if options.jsonl:
        sinks.append(stack.enter_context(json_lines(options.jsonl, exits.note)).add)
    else:
        file = sys.stderr if options.save is not None and options.save.is_stdout else sys.stdout
        sinks.append(lambda described: _print_new_captions(described, partial(write, file=file)))
    if options.save:
        rate = _rate(options)
        sinks.append(stack.enter_context(annotated_video(options.save, exits.note, rate)).add)
    return sinks


def _takes(sink: Sink, described: FrameCaptions) -> bool:
    """Give a frame to a sink; return False if it is a pipe whose reader has gone, while the others go on."""
    try:
        sink(described)
    except BrokenPipeError:
        return False
    return True


def _rate(options: argparse.Namespace) -> Fraction | None:
    """Return the frames in a second that the source and --every make; say what of the source is left out."""
    media = describe_source(options.source)
    if media.has_audio:
        exits.note(f"{options.save}: without the sound of {options.source}: only its frames are written")
    return media.rate and media.rate / options.every


class _Reasons:
    """Why frames and regions were passed over: the first reason, and how many there were."""

    def __init__(self) -> None:
        self._first, self._bad, self._described = "", 0, 0

    def add(self, described: FrameCaptions) -> None:
        """Count a frame and its regions."""
        for reason in (described.error, *(caption.error for caption in described.captions)):
            if reason is not None:
                self._first = self._first or f"frame {described.frame.number}: {reason}"
                self._bad += 1
        self._described += sum(caption.error is None for caption in described.captions)

    def report(self) -> None:
        """Say on stderr what was passed over.

        Raises:
            RegionError: it was all that there was.
        """
        if self._bad and not self._described:
            raise RegionError(self._first)
        if self._bad:
            exits.note(f"{self._bad} without a caption, the first: {self._first}")


def _print_new_captions(described: FrameCaptions, write: Callable[[str], object]) -> None:
    seconds = described.frame.seconds
    time = f"{seconds:8.2f} s" if seconds is not None else f"frame {described.frame.number:>4}"
    for number, caption in enumerate(described.captions):
        if not caption.reused and caption.error is None:
            show(f"{time}  {number}  {caption.score:.3f}  {one_line(caption.text)}", write)
