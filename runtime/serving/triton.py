"""Answers what Triton Inference Server collects: the images of all requests of a batch go through the backbone at once.

`export/triton_server/model.py` is what the server runs; it passes on what is in its tensors, as bytes.
"""

from __future__ import annotations

import json
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from runtime.captioner import Captioner
from runtime.errors import ImageError, OptionError, PatchcaptionError, RegionError
from runtime.features import FeatureMap, RegionVectors
from runtime.image import open_on, split_by_pixels
from runtime.options import DecodingOptions, PoolingOptions, split_options
from runtime.output.as_json import caption_as_json
from runtime.results import Caption, RegionBatch, with_missing
from runtime.serving.decoding_together import describe_together, require_own_prompts
from runtime.serving.limits import (
    WHOLE_IMAGE,
    InputLimits,
    OverLimitError,
    count_pixels,
    line_of,
    read_bounded_json,
    rows_within,
)
from runtime.serving.triton_requests import ImageRequest, Refusal
from runtime.system.closeable import Closeable
from runtime.system.machine import threads_per_caller

T = TypeVar("T")

_BUNDLE = "bundle"
"""The folder of the bundle, beside the model's code."""


@dataclass(frozen=True)
class _Question:
    """What is asked of an image, read and within the limits."""

    image: bytes
    num_pixels: int
    regions: Any
    pooling: PoolingOptions
    decoding: DecodingOptions


@dataclass(frozen=True, eq=False)
class _Pooled:
    """The regions of an image as vectors, which need the image no more."""

    batch: RegionBatch
    vectors: RegionVectors
    errors: list[RegionError | None]
    decoding: DecodingOptions


class TritonCaptioner(Closeable):
    """A captioner as an instance of a model of Triton.

    Args:
        log: told of errors that are not the client's.
    """

    def __init__(self, captioner: Captioner, limits: InputLimits, log: Callable[[str], object]) -> None:
        self._captioner, self._limits, self._log = captioner, limits, log

    @classmethod
    def open(cls, given: Mapping[str, str], log: Callable[[str], object]) -> TritonCaptioner:
        """Load the bundle that an instance is for.

        Args:
            given: what Triton tells its `initialize`; ``model_config`` holds the parameters of config.pbtxt.

        Raises:
            OptionError: a parameter is unknown, or has no such value.
            BundleError, BackendError: the bundle or the backend is not usable here.
        """
        config = json.loads(given["model_config"])
        parameters = _Parameters.of(config)
        callers = 1
        if given["model_instance_kind"] == "GPU":
            torch.cuda.set_device(int(given["model_instance_device_id"]))
        else:
            callers = sum(int(group["count"]) for group in config["instance_group"])
        captioner = Captioner.load(
            Path(given["model_repository"], given["model_version"], parameters.bundle),
            parameters.backend,
            cast(Any, parameters.fit),
            precision=cast(Any, parameters.precision),
            threads=parameters.threads or threads_per_caller(callers, None),
        )
        return cls(captioner, parameters.limits, log)

    def answer(self, requests: Sequence[Sequence[ImageRequest]]) -> list[list[bytes] | Refusal]:
        """Answer the requests of a batch; what is wrong with one harms none of the others.

        Args:
            requests: the images of each.

        Returns:
            for each request the answer for each of its images: a JSON list of the captions of its regions. An image
            that has none is an error of the request, or where the request has other images, a JSON object with
            ``error``.
        """
        answers = iter(self._answer_images([image for request in requests for image in request]))
        of_requests = [[next(answers) for _ in request] for request in requests]
        return [
            request[0]
            if len(request) == 1 and isinstance(request[0], Refusal)
            else [_json({"error": one.line}) if isinstance(one, Refusal) else one for one in request]
            for request in of_requests
        ]

    def close(self) -> None:
        """Release the bundle."""
        self._captioner.close()

    def _answer_images(self, images: Sequence[ImageRequest]) -> list[bytes | Refusal]:
        questions = [self._attempt(self._read, image) for image in images]
        asked = [question for question in questions if not isinstance(question, Refusal)]
        # As many pixels are decoded at a time as one image may have.
        parts = split_by_pixels(asked, lambda question: question.num_pixels, self._limits.pixels)
        pooled = [one for part in parts for one in self._pool_part(part)]
        answers = iter(self._describe(pooled))
        return [question if isinstance(question, Refusal) else next(answers) for question in questions]

    def _read(self, given: ImageRequest) -> _Question:
        limits, num_bytes = self._limits, len(given.image) + len(given.regions) + len(given.options)
        if num_bytes > limits.bytes:
            raise OverLimitError(f"request: expected at most {limits.bytes} bytes for an image, got {num_bytes}")
        if not given.image:
            raise ImageError("IMAGE: expected an encoded image, got nothing")
        options = read_bounded_json("OPTIONS", given.options) if given.options else {}
        if not isinstance(options, dict):
            raise OptionError(f"OPTIONS: expected a JSON object, got {type(options).__name__}")
        pooling, decoding = split_options(options, PoolingOptions, DecodingOptions)
        require_own_prompts(decoding)
        regions = read_bounded_json("REGIONS", given.regions) if given.regions else WHOLE_IMAGE
        return _Question(given.image, count_pixels(given.image, limits.pixels), regions, pooling, decoding)

    def _pool_part(self, part: Sequence[_Question]) -> list[_Pooled | Refusal]:
        maps = self._encode([question.image for question in part])
        return [
            features if isinstance(features, Refusal) else self._attempt(self._pool, question, features)
            for question, features in zip(part, maps, strict=True)
        ]

    def _encode(self, images: Sequence[bytes]) -> list[FeatureMap | Refusal]:
        """Return the feature map of each image, all from one pass through the backbone."""
        device = self._captioner.backend.device
        opened = [self._attempt(open_on, image, device) for image in images]
        good = [image for image in opened if not isinstance(image, Refusal)]
        try:
            features = self._captioner.encode(good)
            maps: Iterator[FeatureMap | Refusal] = (features[number] for number in range(len(good)))
        except Exception:  # one image's error; each alone, so that it stays that one's
            maps = (self._attempt(self._captioner.encode, image) for image in good)
        return [image if isinstance(image, Refusal) else next(maps) for image in opened]

    def _pool(self, question: _Question, features: FeatureMap) -> _Pooled:
        encodes_each = self._captioner.pipeline.encodes_each_region(question.pooling)
        rows = rows_within(self._limits, question.regions, features.image_whs[0], question.decoding.beams, encodes_each)
        batch = RegionBatch((rows,), is_nested=False)
        vectors, errors = self._captioner.pipeline.pool(features, batch, question.pooling, "skip")
        return _Pooled(batch, vectors, errors, question.decoding)

    def _describe(self, pooled: Sequence[_Pooled | Refusal]) -> list[bytes | Refusal]:
        """Return the captions of each image as JSON, those of equal options decoded in one batch."""
        alike = defaultdict[Any, list[int]](list)
        for number, one in enumerate(pooled):
            if isinstance(one, _Pooled):
                alike[one.decoding, one.vectors.space].append(number)
        found: dict[int, bytes | Refusal] = {}
        for (decoding, _), numbers in alike.items():
            together = [cast(_Pooled, pooled[number]) for number in numbers]
            captions = describe_together(self._captioner.pipeline, [one.vectors for one in together], decoding)
            for number, one, described in zip(numbers, together, captions, strict=True):
                found[number] = self._attempt(_captions_as_json, one, described)
        return [one if isinstance(one, Refusal) else found[number] for number, one in enumerate(pooled)]

    def _attempt(self, do: Callable[..., T], *arguments: Any) -> T | Refusal:
        try:
            return do(*arguments)
        except Exception as error:
            return self._refusal(error)

    def _refusal(self, error: Exception) -> Refusal:
        if isinstance(error, (ImageError, OptionError, OverLimitError, RegionError)):
            return Refusal("INVALID_ARG", line_of(error))
        if isinstance(error, PatchcaptionError):
            return Refusal("UNSUPPORTED", line_of(error))
        self._log("".join(traceback.format_exception(error)))
        return Refusal("INTERNAL", f"{type(error).__name__}, an error of the model itself: see the server's log")


@dataclass(frozen=True)
class _Parameters:
    """The parameters of config.pbtxt.

    Attributes:
        bundle: its folder: a path of the server's, or of the folder of the model's version.
    """

    bundle: str = _BUNDLE
    backend: str = "auto"
    precision: str = "fp32"
    fit: str = "stretch"
    threads: int | None = None
    max_bytes: int = InputLimits.bytes
    max_pixels: int = InputLimits.pixels
    max_regions: int = InputLimits.regions
    max_crops: int = InputLimits.crops

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> _Parameters:
        """Return those of a model's configuration; names in capitals are the server's own.

        Raises:
            OptionError: one is unknown, or is no number where one is expected.
        """
        given = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
        known = {field.name: field.default for field in fields(cls)}
        values: dict[str, Any] = {}
        for name, text in given.items():
            if name in known:
                values[name] = text if isinstance(known[name], str) else _whole_number(name, text)
            elif not name.isupper():
                raise OptionError(f"config.pbtxt: parameters: expected some of {', '.join(known)}, got {name!r}")
        return cls(**values)

    @property
    def limits(self) -> InputLimits:
        """How much a request may ask for of an image."""
        return InputLimits(self.max_bytes, self.max_pixels, self.max_regions, self.max_crops)


def _whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise OptionError(f"config.pbtxt: parameter {name}: expected a whole number, got {text!r}") from None


def _captions_as_json(one: _Pooled, described: list[Caption] | BaseException) -> bytes:
    """Return the captions of an image, or raise why there are none."""
    if isinstance(described, BaseException):
        raise described
    captions = cast("list[Caption]", one.batch.unflatten(with_missing(described, one.errors)))
    return _json([caption_as_json(caption) for caption in captions])


def _json(values: object) -> bytes:
    """Return values as JSON in ASCII: half a character in somebody's class name has no other encoding."""
    return json.dumps(values, allow_nan=False, separators=(",", ":")).encode("ascii")
