"""A model behind an OpenAI-compatible endpoint: a small server here says what it was asked."""

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from mllm.cli import build_parser
from mllm.clients.openai import Sampling
from mllm.errors import UserError
from mllm.evaluation.asking import Question
from mllm.evaluation.subjects.endpoint import Endpoint
from mllm.media.data_url import file_url
from tests.synthesis.faulty_server import refused_by_new_model
from tests.tiny import save_image


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


@pytest.fixture
def server():
    with FakeServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def answers_of(server, questions, **more):
    found = {}
    Endpoint("gpt-x", server.url, **({"concurrency": 4} | more)).answer(questions, found.update)
    return found


def test_images_go_as_data_urls_and_answers_come_with_log_probabilities(server, tmp_path):
    png = save_image(tmp_path / "a.png", (40, 0, 0))
    bmp = save_image(tmp_path / "b.bmp", (80, 0, 0))
    questions = [Question("what?", png, 8), Question("what?", bmp, 8), Question("why?", None, 5)]
    found = answers_of(server, questions)
    assert [found[q].text for q in questions] == ["data:image/png 40", "data:image/png 80", "why?"]
    assert {reply.logprob for reply in found.values()} == {-0.75}
    assert sorted((b["model"], b["max_tokens"], b["temperature"]) for b in server.bodies) == [
        ("gpt-x", 5, 0),
        ("gpt-x", 8, 0),
        ("gpt-x", 8, 0),
    ]
    (tmp_path / "c.png").write_text("no image")
    with pytest.raises(UserError, match=r"c\.png"):
        file_url(tmp_path / "c.png")


def test_as_many_requests_are_under_way_as_was_said(server):
    server.gate = threading.Barrier(3)
    found = answers_of(server, [Question(f"{n}?", None, 8) for n in range(9)], concurrency=3)
    assert len(found) == 9 and server.most == 3


def test_busy_servers_are_asked_again_and_broken_ones_named(server):
    server.refuse = lambda body, number: (429, {"error": {"message": "slow down"}}) if number <= 2 else None
    question = Question("why?", None, 8)
    assert answers_of(server, [question])[question].text == "why?" and len(server.bodies) == 3
    server.refuse = lambda body, number: (401, {"error": {"message": "no such key"}})
    with pytest.raises(UserError, match=r"model gpt-x: .*no such key"):
        answers_of(server, [question])
    server.refuse = lambda body, number: (500, {"error": {"message": "out of order"}})
    with pytest.raises(UserError, match="out of order"):
        answers_of(server, [question], retries=1)


def test_what_was_answered_before_an_error_is_handed_out(server):
    server.refuse = lambda body, number: (400, {"error": {"message": "too long"}}) if number == 4 else None
    found = {}
    with pytest.raises(UserError, match="too long"):
        Endpoint("gpt-x", server.url, 1).answer([Question(f"{n}?", None, 8) for n in range(9)], found.update)
    assert len(found) == 3


def test_an_endpoint_without_log_probabilities_is_asked_without(server):
    """Some call it a bad request, models of OpenAI that reason call it forbidden."""
    questions = [Question(f"{n}?", None, 8) for n in range(6)]
    for status in (400, 403):
        refused = status, {"error": {"message": "unknown: logprobs"}}
        server.refuse = lambda body, _, refused=refused: refused if "logprobs" in body else None
        server.bodies.clear()
        found = answers_of(server, questions, concurrency=1)
        assert {reply.logprob for reply in found.values()} == {None} and len(server.bodies) == 7


def test_a_field_that_the_model_refuses_ends_the_evaluation_with_the_option_to_give(server, tmp_path):
    server.refuse = lambda body, _: (400, {"error": error}) if (error := refused_by_new_model(body)) else None
    with open(tmp_path / "own.jsonl", "w", encoding="utf-8") as file:
        for name, red in (("a.png", 10), ("b.png", 20)):
            save_image(tmp_path / name, (red, 0, 0))
            file.write(json.dumps({"image": name, "question": "red?", "answer": f"data:image/png {red}"}) + "\n")
    names = ["--benchmarks", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out"), "--base-url", server.url]

    def run(*more):
        options = build_parser().parse_args(["eval", "openai:gpt-x", *names, *more])
        options.run(options)

    given = []
    for advice in (["--max-tokens-name", "max_completion_tokens"], ["--temperature", "null"]):
        with pytest.raises(UserError, match=rf"model gpt-x: .*; say {' '.join(advice)}$"):
            run(*given)
        given += advice
    server.bodies.clear()
    run(*given, "--thinking-tokens", "1000")
    limits = {body["max_completion_tokens"] for body in server.bodies}
    assert all(limit > 1000 for limit in limits) and not any("temperature" in body for body in server.bodies)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["temperature"], results["thinking_tokens"]) == (None, 1000) and results["decoding"]["do_sample"]
    asked = len(server.bodies)
    run(*given, "--thinking-tokens", "1001")  # other answers than those that are kept
    assert len(server.bodies) == 2 * asked
    with pytest.raises(SystemExit):
        build_parser().parse_args(["eval", "openai:gpt-x", *names, "--temperature", "-1"])


@pytest.mark.parametrize(
    ("sampling", "status", "error", "remedy"),
    [
        (Sampling("max_completion_tokens"), 400, {"message": "Unrecognized request argument supplied: max_completion_tokens"},
         ("max_tokens_name", "max_tokens")),
        (Sampling(), 400, {"message": "max_tokens is too large: 9000"}, None),
        (Sampling(), 400, {"message": "unsupported image; see max_tokens", "param": "messages"}, None),
        (Sampling(temperature=None), 400, {"message": "temperature: deprecated"}, None),
        (Sampling(), 429, {"message": "temperature is not supported today"}, None),
    ],
)  # fmt: skip
def test_only_a_field_that_is_refused_as_such_has_a_remedy(sampling, status, error, remedy):
    found = Exception(f"Error code: {status} - {error}")
    found.status_code, found.param = status, error.get("param")
    assert sampling.remedy(found) == remedy


def test_eval_scores_an_endpoint(server, tmp_path, capsys):
    lines = [{"image": f"{n}.png", "question": "red?", "answer": f"data:image/png {n}"} for n in (10, 20)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for n in (10, 20):
        save_image(tmp_path / f"{n}.png", (n, 0, 0))

    def run(*more):
        names = ["--benchmarks", tmp_path / "own.jsonl", "--output", tmp_path / "out"]
        options = build_parser().parse_args(["eval", "openai:gpt-x", *map(str, [*names, *more])])
        options.run(options)

    run("--base-url", server.url)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["model"], results["endpoint"]) == ("openai:gpt-x", server.url)
    (scores,) = results["scores"].values()
    assert {s["condition"]: s["score"] for s in scores} == {"model": 1.0, "withheld": 0.0, "swapped": 0.0}
    asked = len(server.bodies)
    run("--base-url", server.url)
    assert len(server.bodies) == asked
    with pytest.raises(UserError, match="--base-url"):
        run()
    with pytest.raises(UserError, match="needs questions with options"):
        run("--base-url", server.url, "--choice-by", "likelihood")
