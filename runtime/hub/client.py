"""What is asked of the hub, by huggingface_hub."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.errors import BundleError
from runtime.hub.cache import is_commit
from runtime.hub.failures import NO_FOLDER, hub_errors
from runtime.hub.names import HubName
from runtime.system.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_TIMEOUT_S = 20


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
        no_folder = "" if name.is_certain else NO_FOLDER
        raise BundleError(
            f"{name}: {no_folder}bundles of the Hugging Face hub need huggingface_hub: pip install 'patchcaption[hub]'"
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
    """Return whether the hub was asked, or was to be, and has not answered, or only that it is out of order."""
    cause = error.__cause__
    response = getattr(cause, "response", None)
    is_down = response is not None and response.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
    return cause is not None and (response is None or is_down)


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
