"""Reads the weights of a TorchScript archive, OpenAI's ViT-B-16.pt for example, without running the code in it.

torch.jit.load compiles what an archive holds, and may run it. Here only its pickle of modules and tensors is read, and
of that only what modules, numbers, texts and tensors need.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export.checkpoint import CheckpointError

_PICKLE, _CONSTANTS = "data.pkl", "constants.pkl"
_MOST_WEIGHTS = 100_000
"""Of a module; those of shared parts count each time."""
_DTYPES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "BoolStorage": torch.bool,
    "ByteStorage": torch.uint8,
    "CharStorage": torch.int8,
    "ShortStorage": torch.int16,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
"""By the names that pickles have for storages of them."""
_READING_ERRORS = (
    *(OSError, EOFError, KeyError, ValueError, TypeError, AttributeError, IndexError, OverflowError, RuntimeError),
    *(zipfile.BadZipFile, pickle.UnpicklingError, ImportError, MemoryError, NotImplementedError),
)


class _Module:
    """A module of an archive: its attributes are the module's parameters, buffers, parts and settings."""


@dataclass(frozen=True)
class _Stored:
    """A tensor of an archive.

    Attributes:
        record: the name of the storage that holds it.
        kind: the kind of that storage, a key of `_DTYPES`.
    """

    record: str
    kind: str
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def is_torchscript(path: Path) -> bool:
    """Return whether a file is a TorchScript archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return _root(archive) is not None
    except (OSError, zipfile.BadZipFile):
        return False


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """Read the parameters and buffers of the module in an archive, in their stored dtype.

    Raises:
        CheckpointError: the archive is damaged, or holds more than modules, numbers, texts and tensors.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = _root(archive)
            module = _Unpickler(io.BytesIO(_stored(archive, f"{root}/{_PICKLE}"))).load()
            if not isinstance(module, _Module):
                raise ValueError(f"expected a module, got {type(module).__name__}")
            storages: dict[tuple[str, str], Tensor] = {}
            folder = f"{root}/data/"
            return {name: _tensor(value, archive, folder, storages) for name, value in _weights(module, {}).items()}
    except _READING_ERRORS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a TorchScript archive of a module: {reason}") from None


def _root(archive: zipfile.ZipFile) -> str | None:
    """Return the folder that all of an archive is in; None if it is not of TorchScript."""
    names = set(archive.namelist())
    roots = (folder for folder, _, file in (name.partition("/") for name in names) if file == _CONSTANTS)
    return next((root for root in roots if f"{root}/{_PICKLE}" in names), None)


def _weights(
    module: _Module, known: dict[_Module, dict[str, _Stored]], above: tuple[_Module, ...] = ()
) -> dict[str, _Stored]:
    """Return the tensors of a module and its parts, by their names in its state dict.

    Args:
        known: those of modules that were met before, as a part of several others may be.
    """
    if module in above:
        raise ValueError("a module holds itself")
    if module not in known:
        found: dict[str, _Stored] = {}
        for name, value in vars(module).items():
            if isinstance(value, _Stored):
                found[name] = value
            elif isinstance(value, _Module):
                parts = _weights(value, known, (*above, module))
                found |= {f"{name}.{part}": stored for part, stored in parts.items()}
            if len(found) > _MOST_WEIGHTS:
                raise ValueError(f"it has more than {_MOST_WEIGHTS} weights")
        known[module] = found
    return known[module]


def _tensor(stored: _Stored, archive: zipfile.ZipFile, folder: str, storages: dict[tuple[str, str], Tensor]) -> Tensor:
    key = (stored.record, stored.kind)
    if key not in storages:
        data = bytearray(_stored(archive, f"{folder}{stored.record}"))
        dtype = _DTYPES[stored.kind]
        storages[key] = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return storages[key].as_strided(stored.size, stored.stride, stored.offset)


def _stored(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return what an archive has under a name; as it is in the file, so that it is no larger."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError(f"{name} is compressed")
    return archive.read(info)


def _rebuild(storage: tuple[str, str], offset: int, size: Any, stride: Any, *_: object) -> _Stored:
    record, kind = storage
    return _Stored(record, kind, offset, tuple(size), tuple(stride))


def _same(value: object, *_: object) -> object:
    return value


_CALLABLES: Mapping[tuple[str, str], Callable[..., object]] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
    ("collections", "OrderedDict"): OrderedDict,
    **{
        ("torch.jit._pickle", name): _same
        for name in ("restore_type_tag", "build_intlist", "build_doublelist", "build_boollist", "build_tensorlist")
    },
}
"""What a pickle of modules may call."""


class _Unpickler(pickle.Unpickler):
    """Reads a pickle of modules; whatever else it names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return _Module
        if module == "torch" and name in _DTYPES:
            return name
        if (module, name) not in _CALLABLES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return _CALLABLES[module, name]

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        kind, storage, record, *_ = pid
        if kind != "storage" or storage not in _DTYPES:
            raise pickle.UnpicklingError(f"it names a {kind} {storage}")
        return str(record), storage
