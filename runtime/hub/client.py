"""What is asked of the hub, by huggingface_hub, and its failures in one line each."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import BundleError
from runtime.hub.cache import is_commit
from runtime.hub.names import HubName
from runtime.system.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

_TIMEOUT_S = 20
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM)


@dataclass(frozen=True)
class HubListing:
    """The files of a repository at one commit.

    Attributes:
        snapshot: the folder of huggingface_hub's own cache that they are in; None to ask the hub for them.
    """

    repository: str
    commit: str
    files: frozenset[str]
    snapshot: Path | None = None

    def __str__(self) -> str:
        return f"{self.repository} at {self.commit[:12]}"


def connect(name: HubName) -> HfApi:
    """Return what asks the hub.

    Raises:
        BundleError: huggingface_hub is not installed.
    """
    try:
        from huggingface_hub import HfApi
    except ModuleNotFoundError:
        raise BundleError(
            f"{name}: no such folder here, and bundles of the Hugging Face hub need huggingface_hub: "
            "pip install 'patchcaption[hub]'"
        ) from None
    return HfApi(library_name="patchcaption", library_version=__version__)


def list_repository(name: HubName, revision: str) -> HubListing:
    """Return the files of a repository, by one request.

    Args:
        name: of the repository, as the user has it, for messages.
        revision: a branch, a tag or a commit.

    Raises:
        BundleError: it is not to be had.
    """
    listing = list_to_write(name, revision)
    if not is_commit(listing.commit):
        raise BundleError(f"{name}: the hub's answer has no commit, but {listing.commit!r}; is HF_ENDPOINT right?")
    return listing


def list_to_write(name: HubName, revision: str) -> HubListing:
    """Return the files of a repository, which may have no commit yet: "".

    Raises:
        BundleError: as `list_repository`.
    """
    hub = connect(name)
    with hub_errors(name):
        found = hub.model_info(name.repository, revision=revision, timeout=_TIMEOUT_S)
    return HubListing(name.repository, found.sha or "", frozenset(file.rfilename for file in found.siblings or []))


def list_repository_anywhere(name: HubName, revision: str) -> HubListing:
    """Return the files of a repository; where the hub cannot be reached, those that `hf download` has brought here.

    Raises:
        BundleError: as `list_repository`.
    """
    try:
        return list_repository(name, revision)
    except BundleError as error:
        listing = _list_snapshot(name, revision) if _is_of_the_network(error) else None
        if listing is None:
            raise
        return listing


def _is_of_the_network(error: BundleError) -> bool:
    """Return whether the hub was asked, or was to be, and has not answered."""
    return error.__cause__ is not None and getattr(error.__cause__, "response", None) is None


def _list_snapshot(name: HubName, revision: str) -> HubListing | None:
    """Return the files of a revision in huggingface_hub's own cache; None if it has none of it."""
    from huggingface_hub import snapshot_download

    try:
        snapshot = Path(snapshot_download(name.repository, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        return None
    if not is_commit(snapshot.name):
        return None
    files = (path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file())
    return HubListing(name.repository, snapshot.name, frozenset(files), snapshot)


def download(name: HubName, listing: HubListing, file: str, folder: Path) -> Path:
    """Bring a file of a repository into a folder.

    Raises:
        BundleError: it is not to be had, or the disk is full.
    """
    if listing.snapshot is not None:
        return Path(shutil.copyfile(listing.snapshot / file, folder / file))
    hub = connect(name)
    with hub_errors(name):
        return Path(hub.hf_hub_download(name.repository, file, revision=listing.commit, local_dir=folder))


def check_readable(name: HubName, listing: HubListing, file: str) -> None:
    """Raise unless a file of a repository may be downloaded: of a gated one all may see the list, and few the files.

    Raises:
        BundleError: it may not, or the hub cannot be reached.
    """
    if listing.snapshot is None:
        from huggingface_hub import hf_hub_url

        hub = connect(name)
        with hub_errors(name):
            hub.get_hf_file_metadata(url=hf_hub_url(name.repository, file, revision=listing.commit))


@contextmanager
def hub_errors(name: HubName) -> Iterator[None]:
    """Turn what huggingface_hub raises, and the library that it asks by, into one line.

    Raises:
        BundleError: in its place.
    """
    try:
        yield
    except BundleError:
        raise
    except Exception as error:  # of that HTTP library, of which each version has another
        raise BundleError(f"{name}: {_reason(name, error)}") from error


def _reason(name: HubName, error: BaseException) -> str:
    """Return what went wrong, and what mends it."""
    from huggingface_hub import constants, errors

    endpoint = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, errors.HfHubHTTPError):
        return _refusal(name, error, endpoint)
    if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
        return f"{error.filename or 'the cache'}: cannot be written: {os.strerror(error.errno)}; set XDG_CACHE_HOME"
    if isinstance(error, json.JSONDecodeError):
        return f"{endpoint} gave an answer that is none of a hub's; is HF_ENDPOINT right?"
    if isinstance(error, ValueError):  # what was asked for is refused before it is sent
        return " ".join(str(error).split())
    if isinstance(error, errors.OfflineModeIsEnabled):
        return (
            f"{_no_folder(name)}HF_HUB_OFFLINE keeps the hub from being asked for what is not in the cache; "
            "load it once without that"
        )
    return (
        f"{_no_folder(name)}{endpoint}, which is asked for what is not in the cache, cannot be reached: "
        f"{_first_line(error)}; try again with the network"
    )


def _refusal(name: HubName, error: HfHubHTTPError, endpoint: str) -> str:
    """Return why the hub answered with an error."""
    from huggingface_hub import errors

    status = error.response.status_code
    if isinstance(error, errors.GatedRepoError):
        return f"its owner must let you in: ask at {endpoint}/{name.repository}, and set HF_TOKEN, or run hf auth login"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{_no_folder(name)}no such repository at {endpoint}, or a private one; if you may read it, set HF_TOKEN, "
            "or run hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no branch, tag or commit {name.revision!r}"
    if status == HTTPStatus.UNAUTHORIZED:
        return f"{endpoint} wants a token that it knows (401); set HF_TOKEN, or run hf auth login"
    if status == HTTPStatus.FORBIDDEN:
        return f"{endpoint} forbids it (403); the token in HF_TOKEN must have the right to do that"
    return f"{endpoint} answered {status}: {_first_line(error)}; try again later"


def _no_folder(name: HubName) -> str:
    return "" if name.is_certain else "no such folder here, and "


def _first_line(said: object) -> str:
    return next((line.strip() for line in str(said).splitlines() if line.strip()), type(said).__name__)
