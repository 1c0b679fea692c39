"""A bundle: the folder that the runtime loads, and its manifest. The one module that export/ shares with runtime/.

A bundle is written to a folder beside its place and renamed into it when complete, so an interrupted build leaves
whatever was there before. Every file's size and sha256 stand in the manifest and are checked when it is opened.
"""

from __future__ import annotations

import ctypes
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from runtime.errors import BundleError
from runtime.graph_contents import graph_contents

SCHEMA: Literal[1] = 1
_HASHED_AT_ONCE = 4
MANIFEST = "manifest.json"
_PROGRAM = "EPContext"
"""The operator by which ONNX Runtime's providers keep what they have compiled; TensorRT's is an executable."""

PositiveInt = Annotated[int, Field(gt=0)]
_NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"
FileName = Annotated[str, Field(pattern=f"^{_NAME}$")]
"""A file right inside the bundle: no separators, so no path in a manifest leaves its folder."""


MemoryPrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
BundleBackend: TypeAlias = Literal["cpu", "ort-cuda", "ort-tensorrt", "tensorrt"]
PlanHardware: TypeAlias = Literal["same", "same-capability", "ampere+"]
EnginePrecision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8", "fp8"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileRecord(_Part):
    """What a file must be."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


GraphName = Annotated[str, Field(pattern=rf"^{_NAME}\.onnx$")]
"""By another ending ONNX Runtime would take the file for its own format, in which nobody looks for what it reads."""


class EngineRecord(_Part):
    """One executable graph."""

    file: GraphName
    precision: EnginePrecision
    """Of its products; norms, sums and what would suffer are float32."""
    opset: PositiveInt
    largest_difference: float
    """Between the graph and the torch module it was made from, on random input: of the best log-probabilities as it is,
    of all else relative to the largest value."""


Shape: TypeAlias = tuple[PositiveInt, ...]


class ShapeRange(_Part):
    """The shapes of an input that a plan takes: at least, at best and at most."""

    least: Shape
    best: Shape
    most: Shape

    @model_validator(mode="after")
    def _rises(self) -> ShapeRange:
        sizes = list(zip(self.least, self.best, self.most, strict=True))
        if not all(low <= best <= high for low, best, high in sizes):
            raise ValueError(f"expected least <= best <= most, got {self.least}, {self.best}, {self.most}")
        return self


class PlanRecord(_Part):
    """A graph as TensorRT has built it, for one kind of GPU."""

    graph: FileName
    """What it was built from."""
    file: FileName
    key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    """A hash of all that it depends on: while that is the same it need not be built again."""
    tensorrt: str
    gpu: str
    compute_capability: str
    hardware: PlanHardware
    """What else may load it: no other GPU, those of the same compute capability, or all from Ampere on."""
    version_compatible: bool
    """Whether newer versions of the same major of TensorRT may load it."""
    profiles: tuple[dict[str, ShapeRange], ...]
    """The shapes it takes, by input, for each way of using it."""


class Architecture(_Part):
    """The backbone and its tokens: T = 1 cls + registers + (size / patch) ** 2 patches."""

    name: str
    width: PositiveInt
    depth: PositiveInt
    heads: PositiveInt
    patch: PositiveInt
    registers: Annotated[int, Field(ge=0)]
    size: PositiveInt
    """Side of the square input, in pixels."""
    resize: PositiveInt | None = None
    """What fit="crop" makes of an image's short side before it cuts out the centre; None for `size`."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    images_at_once: PositiveInt = 8
    """The most images that the backbone takes at once: its scratch memory grows with each, its speed hardly."""


class DecoderSettings(_Part):
    """The decoder: its cache is (regions, heads, steps, head_width) for the keys and the values of each layer."""

    width: PositiveInt
    layers: PositiveInt
    heads: PositiveInt
    head_width: PositiveInt
    steps: Annotated[int, Field(gt=0, le=4096)]
    vocabulary: PositiveInt
    end_id: Annotated[int, Field(ge=0)]
    cache: Literal["fp32", "fp16", "bf16"] = "fp32"
    """What the decoder's keys and values are in."""
    batches: Annotated[tuple[PositiveInt, ...], Field(min_length=1)] = (1, 4, 16, 64, 256)
    """How many captions are decoded at once, rising: more than the last are split; a GPU, which has memory and plans
    for just these numbers, fills them up."""


class MemorySettings(_Part):
    """The memory bank; a bundle for a noise-trained decoder has none."""

    embeddings: FileName
    captions: FileName
    rows: PositiveInt
    temperature: Annotated[float, Field(gt=0)]
    normalize: bool
    precision: MemoryPrecision = "fp32"
    """What the embeddings are stored in."""
    fine: FileName | None = None
    """What rounding to it left, where that is felt."""
    rounding: Annotated[float, Field(ge=0)] = 0.0
    """The most that rounding took from a row, as a share of its length."""
    best: Annotated[int, Field(ge=0)] = 0
    """How many rows nearest to a region are always taken with what rounding left of them."""


class Build(_Part):
    """Where a bundle came from."""

    checkpoint: str
    built_at: str
    machine: str
    versions: dict[str, str]


class Manifest(_Part):
    """All that the runtime must know of a bundle before it opens anything else."""

    schema_version: Literal[1] = SCHEMA
    backend: BundleBackend = "cpu"
    """What it was built for, and "auto" opens it with."""
    architecture: Architecture
    backbone: EngineRecord
    decoder: EngineRecord
    reencoder: EngineRecord | None = None
    """The backbone's last block by itself; bundles from before it existed have none."""
    beam_decoder: EngineRecord | None = None
    """The decoder for beam search, on the same weights; bundles from before it existed have none."""
    plans: tuple[PlanRecord, ...] = ()
    """What TensorRT has built of the graphs; none in a bundle for other backends."""
    decoding: DecoderSettings
    memory: MemorySettings | None
    tokenizer: FileName
    build: Build
    files: dict[FileName, FileRecord]

    @property
    def engines(self) -> tuple[EngineRecord, ...]:
        """All that it has."""
        return tuple(
            engine for engine in (self.backbone, self.decoder, self.reencoder, self.beam_decoder) if engine is not None
        )

    @model_validator(mode="after")
    def _lists_what_it_uses(self) -> Manifest:
        used = [*(engine.file for engine in self.engines), self.tokenizer]
        used += [plan.file for plan in self.plans]
        used += [self.memory.embeddings, self.memory.captions] if self.memory else []
        used += [self.memory.fine] if self.memory and self.memory.fine else []
        for name in used:
            if name not in self.files:
                raise ValueError(f"files: {name} is used but not listed")
        return self


class Bundle:
    """An opened bundle folder: its manifest, and its files by name.

    Args:
        folder: the bundle's folder.
        verify: also compare the sha256 of every file; without it only presence and size are checked.

    Raises:
        BundleError: no bundle there; a newer schema; a file missing, truncated or altered; a graph that reads other
            files or holds a program.
    """

    def __init__(self, folder: str | os.PathLike[str], verify: bool = True) -> None:
        self.folder = Path(folder)
        self.manifest = _read_manifest(self.folder)
        self.check_files(contents=verify)
        for engine in self.manifest.engines:
            self._check_graph(engine.file)

    def path(self, name: str) -> Path:
        """Where a file that the manifest lists lies."""
        return self.folder / name

    def check_files(self, contents: bool = True) -> None:
        """Compares every file with the manifest: presence and size, and with ``contents`` the sha256."""
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
        with ThreadPoolExecutor(_HASHED_AT_ONCE) as threads:  # hashing lets other threads go on
            largest_first = sorted(self.manifest.files, key=lambda name: -self.manifest.files[name].bytes)
            for name, found in zip(largest_first, threads.map(sha256_of, map(self.path, largest_first)), strict=True):
                if found != self.manifest.files[name].sha256:
                    raise BundleError(
                        f"{self.path(name)}: altered: its sha256 is not the manifest's; build the bundle again"
                    )

    def _check_graph(self, name: str) -> None:
        contents = graph_contents(self.path(name))
        if outside := sorted(contents.files - set(self.manifest.files)):
            raise BundleError(
                f"{self.path(name)}: its weights are in {outside[0]!r}, which is no file of the bundle; build it again"
            )
        if _PROGRAM in contents.operators:
            raise BundleError(
                f"{self.path(name)}: holds a compiled engine ({_PROGRAM}), which is a program and may do anything; "
                "build the bundle from its checkpoint"
            )


@contextmanager
def new_bundle(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder to write a bundle's files into; it becomes ``folder`` when the block ends, and is gone when it fails.

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
    """Removes what builds of ``target`` left that were killed."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.building-*"):
        maker = folder.name.removeprefix(f".{target.name}.building-").split("-")[0]
        if maker.isdecimal() and not _is_running(int(maker)):
            shutil.rmtree(folder, ignore_errors=True)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:  # it is another user's
        return True
    return True


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Writes the manifest and sees all files onto the disk, so that the rename that follows publishes whole ones."""
    for name in manifest.files:
        _sync(folder / name)
    path = folder / MANIFEST
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
    _sync(path)


def record_files(folder: Path) -> dict[str, FileRecord]:
    """The records of all files in a folder, by name."""
    return {
        path.name: FileRecord(bytes=path.stat().st_size, sha256=sha256_of(path)) for path in sorted(folder.iterdir())
    }


def sha256_of(path: Path) -> str:
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
        place = ".".join(str(step) for step in first["loc"]) or "the whole file"
        if first["loc"] == ("schema_version",):
            raise BundleError(
                f"{path}: schema {first['input']!r}, but this version reads schema {SCHEMA}; "
                "update patchcaption or build the bundle again"
            ) from None
        raise BundleError(f"{path}: {place}: {first['msg']}; build the bundle again") from None


def _swap(work: Path, target: Path) -> None:
    """Puts ``work`` where ``target`` is; what was there is left at ``work`` or removed."""
    if not target.exists():
        work.rename(target)
    elif not _exchange(work, target):  # then the old one steps aside, and comes back should the second rename fail
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
    """Whether a file could not be written. Libraries written in Rust have errors of their own for that, which end in
    "(os error 28)"."""
    return isinstance(error, OSError) or "(os error " in str(error)


def _exchange(one: Path, other: Path) -> bool:
    """Swaps two folders in one step, so that there is no moment without a bundle; False where the system cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)  # Linux; Python has no name for it
    here, exchange = -100, 2
    return renameat2 is not None and renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
