"""Models of transformers and their tokenizers, by a folder or a repository."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import nn

from export.checkpoint import CheckpointError
from export.readers.hub import FileRequest, resolve_files


def load_model(model_class: Any, weights: str, device: str, flag: str, what: str) -> Any:
    """Return a model of transformers in float32, with every weight from its files.

    Args:
        model_class: the class of transformers.
        weights: a folder, or a repository of the Hugging Face hub.
        device: where it runs, "cpu" for example.
        flag: how the user names the model, for messages.
        what: what the model is, for messages.

    Raises:
        CheckpointError: it is nowhere, cannot be loaded, or lacks a weight.
    """
    if Path(weights).is_file():
        raise not_a_folder(flag, weights)
    from transformers.utils import logging

    logging.set_verbosity_error()  # a whole model has weights that its text tower has no use for
    logging.disable_progress_bar()
    if not Path(weights).is_dir():  # found out at once; transformers would go on asking for a while
        wanted = FileRequest(what, ("config.json",), ((weights, "config.json"),))
        resolve_files([wanted], (), f"{flag} {weights}", "name a folder that has it, and the weights, instead")
    try:
        model, loading = model_class.from_pretrained(weights, dtype=torch.float32, output_loading_info=True)
        model.eval().to(device)
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"{flag} {weights}: cannot be loaded: {reason}; expected config.json and model.safetensors as "
            "transformers saves them"
        ) from None
    if loading["missing_keys"]:  # transformers would make them up
        raise CheckpointError(f"{flag} {weights}: {sorted(loading['missing_keys'])[0]} is missing")
    return model


def load_pretrained_tokenizer(weights: str, flag: str) -> Any:
    """Return the tokenizer beside a model of transformers.

    Raises:
        CheckpointError: it is not there, or cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(weights)
    except Exception as error:  # the libraries below raise bare Exception
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"{flag} {weights}: its tokenizer cannot be loaded: {reason}; expected tokenizer.json and "
            "tokenizer_config.json beside the model"
        ) from None


def identify(weights: str, module: nn.Module, tokenizer: Tokenizer) -> str:
    """Return the identity of a model: the name and a digest of its weights, and the size of its vocabulary."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode() + value.cpu().contiguous().numpy().data)
    return f"{weights} {digest.hexdigest()}, {tokenizer.get_vocab_size()} tokens"


def not_a_folder(flag: str, weights: str) -> CheckpointError:
    """Return the error for a file in the place of a folder."""
    return CheckpointError(
        f"{flag} {weights}: expected a folder of transformers, or a repository of the hub, got a file"
    )
