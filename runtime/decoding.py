"""Vectors to token ids: the decoder engine, stepped with a key-value cache until every caption has ended.

Shapes: R regions, D vector width, L layers, H heads, P positions (the most steps), d head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from runtime.backends import Engine
from runtime.bundle import DecoderSettings


@dataclass(frozen=True, eq=False)
class Decoded:
    """The tokens of R captions.

    Attributes:
        ids: the chosen tokens of each caption, its end token included where it was reached within the steps.
        log_probabilities: the sum over a caption's tokens, its end token included (R,); or over all steps, as asked.
    """

    ids: list[list[int]]
    log_probabilities: list[float]


def decode(engine: Engine, settings: DecoderSettings, vectors: Tensor, past_end: bool = False) -> Decoded:
    """Greedy captions for region vectors (R, D) on the engine's device.

    Args:
        past_end: take every caption through all steps and count the log-probabilities of what comes after its end token
            too, as the published score does (SPEC section 6); the ids stay the same.
    """
    rows = len(vectors)
    if rows == 0:
        return Decoded([], [])
    device = vectors.device
    shape = (2 * settings.layers, rows, settings.heads, settings.steps, settings.head_width)
    cache = torch.zeros(shape, device=device)  # for each layer its keys, then its values
    cache_names = [f"past_{kind}_{layer}" for layer in range(settings.layers) for kind in ("key", "value")]
    tokens = torch.zeros(rows, dtype=torch.int64, device=device)
    ended = torch.zeros(rows, dtype=torch.bool, device=device)
    chosen: list[Tensor] = []
    log_probabilities = torch.zeros(rows, device=device)
    for step in range(settings.steps):
        inputs = {"vectors": vectors, "tokens": tokens, "step": torch.tensor([step], device=device)}
        out = engine.run(inputs | dict(zip(cache_names, cache, strict=True)))
        tokens = out["next_tokens"]
        chosen.append(tokens)
        log_probabilities += out["log_probabilities"].masked_fill(ended, 0.0)
        if not past_end:
            ended |= tokens == settings.end_id
            if bool(ended.all()):
                break
        for place, name in enumerate(cache_names):
            cache[place, :, :, step] = out[name.replace("past", "new")][:, :, 0]
    ids = [_up_to_end(row, settings.end_id) for row in torch.stack(chosen, dim=1).tolist()]
    return Decoded(ids, log_probabilities.tolist())


def _up_to_end(ids: list[int], end_id: int) -> list[int]:
    return ids[: ids.index(end_id) + 1] if end_id in ids else ids
