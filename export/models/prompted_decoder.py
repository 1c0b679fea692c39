"""Decoders with a prompt: a mapping network, and a GPT-2 that reads soft tokens and words, then continues.

Shapes: R regions, D vector width, E decoder width, S soft tokens, Q prompt tokens, H heads, d = E / H, P positions of
the cache, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from export.models.base import BundleNumbers, DecoderModel
from export.models.gpt2 import Gpt2
from export.models.mapping import MappingNetwork
from export.models.next_token import NextToken
from runtime.backends.base import Device
from runtime.bundle import DecoderConfig, DecoderKind, PromptConfig, PromptOrder

PUBLISHED_HEAD_WIDTH = 64


@dataclass(frozen=True)
class Gpt2Config:
    """The numbers of a GPT-2.

    Attributes:
        positions: P, those that a cache may have.
    """

    embed_dim: int
    num_layers: int
    num_heads: int
    vocab_size: int
    positions: int

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


@dataclass(frozen=True)
class CaptionRules:
    """How captions begin and end.

    Attributes:
        order: of the soft and the hard part of a prompt.
        max_hard_tokens: the most tokens of the hard part.
        max_new_tokens: the most tokens of a caption.
        unit_vectors: whether vectors get unit length first.
        text_end: what ends every text; "" for the end token itself.
        reference_score: what the published score is.
    """

    order: PromptOrder
    max_hard_tokens: int
    max_new_tokens: int
    unit_vectors: bool
    text_end: str = ""
    reference_score: Literal["perplexity", "inverse_perplexity"] = "perplexity"

    def max_prompt_tokens(self, soft_tokens: int) -> int:
        """Return the most tokens of a prompt with so many soft ones."""
        soft = 0 if self.order == "hard_only" else soft_tokens
        return soft + (0 if self.order == "soft_only" else self.max_hard_tokens)


class PromptedModel(DecoderModel):
    """A mapping network and a GPT-2, and the modules of their graphs besides the mapping's.

    Attributes:
        mapping: vectors to soft tokens.
        gpt: the language model.
        prefill, step, beam_step: what is exported of it.
    """

    def __init__(
        self, kind: DecoderKind, mapping: MappingNetwork, gpt: Gpt2, config: Gpt2Config, rules: CaptionRules
    ) -> None:
        super().__init__()
        self.kind, self.config, self.rules = kind, config, rules
        self.mapping, self.gpt = mapping, gpt
        self.prefill = Prefill(gpt, mapping.config.soft_tokens)
        self.step = PromptedStep(gpt)
        self.beam_step = PromptedBeamStep(gpt)

    @property
    def prefix_width(self) -> int:
        return self.mapping.config.vector_width

    @property
    def max_prompt_tokens(self) -> int:
        """The most tokens of a prompt."""
        return self.rules.max_prompt_tokens(self.mapping.config.soft_tokens)

    def prepare_for(self, device: Device, rounds_weights: bool = False) -> None:
        self.mapping.prepare_for(device)
        self.gpt.transformer.prepare_for(device)
        self.step.next_token.recomputes = rounds_weights

    def manifest_entry(self, numbers: BundleNumbers) -> DecoderConfig:
        config, rules = self.config, self.rules
        return DecoderConfig(
            kind=self.kind,
            text_space=numbers.text_space,
            embed_dim=config.embed_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            max_new_tokens=rules.max_new_tokens,
            vocab_size=config.vocab_size,
            eos_token_ids=numbers.eos_token_ids,
            keeps_eos=True,
            text_end=rules.text_end,
            reference_score=rules.reference_score,
            prompt=PromptConfig(
                soft_tokens=self.mapping.config.soft_tokens,
                order=rules.order,
                max_tokens=self.max_prompt_tokens,
                unit_vectors=rules.unit_vectors,
                hard=numbers.hard_prompt,
            ),
            cache_precision=numbers.cache_precision,
            batch_sizes=numbers.batch_sizes,
        )


class Prefill(nn.Module):
    """Reads prompts in one run: what every step of them would leave in the cache, and what comes after them."""

    soft_ids: Tensor
    last_id: Tensor

    def __init__(self, gpt: Gpt2, soft_tokens: int) -> None:
        super().__init__()
        self.gpt = gpt
        vocab_size = gpt.transformer.vocab_size
        self.next_token = NextToken(vocab_size)
        soft_ids = torch.arange(vocab_size, vocab_size + soft_tokens)
        self.register_buffer("soft_ids", soft_ids[None, None], persistent=False)
        self.register_buffer("last_id", torch.tensor(vocab_size - 1), persistent=False)

    def forward(
        self, soft_prompt: Tensor, prompt_ids: Tensor, position_ids: Tensor, attention_mask: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the log-probability of each token after the prompts (R, V), and their cache entries (R, H, Q, d).

        Args:
            soft_prompt: (R, S, E).
            prompt_ids: left-padded (R, Q) int64; V + k is the soft token k.
            position_ids: (R, Q) int64, those of padding are not read.
            attention_mask: (R, Q) bool, false for padding.
        """
        gpt = self.gpt.transformer
        words = gpt.wte(torch.minimum(prompt_ids, self.last_id))
        soft = (prompt_ids[..., None] == self.soft_ids).to(soft_prompt.dtype) @ soft_prompt
        x = torch.where((self.last_id < prompt_ids)[..., None], soft, words) + gpt.wpe(position_ids)
        is_before = position_ids[:, None] < position_ids[..., None] + 1  # (R, by, of)
        is_attended = (is_before & attention_mask[:, None])[:, None]
        x, present = gpt.prefill(x, is_attended)
        return self.next_token.log_probs(gpt.logits(gpt.ln_f(x[:, -1]))), *present


class PromptedStep(nn.Module):
    """One greedy step after a prompt."""

    def __init__(self, gpt: Gpt2) -> None:
        super().__init__()
        self.gpt = gpt
        self.next_token = NextToken(gpt.transformer.vocab_size)

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the next tokens of R regions and what they add to the cache.

        Args:
            input_ids: the tokens chosen last (R,) int64.
            position_ids: their positions (R,) int64.
            attention_mask: the entries of the cache, and then the step's own, that it attends to (R, P + 1) bool.
            past: for each layer its past keys, then its past values, (R, H, P, d) each.

        Returns:
            next token ids (R,) int64, their log-probabilities (R,), and for each layer the key and value (R, H, 1, d).
        """
        states, present = self.states(input_ids, position_ids, attention_mask, past)
        gpt = self.gpt.transformer
        return *self.next_token(gpt.logits(states), states, gpt.wte.weight), *present

    def states(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the states (R, E) that have passed all layers and the last norm, and the new cache entries."""
        gpt = self.gpt.transformer
        x = gpt.wte(input_ids) + gpt.wpe(position_ids)
        is_attended = (attention_mask if gpt.device == "cuda" else attention_mask[:, :-1])[:, None, None]
        present: list[Tensor] = []
        for layer, block in enumerate(gpt.h):
            x, key, value = block(x, past[2 * layer], past[2 * layer + 1], is_attended)
            present += [key, value]
        return gpt.ln_f(x), present


class PromptedBeamStep(PromptedStep):
    """One step for searches that rank several next tokens, and for sampling."""

    def forward(
        self, input_ids: Tensor, position_ids: Tensor, attention_mask: Tensor, *past: Tensor
    ) -> tuple[Tensor, ...]:
        """Return the log-probability of each token (R, V) and the new cache entries; see `PromptedStep.forward`."""
        states, present = self.states(input_ids, position_ids, attention_mask, past)
        return self.next_token.log_probs(self.gpt.transformer.logits(states)), *present
