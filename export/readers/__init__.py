"""Readers of published formats: one file each, which returns a Checkpoint or a part of one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import Checkpoint, CheckpointError
from export.readers import recording
from export.readers.dinov2 import ARCHITECTURES
from export.readers.hub import FileRequest, resolve_files
from export.readers.patchioner import CONFIG_FILE, Origin, read_patchioner
from export.readers.seeded import PREFIX, read_seeded

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "checkpoint" / CONFIG_FILE

_PUBLISHED_FILES = (
    "the decoder (.pt), the memory bank (coco_captions_text_embeddings-B16-ViT-B.16-591753.h5, if it has one) and the "
    f"backbone ({ARCHITECTURES['dinov2_vitb14_reg'].files[0].name})"
)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass(frozen=True)
class CheckpointReader:
    """One way to name a checkpoint.

    Attributes:
        expects: a description of such names, for messages.
        accepts: returns whether a name is of this kind.
        read: reads the checkpoint of a name, whose files are looked for in some folders before any is downloaded.
    """

    expects: str
    accepts: Callable[[str], bool]
    read: Callable[[str, tuple[Path, ...]], Checkpoint]


def is_repository(name: str) -> bool:
    """Return whether a name is that of a repository on the hub and nothing on this machine."""
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def _read_repository(name: str, folders: tuple[Path, ...]) -> Checkpoint:
    what = f"the configuration; it names other files, which are needed too: {_PUBLISHED_FILES}"
    (config_file,) = resolve_files([FileRequest(what, (CONFIG_FILE,), ((name, CONFIG_FILE),))], folders, name)
    return read_patchioner(config_file, Origin(name, folders, repository=name))


CHECKPOINT_READERS: tuple[CheckpointReader, ...] = (
    CheckpointReader(
        "demo",
        lambda name: name == "demo",
        lambda name, folders: read_patchioner(DEMO_CONFIG, Origin(name, folders)),
    ),
    CheckpointReader(
        f"{PREFIX}ARCHITECTURE (for example {PREFIX}dinov2_vits14_reg,size=224)",
        lambda name: name.startswith(PREFIX),
        lambda name, _: read_seeded(name),
    ),
    CheckpointReader(
        f"{recording.PREFIX}PATH/NAME.json",
        lambda name: name.startswith(recording.PREFIX),
        lambda name, _: recording.read_recording(name),
    ),
    CheckpointReader(
        "the path of a Patch-ioner .yaml",
        lambda name: name.endswith((".yaml", ".yml")),
        lambda name, folders: read_patchioner(Path(name), Origin(name, folders)),
    ),
    CheckpointReader("OWNER/NAME on the Hugging Face hub", is_repository, _read_repository),
)
"""All ways to name a checkpoint: the first that accepts a name reads it."""


def read_checkpoint(name: str, folder: Path | None = None) -> Checkpoint:
    """Read the checkpoint of a name.

    Args:
        name: "demo", "seeded:ARCHITECTURE[,option=value...]", the path of a Patch-ioner YAML, or a repository of the
            Hugging Face hub.
        folder: where files that a configuration names are looked for too, before any is downloaded.

    Raises:
        CheckpointError: no such checkpoint, or its files are not of the published layout.
    """
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of checkpoint files")
    for reader in CHECKPOINT_READERS:
        if reader.accepts(name):
            return reader.read(name, () if folder is None else (folder,))
    *first, last = (reader.expects for reader in CHECKPOINT_READERS)
    raise CheckpointError(f"checkpoint {name!r}: expected {', '.join(first)}, or {last}")
