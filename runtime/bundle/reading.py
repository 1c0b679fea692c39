"""Opens a bundle: reads its manifest, and compares every file's size and sha256 with it."""

from __future__ import annotations

import hashlib
import os
import reprlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import ValidationError

from runtime.bundle.admission import admit, engine_contract
from runtime.bundle.contract import GraphContract
from runtime.bundle.engine_files import EngineFiles
from runtime.bundle.held_file import HeldFile
from runtime.bundle.manifest import MANIFEST, SCHEMA, EngineName, Manifest
from runtime.errors import BundleError
from runtime.system.process_bound import ProcessBound

_HASHING_THREADS = 4
_MAX_MANIFEST_BYTES = 2**22
"""A thousand times those that are written."""
_MOST_KEY_CHARACTERS = 255
"""As names of files have."""
_DESCRIPTIONS: dict[EngineName, str] = {
    "reencoder": "a re-encoder, which some families of backbones do not have",
    "beam_decoder": "a decoder for beam search; build the bundle again",
}


class Bundle(ProcessBound):
    """An opened bundle folder: its manifest, and its files by name, which it holds open.

    What is read of them later, in any thread, is what was there when the bundle was opened, also after a build has
    exchanged the folder.

    Args:
        folder: the bundle's folder.
        verify: also compare the sha256 of every file; without it only presence and size are checked.

    Raises:
        BundleError: no bundle there; a newer schema; a file missing, truncated, altered, or a link; a graph that the
            exporter would not write for what the manifest says.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = True) -> None:
        self.folder = Path(folder)
        folder_fd = _open_folder(self.folder)
        try:
            self._manifest_file = HeldFile(self.folder / MANIFEST, folder_fd, _MAX_MANIFEST_BYTES)
            self.manifest = _parse_manifest(self._manifest_file)
            self._files = {name: HeldFile(self.path(name), folder_fd) for name in self.manifest.files}
        finally:
            os.close(folder_fd)
        self._check_files(contents=verify)
        self._weight_files: dict[str, list[str]] = {}  # by graph
        for name in self.manifest.engines:
            self._admit_graph(name)

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        return self.folder / name

    def file(self, name: str) -> HeldFile:
        """Return a file that the manifest lists."""
        return self._files[name]

    def manifest_sha256(self) -> str:
        """Return the sha256 of the manifest, which stands for the whole bundle."""
        return self._manifest_file.sha256()

    def engine(self, name: EngineName) -> EngineFiles:
        """Return the files of an engine.

        Raises:
            BundleError: the bundle was built without it.
        """
        record = self.manifest.engines.get(name)
        if record is None:
            raise BundleError(f"{self.folder}: it was built without {_DESCRIPTIONS.get(name, name)}")
        plan = next((plan for plan in self.manifest.plans if plan.graph == record.file), None)
        return EngineFiles(
            self.path(record.file),
            record.precision,
            None if plan is None else (plan, self.path(plan.file)),
            self._sha256_of_graph(record.file),
            held=tuple(self.file(file) for file in (record.file, *self._weight_files[record.file])),
            held_plan=None if plan is None else self._files.get(plan.file),
            contract=GraphContract.of(name, self.manifest),
        )

    def _check_files(self, contents: bool) -> None:
        """Compare every file with the manifest: its size, and with ``contents`` the sha256.

        Raises:
            BundleError: names the first file that is truncated or altered.
        """
        for name, record in self.manifest.files.items():
            path, size = self.path(name), self.file(name).size
            if size != record.bytes:
                kind = "truncated" if size < record.bytes else "altered"
                raise BundleError(f"{path}: {kind}: expected {record.bytes} bytes, got {size}; build the bundle again")
        if not contents:
            return
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:  # hashing releases the interpreter's lock
            largest_first = sorted(self.manifest.files, key=lambda name: -self.manifest.files[name].bytes)
            hashes = threads.map(lambda name: self.file(name).sha256(), largest_first)
            for name, found in zip(largest_first, hashes, strict=True):
                if found != self.manifest.files[name].sha256:
                    raise BundleError(
                        f"{self.path(name)}: altered: its sha256 is not the manifest's; build the bundle again"
                    )

    def _sha256_of_graph(self, name: str) -> str:
        """Return one hash of those that the manifest records of a graph and the files that its weights are in."""
        recorded = [self.manifest.files[file].sha256 for file in (name, *self._weight_files[name])]
        return hashlib.sha256("".join(recorded).encode()).hexdigest()

    def _admit_graph(self, name: EngineName) -> None:
        """Raise unless a graph may be given to an executor."""
        file = self.manifest.engines[name].file
        graph = admit(self.file(file), engine_contract(self.manifest, name), self._files)
        self._weight_files[file] = sorted(graph.files)


def read_manifest(folder: Path) -> Manifest:
    """Return the manifest of a bundle whose files may be missing or damaged.

    Raises:
        BundleError: it is missing, or no manifest of this version's schema.
    """
    return _parse_manifest(HeldFile(folder / MANIFEST, max_bytes=_MAX_MANIFEST_BYTES))


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _open_folder(folder: Path) -> int:
    """Return a descriptor of a bundle's folder, in which its files are looked up: all of one bundle, whatever happens.

    Raises:
        BundleError: there is no bundle.
    """
    try:
        (folder / MANIFEST).lstat()
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder}: no bundle there ({MANIFEST} is missing); build one: patchcaption build demo --out {folder}"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder}: cannot be read: {error.strerror}") from None
    except ValueError as error:  # a name with a zero in it, or that no file system encodes
        raise BundleError(f"{str(folder)!r}: cannot be read: {error}") from None


def _parse_manifest(file: HeldFile) -> Manifest:
    path = file.path
    try:
        text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("schema_version",):
            raise BundleError(
                f"{path}: schema {reprlib.repr(first['input'])}, but this version reads schema {SCHEMA}; "
                "update patchcaption or build the bundle again"
            ) from None
        where = "".join(f"{_shown(step)}." for step in first["loc"]).removesuffix(".")
        message = first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{path}: {f'{where}: ' if where else ''}{message}; build the bundle again") from None


def _shown(step: int | str) -> str:
    """Return a key of a manifest, which may be any text, for a message."""
    return str(step) if len(str(step)) <= _MOST_KEY_CHARACTERS else reprlib.repr(step)
