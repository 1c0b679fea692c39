"""The application of ASGI: the door, the calls, the probes and the page (docs/serve.md)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from runtime.captioner import Captioner
from runtime.serving.http.admission import Admission
from runtime.serving.http.calls import calls_of
from runtime.serving.http.door import Door
from runtime.serving.http.error_handlers import add_error_handlers
from runtime.serving.http.metrics import Metrics
from runtime.serving.http.probes import probes_of
from runtime.serving.http.service import CaptionService
from runtime.serving.http.settings import DEFAULT_WORKERS, LIMITS, LOOPBACK, Access, ServiceLimits
from runtime.serving.http.store import FeatureStore
from runtime.system.version import __version__

_PAGE = Path(__file__).parent / "page"
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "media-src 'self' blob:; connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "camera=(self)",
    "Cache-Control": "no-cache",
}
_SWEEPS = 10
"""How often those feature maps whose time is over are looked for in the time that one is kept."""
_DESCRIPTION = "Describe any region of an image in words: encode an image once, then ask for any of its regions."


def create_app(
    captioner: Captioner,
    access: Access = LOOPBACK,
    limits: ServiceLimits = LIMITS,
    workers: int = DEFAULT_WORKERS,
) -> FastAPI:
    """Return the service of a captioner, for a server of ASGI; `runtime.serving.http.server.serve` is one.

    Args:
        captioner: which the service does not close.
        workers: images that are encoded at a time.

    Raises:
        OptionError: ``workers`` is no number of threads.
    """
    store, queue = FeatureStore(limits), Admission(limits)
    metrics = Metrics(queue, store)
    service = CaptionService(captioner, limits, store, metrics, workers)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        sweeping = asyncio.create_task(_sweep(store, limits.feature_seconds / _SWEEPS))
        try:
            yield
        finally:
            sweeping.cancel()
            with suppress(asyncio.CancelledError):
                await sweeping
            await asyncio.to_thread(service.close)

    app = FastAPI(
        title="patchcaption",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # whose pages load assets from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(calls_of(service))
    app.include_router(probes_of(service))
    _add_page(app)
    add_error_handlers(app)
    app.add_middleware(Door, access=access, limits=limits, queue=queue, metrics=metrics)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.origins,
            allow_methods=["DELETE", "GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
            expose_headers=["Location", "Retry-After"],
        )
    return app


class _PageFiles(StaticFiles):
    """The files of the page, with its policy."""

    def file_response(self, *args: object, **keywords: object) -> Response:
        """Return a file, with the page's headers."""
        answer = super().file_response(*args, **keywords)  # type: ignore[arg-type]
        answer.headers.update(_PAGE_HEADERS)
        return answer


def _add_page(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return FileResponse(_PAGE / "index.html", headers=_PAGE_HEADERS)

    app.mount("/page", _PageFiles(directory=_PAGE), "page")


async def _sweep(store: FeatureStore, seconds: float) -> None:
    """Look from time to time for feature maps whose time is over."""
    while True:
        await asyncio.sleep(seconds)
        store.sweep()
