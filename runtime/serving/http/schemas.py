"""What goes in and out, for the description of the service in OpenAPI; docs/serve.md says it in words."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, get_args

from PIL import Image, ImageDraw
from pydantic import BaseModel, ConfigDict, Field

from runtime.options import Clean, CleanFrom, Mode, Reencode, Score
from runtime.regions.json_schema import region_schemas
from runtime.serving.limits import WHOLE_IMAGE

_EXAMPLE_SIDE = 64


class Answer(BaseModel):
    """What all answers have in common: their keys are those that are named."""

    model_config = ConfigDict(extra="forbid")


class ErrorAnswer(Answer):
    """Why there is no other answer."""

    error: str = Field(description="one line", examples=["image: expected at most 50000000 pixels, got 90000 x 90000"])


class NearestCaption(Answer):
    """A caption of the memory bank."""

    text: str
    similarity: float = Field(description="cosine of its embedding and the region's vector")


class CaptionAnswer(Answer):
    """A region in words."""

    text: str = Field(description="empty where there is an error")
    score: float | None = Field(description="the probability of exactly this caption; in mode nearest, its similarity")
    ids: list[int] = Field(description="token ids")
    region: dict[str, Any] | None = Field(description="the region, as JSON that is taken back")
    detection: dict[str, Any] | None = Field(None, description="id, class and confidence that it was given with")
    nearest: list[NearestCaption] | None = Field(None, description="the n_best nearest captions of the memory bank")
    error: str | None = Field(None, description="why this region has no caption")


class ImageAnswer(Answer):
    """An image's size in pixels."""

    width: int
    height: int


class EncodeTiming(Answer):
    """Milliseconds."""

    encode: float = Field(description="of decoding the image and the backbone's pass")


class DescribeTiming(Answer):
    """Milliseconds."""

    describe: float = Field(description="from the regions to their captions, decoded with those of others")


class BothTimings(EncodeTiming, DescribeTiming):
    """Milliseconds."""


class CaptionsAnswer(Answer):
    """The captions of an image's regions, in their order."""

    captions: list[CaptionAnswer]
    image: ImageAnswer
    timing_ms: BothTimings


class FeatureCaptionsAnswer(Answer):
    """The captions of the regions, in their order."""

    captions: list[CaptionAnswer]
    timing_ms: DescribeTiming


class FeaturesAnswer(Answer):
    """A feature map that is kept."""

    id: str
    image: ImageAnswer
    bytes: int = Field(description="what it takes of the room for feature maps")
    expires_in_s: float = Field(description="for how long it is kept if nobody asks it")


class EncodedAnswer(FeaturesAnswer):
    """A feature map that was made."""

    timing_ms: EncodeTiming


class AttentionAnswer(Answer):
    """Where the cls token of an image looks."""

    rows: int
    columns: int
    xyxy: list[float] = Field(description="where the grid of patches lies on the image, in its pixels")
    weights: list[list[float]] = Field(description="rows x columns, summing to 1")


class HealthAnswer(Answer):
    """How the service is."""

    status: str = Field(examples=["ok"])


class BundleAnswer(Answer):
    """The bundle that is served."""

    name: str
    backbone: str
    decoder: str
    image_size: int = Field(description="side of the backbone's square input, in pixels")
    memory_captions: int | None = Field(description="rows of the memory bank")


class AbilitiesAnswer(Answer):
    """What the bundle was built with."""

    nearest: bool = Field(description="mode nearest, and n_best")
    beams: bool
    attention: bool = Field(description="pool attention, and where cls looks")


class LimitsAnswer(Answer):
    """What is more is refused."""

    bytes: int
    pixels: int
    regions: int
    crops: int
    queue: int
    seconds: float
    feature_bytes: int
    feature_seconds: float


class InfoAnswer(Answer):
    """The service."""

    version: str
    bundle: BundleAnswer
    backend: str
    precision: str
    kinds: list[str] = Field(description="of regions")
    can: AbilitiesAnswer
    limits: LimitsAnswer


def errors_of(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the answers of some statuses, beside those that every call may have."""
    always = (400, 401, 403, 421, 503)
    return {status: {"model": ErrorAnswer, "description": _REASONS[status]} for status in sorted({*always, *statuses})}


def body_of(content: dict[str, Any]) -> dict[str, Any]:
    """Return what OpenAPI says of a body that a call wants."""
    return {"requestBody": {"required": True, "content": content}}


def image_body() -> dict[str, Any]:
    """Return the body of a call that takes an image alone."""
    return {
        "multipart/form-data": {"schema": _object({"image": _FILE}, required=["image"])},
        "application/json": {
            "schema": _object({"image": _BASE64}, required=["image"]),
            "example": {"image": _example_image()},
        },
        "image/*": {"schema": _FILE},
    }


def question_body() -> dict[str, Any]:
    """Return the body of a call that takes an image, its regions, and how to describe them."""
    question = {"regions": _regions(), "options": _options()}
    example = {"image": _example_image(), **_example_question()}
    return {
        "multipart/form-data": {"schema": _object({"image": _FILE, **question}, required=["image"])},
        "application/json": {"schema": _object({"image": _BASE64, **question}, required=["image"]), "example": example},
    }


def regions_body() -> dict[str, Any]:
    """Return the body of a call that takes regions of an image that was encoded before."""
    schema = _object({"regions": _regions(), "options": _options()})
    return {"application/json": {"schema": schema, "example": _example_question()}}


_REASONS: Mapping[int, str] = {
    400: "an image, regions or options that cannot be read",
    401: "the token is wanted",
    403: "a page elsewhere asks, and may not",
    404: "no such feature map: it says whether it expired, made room or was deleted",
    408: "the body comes too slowly",
    409: "the bundle was built without what is asked: cls attention, a memory bank, beam search",
    413: "more than a limit allows",
    415: "a body of another type",
    421: "the Host header names another service",
    429: "too many requests wait",
    503: "it takes longer than the limit, or the service ends",
    507: "the feature map is larger than all room for feature maps",
}
_FILE = {"type": "string", "format": "binary", "description": "an encoded image: JPEG, PNG, WebP, AVIF, TIFF, ..."}
_BASE64 = {"type": "string", "format": "byte", "description": "an encoded image, in base64"}


def _object(properties: Mapping[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    extra = {"required": required} if required else {}
    return {"type": "object", "properties": dict(properties), "additionalProperties": False, **extra}


def _regions() -> dict[str, Any]:
    return {
        "type": "array",
        "description": "the regions of the image, in its pixels; one that cannot be has an error in the place of its "
        "caption. Detections and COCO annotations are taken too.",
        "items": {"anyOf": [*region_schemas().values(), {}]},
        "default": WHOLE_IMAGE,
    }


def _options() -> dict[str, Any]:
    """Return the schema of the options of `Captioner.describe`."""
    number = {"type": "number"}
    choices = {
        "mode": get_args(Mode),
        "score": get_args(Score),
        "clean": (*get_args(Clean), None),
        "clean_from": get_args(CleanFrom),
        "reencode": (*get_args(Reencode), None),
    }
    options = _object(
        {
            **{name: {"enum": list(words)} for name, words in choices.items()},
            "n_best": {"type": "integer", "minimum": 0},
            "beams": {"type": "integer", "minimum": 1, "maximum": 256},
            "length_penalty": {**number, "minimum": -10, "maximum": 10},
            "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
            "temperature": {**number, "minimum": 0.01, "maximum": 100},
            "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
            "alpha": number,
            "clean_after_projection": {"type": "boolean"},
        }
    )
    return {**options, "type": ["object", "null"]}


def _example_question() -> dict[str, Any]:
    return {
        "regions": [{"kind": "box", "xyxy": [8, 8, 40, 40]}, {"kind": "point", "x": 24, "y": 24}],
        "options": {"n_best": 1},
    }


@lru_cache(maxsize=1)
def _example_image() -> str:
    """Return a small picture of a red square on white, in base64."""
    picture, file = Image.new("RGB", (_EXAMPLE_SIDE, _EXAMPLE_SIDE), "white"), io.BytesIO()
    ImageDraw.Draw(picture).rectangle((8, 8, 40, 40), fill="red")
    picture.save(file, "PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode("ascii")
