"""Reads the files that weights are published in."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from export.checkpoint import CheckpointError
from export.readers.torchscript import is_torchscript, read_torchscript

_WHOLE, _INDEX, _PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
_STATE_DICTS = ("state_dict", "model")
"""Where training programs put the state dict among what else they keep."""
_KEYS = " or ".join(map(repr, _STATE_DICTS))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read a state dict: a .safetensors file, a folder as transformers saves it, a pickle, or a TorchScript archive.

    Raises:
        CheckpointError: there is nothing of that kind.
    """
    if path.is_dir():
        if (path / _WHOLE).is_file():
            return _read_safetensors(path / _WHOLE)
        if (path / _PICKLE).is_file() and not (path / _INDEX).is_file():
            return read_pickle(path / _PICKLE)
        return _read_parts(path / _INDEX)
    if path.name.endswith(".index.json"):
        return _read_parts(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    return read_torchscript(path) if is_torchscript(path) else read_pickle(path)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file: {error}") from None


def _read_parts(index: Path) -> dict[str, Tensor]:
    try:
        parts = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        raise CheckpointError(f"{index.parent}: expected {_WHOLE} or {_INDEX} in it") from None
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index}: not an index of safetensors files: {error}") from None
    return {name: value for part in parts for name, value in _read_safetensors(index.parent / part).items()}


def read_pickle(path: Path) -> dict[str, Tensor]:
    """Read a torch pickle of a state dict, its tensors in their stored dtype, without running code in it.

    The state dict may lie under "state_dict" or "model", as training programs save it.

    Raises:
        CheckpointError: the file is no state dict.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # a damaged pickle raises any of many kinds
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path}: not a file of weights: {reason}") from None
    nested = (state[key] for key in _STATE_DICTS if isinstance(state, dict) and isinstance(state.get(key), dict))
    found = next(nested, state)
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"{path}: expected a state dict (names to tensors), by itself or under {_KEYS}")
    return found


def weight(state: dict[str, Tensor], name: str, path: object) -> Tensor:
    """Return one weight of a state dict.

    Raises:
        CheckpointError: there is none of that name.
    """
    if name not in state:
        raise CheckpointError(f"{path}: {name} is missing")
    return state[name]
