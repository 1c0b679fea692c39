"""NVIDIA's own bindings (TensorRT for RTX), and classes that refuse what pybind refuses."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cache, wraps
from typing import Any, ClassVar, ParamSpec, TypeVar

from runtime.backends.tensorrt.rtx import open_tensorrt_rtx

P = ParamSpec("P")
T = TypeVar("T")


@cache
def real_tensorrt() -> Any:
    """Return NVIDIA's bindings, which are those of TensorRT 11: a parser and a builder that need no GPU.

    They are opened once, before a double takes their name in `sys.modules`.
    """
    return open_tensorrt_rtx().module


class Enumeration:
    """What pybind makes of a C++ enumeration: it has names and numbers, but is neither an int nor iterable."""

    __members__: ClassVar[dict[str, Any]]
    name: str
    value: int

    def __int__(self) -> int:
        return self.value

    def __index__(self) -> int:
        return self.value

    def __repr__(self) -> str:
        return f"<{type(self).__name__}.{self.name}: {self.value}>"


def enumeration(name: str, members: Mapping[str, int]) -> Any:
    """Return an enumeration of these members."""
    made: Any = type(name, (Enumeration,), {"__members__": {}})
    for member, number in members.items():
        one = made()
        one.name, one.value = member, number
        made.__members__[member] = one
        setattr(made, member, one)
    return made


def numbered(names: Iterable[str]) -> dict[str, int]:
    return {name: number for number, name in enumerate(names)}


def member_of(kind: type[Enumeration], value: object) -> Enumeration:
    """Return ``value``; raise for what is no member, as pybind does for a number too."""
    if not isinstance(value, kind):
        raise TypeError(f"incompatible function arguments: expected {kind.__name__}, got {value!r}")
    return value


def bound(method: Callable[P, T]) -> Callable[P, T]:
    """Make a method refuse arguments as pybind does: those of other types than it is annotated with."""
    signature = inspect.signature(method)

    @wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            is_accepted = _ACCEPTS.get(signature.parameters[name].annotation)
            if is_accepted is not None and not is_accepted(value):
                raise TypeError(f"{method.__name__}(): incompatible function arguments: {name}={value!r}")
        return method(*args, **kwargs)

    return checked


_ACCEPTS: dict[str, Callable[[Any], bool]] = {  # by annotations, as they are written
    "int": lambda value: hasattr(value, "__index__"),
    "str": lambda value: isinstance(value, str),
    "tuple[int, ...]": lambda value: isinstance(value, (tuple, list, real_tensorrt().Dims)),
}


class IHostMemory:
    """The result of a builder: bytes behind the buffer protocol, which are not `bytes` and have no length.

    Before Python 3.12 a class cannot have that protocol: `__bytes__` stands for it.
    """

    __slots__ = ("_data",)

    def __init__(self, data: bytes) -> None:
        self._data = data

    @property
    def nbytes(self) -> int:
        return len(self._data)

    def __bytes__(self) -> bytes:
        return self._data

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._data)
