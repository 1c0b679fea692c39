"""Readers: one file for each published format, each yielding a Checkpoint or a part of one."""

from __future__ import annotations

import re
from pathlib import Path

from export.checkpoint import Checkpoint, CheckpointError
from export.readers.dinov2 import ARCHITECTURES
from export.readers.hub import Wanted, locate
from export.readers.patchioner import CONFIG_FILE, Origin, read_patchioner
from export.readers.seeded import PREFIX, read_seeded

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "checkpoint" / CONFIG_FILE

_PUBLISHED_FILES = (
    "the decoder (.pt), the memory bank (coco_captions_text_embeddings-B16-ViT-B.16-591753.h5, if it has one) and the "
    f"backbone ({ARCHITECTURES['dinov2_vitb14_reg'].file})"
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


def read_checkpoint(name: str, folder: Path | None = None) -> Checkpoint:
    """The checkpoint of a name: "demo", "seeded:ARCHITECTURE[,option=value...]", the path of a Patch-ioner YAML, or a
    repository of the Hugging Face hub.

    Args:
        folder: where files that a configuration names are looked for too, before any is downloaded.

    Raises:
        CheckpointError: no such checkpoint, or its files are not of the published layout.
    """
    folders = () if folder is None else (folder,)
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of checkpoint files")
    if name == "demo":
        return read_patchioner(DEMO_CONFIG, Origin(name, folders))
    if name.startswith(PREFIX):
        return read_seeded(name)
    if name.endswith((".yaml", ".yml")):
        return read_patchioner(Path(name), Origin(name, folders))
    if is_repository(name):
        what = f"the configuration; it names other files, which are wanted too: {_PUBLISHED_FILES}"
        (config_file,) = locate([Wanted(what, (CONFIG_FILE,), ((name, CONFIG_FILE),))], folders, name)
        return read_patchioner(config_file, Origin(name, folders, repository=name))
    raise CheckpointError(
        f"checkpoint {name!r}: expected demo, {PREFIX}ARCHITECTURE (for example {PREFIX}dinov2_vits14_reg,size=224), "
        "the path of a Patch-ioner .yaml, or OWNER/NAME on the Hugging Face hub"
    )


def is_repository(name: str) -> bool:
    """Whether a name is that of a repository on the hub and nothing on this machine."""
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()
