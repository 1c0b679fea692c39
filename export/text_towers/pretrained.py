"""Text towers of which transformers has the model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from export.checkpoint import CheckpointError
from export.readers.hub import FileRequest, resolve_files
from export.text_towers.base import TowerRequest


def load_pretrained(model_class: Any, request: TowerRequest) -> Any:
    """Return a model of transformers, with every weight from its files.

    Args:
        model_class: the class of transformers.
        request: its weights are a folder, or a repository of the Hugging Face hub.

    Raises:
        CheckpointError: it is nowhere, cannot be loaded, or lacks a weight.
    """
    weights = request.weights
    if request.is_file or Path(weights).is_file():
        raise CheckpointError(
            f"--text-tower {weights}: expected a folder of transformers, or a repository of the hub, got a file"
        )
    from transformers.utils import logging

    logging.set_verbosity_error()  # a whole model has weights that its text tower has no use for
    logging.disable_progress_bar()
    if not Path(weights).is_dir():  # found out at once; transformers would go on asking for a while
        wanted = FileRequest("the text tower", ("config.json",), ((weights, "config.json"),))
        resolve_files([wanted], (), f"--text-tower {weights}", "name a folder that has it, and the weights, instead")
    try:
        model, loading = model_class.from_pretrained(weights, dtype=torch.float32, output_loading_info=True)
        model.eval().to(request.device)
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"--text-tower {weights}: cannot be loaded: {reason}; expected config.json and model.safetensors as "
            "transformers saves them"
        ) from None
    if loading["missing_keys"]:  # transformers would make them up
        raise CheckpointError(f"--text-tower {weights}: {sorted(loading['missing_keys'])[0]} is missing")
    return model
