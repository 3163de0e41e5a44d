"""Chat and server say how sure an answer is, and abstain from what isn't sure enough."""

import pytest

from mllm.inference.chat import ChatSession
from mllm.inference.confidence import Confidence, Platt
from mllm.inference.terminal import chat_script
from tests.helpers.serving import client_of, question, serving

SCALE = Platt(slope=0.05, offset=1.0)
SILENT = Confidence(SCALE, 0.9999, "Not sure.")
SURE = Confidence(SCALE, 0.0001, "Not sure.")


def session_of(assembled, confidence=None):
    return ChatSession(*assembled, max_new_tokens=6, confidence=confidence)


def test_a_chat_says_an_answer_and_its_confidence_or_the_words_for_not_knowing(assembled, capsys):
    plain = session_of(assembled).ask("what is this")
    for confidence in (Confidence(SCALE), SURE):
        session = session_of(assembled, confidence)
        assert session.ask("what is this") == plain
        total = sum(token.logprob for token in session.last.logprobs)
        assert session.said.confidence == SCALE.confidence(total) and not session.said.abstained
    pieces = []
    silent = session_of(assembled, SILENT)
    assert silent.ask("what is this", on_text=pieces.append) == "Not sure."
    assert pieces == ["Not sure."] and silent.said.abstained and silent.last.text == plain
    # Later turns hear what was said, and compute what a conversation with those words computes.
    other = session_of(assembled)
    other.messages = list(silent.messages)
    assert silent.messages[-1].text == "Not sure."
    silent.confidence = Confidence(SCALE)
    assert silent.ask("is it red") == other.ask("is it red")
    chat_script(session_of(assembled, SILENT), ["what is this"], [])
    out = capsys.readouterr()
    assert out.out == "Not sure.\n" and out.err.startswith("confidence 0.")


@pytest.mark.parametrize("confidence", [Confidence(SCALE), SURE, SILENT])
def test_the_server_s_answer_carries_its_confidence_also_in_a_stream(assembled, confidence):
    plain = session_of(assembled).ask("what is this")
    with serving(assembled, confidence=confidence) as port:
        ask = {"model": "tiny", "messages": [question("what is this")], "temperature": 0, "logprobs": True}
        client = client_of(port)
        choice = client.chat.completions.create(**ask).choices[0]
        chunks = [own for c in client.chat.completions.create(**ask, stream=True) for own in c.choices]
    is_silent = confidence is SILENT
    assert choice.message.content == ("Not sure." if is_silent else plain)
    assert choice.message.abstained is is_silent and 0 < choice.message.confidence < 1
    assert (choice.logprobs is None) is is_silent
    assert "".join(own.delta.content or "" for own in chunks) == choice.message.content
    last = chunks[-1]
    assert (last.delta.confidence, last.delta.abstained) == (choice.message.confidence, is_silent)
    told = [t for own in chunks if own.logprobs for t in own.logprobs.content or ()]
    assert bool(told) is not is_silent
