"""The decoder interface: vectors in text space go in, captions come out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from runtime.backends import EngineReport
from runtime.decoding.greedy import GreedyDecoder
from runtime.options import DecodingOptions, ProgressCallback


@dataclass(frozen=True)
class DecodedCaption:
    """One decoded caption.

    Attributes:
        ids: its tokens, up to and including the end token where it was reached.
        score: its probability, in 0..1.
    """

    text: str
    score: float
    ids: tuple[int, ...]


class CaptionBank(Protocol):
    """The captions of a memory bank, of which some prompts are made."""

    @property
    def captions(self) -> Sequence[str]:
        """The caption of each row (M)."""
        ...

    def nearest_rows(self, vectors: Tensor, count: int) -> list[list[int]]:
        """Return for each of the vectors (R, D) its ``count`` nearest rows, the nearest first."""
        ...


class CaptionDecoder(Protocol):
    """Decodes vectors in text space; each kind of decoder knows its own prompt, engines, search and tokenizer.

    Attributes:
        greedy: decodes vectors to tokens, its prompts included.
    """

    greedy: GreedyDecoder

    def __call__(
        self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[DecodedCaption]:
        """Decode vectors (R, D), float32 on the backend's device, as if each were alone.

        Raises:
            PatchcaptionError: the decoder does not have an option.
            BundleError: the bundle was built without an engine that an option needs.
        """
        ...

    def reports(self) -> Mapping[str, EngineReport]:
        """Return what executes each engine that is always open, by the engine's name."""
        ...

    def close(self) -> None:
        """Release what the engines hold."""
        ...
