"""The calls: captions of an image, feature maps that are kept, and captions of those."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from runtime.features import FeatureMap
from runtime.output.as_json import caption_as_json
from runtime.results import Caption
from runtime.serving.http import schemas
from runtime.serving.http.bodies import Asked, read_body
from runtime.serving.http.errors import JsonAnswer, RequestError
from runtime.serving.http.service import CaptionService
from runtime.serving.http.store import bytes_of
from runtime.system.threads import call_in_thread

_SMALL = 2**14
"""Bytes of a body that are read sooner than a thread is there to read them."""
_BODY_ERRORS = (408, 409, 413, 415, 429)


def calls_of(service: CaptionService) -> APIRouter:
    """Return the routes of the calls."""
    router = APIRouter(tags=["captions"], default_response_class=JsonAnswer)

    @router.post(
        "/v1/captions",
        response_model=schemas.CaptionsAnswer,
        responses=schemas.errors_of(*_BODY_ERRORS),
        openapi_extra=schemas.body_of(schemas.question_body()),
    )
    async def caption(request: Request) -> Response:
        """Caption regions of an image: of the whole of it, if none are given."""
        asked = await _asked(request)
        encoded = await service.encode(asked.require_image())
        described = await service.describe(encoded.value, asked.regions, asked.options)
        return JsonAnswer(
            {
                "captions": _captions(described.value),
                "image": _size(encoded.value),
                "timing_ms": {"encode": encoded.ms, "describe": described.ms},
            }
        )

    @router.post(
        "/v1/features",
        status_code=201,
        response_model=schemas.EncodedAnswer,
        responses=schemas.errors_of(*_BODY_ERRORS, 507),
        openapi_extra=schemas.body_of(schemas.image_body()),
    )
    async def encode(request: Request) -> Response:
        """Encode an image and keep its feature map, to ask for captions of its regions without another encoding."""
        asked = await _asked(request)
        encoded = await service.encode(asked.require_image())
        id = service.store.add(encoded.value)
        values = _features(service, id, encoded.value) | {"timing_ms": {"encode": encoded.ms}}
        return JsonAnswer(values, 201, {"Location": f"/v1/features/{id}"})

    @router.post(
        "/v1/features/{id}/captions",
        response_model=schemas.FeatureCaptionsAnswer,
        responses=schemas.errors_of(*_BODY_ERRORS, 404),
        openapi_extra=schemas.body_of(schemas.regions_body()),
    )
    async def describe(id: str, request: Request) -> Response:
        """Caption regions of an image that was encoded before."""
        features = service.store.get(id)
        asked = await _asked(request)
        if asked.image is not None:
            raise RequestError(400, "image: it was encoded before; give regions and options alone")
        described = await service.describe(features, asked.regions, asked.options, is_small=asked.is_small)
        return JsonAnswer({"captions": _captions(described.value), "timing_ms": {"describe": described.ms}})

    @router.get("/v1/features/{id}", response_model=schemas.FeaturesAnswer, responses=schemas.errors_of(404))
    async def look_up(id: str) -> Response:
        """Say what is kept of an image, and keep it for the whole time again."""
        return JsonAnswer(_features(service, id, service.store.get(id)))

    @router.get(
        "/v1/features/{id}/attention",
        response_model=schemas.AttentionAnswer,
        responses=schemas.errors_of(404, 409),
    )
    async def attention(id: str) -> Response:
        """Say where cls looks: how much it attends to each patch."""
        features = service.store.get(id)
        if not features.cls_attention_logits.shape[1]:
            raise RequestError(409, "attention: the backbone of this bundle has no cls attention")
        return JsonAnswer(await call_in_thread(lambda: _attention(features)))

    @router.delete("/v1/features/{id}", status_code=204, responses=schemas.errors_of(404))
    async def delete(id: str) -> Response:
        """Forget a feature map."""
        service.store.remove(id)
        return Response(status_code=204)

    return router


async def _asked(request: Request) -> Asked:
    """Return what a request asks for; a large body is read in a thread."""
    body, content_type = await request.body(), request.headers.get("content-type", "")
    if len(body) <= _SMALL:
        return replace(read_body(content_type, body), is_small=True)
    return await call_in_thread(lambda: read_body(content_type, body))


def _captions(captions: list[Caption]) -> list[dict[str, object]]:
    return [caption_as_json(caption) for caption in captions]


def _size(features: FeatureMap) -> dict[str, int]:
    width, height = features.image_whs[0]
    return {"width": width, "height": height}


def _features(service: CaptionService, id: str, features: FeatureMap) -> dict[str, Any]:
    seconds = service.limits.feature_seconds
    return {"id": id, "image": _size(features), "bytes": bytes_of(features), "expires_in_s": seconds}


def _attention(features: FeatureMap) -> dict[str, Any]:
    canvas = features.canvases[0]
    corners = canvas.view.to_image(np.array([[0.0, 0.0], [canvas.view.size, canvas.view.size]]))
    return {
        "rows": canvas.grid,
        "columns": canvas.grid,
        "xyxy": [round(float(side), 3) for side in corners.ravel()],
        "weights": canvas.attention.round(8).tolist(),
    }
