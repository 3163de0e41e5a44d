"""The web application: OpenAI's routes, health, metrics and the page."""

import asyncio
import json
import re
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from mllm.errors import UserError
from mllm.inference.answer import Answer, Stream
from mllm.inference.confidence import Confidence, Said
from mllm.inference.generate import check_context
from mllm.inference.places import Places, places_in
from mllm.inference.request import prompt_of
from mllm.inference.serve.batch_queue import BatchQueue, Job, QueueFullError
from mllm.inference.serve.counters import Metrics
from mllm.inference.serve.limits import ApiKey, BodyLimit, error_body
from mllm.inference.serve.page import read_page
from mllm.inference.serve.protocol import (
    FINISH_REASONS,
    ChatCompletionRequest,
    FieldError,
    chunk,
    completion,
    confidence_fields,
    logprobs_of,
    places_field,
    usage,
)
from mllm.media.clip import check_frames
from mllm.media.remote import fetch_image
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

DISCONNECT_POLL_S = 0.25
ORIGIN = re.compile(r"\*|[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[^/\s:?#]+)(:\d+)?", re.IGNORECASE)
# A piece of the text of a choice; at the end all answers, or what went wrong.
_Progress = tuple[int, str] | list[Answer] | Exception
_Events = asyncio.Queue[_Progress]


@dataclass(frozen=True)
class ServerSettings:
    """What the server allows.

    name: the model's, for clients. max_new_tokens: of an answer, where a request doesn't say. cors_origins: pages of other
    origins that browsers may let use the API, such as https://app.example:8443; `*` is every page. confidence: how sure
    answers are, which they then carry; None where that isn't known.
    """

    name: str
    max_new_tokens: int = 256
    max_batch: int = 32
    max_queue: int = 64
    timeout_s: float = 120.0
    max_body_bytes: int = 64 * 2**20
    allow_remote_images: bool = False
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    confidence: Confidence | None = None

    def __post_init__(self) -> None:
        """Raise UserError for a name that is empty, or a bound that nothing keeps to."""
        if not self.name:
            raise UserError("the model needs a name for clients (--name)")
        for field in ("max_new_tokens", "max_batch", "max_queue", "max_body_bytes"):
            if getattr(self, field) < 1:
                raise UserError(f"{field} is {getattr(self, field)}; give at least 1")
        if not 0 < self.timeout_s < float("inf"):
            raise UserError(f"timeout_s is {self.timeout_s}; give seconds above 0")
        for origin in self.cors_origins:
            if not ORIGIN.fullmatch(origin):
                raise UserError(
                    f"the origin {origin!r} is none; give SCHEME://HOST or SCHEME://HOST:PORT, or * for all"
                )


def build_app(model: VisionLanguageModel, processor: Processor, settings: ServerSettings) -> FastAPI:
    """The application. Its queue starts and stops with it."""
    queue = BatchQueue(model, processor, settings.max_batch, settings.max_queue)
    metrics = Metrics(queue)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        queue.start()
        yield
        await asyncio.to_thread(queue.stop)

    # FastAPI's own pages of documentation load scripts from elsewhere.
    app = FastAPI(title="mllm", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, max_bytes=settings.max_body_bytes)
    if settings.api_key is not None:
        app.add_middleware(ApiKey, key=settings.api_key)
    if settings.cors_origins:
        # Outermost, because a browser asks for leave without the key.
        app.add_middleware(
            CORSMiddleware, allow_origins=settings.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"]
        )
    service = _Service(model, processor, settings, queue, metrics)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        metrics.requests.labels("400").inc()
        first = error.errors()[0]
        if first["type"] == "json_invalid":
            return error_body(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}")
        field = ".".join(str(part) for part in first["loc"][1:])
        reason = str(first["msg"]).removeprefix("Value error, ")
        return error_body(400, f"{field or 'body'}: {reason}", field or None)

    @app.exception_handler(StarletteHTTPException)
    async def refused(_: Request, error: StarletteHTTPException) -> JSONResponse:
        return error_body(error.status_code, str(error.detail))

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": settings.name}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    entry = {"id": settings.name, "object": "model", "created": service.started, "owned_by": "mllm"}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [entry]}

    # A name may have slashes in it.
    @app.get("/v1/models/{name:path}")
    async def named_model(name: str) -> Response:
        return JSONResponse(entry) if name == settings.name else service.unknown_model(name)

    @app.post("/v1/chat/completions")
    async def chat(body: ChatCompletionRequest, request: Request) -> Response:
        response = await service.answer(body, request)
        metrics.requests.labels(str(response.status_code)).inc()
        return response

    page, policy = read_page()

    @app.get("/", response_class=HTMLResponse)
    async def home() -> HTMLResponse:
        return HTMLResponse(page, headers={"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff"})

    return app


class _Service:
    """From a checked body to a response."""

    def __init__(
        self,
        model: VisionLanguageModel,
        processor: Processor,
        settings: ServerSettings,
        queue: BatchQueue,
        metrics: Metrics,
    ) -> None:
        self.model, self.processor, self.settings = model, processor, settings
        self.queue, self.metrics = queue, metrics
        self.started = int(time.time())

    async def answer(self, body: ChatCompletionRequest, request: Request) -> Response:
        begun = time.monotonic()
        if body.model != self.settings.name:
            return self.unknown_model(body.model)
        events: _Events = asyncio.Queue()
        try:
            job = await asyncio.to_thread(self._job, body, begun, events, asyncio.get_running_loop())
            self.queue.submit(job)
        except FieldError as error:
            return error_body(400, str(error), error.field)
        except QueueFullError:
            return error_body(429, f"{self.settings.max_queue} requests are waiting; try again", code="queue_full")
        identity = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": self.settings.name,
        }
        if body.stream:
            stream = self._stream(body, job, events, identity, begun)
            return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        return await self._whole(body, job, events, identity, begun, request)

    def unknown_model(self, name: str) -> Response:
        message = f"the model {name!r} is not served here; it is {self.settings.name!r}"
        return error_body(404, message, "model", "model_not_found")

    def _job(self, body: ChatCompletionRequest, begun: float, events: _Events, loop: asyncio.AbstractEventLoop) -> Job:
        """Decode the images and frames of videos and render the prompt. Raises FieldError."""
        request = body.request(fetch_image if self.settings.allow_remote_images else None)
        decoding = body.decoding(self.settings.max_new_tokens)
        if self.settings.confidence is not None:
            decoding = replace(decoding, logprobs=True)
        try:
            prompt = prompt_of(request, self.processor)
            check_context(self.model, len(prompt), decoding.max_new_tokens)
            for shown in prompt.shown:
                if shown.visual.frames is not None:
                    check_frames(
                        shown.source, shown.visual.frames
                    )  # a damaged frame is this request's, not its batch's
        except UserError as error:
            raise FieldError("messages", str(error)) from None

        def send(event: Any) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        rows: list[Stream] = []
        job = Job(prompt, rows, body.seed, begun + self.settings.timeout_s, send)
        for index in range(body.n):
            say = partial(_say, send, index) if body.stream else None
            on_text = None if self._is_held else say
            rows.append(Stream(self.processor, decoding, on_text, lambda: job.is_over, say and partial(say, "")))
        return job

    async def _whole(
        self,
        body: ChatCompletionRequest,
        job: Job,
        events: _Events,
        identity: dict[str, Any],
        begun: float,
        request: Request,
    ) -> Response:
        waiting = asyncio.ensure_future(events.get())
        try:
            while not waiting.done() and (left := job.deadline - time.monotonic()) > 0:
                await asyncio.wait([waiting], timeout=min(DISCONNECT_POLL_S, left))
                if not waiting.done() and await request.is_disconnected():
                    return Response(status_code=499)
            if not waiting.done() or time.monotonic() > job.deadline:
                return error_body(504, f"the answer took longer than {self.settings.timeout_s:g} s", code="timeout")
            result = waiting.result()
        finally:  # also when the server stops and cancels this task
            job.cancelled.set()
            waiting.cancel()
        if isinstance(result, Exception):
            return error_body(500, "the answer failed; the server's log says why")
        assert isinstance(result, list)  # of a job that isn't streamed there are no pieces
        self.metrics.latency.observe(time.monotonic() - begun)
        self.metrics.count(result)
        said = [self._said(answer) for answer in result]
        places = [self._places(job, told.text) for told in said]
        return JSONResponse(completion(identity, result, body.logprobs, self.processor.tokenizer, places, said))

    @property
    def _is_held(self) -> bool:
        """Whether an answer is said only when it is whole, because it may be abstained from."""
        return self.settings.confidence is not None and self.settings.confidence.may_abstain

    def _said(self, answer: Answer) -> Said:
        return Said(answer.text) if self.settings.confidence is None else self.settings.confidence.said(answer)

    def _places(self, job: Job, text: str) -> Places | None:
        return places_in(text, job.prompt.shown, self.processor)

    async def _stream(
        self,
        body: ChatCompletionRequest,
        job: Job,
        events: _Events,
        identity: dict[str, Any],
        begun: float,
    ) -> AsyncIterator[str]:
        """Server-sent events. Runs to its end, or is closed when the client goes, which cancels the job."""
        told = [0] * body.n  # log-probabilities already sent, by choice
        is_first = True
        try:
            for index in range(body.n):
                yield _event(chunk(identity, index, {"role": "assistant", "content": ""}))
            while isinstance(event := await _next(events, job), tuple):
                index, piece = event
                if is_first and (piece or self._is_held):
                    self.metrics.first_text.observe(time.monotonic() - begun)
                    is_first = False
                row = job.rows[index]
                said = None if piece else self._said(row.answer(0, 0))
                fresh = [] if said is not None and said.abstained else row.logprobs[told[index] :]
                told[index] += len(fresh)
                logprobs = logprobs_of(fresh, self.processor.tokenizer) if body.logprobs else None
                if said is None:
                    yield _event(chunk(identity, index, {"content": piece}, logprobs))
                    continue
                if self._is_held and said.text:
                    yield _event(chunk(identity, index, {"content": said.text}))
                delta = confidence_fields(said) | places_field(self._places(job, said.text))
                finish = FINISH_REASONS[row.finish_reason or "cancelled"]
                yield _event(chunk(identity, index, delta, logprobs, finish))
            is_late = time.monotonic() > job.deadline
            if is_late or isinstance(event, Exception):
                message = "the answer took too long" if is_late else "the answer failed; the server's log says why"
                yield _event({"error": {"message": message, "type": "server_error", "param": None, "code": None}})
                return
            self.metrics.latency.observe(time.monotonic() - begun)
            self.metrics.count(event)
            if body.stream_options is not None and body.stream_options.include_usage:
                yield _event(identity | {"object": "chat.completion.chunk", "choices": [], "usage": usage(event)})
            yield "data: [DONE]\n\n"
        finally:
            job.cancelled.set()


async def _next(events: _Events, job: Job) -> _Progress:
    """The job's next event, or a TimeoutError at its deadline."""
    try:
        return await asyncio.wait_for(events.get(), max(0.0, job.deadline - time.monotonic()))
    except asyncio.TimeoutError:  # before Python 3.11 not the TimeoutError
        return TimeoutError()


def _say(send: Callable[[Any], None], index: int, piece: str) -> None:
    """A new piece of the text of choice `index`; an empty one when it is finished."""
    send((index, piece))


def _event(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
