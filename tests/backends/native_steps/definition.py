"""A step of GPT-2 by its definition, in float64 but for what the kernels round.

Shapes: R rows, D vector width, E decoder width, H heads, d = E / H, P positions of the cache, V vocabulary.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.backends.native_gpt2 import CANDIDATES, HeldGpt2, StepCache, StepInputs
from runtime.backends.native_linear import LinearLayer, NativeLayer
from tests.backends.native import tensor_at

BLOCK = 64
"""Inputs that share a scale."""


@dataclass(frozen=True)
class Model:
    """A GPT-2, its layers as the kernels are given them.

    Attributes:
        embeddings: (V, E).
    """

    blocks: Sequence[Sequence[LinearLayer]]
    heads: int
    vocabulary: LinearLayer
    embeddings: Tensor
    word_count: int
    projection: LinearLayer | None = None


@dataclass(frozen=True)
class Expected:
    """What a step returns.

    Attributes:
        normed: the states (R, E) after the last norm.
        logits: of the rounded vocabulary (R, V).
        present: keys and values of each block (R, H, d).
    """

    normed: Tensor
    logits: Tensor
    present: list[Tensor]

    def all_log_probs(self, word_count: int) -> Tensor:
        return (self.logits - self.logits.logsumexp(dim=1, keepdim=True))[:, :word_count]

    def chosen(self, embeddings: Tensor, word_count: int) -> tuple[Tensor, Tensor]:
        """Return the likeliest words (R,) by exact logits of the candidates, and their log-probabilities."""
        rounded, words = self.logits[:, :word_count].topk(CANDIDATES)
        exact = (embeddings.double()[words] * self.normed[:, None]).sum(dim=-1)
        best, place = exact.max(dim=1)
        largest = torch.maximum(self.logits.amax(dim=1), best)[:, None]
        every, again, before = ((logits - largest).exp().sum(dim=1) for logits in (self.logits, exact, rounded))
        return words.gather(1, place[:, None])[:, 0], best - largest[:, 0] - (every + again - before).log()


def normed(layer: LinearLayer, values: Tensor) -> Tensor:
    """Return the inputs of a layer, normed if it begins so; in float32, as a tie would else fall to either side."""
    if layer.norm is None:
        return values
    weights, biases = torch.tensor(layer.norm.weights), torch.tensor(layer.norm.biases)
    return F.layer_norm(values.float(), values.shape[-1:], weights, biases, layer.norm.epsilon)


def product(layer: LinearLayer, values: Tensor) -> Tensor:
    """Return the outputs of a layer, of its normed inputs."""
    weights, scales = torch.tensor(layer.weights).double(), torch.tensor(layer.scales)
    if layer.input_scale > 0:
        steps = torch.round(values.float() / layer.input_scale).clamp(-128, 127).double()
        sums = steps @ weights * scales.double()
    else:
        weights = (weights.float() * scales.repeat_interleave(BLOCK, dim=0)).bfloat16().double()
        sums = values.float().bfloat16().double() @ weights
    return sums + torch.tensor(layer.biases).double()


def apply(layer: LinearLayer, values: Tensor) -> Tensor:
    return product(layer, normed(layer, values))


def step(model: Model, states: Tensor, vectors: Tensor | None, past: Sequence[Tensor], is_attended: Tensor) -> Expected:
    """Return what a step computes.

    Args:
        states: embeddings (R, E).
        vectors: (R, D), whose projection is added.
        past: for each block its keys and values (R, H, P, d).
        is_attended: (P,) or (R, P).
    """
    states, rows = states.double(), len(states)
    mask = F.pad(is_attended.expand(rows, -1), (0, 1), value=True)[:, None, None]
    present: list[Tensor] = []
    if vectors is not None:
        assert model.projection is not None
        states = states + apply(model.projection, vectors)
    for number, (attention_inputs, attention_outputs, mlp_inputs, mlp_outputs) in enumerate(model.blocks):
        thirds = apply(attention_inputs, states).float().unflatten(1, (3, model.heads, -1))
        query, key, value = thirds.unbind(1)
        keys, values = (
            torch.cat([entry.nan_to_num(), new[:, :, None]], dim=2).double()
            for entry, new in zip(past[2 * number : 2 * number + 2], (key, value), strict=True)
        )
        attended = F.scaled_dot_product_attention(query[:, :, None].double(), keys, values, mask)
        states = states + apply(attention_outputs, attended[:, :, 0].flatten(1))
        hidden = F.gelu(apply(mlp_inputs, states), approximate="tanh")
        states = states + apply(mlp_outputs, hidden)
        present += [key, value]
    last = normed(model.vocabulary, states)
    return Expected(last.double(), product(model.vocabulary, last), present)


class TorchGpt2:
    """`NativeGpt2` by the definition, for processors that the kernels have no steps for."""

    variant = "torch"

    def hold(self, layer: LinearLayer) -> NativeLayer:
        return cast(NativeLayer, SimpleNamespace(handle=ctypes.c_void_p(1), layer=layer))

    def choose(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache, words: int, log_probs: int) -> None:
        model, expected = self._step(gpt2, inputs, cache)
        chosen, of_chosen = expected.chosen(model.embeddings, model.word_count)
        tensor_at(words, torch.int64, (inputs.rows,)).copy_(chosen)
        tensor_at(log_probs, torch.float32, (inputs.rows,)).copy_(of_chosen)

    def log_probs(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache, all_log_probs: int) -> None:
        model, expected = self._step(gpt2, inputs, cache)
        found = expected.all_log_probs(model.word_count)
        tensor_at(all_log_probs, torch.float32, found.shape).copy_(found)

    def _step(self, gpt2: HeldGpt2, inputs: StepInputs, cache: StepCache) -> tuple[Model, Expected]:
        blocks, vocabulary, projection, embeddings = gpt2.kept
        model = Model(
            [[_layer(one) for one in block] for block in blocks],
            gpt2.described.head_count,
            _layer(vocabulary),
            torch.tensor(embeddings),
            gpt2.described.word_count,
            None if projection is None else _layer(projection),
        )
        width = embeddings.shape[1]
        entry = (inputs.rows, model.heads, cache.is_attended.shape[1], width // model.heads)
        past = [tensor_at(address, torch.float32, entry) for address in cache.past]
        states = tensor_at(inputs.states, torch.float32, (inputs.rows, width))
        vectors = None
        if inputs.vectors is not None:
            assert model.projection is not None
            vectors = tensor_at(inputs.vectors, torch.float32, (inputs.rows, len(model.projection.weights)))
        expected = step(model, states, vectors, past, torch.from_numpy(cache.is_attended.copy()))
        for address, made in zip(cache.present, expected.present, strict=True):
            tensor_at(address, torch.float32, made.shape).copy_(made)
        return model, expected


def _layer(held: NativeLayer) -> LinearLayer:
    return cast(LinearLayer, cast(Any, held).layer)
