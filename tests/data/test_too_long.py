"""A sample of more than `max_length_tokens`: refused, dropped or cut, and never cut through an image."""

import pytest

from mllm.checkpoint.start import load_processor
from mllm.conversation.schema import Sample
from mllm.data.example import render_example
from mllm.errors import BadSampleError
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture
def processor(tiny_parts):
    return load_processor(tiny_settings(tiny_parts))


@pytest.fixture
def sample(tmp_path):
    """Two turns, an image in each question."""
    path = save_image(tmp_path / "a.png")
    turns = []
    for question, answer in (("what is it", "a red square"), ("and this", "another one")):
        asked = [{"type": "image"}, {"type": "text", "text": question}]
        turns += [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return Sample.model_validate({"id": "long", "messages": turns, "images": (path, path)})


def test_without_leave_to_cut_it_is_too_long(processor, sample):
    length = render_example(sample, processor, 10_000).length
    assert render_example(sample, processor, length).cut_tokens == 0
    with pytest.raises(BadSampleError, match=f"{length} tokens long, data.max_length_tokens is {length - 1}") as caught:
        render_example(sample, processor, length - 1)
    assert caught.value.kind == "too_long"


def test_every_cut_keeps_a_prefix_with_whole_images_and_an_answer(processor, sample):
    whole = render_example(sample, processor, 10_000)
    first, second = whole.tokens.image_spans
    first_answer = whole.tokens.supervised.index(True)
    for limit in range(8, whole.length):
        if limit <= first_answer:
            with pytest.raises(BadSampleError, match="none of its answers lies before the cut"):
                render_example(sample, processor, limit, "truncate_text")
            continue
        cut = render_example(sample, processor, limit, "truncate_text")
        inside_second = second[0] < limit < sum(second)
        assert cut.length == (second[0] if inside_second else limit)
        assert cut.tokens.input_ids == whole.tokens.input_ids[: cut.length]
        assert cut.tokens.supervised == whole.tokens.supervised[: cut.length]
        assert cut.tokens.image_spans == ((first, second) if limit >= sum(second) else (first,))
        assert len(cut.images) == len(cut.tokens.image_spans)
        assert cut.cut_tokens == whole.length - cut.length
