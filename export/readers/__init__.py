"""Readers of published formats: one file each, which returns a Checkpoint or a part of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from export.checkpoint import Checkpoint, CheckpointError
from export.demo.scenes import sample_images
from export.readers import recording
from export.readers.dinov2 import ARCHITECTURES
from export.readers.families import find_architecture
from export.readers.hub import (
    ANYTHING,
    FileRequest,
    NothingFitsError,
    base_name,
    download,
    find_local,
    resolve_files,
)
from export.readers.hub import is_repository as is_repository
from export.readers.patchioner import CONFIG_FILE, Origin, read_patchioner
from export.readers.seeded import PREFIX, read_seeded

DEMO_CONFIG = Path(__file__).parent.parent / "demo" / "checkpoint" / CONFIG_FILE
DEMO_VIECAP_CONFIG = DEMO_CONFIG.with_name("viecap.yaml")
"""The demo's backbone with its second decoder, which is told of entities."""

_PUBLISHED_FILES = (
    "the decoder (.pt), the memory bank (coco_captions_text_embeddings-B16-ViT-B.16-591753.h5 for example, if it has "
    f"one) and the backbone ({ARCHITECTURES['dinov2_vitb14_reg'].files[0].name} for example)"
)


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


def _read_repository(name: str, folders: tuple[Path, ...]) -> Checkpoint:
    """Read the checkpoint of a repository by its config.yaml, or by the one other configuration that it has."""
    config_file = _local_config(name, folders) or _hub_config(name)
    if config_file is None:
        what = f"the configuration; it names other files, which are needed too: {_PUBLISHED_FILES}"
        (config_file,) = resolve_files([FileRequest(what, (CONFIG_FILE,), ((name, CONFIG_FILE),))], folders, name)
    return read_patchioner(config_file, Origin(name, folders, repository=name))


def _local_config(name: str, folders: tuple[Path, ...]) -> Path | None:
    """Return the configuration of a repository in folders: config.yaml, or one that is named as the repository is."""
    found = find_local((CONFIG_FILE,), folders)
    if found is not None:
        return found
    files = (path for folder in folders for path in sorted(folder.glob("*.yaml")))
    repository = f"_{base_name(name)}_"
    return next((path for path in files if f"_{path.name.split('.')[0]}_" in repository), None)


def _hub_config(name: str) -> Path | None:
    """Return the configuration of a repository: config.yaml, or the only one in it; None where it is not to be had.

    Raises:
        CheckpointError: the repository has none, or several.
    """
    for wanted in (CONFIG_FILE, f"{ANYTHING}.yaml"):
        try:
            return download(name, wanted)
        except CheckpointError:
            raise
        except NothingFitsError:
            raise CheckpointError(f"{name}: expected a Patch-ioner configuration (.yaml) in it, got none") from None
        except Exception:  # of the hub, or of whatever HTTP library it uses; the next, and then the message, tells
            continue
    return None


def is_backbone(name: str) -> bool:
    """Return whether a name is that of a published backbone in another library or on the hub."""
    found = find_architecture(name)
    return found is not None and name not in found[0].architectures


def _needs_decoder(name: str) -> CheckpointError:
    """Return the error for a backbone alone."""
    found = find_architecture(name)
    assert found is not None
    family, architecture = found
    space = f", {architecture.text_space}" if architecture.text_space else ""
    return CheckpointError(
        f"{name}: the backbone {family.find(name)} alone; captions need a decoder of its text space{space}, too: name "
        f"the file of one by decap_weights in a configuration (.yaml) with dino_model: {name}, and build that; "
        f"{PREFIX}{family.find(name)} has one without meaning, to measure speed"
    )


def _with_scenes(checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint with the demo's scenes as samples: it was trained on such, or its weights are made up."""
    return replace(checkpoint, sample_images=sample_images)


CHECKPOINT_READERS: tuple[CheckpointReader, ...] = (
    CheckpointReader(
        "demo",
        lambda name: name == "demo",
        lambda name, folders: _with_scenes(read_patchioner(DEMO_CONFIG, Origin(name, folders))),
    ),
    CheckpointReader(
        f"{PREFIX}ARCHITECTURE (for example {PREFIX}dinov2_vits14_reg,size=224)",
        lambda name: name.startswith(PREFIX),
        lambda name, _: _with_scenes(read_seeded(name)),
    ),
    CheckpointReader(
        "demo-viecap",
        lambda name: name == "demo-viecap",
        lambda name, folders: _with_scenes(read_patchioner(DEMO_VIECAP_CONFIG, Origin(name, folders))),
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
        name: "demo", "demo-viecap", "seeded:ARCHITECTURE[,option=value...]", the path of a Patch-ioner YAML, or a
            repository of the Hugging Face hub.
        folder: where files that a configuration names are looked for too, before any is downloaded.

    Raises:
        CheckpointError: no such checkpoint, a backbone alone, or files that are not of the published layout.
    """
    if folder is not None and not folder.is_dir():
        raise CheckpointError(f"{folder}: expected a folder of checkpoint files")
    if is_backbone(name):
        raise _needs_decoder(name)
    for reader in CHECKPOINT_READERS:
        if reader.accepts(name):
            return reader.read(name, () if folder is None else (folder,))
    *first, last = (reader.expects for reader in CHECKPOINT_READERS)
    raise CheckpointError(f"checkpoint {name!r}: expected {', '.join(first)}, or {last}")
