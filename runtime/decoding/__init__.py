"""Stage 5: vectors in text space -> token ids -> text."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from runtime.backends import Backend
from runtime.bundle import Bundle, DecoderKind
from runtime.decoding.base import CaptionBank, CaptionDecoder, DecodedCaption
from runtime.decoding.decap import DecapDecoder
from runtime.decoding.prompted import PromptedDecoder

DECODERS: Mapping[DecoderKind, Callable[[Bundle, Backend, CaptionBank | None], CaptionDecoder]] = {
    "decap": DecapDecoder,
    "viecap": PromptedDecoder,
    "meacap": PromptedDecoder,
    "clipcap": PromptedDecoder,
}
"""The decoders by `DecoderConfig.kind`."""


def load_decoder(bundle: Bundle, backend: Backend, bank: CaptionBank | None) -> CaptionDecoder:
    """Open a bundle's decoder.

    Args:
        bank: the bundle's, whose captions some prompts are made of.

    Raises:
        BundleError: its tokenizer cannot be read.
        BackendError: the backend cannot open its engines.
    """
    return DECODERS[bundle.manifest.decoder.kind](bundle, backend, bank)


__all__ = ["DECODERS", "CaptionBank", "CaptionDecoder", "DecodedCaption", "load_decoder"]
