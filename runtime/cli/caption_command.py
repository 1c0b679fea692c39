"""`patchcaption caption`: captions of regions of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

from PIL import Image

from runtime.captioner import Captioner
from runtime.cli import exits
from runtime.cli.captioner_arguments import add_bundle_flag, add_captioner_flags, load_captioner
from runtime.cli.image_arguments import ImageArguments
from runtime.cli.reasons import Reasons
from runtime.cli.region_arguments import add_region_flags, argument_type, regions_or_whole_image
from runtime.cli.saved_pictures import make_folder, outputs_of
from runtime.errors import ImageError, PatchcaptionError, RegionError
from runtime.image import open_image
from runtime.options import DecodingOptions, Mode, OnBad, StreamOptions
from runtime.output.as_json import caption_as_json
from runtime.output.drawing import draw_captions
from runtime.output.fonts import load_font
from runtime.output.picture_file import save_picture
from runtime.results import Caption
from runtime.system.outputs import Output
from runtime.system.standard_streams import one_line, show


def add_caption(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_caption)
    parser.add_argument(
        "image",
        nargs="+",
        help="an image, a folder of images, or a pattern in quotes; each is captioned with the same regions",
    )
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
        "--save",
        type=Output,
        metavar="PICTURE",
        help="write the image with the captions drawn on it, of several images into a folder; - is stdout",
    )
    parser.add_argument(
        "--font",
        type=argument_type(_font),
        metavar="FILE",
        help="the font of --save, a .ttf or .otf file; captions with characters that it lacks are in another",
    )
    parser.add_argument(
        "--on-bad",
        choices=get_args(OnBad),
        default=StreamOptions.on_bad,
        help="what becomes of images that cannot be read and regions outside their image (default: %(default)s)",
    )
    add_captioner_flags(parser)


def run_caption(options: argparse.Namespace) -> int:
    """Caption the regions of each image; print the captions, and draw them where --save says so."""
    images = ImageArguments.of(options.image)
    outputs, reasons = outputs_of(images, options), Reasons()
    opened = _open_all(images, options, reasons)
    first = next(opened, None)  # before the bundle: what is mistaken is said at once
    if first is None:
        reasons.report()
        return exits.DONE
    make_folder(outputs, options)
    printer = _Printer(options, is_single=images.is_single)
    with load_captioner(options) as captioner:
        for path, image in chain([first], opened):
            captions = _captions(captioner, path, image, options, reasons)
            if captions is None:
                continue
            if path in outputs:  # first, as whoever reads stdout may go before the last caption
                save_picture(draw_captions(image, captions, font=options.font), outputs[path])
            printer.print(path, captions)
    reasons.report()
    return exits.DONE


def _open_all(
    images: ImageArguments, options: argparse.Namespace, reasons: Reasons
) -> Iterator[tuple[Path, Image.Image]]:
    """Yield the images one after another; those that cannot be read are reasons, or raise with --on-bad raise."""
    for file in images.files:
        try:
            if isinstance(file, ImageError):
                raise file
            yield file, open_image(file)
        except ImageError as error:
            _pass_over(error, options, reasons)


def _captions(
    captioner: Captioner, path: Path, image: Image.Image, options: argparse.Namespace, reasons: Reasons
) -> list[Caption] | None:
    """Return the captions of an image, without words for regions that have none; None if it has no regions at all."""
    try:
        captions = captioner.caption(
            image,
            regions_or_whole_image(options, path.name),
            mode=options.mode,
            n_best=options.n_best,
            beams=options.beams,
            on_bad=options.on_bad,
        )
    except RegionError as error:
        _pass_over(error if len(options.image) == 1 else RegionError(f"{path}: {error}"), options, reasons)
        return None
    where = "" if len(options.image) == 1 else f"{path}: "
    for number, caption in enumerate(captions):
        if caption.error is not None:
            reasons.add(RegionError(f"{where}region {number}: {caption.error}"))
    if not captions or any(caption.error is None for caption in captions):
        reasons.worked()
    return captions


def _pass_over(error: PatchcaptionError, options: argparse.Namespace, reasons: Reasons) -> None:
    if options.on_bad == "raise":
        raise error
    reasons.add(error)


class _Printer:
    """Writes captions to stdout, or to stderr if a picture goes to stdout, until nobody reads them any more."""

    def __init__(self, options: argparse.Namespace, *, is_single: bool) -> None:
        self._as_json, self._is_single, self._saves = options.json, is_single, options.save is not None
        file = sys.stderr if self._saves and options.save.is_stdout else sys.stdout
        self._write = partial(print, file=file)
        self._is_read = True

    def print(self, path: Path, captions: Sequence[Caption]) -> None:
        """Write an image's captions.

        Raises:
            BrokenPipeError: nobody reads them, and nothing else is to be done.
        """
        if not self._is_read:
            return
        try:
            for caption in captions:
                self._print_one(path, caption)
        except BrokenPipeError:
            if not self._saves:
                raise
            self._is_read = False

    def _print_one(self, path: Path, caption: Caption) -> None:
        if self._as_json:
            show(json.dumps({"image": str(path), **caption_as_json(caption)}), self._write)
            return
        if caption.error is not None:
            return
        where = "" if self._is_single else f"{one_line(str(path))}: "
        show(f"{where}{caption.score:.3f}  {one_line(caption.text)}", self._write)
        for match in caption.nearest:
            show(f"    {match.similarity:.3f}  {one_line(match.text)}", self._write)


def _font(file: str) -> str:
    load_font(file, 16)
    return file


def _beams(text: str) -> int:
    try:
        beams = int(text)
    except ValueError:
        raise PatchcaptionError(f"expected a whole number, got {text!r}") from None
    return DecodingOptions(beams=beams).beams
