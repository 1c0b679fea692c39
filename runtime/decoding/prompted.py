"""Decoders that read a prompt: soft tokens made of the vector, words about the region, or both.

ViECap, MeaCap and ClipCap (published-system.md, sections 18 to 20). Shapes: R regions, D vector width, S soft tokens, Q
prompt tokens, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends import Backend, Engine, EngineReport, LazyEngine
from runtime.bundle import Bundle, EntitiesConfig, PromptConfig
from runtime.bundle.graph_io import ALL_LOG_PROBS, ATTENTION_MASK, POSITION_IDS, PROMPT_IDS, SOFT_PROMPT, VECTORS
from runtime.decoding.base import CaptionBank, DecodedCaption
from runtime.decoding.batches import TokenSequences, decode_in_batches
from runtime.decoding.concept_prompts import ConceptPrompts
from runtime.decoding.entities import EntityPrompts
from runtime.decoding.greedy import GreedyDecoder
from runtime.decoding.kv_cache import KvCache
from runtime.decoding.mean_beam_search import mean_beam_search
from runtime.decoding.sampling import NucleusSampler, decode_chosen
from runtime.decoding.state import BeginDecoding, PromptState
from runtime.decoding.text_scores import perplexities
from runtime.decoding.tokenizer import CaptionTokenizer
from runtime.options import DecodingOptions, ProgressCallback

_REFERENCE_PADDING = 0
"""The token that the published system fills shorter prompts with: GPT-2's "!"."""


class HardPrompts(Protocol):
    """Makes the words of prompts."""

    def __call__(self, unit_vectors: Tensor) -> list[list[int]]:
        """Return the token ids of each region's words, for unit vectors (R, D)."""
        ...


class PromptedDecoder:
    """Decodes greedily, by beam search or by sampling; engines that not all need are opened when first asked for.

    Attributes:
        prompts: makes the prompts of vectors and reads them.
        greedy: decodes vectors to tokens.
        tokenizer: turns tokens into text.
    """

    def __init__(self, bundle: Bundle, backend: Backend, bank: CaptionBank | None) -> None:
        config = bundle.manifest.decoder
        self._config, self._device = config, backend.device
        self.tokenizer = CaptionTokenizer(
            bundle.file(bundle.manifest.tokenizer), config.eos_token_ids, config.keeps_eos, config.text_end
        )
        self.prompts = PromptReader(bundle, backend, bank)
        self._beam_engine = LazyEngine(lambda: backend.open(bundle.engine("beam_decoder")))
        self.greedy = GreedyDecoder(backend.open(bundle.engine("decoder")), self._config, self.prompts.begin)

    def __call__(
        self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[DecodedCaption]:
        is_padded = options.prompt_padding == "reference"
        begin = partial(self.prompts.begin, pad_to=self.prompts.longest(vectors)) if is_padded else None
        found = self._search(vectors, options, begin or self.prompts.begin, progress)
        if options.score == "natural":
            scores = [math.exp(log_prob) for log_prob in found.log_probs]
        else:
            scores = self._reference_scores(found.ids)
        return [
            DecodedCaption(self.tokenizer.text(ids), score, tuple(ids))
            for score, ids in zip(scores, found.ids, strict=True)
        ]

    @property
    def beam_engine(self) -> Engine:
        """The step that gives the log-probability of every token, opened when first asked for."""
        return self._beam_engine.get()

    def reports(self) -> Mapping[str, EngineReport]:
        return {"mapping": self.prompts.mapping.report(), "prefill": self.prompts.prefill.report()} | {
            "decoder": self.greedy.report()
        }

    def close(self) -> None:
        self.prompts.close()
        self.greedy.close()
        self._beam_engine.close()

    def _search(
        self,
        vectors: Tensor,
        options: DecodingOptions,
        begin: BeginDecoding,
        progress: ProgressCallback | None,
    ) -> TokenSequences:
        config, beams = self._config, options.beams
        if beams == 1 and options.top_p is None:
            return self.greedy.decode(vectors, progress=progress, begin=begin)
        engine = self.beam_engine

        def search(batch: Tensor) -> tuple[Tensor, Tensor]:
            state = begin(batch, beams)
            if options.top_p is None:
                return mean_beam_search(engine, config, state, len(batch), beams, options.length_penalty).best
            choose = NucleusSampler.of(options, config.max_new_tokens)
            return decode_chosen(engine, config, state, len(batch), choose)

        return decode_in_batches(search, vectors, config, beams, progress)

    def _reference_scores(self, ids: Sequence[Sequence[int]]) -> list[float]:
        """Return the published scores of captions, whose texts are tokenized again."""
        tokens = [self.tokenizer.ids(self.tokenizer.full_text(one)) for one in ids]
        found = perplexities(self.beam_engine, self._config, tokens, self._device)
        if self._config.reference_score == "perplexity":
            return found
        return [1.0 if math.isnan(one) else 1 / one for one in found]


class PromptReader:
    """Makes the prompts of vectors and reads them: mapping network, words, prefill.

    Attributes:
        mapping, prefill: the engines.
    """

    def __init__(self, bundle: Bundle, backend: Backend, bank: CaptionBank | None) -> None:
        self._config = bundle.manifest.decoder
        prompt = self._config.prompt
        assert prompt is not None  # who has none does not come here
        self._prompt: PromptConfig = prompt
        self._words = _load_words(bundle, prompt, bank, backend.device)
        self.mapping: Engine = backend.open(bundle.engine("mapping"))
        self.prefill: Engine = backend.open(bundle.engine("prefill"))

    def begin(self, vectors: Tensor, captions_per_vector: int = 1, pad_to: int = 0) -> PromptState:
        """Read the prompts of vectors (R, D), with room for so many captions of each.

        Args:
            pad_to: the number of tokens that words are filled up to, as the published system does in a batch.
        """
        config, device = self._config, vectors.device
        soft = self.soft_prompt(vectors)
        words = self.words(vectors)
        prompts = [self._arranged(one + [_REFERENCE_PADDING] * (pad_to - len(one))) for one in words]
        ids, mask = (one.to(device) for one in _left_padded(prompts))
        position_ids = (mask.cumsum(dim=1) - 1).clamp(min=0)
        outputs = self.prefill.run(
            {SOFT_PROMPT: soft, PROMPT_IDS: ids, POSITION_IDS: position_ids, ATTENTION_MASK: mask}
        )
        cache = KvCache(config, len(vectors), device, captions_per_vector)
        cache.append(outputs)
        return PromptState(outputs[ALL_LOG_PROBS], cache, mask)

    def soft_prompt(self, vectors: Tensor) -> Tensor:
        """Return the soft tokens (R, S, E) of vectors (R, D)."""
        used = F.normalize(vectors, dim=-1) if self._prompt.unit_vectors else vectors
        return self.mapping.run({VECTORS: used.contiguous()})[SOFT_PROMPT]

    def words(self, vectors: Tensor) -> list[list[int]]:
        """Return the token ids of the words in the prompt of each of the vectors (R, D)."""
        return [[] for _ in vectors] if self._words is None else self._words(F.normalize(vectors, dim=-1))

    def longest(self, vectors: Tensor) -> int:
        """Return the most tokens that the words of one of the vectors (R, D) have."""
        return max(map(len, self.words(vectors)), default=0)

    def close(self) -> None:
        """Release what the engines hold."""
        self.mapping.close()
        self.prefill.close()

    def _arranged(self, words: list[int]) -> list[int]:
        """Return the ids of a whole prompt, those above the vocabulary for its soft tokens."""
        soft = [self._config.vocab_size + index for index in range(self._prompt.soft_tokens)]
        orders = {
            "soft_first": soft + words,
            "hard_first": words + soft,
            "soft_only": soft,
            "hard_only": words,
        }
        return orders[self._prompt.order]


def _load_words(
    bundle: Bundle, prompt: PromptConfig, bank: CaptionBank | None, device: torch.device
) -> HardPrompts | None:
    if prompt.hard is None:
        return None
    if isinstance(prompt.hard, EntitiesConfig):
        return EntityPrompts(bundle, prompt.hard, device)
    assert bank is not None  # the manifest has one
    soft = 0 if prompt.order == "hard_only" else prompt.soft_tokens
    return ConceptPrompts(bundle, prompt.hard, bank, prompt.max_tokens - soft)


def _left_padded(prompts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids (R, Q) and which of them are no padding (R, Q)."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(one)) + list(one) for one in prompts])
    lengths = torch.tensor([len(one) for one in prompts])
    return ids, torch.arange(longest) >= longest - lengths[:, None]
