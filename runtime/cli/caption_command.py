"""`patchcaption caption`: captions of regions of one image."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TextIO, get_args

from runtime.cli import exits
from runtime.cli.captioner_arguments import add_bundle_flag, add_captioner_flags, load_captioner
from runtime.cli.output_arguments import check_outputs
from runtime.cli.region_arguments import add_region_flags, argument_type, regions_or_whole_image
from runtime.errors import ImageError, PatchcaptionError
from runtime.image import open_image
from runtime.options import DecodingOptions, Mode
from runtime.output.as_json import caption_as_json
from runtime.output.drawing import draw_captions
from runtime.output.picture_file import picture_format, save_picture
from runtime.results import Caption
from runtime.system.outputs import Output
from runtime.system.standard_streams import one_line, show


def add_caption(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_caption)
    parser.add_argument("image", type=Path)
    add_bundle_flag(parser, "the bundle", required=True)
    add_region_flags(parser)
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default=DecodingOptions.mode,
        help="the decoder's caption, or the nearest of the memory bank",
    )
    parser.add_argument(
        "--n-best",
        type=int,
        default=DecodingOptions.n_best,
        metavar="N",
        help="also the N nearest captions of the memory",
    )
    parser.add_argument(
        "--beams",
        type=argument_type(_beams),
        default=DecodingOptions.beams,
        metavar="N",
        help="beam search with N beams (default: %(default)s, none)",
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a caption, with ids, score and region")
    parser.add_argument(
        "--save", type=Output, metavar="PICTURE", help="write the image with the captions drawn on it; - is stdout"
    )
    add_captioner_flags(parser)


def run_caption(options: argparse.Namespace) -> int:
    """Caption the regions; print the captions, and draw them where --save says so."""
    image = open_image(options.image)
    if options.save:
        _check_output(options)
    with load_captioner(options) as captioner:
        captions = captioner.caption(
            image, regions_or_whole_image(options), mode=options.mode, n_best=options.n_best, beams=options.beams
        )
    if options.save:  # first, as whoever reads stdout may go before the last caption
        save_picture(draw_captions(image, captions), options.save)
    saves_to_stdout = options.save is not None and options.save.is_stdout
    _print_captions(captions, options.json, sys.stderr if saves_to_stdout else sys.stdout)
    return exits.DONE


def _check_output(options: argparse.Namespace) -> None:
    """Raise if the picture cannot be written where --save says: a mistake on the command line."""
    try:
        check_outputs({"--save": options.save}, options, options.image)
    except PatchcaptionError as error:
        raise ImageError(str(error)) from None
    picture_format(options.save)


def _print_captions(captions: Sequence[Caption], as_json: bool, file: TextIO) -> None:
    write = partial(print, file=file)
    for caption in captions:
        if as_json:
            show(json.dumps(caption_as_json(caption)), write)
            continue
        show(f"{caption.score:.3f}  {one_line(caption.text)}", write)
        for match in caption.nearest:
            show(f"    {match.similarity:.3f}  {one_line(match.text)}", write)


def _beams(text: str) -> int:
    try:
        beams = int(text)
    except ValueError:
        raise PatchcaptionError(f"expected a whole number, got {text!r}") from None
    return DecodingOptions(beams=beams).beams
