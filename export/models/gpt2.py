"""GPT-2 as one step over a KV cache, and as one run over a prompt, for decoders of any prompt.

Module names are those of transformers' GPT-2, so published state dicts load as they are.
Shapes: R regions, E width, H heads, d = E / H, P positions of the cache, Q tokens of a prompt.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from runtime.backends.base import Device

_MASKED_LOGIT = -1e4
"""Finite in float16 too, and far enough below any logit to vanish in a softmax."""
_VOCABULARY_ALIGNMENT = 8
"""Of a vocabulary of another size TensorRT would hold a padded copy: its kernels read 16 bytes of float16 at once."""


class Conv1D(nn.Module):
    """A linear layer whose weight is (in, out), as GPT-2 stores it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        product = torch.addmm(self.bias, x.flatten(0, -2), self.weight)  # of two axes, as the steps', for one weight
        return product if x.ndim == 2 else product.unflatten(0, x.shape[:-1])


class Gpt2Attention(nn.Module):
    """Attention of one position over a cache.

    For GPUs the position's key and value are joined to the cache's, which TensorRT makes one kernel of; for CPUs, which
    are spared a copy so, the cache is read in place.
    """

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.device: Device = "cpu"
        self.c_attn = Conv1D(width, 3 * width)
        self.c_proj = Conv1D(width, width)

    def forward(
        self, x: Tensor, past_key: Tensor, past_value: Tensor, is_attended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attended values (R, E) of one position (R, E), and its own key and value (R, H, 1, d).

        It attends to itself and to a cache (R, H, P, d).

        Args:
            is_attended: the filled entries of the cache, (P,) or (R, 1, 1, P) bool; for GPUs its own too (P + 1).
        """
        query, key, value = self.c_attn(x).unflatten(-1, (3, self.num_heads, 1, -1)).unbind(1)
        query = query * query.shape[-1] ** -0.5
        attend = _attend_joined if self.device == "cuda" else _attend_in_place
        attended = attend(query, key, value, past_key, past_value, is_attended)
        return self.c_proj(attended.flatten(1)), key, value

    def prefill(self, x: Tensor, is_attended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the attended values of a prompt x (R, Q, E), and its keys and values (R, H, Q, d).

        Args:
            is_attended: by each token (R, 1, Q, Q) bool.
        """
        thirds = self.c_attn(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = thirds.unbind(0)
        attended = _attend(query * query.shape[-1] ** -0.5, key, value, is_attended)
        return self.c_proj(attended.transpose(1, 2).flatten(2)), key, value


def _attend_in_place(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, is_past: Tensor
) -> Tensor:
    """Return the attended values (R, H, 1, d); only logits are concatenated, never keys or values."""
    past_logits = torch.where(is_past, query @ past_key.transpose(-1, -2), _MASKED_LOGIT)
    own_logit = (query * key).sum(-1, keepdim=True)
    probs = torch.softmax(torch.cat([past_logits, own_logit], dim=-1), dim=-1)
    return probs[..., :-1] @ past_value + probs[..., -1:] * value


def _attend_joined(
    query: Tensor, key: Tensor, value: Tensor, past_key: Tensor, past_value: Tensor, is_attended: Tensor
) -> Tensor:
    """Return the attended values (R, H, 1, d), keys and values in one piece."""
    keys, values = torch.cat([past_key, key], dim=-2), torch.cat([past_value, value], dim=-2)
    return _attend(query, keys, values, is_attended)


def _attend(query: Tensor, keys: Tensor, values: Tensor, is_attended: Tensor) -> Tensor:
    """Return the attended values as product, mask, softmax and product, the pattern that is fused."""
    logits = torch.where(is_attended, query @ keys.transpose(-1, -2), _MASKED_LOGIT)
    return torch.softmax(logits, dim=-1) @ values


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
        self, x: Tensor, past_key: Tensor, past_value: Tensor, is_attended: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (R, E) after the layer, and the position's own key and value; see `Gpt2Attention.forward`."""
        attended, key, value = self.attn(self.ln_1(x), past_key, past_value, is_attended)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), key, value

    def prefill(self, x: Tensor, is_attended: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (R, Q, E) after the layer, and the prompt's keys and values; see `Gpt2Attention.prefill`."""
        attended, key, value = self.attn.prefill(self.ln_1(x), is_attended)
        x = x + attended
        return x + self.mlp(self.ln_2(x)), key, value


class Gpt2(nn.Module):
    """GPT-2 with its head tied to the token embedding, which is therefore stored once."""

    def __init__(self, width: int, num_layers: int, num_heads: int, vocab_size: int, positions: int) -> None:
        super().__init__()
        self.transformer = Gpt2Transformer(width, num_layers, num_heads, vocab_size, positions)


class Gpt2Transformer(nn.Module):
    """The embeddings, layers and last norm of GPT-2, and its head, which is tied to the embedding of tokens.

    V is the vocabulary's size or, where it was padded, the next multiple (of 8 for GPUs), whose last tokens no logit is
    near.
    """

    padding_bias: Tensor | None

    def __init__(self, width: int, num_layers: int, num_heads: int, vocab_size: int, positions: int) -> None:
        super().__init__()
        self.wte = nn.Embedding(vocab_size, width)
        self.wpe = nn.Embedding(positions, width)
        self.h = nn.ModuleList(Gpt2Block(width, num_heads) for _ in range(num_layers))
        self.ln_f = nn.LayerNorm(width, eps=1e-5)
        self.vocab_size = vocab_size
        self.device: Device = "cpu"
        self.register_buffer("padding_bias", None, persistent=False)

    def prepare_for(self, device: Device) -> None:
        """Take the form that is fastest on a device: see `Gpt2Attention` and V above."""
        self.device = device
        for module in self.modules():
            if isinstance(module, Gpt2Attention):
                module.device = device
        if device == "cuda":
            self.pad_vocabulary(_VOCABULARY_ALIGNMENT)

    def pad_vocabulary(self, multiple: int) -> None:
        """Make V a multiple of some number, by tokens that are never chosen and do not count."""
        padding = -len(self.wte.weight) % multiple
        if padding:
            bias = torch.zeros(len(self.wte.weight))
            self.padding_bias = F.pad(bias, (0, padding), value=_MASKED_LOGIT)
            self.wte.weight = nn.Parameter(F.pad(self.wte.weight.detach(), (0, 0, 0, padding)))

    def prefill(self, x: Tensor, is_attended: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return a prompt's embeddings (R, Q, E) after all layers, and for each layer its keys and its values.

        They have not passed the last norm.
        """
        present: list[Tensor] = []
        for block in self.h:
            assert isinstance(block, Gpt2Block)
            x, key, value = block.prefill(x, is_attended)
            present += [key, value]
        return x, present

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits (R, V) of what comes after the states (R, E), which have passed the last norm."""
        return F.linear(states, self.wte.weight, self.padding_bias)

    def is_attended(self, position: Tensor) -> Tensor:
        """Return which entries a position (1,) attends to: (P,) bool, for GPUs (P + 1,)."""
        entries = [*range(self.wpe.num_embeddings)]
        return torch.tensor([*entries, -1] if self.device == "cuda" else entries) < position  # its own, -1, always is
