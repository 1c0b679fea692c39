"""Bundles without the graph of beam search: torch takes as long to trace it as the decoder's own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from torch import Tensor

from export import bundle_builder
from export.graphs.specs import GraphSpec, decoder_specs
from export.models.base import DecoderModel
from runtime.bundle import EngineName


@contextmanager
def without_beam_search() -> Iterator[None]:
    """Let bundles be built for greedy decoding alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bundle_builder, "decoder_specs", _greedy_specs)
        yield


def _greedy_specs(decoder: DecoderModel, vectors: Tensor | None = None) -> dict[EngineName, GraphSpec]:
    return {name: spec for name, spec in decoder_specs(decoder, vectors).items() if name != "beam_decoder"}
