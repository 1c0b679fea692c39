"""DINOv2 as transformers names its weights, turned into the hub's names (SPEC section 2)."""

from __future__ import annotations

import re

import torch
from torch import Tensor

from export.checkpoint import CheckpointError

_MARK = "embeddings.patch_embeddings.projection.weight"
_NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.mask_token": "mask_token",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.register_tokens": "register_tokens",
    "embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
    "embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    "layernorm.weight": "norm.weight",
    "layernorm.bias": "norm.bias",
}
_OF_LAYERS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "mlp.weights_in": "mlp.w12",
    "mlp.weights_out": "mlp.w3",
}
_SCALES = {"layer_scale1.lambda1": "ls1.gamma", "layer_scale2.lambda1": "ls2.gamma"}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)")
_THIRD = re.compile(r"attention\.attention\.(query|key|value)\.(weight|bias)")


def is_transformers_layout(state: dict[str, Tensor]) -> bool:
    """Whether weights are named as transformers does, with or without the prefix of a model for some task."""
    return any(name.endswith(_MARK) for name in state)


def to_hub_layout(state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """The same weights by the names of facebookresearch/dinov2; queries, keys and values of a layer joined.

    What lies outside the backbone, the head of a classifier for example, is left out.

    Raises:
        CheckpointError: a weight of the backbone that DINOv2 does not have, or a third of a projection missing.
    """
    prefix = next(name for name in state if name.endswith(_MARK)).removesuffix(_MARK)
    renamed: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for full_name, value in state.items():
        if not full_name.startswith(prefix):
            continue
        name = full_name.removeprefix(prefix)
        layer = _LAYER.fullmatch(name)
        third = _THIRD.fullmatch(layer[2]) if layer else None
        if layer and third:
            thirds.setdefault(f"blocks.{layer[1]}.attn.qkv.{third[2]}", {})[third[1]] = value
        elif hub_name := _NAMES.get(name) or (layer and _of_layer(layer[1], layer[2])):
            renamed[hub_name] = value
        elif prefix or name.split(".")[0] in ("embeddings", "encoder", "layernorm"):
            raise CheckpointError(f"{source}: {full_name} is not a weight of DINOv2")
    for name, parts in thirds.items():
        missing = {"query", "key", "value"} - set(parts)
        if missing:
            raise CheckpointError(f"{source}: {name}: the {missing.pop()} of that layer is missing")
        renamed[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return renamed


def _of_layer(number: str, name: str) -> str | None:
    if name in _SCALES:
        return f"blocks.{number}.{_SCALES[name]}"
    module, _, part = name.rpartition(".")
    return f"blocks.{number}.{_OF_LAYERS[module]}.{part}" if module in _OF_LAYERS else None
