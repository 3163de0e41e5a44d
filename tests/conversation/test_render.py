"""Rendering: one tokenization gives ids and supervision, and generation sees what training saw."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mllm.conversation.formats import PROMPT_FORMATS
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.media.prepare import ImagePreparer
from mllm.media.visual import ImageGeometry
from mllm.processor import IMAGE_TOKEN, Processor
from tests.helpers.tiny import TOKENIZERS

FORMATS = [*PROMPT_FORMATS, "native"]
ODD = [
    "",
    "hello world",
    "<image>",
    "<|im_end|>",
    "</s> yes",
    " a",
    "a ",
    "🙂 é",
    "two\nlines",
    "\n",
    "ASSISTANT:",
    "user",
]
texts = st.one_of(st.sampled_from(ODD), st.text(max_size=12))
plain_texts = st.text(alphabet="abc yesno.,?\n", min_size=1, max_size=12)
GEOMETRY = ImageGeometry(image_size_px=16, patch_size_px=4)
PREPARER = ImagePreparer(16, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_cache: dict = {}


def processor(format_name: str, tokenizer: str) -> Processor:
    key = (format_name, tokenizer)
    if key not in _cache:
        _cache[key] = Processor(TOKENIZERS[tokenizer](), format_name, GEOMETRY, PREPARER)
    return _cache[key]


def conversation(turns, with_image=True):
    messages = []
    for index, (question, answer) in enumerate(turns):
        parts = [ImagePart()] if with_image and index == 0 else []
        messages.append(Message(role="user", content=(*parts, TextPart(text=question))))
        messages.append(Message(role="assistant", content=answer))
    return messages


turns_of = lambda text: st.lists(st.tuples(text, text), min_size=1, max_size=3)  # noqa: E731
every = pytest.mark.parametrize("tokenizer", list(TOKENIZERS))
checked = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@every
@pytest.mark.parametrize("name", FORMATS)
@given(turns=turns_of(texts))
@checked
def test_generation_prompt_is_prefix_of_training_ids(name, tokenizer, turns):
    p = processor(name, tokenizer)
    messages = conversation(turns)
    sizes = [(16, 16)]
    trained = p.render(messages, sizes).input_ids
    for end in range(1, len(messages), 2):
        prompt = p.render(messages[:end], sizes, generation=True).input_ids
        assert trained[: len(prompt)] == prompt


@every
@pytest.mark.parametrize("name", FORMATS)
@given(turns=turns_of(texts))
@checked
def test_supervised_tokens_are_the_words_and_the_end_token(name, tokenizer, turns):
    p = processor(name, tokenizer)
    tokens = p.render(conversation(turns), [(16, 16)])
    spans, current = [], []
    for token, supervised in zip(tokens.input_ids, tokens.supervised, strict=True):
        if supervised:
            current.append(token)
        elif current:
            spans.append(current)
            current = []
    if current:
        spans.append(current)
    if name == "plain":
        spans = [[token for span in spans for token in span]]
    else:
        assert len(spans) == len(turns)
    tk = p.tokenizer
    ends = {t for t in p.stop_token_ids}
    words = "".join(a for _, a in turns) if name == "plain" else None
    for span, (_, answer) in zip(spans, turns, strict=False):
        body = span if name == "plain" else span[:-1]
        if name != "plain":
            assert span[-1] in ends
        expected = words if name == "plain" else answer
        got = "".join(tk.decode(body).split()).replace("<unk>", "")
        want = "".join(tk.decode(tk(expected, add_special_tokens=False, split_special_tokens=True).input_ids).split())
        if name == "plain" or "<unk>" in want:
            continue
        assert got == want.replace("<unk>", "")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("answer", ["hello world", "yes", "a cat"])
def test_supervised_text_is_exact_for_byte_level_tokenizers(name, answer):
    p = processor(name, "byte_level")
    tokens = p.render(conversation([("what is this", answer)]), [(16, 16)])
    ids = [t for t, s in zip(tokens.input_ids, tokens.supervised, strict=True) if s]
    end = "\n" if name == "plain" else {"llama_3": "<|eot_id|>"}.get(name, "<|im_end|>")
    prefix = " " if name == "vicuna_v1" else ""
    assert p.tokenizer.decode(ids) == prefix + answer + end


@every
@given(turns=turns_of(texts))
@checked
def test_native_text_equals_the_chat_template(tokenizer, turns):
    p = processor("native", tokenizer)
    messages = conversation(turns)
    segments = p.format.segments(messages, "", generation=False)
    joined = "".join(IMAGE_TOKEN if s.kind == "image" else s.text for s in segments)
    content = [{"role": m.role, "content": f"{IMAGE_TOKEN}\n" * m.image_count + m.text} for m in messages]
    assert joined == p.tokenizer.apply_chat_template(content, tokenize=False)


@every
@given(turns=turns_of(plain_texts.map(lambda t: "a" + t.strip() + "a")))
@checked
def test_native_ids_equal_the_chat_template_without_special_strings(tokenizer, turns):
    p = processor("native", tokenizer)
    messages = conversation(turns, with_image=False)
    content = [{"role": m.role, "content": m.text} for m in messages]
    expected = p.tokenizer.apply_chat_template(content, tokenize=True, return_dict=True)["input_ids"]
    assert list(p.render(messages).input_ids) == list(expected)


def test_special_strings_in_user_text_stay_text_where_the_template_alone_would_make_tokens():
    p = processor("native", "byte_level")
    end = p.tokenizer.convert_tokens_to_ids("<|im_end|>")
    messages = conversation([("say <|im_end|> please", "no")], with_image=False)
    ours = p.render(messages).input_ids
    content = [{"role": m.role, "content": m.text} for m in messages]
    theirs = p.tokenizer.apply_chat_template(content, tokenize=True, return_dict=True)["input_ids"]
    assert list(ours).count(end) == 3  # system, user, assistant
    assert list(theirs).count(end) == 4


def test_image_as_words_never_becomes_an_image():
    p = processor("chatml", "byte_level")
    tokens = p.render(conversation([("what does <image> mean", "a tag")], with_image=False))
    assert p.image_token_id not in tokens.input_ids


def test_qwen_1_5_is_what_llava_onevision_was_trained_with():
    segments = processor("qwen_1_5", "byte_level").format.segments(conversation([("what is this", "cat")]), "", False)
    assert "".join(IMAGE_TOKEN if s.kind == "image" else s.text for s in segments) == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n{IMAGE_TOKEN}\nwhat is this<|im_end|>\n"
        "<|im_start|>assistant\ncat<|im_end|>\n"
    )


def test_image_tokens_are_counted_from_the_size_alone():
    p = processor("chatml", "byte_level")
    tokens = p.render(conversation([("what is this", "cat")]), [(1000, 3)])
    assert tokens.input_ids.count(p.image_token_id) == 16 == tokens.image_spans[0][1]
    assert not any(tokens.supervised[tokens.image_spans[0][0] :][:16])


def test_a_template_that_rewrites_turns_is_refused_by_name():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] | upper }}<|im_end|>{% endfor %}"
    p = Processor(tokenizer, "native", GEOMETRY, PREPARER)
    with pytest.raises(UserError, match="chat template"):
        p.render(conversation([("a", "b")], with_image=False))


def test_a_template_that_breaks_its_own_prefix_is_refused():
    tokenizer = TOKENIZERS["byte_level"]()
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + m['content'] }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>{% endif %}"
    )
    p = Processor(tokenizer, "native", GEOMETRY, PREPARER)
    with pytest.raises(UserError, match="prefix"):
        p.render(conversation([("a", "b")], with_image=False))
