"""Answers, chats and likelihoods of models of transformers: those of asking alone."""

import pytest
import torch

from mllm.conversation.schema import ImagePart, Message, TextPart
from mllm.inference.chat import ChatSession
from mllm.inference.generate import generate_batch
from mllm.inference.likelihood import score_answers
from mllm.inference.request import Request
from mllm.model.public import wrap
from tests.helpers.public_models import MAKERS, tiny
from tests.helpers.samples import batch_of, sample
from tests.helpers.tiny import save_image


@pytest.fixture(scope="module", params=MAKERS)
def wrapped(request):
    return wrap(*tiny(request.param))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    return [
        save_image(root / "a.png", (200, 30, 30), (70, 24)),
        save_image(root / "b.png", (20, 130, 30), (18, 40)),
    ]


def ask(text, *images):
    parts = (*(ImagePart() for _ in images), TextPart(text=text))
    return Request((Message(role="user", content=parts),), tuple(images))


def test_answers_and_likelihoods_of_a_batch_are_those_of_asking_alone(wrapped, images):
    model, processor = wrapped
    requests = [ask("what is this", images[0]), ask("hello"), ask("which of these is a dog", *images)]
    together = generate_batch(model, processor, requests, 6, batch_size=3)
    assert together == [generate_batch(model, processor, [request], 6)[0] for request in requests]
    scores = score_answers(model, processor, requests, ["a cat", "yes", "no"])
    alone = [
        score_answers(model, processor, [r], [a])[0] for r, a in zip(requests, ["a cat", "yes", "no"], strict=True)
    ]
    assert scores == pytest.approx(alone, abs=1e-4)


def test_the_likelihood_of_an_answer_is_the_loss_of_training_on_it(wrapped, images):
    model, processor = wrapped
    batch = batch_of([sample("one", "what is this", "a cat", images[:1])], processor, "none", 2000)
    with torch.no_grad():
        loss = float(model(batch))
    assert score_answers(model, processor, [ask("what is this", images[0])], ["a cat"])[0] == pytest.approx(
        -loss, abs=1e-4
    )


def test_a_turn_of_a_chat_is_answered_as_the_whole_conversation_is(wrapped, images):
    model, processor = wrapped
    chat = ChatSession(model, processor, max_new_tokens=4)
    first = chat.ask("what is this", images=[images[0]])
    second = chat.ask("and this", images=[images[1]])
    turns = (
        *ask("what is this", images[0]).messages,
        Message(role="assistant", content=first),
        *ask("and this", images[1]).messages,
    )
    assert generate_batch(model, processor, [Request(turns, tuple(images))], 4) == [second]
