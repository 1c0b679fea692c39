"""Random weights of any published size, reproducible by name (published-system.md, section 8): no download, no meaning.

`seeded:dinov2_vits14_reg,size=224,memory=2000,salt=x`: for parity with recordings and for measuring speed. The options
of the backbone's family may follow too, and ``depth`` for fewer blocks.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from export.checkpoint import CaptionedRows, Checkpoint, CheckpointError, MemorySource
from export.readers.backbone_family import AnyFamily, Architecture, BackboneRequest, FamilyOptions
from export.readers.families import architecture_names, find_architecture
from export.readers.made_up_decoders import MADE_UP_DECODERS
from export.readers.seeded_weights import normal, uneven
from export.text_spaces import TextSpace

PREFIX = "seeded:"
TEXT_SPACE = "seeded"
DECAP = "decap"

_BLOCK_ROWS = 2**14

_TOKENS = ("cls_token", "register_tokens", "storage_tokens", "mask_token", "class_embedding", "probe")
"""The last part of the names of learned tokens."""


@dataclass(frozen=True)
class SeededOptions:
    """The options that may follow the architecture, for any family.

    Attributes:
        salt: text before every weight's name, which makes other weights.
        memory: rows of the memory bank; 0 for none.
        size: side of the backbone's input in pixels; None for the architecture's own.
        depth: the number of blocks; None for all.
        decoder: its kind, "decap", "viecap", "meacap" or "clipcap"; a bank is for the first and the third.
    """

    salt: str = ""
    memory: int = 2000
    size: int | None = None
    depth: int | None = None
    decoder: str = DECAP


@dataclass(frozen=True)
class SeededName:
    """A seeded name, parsed.

    Attributes:
        family_options: those of the backbone's family.
    """

    name: str
    family: AnyFamily
    architecture: Architecture
    options: SeededOptions
    family_options: FamilyOptions

    @property
    def image_size(self) -> int:
        """S, side of the input in pixels."""
        return self.options.size or self.architecture.default_size


def read_seeded(name: str) -> Checkpoint:
    """Make the checkpoint that a ``seeded:`` name asks for.

    Raises:
        CheckpointError: an architecture or option is unknown, or a value is not a number.
    """
    return make_checkpoint(parse(name), name)


def make_checkpoint(seeded: SeededName, source: str, space: TextSpace | None = None) -> Checkpoint:
    """Make the checkpoint of a seeded name.

    Args:
        source: what it is called.
        space: how its memory bank is used; None for as the backbone's space says.
    """
    architecture, options = seeded.architecture, seeded.options
    backbone = seeded.family.from_state(
        seeded_state(seeded),
        BackboneRequest(seeded.image_size, source, architecture, seeded.family_options),
    )
    parts = MADE_UP_DECODERS[options.decoder](options.salt, architecture.output_dim, options.memory, source)
    space = space or seeded.family.space_of(architecture, seeded.family_options)
    has_bank = options.decoder == DECAP and options.memory > 0
    return Checkpoint(
        source=source,
        backbone_name=seeded.name,
        text_space=TEXT_SPACE,
        backbone=backbone,
        decoder=parts.decoder,
        memory=_memory(options, space, source) if has_bank else parts.memory,
        tokenizer=parts.tokenizer,
        end_tokens=parts.end_tokens,
        prompts=parts.prompts,
        notes=(*backbone.notes, *parts.notes),
    )


def seeded_state(seeded: SeededName) -> dict[str, Tensor]:
    """Return the made-up weights of a backbone, by their published names."""
    architecture, salt = seeded.architecture, seeded.options.salt
    files = sorted(architecture.files, key=lambda file: -len(file.prefix))
    state = {}
    for name, shape in seeded.family.state_shapes(architecture, seeded.image_size).items():
        file = next(file for file in files if name.startswith(file.prefix))
        published = name.removeprefix(file.prefix)
        value = seeded_weight(published, normal(f"{salt}{file.seed}{published}", shape))
        for end, factor in architecture.scales.items():
            if name.endswith(end):
                value = value * np.float32(factor)
        state[name] = torch.from_numpy(value)
    return state


def seeded_weight(name: str, x: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return the made-up weight of a published name, from standard normal numbers (published-system.md, section 8)."""
    last = name.rsplit(".", 1)[-1]
    if name.endswith("running_var"):
        return 1 + np.float32(0.2) * np.abs(x)
    if name.endswith("running_mean"):
        return np.float32(0.1) * x
    if name.endswith("gamma"):
        return np.float32(0.2) + np.float32(0.05) * x
    if last == "weight" and any(part in name for part in ("norm", "ln_", ".bn", "downsample.1")):
        return 1 + np.float32(0.1) * x
    if name.endswith("bias"):
        return np.float32(0.02) * x
    if last in _TOKENS or "token_embedding" in name:
        return np.float32(0.5) * x
    if last in ("pos_embed", "positional_embedding") or "position_embedding" in name:
        return np.float32(0.3) * x
    fan_in = x.shape[0] if last in ("proj", "text_projection") else math.prod(x.shape[1:])
    return x / np.float32(math.sqrt(fan_in))


def parse(name: str) -> SeededName:
    """Parse ``seeded:ARCHITECTURE[,option=value...]``.

    Raises:
        CheckpointError: an architecture or option is unknown, or a value is not a number.
    """
    wanted, *pairs = name.removeprefix(PREFIX).split(",")
    found = find_architecture(wanted)
    if found is None:
        known = ", ".join(architecture_names())
        raise CheckpointError(f"{name}: expected an architecture of {known}, got {wanted!r}")
    family, architecture = found
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            expected = ", ".join(f"{key}=" for key in (*_COMMON, *family.options.model_fields))
            raise CheckpointError(f"{name}: expected {expected}, got {pair!r}")
        if key in _COMMON and key not in _TEXTS and not value.isdecimal():
            raise CheckpointError(f"{name}: {key}: expected a whole number, got {value!r}")
        if key == "decoder" and value not in MADE_UP_DECODERS:
            raise CheckpointError(f"{name}: decoder: expected {', '.join(MADE_UP_DECODERS)}, got {value!r}")
        values[key] = value
    common = {key: values.pop(key) for key in _COMMON if key in values}
    numbers = {key: int(value) for key, value in common.items() if key not in _TEXTS}
    options = SeededOptions(common.get("salt", ""), decoder=common.get("decoder", DECAP), **numbers)
    if options.depth is not None:
        architecture = replace(architecture, depth=options.depth)
    known_name = family.find(wanted)
    assert known_name is not None  # it was found by it
    return SeededName(known_name, family, architecture, options, family.read_options(values, name))


_COMMON = tuple(field.name for field in fields(SeededOptions))
"""The names of the options for any family."""
_TEXTS = ("salt", "decoder")
"""Those that are no numbers."""


def _memory(options: SeededOptions, space: TextSpace, source: str) -> MemorySource:
    width = space.first_column + space.width
    rows = uneven(normal(f"{options.salt}memory", (options.memory, width)), f"{options.salt}memory_norms")
    rows[7::50] = 0
    rows = np.ascontiguousarray(rows[:, space.first_column :])

    def blocks() -> Iterator[CaptionedRows]:
        for start in range(0, len(rows), _BLOCK_ROWS):
            embeddings = torch.from_numpy(rows[start : start + _BLOCK_ROWS])
            yield embeddings, [f"memory caption {start + number}" for number in range(len(embeddings))]

    return MemorySource(source, space.width, blocks, normalize=space.unit_output, unit_rows=space.unit_rows)
