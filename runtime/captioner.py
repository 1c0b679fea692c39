"""Captioner: image -> feature map -> region vectors -> text space -> tokens -> captions."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, TypeAlias, TypeGuard, cast, overload

import torch
from PIL import Image
from torch import Tensor

from runtime.backends import Backend, Engine, open_backend
from runtime.bundle import Bundle, Manifest
from runtime.decoding import decode
from runtime.errors import ImageError, PatchcaptionError, RegionError
from runtime.features import FeatureMap
from runtime.image import Fit, ImageSource, open_image, prepare
from runtime.memory import MemoryBank
from runtime.regions import Region, weight_rows
from runtime.tokenizer import CaptionTokenizer

_IMAGES_AT_ONCE = 8
"""A backbone's scratch memory grows with every image of a batch, its speed hardly after a few."""

Regions: TypeAlias = Sequence[Region]
RegionsOfImages: TypeAlias = Sequence[Sequence[Region]]


@dataclass(frozen=True)
class Caption:
    """A region in words.

    Attributes:
        text: the caption.
        score: the decoder's probability of exactly this caption, its end token included, in 0..1.
        ids: its token ids, up to and including the end token where it was reached.
        region: the region it describes; None when it was decoded from a bare vector.
    """

    text: str
    score: float
    ids: tuple[int, ...]
    region: Region | None = None


class Captioner:
    """Describes regions of images. One bundle, loaded once, used as often as wanted.

    >>> captioner = Captioner.load("engines/demo")
    >>> features = captioner.encode("photo.jpg")
    >>> captions = captioner.describe(features, [Box(10, 20, 200, 180), WholeImage()])

    Use `load` to make one. It holds the engines until `close`, or the end of a `with` block.
    """

    def __init__(self, bundle: Bundle, backend: Backend, fit: Fit) -> None:
        manifest = bundle.manifest
        self._bundle, self._backend, self._fit = bundle, backend, fit
        self._tokenizer = CaptionTokenizer(bundle.path(manifest.tokenizer), manifest.decoding.end_id)
        self._memory = _load_memory(bundle, backend.device)
        self._backbone: Engine = backend.open(bundle.path(manifest.backbone.file))
        self._decoder: Engine = backend.open(bundle.path(manifest.decoder.file))

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        backend: str = "auto",
        fit: Fit | Literal["stretch", "crop"] = Fit.STRETCH,
        *,
        threads: int | None = None,
        verify: bool = True,
    ) -> Captioner:
        """Opens a bundle.

        Args:
            folder: the bundle, for example "engines/demo".
            backend: what executes it: "cpu", or "auto" for the best one on this machine.
            fit: how images are brought to the backbone's square: "stretch" shows it the whole image, "crop" the centre
                square at the image's own aspect ratio, as published.
            threads: CPU threads an engine may use; None leaves it to the backend.
            verify: compare the sha256 of every file first.

        Raises:
            BundleError: the bundle is missing, incomplete, altered or of another schema.
            BackendError: the backend is unknown or not usable here.
        """
        if fit not in list(Fit):
            raise PatchcaptionError(f'fit {fit!r}: expected "stretch" or "crop"')
        return cls(Bundle(folder, verify), open_backend(backend, threads), Fit(fit))

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def backend(self) -> Backend:
        """What executes the engines."""
        return self._backend

    @overload
    def caption(self, images: ImageSource, regions: Regions) -> list[Caption]: ...
    @overload
    def caption(self, images: Sequence[ImageSource], regions: RegionsOfImages) -> list[list[Caption]]: ...

    def caption(
        self, images: ImageSource | Sequence[ImageSource], regions: Regions | RegionsOfImages
    ) -> list[Caption] | list[list[Caption]]:
        """Encodes and describes in one go: `describe(encode(images), regions)`."""
        return self.describe(self.encode(images), regions)

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> FeatureMap:
        """Runs the backbone once over one image or a list of them.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3), uint8 RGB tensor (3, H, W), or a list of those;
                their sizes may differ.

        Returns:
            The feature map of all of them, in order, on the backend's device.

        Raises:
            ImageError: an image cannot be read or has a wrong type or shape; in a list, by its number.
        """
        if not isinstance(images, (list, tuple)):
            opened = [open_image(cast(ImageSource, images))]
        else:
            opened = [_open_numbered(number, image) for number, image in enumerate(images)]
        architecture = self.manifest.architecture
        pixels, views = prepare(opened, architecture.size, self._fit)
        parts = pixels.to(self._backend.device).split(_IMAGES_AT_ONCE) if opened else ()
        outs = [self._backbone.run({"pixels": part}) for part in parts]
        empty = torch.empty(0, 0, 0, device=self._backend.device)
        return FeatureMap(
            tokens=torch.cat([out["tokens"] for out in outs]) if outs else empty,
            cls_scores=torch.cat([out["cls_scores"] for out in outs]) if outs else empty,
            views=views,
            patch=architecture.patch,
            registers=architecture.registers,
        )

    @overload
    def describe(self, features: FeatureMap, regions: Regions) -> list[Caption]: ...
    @overload
    def describe(self, features: FeatureMap, regions: RegionsOfImages) -> list[list[Caption]]: ...

    def describe(self, features: FeatureMap, regions: Regions | RegionsOfImages) -> list[Caption] | list[list[Caption]]:
        """Captions regions of images that were encoded before; the backbone does not run again.

        Args:
            features: from `encode`.
            regions: the regions of the one image in ``features``, or for several images a list of regions for each.

        Returns:
            A caption for each region, in the same nesting and order.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
        """
        nested = _by_image(features, regions)
        decoded = iter(self.decode(self.project(self.vectors(features, regions))))
        captions = [
            [Caption(one.text, one.score, one.ids, region) for region, one in zip(of_image, decoded, strict=False)]
            for of_image in nested
        ]
        return captions[0] if captions and not _is_nested(regions) else captions

    def vectors(self, features: FeatureMap, regions: Regions | RegionsOfImages) -> Tensor:
        """Region vectors (R, D): each the weighted sum of its image's tokens; images one after another.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
        """
        rows = []
        nested = _by_image(features, regions)
        for number, (own, canvas, tokens) in enumerate(zip(nested, features.canvases, features.tokens, strict=True)):
            try:
                rows.append(weight_rows(own, canvas).to(tokens.device) @ tokens)
            except RegionError as error:
                raise error if len(features) == 1 else RegionError(f"image {number}: {error}") from None
        return torch.cat(rows) if rows else features.tokens.new_empty(0, self.manifest.architecture.width)

    def project(self, vectors: Tensor) -> Tensor:
        """Region vectors (R, D) into text space (R, D), through the memory bank if the bundle has one."""
        vectors = self._checked(vectors)
        return vectors if self._memory is None else self._memory.project(vectors)

    def decode(self, vectors: Tensor) -> list[Caption]:
        """Vectors in text space (R, D) to captions that have no region."""
        decoded = decode(self._decoder, self.manifest.decoding, self._checked(vectors))
        return [
            Caption(self._tokenizer.text(ids), math.exp(log_probability), tuple(ids))
            for ids, log_probability in zip(decoded.ids, decoded.log_probabilities, strict=True)
        ]

    def _checked(self, vectors: Tensor) -> Tensor:
        """Vectors (R, D) as engines take them: float32, contiguous, on the backend's device."""
        width = self.manifest.architecture.width
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise PatchcaptionError(f"expected vectors of shape (R, {width}), got {tuple(vectors.shape)}")
        return vectors.detach().to(self._backend.device, torch.float32).contiguous()

    def close(self) -> None:
        """Gives back what the engines hold."""
        self._backbone.close()
        self._decoder.close()

    def __enter__(self) -> Captioner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _load_memory(bundle: Bundle, device: torch.device) -> MemoryBank | None:
    memory = bundle.manifest.memory
    if memory is None:
        return None
    return MemoryBank.load(
        bundle.path(memory.embeddings), bundle.path(memory.captions), memory.temperature, memory.normalize, device
    )


def _open_numbered(number: int, image: ImageSource) -> Image.Image:
    try:
        return open_image(image)
    except ImageError as error:
        raise ImageError(f"image {number}: {error}") from None


def _is_nested(regions: Regions | RegionsOfImages) -> TypeGuard[RegionsOfImages]:
    """Whether these are lists of regions, one for each image."""
    return len(regions) > 0 and all(isinstance(entry, (list, tuple)) for entry in regions)


def _by_image(features: FeatureMap, regions: Regions | RegionsOfImages) -> RegionsOfImages:
    """The regions of each image, whether given as one list for one image or as a list for each."""
    if isinstance(regions, (str, bytes)) or not isinstance(regions, Sequence):
        raise RegionError(f"regions: expected a list of regions, got {type(regions).__name__}")
    if _is_nested(regions):
        if len(regions) != len(features):
            raise RegionError(f"regions: expected {len(features)} lists, one for each image, got {len(regions)}")
        return regions
    if len(features) == 0 and not regions:
        return []
    if len(features) != 1:
        raise RegionError(f"regions: {len(features)} images were encoded; give a list of regions for each of them")
    return [cast(Regions, regions)]
