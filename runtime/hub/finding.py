"""From what the user wrote to a bundle's folder."""

from __future__ import annotations

import os
from pathlib import Path

from runtime.bundle import MANIFEST, Bundle
from runtime.errors import BundleError
from runtime.hub.building import build_bundle
from runtime.hub.cache import RepositoryCache, damaged_file
from runtime.hub.client import HubListing, check_readable, list_repository, list_repository_anywhere
from runtime.hub.downloading import download_bundle
from runtime.hub.messages import note
from runtime.hub.names import HubName, hub_name

_CONFIGURATIONS = (".yaml", ".yml")


def find_bundle(bundle: str | os.PathLike[str]) -> Path:
    """Return the folder of a bundle: of a path that itself, of a repository of the hub one in the user's cache.

    What the cache does not have is downloaded, or built of the checkpoint that the repository has. Another process that
    does the same is waited for. What it has is taken as it is: nothing is asked of the hub.

    Args:
        bundle: a folder; or "owner/name" or "owner/name@revision" on the hub, if there is no folder of that name.

    Raises:
        BundleError: the repository is not to be had, has neither a bundle nor a checkpoint, or cannot be built.
    """
    name = hub_name(bundle)
    return Path(bundle) if name is None else _find(name)


def open_bundle(bundle: str | os.PathLike[str], verify: bool = True) -> Bundle:
    """Open a bundle as `Bundle` does, wherever `find_bundle` finds it; what is damaged in the cache is fetched again.

    Raises:
        BundleError: as `Bundle` and `find_bundle`.
    """
    name = hub_name(bundle)
    folder = find_bundle(bundle)
    try:
        return Bundle(folder, verify)
    except BundleError as error:
        if name is None:
            raise
        if damaged_file(folder) is None:
            raise BundleError(f"{error}; patchcaption pull {name} fetches or builds it again") from None
        note(f"{error}: fetching it again")
        _repair(name, folder, error)
    return Bundle(folder, verify)


def exact_name(bundle: str | os.PathLike[str]) -> str:
    """Return what means the same bundle to other processes, whenever and wherever they load it.

    That is the commit of a repository, "owner/name@COMMIT", which is fetched if need be; and a folder's absolute path.

    Raises:
        BundleError: as `find_bundle`.
    """
    name, folder = hub_name(bundle), find_bundle(bundle)
    if name is None:
        return os.path.abspath(folder)
    commit = RepositoryCache(name.repository).pinned(name.revision)
    return f"hf://{name.repository}@{commit}"


def pull(name: HubName) -> Path:
    """Ask the hub what a revision is, and have that in the cache from then on, whole; return its folder.

    Raises:
        BundleError: as `find_bundle`; or it is not a bundle that this version opens.
    """
    cache = RepositoryCache(name.repository)
    with cache.locked() as descriptor:
        listing = list_repository(name, name.revision)
        folder = cache.bundle_of(listing.commit)
        if folder is None or not _opens(folder):
            folder = _fetch(name, listing, cache, descriptor)
        Bundle(folder)
        _say_what_changed(name, cache.pinned(name.revision), listing)
        cache.pin(name.revision, listing.commit)
    return folder


def _find(name: HubName) -> Path:
    cache = RepositoryCache(name.repository)
    folder = cache.find(name)
    if folder is not None:
        return folder
    with cache.locked() as descriptor:
        folder = cache.find(name)  # another process may have fetched it
        if folder is None:
            listing = list_repository_anywhere(name, cache.pinned(name.revision) or name.revision)
            folder = _fetch(name, listing, cache, descriptor)
            cache.pin(name.revision, listing.commit)
    return folder


def _say_what_changed(name: HubName, before: str | None, listing: HubListing) -> None:
    if before not in (None, listing.commit):
        note(f"{name} was {before[:12]}, and is {listing.commit[:12]} from now on")
    elif before == listing.commit:
        note(f"{name} is {before[:12]}, as it was")


def _opens(folder: Path) -> bool:
    try:
        Bundle(folder)
    except BundleError:
        return False
    return True


def _repair(name: HubName, folder: Path, error: BundleError) -> None:
    """Fetch the bundle of a pinned commit again, unless another process has."""
    cache = RepositoryCache(name.repository)
    with cache.locked() as descriptor:
        if damaged_file(folder) is None:
            return
        try:
            listing = list_repository_anywhere(name, cache.pinned(name.revision) or name.revision)
            _fetch(name, listing, cache, descriptor)
        except BundleError as reason:
            raise BundleError(f"{error}; it could not be fetched again: {reason}") from None


def _fetch(name: HubName, listing: HubListing, cache: RepositoryCache, lock_descriptor: int) -> Path:
    """Download or build the bundle of a commit; return its folder."""
    folder = download_bundle(name, listing, cache) if MANIFEST in listing.files else None
    if folder is not None:
        cache.remove_unfinished()
        return folder
    configurations = [file for file in listing.files if file.endswith(_CONFIGURATIONS)]
    if not configurations:
        raise BundleError(
            f"{name}: the repository has neither a bundle ({MANIFEST}) nor a checkpoint to build one of (a Patch-ioner "
            "configuration, .yaml); patchcaption push publishes a bundle"
        )
    check_readable(name, listing, configurations[0])
    return build_bundle(listing, cache.built(listing.commit), lock_descriptor)
