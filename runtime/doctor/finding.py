"""One line of an examination."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["pass", "fail", "not here"]


@dataclass(frozen=True)
class Finding:
    """What was looked at, and what was found.

    Attributes:
        subject: what was looked at.
        state: it works, it does not, or there is none and nothing asked for it.
        detail: what was found, with its numbers.
        fix: what to do about it; of failures only.
    """

    subject: str
    state: State
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{self.state:<9} {self.subject:<28} {self.detail}{fix}"
