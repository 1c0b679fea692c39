"""Writes a bundle whole or not at all.

It is written to a folder beside its place and renamed into it when complete, so an interrupted build leaves
whatever was there before.
"""

from __future__ import annotations

import ctypes
import glob
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runtime.bundle.manifest import MANIFEST, FileRecord, Manifest
from runtime.bundle.reading import sha256_of
from runtime.errors import BundleError


@contextmanager
def new_bundle(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a folder for a bundle's files; it becomes ``folder`` when the block ends, and is removed on failure.

    Raises:
        BundleError: ``folder`` is something other than a bundle, or the disk is full.
    """
    target = Path(os.path.abspath(folder))
    if target.exists() and not (target / MANIFEST).is_file() and (not target.is_dir() or any(target.iterdir())):
        raise BundleError(f"{target}: exists and is no bundle; choose another --out or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(target)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}.building-{os.getpid()}-", dir=target.parent))
    except OSError as error:
        raise BundleError(f"{target.parent}: cannot be written to: {error.strerror}") from None
    try:
        yield work
        work.chmod(0o755)  # mkdtemp makes it private
        _swap(work, target)
    except Exception as error:
        if not _is_write_failure(error):
            raise
        free_mib = shutil.disk_usage(target.parent).free // 2**20
        raise BundleError(
            f"{target}: not built: {error}; is the disk full? {free_mib} MiB are free; what was there is untouched"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _remove_leftovers(target: Path) -> None:
    """Remove the folders that killed builds of ``target`` left."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.building-*"):
        process_id = folder.name.removeprefix(f".{target.name}.building-").split("-")[0]
        if process_id.isdecimal() and not _is_running(int(process_id)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except OSError:  # another user's process
        return True
    return True


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
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.old-", dir=target.parent))
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
