"""What servers of others send for a chat completion: the answer is kept, or its failure counted."""

import json

import openai
import pytest

from mllm.cli import build_parser
from mllm.clients.completion import read_completion
from mllm.errors import UserError
from mllm.evaluation.asking import Question
from tests.helpers.endpoint import answers_of
from tests.helpers.tiny import save_image


def whole(message, **choice):
    return {"id": "1", "object": "chat.completion", "choices": [{"index": 0, "message": message, **choice}]}


def said(content, **more):
    return {"role": "assistant", "content": content, **more}


TEXT = {"type": "text", "text": "red"}
KEPT = {
    "a string": said(" red\n"),
    "a list of parts": said([TEXT]),
    "parts behind thoughts": said([{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, TEXT]),
    "parts as strings": said(["re", "d"]),
    "parts of another kind": said([{"type": "output_text", "text": "red", "annotations": []}]),
    "parts around nothing": said([None, TEXT, {}, {"type": "image_url", "image_url": {"url": "x"}}]),
    "an object": said(TEXT),
    "text as an object": said([{"type": "text", "text": {"value": "red"}}]),
    "a refusal": said(None, refusal="red"),
    "a refusal as a part": said([{"type": "refusal", "refusal": "red"}]),
    "reasoning beside it": said("red", reasoning_content="the sky", reasoning="hm"),
    "no role": {"content": "red"},
    "half of a character": said("red \ud83d"),
}
LOST = {
    "null": said(None),
    "nothing": {"role": "assistant"},
    "an empty string": said(""),
    "empty parts": said([]),
    "a boolean": said(True),
    "reasoning alone": said(None, reasoning_content="the sky is red"),
    "a tool": said(None, tool_calls=[{"id": "1", "type": "function", "function": {"name": "look", "arguments": "{}"}}]),
    "no message": None,
}
NO_COMPLETION = [{}, [], None, 5, "<html>", {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": "red"}]
NO_COMPLETION += [{"error": {"message": "out of order"}}, {"error": "out of order"}, {"choices": {}}]


@pytest.mark.parametrize("shape", KEPT)
def test_an_answer_is_kept_in_whatever_shape_it_comes(shape, server):
    expected = "red ?" if "half" in shape else "red"
    assert read_completion(whole(KEPT[shape])).text.strip() == expected
    assert read_completion(json.dumps(whole(KEPT[shape]))).text.strip() == expected
    server.refuse = lambda body, number: (200, whole(KEPT[shape], finish_reason="stop"))
    question = Question("what?", (), 8)
    assert answers_of(server, [question])[question].text == expected


@pytest.mark.parametrize("shape", LOST)
def test_an_answer_without_words_is_empty_and_counted(shape, server, caplog):
    server.refuse = lambda body, number: (200, whole(LOST[shape], finish_reason="length"))
    questions = [Question(f"{n}?", (), 8) for n in range(10)]
    found = answers_of(server, questions)
    assert {reply.text for reply in found.values()} == {""} and len(found) == 10
    assert "10 answer(s) without words count as empty: " in caplog.text


@pytest.mark.parametrize("body", NO_COMPLETION, ids=str)
def test_what_is_no_completion_is_counted_among_answers_and_ends_the_run_alone(body, server, caplog):
    assert not read_completion(body).is_completion
    questions = [Question(f"{n}?", (), 8) for n in range(12)]
    server.refuse = lambda asked, number: (200, body) if number > 1 else None
    found = answers_of(server, questions, concurrency=1)
    assert [found[question].text for question in questions] == ["0?", *[""] * 11]
    assert "11 answer(s) without words" in caplog.text
    server.refuse = lambda asked, number: (200, body)
    with pytest.raises(UserError, match="no chat completion came back"):
        answers_of(server, questions)


@pytest.mark.parametrize("content", [None, [], [None], [{"token": "a"}], [{"logprob": "x"}], [{"logprob": -1}, {}], 5])
def test_log_probabilities_of_another_shape_are_none(content):
    found = read_completion(whole(said("red"), logprobs={"content": content}))
    assert found.text == "red" and found.logprob is None
    assert read_completion(whole(said("red"), logprobs=[])).logprob is None


def test_what_the_client_built_is_read_as_plain_json_is():
    built = openai.types.chat.ChatCompletion.construct(**whole(said([TEXT])))
    assert read_completion(built).text == "red"
    assert read_completion({"choices": [{"text": "red"}]}).text == "red"


def test_results_say_how_many_answers_are_empty(server, tmp_path):
    lines = [{"image": f"{n}.png", "question": "red?", "answer": "red"} for n in range(3)]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for n in range(3):
        save_image(tmp_path / f"{n}.png", (n, 0, 0))
    server.refuse = lambda body, number: (200, whole(said([TEXT] if number > 2 else None)))
    names = ["--benchmarks", str(tmp_path / "own.jsonl"), "--output", str(tmp_path / "out"), "--base-url", server.url]
    options = build_parser().parse_args(["eval", "openai:gpt-x", *names, "--concurrency", "1"])
    options.run(options)
    assert list(json.loads((tmp_path / "out" / "results.json").read_text())["empty_answers"].values()) == [2]
    assert "2 of 3 answers are empty." in (tmp_path / "out" / "report.md").read_text()
