"""Stage 2: pixels -> feature map, by the backbone engine and its copies for several callers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TypeAlias, cast

import torch
from torch import Tensor

from runtime.backends import Backend, Engine, EngineReport
from runtime.backends.cuda.graph_replay import with_cuda_graphs
from runtime.bundle import Bundle
from runtime.bundle.graph_io import CLS_ATTENTION_LOGITS, PIXEL_VALUES, TOKENS
from runtime.errors import BackendError, ImageError
from runtime.features import FeatureMap
from runtime.image import Fit, ImageSource, OpenImage, View, open_on, prepare, with_alpha
from runtime.options import Channels, check_channels, check_threads
from runtime.system.forks import require_own_engines

Images: TypeAlias = "ImageSource | Sequence[ImageSource]"
EncodeFunction: TypeAlias = Callable[[Images], FeatureMap]

_SMALL_BACKBONE_BYTES = 32 << 20
_ALPHA_MAX = 255


class Encoder:
    """Runs the backbone over images.

    Args:
        fit: how images are brought to the backbone's square input.
    """

    def __init__(self, bundle: Bundle, backend: Backend, fit: Fit) -> None:
        self._bundle, self._backend, self._fit = bundle, backend, fit
        self._config = bundle.manifest.backbone
        self._engine = with_cuda_graphs(backend.open(bundle.engine("backbone")))
        self._shared_engines: dict[int, Engine] = {}  # by number of callers
        self._opening, self._is_closed = Lock(), False

    def __call__(self, images: Images, channels: Channels = "rgb") -> FeatureMap:
        """Encode one image or a list of them.

        Args:
            channels: the order of the channels of arrays and tensors.

        Raises:
            ImageError: an image cannot be read or has a wrong type or shape; in a list, by its number.
        """
        return self._encode_sources(self._engine, images, channels)

    @property
    def is_small(self) -> bool:
        """Whether the backbone leaves cores of a CPU idle for one caller, and is worth opening twice."""
        return self._bundle.manifest.backbone_bytes <= _SMALL_BACKBONE_BYTES

    def default_callers(self) -> int:
        """Return how many callers at once encode the most images: small backbones keep a CPU's cores busier by two."""
        return 2 if self.is_small and self._backend.device.type == "cpu" else 1

    def for_callers(self, callers: int) -> EncodeFunction:
        """Return a function like `__call__` for so many threads at once, each with its share of a CPU's cores.

        Raises:
            PatchcaptionError: fewer than one caller, or far more than there are processors; or it was closed.
        """
        callers = check_threads("callers", callers)
        if callers == 1 or self._backend.device.type != "cpu":
            return self
        with self._opening:
            if self._is_closed:
                raise BackendError("the captioner was closed; load the bundle again")
            if callers not in self._shared_engines:
                self._shared_engines[callers] = self._backend.open(self._bundle.engine("backbone"), callers)
            return partial(self._encode_sources, self._shared_engines[callers])

    def open_each(self, images: Sequence[ImageSource], channels: Channels = "rgb") -> list[OpenImage | ImageError]:
        """Return each image as the backbone takes it, or why it cannot be read."""
        check_channels(channels)
        opened: list[OpenImage | ImageError] = []
        for number, image in enumerate(images):
            try:
                opened.append(_open_numbered(number, image, self._backend.device, channels))
            except ImageError as error:
                opened.append(error)
        return opened

    def encode_crops(self, images: Sequence[OpenImage]) -> Tensor:
        """Return the cls tokens (R, D) of images that are each stretched to the backbone's input."""
        return self._run(self._engine, *self.preprocess(images, Fit.STRETCH)).cls

    def encode_marked(
        self,
        images: Sequence[OpenImage],
        views: Sequence[View],
        owners: Tensor,
        marks: Tensor,
        weights: Tensor,
    ) -> Tensor:
        """Return the vectors (R, D) of regions that are each marked in a pass of their own (R,).

        Args:
            views: how each image lies on the input.
            owners: the number of each region's image (R,).
            marks: the pixels that each covers (R, S, S) bool.
            weights: of each token in its region's vector (R, T).
        """
        device, most = self._backend.device, self._config.max_batch_size
        inputs = [self.preprocess([image], view.fit)[0] for image, view in zip(images, views, strict=True)]
        vectors = torch.empty((len(marks), self._config.output_dim), device=device)
        for start in range(0, len(marks), most):
            rows = slice(start, start + most)
            chosen = owners[rows].tolist()
            marked = marks[rows].to(device, torch.uint8)[..., None] * _ALPHA_MAX
            pixel_values = torch.cat([torch.cat([inputs[image] for image in chosen]), marked], dim=-1)
            tokens = self._run(self._engine, pixel_values, tuple(views[image] for image in chosen)).tokens
            vectors[rows] = (weights[rows].to(device)[:, None] @ tokens)[:, 0]
        return vectors

    def preprocess(self, images: Sequence[OpenImage], fit: Fit | None = None) -> tuple[Tensor, tuple[View, ...]]:
        """Return the backbone's input (B, S, S, 3) uint8, and how each image lies on it.

        Args:
            fit: how images are brought to the square; None for the encoder's own.
        """
        numbers = self._config.preprocessing
        return prepare(images, numbers.image_size, fit or self._fit, numbers.resize_short_side, self._backend.device)

    def run(self, pixel_values: Tensor, views: tuple[View, ...]) -> FeatureMap:
        """Run the backbone over preprocessed images."""
        return self._run(self._engine, pixel_values, views)

    def report(self) -> EngineReport:
        """Return what executes the backbone."""
        return self._engine.report()

    def close(self) -> None:
        """Release what the engines hold."""
        with self._opening:
            self._is_closed = True
            for engine in (self._engine, *self._shared_engines.values()):
                engine.close()

    def _encode_sources(self, engine: Engine, images: Images, channels: Channels = "rgb") -> FeatureMap:
        require_own_engines()
        check_channels(channels)
        device = self._backend.device
        if isinstance(images, (list, tuple)):
            opened = [_open_numbered(number, image, device, channels) for number, image in enumerate(images)]
        else:
            opened = [open_on(cast(ImageSource, images), device, channels)]
        return replace(self._run(engine, *self.preprocess(opened)), images=tuple(opened))

    def _run(self, engine: Engine, pixel_values: Tensor, views: tuple[View, ...]) -> FeatureMap:
        config, layout, device = self._config, self._config.tokens, self._backend.device
        if pixel_values.shape[-1] < config.preprocessing.channels:
            pixel_values = with_alpha(pixel_values)
        batches = pixel_values.split(config.max_batch_size) if views else ()
        outputs = [engine.run({PIXEL_VALUES: batch}) for batch in batches]
        no_tokens = torch.empty((0, layout.num_tokens, config.output_dim), device=device)
        no_logits = torch.empty((0, config.attention_heads, layout.num_patches), device=device)
        return FeatureMap(
            tokens=_concat([output[TOKENS] for output in outputs], no_tokens),
            cls_attention_logits=_concat([output[CLS_ATTENTION_LOGITS] for output in outputs], no_logits)
            if config.attention_heads
            else no_logits.new_empty((len(views), 0, layout.num_patches)),
            views=views,
            layout=layout,
        )


def _open_numbered(number: int, image: ImageSource, device: torch.device, channels: Channels) -> OpenImage:
    try:
        return open_on(image, device, channels)
    except ImageError as error:
        raise ImageError(f"image {number}: {error}") from None


def _concat(parts: Sequence[Tensor], empty: Tensor) -> Tensor:
    if not parts:
        return empty
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
