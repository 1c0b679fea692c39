"""GPT-2 as one step over a KV cache, for decoders of any prompt.

Module names are those of transformers' GPT-2, so published state dicts load as they are.
Shapes: R regions, E width, H heads, d = E / H, P positions.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MASKED_LOGIT = -1e4
"""Finite in float16 too, and far enough below any logit to vanish in a softmax."""


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Gpt2Attention(nn.Module):
    """Attention of one position over a cache."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, is_past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attended values (R, E) of one position (R, E), and its own key and value (R, H, 1, d).

        It attends to itself and to a cache (R, H, P, d) of which ``is_past`` (P,) bool is filled.
        """
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.num_heads, 1, -1)).unbind(1)
        query = query * query.shape[-1] ** -0.5
        # The cache is read in place: only the logits are concatenated, never the keys or values.
        past_logits = torch.where(is_past, query @ past_key.transpose(-1, -2), _MASKED_LOGIT)
        own_logit = (query * key).sum(-1, keepdim=True)
        probs = torch.softmax(torch.cat([past_logits, own_logit], dim=-1), dim=-1)
        attended = probs[..., :-1] @ past_value + probs[..., -1:] * value
        return self.c_proj(attended.flatten(1)), key, value


class Gpt2Mlp(nn.Module):
    """A feed-forward layer with tanh GELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Gpt2Block(nn.Module):
    """One layer of GPT-2."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width, eps=1e-5)
        self.attn = Gpt2Attention(width, num_heads)
        self.ln_2 = nn.LayerNorm(width, eps=1e-5)
        self.mlp = Gpt2Mlp(width)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, is_past: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (R, E) after the layer, and the position's own key and value; see `Gpt2Attention.forward`."""
        attended, key, value = self.attn(self.ln_1(x), past_key, past_value, is_past)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), key, value


class Gpt2Transformer(nn.Module):
    """The embeddings, layers and last norm of GPT-2."""

    def __init__(self, width: int, num_layers: int, num_heads: int, vocab_size: int, positions: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Gpt2Block(width, num_heads) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width, eps=1e-5)


def log_sum_exp(logits: Tensor) -> Tensor:
    """Return the log of the sum of exponentials over the last axis.

    Not torch.logsumexp, which becomes a chain of guards against infinities in ONNX.
    """
    largest = logits.amax(dim=-1)
    return largest + torch.log(torch.exp(logits - largest[:, None]).sum(dim=-1))
