"""The backbone families and decoder kinds that readers know, one line each.

To add one: its model (`export/models/`), its reader (here), a line in `BACKBONE_FAMILIES` or `DECODER_READERS`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

from export.checkpoint import CheckpointError
from export.models import BackboneModel, DecoderModel
from export.readers import dinov2
from export.readers.decap import read_decap

StateDict: TypeAlias = dict[str, Tensor]
Array: TypeAlias = npt.NDArray[np.float32]


class Architecture(Protocol):
    """A published backbone."""

    @property
    def embed_dim(self) -> int:
        """D, the width of its tokens."""
        ...

    @property
    def file(self) -> str:
        """The name of its published file."""
        ...

    @property
    def repository(self) -> str:
        """The hub's repository of it in transformers' layout."""
        ...


@dataclass(frozen=True)
class BackboneFamily:
    """One family of backbones.

    Attributes:
        name: its name in the manifest.
        architectures: its published backbones, by name.
        recognizes: returns whether a state dict is of this family, in any of its published layouts.
        from_state: makes a model of a state dict: (state, image size, source, published name or None, attention type).
        state_shapes: returns the shapes of a published backbone's weights, by name.
        seeded_weight: returns the random weight of a name, from standard normal numbers of its shape.
    """

    name: str
    architectures: Mapping[str, Architecture]
    recognizes: Callable[[StateDict], bool]
    from_state: Callable[[StateDict, int, str, str | None, str], BackboneModel]
    state_shapes: Callable[[str], Mapping[str, tuple[int, ...]]]
    seeded_weight: Callable[[str, Array], Array]


BACKBONE_FAMILIES = (
    BackboneFamily(
        "dinov2",
        dinov2.ARCHITECTURES,
        dinov2.recognizes,
        dinov2.from_state,
        dinov2.state_shapes,
        dinov2.seeded_weight,
    ),
)

DECODER_READERS: Mapping[str, Callable[[Path, int], DecoderModel]] = {"decap": read_decap}
"""The readers of decoders by kind: each makes a model of (file, size of the vocabulary that has text)."""


def find_architecture(name: str) -> tuple[BackboneFamily, Architecture] | None:
    """Return a published backbone and its family; None for a name that was never published."""
    for family in BACKBONE_FAMILIES:
        if name in family.architectures:
            return family, family.architectures[name]
    return None


def recognize_family(state: StateDict, source: str) -> BackboneFamily:
    """Return the family of a state dict.

    Raises:
        CheckpointError: it is of no known family.
    """
    for family in BACKBONE_FAMILIES:
        if family.recognizes(state):
            return family
    known = ", ".join(family.name for family in BACKBONE_FAMILIES)
    raise CheckpointError(f"{source}: expected the weights of a backbone of one of the families {known}")


def architecture_names() -> list[str]:
    """Return the names of all published backbones."""
    return [name for family in BACKBONE_FAMILIES for name in family.architectures]
