"""What passes between Triton's tensors and `runtime.serving.triton`; it imports nothing that takes time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

RefusalCode: TypeAlias = Literal["INVALID_ARG", "UNSUPPORTED", "INTERNAL"]
"""Names of the codes of Triton's errors: what was asked is wrong, what this bundle cannot, what we did wrong."""


@dataclass(frozen=True)
class ImageRequest:
    """One image of a request, and what is asked of it, as the server's tensors have it.

    Attributes:
        image: an encoded image.
        regions: JSON, in any form of the regions of one image; empty for the whole image.
        options: a JSON object, of those of `Captioner.describe`; empty for none.
    """

    image: bytes
    regions: bytes = b""
    options: bytes = b""


@dataclass(frozen=True)
class Refusal:
    """Why a request has no captions.

    Attributes:
        line: what is wrong, on one line.
    """

    code: RefusalCode
    line: str
