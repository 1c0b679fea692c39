"""Random weights of any published size, reproducible by name (published-system.md, section 8): no download, no meaning.

`seeded:dinov2_vits14_reg,size=224,memory=2000,salt=x`: for parity with recordings and for measuring speed.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer, decoders, models
from torch import Tensor

from export.checkpoint import END_TOKEN, CaptionedRows, Checkpoint, CheckpointError, MemorySource
from export.readers.clip_bpe import START_TOKEN, VOCABULARY, find_merges, read_clip_bpe
from export.readers.decap import decoder_from_state
from export.readers.families import architecture_names, find_architecture

PREFIX = "seeded:"
TEXT_SPACE = "seeded"
_DECODER_WIDTH, _DECODER_LAYERS, _DECODER_VOCABULARY, _DECODER_POSITIONS = 768, 4, 50257, 1024

_BLOCK_ROWS = 2**14

_WITHOUT_VOCABULARY = (
    'captions will read "<17> <4>": CLIP\'s vocabulary is not installed (pip install --no-deps open_clip_torch); '
    "ids and scores are the same"
)

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class SeededOptions:
    """The options that may follow the architecture.

    Attributes:
        salt: text before every weight's name, which makes other weights.
        memory: rows of the memory bank; 0 for none.
        size: side of the backbone's input in pixels.
    """

    salt: str = ""
    memory: int = 2000
    size: int = 518


def read_seeded(name: str) -> Checkpoint:
    """Make the checkpoint that a ``seeded:`` name asks for.

    Raises:
        CheckpointError: an architecture or option is unknown, or a value is not a number.
    """
    hub_name, options = parse(name)
    found = find_architecture(hub_name)
    assert found is not None  # the name was checked
    family, architecture = found
    merges = find_merges()
    backbone_state = {
        part: torch.from_numpy(family.seeded_weight(part, normal(f"{options.salt}{hub_name}/{part}", shape)))
        for part, shape in family.state_shapes(hub_name).items()
    }
    decoder_state = {
        part: _decoder_weight(f"{options.salt}decap/{part}", part, shape)
        for part, shape in _decoder_shapes(architecture.embed_dim).items()
    }
    return Checkpoint(
        source=name,
        backbone_name=hub_name,
        text_space=TEXT_SPACE,
        backbone=family.from_state(backbone_state, options.size, name, hub_name, "qkv"),
        decoder=decoder_from_state(decoder_state, VOCABULARY, name),
        memory=_memory(options, architecture.embed_dim, name) if options.memory else None,
        tokenizer=_placeholder_tokenizer() if merges is None else read_clip_bpe(merges),
        notes=(_WITHOUT_VOCABULARY,) if merges is None else (),
    )


def parse(name: str) -> tuple[str, SeededOptions]:
    """Parse ``seeded:ARCHITECTURE[,option=value...]``."""
    architecture, *pairs = name.removeprefix(PREFIX).split(",")
    known = architecture_names()
    if architecture not in known:
        raise CheckpointError(f"{name}: expected an architecture of {', '.join(known)}, got {architecture!r}")
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or key not in ("salt", "memory", "size"):
            raise CheckpointError(f"{name}: expected salt=, memory= or size=, got {pair!r}")
        if key != "salt" and not value.isdecimal():
            raise CheckpointError(f"{name}: {key}: expected a whole number, got {value!r}")
        values[key] = value
    defaults = SeededOptions()
    return architecture, SeededOptions(
        salt=values.get("salt", defaults.salt),
        memory=int(values.get("memory", defaults.memory)),
        size=int(values.get("size", defaults.size)),
    )


def normal(full_name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Return standard normal numbers that depend on nothing but their name."""
    generator = np.random.RandomState(zlib.crc32(full_name.encode()) & 0x7FFFFFFF)
    return generator.standard_normal(math.prod(shape)).astype(np.float32).reshape(shape)


def _decoder_shapes(prefix_width: int) -> Shapes:
    width = _DECODER_WIDTH
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
        "decoder.transformer.wte.weight": (_DECODER_VOCABULARY, width),
        "decoder.transformer.wpe.weight": (_DECODER_POSITIONS, width),
        **{f"decoder.transformer.h.{n}.{part}": shape for n in range(_DECODER_LAYERS) for part, shape in block.items()},
        "decoder.transformer.ln_f.weight": (width,),
        "decoder.transformer.ln_f.bias": (width,),
        "clip_project.model.0.weight": (width, prefix_width),
        "clip_project.model.0.bias": (width,),
    }


def _decoder_weight(full_name: str, part: str, shape: tuple[int, ...]) -> Tensor:
    x = normal(full_name, shape)
    if part.endswith("ln_f.weight"):
        x = np.float32(20) * (1 + np.float32(0.1) * x)
    elif ".ln_" in part and part.endswith("weight"):
        x = 1 + np.float32(0.1) * x
    elif part.endswith("bias"):
        x = np.float32(0.02) * x
    elif part.endswith("wte.weight"):
        x = np.float32(0.02) * x
        x[VOCABULARY:] = 0
        x[VOCABULARY - 1] *= np.float32(3.5)  # the end token, so that some captions end
    elif part.endswith("wpe.weight"):
        x = np.float32(0.05) * x
    else:
        fan_in = shape[1] if part.startswith("clip_project") else shape[0]
        x = x / np.float32(math.sqrt(fan_in))
    return torch.from_numpy(x)


def _memory(options: SeededOptions, width: int, source: str) -> MemorySource:
    rows = normal(f"{options.salt}memory", (options.memory, width))
    rows *= 1 + np.float32(0.3) * np.abs(normal(f"{options.salt}memory_norms", (options.memory, 1)))
    rows[7::50] = 0

    def blocks() -> Iterator[CaptionedRows]:
        for start in range(0, len(rows), _BLOCK_ROWS):
            embeddings = torch.from_numpy(rows[start : start + _BLOCK_ROWS])
            yield embeddings, [f"memory caption {start + number}" for number in range(len(embeddings))]

    return MemorySource(source, width, blocks, normalize=True)


def _placeholder_tokenizer() -> Tokenizer:
    """Return a stand-in where CLIP's vocabulary is not installed: token 17 reads "<17>".

    Random weights say nothing anyway; the checkpoint's notes say that it was used.
    """
    names = [f"<{number}></w>" for number in range(VOCABULARY - 2)]
    vocabulary = {name: number for number, name in enumerate([*names, START_TOKEN, END_TOKEN])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=END_TOKEN))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([START_TOKEN, END_TOKEN])
    return tokenizer
