"""What every text tower is: captions to token ids, token ids to embeddings.

Shapes: m captions, L tokens of the longest, D width of the embeddings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from export.checkpoint import CheckpointError
from export.readers.hub import FileRequest, resolve_files

TOKENIZER_FILE = "tokenizer.json"
ModuleT = TypeVar("ModuleT", bound=nn.Module)

_WEIGHT_FILES = {".pt", ".pth", ".bin", ".safetensors"}
"""The endings of files of weights; what has none of them is a folder or a repository."""


@dataclass(frozen=True)
class TowerRequest:
    """Which tower to open, and where.

    Attributes:
        text_space: the name of the space that it embeds into; None for that of the projection.
        weights: a folder, a file, or a repository of the Hugging Face hub.
        tokenizer_file: a tokenizer.json; None for the tower's own.
        projection: the file of a projection of its embeddings into another space.
        device: where it runs, "cpu" for example.
    """

    text_space: str | None
    weights: str
    tokenizer_file: Path | None = None
    projection: Path | None = None
    device: str = "cpu"

    @property
    def is_file(self) -> bool:
        """Whether the weights are one file."""
        return Path(self.weights).suffix in _WEIGHT_FILES and not Path(self.weights).is_dir()


@dataclass(frozen=True, eq=False)
class TextTower:
    """A text tower with its tokenizer, which makes rows of a memory bank of captions.

    Attributes:
        tokenize: makes token ids (m, L) int64 of captions.
        embed_ids: makes embeddings (m, D) float32 of token ids, not normalised unless the space's banks are.
        width: D.
        text_space: the space of the embeddings.
        identity: names the weights, with digests, and the vocabulary.
        notes: what the user should know about them.
    """

    tokenize: Callable[[Sequence[str]], Tensor]
    embed_ids: Callable[[Tensor], Tensor]
    width: int
    text_space: str
    identity: str
    notes: tuple[str, ...] = ()

    def embed(self, captions: Sequence[str]) -> Tensor:
        """Return the embeddings (m, D) of captions, float32."""
        return self.embed_ids(self.tokenize(captions))


def embed_on(device: str, module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a function that makes embeddings (m, D) float32 of token ids (m, L), by a module on a device."""

    @torch.inference_mode()
    def embed_ids(ids: Tensor) -> Tensor:
        return module(ids.to(device)).float().cpu()

    return embed_ids


def move_to(device: str, module: ModuleT) -> ModuleT:
    """Return a module on a device.

    Raises:
        CheckpointError: there is no such device.
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"--device {device}: {str(error).splitlines()[0]}") from None


def find_file(request: TowerRequest) -> Path:
    """Return the path of a tower that is one file.

    Raises:
        CheckpointError: there is no such file.
    """
    wanted = FileRequest("a file of weights", (request.weights,))
    (path,) = resolve_files([wanted], (Path(),), "the text tower", "name it with --text-tower")
    return path
