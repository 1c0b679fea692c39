"""The contract that callers of TensorRT must keep, and the faults that it may show them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class ContractError(AssertionError):
    """A use of TensorRT that its documentation forbids."""


@dataclass
class Faults:
    """Faults to show on purpose.

    Attributes:
        parser_errors: the parser refuses every graph with these errors.
        logged_error: logged before None or False is returned; "" logs nothing.
        returns_nothing: names of calls that return None, or False where they return True otherwise.
    """

    parser_errors: tuple[str, ...] = ()
    logged_error: str = ""
    returns_nothing: frozenset[str] = frozenset()


@dataclass
class State:
    """The state that all objects of one double share.

    Attributes:
        version: of the TensorRT that it stands for.
        gpu: the name of the GPU that it builds for and loads on.
        is_rtx: whether it stands for TensorRT for RTX, which has the interface of 11.
        calls: names and arguments of calls, in order.
    """

    version: str
    gpu: str
    faults: Faults
    is_rtx: bool = False
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(part) for part in self.version.split("."))

    def call(self, name: str, *arguments: object) -> None:
        self.calls.append((name, arguments))

    def fails(self, name: str, logger: Any) -> bool:
        """Return whether a call is to fail; log the error if it is."""
        if name not in self.faults.returns_nothing:
            return False
        if self.faults.logged_error:
            logger.log(logger.Severity.ERROR, self.faults.logged_error)
        return True

    def count(self, name: str) -> int:
        """Return how often a call was made."""
        return sum(called == name for called, _ in self.calls)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ContractError(message)
