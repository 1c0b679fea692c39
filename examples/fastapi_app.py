"""Captions in a FastAPI app of your own: the library without our server, which adds limits, tokens and metrics.

uvicorn examples.fastapi_app:app   # or python examples/fastapi_app.py --bundle engines/demo
curl -F image=@export/demo/sample/scene.jpg -F 'boxes=[[276, 174, 507, 399]]' 127.0.0.1:8000/captions
"""

from __future__ import annotations

import argparse
import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated
from uuid import uuid4

import uvicorn
from fastapi import FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Json

from patchcaption import Caption, Captioner, FeatureMap, PatchcaptionError

KEPT = 32
"""Images that can be asked about again; each takes a few megabytes."""
Boxes = list[tuple[float, float, float, float]]  # corners x1, y1, x2, y2 in pixels of the image


def create_app(bundle: str = "engines/demo") -> FastAPI:
    kept: OrderedDict[str, FeatureMap] = OrderedDict()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with Captioner.load(bundle) as captioner, captioner.batching() as batching:  # which decodes requests together
            app.state.captioner, app.state.batching = captioner, batching
            yield

    app = FastAPI(title="Captions of boxes", lifespan=lifespan)

    @app.post("/captions")
    async def caption(image: UploadFile, boxes: Annotated[Json[Boxes], Form()]) -> list[dict[str, object]]:
        return rows(await app.state.batching.acaption(await image.read(), boxes, on_bad="skip"))

    @app.post("/images", status_code=201)
    async def encode(image: UploadFile) -> dict[str, str]:
        name = uuid4().hex
        kept[name] = await asyncio.to_thread(app.state.captioner.encode, await image.read())
        if len(kept) > KEPT:
            kept.popitem(last=False)
        return {"id": name}

    @app.post("/images/{name}/captions")
    async def describe(name: str, boxes: Boxes) -> list[dict[str, object]]:
        if name not in kept:
            raise HTTPException(404, f"no image {name}: send it again")
        return rows(await app.state.batching.adescribe(kept[name], boxes, on_bad="skip"))

    @app.exception_handler(PatchcaptionError)
    def refuse(_: Request, error: PatchcaptionError) -> JSONResponse:
        return JSONResponse({"detail": str(error)}, 400 if isinstance(error, ValueError) else 500)  # whose fault it is

    @app.exception_handler(RequestValidationError)
    def refuse_form(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        return JSONResponse({"detail": f"{'.'.join(map(str, first['loc']))}: {first['msg']}"}, 422)

    return app


def rows(captions: list[Caption]) -> list[dict[str, object]]:
    return [{"text": caption.text, "score": caption.score, "error": caption.error} for caption in captions]


app = create_app()
if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Serve captions of boxes.")
    parser.add_argument("--bundle", default="engines/demo")
    uvicorn.run(create_app(parser.parse_args().bundle))
