"""What callers of TensorRT must keep to, and what it may do to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ContractError(AssertionError):
    """A use of TensorRT that its documentation forbids."""


@dataclass
class Faults:
    """What goes wrong on purpose.

    Attributes:
        parser_errors: the parser refuses every graph, with these words.
        says: what is logged as an error before None or False is returned.
        returns_nothing: names of calls that return None, or False where they return truth.
    """

    parser_errors: tuple[str, ...] = ()
    says: str = ""
    returns_nothing: frozenset[str] = frozenset()


@dataclass
class State:
    """What all objects of one double share.

    Attributes:
        version: of the TensorRT that it stands for.
        gpu: the name of the GPU that it builds for and loads on.
        calls: what was called, in order, with what.
    """

    version: str
    gpu: str
    faults: Faults
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    def call(self, name: str, *arguments: object) -> None:
        self.calls.append((name, arguments))

    def fails(self, name: str, logger: Any, error: Any) -> bool:
        """Whether a call is to fail; then it says why."""
        if name not in self.faults.returns_nothing:
            return False
        if self.faults.says:
            logger.log(error, self.faults.says)
        return True

    def times(self, name: str) -> int:
        return sum(called == name for called, _ in self.calls)


def require(holds: bool, what: str) -> None:
    if not holds:
        raise ContractError(what)


def require_initialized(thing: object, base: type) -> None:
    """pybind refuses objects whose class overrides __init__ without calling that of its base."""
    require(getattr(thing, "_base_was_initialized", False), f"{type(thing).__name__}: call {base.__name__}.__init__")
