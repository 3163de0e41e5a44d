"""Starting the server."""

import logging
import socket

from fastapi import FastAPI

from mllm.errors import UserError
from mllm.inference.serve.app import ServerSettings, build_app
from mllm.model.interface import VisionLanguageModel
from mllm.processor import Processor

logger = logging.getLogger(__name__)
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def bind(host: str, port: int) -> socket.socket:
    """A socket that listens, so that a port in use is known before the model is loaded. Raises UserError."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise UserError(f"can't listen on {host} port {port}: {error}; choose another --host or --port") from None


def serve(model: VisionLanguageModel, processor: Processor, settings: ServerSettings, listener: socket.socket) -> None:
    """Answer requests to a model until Ctrl-C or SIGTERM."""
    run_app(build_app(model, processor, settings), settings.name, settings.api_key, "a page at /", listener)


def run_app(app: FastAPI, name: str, api_key: str | None, beside: str, listener: socket.socket) -> None:
    """Run an application until Ctrl-C or SIGTERM. beside: what it has beside OpenAI's API, in words."""
    import uvicorn

    host, port = listener.getsockname()[:2]
    if host not in LOOPBACK and api_key is None:
        logger.warning("listening on %s without an API key: whoever reaches this machine can use the model", host)
    logger.info("model %r on http://%s:%d, OpenAI's API under /v1, %s", name, host, port, beside)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=5)
    uvicorn.Server(config).run([listener])
