"""Writes a bundle whole or not at all.

It is written to a folder beside its place and renamed into it when complete, so an interrupted build leaves
whatever was there before.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from runtime.bundle.manifest import MANIFEST, FileName, FileRecord, Manifest
from runtime.bundle.reading import sha256_of
from runtime.errors import BundleError
from runtime.system.files import follow_links, lock
from runtime.system.signals import uninterrupted

_BUILDING, _BUNDLE, _LOCK = ".building-", "bundle", "lock"


class _Inventory(BaseModel):
    """What the manifest of every schema says of the bundle's files."""

    schema_version: int
    engines: dict[str, object]
    files: dict[FileName, FileRecord]


@contextmanager
def new_bundle(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder for a bundle's files; it becomes ``folder`` when the block ends, and is removed on failure.

    What is there is replaced only if it is a bundle and nothing else. Of a symbolic link, what it leads to is replaced.

    Raises:
        BundleError: ``folder`` is something other than a bundle, or the disk is full.
    """
    with new_folder(folder, _check_replaceable) as work:
        yield work


@contextmanager
def new_folder(
    folder: str | os.PathLike[str], check_replaceable: Callable[[Path], None], beside: Path | None = None
) -> Iterator[Path]:
    """Yield an empty folder that becomes ``folder`` when the block ends, and is removed on failure.

    Args:
        check_replaceable: raises if what is at a path, if anything, may not be replaced.
        beside: what it is beside meanwhile, if a folder can be renamed from there; else it is beside ``folder``.

    Raises:
        BundleError: the disk is full or cannot be written to.
    """
    try:
        target = follow_links(Path(os.path.abspath(folder)))
        check_replaceable(target)
        target.parent.mkdir(parents=True, exist_ok=True)
        place = target if beside is None else _near(beside.absolute(), target)
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written to: {error.strerror}") from None
    with _building_site(place) as site:
        work = site / _BUNDLE
        try:
            work.mkdir()
            yield work
            check_replaceable(target)  # it took minutes
            with uninterrupted():
                _swap(work, target)
        except Exception as error:
            if not _is_write_failure(error):
                raise
            free_mib = shutil.disk_usage(target.parent).free // 2**20
            raise BundleError(
                f"{target}: not built: {error}; is the disk full? {free_mib} MiB are free; what was there is untouched"
            ) from error


def _check_replaceable(target: Path) -> None:
    """Raise if a build would remove something that is not of a bundle.

    Raises:
        BundleError: names the first of it.
    """
    try:
        names = sorted(path.name for path in target.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise BundleError(
            f"{target}: exists and is no bundle ({error.strerror}); choose another --out or remove it"
        ) from None
    if not names:
        return
    try:
        if not _is_regular(target / MANIFEST):
            raise FileNotFoundError
        known = {MANIFEST, *_Inventory.model_validate_json((target / MANIFEST).read_bytes()).files}
    except (OSError, ValidationError):
        raise BundleError(
            f"{target}: exists and is no bundle: {names[0]} would be lost; choose another --out or remove it"
        ) from None
    for name in names:
        if name not in known or not _is_regular(target / name):
            raise BundleError(
                f"{target}: {name} is no file of the bundle there, and would be lost; move it, or choose another --out"
            )


def _is_regular(path: Path) -> bool:
    return stat.S_ISREG(path.lstat().st_mode)


@contextmanager
def _building_site(target: Path) -> Iterator[Path]:
    """Yield a folder beside ``target`` to build in, which is removed at the end, however that comes."""
    claimed: list[tuple[Path, int]] = []
    try:
        with uninterrupted():  # or a signal could come between making it and knowing it
            claimed.append(_prepare_site(target))
        yield claimed[0][0]
    finally:
        with uninterrupted():
            for site, descriptor in claimed:
                shutil.rmtree(site, ignore_errors=True)
                os.close(descriptor)


def _near(place: Path, target: Path) -> Path:
    """Return ``place`` if what is made beside it can be renamed to ``target``, else ``target``."""
    is_near = place.parent.stat().st_dev == target.parent.stat().st_dev
    return place if is_near and os.access(place.parent, os.W_OK) else target


def _prepare_site(target: Path) -> tuple[Path, int]:
    try:
        _remove_leftovers(target)
        return _claim_site(target)
    except OSError as error:
        raise BundleError(f"{target.parent}: cannot be written to: {error.strerror}") from None


def _claim_site(target: Path) -> tuple[Path, int]:
    """Make a folder beside ``target`` to build in.

    Returns:
        the folder, and the descriptor of the lock in it, which tells other builds that it is in use.
    """
    while True:
        site = Path(tempfile.mkdtemp(prefix=f".{target.name}{_BUILDING}", dir=target.parent))
        try:
            descriptor = os.open(site / _LOCK, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        except FileNotFoundError:  # another build has just removed it, as it had no lock
            continue
        try:
            is_ours = lock(descriptor) and os.fstat(descriptor).st_nlink > 0  # or another build is removing it
        except OSError:  # without locks no build takes it for a leftover
            is_ours = True
        if is_ours:
            return site, descriptor
        os.close(descriptor)


def _remove_leftovers(target: Path) -> None:
    """Remove the folders that killed builds of ``target`` left: those whose lock nobody holds any more."""
    for site in target.parent.glob(f".{glob.escape(target.name)}{_BUILDING}*"):
        try:
            descriptor = os.open(site / _LOCK, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            with suppress(OSError):
                site.rmdir()  # killed before it had a lock, it is empty
            continue
        with suppress(OSError):
            if lock(descriptor):
                shutil.rmtree(site, ignore_errors=True)
        os.close(descriptor)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest and syncs all files to disk, so that the rename that follows publishes whole files."""
    for name in manifest.files:
        _sync(folder / name)
    path = folder / MANIFEST
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _sync(path)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """Return the record of every file in a folder, by name."""
    return {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
    }


def _swap(work: Path, target: Path) -> None:
    """Put ``work`` in the place of ``target``; what was there is left at ``work`` or removed."""
    if not target.exists():
        work.rename(target)
    elif not _exchange(work, target):  # move the old one aside, and back should the second rename fail
        aside = Path(tempfile.mkdtemp(prefix=f"{target.name}.old-", dir=target.parent))
        target.rename(aside / target.name)
        try:
            work.rename(target)
        except BaseException:
            (aside / target.name).rename(target)
            raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_write_failure(error: Exception) -> bool:
    """Return whether a file could not be written. Libraries written in Rust report that as "... (os error 28)"."""
    return isinstance(error, OSError) or "(os error " in str(error)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders atomically, so that there is no moment without a bundle; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; not in Python's os
    current_folder, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return renameat2 is not None and (
        renameat2(current_folder, os.fsencode(one), current_folder, os.fsencode(other), exchange) == 0
    )


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
