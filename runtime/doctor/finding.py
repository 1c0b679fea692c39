"""One finding of the doctor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["pass", "fail", "unavailable", "advice"]


@dataclass(frozen=True)
class Finding:
    """One thing that was checked, and the result.

    Attributes:
        subject: what was checked.
        state: it works, it does not, it is not on this machine and nothing asked for it, or it would be faster.
        detail: the result, with its numbers.
        fix: what to do about it; of failures only.
    """

    subject: str
    state: State
    detail: str
    fix: str = ""

    def __str__(self) -> str:
        fix = f"; fix: {self.fix}" if self.fix else ""
        return f"{self.state:<11} {self.subject:<28} {self.detail}{fix}"
