"""The flags by which `caption` and `video` load a captioner."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, get_args

from runtime.backends import BACKEND_NAMES, PRECISION_NAMES
from runtime.captioner import Captioner
from runtime.cli.region_arguments import argument_type
from runtime.errors import PatchcaptionError
from runtime.image import Fit
from runtime.options import DecodeKeywords, DecodingOptions, Mode, split_options


def add_captioner_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `load_captioner` but the bundle's."""
    parser.add_argument("--fit", choices=[fit.value for fit in Fit], default=Fit.STRETCH.value)
    parser.add_argument("--backend", choices=BACKEND_NAMES, default="auto")
    parser.add_argument(
        "--precision",
        choices=PRECISION_NAMES,
        default="fp32",
        help="auto: the one that `patchcaption tune` chose; bf16: with openvino, on CPUs that have it "
        "(default: %(default)s)",
    )


def add_mode_flag(parser: argparse.ArgumentParser) -> None:
    """Add ``--mode``, of commands that can look captions up too."""
    parser.add_argument(
        "--mode",
        choices=get_args(Mode),
        default=DecodingOptions.mode,
        help="the decoder's caption, or the nearest of the memory bank",
    )


def add_decoding_flags(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `decoding_keywords`."""
    parser.add_argument(
        "--beams",
        type=argument_type(_option("beams", int)),
        default=DecodingOptions.beams,
        metavar="N",
        help="beam search with N beams (default: %(default)s, none)",
    )
    parser.add_argument(
        "--top-p",
        type=argument_type(_option("top_p", float)),
        metavar="P",
        help="draw tokens from the likeliest that have the probability P together, instead of taking the likeliest",
    )
    parser.add_argument(
        "--seed",
        type=argument_type(_option("seed", int)),
        default=DecodingOptions.seed,
        metavar="N",
        help="of --top-p: other seeds draw other captions (default: %(default)s)",
    )


def decoding_keywords(options: argparse.Namespace) -> DecodeKeywords:
    """Return what the flags of `add_decoding_flags` say, as keyword arguments of `Captioner`."""
    return {"beams": options.beams, "top_p": options.top_p, "seed": options.seed}


def _option(name: str, number: type[int] | type[float]) -> Callable[[str], Any]:
    """Return the parser of an option of `DecodingOptions` that is a number."""

    def parse(text: str) -> Any:
        try:
            value = number(text)
        except ValueError:
            kind = "a whole number" if number is int else "a number"
            raise PatchcaptionError(f"expected {kind}, got {text!r}") from None
        (checked,) = split_options({name: value}, DecodingOptions)
        return getattr(checked, name)

    return parse


def load_captioner(options: argparse.Namespace) -> Captioner:
    """Return the captioner that the flags ask for."""
    return Captioner.load(options.bundle, options.backend, options.fit, precision=options.precision)
