"""The web application: the page, searches by text, by an image that is sent or by one of the index, and thumbnails."""

import asyncio
import io
import logging
import socket
import time
from collections.abc import Callable, Sequence
from importlib.resources import files
from threading import Lock
from typing import Annotated, Any

import torch
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from mllm.contrastive.index import ImageIndex
from mllm.errors import UserError
from mllm.inference.dual_features import DualEncoder
from mllm.inference.serve.limits import BodyLimit
from mllm.inference.serve.listening import LOOPBACK
from mllm.inference.serve.page import policy_of
from mllm.media.decode import read_image

logger = logging.getLogger(__name__)

THUMBNAIL_PX = 320
MOST = 500
MAX_BODY_BYTES = 32 * 2**20
Count = Annotated[int, Query(ge=1, le=MOST)]
Conditions = Annotated[list[str], Query()]


def build_app(index: ImageIndex, encoder: DualEncoder, name: str) -> FastAPI:
    """The application. A search answers {"hits": [{"row", "score", "path", "known"}], "ms"}; a user's mistake is a 400."""
    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="mllm", docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=MAX_BODY_BYTES)
    page = files("mllm.contrastive.browse").joinpath("page.html").read_text(encoding="utf-8")
    policy = policy_of(page)
    one_at_a_time = Lock()  # of model and index alike

    async def found(query: Callable[[], torch.Tensor], k: int, where: Sequence[str]) -> JSONResponse:
        def search() -> dict[str, Any]:
            started = time.monotonic()
            with one_at_a_time:
                hits = index.search(query(), k, [condition for condition in where if condition.strip()])
            shown = [{"row": h.row, "score": h.score, "path": h.path, "known": index.known(h.row)} for h in hits]
            return {"hits": shown, "ms": 1000 * (time.monotonic() - started)}

        return JSONResponse(await asyncio.to_thread(search))

    @app.exception_handler(UserError)
    async def mistaken(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, 400)

    @app.get("/", response_class=HTMLResponse)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    @app.get("/about")
    async def about() -> dict[str, Any]:
        return {"name": name, "images": len(index), "fields": index.table.column_names, "kind": index.record["factory"]}

    @app.get("/search")
    async def by_text(text: str, k: Count = 40, where: Conditions = []) -> JSONResponse:  # noqa: B006
        return await found(lambda: encoder.texts([text])[0], k, where)

    @app.post("/search")
    async def by_image(request: Request, k: Count = 40, where: Conditions = []) -> JSONResponse:  # noqa: B006
        body = await request.body()
        return await found(lambda: _of_bytes(encoder, body), k, where)

    @app.get("/like/{row}")
    async def by_row(row: int, k: Count = 40, where: Conditions = []) -> JSONResponse:  # noqa: B006
        _check_row(index, row)
        return await found(lambda: index.vector(row), k, where)

    @app.get("/image/{row}")
    async def thumbnail(row: int) -> Response:
        _check_row(index, row)
        data = await asyncio.to_thread(_thumbnail, index.path(row))
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "max-age=3600"})

    return app


def _check_row(index: ImageIndex, row: int) -> None:
    if not 0 <= row < len(index):
        raise HTTPException(404, f"the index has rows 0 to {len(index) - 1}")


def _of_bytes(encoder: DualEncoder, body: bytes) -> torch.Tensor:
    if not body:
        raise UserError("no image came")
    return encoder.pixels_to_features(encoder.preparer(read_image(body))[None])[0]


def _thumbnail(path: str) -> bytes:
    image = read_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX))
    data = io.BytesIO()
    image.save(data, "JPEG", quality=85)
    return data.getvalue()


def browse(index: ImageIndex, encoder: DualEncoder, name: str, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    if host not in LOOPBACK:
        logger.warning("listening on %s: whoever reaches this machine sees the images of the index", host)
    logger.info("%s images of %s on http://%s:%d", f"{len(index):,}", name, host, port)
    config = uvicorn.Config(build_app(index, encoder, name), log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run([listener])
