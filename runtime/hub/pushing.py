"""Publishes a bundle: its files and the model card, as one commit of a repository on the hub."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from runtime.bundle import MANIFEST, Bundle, read_manifest
from runtime.errors import BundleError
from runtime.hub.cache import is_commit
from runtime.hub.client import HubListing, connect, download, list_to_write
from runtime.hub.failures import hub_errors
from runtime.hub.messages import note
from runtime.hub.model_card import CARD, MARK, model_card
from runtime.hub.names import HubName
from runtime.system.version import __version__

if TYPE_CHECKING:
    from huggingface_hub import HfApi


@dataclass(frozen=True)
class PushOptions:
    """How a bundle is published.

    Attributes:
        is_private: whether a repository that is made for it is private; one that is there must be.
        license: what the card says, an id of the hub's.
        message: the commit's; "" for one that names this version.
        with_plans: whether TensorRT plans, which are programs, may be among its files.
    """

    is_private: bool = False
    license: str = "other"
    message: str = ""
    with_plans: bool = False


def push(bundle: Bundle, name: HubName, options: PushOptions) -> str:
    """Publish a verified bundle; return the address of the commit.

    The repository and the branch are made if need be. Files of an older bundle that this one does not have are removed,
    and all others left alone; so is a card that was written by hand.

    Args:
        name: the repository, and the branch as its revision.

    Raises:
        BundleError: it has plans that were not asked for; the token may not write there; the hub cannot be reached.
    """
    _check_plans(bundle, options)
    if is_commit(name.revision):
        raise BundleError(f"{name}: expected a branch to push to, got a commit")
    hub = connect(name)
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    listing = _prepare_repository(hub, name, options)
    added = [CommitOperationAdd(file, bundle.path(file)) for file in (*bundle.manifest.files, MANIFEST)]
    with tempfile.TemporaryDirectory() as temporary:
        older = Path(temporary)
        if _may_write_card(name, listing, older):
            card = model_card(bundle.manifest, name, options.license)
            added.append(CommitOperationAdd(CARD, card.encode()))
        removed = [CommitOperationDelete(file) for file in _outdated(bundle, name, listing, older)]
    with hub_errors(name):
        commit = hub.create_commit(
            name.repository,
            [*added, *removed],
            commit_message=options.message or f"Upload a bundle of patchcaption {__version__}",
            revision=name.revision,
            parent_commit=listing.commit or None,
        )
    return str(commit.commit_url)


def _prepare_repository(hub: HfApi, name: HubName, options: PushOptions) -> HubListing:
    """Make the repository and the branch if need be; return what is there."""
    with hub_errors(name):
        hub.create_repo(name.repository, private=options.is_private or None, exist_ok=True)
        if options.is_private and not hub.model_info(name.repository).private:
            raise BundleError(f"{name}: --private, but the repository is there, and public; nothing was uploaded")
        if not name.is_default:
            hub.create_branch(name.repository, branch=name.revision, exist_ok=True)
    return list_to_write(name, name.revision)


def _check_plans(bundle: Bundle, options: PushOptions) -> None:
    plans = [plan.file for plan in bundle.manifest.plans]
    if plans and not options.with_plans:
        raise BundleError(
            f"{bundle.folder}: it has TensorRT plans ({', '.join(plans)}): programs for some GPUs, which others load "
            "only if they trust you; push a bundle without them, of which each builds its own by patchcaption "
            "build-plans, or these too by --with-plans"
        )


def _may_write_card(name: HubName, listing: HubListing, folder: Path) -> bool:
    """Return whether the repository has no card, or one that was written here."""
    if CARD not in listing.files:
        return True
    if MARK in download(name, listing, CARD, folder).read_text(encoding="utf-8", errors="replace"):
        return True
    note(f"{name}: its {CARD} was written by hand, and is left as it is")
    return False


def _outdated(bundle: Bundle, name: HubName, listing: HubListing, folder: Path) -> list[str]:
    """Return the files of the bundle that is in the repository which this one does not have."""
    if MANIFEST not in listing.files:
        return []
    download(name, listing, MANIFEST, folder)
    try:
        older = read_manifest(folder).files
    except BundleError:  # of another schema, or no bundle's: which files are its own is not known
        return []
    return sorted((older.keys() - bundle.manifest.files.keys()) & listing.files)
