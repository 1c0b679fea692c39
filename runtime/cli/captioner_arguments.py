"""The flags by which `caption` and `video` load a captioner."""

from __future__ import annotations

import argparse
from pathlib import Path

from runtime.backends import BACKEND_NAMES, PRECISIONS
from runtime.captioner import Captioner
from runtime.cli.region_arguments import argument_type
from runtime.errors import PatchcaptionError
from runtime.image import Fit
from runtime.options import DecodingOptions


def add_bundle_flag(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """Add ``--bundle FOLDER``, whose former name ``--engines`` is still taken."""
    parser.add_argument("--bundle", "--engines", type=Path, required=required, metavar="FOLDER", help=help)


def add_captioner_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `load_captioner` but the bundle's."""
    parser.add_argument("--fit", choices=[fit.value for fit in Fit], default=Fit.STRETCH.value)
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto")
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32", help="bf16: with openvino, on CPUs that have it"
    )


def add_beams_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--beams N``."""
    parser.add_argument(
        "--beams",
        type=argument_type(_beams),
        default=DecodingOptions.beams,
        metavar="N",
        help="beam search with N beams (default: %(default)s, none)",
    )


def _beams(text: str) -> int:
    try:
        beams = int(text)
    except ValueError:
        raise PatchcaptionError(f"expected a whole number, got {text!r}") from None
    return DecodingOptions(beams=beams).beams


def load_captioner(options: argparse.Namespace) -> Captioner:
    """Return the captioner that the flags ask for."""
    return Captioner.load(options.bundle, options.backend, options.fit, precision=options.precision)
