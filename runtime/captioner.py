"""The public face: describes regions of images with one bundle."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, cast, overload

from torch import Tensor

from runtime.backends import Backend, open_selected, select_backend
from runtime.bundle import Manifest
from runtime.encoder import EncodeFunction
from runtime.errors import OptionError
from runtime.features import FeatureMap
from runtime.hub import open_bundle
from runtime.image import Fit, ImageSource
from runtime.options import (
    Channels,
    DecodeKeywords,
    DecodingOptions,
    DescribeKeywords,
    OnBad,
    PoolingKeywords,
    PoolingOptions,
    PrecisionName,
    ProgressCallback,
    StreamKeywords,
    StreamOptions,
    check_on_bad,
    is_choice,
    split_options,
)
from runtime.pipeline import Pipeline, VectorSource, image_whs_of
from runtime.results import Caption, RegionBatch, Regions, RegionsOfImages
from runtime.serving.batching import Batching
from runtime.system.closeable import Closeable
from runtime.system.handover import Handover
from runtime.system.threads import call_in_thread
from runtime.video.sources import FrameSource
from runtime.video.stream import CaptionStream, RegionsOfFrames

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Captioner(Closeable):
    """Describes regions of images. One bundle, loaded once and used for any number of images.

    Use `load` to make one. It holds the engines until `close`, or the end of a `with` block. Threads may share it: each
    gets the captions it would get alone. `batching` decodes the regions of several threads in one batch.

    Attributes:
        pipeline: the stages by themselves: encoder, pooler, projector, decoder.

    Example:
        >>> captioner = Captioner.load("engines/demo")
        >>> features = captioner.encode(scene)
        >>> [caption.text for caption in captioner.describe(features, [Box(276, 174, 507, 399), WholeImage()])]
        ['a large striped red triangle', 'five shapes on a checked white background']
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        backend: str = "auto",
        fit: Fit | Literal["stretch", "crop"] = Fit.STRETCH,
        *,
        precision: PrecisionName = "fp32",
        threads: int | None = None,
        verify: bool = True,
    ) -> Captioner:
        """Open a bundle.

        Args:
            folder: the bundle, for example "engines/demo"; or, if no folder has that name, a repository of the Hugging
                Face hub, "owner/name" or "owner/name@revision", whose bundle is kept in the user's cache.
            backend: what executes it: "cpu" (ONNX Runtime) or "openvino"; on an NVIDIA GPU "ort-cuda", "ort-tensorrt",
                or for a bundle with plans "tensorrt" or "tensorrt-rtx". "auto" is the one that `patchcaption tune`
                measured to be fastest here in the precision; without a measurement the one that the bundle was built
                for, on CPUs "cpu", or OpenVINO for "bf16".
            fit: how images are brought to the backbone's square input: "stretch" shows it the whole image, "crop" the
                centre square at the image's own aspect ratio.
            precision: what it computes in: "fp32" for the precision of the bundle's graphs; or with
                OpenVINO on CPUs that have it "bf16", for graphs in float32 and for what int8 graphs leave in it. "auto"
                is the one that `patchcaption tune` chose: the fastest whose captions agree with those of "fp32";
                without a measurement "fp32".
            threads: CPU threads that an engine may use, up to 512; None for as many as `patchcaption tune` chose with
                the backend "auto", and otherwise leaves it to the backend.
            verify: compare the sha256 of every file first.

        Raises:
            BundleError: the bundle is missing, incomplete, altered or of another schema, or not to be had from the hub.
            BackendError: the backend is unknown or not usable here.
            OptionError: an option has no such value.

        Example:
            >>> with Captioner.load("engines/demo", backend="cpu", threads=1) as captioner:
            ...     captioner.caption(scene, [Box(276, 174, 507, 399)])[0].text
            'a large striped red triangle'
        """
        if not is_choice(fit, list(Fit)):
            raise OptionError(f'fit {fit!r}: expected "stretch" or "crop"')
        bundle = open_bundle(folder, verify)
        selection = select_backend(bundle, precision, threads, backend)
        pipeline = Pipeline.load(bundle, open_selected(selection, bundle), Fit(fit), selection.kernels)
        pipeline.warm_up()
        return cls(pipeline)

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.pipeline.bundle.manifest

    @property
    def backend(self) -> Backend:
        """The backend that executes the engines."""
        return self.pipeline.backend

    @overload
    def caption(  # type: ignore[overload-overlap]  # a list of arrays may be either
        self,
        images: ImageSource,
        regions: Regions,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]: ...
    @overload
    def caption(
        self,
        images: Sequence[ImageSource],
        regions: RegionsOfImages,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[list[Caption]]: ...

    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        regions: Regions | RegionsOfImages,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption] | list[list[Caption]]:
        """Encode and describe in one call: `describe(encode(images, channels=...), regions, on_bad=..., **options)`.

        With ``on_bad="skip"``, the regions of an image of several that cannot be read have no captions, but the reason.

        Example:
            >>> [caption.text for caption in captioner.caption(scene, [Box(276, 174, 507, 399), Point(350, 330)])]
            ['a large striped red triangle', 'a large striped red triangle']
            >>> captioner.caption([scene, scene], [[Point(350, 330)], []])[1]
            []
        """
        check_on_bad(on_bad)
        if on_bad == "skip" and isinstance(images, (list, tuple)):
            pooling, decoding = split_options(options, PoolingOptions, DecodingOptions)
            return self.pipeline.caption_readable(images, cast(RegionsOfImages, regions), channels, pooling, decoding)
        features = self.encode(cast(ImageSource, images), channels=channels)
        return self.describe(features, cast(Regions, regions), on_bad=on_bad, **options)

    def encode(self, images: ImageSource | Sequence[ImageSource], *, channels: Channels = "rgb") -> FeatureMap:
        """Run the backbone once over one image or a list of them.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3), uint8 RGB tensor (3, H, W), an encoded image as bytes
                or a binary file, or a list of those; their sizes may differ.
            channels: the order of the channels of arrays and tensors: "bgr" for those of OpenCV.

        Returns:
            The feature map of all of them, in order, on the backend's device.

        Raises:
            ImageError: an image cannot be read or has a wrong type or shape; in a list, by its number.
            PatchcaptionError: ``channels`` is no such word.

        Example:
            >>> captioner.encode([scene, np.zeros((480, 640, 3), np.uint8)]).tokens.shape
            torch.Size([2, 261, 192])
        """
        return self.pipeline.encoder(images, channels)

    def encoder(self, callers: int) -> EncodeFunction:
        """Return `encode` for so many threads at once, each with its share of a CPU's cores.

        Single images take longer than with all cores, many images together less. The first call opens the backbone once
        more, which takes its memory again. On a GPU it is `encode`.

        Raises:
            PatchcaptionError: fewer than one caller, or more than 512.

        Example:
            >>> encode = captioner.encoder(callers=2)
            >>> with ThreadPoolExecutor(2) as threads:
            ...     [features.tokens.shape for features in threads.map(encode, [scene, scene])]
            [torch.Size([1, 261, 192]), torch.Size([1, 261, 192])]
        """
        return self.pipeline.encoder.for_callers(callers)

    @overload
    def describe(  # type: ignore[overload-overlap]  # a list of arrays may be either
        self,
        features: FeatureMap,
        regions: Regions,
        *,
        progress: ProgressCallback | None = None,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]: ...
    @overload
    def describe(
        self,
        features: FeatureMap,
        regions: RegionsOfImages,
        *,
        progress: ProgressCallback | None = None,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[list[Caption]]: ...

    def describe(
        self,
        features: FeatureMap,
        regions: Regions | RegionsOfImages,
        *,
        progress: ProgressCallback | None = None,
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption] | list[list[Caption]]:
        """Caption regions of images that were encoded before; the backbone runs again for a `Crop` only.

        Args:
            features: from `encode`.
            regions: the regions of the one image in ``features``, or for several images a list of regions for each:
                Region objects, boxes, polygons, masks, JSON, or what a detector found, in any form that docs/regions.md
                lists. What a detector says of a region is in `Caption.detection`.
            progress: called with how many captions of how many are decoded, every few hundred.
            on_bad: what becomes of a region that has no place on its image: "raise", or "skip" for a caption without
                words and with the reason (`Caption.error`).
            options: those of `PoolingOptions` and `DecodingOptions`.

        Returns:
            A caption for each region, in the same nesting and order.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
            OptionError: an option has no such value.
            PatchcaptionError: an option asks for a memory bank that the bundle does not have.
            BundleError: the bundle was built without what an option needs.

        Example:
            >>> features = captioner.encode(scene)
            >>> captioner.describe(features, [Box(276, 174, 507, 399)])[0].text
            'a large striped red triangle'
            >>> captioner.describe(features, [Box(276, 174, 507, 399)], beams=3)[0].text
            'a large striped red triangle'
        """
        pooling, decoding = split_options(options, PoolingOptions, DecodingOptions)
        batch = RegionBatch.of(regions, image_whs_of(features))
        return batch.unflatten(self.pipeline.captions(features, batch, pooling, decoding, progress, on_bad))

    def vectors(
        self, features: FeatureMap, regions: Regions | RegionsOfImages, **options: Unpack[PoolingKeywords]
    ) -> Tensor:
        """Return region vectors (R, D): each the weighted sum of its image's tokens; one image's after another's.

        Args:
            options: those of `PoolingOptions`.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
            BundleError: the bundle was built without what ``reencode`` needs.

        Example:
            >>> captioner.vectors(captioner.encode(scene), [Box(276, 174, 507, 399), WholeImage()]).shape
            torch.Size([2, 192])
        """
        (pooling,) = split_options(options, PoolingOptions)
        return self.pipeline.pool(features, RegionBatch.of(regions, image_whs_of(features)), pooling)[0].data

    def project(self, vectors: VectorSource) -> Tensor:
        """Carry region vectors (R, D) into text space (R, D), through the memory bank if the bundle has one.

        Raises:
            PatchcaptionError: not a matrix of finite numbers of the bundle's width; it says which row.

        Example:
            >>> vectors = captioner.vectors(captioner.encode(scene), [WholeImage()])
            >>> round(float(captioner.project(vectors).norm()), 3)
            1.0
        """
        return self.pipeline.project(vectors)

    def decode(
        self, vectors: VectorSource, *, progress: ProgressCallback | None = None, **options: Unpack[DecodeKeywords]
    ) -> list[Caption]:
        """Decode vectors in text space (R, D) to captions that have no region.

        Args:
            progress: called with how many captions of how many are decoded, every few hundred.
            options: ``score``, ``beams`` and ``length_penalty`` of `DecodingOptions`.

        Raises:
            OptionError: an option has no such value.
            PatchcaptionError: a vector is not of finite numbers; it says which row.
            BundleError: the bundle was built without the graph that beam search needs.

        Example:
            >>> vectors = captioner.vectors(captioner.encode(scene), [Box(276, 174, 507, 399)])
            >>> captioner.decode(captioner.project(vectors))[0].text
            'a large striped red triangle'
        """
        (decoding,) = split_options(options, DecodingOptions)
        return self.pipeline.decode(vectors, decoding, progress)

    def stream(self, source: FrameSource, regions: RegionsOfFrames, **options: Unpack[StreamKeywords]) -> CaptionStream:
        """Describe the frames of a stream; reading, encoding and describing overlap.

        Args:
            source: a file, a folder of images, the number of a camera, a URL (rtsp://...), or an iterable of images or
                of `Frame` objects.
            regions: of every frame, or a function of the `Frame` that finds them (a detector, a tracker; called in
                order, from one thread), in any form that `describe` takes.
            options: those of `StreamOptions`, `PoolingOptions` and `DecodingOptions`.

        Raises:
            VideoError: the source cannot be opened; and while iterating, it is lost.

        Example:
            >>> for result in captioner.stream([scene] * 3, [Box(276, 174, 507, 399)]):
            ...     print(result.frame.number, result.captions[0].text, result.captions[0].reused)
            0 a large striped red triangle False
            1 a large striped red triangle True
            2 a large striped red triangle True
        """
        return CaptionStream(
            self.pipeline, source, regions, *split_options(options, StreamOptions, PoolingOptions, DecodingOptions)
        )

    def batching(self, *, max_wait_ms: float = 4.0, max_regions: int = 64) -> Batching:
        """Return a view of this captioner for many callers: requests that arrive within a few ms are decoded together.

        Args:
            max_wait_ms: how long the first request of a batch waits for others.
            max_regions: the batch size at which a batch waits no longer.

        Example:
            >>> with captioner.batching() as batching, ThreadPoolExecutor(8) as threads:
            ...     points = Point(350, 330), Point(200, 500)
            ...     asked = [threads.submit(batching.caption, scene, [point]) for point in points]
            ...     [answer.result()[0].text for answer in asked]
            ['a large striped red triangle', 'a large solid green square']
        """
        return Batching(self.pipeline, max_wait_ms, max_regions)

    async def acaption(
        self,
        images: ImageSource,
        regions: Regions,
        *,
        channels: Channels = "rgb",
        on_bad: OnBad = "raise",
        **options: Unpack[DescribeKeywords],
    ) -> list[Caption]:
        """Caption regions of one image in asyncio: the event loop stays free.

        Cancelling it gives up the captions; work that has begun is finished. `batching` suits many requests better.

        Example:
            >>> asyncio.run(captioner.acaption(scene, [Box(276, 174, 507, 399)]))[0].text
            'a large striped red triangle'
        """
        handover = Handover([images])

        def caption() -> list[Caption]:
            handover.receive()
            return self.caption(images, regions, channels=channels, on_bad=on_bad, **options)

        return await call_in_thread(caption)

    def runs_on(self) -> dict[str, str]:
        """Return the execution provider of each open engine, as its runtime reports it.

        Example:
            >>> sorted(captioner.runs_on())
            ['backbone', 'decoder']
        """
        return {name: report.provider for name, report in self.pipeline.reports().items()}

    def captured(self) -> dict[str, list[str]]:
        """Return, per engine and cached shape, why it is not replayed as a CUDA graph ("" if it is).

        Example:
            >>> captioner.captured()  # on a CPU there is nothing to capture
            {'backbone': [], 'decoder': []}
        """
        return {
            name: [reason or "" for reason in report.graph_fallbacks]
            for name, report in self.pipeline.reports().items()
        }

    def fused_layers(self) -> list[str] | None:
        """Return the names of the layers that TensorRT fused the backbone into; None on other backends.

        Example:
            >>> captioner.fused_layers() is None
            True
        """
        layers = self.pipeline.encoder.report().fused_layers
        return None if layers is None else list(layers)

    def close(self) -> None:
        """Release what the engines hold.

        Example:
            >>> other = Captioner.load("engines/demo")
            >>> other.close()
        """
        self.pipeline.close()
