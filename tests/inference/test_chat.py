"""A conversation whose keys and values stay over turns."""

from pathlib import Path

import pytest
import torch

from mllm.errors import UserError
from mllm.inference.chat import ChatSession
from mllm.inference.decoding import RowProcessors
from tests.helpers.tiny import save_image


@pytest.fixture
def images(tmp_path):
    return [save_image(tmp_path / f"{i}.png", (60 * i, 200 - 40 * i, 90), (20 + i, 12)) for i in range(3)]


def session_of(assembled, **settings):
    return ChatSession(*assembled, **({"system": "Be kind.", "max_new_tokens": 10} | settings))


def fresh_copy(assembled, session):
    """A session with the same turns that has computed nothing yet."""
    copy = session_of(assembled)
    copy.messages, copy.images = list(session.messages), list(session.images)
    return copy


def turns(images):
    return [("what is this", images[:1]), ("is it red", []), ("compare them", images[1:]), ("hello world", [])]


def test_a_turn_computes_only_its_new_tokens_and_answers_as_a_full_recomputation(assembled, images):
    session = session_of(assembled)
    for question, shown in turns(images):
        recomputed = fresh_copy(assembled, session)
        before = session.last
        assert session.ask(question, shown) == recomputed.ask(question, shown)
        assert session.last.token_ids == recomputed.last.token_ids
        assert recomputed.last.computed_token_count == recomputed.last.prompt_token_count
        if before is not None:
            new = session.last.prompt_token_count - before.prompt_token_count
            # Random weights write tokens that another splitting of the text may not have, so some of the answer is new.
            assert session.last.computed_token_count <= new
            assert session.last.computed_token_count < recomputed.last.computed_token_count


def test_an_answer_that_renders_as_it_was_written_is_not_computed_again(assembled, images, monkeypatch):
    session = session_of(assembled)
    answer = session.processor.tokenizer("a cat", add_special_tokens=False).input_ids
    script = [*answer, session.processor.stop_token_ids[0]]

    def write_script(self, input_ids, scores):
        token = torch.tensor([[script[input_ids.shape[1]]]])
        return torch.full_like(scores, -torch.inf).scatter(-1, token, 0.0)

    monkeypatch.setattr(RowProcessors, "__call__", write_script)
    assert session.ask("what is this", images[:1]) == "a cat"
    known = session.last.prompt_token_count + len(answer)  # the token that ended the answer was never fed
    session.ask("is it red")
    assert session.last.computed_token_count == session.last.prompt_token_count - known
    session.undo()
    session.ask("is it red")
    assert session.last.computed_token_count == 1


def test_undo_reset_and_system_answer_as_if_the_rest_had_never_been(assembled, images):
    session = session_of(assembled)
    first = session.ask(*turns(images)[0])
    session.ask("compare them", images[1:])
    session.undo()
    assert session.images == images[:1] and session.messages[-1].text == first
    plain = fresh_copy(assembled, session)
    assert session.ask("hello world") == plain.ask("hello world")
    session.set_system("Be brief and red.")
    assert [m.role for m in session.messages[:2]] == ["system", "user"]
    recomputed = fresh_copy(assembled, session)
    assert session.ask("yes or no") == recomputed.ask("yes or no")
    session.reset()
    assert not session.images and [m.text for m in session.messages] == ["Be brief and red."]
    session.set_system(None)
    with pytest.raises(UserError, match="no question to take back"):
        session.undo()
    assert session.ask("hello") == session_of(assembled, system=None).ask("hello")


def test_an_interrupted_question_leaves_the_chat_as_it_was(assembled, images, monkeypatch):
    session = session_of(assembled)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    for question, shown in turns(images)[:2]:
        before = list(session.messages)
        with monkeypatch.context() as patch:
            patch.setattr(session.model.language_model.model.layers[1], "forward", interrupt)
            with pytest.raises(KeyboardInterrupt):
                session.ask(question, shown)
        assert session.messages == before
        recomputed = fresh_copy(assembled, session)
        assert session.ask(question, shown) == recomputed.ask(question, shown)


def test_a_cancelled_answer_keeps_its_words_and_the_chat_goes_on(assembled, images):
    session = session_of(assembled)
    whole = session.ask("what is this", images[:1])
    session.undo()
    asked = []
    answer = session.ask("what is this", images[:1], is_cancelled=lambda: len(asked) == 4 or asked.append(1))
    assert session.last.finish_reason == "cancelled" and len(session.last.token_ids) == 5
    assert answer and whole.startswith(answer.removesuffix("\ufffd")) and session.messages[-1].text == answer
    recomputed = fresh_copy(assembled, session)
    assert session.ask("what") == recomputed.ask("what")


def test_a_saved_conversation_goes_on_elsewhere(assembled, images, tmp_path):
    session = session_of(assembled)
    session.ask("what is this", images[:1])
    session.ask("and this", [Path(images[1]).read_bytes()])
    session.save(tmp_path / "chat.json")
    other = ChatSession(*assembled, max_new_tokens=10)
    other.load(tmp_path / "chat.json")
    assert other.system == "Be kind." and other.messages == session.messages
    assert other.ask("is it red") == session.ask("is it red")
    for text in ("{", '{"messages": [], "images": [], "more": 1}', '{"messages": [], "images": ["gone.png"]}'):
        (tmp_path / "bad.json").write_text(text)
        before = list(other.messages)
        with pytest.raises(UserError):
            other.load(tmp_path / "bad.json")
        assert other.messages == before


def test_what_cannot_be_asked_is_said_in_a_line(assembled):
    session = session_of(assembled)
    for question, shown, words in (
        (" \n", [], "empty"),
        ("hello", ["gone.png"], r"gone\.png"),
        ("hello", [b"no image"], "not a readable image"),
        ("hello " * 600, [], r"\d+ tokens and 10 new ones exceed the model's context of 512"),
    ):
        with pytest.raises(UserError, match=words):
            session.ask(question, shown)
    assert session.ask("hello") and len(session.messages) == 3
