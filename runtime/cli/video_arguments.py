"""The arguments of `patchcaption video`."""

from __future__ import annotations

import argparse
import re
from typing import get_args

from runtime.cli.bundle_arguments import add_bundle_flag
from runtime.cli.captioner_arguments import add_captioner_flags, add_decoding_flags
from runtime.cli.region_arguments import add_region_flags
from runtime.options import OnBad, Policy, StreamOptions
from runtime.system.outputs import Output

_CLOCK = re.compile(r"(?:(\d+):)?(\d+):(\d+(?:\.\d*)?)")


def add_video_arguments(parser: argparse.ArgumentParser) -> None:
    """Add all of them."""
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="source",
        help="a video file, a folder of images, a camera's number or a URL (rtsp://...); several share the captioner",
    )
    add_bundle_flag(parser, "the bundle", required=True)
    add_region_flags(parser)
    _add_output_flags(parser)
    _add_stream_flags(parser)
    add_decoding_flags(parser)
    add_captioner_flags(parser)


def seconds(text: str) -> float:
    """Return a time in seconds that is given as such, or as minutes and seconds, or hours, minutes and seconds.

    Raises:
        ArgumentTypeError: it is none.

    Example:
        >>> seconds("90.5"), seconds("1:30.5"), seconds("0:01:30.5")
        (90.5, 90.5, 90.5)
    """
    clock = _CLOCK.fullmatch(text)
    try:
        if clock is None:
            return float(text)
        hours, minutes, rest = int(clock[1] or 0), int(clock[2]), float(clock[3])
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected seconds or HH:MM:SS, got {text!r}") from None
    if rest >= 60 or (clock[1] is not None and minutes >= 60):
        raise argparse.ArgumentTypeError(f"expected seconds or HH:MM:SS, got {text!r}: there are 60 to each")
    return 3600 * hours + 60 * minutes + rest


def _add_output_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save",
        type=Output,
        metavar="VIDEO",
        help="write the frames with their captions drawn on them, and the sound of the source; - is stdout",
    )
    for flag, content in (
        ("--jsonl", "one JSON object a frame"),
        ("--csv", "a table, one row a region and frame"),
        ("--srt", "the captions as subtitles"),
        ("--vtt", "the captions as subtitles of the web"),
    ):
        parser.add_argument(flag, type=Output, metavar="FILE", help=f"write {content}; - is stdout")
    parser.add_argument("--show", action="store_true", help="show the frames in a window; q or Escape ends the command")


def _add_stream_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--start",
        type=seconds,
        default=StreamOptions.start_s,
        metavar="TIME",
        help="where in the file to begin: seconds, or HH:MM:SS (default: at its start)",
    )
    parser.add_argument("--end", type=seconds, metavar="TIME", help="where in the file to end (default: at its end)")
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
