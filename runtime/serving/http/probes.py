"""What a service says of itself: what it is, whether it lives, whether it can be asked, and its numbers."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter
from starlette.responses import Response

from runtime.regions.serialization import FORMS
from runtime.serving.http import schemas
from runtime.serving.http.errors import LATE, JsonAnswer, RequestError
from runtime.serving.http.metrics import CONTENT_TYPE
from runtime.serving.http.service import CaptionService
from runtime.system.version import __version__


def probes_of(service: CaptionService) -> APIRouter:
    """Return the routes of the probes."""
    router = APIRouter(tags=["service"], default_response_class=JsonAnswer)

    @router.get("/v1/info", response_model=schemas.InfoAnswer, responses=schemas.errors_of())
    async def info() -> Response:
        """Say what is served, what it can do, and within which limits."""
        return JsonAnswer(_info(service))

    @router.get("/healthz", response_model=schemas.HealthAnswer, responses=schemas.errors_of())
    async def healthz() -> Response:
        """Say that the process lives: it is to be started again where nothing comes."""
        return JsonAnswer({"status": "ok"})

    @router.get("/readyz", response_model=schemas.HealthAnswer, responses=schemas.errors_of())
    async def readyz() -> Response:
        """Say whether requests may be sent."""
        if not service.is_ready:
            raise RequestError(LATE, "the service ends")
        return JsonAnswer({"status": "ok"})

    @router.get("/metrics", responses={200: {"content": {"text/plain": {}}}, **schemas.errors_of()})
    async def metrics() -> Response:
        """Give the numbers, as Prometheus reads them."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    return router


def _info(service: CaptionService) -> dict[str, object]:
    captioner = service.captioner
    manifest = captioner.manifest
    return {
        "version": __version__,
        "bundle": {
            "name": captioner.pipeline.bundle.folder.resolve().name,
            "backbone": manifest.backbone.name,
            "decoder": manifest.decoder.kind,
            "image_size": manifest.backbone.preprocessing.image_size,
            "memory_captions": manifest.memory and manifest.memory.num_rows,
        },
        "backend": captioner.backend.name,
        "precision": manifest.engines["backbone"].precision,
        "kinds": list(FORMS),
        "can": {
            "nearest": manifest.memory is not None,
            "beams": "beam_decoder" in manifest.engines,
            "attention": manifest.backbone.attention_heads > 0,
        },
        "limits": {
            name: value for name, value in asdict(service.limits).items() if name in schemas.LimitsAnswer.model_fields
        },
    }
