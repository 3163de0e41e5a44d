"""A local server that speaks OpenAI's chat completions, with faults switched on, and a ledger of what it was paid for."""

import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

JSON = "application/json"
USAGE = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}


def refused_by_new_model(request: dict) -> dict | None:
    """The error with which newer models of OpenAI answer `max_tokens`, and any temperature."""
    if "max_tokens" in request:
        words = "'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead."
        return {"message": f"Unsupported parameter: {words}", "param": "max_tokens", "code": "unsupported_parameter"}
    if "temperature" in request:
        words = "'temperature' does not support 0 with this model. Only the default (1) value is supported."
        return {"message": f"Unsupported value: {words}", "param": "temperature", "code": "unsupported_value"}
    return None


def blocks(*turns: tuple[str, str]) -> str:
    return "\n===\n".join(f"Question: {q}\n===\nAnswer: {a}" for q, a in turns)


def answer_about(request: dict) -> str:
    """A fitting answer to the last message: its first line is the caption."""
    caption = request["messages"][-1]["content"].split("\n")[0]
    return blocks((f"What do you see, apart from {len(caption)} other things?", f"I see this here: {caption}"))


class Ledger:
    """Counts of requests and whole answers by idempotency key; `faults` in turn, an attempt of a key each."""

    def __init__(self, faults: tuple[str, ...], answer: Callable[[dict], str], delay_s: Callable[[str], float]) -> None:
        self.faults, self.answer, self.delay_s = faults, answer, delay_s
        self.tried: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.requests: list[dict] = []
        self.authorizations: set[str] = set()
        self.now = self.most_at_once = 0
        self.lock = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    ledger: Ledger

    def log_message(self, *args: object) -> None:
        """Silent."""

    def do_POST(self) -> None:
        ledger = self.ledger
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers["Idempotency-Key"]
        with ledger.lock:
            attempt = ledger.tried[key]
            ledger.tried[key] += 1
            ledger.requests.append(request)
            ledger.authorizations.add(self.headers["Authorization"])
            ledger.now += 1
            ledger.most_at_once = max(ledger.most_at_once, ledger.now)
        try:
            time.sleep(ledger.delay_s(key))
            # Where a key starts in the list of faults depends on it alone, so that requests fail differently.
            start = int(key[:4], 16) % (len(ledger.faults) + 1)
            fault = (*ledger.faults, *ledger.faults)[start + attempt] if attempt < len(ledger.faults) else ""
            self._respond(fault, key, request)
        finally:
            with ledger.lock:
                ledger.now -= 1

    def _respond(self, fault: str, key: str, request: dict) -> None:
        message = {"role": "assistant", "content": self.ledger.answer(request)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        whole = {
            "id": key,
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": [choice],
            "usage": USAGE,
        }
        if fault == "no_schema" and "response_format" in request:
            self._send(400, json.dumps({"error": {"message": "response_format is not supported"}}).encode())
        elif fault == "new_model" and (error := refused_by_new_model(request)):
            self._send(400, json.dumps({"error": error}).encode())
        elif fault == "too_long":
            self._send(400, json.dumps({"error": {"message": "max_tokens is too large: 1024"}}).encode())
        elif fault.isdigit():
            self._send(int(fault), json.dumps({"error": {"message": "as you asked"}}).encode(), retry_after="0.01")
        elif fault == "timeout":
            time.sleep(0.9)
            self.close_connection = True
        elif fault == "drip":
            self._send(200, json.dumps(whole).encode(), drop_s=0.1)
        elif fault == "cut":
            self._send(200, json.dumps(whole).encode(), cut=True)
        elif fault == "malformed":
            self._send(200, b'{"choices": [{"message"')
        elif fault == "no_choices":
            self._send(200, json.dumps(whole | {"choices": [], "usage": None}).encode())
        else:
            with self.ledger.lock:
                self.ledger.paid[key] += 1
            if fault == "refusal":
                choice["message"] = {"role": "assistant", "content": None, "refusal": "I won't."}
            if fault == "silence":
                choice["message"] = {"role": "assistant", "content": None}
            if fault == "parts":
                thought = {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}
                text = {"type": "text", "text": choice["message"]["content"]}
                choice["message"]["content"] = [thought, text]
            if fault == "half":
                # A character outside the basic plane that was cut in two.
                choice["message"]["content"] += " \ud83d"
            if fault == "endless":
                whole["usage"] = USAGE | {"prompt_tokens": 10**30}
            if fault == "twice":
                whole["choices"] = [choice, choice | {"index": 1}]
            self._send(200, json.dumps(whole).encode(), content_type="text/plain" if fault == "plain" else JSON)

    def _send(
        self,
        status: int,
        body: bytes,
        retry_after: str = "",
        cut: bool = False,
        drop_s: float = 0.0,
        content_type: str = JSON,
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        if retry_after:
            self.send_header("Retry-After", retry_after)
        self.end_headers()
        self.close_connection = cut or drop_s > 0
        try:
            for byte in body if drop_s else ():
                self.wfile.write(bytes([byte]))
                time.sleep(drop_s)
            if not drop_s:
                self.wfile.write(body[: len(body) // 2] if cut else body)
        except OSError:
            """The client has given up waiting."""


@contextmanager
def serving(
    *faults: str, answer: Callable[[dict], str] = answer_about, delay_s: Callable[[str], float] = lambda key: 0.0
) -> Iterator[tuple[str, Ledger]]:
    """The base URL of a server on loopback, and its ledger."""
    ledger = Ledger(faults, answer, delay_s)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"ledger": ledger}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/v1", ledger
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
