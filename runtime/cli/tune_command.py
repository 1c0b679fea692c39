"""`patchcaption tune`: measures backends, precisions, threads and kernels here, shows the table, keeps the choice."""

from __future__ import annotations

import argparse
import json

from runtime.backends import PRECISIONS
from runtime.backends.measurements import measurements_file, save_measurement
from runtime.cli import exits
from runtime.cli.image_arguments import ImageArguments
from runtime.cli.tune_table import choice_lines, table_lines, tuning_as_json
from runtime.doctor.tuning import PICTURE_COUNT, Budget, draw_picture, tune
from runtime.errors import ImageError
from runtime.hub import open_bundle
from runtime.hub.names import BUNDLE_FORMS
from runtime.image import ImageSource, open_file
from runtime.options import check_number
from runtime.system.standard_streams import show

_SECONDS = 75.0
_MAX_SECONDS = 3600
_AGREEMENT = 0.99
_MAX_IMAGES = 32


def add_tune(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.set_defaults(run=run_tune)
    parser.add_argument(
        "bundles", nargs="+", metavar="BUNDLE", help=f"{BUNDLE_FORMS}; several of one checkpoint are compared"
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help=f"compare captions on the first {_MAX_IMAGES} images in it (default: {PICTURE_COUNT} drawn pictures)",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=_SECONDS,
        metavar="S",
        help="begin nothing that would end later, but measure each combination once (default: %(default)g)",
    )
    parser.add_argument(
        "--agreement",
        type=float,
        default=_AGREEMENT,
        metavar="SHARE",
        help="of captions, in 0..1, that must stay those of float32 (default: %(default)g)",
    )
    parser.add_argument(
        "--precision", choices=PRECISIONS, help="measure this one alone, beside fp32, which it is compared with"
    )
    parser.add_argument("--json", action="store_true", help="what was measured as one JSON object")


def run_tune(options: argparse.Namespace) -> int:
    """Measure, show and keep."""
    check_number("--seconds", options.seconds, 1, _MAX_SECONDS)
    check_number("--agreement", options.agreement, 0, 1)
    bundles = {name: open_bundle(name) for name in options.bundles}
    images, images_text = _images(options.images)
    precisions = PRECISIONS if options.precision is None else list(dict.fromkeys(("fp32", options.precision)))
    tuning = tune(bundles, images, precisions, options.agreement, Budget(options.seconds), exits.note)
    for reason in tuning.left_out:
        exits.note(f"left out: {reason}")
    for label, bundle in bundles.items():
        save_measurement(bundle, tuning.measurement(label, bundle))
    if options.json:
        show(json.dumps(tuning_as_json(tuning), indent=2))
        return exits.DONE
    for line in (*table_lines(tuning, images_text), "", *choice_lines(tuning)):
        show(line)
    show(f"kept in {measurements_file()}")
    return exits.DONE


def _images(folder: str | None) -> tuple[list[ImageSource], str]:
    """Return the images to compare captions on, and what they are.

    Raises:
        ImageError: there is none, or a file is none.
    """
    if folder is None:
        return [draw_picture(number) for number in range(PICTURE_COUNT)], "drawn pictures (--images for your own)"
    found = ImageArguments.of([folder])
    for file in found.files[:_MAX_IMAGES]:
        if isinstance(file, ImageError):
            raise file
        open_file(file)  # before anything is measured
    return list(found.paths[:_MAX_IMAGES]), f"images in {folder}"
