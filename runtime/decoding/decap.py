"""DeCap's decoder: a small GPT-2 whose one prefix position is the projected vector (published-system.md, section 6)."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from runtime.backends import Backend, EngineReport, LazyEngine
from runtime.bundle import Bundle
from runtime.decoding.base import CaptionBank, DecodedCaption
from runtime.decoding.batches import TokenSequences, decode_in_batches
from runtime.decoding.beam_search import beam_search
from runtime.decoding.greedy import GreedyDecoder
from runtime.decoding.sampling import NucleusSampler, decode_chosen
from runtime.decoding.state import VectorState
from runtime.decoding.tokenizer import CaptionTokenizer
from runtime.errors import OptionError
from runtime.options import DecodingOptions, ProgressCallback


class DecapDecoder:
    """Decodes greedily, or by beam search with an engine that is opened when first asked for.

    Attributes:
        greedy: decodes vectors to tokens.
        tokenizer: turns tokens into text.
    """

    def __init__(self, bundle: Bundle, backend: Backend, bank: CaptionBank | None) -> None:  # noqa: ARG002  # as all
        self._config = bundle.manifest.decoder
        self.tokenizer = CaptionTokenizer(bundle.file(bundle.manifest.tokenizer), self._config.eos_token_ids)
        self.greedy = GreedyDecoder(backend.open(bundle.engine("decoder")), self._config)
        self._beam_engine = LazyEngine(lambda: backend.open(bundle.engine("beam_decoder")))

    def __call__(
        self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[DecodedCaption]:
        _check(options)
        found = self._search(vectors, options, progress)
        return [
            DecodedCaption(self.tokenizer.text(ids), math.exp(log_prob), tuple(ids))
            for ids, log_prob in zip(found.ids, found.log_probs, strict=True)
        ]

    def _search(self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None) -> TokenSequences:
        config = self._config
        if options.beams == 1 and options.top_p is None:
            return self.greedy.decode(vectors, ignore_eos=options.score == "reference", progress=progress)
        engine = self._beam_engine.get()
        if options.top_p is None:
            return beam_search(engine, config, vectors, options.beams, options.length_penalty, progress)
        choose = NucleusSampler.of(options, config.max_new_tokens)

        def sample(batch: Tensor) -> tuple[Tensor, Tensor]:
            return decode_chosen(engine, config, VectorState(config, batch), len(batch), choose)

        return decode_in_batches(sample, vectors, config, progress=progress)

    def reports(self) -> Mapping[str, EngineReport]:
        return {"decoder": self.greedy.report()}

    def close(self) -> None:
        self.greedy.close()
        self._beam_engine.close()


def _check(options: DecodingOptions) -> None:
    """Raise OptionError for what DeCap does not have."""
    if options.prompt_padding != "none":
        raise OptionError(
            f'prompt_padding="{options.prompt_padding}": the decoder of this bundle, decap, has no prompt to pad'
        )
    if options.score == "reference" and (options.beams > 1 or options.top_p is not None):
        other = f"beams={options.beams}" if options.beams > 1 else f"top_p={options.top_p}"
        raise OptionError(
            f'score="reference" with {other}: the published score of decap is that of captions decoded greedily'
        )
