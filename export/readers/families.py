"""The backbone families that readers know, one line each.

To add one: its model (`export/models/`), its reader (here), a line in `BACKBONE_FAMILIES`.
"""

from __future__ import annotations

from export.checkpoint import CheckpointError
from export.readers import clip, dinotxt, dinov2, dinov3, proxyclip, regionclip, siglip2
from export.readers.backbone_family import AnyFamily, Architecture, StateDict

BACKBONE_FAMILIES: tuple[AnyFamily, ...] = (
    dinov2.FAMILY,
    clip.FAMILY,
    regionclip.FAMILY,
    siglip2.FAMILY,
    dinov3.FAMILY,
    dinotxt.FAMILY,
    proxyclip.FAMILY,
)
"""The last that recognizes weights reads them: those whose names contain others' come after these."""


def find_architecture(name: str) -> tuple[AnyFamily, Architecture] | None:
    """Return a published backbone and its family, by any of its names; None for a name that was never published."""
    for family in BACKBONE_FAMILIES:
        found = family.find(name)
        if found is not None:
            return family, family.architectures[found]
    return None


def recognize_family(state: StateDict, source: str) -> AnyFamily:
    """Return the family of a state dict.

    Raises:
        CheckpointError: it is of no known family.
    """
    for family in reversed(BACKBONE_FAMILIES):
        if family.recognizes(state):
            return family
    known = ", ".join(family.name for family in BACKBONE_FAMILIES)
    raise CheckpointError(f"{source}: expected the weights of a backbone of one of the families {known}")


def architecture_names() -> list[str]:
    """Return the names of all published backbones."""
    return [name for family in BACKBONE_FAMILIES for name in family.architectures]
