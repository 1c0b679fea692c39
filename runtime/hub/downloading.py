"""Downloads a published bundle: the files that its manifest lists, each compared with it before any is used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from runtime.bundle import MANIFEST, FileRecord, Manifest, read_manifest
from runtime.errors import BundleError
from runtime.hub.cache import RepositoryCache, is_whole, put_in_place
from runtime.hub.client import HubListing, download
from runtime.hub.messages import note
from runtime.hub.names import HubName

_OF_HUGGINGFACE_HUB = ".cache"
"""Its notes on what it has downloaded to a folder."""
_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.incomplete$")
"""As versions of it name parts of files that belong to one process; others name them by what they are parts of."""


def download_bundle(name: HubName, listing: HubListing, cache: RepositoryCache) -> Path | None:
    """Download the bundle of a commit to its place in the cache, which may have a damaged one; return that.

    What an interrupted download has is not downloaded again, nor what a damaged bundle has whole.

    Returns:
        None where the repository's manifest is not that of a bundle.

    Raises:
        BundleError: a file is not to be had, or not what the manifest lists.
    """
    folder, target = cache.unfinished(listing.commit), cache.downloaded(listing.commit)
    _remove_temporary(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    download(name, listing, MANIFEST, folder)
    if not _is_of_a_bundle(folder / MANIFEST):
        shutil.rmtree(folder)
        return None
    try:
        manifest = read_manifest(folder)
    except BundleError as error:
        raise BundleError(f"{name}: {error}") from None
    _reuse(target, folder, manifest)
    missing = {file: record for file, record in manifest.files.items() if not is_whole(folder / file, record)}
    _check_listed(name, listing, missing)
    _check_space(name, folder, missing)
    size_mib = sum(record.bytes for record in missing.values()) / 2**20
    verb = "downloading" if listing.snapshot is None else "copying from huggingface_hub's cache"
    note(f"{listing}: {verb} {len(missing)} of its {len(manifest.files)} files, {size_mib:.1f} MiB")
    for file, record in missing.items():
        _download_whole(name, listing, file, record, folder)
    shutil.rmtree(folder / _OF_HUGGINGFACE_HUB, ignore_errors=True)
    put_in_place(folder, target)
    return target


def _remove_temporary(folder: Path) -> None:
    """Remove the parts of files that killed downloads have left, and that no other goes on with."""
    for path in (folder / _OF_HUGGINGFACE_HUB).rglob("*.incomplete"):
        if _TEMPORARY.search(path.name):
            path.unlink(missing_ok=True)


def _is_of_a_bundle(path: Path) -> bool:
    """Return whether a file is a manifest of a bundle of any schema; others have files of that name too."""
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and {"schema_version", "engines", "files"} <= found.keys()


def _reuse(damaged: Path, folder: Path, manifest: Manifest) -> None:
    """Copy what is whole of a damaged bundle."""
    for file, record in manifest.files.items():
        if not is_whole(folder / file, record) and is_whole(damaged / file, record):
            shutil.copyfile(damaged / file, folder / file)


def _check_listed(name: HubName, listing: HubListing, files: dict[str, FileRecord]) -> None:
    for file in files:
        if file not in listing.files:
            raise BundleError(f"{name}: {file} is in its manifest, and not in the repository; its owner must push it")


def _check_space(name: HubName, folder: Path, files: dict[str, FileRecord]) -> None:
    needed, free = sum(record.bytes for record in files.values()), shutil.disk_usage(folder).free
    if needed > free:
        raise BundleError(
            f"{name}: the disk is full: expected {needed / 2**20:.1f} MiB for it, got {free / 2**20:.1f} MiB in "
            f"{folder}; empty it, or set XDG_CACHE_HOME"
        )


def _download_whole(name: HubName, listing: HubListing, file: str, record: FileRecord, folder: Path) -> None:
    """Download a file, in place of what is there of it."""
    path = folder / file
    path.unlink(missing_ok=True)
    download(name, listing, file, folder)
    if not is_whole(path, record):
        size = path.stat().st_size
        path.unlink()
        raise BundleError(
            f"{name}: {file}: what the hub sends is not what the manifest lists: expected {record.bytes} bytes with "
            f"the sha256 {record.sha256}, got {size} bytes of others; try again, or ask its owner to push it again"
        )
