"""How vectors become words: the options of `Captioner.describe` for what comes after the vectors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, cast

from runtime.decoding.beam_search import check_beams
from runtime.errors import PatchcaptionError
from runtime.options import DescribeOptions, Mode, Score, VectorOptions


@dataclass(frozen=True)
class Wording:
    """Vectors of equal wording may be decoded together.

    Attributes:
        mode, score, n_best, beams, length_penalty: as in `Captioner.describe`.
        in_text_space: the vectors are there already, and are not projected.

    Raises:
        PatchcaptionError: an option has no such value.
    """

    mode: Mode = "decode"
    score: Score = "natural"
    n_best: int = 0
    beams: int = 1
    length_penalty: float = 1.0
    in_text_space: bool = False

    def __post_init__(self) -> None:
        if self.mode not in ("decode", "nearest"):
            raise PatchcaptionError(f'mode: expected "decode" or "nearest", got {self.mode!r}')
        if self.n_best < 0:
            raise PatchcaptionError(f"n_best: expected at least 0, got {self.n_best}")
        check_score(self.score, self.beams)
        check_beams(self.beams, self.length_penalty)

    @property
    def nearest(self) -> int:
        """How many of the memory bank's captions are wanted."""
        return max(self.n_best, 1 if self.mode == "nearest" else 0)


def check_score(score: str, beams: int) -> None:
    """
    Raises:
        PatchcaptionError: there is no such score, or not with beams.
    """
    if score not in ("natural", "reference"):
        raise PatchcaptionError(f'score: expected "natural" or "reference", got {score!r}')
    if beams > 1 and score == "reference":
        raise PatchcaptionError(f'score="reference" with beams={beams}: the published score is of one beam only')


def parted(options: DescribeOptions) -> tuple[VectorOptions, Wording]:
    """The options of `Captioner.describe`, but for its progress, as those of `vectors` and of what comes after.

    Raises:
        PatchcaptionError: an option has no such value, or there is no such option.
    """
    names = {field.name for field in fields(Wording)} - {"in_text_space"}
    known = names | set(VectorOptions.__annotations__)
    unknown = set(options) - known
    if unknown:
        raise PatchcaptionError(
            f"options: expected some of {', '.join(sorted(known))}, got {', '.join(sorted(unknown))}"
        )
    how = cast(VectorOptions, {name: value for name, value in options.items() if name in VectorOptions.__annotations__})
    of_wording: dict[str, Any] = {name: value for name, value in options.items() if name in names}
    return how, Wording(**of_wording, in_text_space=bool(how.get("clean")))
