"""The checkpoint, which every reader returns, and its memory bank."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.models import BackboneModel, DecoderModel
from runtime.bundle import ConceptsConfig, EntitiesConfig
from runtime.errors import PatchcaptionError

END_TOKEN = "<|endoftext|>"


class CheckpointError(PatchcaptionError):
    """A checkpoint that is unknown, incomplete or not of the published layout."""


CaptionedRows: TypeAlias = tuple[Tensor, list[str]]
"""Rows of a memory bank: embeddings (m, D) float32 and their captions (m)."""


@dataclass(frozen=True, eq=False)
class MemorySource:
    """A memory bank of M caption embeddings (M, D), read block by block: published ones take gigabytes.

    Attributes:
        source: the file or name that it comes from.
        width: D.
        blocks: yields the bank's blocks in order, from the beginning with each call.
        normalize: whether vectors projected onto it get unit length.
        text_space: the space that its embeddings are in; None where its file does not say.
        unit_rows: whether its rows get unit length once.
        projects: whether vectors are projected onto it before they are decoded; else its captions are looked up only.
    """

    source: str
    width: int
    blocks: Callable[[], Iterator[CaptionedRows]]
    normalize: bool
    text_space: str | None = None
    unit_rows: bool = False
    temperature: float = 0.01
    projects: bool = True

    def rows(self) -> Iterator[CaptionedRows]:
        """Yield the blocks without rows of norm 0, which have no direction (published-system.md, section 5).

        Raises:
            CheckpointError: an embedding is not finite, or none is left.
        """
        is_empty, rows_before = True, 0
        for embeddings, captions in self.blocks():
            norms = embeddings.norm(dim=1)
            if not norms.isfinite().all():
                raise CheckpointError(
                    f"{self.source}: expected finite embeddings, got NaN or infinity in row "
                    f"{rows_before + int(norms.isfinite().int().argmin())}"
                )
            rows_before += len(embeddings)
            kept = norms > 0
            is_empty &= not bool(kept.any())
            if self.unit_rows:
                embeddings = embeddings / norms.clamp_min(torch.finfo(norms.dtype).tiny)[:, None]
            if kept.all():
                yield embeddings, captions
            else:
                yield embeddings[kept], [text for text, keep in zip(captions, kept.tolist(), strict=True) if keep]
        if is_empty:
            raise CheckpointError(f"{self.source}: expected at least one embedding that is not zero, got none")


class PromptSource(Protocol):
    """What the words of prompts are made of."""

    def write(self, folder: Path) -> EntitiesConfig | ConceptsConfig:
        """Write it into a bundle's folder; return what the manifest says of it."""
        ...


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """Published weights, read and checked: all that a bundle is built from.

    Attributes:
        source: the name that the user gave, "demo" for example.
        backbone_name: the architecture, by its published name where it has one.
        text_space: the space that the backbone's patches, the memory bank and the decoder share.
        memory: the memory bank; None for a noise-trained decoder, which takes region vectors as they are.
        end_tokens: those that end a caption, as the tokenizer has them.
        prompts: what the words of the decoder's prompts are made of; None where its prompts have none.
        resize_short_side: what fit="crop" makes of an image's short side, where it is not the backbone's size.
        sample_images: makes RGB images (H, W, 3) uint8 like those that it describes; None where it comes with none.
        notes: what the user should know about how it was read.
    """

    source: str
    backbone_name: str
    text_space: str
    backbone: BackboneModel
    decoder: DecoderModel
    memory: MemorySource | None
    tokenizer: Tokenizer
    end_tokens: tuple[str, ...] = (END_TOKEN,)
    prompts: PromptSource | None = None
    resize_short_side: int | None = None
    sample_images: Callable[[], Sequence[npt.NDArray[np.uint8]]] | None = None
    notes: tuple[str, ...] = ()

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The ids of the tokens that end a caption."""
        return tuple(self._token_id(token) for token in self.end_tokens)

    def _token_id(self, token: str) -> int:
        found = self.tokenizer.token_to_id(token)
        if found is None:
            raise CheckpointError(f"{self.source}: its tokenizer has no {token}")
        return found


def load_weights(module: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Make ``state`` the weights of ``module``, in the module's dtype and without a copy where they have it already.

    Raises:
        CheckpointError: a key of ``source`` is missing, unknown or wrongly shaped; it names the key.
    """
    expected = dict(module.named_parameters())
    for name, parameter in expected.items():
        if name not in state:
            raise CheckpointError(f"{source}: {name} is missing; expected it with shape {tuple(parameter.shape)}")
        if state[name].shape != parameter.shape:
            raise CheckpointError(
                f"{source}: {name}: expected shape {tuple(parameter.shape)}, got {tuple(state[name].shape)}"
            )
    unknown = sorted(set(state) - set(expected))
    if unknown:
        raise CheckpointError(f"{source}: {unknown[0]} is not a weight of this architecture")
    weights = {
        name: state[name].to(None if parameter.is_meta else parameter.device, parameter.dtype).contiguous()
        for name, parameter in expected.items()
    }
    module.load_state_dict(weights, assign=True)
    module.eval().requires_grad_(False)
