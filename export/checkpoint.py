"""Checkpoint: what every reader yields, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.graphs.backbone import Backbone
from export.graphs.decoder import DecoderStep
from runtime.errors import PatchcaptionError

END_TOKEN = "<|endoftext|>"


class CheckpointError(PatchcaptionError):
    """A checkpoint that is unknown, incomplete or not of the published layout."""


@dataclass(frozen=True, eq=False)
class Memory:
    """A memory bank: M caption embeddings (M, D) float32, none of them zero, and their captions."""

    embeddings: Tensor
    captions: list[str]
    normalize: bool
    temperature: float = 0.01


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Published weights, read and checked: all that a bundle is built from.

    Attributes:
        source: what the user called it, "demo" for example.
        backbone_name: the architecture, by its DINOv2 hub name where it has one.
        memory: None for a noise-trained decoder, which takes region vectors as they are.
        notes: what the user should know of how it was read.
    """

    source: str
    backbone_name: str
    backbone: Backbone
    decoder: DecoderStep
    memory: Memory | None
    tokenizer: Tokenizer
    notes: tuple[str, ...] = ()

    @property
    def end_id(self) -> int:
        """The token that ends a caption."""
        end = self.tokenizer.token_to_id(END_TOKEN)
        if end is None:
            raise CheckpointError(f"{self.source}: its tokenizer has no {END_TOKEN}")
        return end


def checked_memory(embeddings: Tensor, captions: list[str], normalize: bool, source: str) -> Memory:
    """A memory without its rows of norm 0, which have no direction (SPEC section 5)."""
    if len(embeddings) != len(captions):
        raise CheckpointError(
            f"{source}: expected as many captions as embeddings, {len(embeddings)}, got {len(captions)}"
        )
    kept = embeddings.norm(dim=1) > 0
    if not kept.any():
        raise CheckpointError(f"{source}: expected at least one embedding that is not zero, got none")
    return Memory(
        embeddings[kept], [text for text, keep in zip(captions, kept.tolist(), strict=True) if keep], normalize
    )


def fill(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copies weights into ``module`` in its own dtype, name by name.

    Raises:
        CheckpointError: says which key of ``source`` is missing, unknown or wrongly shaped.
    """
    wanted = dict(module.named_parameters())
    for name, parameter in wanted.items():
        if name not in state:
            raise CheckpointError(f"{source}: {name} is missing; expected it with shape {tuple(parameter.shape)}")
        if state[name].shape != parameter.shape:
            raise CheckpointError(
                f"{source}: {name}: expected shape {tuple(parameter.shape)}, got {tuple(state[name].shape)}"
            )
    unknown = sorted(set(state) - set(wanted))
    if unknown:
        raise CheckpointError(f"{source}: {unknown[0]} is not a weight of this architecture")
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(state[name])
    module.eval().requires_grad_(False)
