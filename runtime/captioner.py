"""Captioner: image -> feature map -> region vectors -> text space -> tokens -> captions."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from threading import Lock
from types import TracebackType
from typing import TYPE_CHECKING, Literal, cast, overload

import torch
from torch import Tensor

from runtime.backends import Backend, Engine, open_backend
from runtime.backends.base import BindableEngine
from runtime.backends.cuda.graph_replay import ReplayedEngine, replayed
from runtime.backends.tensorrt.engine import TrtEngine
from runtime.bundle import Bundle, EngineRecord, Manifest
from runtime.decoding.beam_search import beam_search, check_beams
from runtime.decoding.greedy import GreedyDecoder
from runtime.decoding.tokenizer import CaptionTokenizer
from runtime.errors import BundleError, ImageError, PatchcaptionError
from runtime.features import FeatureMap
from runtime.image import Fit, ImageSource, OpenImage, open_on, prepare
from runtime.memory.bank import MemoryBank, MemoryMatch
from runtime.options import Clean, CleanFrom, DescribeOptions, Mode, Precision, Progress, Reencode, Score, VectorOptions
from runtime.pooling import PUBLISHED_ALPHA, Cleaning, cuts, pool, pool_cleaned, pool_reencoded
from runtime.results import Caption, Regions, RegionsOfImages, as_asked, by_image
from runtime.serving.batching import Batching
from runtime.video.sources import FrameSource
from runtime.video.stream import CaptionStream, Policy, RegionsOfFrames, StreamOptions
from runtime.wording import Wording, check_score

if TYPE_CHECKING:
    from typing_extensions import Unpack

_RUNS_TO_WARM_UP = 3
"""Plain, captured, replayed."""


class Captioner:
    """Describes regions of images. One bundle, loaded once, used as often as wanted.

    Use `load` to make one. It holds the engines until `close`, or the end of a `with` block. Threads may share it: each
    gets the captions it would get alone. `batching` decodes what several of them ask for together.

    Example:
        >>> captioner = Captioner.load("engines/demo")
        >>> features = captioner.encode(scene)
        >>> [caption.text for caption in captioner.describe(features, [Box(276, 174, 507, 399), WholeImage()])]
        ['a large striped red triangle', 'five shapes on a checked white background']
    """

    def __init__(self, bundle: Bundle, backend: Backend, fit: Fit) -> None:
        manifest = bundle.manifest
        self._bundle, self._backend, self._fit = bundle, backend, fit
        self._tokenizer = CaptionTokenizer(bundle.path(manifest.tokenizer), manifest.decoding.end_id)
        self._memory = _load_memory(bundle, backend.device)
        self._backbone: Engine = backend.open(bundle.path(manifest.backbone.file))
        self._seeing: Engine = replayed(self._backbone)
        self._decoder: Engine = backend.open(bundle.path(manifest.decoder.file))
        self._greedy = GreedyDecoder(self._decoder, manifest.decoding)
        self._opening = Lock()
        self._shared: dict[int, Engine] = {}  # the backbone, by how many callers
        self._reencoder: Engine | None = None
        self._beam_decoder: Engine | None = None

    @classmethod
    def load(
        cls,
        folder: str | os.PathLike[str],
        backend: str = "auto",
        fit: Fit | Literal["stretch", "crop"] = Fit.STRETCH,
        *,
        precision: Precision = "fp32",
        threads: int | None = None,
        verify: bool = True,
    ) -> Captioner:
        """Opens a bundle.

        Args:
            folder: the bundle, for example "engines/demo".
            backend: what executes it: "cpu" (ONNX Runtime) or "openvino"; on an NVIDIA GPU "ort-cuda", "ort-tensorrt",
                or "tensorrt" for a bundle with plans. "auto" is the one that the bundle was built for; for CPUs the one
                that `patchcaption tune` has found faster here; where it was not run, "cpu", or for "bf16" OpenVINO.
            fit: how images are brought to the backbone's square: "stretch" shows it the whole image, "crop" the centre
                square at the image's own aspect ratio, as published.
            precision: what it computes in: "fp32" for the bundle's graphs as they are, of which those of an int8 bundle
                multiply their weights in int8; or for those in float32, with OpenVINO on CPUs that have it, "bf16".
            threads: CPU threads an engine may use; None leaves it to the backend.
            verify: compare the sha256 of every file first.

        Raises:
            BundleError: the bundle is missing, incomplete, altered or of another schema.
            BackendError: the backend is unknown or not usable here.

        Example:
            >>> with Captioner.load("engines/demo", backend="cpu", threads=1) as captioner:
            ...     captioner.caption(scene, [Box(276, 174, 507, 399)])[0].text
            'a large striped red triangle'
        """
        if fit not in list(Fit):
            raise PatchcaptionError(f'fit {fit!r}: expected "stretch" or "crop"')
        bundle = Bundle(folder, verify)
        captioner = cls(bundle, open_backend(backend, threads, precision, bundle), Fit(fit))
        if isinstance(captioner._decoder, BindableEngine):
            captioner._warm_up()
        return captioner

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._bundle.manifest

    @property
    def backend(self) -> Backend:
        """What executes the engines."""
        return self._backend

    @overload
    def caption(self, images: ImageSource, regions: Regions, **options: Unpack[DescribeOptions]) -> list[Caption]: ...
    @overload
    def caption(
        self, images: Sequence[ImageSource], regions: RegionsOfImages, **options: Unpack[DescribeOptions]
    ) -> list[list[Caption]]: ...

    def caption(
        self,
        images: ImageSource | Sequence[ImageSource],
        regions: Regions | RegionsOfImages,
        **options: Unpack[DescribeOptions],
    ) -> list[Caption] | list[list[Caption]]:
        """Encodes and describes in one go: `describe(encode(images), regions, **options)`.

        Example:
            >>> [caption.text for caption in captioner.caption(scene, [Box(276, 174, 507, 399), Point(350, 330)])]
            ['a large striped red triangle', 'a large striped red triangle']
            >>> captioner.caption([scene, scene], [[Point(350, 330)], []])[1]
            []
        """
        return self.describe(self.encode(images), regions, **options)

    def encode(self, images: ImageSource | Sequence[ImageSource]) -> FeatureMap:
        """Runs the backbone once over one image or a list of them.

        Args:
            images: a path, PIL image, uint8 RGB array (H, W, 3), uint8 RGB tensor (3, H, W), or a list of those;
                their sizes may differ.

        Returns:
            The feature map of all of them, in order, on the backend's device.

        Raises:
            ImageError: an image cannot be read or has a wrong type or shape; in a list, by its number.

        Example:
            >>> captioner.encode([scene, np.zeros((480, 640, 3), np.uint8)]).tokens.shape
            torch.Size([2, 261, 192])
        """
        return self._encoded(self._seeing, images)

    def encoder(self, callers: int) -> Callable[[ImageSource | Sequence[ImageSource]], FeatureMap]:
        """`encode` for so many threads at once, each with its share of a CPU's cores.

        Single images take longer than with all cores, many images together less. The first time it opens the backbone
        once more, which takes its memory again. On a GPU it is `encode`.

        Raises:
            PatchcaptionError: fewer than one caller.

        Example:
            >>> encode = captioner.encoder(callers=2)
            >>> with ThreadPoolExecutor(2) as threads:
            ...     [features.tokens.shape for features in threads.map(encode, [scene, scene])]
            [torch.Size([1, 261, 192]), torch.Size([1, 261, 192])]
        """
        if callers < 1:
            raise PatchcaptionError(f"callers: expected at least 1, got {callers}")
        if callers == 1 or self._backend.device.type != "cpu":
            return self.encode
        with self._opening:
            if callers not in self._shared:
                path = self._bundle.path(self.manifest.backbone.file)
                self._shared[callers] = self._backend.open(path, callers)
            return partial(self._encoded, self._shared[callers])

    def _encoded(self, engine: Engine, images: ImageSource | Sequence[ImageSource]) -> FeatureMap:
        device = self._backend.device
        if not isinstance(images, (list, tuple)):
            opened = [open_on(cast(ImageSource, images), device)]
        else:
            opened = [_open_numbered(number, image, device) for number, image in enumerate(images)]
        return replace(self._encode(engine, opened, self._fit), images=tuple(opened))

    @overload
    def describe(self, features: FeatureMap, regions: Regions, **options: Unpack[DescribeOptions]) -> list[Caption]: ...
    @overload
    def describe(
        self, features: FeatureMap, regions: RegionsOfImages, **options: Unpack[DescribeOptions]
    ) -> list[list[Caption]]: ...

    def describe(
        self,
        features: FeatureMap,
        regions: Regions | RegionsOfImages,
        *,
        mode: Mode = "decode",
        score: Score = "natural",
        n_best: int = 0,
        beams: int = 1,
        length_penalty: float = 1.0,
        progress: Progress | None = None,
        **how: Unpack[VectorOptions],
    ) -> list[Caption] | list[list[Caption]]:
        """Captions regions of images that were encoded before; the backbone runs again for a `Crop` only.

        Args:
            features: from `encode`.
            regions: the regions of the one image in ``features``, or for several images a list of regions for each.
            mode: "decode" for the decoder's words, "nearest" for the caption of the memory bank nearest to the region.
            score: what of the decoder's words to score, as in `decode`.
            n_best: how many of the memory's nearest captions to give with each caption, whatever the mode.
            beams: how many captions the decoder follows for each region, as in `decode`.
            length_penalty: of beam search, as in `decode`.
            progress: told how many captions of how many are decoded, every few hundred.
            how: the options of `vectors`.

        Returns:
            A caption for each region, in the same nesting and order.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
            PatchcaptionError: an option has no such value, or asks for a memory that the bundle does not have.
            BundleError: the bundle was built without what an option needs.

        Example:
            >>> features = captioner.encode(scene)
            >>> captioner.describe(features, [Box(276, 174, 507, 399)])[0].text
            'a large striped red triangle'
            >>> captioner.describe(features, [Box(276, 174, 507, 399)], beams=3)[0].text
            'a large striped red triangle'
        """
        wording = Wording(mode, score, n_best, beams, length_penalty, in_text_space=bool(how.get("clean")))
        words = partial(self.words, progress=progress)
        return as_asked(features, regions, words(self.vectors(features, regions, **how), wording))

    def vectors(
        self,
        features: FeatureMap,
        regions: Regions | RegionsOfImages,
        *,
        clean: Clean | None = None,
        alpha: float = PUBLISHED_ALPHA,
        clean_from: CleanFrom = "cls",
        clean_after_projection: bool = True,
        reencode: Reencode | None = None,
    ) -> Tensor:
        """Region vectors (R, D): each the weighted sum of its image's tokens; images one after another.

        Args:
            clean: free patches of what they share with the whole image before they are summed: "orthogonal" takes away
                ``alpha`` of the common part, "contrastive" dims what is common. Such vectors are in text space already:
                decode them as they are, without `project`.
            alpha: of "orthogonal".
            clean_from: what is common: the cls token, or the patches by the attention of cls.
            clean_after_projection: whether patches go into text space before they are cleaned, or after.
            reencode: let the patches of each region pass the backbone's last block once more, without the rest of the
                image: their "mean", the "cls" token that passes with them, or the published "gaussian" for boxes.

        Raises:
            RegionError: a region has no place on its image, or the lists do not match the images.
            BundleError: the bundle was built without what ``reencode`` needs.

        Example:
            >>> captioner.vectors(captioner.encode(scene), [Box(276, 174, 507, 399), WholeImage()]).shape
            torch.Size([2, 192])
        """
        if clean and reencode:
            raise PatchcaptionError("clean and reencode exclude each other")
        nested = by_image(features, regions)
        if reencode:
            vectors = pool_reencoded(features, nested, reencode, self._open_reencoder)
        elif clean:
            cleaning = Cleaning(clean, alpha, clean_from, clean_after_projection)
            vectors = pool_cleaned(features, nested, cleaning, self.project)
        else:
            vectors = pool(features, nested)
        alone = cuts(features, nested)
        if alone:
            of_cuts = self._encode(self._seeing, list(alone.values()), Fit.STRETCH).cls
            vectors[list(alone)] = self.project(of_cuts) if clean else of_cuts
        return vectors

    def words(self, vectors: Tensor, wording: Wording, progress: Progress | None = None) -> list[Caption]:
        """Region vectors (R, D) to captions that have no region: projected, decoded, their nearest looked up.

        Raises:
            PatchcaptionError: a memory is asked for that the bundle does not have.
            BundleError: the bundle was built without what an option needs.

        Example:
            >>> vectors = captioner.vectors(captioner.encode(scene), [Box(276, 174, 507, 399)])
            >>> from runtime.wording import Wording
            >>> captioner.words(vectors, Wording(mode="nearest"))[0].text
            'a large striped red triangle'
        """
        matches = self._nearest(vectors, wording.nearest)
        if wording.mode == "nearest":
            described = [Caption(found[0].text, found[0].similarity, ()) for found in matches]
        else:
            projected = vectors if wording.in_text_space else self.project(vectors)
            described = self.decode(
                projected, wording.score, progress, beams=wording.beams, length_penalty=wording.length_penalty
            )
        return [replace(one, nearest=found[: wording.n_best]) for one, found in zip(described, matches, strict=True)]

    def project(self, vectors: Tensor) -> Tensor:
        """Region vectors (R, D) into text space (R, D), through the memory bank if the bundle has one.

        Example:
            >>> vectors = captioner.vectors(captioner.encode(scene), [WholeImage()])
            >>> round(float(captioner.project(vectors).norm()), 3)
            1.0
        """
        vectors = self._checked(vectors)
        return vectors if self._memory is None else self._memory.project(vectors)

    def decode(
        self,
        vectors: Tensor,
        score: Score = "natural",
        progress: Progress | None = None,
        *,
        beams: int = 1,
        length_penalty: float = 1.0,
    ) -> list[Caption]:
        """Vectors in text space (R, D) to captions that have no region.

        Args:
            score: "natural" for the probability of the caption and its end; "reference" for the published score, which
                goes on past the end through all steps.
            progress: told how many captions of how many are decoded, every few hundred.
            beams: how many captions to follow for each vector before one is chosen; 1 takes the likeliest token at each
                step, as published. With more, captions are what transformers' `generate(num_beams=)` gives: the one of
                the highest log-probability over its length is chosen, and its score is still its own probability.
            length_penalty: the power of the length in that choice, from -10 to 10: 0 takes the log-probability as it
                is, more favours longer captions.

        Raises:
            PatchcaptionError: an option has no such value.
            BundleError: the bundle was built without the graph that beam search needs.

        Example:
            >>> vectors = captioner.vectors(captioner.encode(scene), [Box(276, 174, 507, 399)])
            >>> captioner.decode(captioner.project(vectors))[0].text
            'a large striped red triangle'
        """
        check_beams(beams, length_penalty)
        check_score(score, beams)
        vectors, settings = self._checked(vectors), self.manifest.decoding
        if beams == 1:
            decoded = self._greedy.decode(vectors, past_end=score == "reference", progress=progress)
        else:
            decoded = beam_search(self._open_beam_decoder(), settings, vectors, beams, length_penalty, progress)
        return [
            Caption(self._tokenizer.text(ids), math.exp(log_probability), tuple(ids))
            for ids, log_probability in zip(decoded.ids, decoded.log_probabilities, strict=True)
        ]

    def _encode(self, engine: Engine, images: Sequence[OpenImage], fit: Fit) -> FeatureMap:
        seen, device = self.manifest.architecture, self._backend.device
        pixels, views = prepare(images, seen.size, fit, seen.resize, device)
        parts = pixels.split(seen.images_at_once) if images else ()
        outs = [engine.run({"pixels": part}) for part in parts]
        patches = (seen.size // seen.patch) ** 2
        return FeatureMap(
            tokens=_joined([out["tokens"] for out in outs], (0, 1 + seen.registers + patches, seen.width), device),
            cls_scores=_joined([out["cls_scores"] for out in outs], (0, seen.heads, patches), device),
            views=views,
            patch=seen.patch,
            registers=seen.registers,
        )

    @torch.inference_mode()
    def _warm_up(self) -> None:
        """Lets a GPU choose, allocate and capture what single images and regions need before the first one comes."""
        grey = torch.full((3, 2, 2), 128, dtype=torch.uint8)
        for _ in range(_RUNS_TO_WARM_UP):
            vectors = self.project(self.encode(grey).cls)
        self.decode(vectors)

    def _nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        if count == 0:
            return [()] * len(vectors)
        if self._memory is None:
            raise PatchcaptionError("the nearest captions of a memory were asked for, but this bundle has no memory")
        return self._memory.nearest(self._checked(vectors), count)

    def _open_reencoder(self) -> Engine:
        with self._opening:
            if self._reencoder is None:
                self._reencoder = self._open_optional(self.manifest.reencoder, "a re-encoder")
            return self._reencoder

    def _open_beam_decoder(self) -> Engine:
        with self._opening:
            if self._beam_decoder is None:
                self._beam_decoder = self._open_optional(self.manifest.beam_decoder, "a decoder for beam search")
            return self._beam_decoder

    def _open_optional(self, record: EngineRecord | None, what: str) -> Engine:
        if record is None:
            raise BundleError(f"{self._bundle.folder}: it was built without {what}; build the bundle again")
        return self._backend.open(self._bundle.path(record.file))

    def _checked(self, vectors: Tensor) -> Tensor:
        """Vectors (R, D) as engines take them: float32, contiguous, on the backend's device."""
        width = self.manifest.architecture.width
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise PatchcaptionError(f"expected vectors of shape (R, {width}), got {tuple(vectors.shape)}")
        return vectors.detach().to(self._backend.device, torch.float32).contiguous()

    def stream(
        self,
        source: FrameSource,
        regions: RegionsOfFrames,
        *,
        policy: Policy | None = None,
        every: int = 1,
        reuse: float | None = 0.995,
        workers: int | None = None,
        **options: Unpack[DescribeOptions],
    ) -> CaptionStream:
        """Describes the frames of a stream; reading, encoding and describing overlap.

        Args:
            source: a file, a folder of images, the number of a camera, an address (rtsp://...), or an iterable of
                images or of `Frame` objects.
            regions: of every frame, or a function of the `Frame` that finds them (a detector, a tracker; called in
                order, from one thread): a list of regions, or anything with ``xyxy`` or ``mask``, as
                `supervision.Detections` has.
            policy, every, reuse, workers: as in `StreamOptions`.
            options: those of `describe`.

        Raises:
            VideoError: the source cannot be opened; and while iterating, it is lost.

        Example:
            >>> for result in captioner.stream([scene] * 3, [Box(276, 174, 507, 399)]):
            ...     print(result.frame.number, result.captions[0].text, result.captions[0].reused)
            0 a large striped red triangle False
            1 a large striped red triangle True
            2 a large striped red triangle True
        """
        return CaptionStream(self, source, regions, StreamOptions(policy, every, reuse, workers), options)

    def batching(self, *, max_wait_ms: float = 4.0, max_regions: int = 64) -> Batching:
        """A view of this captioner for many threads or coroutines: what arrives within a few ms is decoded together.

        Args:
            max_wait_ms: how long the first of a batch waits for others.
            max_regions: a batch that has so many waits no longer.

        Example:
            >>> with captioner.batching() as batching, ThreadPoolExecutor(8) as threads:
            ...     points = Point(350, 330), Point(200, 500)
            ...     asked = [threads.submit(batching.caption, scene, [point]) for point in points]
            ...     [answer.result()[0].text for answer in asked]
            ['a large striped red triangle', 'a large solid green square']
        """
        return Batching(self, max_wait_ms, max_regions)

    async def acaption(
        self, images: ImageSource, regions: Regions, **options: Unpack[DescribeOptions]
    ) -> list[Caption]:
        """`caption` of one image for asyncio: the event loop goes on meanwhile.

        Cancelling it gives up the captions; what was begun is still done. Many at once are better asked of `batching`.

        Example:
            >>> asyncio.run(captioner.acaption(scene, [Box(276, 174, 507, 399)]))[0].text
            'a large striped red triangle'
        """
        return await asyncio.to_thread(partial(self.caption, images, regions, **options))

    def runs_on(self) -> dict[str, str]:
        """What executes each open engine, as its runtime says.

        Example:
            >>> sorted(captioner.runs_on())
            ['backbone', 'decoder']
        """
        engines = {"backbone": self._backbone, "decoder": self._decoder}
        return {name: engine.runs_on for name, engine in engines.items()}

    def captured(self) -> dict[str, list[str]]:
        """Of the backbone and a decoder's step, for each shape that a GPU keeps the memory of: why it is not one CUDA
        graph; "" where it is.

        Example:
            >>> captioner.captured()  # on a CPU there is nothing to capture
            {'backbone': [], 'decoder': []}
        """
        backbone = self._seeing.captured if isinstance(self._seeing, ReplayedEngine) else []
        return {"backbone": backbone, "decoder": self._greedy.captured()}

    def fused_layers(self) -> list[str] | None:
        """The names of the layers that TensorRT has made of the backbone; None on other backends.

        Example:
            >>> captioner.fused_layers() is None
            True
        """
        return self._backbone.layers() if isinstance(self._backbone, TrtEngine) else None

    def close(self) -> None:
        """Gives back what the engines hold.

        Example:
            >>> other = Captioner.load("engines/demo")
            >>> other.close()
        """
        for engine in (self._seeing, self._decoder, self._reencoder, self._beam_decoder, *self._shared.values()):
            if engine is not None:
                engine.close()

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
    return MemoryBank.load(bundle, memory, device)


def _open_numbered(number: int, image: ImageSource, device: torch.device) -> OpenImage:
    try:
        return open_on(image, device)
    except ImageError as error:
        raise ImageError(f"image {number}: {error}") from None


def _joined(parts: Sequence[Tensor], empty_shape: tuple[int, ...], device: torch.device) -> Tensor:
    if not parts:
        return torch.empty(empty_shape, device=device)
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))
