"""DeCap's decoder as graphs of one step: last token and cache in, next token or every token's log-probability out.

Module names are those of the published state dict (published-system.md, section 6), so it loads as it is.
Shapes: R regions, D vector width, E decoder width, H heads, d = E / H, P positions (the most steps), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from export.models.base import BundleNumbers, DecoderModel
from export.models.gpt2 import Gpt2
from export.models.next_token import NextToken
from runtime.backends.base import Device
from runtime.bundle import DecoderConfig

PUBLISHED_HEADS = 4
PUBLISHED_STEPS = 30


@dataclass(frozen=True)
class DecapConfig:
    """The numbers of a DeCap decoder.

    Attributes:
        text_vocab_size: ids from here on have no text; they are never chosen but count in the log-probabilities, as
            published.
    """

    prefix_width: int
    embed_dim: int
    num_layers: int
    vocab_size: int
    text_vocab_size: int
    num_heads: int = PUBLISHED_HEADS
    max_new_tokens: int = PUBLISHED_STEPS

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.embed_dim // self.num_heads


class ClipProject(nn.Module):
    """The projection of a vector to the decoder's first input."""

    def __init__(self, config: DecapConfig) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(config.prefix_width, config.embed_dim))


class DecapStep(DecoderModel):
    """One greedy step of the decoder for R regions.

    Position 0 takes the projected vector; every later one the embedding of the token chosen before it.
    """

    kind = "decap"

    def __init__(self, config: DecapConfig) -> None:
        super().__init__()
        self.config = config
        self.next_token = NextToken(config.text_vocab_size)
        self.decoder = Gpt2(
            config.embed_dim, config.num_layers, config.num_heads, config.vocab_size, config.max_new_tokens
        )
        self.clip_project = ClipProject(config)

    @property
    def prefix_width(self) -> int:
        return self.config.prefix_width

    def forward(self, vectors: Tensor, input_ids: Tensor, position: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return the next tokens of R regions and what they add to the cache.

        Args:
            vectors: what to caption (R, D).
            input_ids: the tokens chosen last (R,) int64; not read at position 0.
            position: the position to compute (1,) int64, from 0.
            past: for each layer its past keys, then its past values, (R, H, P, d) each, filled below ``position``.

        Returns:
            next token ids (R,) int64, their log-probabilities (R,), and for each layer the key and value (R, H, 1, d)
            that belong in the cache at ``position``.
        """
        states, present = self.states(vectors, input_ids, position, past)
        gpt = self.decoder.transformer
        return *self.next_token(gpt.logits(states), states, gpt.wte.weight), *present

    def states(
        self, vectors: Tensor, input_ids: Tensor, position: Tensor, past: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Return the states (R, E) that have passed all layers and the last norm, and the new cache entries.

        Arguments as in `forward`.
        """
        gpt = self.decoder.transformer
        x = torch.where(position == 0, self.clip_project.model(vectors), gpt.wte(input_ids)) + gpt.wpe(position)
        is_attended = gpt.is_attended(position)
        present: list[Tensor] = []
        for layer, block in enumerate(gpt.h):
            x, key, value = block(x, past[2 * layer], past[2 * layer + 1], is_attended)
            present += [key, value]
        return gpt.ln_f(x), present

    def prepare_for(self, device: Device, rounds_weights: bool = False) -> None:
        self.decoder.transformer.prepare_for(device)
        if rounds_weights:
            self.next_token.recomputes = True
            self.decoder.transformer.pad_vocabulary(self.next_token.block_size)

    def manifest_entry(self, numbers: BundleNumbers) -> DecoderConfig:
        config = self.config
        return DecoderConfig(
            kind="decap",
            text_space=numbers.text_space,
            embed_dim=config.embed_dim,
            num_layers=config.num_layers,
            num_heads=config.num_heads,
            head_dim=config.head_dim,
            max_new_tokens=config.max_new_tokens,
            vocab_size=config.vocab_size,
            eos_token_ids=numbers.eos_token_ids,
            cache_precision=numbers.cache_precision,
            batch_sizes=numbers.batch_sizes,
        )


class DecapBeamStep(nn.Module):
    """One step of the decoder for searches that rank several next tokens, with the weights of the greedy step."""

    def __init__(self, decoder: DecapStep) -> None:
        super().__init__()
        self.greedy = decoder

    def forward(self, vectors: Tensor, input_ids: Tensor, position: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Return the log-probabilities of R regions' next tokens and what they add to the cache.

        Returns:
            the log-probability of each token that has text (R, text vocabulary), and the new cache entries; arguments
            and entries as in `DecapStep.forward`.
        """
        states, present = self.greedy.states(vectors, input_ids, position, past)
        logits = self.greedy.decoder.transformer.logits(states)
        return self.greedy.next_token.log_probs(logits), *present
