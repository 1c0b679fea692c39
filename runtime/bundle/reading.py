"""Opens a bundle: reads its manifest, and compares every file's size and sha256 with it."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from runtime.bundle.admission import admit, engine_contract
from runtime.bundle.manifest import MANIFEST, SCHEMA, EngineName, EnginePrecision, Manifest, PlanRecord
from runtime.errors import BundleError

_HASHING_THREADS = 4
_DESCRIPTIONS: dict[EngineName, str] = {"reencoder": "a re-encoder", "beam_decoder": "a decoder for beam search"}


@dataclass(frozen=True)
class EngineFiles:
    """The files that a backend opens: a graph, and the TensorRT plan that was built of it, if one was.

    Attributes:
        graph: the ONNX file; its weights may lie beside it.
        precision: of its matrix products.
        plan: the plan's record and file.
        sha256: of the contents of the graph and its weights; "" where nothing records them.
    """

    graph: Path
    precision: EnginePrecision = "fp32"
    plan: tuple[PlanRecord, Path] | None = None
    sha256: str = ""


class Bundle:
    """An opened bundle folder: its manifest, and its files by name.

    Args:
        folder: the bundle's folder.
        verify: also compare the sha256 of every file; without it only presence and size are checked.

    Raises:
        BundleError: no bundle there; a newer schema; a file missing, truncated or altered; a graph that the exporter
            would not write for what the manifest says.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.check_files(contents=verify)
        self._weight_files: dict[str, list[str]] = {}  # by graph
        for name in self.manifest.engines:
            self._admit_graph(name)

    def path(self, name: str) -> Path:
        """Return the path of a file that the manifest lists."""
        return self.folder / name

    def engine(self, name: EngineName) -> EngineFiles:
        """Return the files of an engine.

        Raises:
            BundleError: the bundle was built without it.
        """
        record = self.manifest.engines.get(name)
        if record is None:
            raise BundleError(
                f"{self.folder}: it was built without {_DESCRIPTIONS.get(name, name)}; build the bundle again"
            )
        plan = next((plan for plan in self.manifest.plans if plan.graph == record.file), None)
        return EngineFiles(
            self.path(record.file),
            record.precision,
            None if plan is None else (plan, self.path(plan.file)),
            self._sha256_of_graph(record.file),
        )

    def check_files(self, contents: bool = True) -> None:
        """Compare every file with the manifest: presence and size, and with ``contents`` the sha256.

        Raises:
            BundleError: names the first file that is missing, truncated or altered.
        """
        for name, record in self.manifest.files.items():
            path = self.path(name)
            if not path.is_file():
                raise BundleError(f"{path}: missing; build the bundle again")
            size = path.stat().st_size
            if size != record.bytes:
                kind = "truncated" if size < record.bytes else "altered"
                raise BundleError(f"{path}: {kind}: expected {record.bytes} bytes, got {size}; build the bundle again")
        if not contents:
            return
        with ThreadPoolExecutor(_HASHING_THREADS) as threads:  # hashing releases the interpreter's lock
            largest_first = sorted(self.manifest.files, key=lambda name: -self.manifest.files[name].bytes)
            for name, found in zip(largest_first, threads.map(sha256_of, map(self.path, largest_first)), strict=True):
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
        sizes = {other: record.bytes for other, record in self.manifest.files.items()}
        graph = admit(self.path(file), engine_contract(self.manifest, name), sizes)
        self._weight_files[file] = sorted(graph.files)


def sha256_of(path: Path) -> str:
    """Return the sha256 of a file's contents, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise BundleError(
            f"{folder}: no bundle there ({MANIFEST} is missing); build one: "
            f"python export/build_engines.py demo --out {folder}"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: cannot be read: {error}") from None
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        if first["loc"] == ("schema_version",):
            raise BundleError(
                f"{path}: schema {first['input']!r}, but this version reads schema {SCHEMA}; "
                "update patchcaption or build the bundle again"
            ) from None
        where = "".join(f"{step}." for step in first["loc"]).removesuffix(".")
        message = first["msg"].removeprefix("Value error, ")
        raise BundleError(f"{path}: {f'{where}: ' if where else ''}{message}; build the bundle again") from None
