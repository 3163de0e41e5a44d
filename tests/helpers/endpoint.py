"""An OpenAI-compatible endpoint on loopback that says what it was asked."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from mllm.evaluation.subjects.endpoint import Endpoint


class FakeServer(ThreadingHTTPServer):
    """Answers with the colour of the image, or the words where there is none; `refuse` may answer in its place."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.bodies, self.together, self.most, self.lock = [], 0, 0, threading.Lock()
        self.refuse = lambda body, number: None
        self.gate = None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/v1"


@contextmanager
def serving():
    """A `FakeServer` that answers within the block."""
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with server.lock:
            server.bodies.append(body)
            server.together += 1
            server.most = max(server.most, server.together)
            refused = server.refuse(body, len(server.bodies))
        if server.gate is not None:
            server.gate.wait(timeout=5)
        with server.lock:
            server.together -= 1
        status, answer = refused or (200, completion(body))
        content = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("retry-after-ms", "5")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


def completion(body):
    *images, words = body["messages"][0]["content"]
    text = words["text"]
    if images:
        head, _, data = images[0]["image_url"]["url"].partition(";base64,")
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            text = f" {head} {image.convert('RGB').getpixel((0, 0))[0]}\n"
    logprobs = {"content": [{"token": "a", "logprob": p, "top_logprobs": []} for p in (-0.25, -0.5)]}
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
    choice["logprobs"] = logprobs if body.get("logprobs") else None
    return {"id": "1", "object": "chat.completion", "created": 0, "model": body["model"], "choices": [choice]}


def answers_of(server, questions, **more):
    found = {}
    Endpoint("gpt-x", server.url, **({"concurrency": 4} | more)).answer(questions, found.update)
    return found
