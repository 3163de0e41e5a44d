"""Likelihoods of given answers: those that generation reports, whatever is shared and however it is batched."""

import pytest
import torch

from mllm.checkpoint.start import build
from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.errors import UserError
from mllm.inference.generate import Request
from mllm.inference.likelihood import score_answers
from tests.helpers.tiny import save_image, tiny_settings

ANSWERS = ["a cat", "a cat and a dog", "yes", "A", "B"]


@pytest.fixture(scope="module", params=["chatml", "vicuna_v1"])
def assembled(request, tiny_parts):
    model, processor = build(tiny_settings(tiny_parts, prompt_format=request.param))
    return model.eval(), processor


@pytest.fixture
def requests(tmp_path):
    images = [save_image(tmp_path / f"{n}.png", (n * 60, 90, 20)) for n in range(2)]

    def ask(text, image):
        return Request((Message(role="user", content=(ImagePart(), TextPart(text=text))),), (image,))

    return [
        *(ask(text, image) for image in images for text in ("what is this", "is this a cat or a dog", "hello")),
        Request((Message(role="user", content="hello world"),)),
    ]


def alone(model, processor, request, answer):
    """The same by one plain forward over the whole conversation, without cache or padding."""
    from mllm.media.decode import read_image, read_image_size

    sizes = [read_image_size(image) for image in request.images]
    tokens = processor.render((*request.messages, Message(role="assistant", content=answer)), sizes)
    ids = torch.tensor([tokens.input_ids])
    features = []
    for image, visual in zip(request.images, tokens.visuals, strict=True):
        features.append(model.encode_images(processor.pixels(read_image(image))[None], [visual]))
    with torch.inference_mode():
        embeddings = model.embed_features(ids, features)
        logprobs = model.language_model(inputs_embeds=embeddings).logits[0, :-1].log_softmax(-1)
    supervised = torch.tensor(tokens.supervised[1:])
    return float(logprobs.gather(1, ids[0, 1:, None])[supervised].sum())


def test_scores_are_those_of_each_conversation_alone(assembled, requests):
    model, processor = assembled
    pairs = [(request, answer) for request in requests for answer in ANSWERS]
    expected = [alone(model, processor, *pair) for pair in pairs]
    told = {}
    for batch_size in (1, 7, 64):
        found = score_answers(model, processor, *zip(*pairs, strict=True), batch_size=batch_size, on_scores=told.update)
        assert found == pytest.approx(expected, abs=2e-3)
        assert [told[n] for n in range(len(pairs))] == found


def test_too_long_conversations_are_refused(assembled, requests):
    model, processor = assembled
    with pytest.raises(UserError, match="exceed the model's context"):
        score_answers(model, processor, requests[:1], ["hello " * 600])
