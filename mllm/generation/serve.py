"""OpenAI's route for pictures over a generator: `/v1/images/generations`."""

import asyncio
import base64
import io
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from PIL import Image
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from mllm.errors import UserError
from mllm.generation.generator import Generator
from mllm.generation.pictures import draw_pictures
from mllm.generation.pipelines import Pipeline
from mllm.generation.sampler import Sampling
from mllm.inference.serve.fields import Label, Nothing, Strict
from mllm.inference.serve.limits import ApiKey, BodyLimit, error_body

MOST_PICTURES = 10
MAX_BODY_BYTES = 2**20
DEFAULT = Sampling()
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


class PicturesRequest(Strict):
    """The body of `/v1/images/generations`; `seed`, `guidance` and `steps` are ours."""

    prompt: str = Field(min_length=1)
    model: str | None = None
    n: int = Field(default=1, ge=1, le=MOST_PICTURES)
    size: str = "auto"
    response_format: Literal["b64_json"] = "b64_json"
    output_format: Literal["png", "jpeg", "webp"] = "png"
    output_compression: Annotated[int, Field(ge=0, le=100)] = 100
    seed: int | None = None
    guidance: float | None = None
    steps: int | None = None
    user: Label = None
    background: Literal["auto", "opaque"] = "auto"
    moderation: Literal["auto", "low"] = "auto"
    quality: Label = None
    style: Nothing = None
    stream: Literal[False] = False
    partial_images: Literal[0] = 0


@dataclass(frozen=True)
class PictureServerSettings:
    """What the server allows. name: the model's, for clients. how: pictures are drawn, where a request doesn't say."""

    name: str
    how: Sampling = DEFAULT
    max_batch: int = 16
    max_queue: int = 64
    timeout_s: float = 120.0
    api_key: str | None = None


class _TookTooLong(Exception):
    pass


def build_picture_app(generator: Generator | Pipeline, settings: PictureServerSettings) -> FastAPI:
    """Build the application. Requests are drawn one after the other, each of its pictures together."""
    app = FastAPI(title="mllm", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    entry = {"id": settings.name, "object": "model", "created": int(time.time()), "owned_by": "mllm"}
    desk = _Desk(generator, settings)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, str))
        reason = str(first["msg"]).removeprefix("Value error, ")
        return error_body(400, f"{field or 'body'}: {reason}", field or None)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return error_body(error.status_code, str(error.detail))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": settings.name}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    @app.post("/v1/images/generations")
    async def generations(body: PicturesRequest) -> Response:
        return await desk.answer(body)

    return app


class _Desk:
    """Takes requests in turn."""

    def __init__(self, generator: Generator | Pipeline, settings: PictureServerSettings) -> None:
        self.generator, self.settings = generator, settings
        self._turn = asyncio.Lock()
        self._waiting = 0

    async def answer(self, body: PicturesRequest) -> Response:
        settings = self.settings
        if body.model not in (None, settings.name):
            message = f"the model {body.model!r} is not served here; it is {settings.name!r}"
            return error_body(404, message, "model", "model_not_found")
        if self._waiting >= settings.max_queue:
            return error_body(429, f"{settings.max_queue} requests are waiting; try again", code="queue_full")
        deadline = time.monotonic() + settings.timeout_s
        self._waiting += 1
        try:
            async with self._turn:
                pictures, seeds = await asyncio.to_thread(self._draw, body, deadline)
        except UserError as error:
            return error_body(400, str(error))
        except _TookTooLong:
            return error_body(504, f"the pictures took longer than {settings.timeout_s:g} s", code="timeout")
        finally:
            self._waiting -= 1
        encode = partial(_encoded, kind=body.output_format, quality=body.output_compression)
        data = [{"b64_json": encode(p), "seed": seed} for p, seed in zip(pictures, seeds, strict=True)]
        return JSONResponse({"created": int(time.time()), "output_format": body.output_format, "data": data})

    def _draw(self, body: PicturesRequest, deadline: float) -> tuple[list[Image.Image], list[int]]:
        self._check_size(body.size)
        how = self.settings.how
        asked = Sampling(
            how.steps if body.steps is None else body.steps,
            how.method,
            how.guidance if body.guidance is None else body.guidance,
            how.rescale,
            how.eta,
        )
        first = random.randrange(2**31) if body.seed is None else body.seed
        seeds = [first + number for number in range(body.n)]
        pictures = draw_pictures(
            self.generator, [body.prompt] * body.n, seeds, asked, self.settings.max_batch, _until(deadline)
        )
        return pictures, seeds

    def _check_size(self, size: str) -> None:
        """Raise UserError for a size that isn't the model's."""
        if size == "auto" or isinstance(self.generator, Pipeline):
            return
        side = self.generator.config.image_size_px
        if size != f"{side}x{side}":
            raise UserError(f"size: this model draws {side}x{side}, not {size}; send that, or auto")


def _until(deadline: float) -> Callable[[int], None]:
    """Return what ends a drawing that is late."""

    def check(_: int) -> None:
        if time.monotonic() > deadline:
            raise _TookTooLong

    check(0)
    return check


def _encoded(picture: Image.Image, kind: str, quality: int) -> str:
    """Return a picture's file in base64."""
    file = io.BytesIO()
    picture.save(file, FORMATS[kind], **({} if kind == "png" else {"quality": quality}))
    return base64.b64encode(file.getvalue()).decode()
