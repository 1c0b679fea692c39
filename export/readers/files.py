"""Opening the files that checkpoints are published in."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from export.checkpoint import CheckpointError


def read_pickle(path: Path) -> dict[str, Tensor]:
    """A torch pickle of a state dict, its tensors in the dtype they were stored in; no code in it is run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a file of weights: {reason}") from None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: expected a state dict (names to tensors)")
    return state


def weight(state: dict[str, Tensor], name: str, path: object) -> Tensor:
    """One weight of a state dict, by name."""
    if name not in state:
        raise CheckpointError(f"{path}: {name} is missing")
    return state[name]
