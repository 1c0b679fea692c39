"""Reads pickles that others made, of a tensor or of plain containers, without running code in them.

`pickle.load` calls whatever a file names, and takes the memory that it declares. Here a file is walked through first:
only plain operations, no place in the memo that it does not reach. Then nothing but a few names is found, and none of
them makes more than the file holds.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from export.checkpoint import CheckpointError

_Globals: TypeAlias = Mapping[tuple[str, str], Callable[..., Any]]

_PLAIN = """
PROTO FRAME STOP MARK POP POP_MARK DUP GLOBAL STACK_GLOBAL REDUCE
NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT
STRING BINSTRING SHORT_BINSTRING UNICODE SHORT_BINUNICODE BINUNICODE BINUNICODE8 BINBYTES SHORT_BINBYTES BINBYTES8
EMPTY_LIST APPEND APPENDS LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS
EMPTY_SET ADDITEMS
GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
"""
_OPERATIONS = frozenset(_PLAIN.split())
_NAMING = ("GLOBAL", "STACK_GLOBAL", "INST")
"""The operations that ask for a name; the second of them for what two texts before it say, most likely the last two."""
_MOST_TUPLES = 1000
"""Tuples within tuples are hashed one within another, which a stack has room for so many times."""

_STORAGE_HEAD = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""The beginning of the torch file that a pickled storage is, in the format before zip."""
_STORAGE_PICKLES = 5
"""The pickles of such a file: a number that marks it, its version, the machine, the storage and its key."""
_STORAGE_OPERATIONS = (_OPERATIONS - {"STACK_GLOBAL"}) | {"BINPERSID"}
_STORAGE_GLOBAL = re.compile(r"torch\.\w+Storage|collections\.OrderedDict")


def read_tensor_pickle(path: Path) -> Tensor:
    """Read a pickle of one tensor, in its stored dtype.

    Raises:
        CheckpointError: the file is none, asks for anything else, or declares more numbers than it holds.
    """
    storages: list[Any] = []

    def load_storage(data: bytes) -> Any:
        if storages:  # each call would take as much memory as the first one
            raise CheckpointError(f"{path}: expected a tensor with one storage, got several")
        storages.append(_load_storage(data, path))
        return storages[0]

    loaded = _load(
        path,
        {
            ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
            ("torch.storage", "_load_from_bytes"): load_storage,
            ("collections", "OrderedDict"): OrderedDict,
        },
    )
    if not isinstance(loaded, Tensor):
        raise CheckpointError(f"{path}: expected a tensor, got {type(loaded).__name__}")
    return loaded


def read_container_pickle(path: Path) -> Any:
    """Read a pickle of dicts, lists, tuples and sets of texts and numbers.

    Raises:
        CheckpointError: the file is none, or asks for anything else.
    """
    room = path.stat().st_size if path.is_file() else 0

    def make_set(items: Iterable[Any] = ()) -> set[Any]:
        nonlocal room
        made = set(items)
        room -= len(made)
        if room < 0:  # one list made a set of again and again
            raise CheckpointError(f"{path}: expected sets that the file holds, got more")
        return made

    return _load(path, {("builtins", "set"): make_set, ("__builtin__", "set"): make_set})  # the latter of Python 2


class _DataUnpickler(pickle.Unpickler):
    """An unpickler that finds nothing but a few names."""

    def __init__(self, data: bytes, path: Path, known: _Globals) -> None:
        super().__init__(io.BytesIO(data))
        self._path, self._known = path, known

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._known:
            raise _refusal(self._path, f"{module}.{name}")
        return self._known[module, name]


def _load(path: Path, known: _Globals) -> Any:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        _check_operations(io.BytesIO(data), path, _OPERATIONS, {".".join(name) for name in known}.__contains__)
        return _DataUnpickler(data, path, known).load()
    except CheckpointError:
        raise
    except Exception as error:  # a file that is no pickle can raise any
        raise CheckpointError(f"{path}: not a pickle: {_reason(error)}") from None


def _check_operations(file: io.BytesIO, path: Path, allowed: frozenset[str], is_known: Callable[[str], object]) -> str:
    """Walk through one pickle, whose operations are not executed; return the first unknown name that it asks for.

    Args:
        allowed: the operations that it may have.
        is_known: says whether a name, such as "collections.OrderedDict", may be asked for.

    Raises:
        CheckpointError: an operation is not among those allowed, with a name that is asked for before it if that is not
            known; or one takes more than the file can need.
    """
    tuples, texts, unknown = 0, ["", ""], ""
    operations: Iterable[tuple[pickletools.OpcodeInfo, Any, int | None]] = pickletools.genops(file)
    for number, (operation, argument, _) in enumerate(operations):
        name = operation.name
        if name in _NAMING:
            asked = ".".join(texts if argument is None else argument.split(" ", 1))
            unknown = unknown or ("" if is_known(asked) else asked)
        if name not in allowed:
            raise _refusal(path, unknown or f"the operation {name}")
        if name in ("PUT", "LONG_BINPUT") and not 0 <= argument <= number:
            raise CheckpointError(f"{path}: expected a memo of at most {number} objects, got place {argument}")
        if isinstance(argument, str):
            texts = [texts[-1], argument]
        tuples += name.startswith("TUPLE")
    if tuples > _MOST_TUPLES:
        raise CheckpointError(f"{path}: expected at most {_MOST_TUPLES} tuples, got {tuples}")
    return unknown


def _load_storage(data: bytes, path: Path) -> Any:
    """Return the storage in a torch file that lies within a pickle."""
    if not isinstance(data, bytes) or not data.startswith(_STORAGE_HEAD):
        raise CheckpointError(f"{path}: expected a storage as torch pickles it")
    file = io.BytesIO(data)
    for _ in range(_STORAGE_PICKLES):
        unknown = _check_operations(file, path, _STORAGE_OPERATIONS, _STORAGE_GLOBAL.fullmatch)
        if unknown:
            raise _refusal(path, unknown)
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # as in `_load`
        raise CheckpointError(f"{path}: its storage cannot be read: {_reason(error)}") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise CheckpointError(f"{path}: expected a storage as torch pickles it, got {type(storage).__name__}")
    return storage


def _rebuild_tensor(storage: Any, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> Tensor:
    """Return a tensor on a storage, as `torch._utils._rebuild_tensor_v2` does, which would make the storage larger."""
    numbers = torch.tensor([], dtype=storage.dtype).set_(storage)
    tensor = numbers.as_strided(size, stride, offset)
    if tensor.numel() > numbers.numel():
        raise ValueError(f"expected at most {numbers.numel()} numbers, got the shape {tuple(tensor.shape)}")
    return tensor


def _refusal(path: Path, what: str) -> CheckpointError:
    return CheckpointError(f"{path}: refused: it asks for {what}, and a file of data has no need of that")


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
