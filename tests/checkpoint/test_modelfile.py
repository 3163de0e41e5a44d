"""Ollama's Modelfile, as a text: its template writes what our prompt format writes, and names what ends an answer.

Ollama itself isn't run: its template is read as the template of another language that has the same few words.
"""

import re

import jinja2
import pytest

from mllm.checkpoint.chat_template import written
from mllm.checkpoint.modelfile import modelfile
from mllm.checkpoint.start import build
from mllm.conversation.schema import Message
from tests.helpers.tiny import tiny_settings

IN_JINJA = {
    "- range .Messages": "{% for m in messages %}",
    'if eq .Role "system"': "{% if m.role == 'system' %}",
    'else if eq .Role "user"': "{% elif m.role == 'user' %}",
    "else": "{% else %}",
    ".Content": "{{ m.text }}",
}
CONVERSATIONS = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user", "assistant", "user", "assistant", "user"),
)


def long_value(text, name):
    """What stands between the three quotes of an instruction; None without it."""
    found = re.search(rf'^{name} """(.*?)"""$', text, flags=re.MULTILINE | re.DOTALL)
    return found and found[1]


def ask_ollama(text, messages):
    """The prompt that the template makes, its SYSTEM in front of a conversation without a system turn."""
    ends = iter(["{% endif %}", "{% endfor %}"])
    template, opening = long_value(text, "TEMPLATE"), long_value(text, "SYSTEM")
    words = re.sub(r"{{(.*?)}}", lambda m: next(ends) if m[1].strip() == "end" else IN_JINJA[m[1].strip()], template)
    if messages[0].role != "system" and opening is not None:
        messages = [Message(role="system", content=opening), *messages]
    return jinja2.Environment(keep_trailing_newline=True).from_string(words).render(messages=messages)


@pytest.mark.parametrize("prompt_format", ["vicuna_v1", "llama_3", "chatml", "qwen_1_5", "native"])
def test_the_template_of_a_modelfile_writes_what_the_prompt_format_writes(tiny_parts, prompt_format):
    model, processor = build(tiny_settings(tiny_parts, "siglip", prompt_format))
    text = modelfile(model, processor)
    assert text.startswith("FROM ./model.gguf\nFROM ./mmproj.gguf\n")
    for roles in CONVERSATIONS:
        messages = [Message(role=role, content=f"{role} {number}") for number, role in enumerate(roles)]
        assert ask_ollama(text, messages) == written(processor, messages, generation=True), roles
    stops = {processor.tokenizer.decode([token]) for token in processor.stop_token_ids}
    assert stops == set(re.findall(r'^PARAMETER stop "(.*)"$', text, flags=re.MULTILINE))
    assert f"PARAMETER num_ctx {model.context_tokens}\n" in text and "PARAMETER temperature 0\n" in text


def test_a_format_that_is_not_the_same_around_every_turn_gets_no_template(tiny_parts, caplog):
    model, processor = build(tiny_settings(tiny_parts, "siglip", "native"))
    processor.tokenizer.chat_template = (
        "{% for m in messages %}{{ loop.index ~ m['role'] ~ ': ' ~ m['content'] ~ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ (messages | length + 1) ~ 'assistant: ' }}{% endif %}"
    )
    processor.format.__init__(processor.tokenizer, "<image>")
    text = modelfile(model, processor)
    assert "TEMPLATE" not in text and "SYSTEM" not in text and "PARAMETER stop" in text
    assert "isn't the same around every turn" in caplog.text
