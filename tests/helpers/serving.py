"""The server on loopback, its clients, and images for them."""

import base64
import threading
import time
import zlib
from contextlib import contextmanager
from pathlib import Path

import openai
import uvicorn

from mllm.inference.serve.app import ServerSettings, build_app
from mllm.inference.serve.listening import bind


@contextmanager
def serving(assembled, **settings):
    """A server on loopback; yields its port."""
    listener = bind("127.0.0.1", 0)
    app = build_app(*assembled, ServerSettings(name="tiny", **({"max_new_tokens": 6} | settings)))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def client_of(port, key="none"):
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0)


def data_url(path):
    return "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()


def question(text, *paths):
    content = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in paths]
    return {"role": "user", "content": [*content, {"type": "text", "text": text}]}


def png(side, rows):
    """A PNG that says it is side × side pixels, whatever `rows` hold."""

    def part(kind, body):
        return len(body).to_bytes(4, "big") + kind + body + zlib.crc32(kind + body).to_bytes(4, "big")

    header = side.to_bytes(4, "big") * 2 + b"\x08\x02\x00\x00\x00"
    return b"\x89PNG\r\n\x1a\n" + part(b"IHDR", header) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")


PNG = "data:image/png;base64,"
RED = PNG + base64.b64encode(png(2, (b"\0" + b"\xff\0\0" * 2) * 2)).decode()


@contextmanager
def slow(model, seconds):
    """Each token takes so long more. Yields a list that grows with each pass over the model."""
    passes = []

    def wait(*_):
        passes.append(1)
        time.sleep(seconds)

    handle = model.language_model.get_decoder().register_forward_pre_hook(wait)
    yield passes
    handle.remove()
