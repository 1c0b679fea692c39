"""Finds the files of a checkpoint in folders of this machine, or in repositories of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from export.checkpoint import CheckpointError

ANYTHING = "*"
"""Stands for any text in the name of a file, which one file alone may have."""

_TIMEOUT_S = 20
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@dataclass(frozen=True)
class FileRequest:
    """A file that a checkpoint needs.

    Attributes:
        what: what the file is, for messages.
        names: the names it may have in a folder, likeliest first, with `ANYTHING` in them or not; of a path the last
            part alone is tried too.
        sources: (repository, file) pairs that it may be downloaded from, likeliest first.
    """

    what: str
    names: tuple[str, ...]
    sources: tuple[tuple[str, str], ...] = ()


class NothingFitsError(Exception):
    """Raised where a repository has no file that fits a name."""


_REMEDY = "put what is missing into one folder and name it with --checkpoint-dir"


def is_repository(name: str) -> bool:
    """Return whether a name is that of a repository on the hub, or a revision of one, and nothing on this machine."""
    return _REPOSITORY.fullmatch(name) is not None and not Path(name).exists()


def base_name(repository: str) -> str:
    """Return the name of a repository without its owner and revision: "mem" of "owner/mem@v1"."""
    return repository.partition("@")[0].split("/")[-1]


def _of_revision(repository: str) -> tuple[str, dict[str, Any]]:
    """Return the name of a repository without its revision, and that as the keyword argument of huggingface_hub."""
    name, _, revision = repository.partition("@")
    return name, {"revision": revision} if revision else {}


def resolve_files(
    requests: Sequence[FileRequest], folders: Sequence[Path], source: str, remedy: str = _REMEDY
) -> list[Path]:
    """Return the path of every requested file; what no folder has is downloaded.

    Args:
        source: the checkpoint that needs them, for messages.
        remedy: what the user should do about missing files, for messages.

    Raises:
        CheckpointError: files are missing; one message names all of them. Or several have a name with `ANYTHING` in it.
    """
    found, missing = [], []
    reasons: dict[str, str] = {}
    for request in requests:
        path = find_local(request.names, folders)
        if path is None:
            path, failed = _download(request)
            if failed is not None:
                reasons.setdefault(failed[1], failed[0])  # a reason, of a network that fails for example, once
        found.append(path)
        if path is None:
            missing.append(f"{Path(request.names[0]).name} ({request.what})")
    if missing:
        looked = [f"not in {' or '.join(map(str, dict.fromkeys(folders)))}"] if folders else []
        told = "; ".join(f"{repository}: {reason}" for reason, repository in reasons.items())
        looked += [f"not to be downloaded ({told})"] if told else []
        raise CheckpointError(f"{source}: missing {', '.join(missing)}: {' and '.join(looked)}; {remedy}")
    return [path for path in found if path is not None]


def find_local(names: Iterable[str], folders: Sequence[Path]) -> Path | None:
    """Return the first of the names that is in one of the folders; None if none is.

    Raises:
        CheckpointError: several files have a name with `ANYTHING` in it.
    """
    for name in names:
        for folder in folders:
            for candidate in _candidates(name, folder):
                if candidate.exists():
                    return candidate
    return None


def _candidates(name: str, folder: Path) -> list[Path]:
    """Return the paths that a name may mean in a folder."""
    if ANYTHING not in name:
        return [folder / name, folder / Path(name).name]
    fitting = one_of((path.name for path in folder.iterdir()), name, str(folder)) if folder.is_dir() else None
    return [folder / fitting] if fitting else []


def one_of(names: Iterable[str], pattern: str, where: str) -> str | None:
    """Return the one name that fits a pattern, in capitals or not; None if none does.

    Raises:
        CheckpointError: several do.
    """
    fitting = sorted(name for name in names if fnmatchcase(name.rsplit("/", 1)[-1].lower(), pattern.lower()))
    if len(fitting) > 1:
        raise CheckpointError(f"{where}: expected one file {pattern}, got {', '.join(fitting)}")
    return fitting[0] if fitting else None


def _list_repository(repository: str) -> list[str]:
    """Return the files of a repository; where the hub cannot be reached, those of it that are in the hub's cache.

    Args:
        repository: "owner/name" or "owner/name@revision".

    Raises:
        Exception: there is no such repository, or neither is to be had.
    """
    from huggingface_hub import model_info, snapshot_download

    repository, revision = _of_revision(repository)
    try:
        # asks once, within a time limit; list_repo_files would go on asking for a while
        return [file.rfilename for file in model_info(repository, timeout=_TIMEOUT_S, **revision).siblings or []]
    except Exception:  # of the hub, or of whatever HTTP library it uses
        try:
            cached = Path(snapshot_download(repository, local_files_only=True, **revision))
        except Exception:
            cached = None
        if cached is None:
            raise  # what the hub said
        return [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]


def download(repository: str, name: str) -> Path:
    """Return a file of a repository, from the hub's cache if it is there.

    Args:
        repository: "owner/name" or "owner/name@revision".
        name: may have `ANYTHING` in it.

    Raises:
        NothingFitsError: the repository has no file that fits.
        CheckpointError: several do.
        Exception: of the hub, of whatever HTTP library it uses, or of the disk.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    if ANYTHING in name:
        fitting = one_of(_list_repository(repository), name, repository)
        if fitting is None:
            raise NothingFitsError(f"it has no {name}")
        name = fitting
    repository, revision = _of_revision(repository)
    cached = try_to_load_from_cache(repository, name, **revision)
    if isinstance(cached, str):
        return Path(cached)
    # asks once; the download would go on asking for a while
    get_hf_file_metadata(hf_hub_url(repository, name, **revision))
    return Path(hf_hub_download(repository, name, **revision))


def _download(request: FileRequest) -> tuple[Path | None, tuple[str, str] | None]:
    """Return the file from the first source that has it; else the first repository that failed, and its reason."""
    failed = None
    for repository, name in request.sources:
        try:
            return download(repository, name), None
        except CheckpointError:
            raise
        except Exception as error:
            failed = failed or (repository, _reason_of(error))
    return None, failed


def _reason_of(error: Exception) -> str:
    """Return what an error says, on one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
