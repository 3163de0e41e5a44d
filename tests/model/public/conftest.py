"""Samples that the tests of transformers' models share."""

import pytest

from mllm.conversation.schema import ImagePart, Message, Sample, TextPart
from mllm.model.public import wrap
from tests.helpers.public_models import tiny
from tests.helpers.samples import sample
from tests.helpers.tiny import save_image


@pytest.fixture(scope="package")
def models():
    """By name, each wrapped once."""
    return {}


@pytest.fixture(scope="package")
def named(models):
    def get(name):
        if name not in models:
            models[name] = wrap(*tiny(name))
        return models[name]

    return get


@pytest.fixture(scope="package")
def pictures(tmp_path_factory):
    root = tmp_path_factory.mktemp("images")
    wide = save_image(root / "wide.png", (200, 30, 30), (70, 24))
    return wide, save_image(root / "tall.png", (20, 130, 30), (18, 40))


@pytest.fixture(scope="package")
def samples(pictures):
    wide, tall = pictures
    later = Sample(
        id="later",
        images=(tall, wide),
        messages=(
            Message(role="user", content=(ImagePart(), TextPart(text="what is this"))),
            Message(role="assistant", content="a dog"),
            Message(role="user", content=(TextPart(text="and "), ImagePart())),
            Message(role="assistant", content="a blue cat"),
        ),
    )
    return [
        sample("one", "what is this", "a cat", [wide]),
        sample("same", "what is it", "yes hello", [wide]),
        sample("words", "hello world", "yes no"),
        sample("two", "is this a dog", "no", [tall, wide]),
        later,
    ]
