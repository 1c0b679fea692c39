"""The bundles of the hub in the user's cache: ~/.cache/patchcaption/hub/OWNER--NAME.

There are ``COMMIT``, a bundle as it was published, or ``COMMIT-schema3``, one that was built of what was published;
``refs/REVISION``, the commit that a branch or tag stands for here; ``COMMIT.part``, a download that is not finished.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

from runtime.bundle import MANIFEST, SCHEMA, FileRecord, read_manifest, sha256_of
from runtime.errors import BundleError
from runtime.hub.messages import note
from runtime.hub.names import HubName
from runtime.system.files import lock, write_atomically
from runtime.system.user_dirs import cache_folder, is_private, make_private

_UNFINISHED = ".part"
_COMMIT = re.compile("[0-9a-f]{40}")


def is_commit(text: str) -> bool:
    """Return whether a text is the whole hash of a commit, which is also safe as a name of a folder."""
    return _COMMIT.fullmatch(text) is not None


class RepositoryCache:
    """What the user's cache has of one repository.

    Raises:
        BundleError: the user has no cache folder, or others can write to it.
    """

    def __init__(self, repository: str) -> None:
        self._repository = repository
        self._folder = _hub_folder() / repository.replace("/", "--")

    def find(self, name: HubName) -> Path | None:
        """Return the folder of the bundle that a name stands for here; None where there is none yet."""
        commit = self.pinned(name.revision)
        return None if commit is None else self.bundle_of(commit)

    def pinned(self, revision: str) -> str | None:
        """Return the commit that a revision stands for here; None where it was not asked for yet."""
        if is_commit(revision):
            return revision
        try:
            commit = self._pin(revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if is_commit(commit) else None

    def pin(self, revision: str, commit: str) -> None:
        """Let a revision stand for a commit from now on."""
        if revision == commit:
            return
        path = self._pin(revision)
        make_private(path.parent)
        with write_atomically(path) as part:
            part.write_text(f"{commit}\n", encoding="ascii")

    def bundle_of(self, commit: str) -> Path | None:
        """Return the folder of the bundle of a commit; None where there is none yet."""
        folders = (self.downloaded(commit), self.built(commit))
        return next((folder for folder in folders if folder.is_dir()), None)

    def downloaded(self, commit: str) -> Path:
        """Return the place of a commit's bundle, as it was published."""
        return self._folder / commit

    def built(self, commit: str) -> Path:
        """Return the place of the bundle that is built of a commit's checkpoint."""
        return self._folder / f"{commit}-schema{SCHEMA}"

    def unfinished(self, commit: str) -> Path:
        """Return the folder that a commit's files are downloaded to, made if need be."""
        folder = self._folder / f"{commit}{_UNFINISHED}"
        make_private(folder)
        return folder

    def remove_unfinished(self) -> None:
        """Remove what interrupted downloads have left, also of commits that nobody asks for any more."""
        for folder in self._folder.glob(f"*{_UNFINISHED}"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Keep other processes and threads from fetching the same repository; yield the lock's descriptor.

        It ends with the last process that has the descriptor, however that ends.

        Raises:
            BundleError: the cache cannot be written, also by what the block does.
        """
        try:
            make_private(self._folder)
            descriptor = os.open(self._folder / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                self._wait_for(descriptor)
                yield descriptor
            finally:
                os.close(descriptor)
        except OSError as error:
            raise BundleError(
                f"{self._repository}: {error.filename or self._folder}: cannot be written: {error.strerror or error}; "
                "set XDG_CACHE_HOME to a folder of your own, with room for the bundle"
            ) from None

    def _wait_for(self, descriptor: int) -> None:
        with suppress(OSError):  # a file system without locks: work is done twice, and nothing is mixed
            if not lock(descriptor):
                note(f"{self._repository}: another process is fetching it; waiting for that")
                fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _pin(self, revision: str) -> Path:
        return self._folder / "refs" / quote(revision, safe="")


def put_in_place(folder: Path, target: Path) -> None:
    """Rename a finished folder to its place in the cache; a damaged one that is there is removed."""
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)


def damaged_file(folder: Path) -> str | None:
    """Return the first file of a bundle that is not as its manifest says; None if it is whole."""
    try:
        files = read_manifest(folder).files
    except BundleError:
        return MANIFEST
    return next((name for name, record in files.items() if not is_whole(folder / name, record)), None)


def is_whole(path: Path, record: FileRecord) -> bool:
    """Return whether a file is there, and as its record says."""
    try:
        return path.stat().st_size == record.bytes and sha256_of(path) == record.sha256
    except OSError:
        return False


def _hub_folder() -> Path:
    try:
        folder = cache_folder() / "hub"
        if is_private(folder, cache_folder()):
            return folder
    except (OSError, RuntimeError) as error:  # RuntimeError: the user has no home
        raise BundleError(
            f"bundles of the hub cannot be kept: {error}; set XDG_CACHE_HOME to a folder of your own"
        ) from None
    raise BundleError(
        f"bundles of the hub are not kept where others can write: {folder}, or what it is in; "
        f"chmod -R go-w {cache_folder()}, or set XDG_CACHE_HOME to a folder of your own"
    )
