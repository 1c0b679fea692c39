"""`patchcaption caption`: captions of regions of one image."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from PIL import Image

from runtime.cli import exits
from runtime.cli.captioner_arguments import add_bundle_flag, add_captioner_flags, load_captioner
from runtime.cli.region_arguments import add_region_flags, argument_type, regions_or_whole_image
from runtime.errors import ImageError, PatchcaptionError
from runtime.image import open_image
from runtime.options import DecodingOptions, Mode
from runtime.output.as_json import caption_as_json
from runtime.output.drawing import draw_captions
from runtime.results import Caption
from runtime.system.files import write_output


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
    parser.add_argument("--save", type=Path, metavar="PICTURE", help="write the image with the captions drawn on it")
    add_captioner_flags(parser)


def run_caption(options: argparse.Namespace) -> int:
    """Caption the regions; print the captions, and draw them where --save says so."""
    image = open_image(options.image)
    if options.save:
        _check_writable(options.save)
    with load_captioner(options) as captioner:
        captions = captioner.caption(
            image, regions_or_whole_image(options), mode=options.mode, n_best=options.n_best, beams=options.beams
        )
    _print_captions(captions, as_json=options.json)
    if options.save:
        drawn = draw_captions(image, captions)
        with write_output(options.save) as part:
            drawn.save(part)
    return exits.DONE


def _print_captions(captions: Sequence[Caption], as_json: bool) -> None:
    for caption in captions:
        if as_json:
            print(json.dumps(caption_as_json(caption)))
            continue
        print(f"{caption.score:.3f}  {caption.text}")
        for match in caption.nearest:
            print(f"    {match.similarity:.3f}  {match.text}")


def _check_writable(path: Path) -> None:
    """Find out before the work whether the image can be written after it."""
    if path.suffix.lower() not in Image.registered_extensions():
        raise ImageError(f"{path}: expected the suffix of an image file, .png or .jpg for example, got {path.suffix!r}")
    if not path.parent.is_dir():
        raise ImageError(f"{path}: the folder {path.parent} does not exist")


def _beams(text: str) -> int:
    try:
        beams = int(text)
    except ValueError:
        raise PatchcaptionError(f"expected a whole number, got {text!r}") from None
    return DecodingOptions(beams=beams).beams
