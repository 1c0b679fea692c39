"""Readers: one file for each published format, each yielding a Checkpoint or a part of one."""

from __future__ import annotations

from pathlib import Path

from export.checkpoint import Checkpoint, CheckpointError
from export.readers.patchioner import read_patchioner
from export.readers.seeded import PREFIX, read_seeded

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "checkpoint" / "config.yaml"


def read_checkpoint(name: str) -> Checkpoint:
    """The checkpoint of a name: "demo", "seeded:ARCHITECTURE[,option=value...]", or the path of a Patch-ioner YAML.

    Raises:
        CheckpointError: no such checkpoint, or its files are not of the published layout.
    """
    if name == "demo":
        return read_patchioner(DEMO_CONFIG, name)
    if name.startswith(PREFIX):
        return read_seeded(name)
    if name.endswith((".yaml", ".yml")):
        return read_patchioner(Path(name), name)
    raise CheckpointError(
        f"checkpoint {name!r}: expected demo, {PREFIX}ARCHITECTURE (for example {PREFIX}dinov2_vits14_reg,size=224) "
        "or the path of a Patch-ioner .yaml"
    )
