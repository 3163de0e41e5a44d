"""A sample as a prompt: what is asked, what is right, and which places an answer names."""

import pytest

from mllm.checkpoint.start import build
from mllm.conversation.schema import Message, Sample
from mllm.errors import BadSampleError
from mllm.rewards.asked import ask
from mllm.rewards.scoring import Rewards
from mllm.rewards.settings import RewardSettings
from mllm.settings import validate_settings
from tests.helpers.tiny import save_image, tiny_settings


@pytest.fixture(scope="module")
def processor(tiny_parts):
    return build(tiny_settings(tiny_parts))[1]


def sample_of(path, *answers):
    asked = Message(role="user", content=[{"type": "image"}, {"type": "text", "text": "where is it?"}])
    return Sample(id="s", messages=(asked, *(Message(role="assistant", content=c) for c in answers)), images=(path,))


def test_boxes_of_the_last_answer_and_of_what_is_said_are_compared_in_shares_of_the_image(processor, tmp_path):
    path = save_image(tmp_path / "a.png", size=(40, 20))
    places = {"type": "boxes", "unit": "pixels", "boxes": [{"label": "it", "box": [0, 0, 20, 20]}]}
    asked = ask(sample_of(path, [{"type": "text", "text": "there: "}, places]), processor)
    assert asked.reference_boxes == ((0.0, 0.0, 0.5, 1.0),) and asked.references[0].startswith("there: ")
    given = Rewards(
        validate_settings(RewardSettings, {"parts": [{"kind": "metric", "metric": "iou"}]}, "test"), tmp_path
    )
    right = processor.render(asked.sample.messages, processor.read_sizes(asked.sample.messages, (path,)))
    learned = [i for i, s in zip(right.input_ids, right.supervised, strict=True) if s]
    said = processor.tokenizer.decode(learned, skip_special_tokens=True)
    for text, worth in ((said, 1.0), ("nowhere", 0.0)):
        attempt = asked.attempt(text, processor, given.reads_places)
        assert attempt.question == "where is it?" and given([attempt])[0].total == pytest.approx(worth, abs=1e-3)
    assert asked.attempt(said, processor, reads_places=False).boxes is None


def test_a_sample_without_an_answer_has_no_reference_and_one_that_cannot_be_read_is_named(processor, tmp_path):
    path = save_image(tmp_path / "a.png")
    bare, answered = ask(sample_of(path), processor), ask(sample_of(path, "red"), processor)
    assert bare.references == () and answered.references == ("red",)
    assert bare.prompt.tokens.input_ids == answered.prompt.tokens.input_ids
    with pytest.raises(BadSampleError, match=r"sample 's': image .*lost"):
        ask(sample_of(str(tmp_path / "lost.png"), "red"), processor)
