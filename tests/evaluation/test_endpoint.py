"""A model behind an OpenAI-compatible endpoint: a small server here says what it was asked."""

import json
import threading

import pytest

from mllm.cli import build_parser
from mllm.clients.openai import Sampling
from mllm.errors import UserError
from mllm.evaluation.asking import Question
from mllm.evaluation.medium import shown
from mllm.evaluation.subjects.endpoint import Endpoint
from mllm.media.data_url import file_url
from tests.helpers.endpoint import answers_of
from tests.helpers.faulty_server import refused_by_new_model
from tests.helpers.tiny import save_image


def test_images_go_as_data_urls_and_answers_come_with_log_probabilities(server, tmp_path):
    png = save_image(tmp_path / "a.png", (40, 0, 0))
    bmp = save_image(tmp_path / "b.bmp", (80, 0, 0))
    questions = [Question("what?", shown(png), 8), Question("what?", shown(bmp), 8), Question("why?", (), 5)]
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
    found = answers_of(server, [Question(f"{n}?", (), 8) for n in range(9)], concurrency=3)
    assert len(found) == 9 and server.most == 3


def test_busy_servers_are_asked_again_and_broken_ones_named(server):
    server.refuse = lambda body, number: (429, {"error": {"message": "slow down"}}) if number <= 2 else None
    question = Question("why?", (), 8)
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
        Endpoint("gpt-x", server.url, 1).answer([Question(f"{n}?", (), 8) for n in range(9)], found.update)
    assert len(found) == 3


def test_an_endpoint_without_log_probabilities_is_asked_without(server):
    """Some call it a bad request, models of OpenAI that reason call it forbidden."""
    questions = [Question(f"{n}?", (), 8) for n in range(6)]
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

    def taken():
        # Requests of the runs that were refused may arrive late.
        return [body for body in server.bodies if not refused_by_new_model(body)]

    run(*given, "--thinking-tokens", "1000")
    asked = len(taken())
    assert asked and all(body["max_completion_tokens"] > 1000 for body in taken())
    assert not any("temperature" in body for body in taken())
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["temperature"], results["thinking_tokens"]) == (None, 1000) and results["decoding"]["do_sample"]
    run(*given, "--thinking-tokens", "1001")  # other answers than those that are kept
    assert len(taken()) == 2 * asked
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
