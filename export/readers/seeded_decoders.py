"""Made-up weights of the decoders, reproducible by name (published-system.md, sections 8 and 22)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.models.mapping import PUBLISHED_LAYERS
from export.readers.layouts import in_each_block, linear_shapes, norm_shapes
from export.readers.seeded_weights import normal, uneven

Shapes = dict[str, tuple[int, ...]]
Array = npt.NDArray[np.float32]

GPT2_VOCABULARY, GPT2_POSITIONS = 50257, 1024
GPT2_WIDTH, GPT2_LAYERS = 768, 12
"""Of GPT-2 small."""
_FULL_STOP, _SPACED_FULL_STOP = 13, 764
EOS_GAINS = {_FULL_STOP: 2.15, _SPACED_FULL_STOP: 2.15}
"""Factors of the rows of tokens that end captions, so that captions end."""


def gpt2_shapes(width: int, num_layers: int) -> Shapes:
    """Return the shapes of a GPT-2's weights, by transformers' names."""
    block: Shapes = {
        "ln_1.weight": (width,),
        "ln_1.bias": (width,),
        "attn.c_attn.weight": (width, 3 * width),
        "attn.c_attn.bias": (3 * width,),
        "attn.c_proj.weight": (width, width),
        "attn.c_proj.bias": (width,),
        "ln_2.weight": (width,),
        "ln_2.bias": (width,),
        "mlp.c_fc.weight": (width, 4 * width),
        "mlp.c_fc.bias": (4 * width,),
        "mlp.c_proj.weight": (4 * width, width),
        "mlp.c_proj.bias": (width,),
    }
    return {
        "transformer.wte.weight": (GPT2_VOCABULARY, width),
        "transformer.wpe.weight": (GPT2_POSITIONS, width),
        **in_each_block("transformer.h.", num_layers, block),
        "transformer.ln_f.weight": (width,),
        "transformer.ln_f.bias": (width,),
    }


def mlp_mapping_shapes(vector_width: int, width: int, soft_tokens: int) -> Shapes:
    """Return the shapes of a mapping network of two linear layers."""
    hidden = width * soft_tokens // 2
    return linear_shapes("model.0", vector_width, hidden) | linear_shapes("model.2", hidden, width * soft_tokens)


def transformer_mapping_shapes(
    vector_width: int, width: int, soft_tokens: int, carrier_tokens: int, num_layers: int = PUBLISHED_LAYERS
) -> Shapes:
    """Return the shapes of a mapping network that is a transformer."""
    block = {
        **norm_shapes("norm1", width),
        **linear_shapes("attn.to_queries", width, width, bias=False),
        **linear_shapes("attn.to_keys_values", width, 2 * width, bias=False),
        **linear_shapes("attn.project", width, width),
        **norm_shapes("norm2", width),
        **linear_shapes("mlp.fc1", width, 2 * width),
        **linear_shapes("mlp.fc2", 2 * width, width),
    }
    return {
        **linear_shapes("linear", vector_width, carrier_tokens * width),
        "prefix_const": (soft_tokens, width),
        **in_each_block("transformer.layers.", num_layers, block),
    }


def seeded_decap_state(salt: str, prefix_width: int, text_vocab_size: int) -> dict[str, Tensor]:
    """Return the made-up weights of a published DeCap decoder, by its names."""
    width, layers = 768, 4
    shapes = {f"decoder.{name}": shape for name, shape in gpt2_shapes(width, layers).items()}
    shapes |= linear_shapes("clip_project.model.0", prefix_width, width)
    weights = {
        name: _decap_weight(name, normal(f"{salt}decap/{name}", shape), text_vocab_size)
        for name, shape in shapes.items()
    }
    return {name: torch.from_numpy(value) for name, value in weights.items()}


def _decap_weight(name: str, x: Array, text_vocab_size: int) -> Array:
    if name.endswith("ln_f.weight"):
        return np.float32(20) * (1 + np.float32(0.1) * x)
    if ".ln_" in name and name.endswith("weight"):
        return 1 + np.float32(0.1) * x
    if name.endswith("bias"):
        return np.float32(0.02) * x
    if name.endswith("wte.weight"):
        x = np.float32(0.02) * x
        x[text_vocab_size:] = 0
        x[text_vocab_size - 1] *= np.float32(3.5)  # the end token, so that some captions end
        return x
    if name.endswith("wpe.weight"):
        return np.float32(0.05) * x
    return x / np.float32(math.sqrt(x.shape[1] if name.startswith("clip_project") else x.shape[0]))


def seeded_prompted_state(
    prefix: str,
    mapping_prefix: str,
    mapping: Shapes,
    width: int = GPT2_WIDTH,
    num_layers: int = GPT2_LAYERS,
    gains: Mapping[int, float] = EOS_GAINS,
) -> dict[str, Tensor]:
    """Return the made-up weights of a decoder with a prompt, by its published names.

    Args:
        prefix: what stands before every weight's name, "viecap/" for example, a salt before it.
        mapping: the shapes of the mapping network.
        gains: the factors of tokens' rows.
    """
    state = {}
    for name, shape in gpt2_shapes(width, num_layers).items():
        state[f"gpt.{name}"] = _gpt2_weight(name, normal(f"{prefix}gpt.{name}", shape), gains)
    for name, shape in mapping.items():
        full_name = f"{mapping_prefix}{name}"
        state[full_name] = _mapping_weight(name, normal(f"{prefix}{full_name}", shape))
    return {name: torch.from_numpy(value) for name, value in state.items()}


def _gpt2_weight(name: str, x: Array, gains: Mapping[int, float]) -> Array:
    if name.endswith("ln_f.weight"):
        return np.float32(8) * (1 + np.float32(0.1) * x)
    if ".ln_" in name and name.endswith("weight"):
        return 1 + np.float32(0.1) * x
    if name.endswith("bias"):
        return np.float32(0.02) * x
    if name.endswith("wte.weight"):
        x = np.float32(0.05) * x
        for row, gain in gains.items():
            x[row] *= np.float32(gain)
        return x
    if name.endswith("wpe.weight"):
        return np.float32(0.2) * x
    factors = {"attn.c_attn.weight": 3.0, "attn.c_proj.weight": 0.2}
    factor = next((value for end, value in factors.items() if name.endswith(end)), 1.0)
    return np.float32(factor) * x / np.float32(math.sqrt(x.shape[0]))


def _mapping_weight(name: str, x: Array) -> Array:
    if name == "prefix_const":
        return x
    if ".norm" in name and name.endswith("weight"):
        return 1 + np.float32(0.1) * x
    if name.endswith("bias"):
        return np.float32(0.02) * x
    return x / np.float32(math.sqrt(x.shape[1]))


def seeded_entities(salt: str, names: Sequence[str], width: int) -> Tensor:
    """Return made-up embeddings of some entities, not of unit length (K, D)."""
    rows = normal(f"{salt}viecap_entities", (len(names), width))
    return torch.from_numpy(uneven(rows, f"{salt}viecap_entity_norms"))


def seeded_talk2dino(salt: str, text_width: int, width: int) -> tuple[Tensor, Tensor]:
    """Return made-up weight and bias of Talk2DINO's first layer, (D, C) and (D,)."""
    matrix = normal(f"{salt}talk2dino/linear_layer.weight", (width, text_width))
    bias = normal(f"{salt}talk2dino/linear_layer.bias", (width,))
    return torch.from_numpy(matrix / np.float32(math.sqrt(text_width))), torch.from_numpy(np.float32(0.02) * bias)


def seeded_scene_memory(salt: str, scenes: Sequence[int], num_scenes: int, width: int) -> Tensor:
    """Return made-up embeddings (M, D) of captions of some scenes, near those of the same scene.

    Args:
        scenes: that of each caption (M), from 0.
    """
    rows = normal(f"{salt}meacap_scenes", (num_scenes, width))[list(scenes)]
    rows = rows + np.float32(0.8) * normal(f"{salt}meacap_memory", (len(scenes), width))
    return torch.from_numpy(uneven(rows, f"{salt}meacap_memory_norms"))
