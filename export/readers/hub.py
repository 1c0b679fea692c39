"""Finds the files of a checkpoint in folders of this machine, or in repositories of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.checkpoint import CheckpointError


@dataclass(frozen=True)
class FileRequest:
    """A file that a checkpoint needs.

    Attributes:
        what: what the file is, for messages.
        names: the names it may have in a folder, likeliest first; of a path the last part alone is tried too.
        sources: (repository, file) pairs that it may be downloaded from.
    """

    what: str
    names: tuple[str, ...]
    sources: tuple[tuple[str, str], ...] = ()


_REMEDY = "put what is missing into one folder and name it with --checkpoint-dir"


def resolve_files(
    requests: Sequence[FileRequest], folders: Sequence[Path], source: str, remedy: str = _REMEDY
) -> list[Path]:
    """Return the path of every requested file; what no folder has is downloaded.

    Args:
        source: the checkpoint that needs them, for messages.
        remedy: what the user should do about missing files, for messages.

    Raises:
        CheckpointError: files are missing; one message names all of them.
    """
    found, missing, reasons = [], [], []
    for request in requests:
        path = find_local(request.names, folders)
        if path is None:
            path, reason = _download(request)
            reasons += [reason] if reason else []
        found.append(path)
        if path is None:
            missing.append(f"{Path(request.names[0]).name} ({request.what})")
    if missing:
        looked = [f"not in {' or '.join(map(str, dict.fromkeys(folders)))}"] if folders else []
        looked += [f"not to be downloaded ({reasons[0]})"] if reasons else []
        raise CheckpointError(f"{source}: missing {', '.join(missing)}: {' and '.join(looked)}; {remedy}")
    return [path for path in found if path is not None]


def find_local(names: Sequence[str], folders: Sequence[Path]) -> Path | None:
    """Return the first of the names that is in one of the folders; None if none is."""
    for name in names:
        for folder in folders:
            for path in (folder / name, folder / Path(name).name):
                if path.exists():
                    return path
    return None


def _download(request: FileRequest) -> tuple[Path | None, str | None]:
    """Return the file from the first source that has it, from the hub's cache if it is there; else the reason."""
    reason = None
    for repository, name in request.sources:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

        try:
            cached = try_to_load_from_cache(repository, name)
            if isinstance(cached, str):
                return Path(cached), None
            get_hf_file_metadata(hf_hub_url(repository, name))  # asks once; the download would go on asking for a while
            return Path(hf_hub_download(repository, name)), None
        except Exception as error:  # of the hub, of whatever HTTP library it uses, or of the disk
            reason = f"{repository}: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return None, reason
