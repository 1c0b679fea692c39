"""The feature maps that clients ask again, within a budget of bytes and of time."""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

from PIL import Image

from runtime.features import FeatureMap
from runtime.image import OpenImage
from runtime.serving.http.errors import GONE, NO_ROOM, RequestError
from runtime.serving.http.settings import ServiceLimits

_REMEMBERED = 10_000
"""Feature maps that are gone, of which the reason is known."""


@dataclass(eq=False)
class _Kept:
    features: FeatureMap
    num_bytes: int
    until: float


class FeatureStore:
    """Feature maps by their ids: the least recently asked ones go first where room is wanted.

    It belongs to one thread, the event loop's.

    Args:
        clock: gives seconds.
    """

    def __init__(self, limits: ServiceLimits, clock: Callable[[], float] = monotonic) -> None:
        self._limits, self._clock = limits, clock
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._gone: OrderedDict[str, str] = OrderedDict()
        self.num_bytes = 0

    def __len__(self) -> int:
        """Return how many are kept."""
        return len(self._kept)

    def add(self, features: FeatureMap) -> str:
        """Keep the feature map of one image; return its id, which cannot be guessed.

        Raises:
            RequestError: it is larger than all the room there is.
        """
        self.sweep()
        needed, room = bytes_of(features), self._limits.feature_bytes
        if needed > room:
            raise RequestError(
                NO_ROOM, f"features: {needed} bytes with the image, and the service keeps at most {room}"
            )
        while self.num_bytes + needed > room:
            self._drop(next(iter(self._kept)), "it made room for others; encode the image again")
        id = secrets.token_urlsafe(16)
        self._kept[id] = _Kept(features, needed, self._clock() + self._limits.feature_seconds)
        self.num_bytes += needed
        return id

    def get(self, id: str) -> FeatureMap:
        """Return a feature map, which is then kept for the whole time again.

        Raises:
            RequestError: there is none of that id; it says why.
        """
        self.sweep()
        kept = self._kept.get(id)
        if kept is None:
            raise self._missing(id)
        kept.until = self._clock() + self._limits.feature_seconds
        self._kept.move_to_end(id)
        return kept.features

    def remove(self, id: str) -> None:
        """Forget a feature map.

        Raises:
            RequestError: there is none of that id; it says why.
        """
        self.sweep()
        if id not in self._kept:
            raise self._missing(id)
        self._drop(id, "it was deleted")

    def clear(self) -> None:
        """Forget all of them."""
        self._kept.clear()
        self.num_bytes = 0

    def sweep(self) -> None:
        """Forget those whose time is over: the first ones, as what is asked goes to the end."""
        now = self._clock()
        while self._kept:
            id, kept = next(iter(self._kept.items()))
            if kept.until > now:
                return
            self._drop(id, f"nobody asked it for {self._limits.feature_seconds:g} s; encode the image again")

    def _drop(self, id: str, reason: str) -> None:
        self.num_bytes -= self._kept.pop(id).num_bytes
        self._gone[id] = reason
        if len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)

    def _missing(self, id: str) -> RequestError:
        reason = self._gone.get(id, "there is none of that id; POST /v1/features makes one")
        return RequestError(GONE, f"features {id[:40]!r}: {reason}")


def bytes_of(features: FeatureMap) -> int:
    """Return the bytes of the tensors and images of a feature map."""
    tensors = (features.tokens, features.cls_attention_logits)
    return sum(tensor.nbytes for tensor in tensors) + sum(map(_image_bytes, features.images or ()))


def _image_bytes(image: OpenImage) -> int:
    return 4 * image.width * image.height if isinstance(image, Image.Image) else image.nbytes  # as Pillow stores RGB
