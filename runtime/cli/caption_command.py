"""`patchcaption caption`: captions of regions of images."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import get_args

from PIL import Image

from runtime.captioner import Captioner
from runtime.cli import exits
from runtime.cli.bundle_arguments import add_bundle_flag
from runtime.cli.captioner_arguments import (
    add_captioner_flags,
    add_decoding_flags,
    add_mode_flag,
    decoding_keywords,
    load_captioner,
)
from runtime.cli.image_arguments import ImageArguments
from runtime.cli.reasons import Reasons
from runtime.cli.region_arguments import add_region_flags, argument_type, regions_or_whole_image
from runtime.cli.saved_pictures import make_folder, outputs_of
from runtime.errors import ImageError, PatchcaptionError, RegionError
from runtime.image import open_image
from runtime.options import DecodingOptions, OnBad, StreamOptions
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
    add_mode_flag(parser)
    parser.add_argument(
        "--n-best",
        type=int,
        default=DecodingOptions.n_best,
        metavar="N",
        help="also the N nearest captions of the memory",
    )
    add_decoding_flags(parser)
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
    printer = _Printer(options, is_single=images.is_single)
    opened = _open_all(images, options, reasons, printer)
    first = next(opened, None)  # before the bundle: what is mistaken is said at once
    if first is None:
        reasons.report()
        return exits.DONE
    make_folder(outputs, options)
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
    images: ImageArguments, options: argparse.Namespace, reasons: Reasons, printer: _Printer
) -> Iterator[tuple[Path, Image.Image]]:
    """Yield the images one after another; those that cannot be read are reasons, or raise with --on-bad raise."""
    for file in images.files:
        try:
            if isinstance(file, ImageError):
                raise file
            yield file, open_image(file)
        except ImageError as error:
            _pass_over(error, options, reasons)
            if isinstance(file, Path):
                printer.print_error(file, error)


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
            **decoding_keywords(options),
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
        self._write_lines(line for caption in captions for line in self._lines(path, caption))

    def print_error(self, path: Path, error: PatchcaptionError) -> None:
        """Write in JSON why one of several images has no captions; elsewhere stderr alone has it.

        Raises:
            BrokenPipeError: nobody reads it, and nothing else is to be done.
        """
        if self._as_json and not self._is_single:
            self._write_lines([json.dumps({"image": str(path), "error": str(error)})])

    def _write_lines(self, lines: Iterable[str]) -> None:
        if not self._is_read:
            return
        try:
            for line in lines:
                show(line, self._write)
        except BrokenPipeError:
            if not self._saves:
                raise
            self._is_read = False

    def _lines(self, path: Path, caption: Caption) -> Iterator[str]:
        if self._as_json:
            yield json.dumps({"image": str(path), **caption_as_json(caption)})
        elif caption.error is None:
            where = "" if self._is_single else f"{one_line(str(path))}: "
            yield f"{where}{caption.score:.3f}  {one_line(caption.text)}"
            yield from (f"    {match.similarity:.3f}  {one_line(match.text)}" for match in caption.nearest)


def _font(file: str) -> str:
    load_font(file, 16)
    return file
