"""The server through its real clients: the `openai` package, and what misbehaves."""

import base64
import http.client
import json
import socket
import threading
import time

import openai
import pytest

from mllm.cli import build_parser
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.answer import Stream
from mllm.inference.decoding import Decoding
from mllm.inference.generate import Request, generate_answers
from mllm.inference.request import prompt_of
from mllm.inference.serve.batch_queue import BatchQueue, Job, QueueFullError
from mllm.inference.serve.listening import bind
from tests.helpers.serving import PNG, RED, client_of, png, question, serving, slow


@pytest.fixture
def client(port):
    return client_of(port)


def expected(assembled, text, *paths, decoding=None):
    parts = (*(ImagePart() for _ in paths), TextPart(text=text))
    request = Request((Message(role="system", content="Be kind."), Message(role="user", content=parts)), paths)
    return generate_answers(*assembled, [request], decoding or Decoding(max_new_tokens=6))[0]


SYSTEM = {"role": "system", "content": "Be kind."}


def test_the_openai_client_gets_the_answers_of_batch_generation(assembled, client, images):
    for paths in ((), images[:1], images):
        wanted = expected(assembled, "what is this", *paths)
        messages = [SYSTEM, question("what is this", *paths)]
        got = client.chat.completions.create(model="tiny", messages=messages, temperature=0, n=2)
        assert [choice.message.content for choice in got.choices] == [wanted.text] * 2
        assert got.choices[0].finish_reason == wanted.finish_reason
        assert got.usage.prompt_tokens == wanted.prompt_token_count
        assert got.usage.completion_tokens == 2 * len(wanted.token_ids)
        pieces = ["", ""]
        last = None
        for chunk in client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, n=2, stream=True, stream_options={"include_usage": True}
        ):
            last = chunk
            for choice in chunk.choices:
                pieces[choice.index] += choice.delta.content or ""
        assert pieces == [wanted.text] * 2 and last.usage == got.usage
    assert [m.id for m in client.models.list()] == ["tiny"]


def test_stop_logprobs_and_seed(assembled, client):
    ask = {"model": "tiny", "messages": [SYSTEM, question("what is this")], "temperature": 0}
    whole = expected(assembled, "what is this", decoding=Decoding(max_new_tokens=6, logprobs=True, top_logprobs=2))
    stop = whole.text[2:4]
    stopped = client.chat.completions.create(**ask, stop=[stop]).choices[0]
    assert stopped.message.content == whole.text[: whole.text.index(stop)].rstrip() and stopped.finish_reason == "stop"
    got = client.chat.completions.create(**ask, logprobs=True, top_logprobs=2).choices[0].logprobs.content
    assert [t.logprob for t in got] == pytest.approx([t.logprob for t in whole.logprobs], abs=1e-4)
    assert all(len(t.top_logprobs) == 2 for t in got)
    streamed = client.chat.completions.create(**ask, logprobs=True, stream=True)
    told = [t.logprob for c in streamed for choice in c.choices if choice.logprobs for t in choice.logprobs.content]
    assert told == pytest.approx([t.logprob for t in whole.logprobs], abs=1e-4)
    sampled = ask | {"temperature": 2.0, "seed": 7, "n": 3}
    first, again = (client.chat.completions.create(**sampled) for _ in range(2))
    assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
    assert len({c.message.content for c in first.choices}) > 1


def image_message(url):
    return {"role": "user", "content": [{"type": "image_url", "image_url": {"url": url}}]}


BAD_BODIES = [
    ({"messages": []}, "messages"),
    ({"messages": "hello"}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "assistant", "content": "x"}]}, "messages"),
    ({"messages": [{"role": "user", "content": " "}]}, "messages"),
    ({"messages": [{"role": "user", "content": "hello " * 600}]}, "messages"),
    ({"messages": [image_message(PNG + "%%%")]}, "messages.0.content.0.image_url"),
    ({"messages": [image_message(PNG + base64.b64encode(b"no image").decode())]}, "messages.0.content.0.image_url"),
    (
        {"messages": [image_message(PNG + base64.b64encode(png(60_000, b"")).decode())]},
        "messages.0.content.0.image_url",
    ),
    ({"messages": [image_message("http://127.0.0.1/x.png")]}, "messages.0.content.0.image_url"),
    ({"messages": [image_message("/etc/passwd")]}, "messages.0.content.0.image_url"),
    ({"messages": [image_message("tar:0:10:/etc/passwd")]}, "messages.0.content.0.image_url"),
    ({"temperature": "hot"}, "temperature"),
    ({"temperature": -1}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"n": 0}, "n"),
    ({"max_tokens": 0}, "max_tokens"),
    ({"stop": [""]}, "stop"),
    ({"stream": "maybe"}, "stream"),
    ({"messages": [{"role": "user", "content": []}]}, "messages"),
    ({"messages": [{"role": "user", "content": "hello"}, {"role": "user", "content": "hello"}]}, "messages"),
    ({"messages": [{"role": "system"} | image_message(RED), {"role": "user", "content": "hello"}]}, "messages"),
    ({"messages": [image_message(RED) for _ in range(2)]}, "messages"),
    ({"messages": [{"role": "user", "content": image_message(RED)["content"] * 17}]}, "messages"),
    ({"model": 5}, "model"),
    ({"max_tokens": "5"}, "max_tokens"),
    ({"max_tokens": 10**30}, "messages"),
    ({"n": 17}, "n"),
    ({"seed": 2**64}, "seed"),
    ({"seed": True}, "seed"),
    ({"stop": 0}, "stop"),
    ({"stop": ["a"] * 5}, "stop"),
    ({"logprobs": "yes"}, "logprobs"),
    ({"top_logprobs": 2}, "top_logprobs"),
    ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"stream_options": {"more": 1}}, "stream_options.more"),
    ({"frequency_penalty": 1}, "frequency_penalty"),
]


@pytest.mark.parametrize("change,field", BAD_BODIES)
def test_a_bad_body_is_a_400_that_names_the_field(client, change, field):
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]} | change
    with pytest.raises(openai.BadRequestError) as caught:
        client.post("/chat/completions", body=body, cast_to=object)
    error = caught.value.body
    assert error["param"].startswith(field) and error["message"]


def raw(port, body, path="/v1/chat/completions", headers=()):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", path, body, {"Content-Type": "application/json", **dict(headers)})
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text)


def test_what_is_no_request_at_all_is_refused_and_the_server_goes_on(port, client):
    half = b'{"model": "tiny", "messages": [{"role": "user", "content": %s}]}'
    for body in (
        *(b"{", b"\xff\xfe", b"[]", b"null", b"", b"[" * 100_000, b'{"\\ud800": 1}', half % b'"\\ud800"'),
        half % b'[{"type": "\\ud800"}]',
        half % b'[{"type": "image_url", "image_url": {"url": "\\ud800"}}]',
    ):
        status, answer = raw(port, body)
        assert status == 400 and answer["error"]["message"]
    with pytest.raises(openai.NotFoundError, match="is not served here"):
        client.chat.completions.create(model="other", messages=[question("hello")])
    assert raw(port, b"{}", "/v1/nothing")[0] == 404
    assert client.chat.completions.create(model="tiny", messages=[question("hello")]).choices


def test_too_long_a_body_and_a_wrong_key_are_refused(assembled):
    with serving(assembled, api_key="secret", max_body_bytes=2000) as port:
        for key in ("wrong", "sécret"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                client_of(port, key).models.list()
        client = client_of(port, "secret")
        assert client.chat.completions.create(model="tiny", messages=[question("hello")]).choices
        assert raw(port, b" " * 3000, headers={"Authorization": "Bearer secret"})[0] == 413
        connection = http.client.HTTPConnection("127.0.0.1", port)
        connection.request("GET", "/health")
        assert json.loads(connection.getresponse().read())["status"] == "ok"


def test_many_clients_are_answered_together_and_none_is_lost(assembled, port, images):
    texts = [f"what is this {'a dog ' * (i % 5)}" for i in range(24)]
    wanted = [expected(assembled, text, images[i % 3]).text for i, text in enumerate(texts)]
    got = [None] * len(texts)

    def run(i):
        messages = [SYSTEM, question(texts[i], images[i % 3])]
        answer = client_of(port).chat.completions.create(model="tiny", messages=messages, temperature=0)
        got[i] = answer.choices[0].message.content

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == wanted
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/metrics")
    metrics = dict(
        line.rsplit(" ", 1) for line in connection.getresponse().read().decode().splitlines() if line[0] != "#"
    )
    assert float(metrics['mllm_requests_total{status="200"}']) >= 24
    assert float(metrics['mllm_tokens_total{kind="computed"}']) < float(metrics['mllm_tokens_total{kind="prompt"}'])
    assert float(metrics["mllm_batch_rows_sum"]) > float(metrics["mllm_batch_rows_count"])
    assert float(metrics["mllm_waiting_requests"]) == 0


def test_a_full_queue_is_a_429_a_late_answer_a_504_and_a_vanished_client_frees_its_place(assembled):
    with (
        slow(assembled[0], 0.05),
        serving(assembled, max_batch=1, max_queue=1, max_new_tokens=200, timeout_s=3.0) as port,
    ):
        ask = json.dumps({"model": "tiny", "messages": [question("hello")], "stream": True, "temperature": 0})
        gone = socket.create_connection(("127.0.0.1", port))
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        head += f"Content-Length: {len(ask)}\r\n\r\n"
        gone.sendall((head + ask).encode())
        assert b"200" in gone.recv(100)
        results = []
        clients = [client_of(port) for _ in range(3)]  # making one takes longer than the requests

        def run(client):
            try:
                client.chat.completions.create(model="tiny", messages=[question("hello")], temperature=0)
                results.append(200)
            except openai.APIStatusError as error:
                results.append(error.status_code)

        threads = [threading.Thread(target=run, args=(client,)) for client in clients]
        for thread in threads:
            thread.start()
        while len(results) < 2:
            time.sleep(0.01)
        assert results == [429, 429]
        gone.close()
        for thread in threads:
            thread.join()
        assert results == [429, 429, 504]
        short = client_of(port).chat.completions.create(model="tiny", messages=[question("hello")], max_tokens=2)
        assert short.usage.completion_tokens == 2


def test_an_answer_that_nobody_waits_for_is_given_up_when_the_client_goes_or_the_server_stops(assembled):
    ask = {"model": "tiny", "messages": [question("hello")], "temperature": 0, "max_tokens": 400}
    with slow(assembled[0], 0.05) as passes, serving(assembled, max_batch=1) as port:
        with pytest.raises(openai.APITimeoutError):
            client_of(port).with_options(timeout=0.5).chat.completions.create(**ask)
        client = client_of(port)
        assert client.chat.completions.create(**ask | {"max_tokens": 2}).usage.completion_tokens == 2
        assert len(passes) < 200
        passes.clear()
        ends = []

        def run():
            with pytest.raises(openai.OpenAIError):
                client.chat.completions.create(**ask)
            ends.append(1)

        waiting = threading.Thread(target=run)
        waiting.start()
        while not passes:
            time.sleep(0.01)
    waiting.join()
    assert ends and len(passes) < 200


def test_who_went_away_while_waiting_gives_up_the_place(assembled):
    model, processor = assembled
    engine = BatchQueue(model, processor, max_batch=1, max_queue=1)
    prompt = prompt_of(Request((Message(role="user", content="hello"),)), processor)
    done = []
    first, second = (
        Job(prompt, [Stream(processor, Decoding(max_new_tokens=1))], None, time.monotonic() + 1e9, done.append)
        for _ in range(2)
    )
    engine.submit(first)
    with pytest.raises(QueueFullError):
        engine.submit(second)
    first.cancelled.set()
    engine.submit(second)
    assert engine.waiting == 1 and isinstance(done[0], TimeoutError)


def test_an_image_url_is_fetched_only_where_allowed_and_never_from_a_private_address(assembled, port, monkeypatch):
    from mllm.inference.serve import app

    ask = {"model": "tiny", "messages": [image_message("http://127.0.0.1:9/x.png")], "temperature": 0}
    with pytest.raises(openai.BadRequestError, match="remote images are off"):
        client_of(port).chat.completions.create(**ask)
    with serving(assembled, allow_remote_images=True) as open_port:
        client = client_of(open_port)
        with pytest.raises(openai.BadRequestError, match=r"private address 127\.0\.0\.1"):
            client.chat.completions.create(**ask)
        monkeypatch.setattr(app, "fetch_image", lambda url: base64.b64decode(RED.removeprefix(PNG)))
        fetched = client.chat.completions.create(**ask).choices[0].message.content
        sent = client.chat.completions.create(**ask | {"messages": [image_message(RED)]}).choices[0].message.content
        assert fetched == sent


def test_a_failing_batch_fails_those_in_it_alone(assembled, port, client, monkeypatch):
    import mllm.inference.serve.batch_queue as engine

    def fail(*_, **__):
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "generate_rows", fail)
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="tiny", messages=[question("hello")])
        streamed = client.chat.completions.create(model="tiny", messages=[question("hello")], stream=True)
        with pytest.raises(openai.APIError, match="failed"):
            list(streamed)
    assert client.chat.completions.create(model="tiny", messages=[question("hello")]).choices


def test_the_engine_gathers_what_waits_and_runs_seeded_jobs_alone(assembled):
    model, processor = assembled
    engine = BatchQueue(model, processor, max_batch=4, max_queue=6)
    batches = []
    engine.on_batch = batches.append
    prompt = prompt_of(Request((Message(role="user", content="hello"),)), processor)
    done = []

    def job(rows=1, seed=None, deadline=1e9):
        decoding = Decoding(max_new_tokens=2)
        return Job(
            prompt, [Stream(processor, decoding) for _ in range(rows)], seed, time.monotonic() + deadline, done.append
        )

    for waiting in (job(), job(2), job(2), job(seed=1), job(), job(deadline=-1)):
        engine.submit(waiting)
    engine.start()
    while len(done) < 6:
        time.sleep(0.01)
    engine.stop()
    assert batches == [3, 2, 1, 1] and sum(isinstance(d, TimeoutError) for d in done) == 1


def test_the_page_runs_its_own_script_only(port):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", "/")
    response = connection.getresponse()
    policy = response.getheader("Content-Security-Policy")
    page = response.read().decode()
    assert "script-src 'sha256-" in policy and "default-src 'none'" in policy
    assert "innerHTML" not in page and "http://" not in page and 'src="' not in page


def test_a_port_in_use_is_said_in_a_line(port):
    with pytest.raises(UserError, match=f"port {port}"):
        bind("127.0.0.1", port)
    with pytest.raises(UserError, match="port 99999"):
        bind("127.0.0.1", 99999)


def test_what_the_command_cannot_start_is_said_in_a_line(port, tmp_path, monkeypatch):
    for arguments, words in (
        (["--port", str(port)], f"port {port}"),
        (["--port", "0"], "does not exist"),
        (["--port", "0", "--host", "203.0.113.7"], "203.0.113.7"),
        *(([option, "0"], option[2:].replace("-", "_")) for option in ("--max-batch", "--max-queue", "--timeout-s")),
        (["--max-new-tokens", "0"], "max_new_tokens"),
        (["--timeout-s", "nan"], "timeout_s"),
    ):
        options = build_parser().parse_args(["serve", str(tmp_path / "gone"), *arguments])
        with pytest.raises(UserError, match=words):
            options.run(options)
    named = []
    monkeypatch.setattr(
        "mllm.inference.serve.listening.serve", lambda model, processor, settings, _: named.append(settings)
    )
    monkeypatch.setattr("mllm.commands.serve.load_model", lambda options: (None, None))
    monkeypatch.chdir(tmp_path)
    options = build_parser().parse_args(["serve", ".", "--port", "0"])
    options.run(options)
    assert named[0].name == tmp_path.name
