"""What stands before the application: a bound on the size of a request's body, and the API key."""

import secrets
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def error_body(status: int, message: str, field: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's shape."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    headers = {"Retry-After": "1"} if status == 429 else None
    # A message may quote what came, and JSON can spell half a surrogate pair.
    message = message.encode("utf-8", "replace").decode("utf-8")
    body = {"error": {"message": message, "type": kind, "param": field, "code": code}}
    return JSONResponse(body, status, headers)


class ApiKey:
    """ASGI middleware: below /v1/ a request without the key is answered with 401, its body unread."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self.app, self.key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith("/v1/"):
            given = Headers(scope=scope).get("authorization", "").removeprefix("Bearer ")
            if not secrets.compare_digest(given.encode(), self.key.encode()):
                refusal = error_body(401, "the API key is missing or wrong", code="invalid_api_key")
                await refusal(scope, receive, send)
                return
        await self.app(scope, receive, send)


class BodyLimit:
    """ASGI middleware: a body over `max_bytes` is answered with 413 before it is read in full."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self.app, self.max_bytes = app, max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        seen = 0

        async def limited() -> Message:
            nonlocal seen
            message: Any = await receive()
            seen += len(message.get("body", b""))
            if seen > self.max_bytes:
                raise HTTPException(413, f"the body has more than {self.max_bytes} bytes")
            return message

        await self.app(scope, limited, send)
