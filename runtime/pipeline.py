"""The stages composed: image -> feature map -> region vectors -> text space -> captions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from runtime.backends import Backend, EngineReport
from runtime.bundle import Bundle
from runtime.bundle.graph_io import reencoder_batches
from runtime.decoding import load_decoder
from runtime.encoder import Encoder
from runtime.errors import PatchcaptionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import Fit
from runtime.memory import MemoryMatch, load_projector
from runtime.options import DecodingOptions, PoolingOptions, ProgressCallback
from runtime.pooling import Pooler, RegionReencoder
from runtime.results import Caption, RegionBatch

_WARM_UP_RUNS = 3
"""The first run is plain, the second captured, the third replayed."""


class Pipeline:
    """One bundle on one backend, as four stages that hand tensors to each other.

    Attributes:
        encoder: images -> feature map.
        pooler: feature map and regions -> region vectors.
        projector: region vectors -> text space, through the memory bank if the bundle has one.
        decoder: vectors in text space -> captions.
    """

    def __init__(self, bundle: Bundle, backend: Backend, fit: Fit) -> None:
        self.bundle, self.backend = bundle, backend
        self.encoder = Encoder(bundle, backend, fit)
        self.projector = load_projector(bundle, backend.device)
        batches = reencoder_batches(bundle.manifest.backbone.tokens.num_tokens, bundle.manifest.decoder.batch_sizes[-1])
        self._reencoder = RegionReencoder(lambda: backend.open(bundle.engine("reencoder")), batches)
        # Not `self.project`: a pipeline that refers to itself keeps its memory until the garbage collector comes by.
        self.pooler = Pooler(self.encoder.encode_crops, self._reencoder, self.projector.project)
        self.decoder = load_decoder(bundle, backend)

    def captions(
        self,
        features: FeatureMap,
        regions: RegionBatch,
        pooling: PoolingOptions,
        decoding: DecodingOptions,
        progress: ProgressCallback | None = None,
    ) -> list[Caption]:
        """Caption regions of encoded images; see `Captioner.describe`."""
        return self.describe_vectors(self.pooler(features, regions.by_image, pooling), decoding, progress)

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

    def project(self, vectors: Tensor) -> Tensor:
        """Carry region vectors (R, D) into text space (R, D)."""
        return self.projector.project(self._as_vectors(vectors))

    def decode(
        self, vectors: Tensor, options: DecodingOptions, progress: ProgressCallback | None = None
    ) -> list[Caption]:
        """Decode vectors in text space (R, D)."""
        decoded = self.decoder(self._as_vectors(vectors), options, progress)
        return [Caption(one.text, one.score, one.ids) for one in decoded]

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Let a GPU choose, allocate and capture what single images and regions need before the first request."""
        grey = torch.full((3, 2, 2), 128, dtype=torch.uint8)
        for _ in range(_WARM_UP_RUNS):
            vectors = self.project(self.encoder(grey).tokens[:, 0])
        self.decode(vectors, DecodingOptions())

    def reports(self) -> Mapping[str, EngineReport]:
        """Return what executes each engine that is always open, by the engine's name."""
        return {"backbone": self.encoder.report(), **self.decoder.reports()}

    def close(self) -> None:
        """Release what the engines hold."""
        self.encoder.close()
        self._reencoder.close()
        self.decoder.close()

    def _nearest(self, vectors: Tensor, count: int) -> list[tuple[MemoryMatch, ...]]:
        return self.projector.nearest(self._as_vectors(vectors), count) if count else [()] * len(vectors)

    def _as_vectors(self, vectors: Tensor) -> Tensor:
        """Return vectors (R, D) as engines take them: float32, contiguous, on the backend's device."""
        width = self.bundle.manifest.backbone.output_dim
        if vectors.ndim != 2 or vectors.shape[1] != width:
            raise PatchcaptionError(f"expected vectors of shape (R, {width}), got {tuple(vectors.shape)}")
        return vectors.detach().to(self.backend.device, torch.float32).contiguous()
