"""DeCap's decoder as graphs of one step: last token and cache in, the next token or every token's log-probability out.

Module names are those of the published state dict (SPEC section 6), so it loads as it is.
Shapes: R regions, D backbone width, E decoder width, H heads, d = E / H, P positions (the most steps), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PUBLISHED_HEADS = 4
PUBLISHED_STEPS = 30

_LARGEST_BLOCK = 512
"""Of the vocabulary, in looking for the best word: about the square root of a published one."""

_MASKED = -1e4  # finite, and far enough from any score to vanish in a softmax, in float16 too


@dataclass(frozen=True)
class DecoderConfig:
    """The numbers of a decoder."""

    prefix_width: int
    width: int
    layers: int
    vocabulary: int
    text_vocabulary: int
    """Ids from here on have no text; they are never chosen but count in the log-probabilities, as published."""
    heads: int = PUBLISHED_HEADS
    steps: int = PUBLISHED_STEPS

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """One position (R, E) over a cache (R, H, P, d) of which ``past`` (P,) bool is filled.

        Returns the mixed values (R, E), and the position's own key and value (R, H, 1, d) for the cache.
        """
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.heads, 1, -1)).unbind(1)
        query = query * query.shape[-1] ** -0.5
        # The cache is read where it lies: only the scores are joined, never the keys or values.
        past_scores = torch.where(past, query @ past_key.transpose(-1, -2), _MASKED)
        own_score = (query * key).sum(-1, keepdim=True)
        shares = torch.softmax(torch.cat([past_scores, own_score], dim=-1), dim=-1)
        mixed = shares[..., :-1] @ past_value + shares[..., -1:] * value
        return self.c_proj(mixed.flatten(1)), key, value


class Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = Attention(width, heads)
        self.ln_2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Mlp(width)

    def forward(self, x: Tensor, past_key: Tensor, past_value: Tensor, past: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mixed, key, value = self.attn(self.ln_1(x), past_key, past_value, past)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), key, value


class Transformer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.wte = nn.Embedding(config.vocabulary, config.width)
        self.wpe = nn.Embedding(config.steps, config.width)
        self.h = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.ln_f = nn.LayerNorm(config.width, eps=1e-5)


class ClipProject(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Linear(config.prefix_width, config.width))


class Gpt2(nn.Module):
    """GPT-2 with its head tied to the token embedding, which is therefore stored once."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.transformer = Transformer(config)


class DecoderStep(nn.Module):
    """One step of the decoder for R regions.

    Position 0 takes the projected region vector; every later one the embedding of the token chosen before it.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        words = config.text_vocabulary
        self.block = max(width for width in range(1, _LARGEST_BLOCK + 1) if words % width == 0)
        self.decoder = Gpt2(config)
        self.clip_project = ClipProject(config)

    def forward(self, vectors: Tensor, tokens: Tensor, step: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """
        Args:
            vectors: region vectors (R, D).
            tokens: the ids chosen last (R,) int64; not read at step 0.
            step: the position to compute (1,) int64, from 0.
            cache: for each layer its past keys, then its past values, (R, H, P, d) each, filled below ``step``.

        Returns:
            next ids (R,) int64, their log-probabilities (R,), and for each layer the keys and values (R, H, 1, d)
            that belong in the cache at ``step``.
        """
        logits, entries = self.logits(vectors, tokens, step, cache)
        ids, best = self._best(logits[:, : self.config.text_vocabulary])
        return ids, best - log_sum_exp(logits), *entries

    def logits(
        self, vectors: Tensor, tokens: Tensor, step: Tensor, cache: Sequence[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """The scores (R, V) of the whole vocabulary, and the cache's new entries; arguments as in `forward`."""
        gpt = self.decoder.transformer
        x = torch.where(step == 0, self.clip_project.model(vectors), gpt.wte(tokens)) + gpt.wpe(step)
        past = torch.arange(self.config.steps) < step
        entries: list[Tensor] = []
        for number, block in enumerate(gpt.h):
            x, key, value = block(x, cache[2 * number], cache[2 * number + 1], past)
            entries += [key, value]
        return F.linear(gpt.ln_f(x), gpt.wte.weight), entries

    def _best(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """The place (R,) and the value (R,) of the largest of ``logits`` (R, words), the first where several are.

        In two steps, the best block and the best in it: runtimes reduce a long row well, but few find its place well
        (OpenVINO takes 10 times as long for it as for the matrix product before it).
        """
        blocks = logits.unflatten(-1, (-1, self.block))
        best, block = blocks.amax(dim=-1).max(dim=-1)
        inside = torch.gather(blocks, 1, block[:, None, None].expand(-1, 1, self.block))[:, 0]
        return block * self.block + inside.argmax(dim=-1), best


class BeamDecoderStep(nn.Module):
    """The same step with the same weights, for searches that weigh several next tokens."""

    def __init__(self, decoder: DecoderStep) -> None:
        super().__init__()
        self.greedy = decoder

    def forward(self, vectors: Tensor, tokens: Tensor, step: Tensor, *cache: Tensor) -> tuple[Tensor, ...]:
        """
        Returns:
            the log-probability of each id that has text (R, text vocabulary), and the cache's new entries; arguments
            and entries as in `DecoderStep.forward`.
        """
        logits, entries = self.greedy.logits(vectors, tokens, step, cache)
        return logits[:, : self.greedy.config.text_vocabulary] - log_sum_exp(logits)[:, None], *entries


def log_sum_exp(logits: Tensor) -> Tensor:
    """Over the last axis. Not torch.logsumexp, which becomes a chain of guards against infinities in ONNX."""
    largest = logits.amax(dim=-1)
    return largest + torch.log(torch.exp(logits - largest[:, None]).sum(dim=-1))
