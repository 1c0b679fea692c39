"""The processes of a training, as torch's own launch starts them: `torchrun --nproc-per-node 4 SCRIPT ...`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, distributed

from export.checkpoint import CheckpointError

_PATIENCE = timedelta(days=7)
"""How long the others wait for the first process, which makes the embeddings; a launcher ends all if one ends."""


@dataclass(frozen=True)
class Processes:
    """This process among those of a training.

    Attributes:
        rank: its number, from 0.
        count: how many there are.
        device: where it computes.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        """Whether it is the one that writes and reports."""
        return self.rank == 0

    def sum(self, values: Tensor) -> Tensor:
        """Return the sum of what all processes have.

        Raises:
            CheckpointError: another process has ended.
        """
        if self.count > 1:
            with _losses_of_others():
                distributed.all_reduce(values)
        return values

    def wait(self) -> None:
        """Wait until all processes are here.

        Raises:
            CheckpointError: another process has ended.
        """
        if self.count > 1:
            with _losses_of_others():
                distributed.barrier()


@contextmanager
def launched(device: str) -> Iterator[Processes]:
    """Join the processes of a launch; one that was not launched is alone.

    Args:
        device: "cpu", or "cuda" for a GPU to each process.

    Raises:
        CheckpointError: there is no such device, or the launch is incomplete.
    """
    count, rank = _launch_number("WORLD_SIZE", 1), _launch_number("RANK", 0)
    own = _device(device, _launch_number("LOCAL_RANK", 0) if count > 1 else None)
    if count == 1:
        yield Processes(0, 1, own)
        return
    try:
        distributed.init_process_group("nccl" if own.type == "cuda" else "gloo", timeout=_PATIENCE)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"WORLD_SIZE is {count}, but its processes do not meet: {str(error).splitlines()[0]}; launch them by "
            "torchrun, or unset WORLD_SIZE"
        ) from None
    try:
        yield Processes(rank, count, own)
    finally:
        distributed.destroy_process_group()


def _device(name: str, local_rank: int | None) -> torch.device:
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise CheckpointError(f"--device {name}: expected cpu or cuda")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise CheckpointError(f"--device {name}: torch {torch.__version__} finds no CUDA device; take --device cpu")
        if device.type == "cuda":
            device = torch.device("cuda", (device.index or 0) if local_rank is None else local_rank)
            torch.cuda.set_device(device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise CheckpointError(f"--device {name}: {str(error).splitlines()[0]}") from None
    return device


def _launch_number(name: str, default: int) -> int:
    """Return a number that a launcher gives its processes."""
    text = os.environ.get(name, str(default))
    if not text.isdecimal():
        raise CheckpointError(f"{name}: expected a number, as torchrun sets it, got {text!r}")
    return int(text)


@contextmanager
def _losses_of_others() -> Iterator[None]:
    """Turn what torch says when another process has ended into one line."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).splitlines()[0].split(". ")[0]
        raise CheckpointError(f"another process of the launch has ended, or cannot be reached: {reason}") from None
