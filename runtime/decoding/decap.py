"""DeCap's decoder: a small GPT-2 whose one prefix position is the projected vector (published-system.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from runtime.backends import Backend, EngineReport, LazyEngine
from runtime.bundle import Bundle
from runtime.decoding.base import DecodedCaption
from runtime.decoding.beam_search import beam_search
from runtime.decoding.greedy import GreedyDecoder
from runtime.decoding.tokenizer import CaptionTokenizer
from runtime.options import DecodingOptions, ProgressCallback


class DecapDecoder:
    """Decodes greedily, or by beam search with an engine that is opened when first asked for.

    Attributes:
        greedy: decodes vectors to tokens.
        tokenizer: turns tokens into text.
    """

    def __init__(self, bundle: Bundle, backend: Backend) -> None:
        self._config = bundle.manifest.decoder
        self.tokenizer = CaptionTokenizer(bundle.file(bundle.manifest.tokenizer), self._config.eos_token_id)
        self.greedy = GreedyDecoder(backend.open(bundle.engine("decoder")), self._config)
        self._beam_engine = LazyEngine(lambda: backend.open(bundle.engine("beam_decoder")))

    def __call__(
        self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[DecodedCaption]:
        if options.beams == 1:
            found = self.greedy.decode(vectors, ignore_eos=options.score == "reference", progress=progress)
        else:
            engine = self._beam_engine.get()
            found = beam_search(engine, self._config, vectors, options.beams, options.length_penalty, progress)
        return [
            DecodedCaption(self.tokenizer.text(ids), math.exp(log_prob), tuple(ids))
            for ids, log_prob in zip(found.ids, found.log_probs, strict=True)
        ]

    def reports(self) -> Mapping[str, EngineReport]:
        return {"decoder": self.greedy.report()}

    def close(self) -> None:
        self.greedy.close()
        self._beam_engine.close()
