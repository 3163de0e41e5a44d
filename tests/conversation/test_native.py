"""Chat templates that print the day, and templates that refuse a conversation."""

from datetime import date, datetime

import pytest
import transformers.utils.chat_template_utils as template_clock

from mllm.checkpoint import ours as checkpoint
from mllm.checkpoint.start import build
from mllm.conversation.schema import Message
from mllm.errors import ConversationRefusedError, UserError
from mllm.processor import Processor
from tests.helpers.templates import DATED, PICKY, processor
from tests.helpers.tiny import tiny_settings

TALK = (Message(role="user", content="hello"), Message(role="assistant", content="yes"))


def text(p, messages=TALK, generation=False):
    return p.tokenizer.decode(p.render(messages, generation=generation).input_ids)


def test_a_day_that_ends_changes_neither_prompts_nor_what_was_trained(monkeypatch):
    p = processor(DATED, date(2026, 1, 31))
    trained, first = p.render(TALK).input_ids, text(p)
    assert "Today: 31 Jan 2026" in first and p.day == date(2026, 1, 31)

    class NextDay(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 2, 1)

    monkeypatch.setattr(template_clock, "datetime", NextDay)
    other = (Message(role="user", content="another"), Message(role="assistant", content="yes"), *TALK)
    assert "Today: 31 Jan 2026" in text(p, other)  # a shape not met the day before
    prompt = p.render(TALK[:1], generation=True).input_ids
    assert trained[: len(prompt)] == prompt and text(p) == first


@pytest.mark.parametrize("form", ["%d %b %Y", "%A, %B %-d, %Y", "%Y-%m-%dT%H:%M", "100%% on %F %j", ""])
def test_a_day_is_written_as_the_clock_would_write_it(form, monkeypatch):
    class Midnight(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime(2026, 3, 9)

    monkeypatch.setattr(template_clock, "datetime", Midnight)
    template = "\n{% if strftime_now is defined %}{% set now = strftime_now('FORM') %}{% endif %}" + DATED.replace(
        "strftime_now('%d %b %Y')", "now"
    )
    p = processor(template.replace("FORM", form), date(2026, 3, 9))
    asked = [{"role": m.role, "content": m.text} for m in TALK]
    assert p.format.text(TALK, False) == p.tokenizer.apply_chat_template(asked, tokenize=False)


def test_the_day_is_saved_with_the_model_and_one_without_still_loads(tiny_parts, tmp_path):
    model, p = build(tiny_settings(tiny_parts, prompt_format="native"))
    assert p.day is None  # its template prints none
    p.tokenizer.chat_template = DATED
    dated = Processor(p.tokenizer, "native", p.geometry, p.preparer, date(2025, 6, 1))
    checkpoint.save(tmp_path / "m", model, dated)
    assert checkpoint.read_processor(tmp_path / "m").day == date(2025, 6, 1)
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"prompt_day": "2025-06-01",', ""))
    assert checkpoint.read_processor(tmp_path / "m").day == date.today()
    config.write_text(config.read_text().replace('"version"', '"prompt_day": "tomorrow", "version"'))
    with pytest.raises(UserError, match="prompt_day is 'tomorrow'"):
        checkpoint.read_processor(tmp_path / "m")


@pytest.mark.parametrize("words", ["odd", "zero", "long", None])
def test_whatever_a_template_raises_refuses_the_conversation_in_a_line(words):
    p = processor(PICKY)
    first = Message(role="system", content="Be brief.") if words is None else Message(role="user", content=words)
    messages = (first, *TALK) if words is None else (first, TALK[1])
    with pytest.raises(ConversationRefusedError, match=r"refuses this conversation: \S") as caught:
        p.render(messages)
    assert "\n" not in str(caught.value)
    assert "yes" in text(p)


def test_a_template_that_takes_no_conversation_is_an_error_of_its_own():
    p = processor("{{ raise_exception('never') }}")
    with pytest.raises(UserError, match="never") as caught:
        p.render(TALK)
    assert not isinstance(caught.value, ConversationRefusedError)
