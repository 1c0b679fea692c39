"""Reads MeaCap's memories: captions and their embeddings, in `memory/NAME/` (published-system.md, section 19)."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint import CaptionedRows, CheckpointError, MemorySource
from export.concepts.graph_file import GRAPHS_FILE
from export.readers.hub import FileRequest

CAPTIONS_FILE, EMBEDDINGS_FILE = "memory_captions.json", "memory_clip_embeddings.pt"
_BLOCK_BYTES = 2**25


def memory_requests(memory_id: str, repository: str | None) -> tuple[FileRequest, FileRequest, FileRequest]:
    """Return what a memory consists of: captions, embeddings, and the captions' scene graphs.

    The published memory has a third file, memory_wte_embeddings.pt, which nothing needs; scene graphs are not
    published.

    Args:
        memory_id: "coco_B16_t2d", for example.
        repository: of the Hugging Face hub, which has the first two; None for files of this machine alone.
    """

    def request(what: str, name: str, hub: str | None) -> FileRequest:
        path = f"memory/{memory_id}/{name}"
        return FileRequest(what, (path,), () if hub is None else ((hub, path),))

    return (
        request("the memory's captions", CAPTIONS_FILE, repository),
        request("the embeddings of the memory's captions", EMBEDDINGS_FILE, repository),
        request(f"their scene graphs; patchcaption parse-captions {CAPTIONS_FILE} makes them", GRAPHS_FILE, None),
    )


def read_meacap_memory(captions_file: Path, embeddings_file: Path, width: int, text_space: str) -> MemorySource:
    """Open a memory of M captions with embeddings (M, D); rows get unit length, and nothing is projected onto them.

    Args:
        width: D, that of the backbone's vectors.
        text_space: the space of the embeddings, which the files do not name.

    Raises:
        CheckpointError: a file cannot be read, has another layout, or there are not as many captions as embeddings.
    """
    captions, embeddings = _read_captions(captions_file), _read_embeddings(embeddings_file)
    if embeddings.ndim != 2 or embeddings.shape[1] != width or not embeddings.is_floating_point():
        raise CheckpointError(
            f"{embeddings_file}: expected floating numbers (M, {width}), got {tuple(embeddings.shape)} in "
            f"{str(embeddings.dtype).removeprefix('torch.')}"
        )
    if len(captions) != len(embeddings):
        raise CheckpointError(
            f"{captions_file}: expected as many captions as {embeddings_file} has embeddings, {len(embeddings)}, got "
            f"{len(captions)}"
        )
    return MemorySource(
        str(embeddings_file),
        width,
        lambda: _blocks(embeddings, captions),
        normalize=False,
        text_space=text_space,
        unit_rows=True,
        projects=False,
    )


def _blocks(embeddings: Tensor, captions: list[str]) -> Iterator[CaptionedRows]:
    rows = max(1, _BLOCK_BYTES // (4 * embeddings.shape[1]))
    for start in range(0, len(embeddings), rows):
        yield embeddings[start : start + rows].float(), captions[start : start + rows]


def _read_captions(path: Path) -> list[str]:
    try:
        captions = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}") from None
    if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
        raise CheckpointError(f"{path}: expected a list of texts")
    return captions


def _read_embeddings(path: Path) -> Tensor:
    """Return the tensor in a torch pickle, left in its file where the format allows that; no code of it is run."""
    try:
        try:
            embeddings = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # in the format of before torch 1.6
            embeddings = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a file of embeddings: {reason}") from None
    if not isinstance(embeddings, Tensor):
        raise CheckpointError(f"{path}: expected one tensor, got {type(embeddings).__name__}")
    return embeddings
