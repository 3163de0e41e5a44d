"""Images, and samples that share some of them."""

import pytest

from tests.helpers.samples import sample
from tests.helpers.tiny import save_image


@pytest.fixture
def images(tmp_path):
    return [save_image(tmp_path / f"{i}.png", (60 * i, 200 - 40 * i, 90), (20 + i, 12)) for i in range(3)]


@pytest.fixture
def samples(images):
    return [
        sample("a", "what is this", "a cat", images[:1]),
        sample("b", "what colour", "red", images[:1]),
        sample("c", "hello", "world and more"),
        sample("d", "compare", "no", images[1:3]),
        sample("e", "is it blue", "yes", images[:1]),
    ]
