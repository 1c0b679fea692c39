"""Text towers that are models of transformers, by a folder or a repository."""

from __future__ import annotations

from typing import Any

from export.readers.pretrained import load_model, not_a_folder
from export.text_towers.base import TowerRequest


def load_pretrained(model_class: Any, request: TowerRequest) -> Any:
    """Return the model of a text tower, with every weight from its files.

    Args:
        model_class: the class of transformers.
        request: its weights are a folder, or a repository of the Hugging Face hub.

    Raises:
        CheckpointError: it is nowhere, cannot be loaded, or lacks a weight.
    """
    if request.is_file:
        raise not_a_folder("--text-tower", request.weights)
    return load_model(model_class, request.weights, request.device, "--text-tower", "the text tower")
