"""Stage 5: vectors in text space -> token ids -> text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.backends import Backend
from runtime.bundle import Bundle
from runtime.decoding.base import CaptionDecoder, DecodedCaption
from runtime.decoding.decap import DecapDecoder

DECODERS: Mapping[str, Callable[[Bundle, Backend], CaptionDecoder]] = {"decap": DecapDecoder}
"""The decoders by `DecoderConfig.kind`."""


def load_decoder(bundle: Bundle, backend: Backend) -> CaptionDecoder:
    """Open a bundle's decoder.

    Raises:
        BundleError: its tokenizer cannot be read.
        BackendError: the backend cannot open its engines.
    """
    return DECODERS[bundle.manifest.decoder.kind](bundle, backend)


__all__ = ["DECODERS", "CaptionDecoder", "DecodedCaption", "load_decoder"]
