"""The stages composed: image -> feature map -> region vectors -> text space -> captions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from runtime.backends import Backend, EngineReport
from runtime.bundle import Bundle
from runtime.bundle.graph_io import reencoder_batches
from runtime.decoding import load_decoder
from runtime.encoder import Encoder
from runtime.errors import ImageError, OptionError, PatchcaptionError, RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import Fit, ImageSource
from runtime.memory import MemoryBank, MemoryMatch, load_bank, projector_of
from runtime.options import Channels, DecodingOptions, OnBad, PoolingOptions, ProgressCallback, check_on_bad
from runtime.pooling import Pooler, RegionReencoder
from runtime.results import Caption, RegionBatch, RegionsOfImages, with_missing
from runtime.system.forks import claim_engines, is_forked, require_own_engines
from runtime.system.process_bound import ProcessBound

VectorSource: TypeAlias = "Tensor | NDArray[Any] | Sequence[Sequence[float]]"
"""Vectors (R, D), one a row."""

_CAPTURING_RUNS = 3
"""The first run is plain, the second captured, the third replayed."""
_GREY_IMAGE = b"P6 2 2 255\n" + bytes(12 * [128])
"""In a file's form, so that what reads files is loaded too."""


class Pipeline(ProcessBound):
    """One bundle on one backend, as four stages that hand tensors to each other.

    Attributes:
        encoder: images -> feature map.
        pooler: feature map and regions -> region vectors.
        projector: region vectors -> text space, through the memory bank if the bundle has one.
        decoder: vectors in text space -> captions.

    Args:
        bank: the bundle's memory bank, on the backend's device; None if it has none.
    """

    def __init__(self, bundle: Bundle, backend: Backend, fit: Fit, bank: MemoryBank | None) -> None:
        claim_engines(self)
        self.bundle, self.backend = bundle, backend
        self.encoder = Encoder(bundle, backend, fit)
        self.projector = projector_of(bank)
        batches = reencoder_batches(bundle.manifest.backbone.tokens.num_tokens, bundle.manifest.decoder.batch_sizes[-1])
        self._reencoder = RegionReencoder(lambda: backend.open(bundle.engine("reencoder")), batches)
        # Not `self.project`: a pipeline that refers to itself keeps its memory until the garbage collector comes by.
        encode_marked = self.encoder.encode_marked if bundle.manifest.backbone.preprocessing.has_alpha else None
        self.pooler = Pooler(self.encoder.encode_crops, self._reencoder, self.projector.project, encode_marked)
        self.decoder = load_decoder(bundle, backend, bank)

    @classmethod
    def load(cls, bundle: Bundle, backend: Backend, fit: Fit, kernels: str | None = None) -> Pipeline:
        """Open a bundle with its memory bank.

        Args:
            kernels: what projects onto the bank, by a name of `runtime.memory.kernel_names`; None for the usual ones.
        """
        return cls(bundle, backend, fit, load_bank(bundle, backend.device, kernels))

    def captions(
        self,
        features: FeatureMap,
        regions: RegionBatch,
        pooling: PoolingOptions,
        decoding: DecodingOptions,
        progress: ProgressCallback | None = None,
        on_bad: OnBad = "raise",
    ) -> list[Caption]:
        """Caption regions of encoded images; see `Captioner.describe`.

        Returns:
            R captions, one image's after another's, without their regions.
        """
        vectors, errors = self.pool(features, regions, pooling, on_bad)
        return with_missing(self.describe_vectors(vectors, decoding, progress), errors)

    def caption_readable(
        self,
        images: Sequence[ImageSource],
        regions: RegionsOfImages,
        channels: Channels,
        pooling: PoolingOptions,
        decoding: DecodingOptions,
    ) -> list[list[Caption]]:
        """Caption regions of images as with ``on_bad="skip"``; those of images that cannot be read say so.

        Raises:
            RegionError: there are not as many lists of regions as images, or one is in no form of regions.
        """
        opened = self.encoder.open_each(images, channels)
        good = [image for image in opened if not isinstance(image, ImageError)]
        features = self.encoder(good)
        sizes = iter(features.image_whs)
        whs = [None if isinstance(image, ImageError) else next(sizes) for image in opened]
        batch = RegionBatch.of(regions, whs)
        good_rows = [rows for rows, wh in zip(batch.by_image, whs, strict=True) if wh is not None]
        captions = iter(
            self.captions(features, RegionBatch(tuple(good_rows), is_nested=True), pooling, decoding, on_bad="skip")
        )
        flat = [
            Caption.missing(None, str(image)) if isinstance(image, ImageError) else next(captions)
            for image, rows in zip(opened, batch.by_image, strict=True)
            for _ in rows
        ]
        return cast("list[list[Caption]]", batch.unflatten(flat))

    def pool(
        self, features: FeatureMap, regions: RegionBatch, options: PoolingOptions, on_bad: OnBad = "raise"
    ) -> tuple[RegionVectors, list[RegionError | None]]:
        """Return the vectors of those regions that have one, and for each region why it has none.

        Raises:
            RegionError: with ``on_bad="raise"``, of the first region that has no vector.
        """
        check_on_bad(on_bad)
        if on_bad == "raise":
            return self.pooler(features, regions.regions(), options), [None] * len(regions)
        none = self.pooler(features, [[] for _ in regions.by_image], options)
        parts, errors = [none.data], list[RegionError | None]()
        for image, rows in enumerate(regions.by_image):
            vectors, own_errors = self.pooler.pool_rows(features[image], [row.region for row in rows], options)
            parts.append(vectors.data)
            errors += own_errors
        return replace(none, data=torch.cat(parts)), errors

    def encodes_each_region(self, options: PoolingOptions) -> bool:
        """Return whether each region is a backbone pass of its own: re-encoded where the input has an alpha plane."""
        return options.reencode is not None and self.bundle.manifest.backbone.preprocessing.has_alpha

    def describe_vectors(
        self, vectors: RegionVectors, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[Caption]:
        """Caption region vectors: project and decode them, and look up their nearest captions.

        Raises:
            PatchcaptionError: a memory bank is asked for that the bundle does not have.
            BundleError: the bundle was built without what an option needs.
        """
        matches = self._nearest(vectors.data, options.num_nearest)
        if options.mode == "nearest":
            captions = [Caption(found[0].text, found[0].similarity, ()) for found in matches]
        else:
            in_text_space = vectors.data if vectors.space == "text" else self.project(vectors.data)
            captions = self.decode(in_text_space, options, progress)
        return [replace(one, nearest=found[: options.n_best]) for one, found in zip(captions, matches, strict=True)]

    def project(self, vectors: VectorSource) -> Tensor:
        """Carry region vectors (R, D) into text space (R, D)."""
        return self.projector.project(self._as_vectors(vectors))

    def decode(
        self, vectors: VectorSource, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[Caption]:
        """Decode vectors in text space (R, D)."""
        if progress is not None and not callable(progress):
            raise OptionError(f"progress: expected a function of two numbers, got {type(progress).__name__}")
        given = self._as_vectors(vectors)
        if options.beams > 1:  # whose steps the host waits for anyway
            _check_finite(given)
        decoded = self.decoder(given, options, progress)
        return [Caption(one.text, one.score, one.ids) for one in decoded]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Do before the first request what it would take longer for than later ones.

        A GPU chooses, allocates and captures what single images and regions need. A CPU loads and allocates, which is a
        share of a small backbone's run that is felt, and of a large one's that is not.
        """
        runs = _CAPTURING_RUNS if self.backend.needs_warm_up else int(self.encoder.is_small)
        for _ in range(runs):
            vectors = self.project(self.encoder(_GREY_IMAGE).tokens[:, 0])
        if runs:
            self.decode(vectors, DecodingOptions())

    def reports(self) -> Mapping[str, EngineReport]:
        """Return what executes each engine that is always open, by the engine's name."""
        return {"backbone": self.encoder.report(), **self.decoder.reports()}

    def close(self) -> None:
        """Release what the engines hold; in a forked process nothing, as they are those of the parent."""
        if is_forked():
            return
        self.encoder.close()
        self._reencoder.close()
        self.decoder.close()

    def _nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        return self.projector.nearest(self._as_vectors(vectors), count) if count else [()] * len(vectors)

    def _as_vectors(self, vectors: VectorSource) -> Tensor:
        """Return vectors (R, D) as engines take them: float32, contiguous, on the backend's device.

        Those on a GPU are not compared with infinity here: the host would wait for all that makes them.
        """
        require_own_engines()
        width = self.bundle.manifest.backbone.output_dim
        given = vectors.detach() if isinstance(vectors, Tensor) else _tensor_of(vectors)
        if given.layout != torch.strided or given.is_complex() or given.ndim != 2 or given.shape[1] != width:
            raise PatchcaptionError(
                f"vectors: expected real numbers of shape (R, {width}), got {_dtype_name(given)} {tuple(given.shape)}"
            )
        given = given.to(torch.float32)
        if given.device.type == "cpu":
            _check_finite(given)
        return given.to(self.backend.device).contiguous()


def image_whs_of(features: FeatureMap) -> tuple[tuple[int, int], ...]:
    """Return the width and height of each image of what a caller gives as encoded images.

    Raises:
        PatchcaptionError: it is something else, such as an image.
    """
    if not isinstance(features, FeatureMap):
        raise PatchcaptionError(
            f"features: expected what Captioner.encode returns, got {type(features).__name__}; Captioner.caption takes "
            "images"
        )
    return features.image_whs


def _tensor_of(vectors: object) -> Tensor:
    """Return an array, or a list of lists of numbers, as a tensor of its own."""
    if not isinstance(vectors, (np.ndarray, Sequence)):
        raise PatchcaptionError(
            f"vectors: expected a tensor, an array or a list of lists of numbers, got {type(vectors).__name__}"
        )
    try:
        with np.errstate(over="ignore"):  # what has no float32 is infinite
            array = np.asarray(vectors)
            return torch.from_numpy(array if np.iscomplexobj(array) else array.astype(np.float32))
    except (TypeError, ValueError, OverflowError) as error:  # an OverflowError of integers beyond every float
        raise PatchcaptionError(f"vectors: expected numbers, as many in each row: {error}") from None


def _check_finite(vectors: Tensor) -> None:
    """Raise PatchcaptionError if a number of some row of vectors (R, D) is not finite."""
    finite = vectors.isfinite()
    if not finite.all():
        row = int((~finite.all(dim=1)).nonzero()[0])
        number = vectors[row][~finite[row]][0].item()
        raise PatchcaptionError(f"vectors: row {row}: expected finite numbers, got {number}")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
